//! The system service that a package installs for the splitter.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::state::{DEFAULT_STATE, StateDir};

/// The unit. It serves [`DEFAULT_STATE`] and starts only where that holds an enrolment without a quarantine.
pub const UNIT: &str = "tidemark-splitter.service";

/// Folders of units, of the administrator and of packages.
const UNIT_FOLDERS: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// Whether the machine runs systemd and the unit serves this state folder.
#[must_use]
pub fn serves(state: &StateDir) -> bool {
    state.root() == Path::new(DEFAULT_STATE)
        && Path::new("/run/systemd/system").is_dir()
        && UNIT_FOLDERS.iter().any(|folder| Path::new(folder).join(UNIT).exists())
}

/// Starts the service now and with the machine; returns when it takes commands.
///
/// # Errors
/// When systemd refuses or the splitter does not come up.
pub fn start() -> Result<()> {
    // `restart`, because a splitter that found itself quarantined may not have ended yet.
    for arguments in [["enable", "--quiet"].as_slice(), &["restart"]] {
        let output = Command::new("systemctl")
            .args(arguments)
            .arg(UNIT)
            .output()
            .with_context(|| format!("cannot run systemctl; start {UNIT} in another way"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "enrolled, but {UNIT} does not start ({}): see 'journalctl -u {UNIT}', then run 'systemctl start {UNIT}'",
                said.lines().next().unwrap_or("systemctl said nothing").trim()
            );
        }
    }
    Ok(())
}

/// What a person types to have the splitter run on this folder.
#[must_use]
pub fn start_command(state: &StateDir) -> String {
    if serves(state) {
        return format!("systemctl start {UNIT}");
    }
    if state.root() == Path::new(DEFAULT_STATE) {
        return "tidemark-splitter run".to_owned();
    }
    format!("tidemark-splitter run --state {}", state.root().display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_ones_own_is_never_the_services() {
        let own = StateDir::new(Path::new("/srv/state"));
        assert!(!serves(&own));
        assert_eq!(start_command(&own), "tidemark-splitter run --state /srv/state");
    }
}
