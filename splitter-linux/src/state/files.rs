//! Contents of the files. TOML, unknown keys refused: a newer splitter's file is not half understood.

use std::path::PathBuf;

use crate::gate::OnLapse;
use serde::{Deserialize, Serialize};

/// `identity.toml`: what enrolment established.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The appliance as HOST:PORT.
    pub appliance: String,
    /// The VM's id at the appliance.
    pub vm_id: String,
    /// The VM's name at the appliance when it was enrolled.
    pub vm_name: String,
    /// The appliance's authority, PEM.
    pub ca_pem: String,
}

/// `disks.toml`: the disks to protect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disks {
    /// Every disk is to be protected, also one that is added later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<All>,
    /// In order of protection.
    #[serde(default, rename = "disk")]
    pub disks: Vec<ProtectedDisk>,
}

/// `protect --all`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct All {
    /// Patterns of the disks that are left out: of their names or identities.
    #[serde(default)]
    pub except: Vec<String>,
}

/// One protected disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProtectedDisk {
    /// Stable identity: serial, WWN or GPT UUID.
    pub identity: String,
    /// The kernel's name when last seen.
    pub path: PathBuf,
    /// An initial copy was complete once: a later one is named a restarted capture on the timeline.
    #[serde(default)]
    pub copied: bool,
    /// Bytes it had when last seen; 0 in a file of an older splitter.
    #[serde(default)]
    pub size_bytes: u64,
}

/// `gates.toml`: the volumes that are to be in synchronous mode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatesFile {
    /// In the order of being switched.
    #[serde(default, rename = "volume")]
    pub volumes: Vec<SyncVolumeConfig>,
}

/// One volume in synchronous mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SyncVolumeConfig {
    /// As it was named.
    pub path: PathBuf,
    /// Its device-mapper name.
    pub name: String,
    /// What happens to writes when the appliance cannot be reached.
    pub on_lapse: OnLapse,
    /// With `hold`: for how many seconds they wait.
    pub hold_max_s: u32,
}

/// `quarantine.toml`: the appliance takes nothing from this splitter until it is enrolled again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantine {
    /// The appliance's words.
    pub reason: String,
}
