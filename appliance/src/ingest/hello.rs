//! Admission: what a hello must prove before a stream may write.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidemark_journal::{DiskRecord, Journal, Position};
use tidemark_proto::ids::{CaptureId, DiskId};
use tidemark_proto::limits::{DISKS_MAX, HEARTBEAT_MS, SECTOR_BYTES, TEXT_MAX_BYTES, WINDOW_BYTES};
use tidemark_proto::pieces::HashKey;
use tidemark_proto::v1::{Disk, Hello, Platform, StreamPosition, Welcome};
use tidemark_proto::version;

use super::compare;
use crate::catalog::{HelloRecord, VmRow, hashes_equal, secret_hash};
use crate::clock::now_us;
use crate::core::Core;
use crate::fleet::{SessionHandle, Vm};

/// How long a live session may take to let go of the journal when another takes over.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// When two sessions of one VM meet and the second comes from another boot or capture, the first counts as alive if a
/// message arrives from it in the second half of this time: what arrives earlier may have been on the way when its
/// splitter died. Ten heartbeats.
const RIVAL_PROOF: Duration = Duration::from_millis(2000);

/// Why a hello is not answered by a welcome.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The splitter should come back later.
    Later(String),
    /// Coming back does not help.
    Final(String),
    /// Nothing more is accepted from this VM until it is enrolled again.
    Quarantine(String),
    /// This machine is a copy of one that is connected: nothing is accepted from it.
    Copy(String),
}

/// A hello that was admitted.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) journal: Arc<Journal>,
    pub(super) capture_id: CaptureId,
    pub(super) last_time_us: u64,
    pub(super) welcome: Welcome,
    pub(super) pending_nonce_hash: String,
    /// Of the session's questions; `None` when its version knows none.
    pub(super) hash_key: Option<HashKey>,
    /// Whether it is told what templates have; the key is theirs then.
    pub(super) templates: bool,
}

/// Judges a hello. The caller holds the VM's admission lock.
pub(super) async fn admit(core: &Core, vm: &Arc<Vm>, hello: &Hello) -> Result<Admitted, Refusal> {
    if core.stopping.is_cancelled() {
        return Err(Refusal::Later("the appliance is shutting down".into()));
    }
    if core.space.borrow().full {
        return Err(Refusal::Later("the appliance's disk is full".into()));
    }
    let row = core.catalog.vm(vm.id).await.map_err(later)?;
    let row = row.ok_or_else(|| Refusal::Final("this VM has been removed: enrol again".into()))?;
    if let Some(reason) = &row.quarantine {
        let name = &row.name;
        let advice = format!("run `tidemark token create --vm {name} --replace` and enrol again");
        return Err(Refusal::Final(format!("this VM is quarantined ({reason}): {advice}")));
    }
    let protocol = version::negotiate(hello.protocol_min, hello.protocol_max)
        .map_err(|error| Refusal::Final(error.to_string()))?;
    let capture_id = check_fields(hello).map_err(Refusal::Final)?;
    let platform = hello.platform.clone().unwrap_or_default();
    check_machine(vm, &row, hello, &platform).await?;
    end_rival(vm, hello, &platform).await?;
    let (journal, position, last_time_us) = settle(vm).await?;
    check_last_acked(hello.last_acked.as_ref(), &position)?;
    let known = add_disks(&journal, &hello.disks).await?;
    let nonce: [u8; 32] = rand::random();
    let pending_nonce_hash = secret_hash(&nonce);
    record(core, vm, hello, &platform, &pending_nonce_hash).await?;
    let timeline = journal.timeline();
    let mut open_gap_disks: Vec<u32> = timeline
        .gaps()
        .iter()
        .filter(|gap| gap.to.is_none())
        .flat_map(|gap| &gap.disks)
        .map(|disk| disk.0)
        .collect();
    open_gap_disks.sort_unstable();
    open_gap_disks.dedup();
    let templates = protocol >= version::TEMPLATES && core.templates.any();
    let hash_key = (protocol >= version::HASHES_FIRST)
        .then(|| if templates { core.templates.key() } else { HashKey(rand::random()) });
    let welcome = Welcome {
        protocol,
        next_nonce: nonce.to_vec().into(),
        durable: Some(stream_position(&position)),
        generation: position.generation.0,
        disks: known,
        window_bytes: WINDOW_BYTES,
        heartbeat_ms: HEARTBEAT_MS,
        vm_id: vm.id.to_string(),
        vm_name: vm.name.clone(),
        open_gap_disks,
        clean_lsn: timeline.horizon().map_or(0, |horizon| horizon.lsn.0),
        hash_key: hash_key.map(|key| key.0.to_vec()).unwrap_or_default().into(),
        comparable_disks: compare::comparable_disks(&timeline),
        verify_disks: compare::verify_disks(&timeline),
        templates,
    };
    Ok(Admitted { journal, capture_id, last_time_us, welcome, pending_nonce_hash, hash_key, templates })
}

fn later(error: impl std::fmt::Display) -> Refusal {
    Refusal::Later(error.to_string())
}

fn check_fields(hello: &Hello) -> Result<CaptureId, String> {
    let capture_id =
        hello.capture_id.as_ref().try_into().map_err(|_| "the capture id has not 16 bytes".to_owned())?;
    let platform = hello.platform.clone().unwrap_or_default();
    let texts = [
        &hello.software,
        &platform.dmi_uuid,
        &platform.machine_id,
        &platform.boot_id,
        &platform.kernel,
        &platform.hostname,
    ];
    let texts = texts.into_iter().chain(hello.disks.iter().flat_map(|disk| [&disk.identity, &disk.path]));
    for text in texts {
        if text.len() > TEXT_MAX_BYTES {
            return Err(format!("a text of {} bytes; {TEXT_MAX_BYTES} are allowed", text.len()));
        }
    }
    if hello.disks.len() > DISKS_MAX {
        return Err(format!("{} disks; {DISKS_MAX} are allowed", hello.disks.len()));
    }
    let mut identities = HashSet::new();
    for disk in &hello.disks {
        if disk.identity.is_empty() || !identities.insert(&disk.identity) {
            return Err(format!("the identity '{}' of {} is empty or used twice", disk.identity, disk.path));
        }
        if disk.size_bytes == 0 || disk.size_bytes % SECTOR_BYTES != 0 {
            return Err(format!("{} has an impossible size of {} bytes", disk.path, disk.size_bytes));
        }
    }
    Ok(CaptureId(capture_id))
}

fn check_nonce(row: &VmRow, nonce: &[u8]) -> Result<(), Refusal> {
    let fresh = row.nonce_hash.is_none();
    if fresh && nonce.is_empty() {
        return Ok(());
    }
    let given = secret_hash(nonce);
    let matches =
        |stored: &Option<String>| stored.as_deref().is_some_and(|stored| hashes_equal(stored, &given));
    if matches(&row.nonce_hash) | matches(&row.pending_nonce_hash) {
        return Ok(());
    }
    Err(Refusal::Quarantine(
        "its splitter's state is old or shared: the VM was reverted to a snapshot, restored or cloned".into(),
    ))
}

fn check_platform(row: &VmRow, platform: &Platform) -> Result<(), Refusal> {
    let pairs = [
        ("DMI UUID", &row.dmi_uuid, &platform.dmi_uuid),
        ("machine id", &row.machine_id, &platform.machine_id),
    ];
    for (what, stored, given) in pairs {
        if let Some(stored) = stored
            && stored != given
        {
            return Err(Refusal::Quarantine(format!(
                "its {what} changed: the VM was cloned or moved to new hardware"
            )));
        }
    }
    Ok(())
}

/// Whether this is the machine that is known. Another one, while that is alive and in session, is a copy: the session
/// has proven the newest nonce on the platform that is known, so the original must not lose its protection for it. With
/// the same platform and an old nonce either may be the copy, and neither is believed.
async fn check_machine(vm: &Vm, row: &VmRow, hello: &Hello, platform: &Platform) -> Result<(), Refusal> {
    let other = check_platform(row, platform);
    if let (Err(Refusal::Quarantine(reason)), Some(original)) = (&other, vm.session()) {
        let same = original.boot_id == platform.boot_id && original.capture_id == hello.capture_id;
        if !same && is_alive(&original).await {
            return Err(Refusal::Copy(reason.clone()));
        }
    }
    check_nonce(row, &hello.nonce).and(other)
}

/// Ends the live session of a VM whose splitter has come back, or finds that there are two splitters.
async fn end_rival(vm: &Vm, hello: &Hello, platform: &Platform) -> Result<(), Refusal> {
    let Some(rival) = vm.session() else { return Ok(()) };
    let same = rival.boot_id == platform.boot_id && rival.capture_id == hello.capture_id;
    if !same && is_alive(&rival).await {
        return Err(Refusal::Quarantine("two of its splitters are connected at the same time".into()));
    }
    vm.close_session("the splitter connected again", true);
    tokio::time::timeout(TAKEOVER_TIMEOUT, rival.done.cancelled())
        .await
        .map_err(|_| Refusal::Later("the connection before this one is still being closed".into()))
}

async fn is_alive(rival: &SessionHandle) -> bool {
    let proof = async {
        tokio::time::sleep(RIVAL_PROOF / 2).await;
        let seen = rival.last_message_us.load(Ordering::Relaxed);
        tokio::time::sleep(RIVAL_PROOF / 2).await;
        rival.last_message_us.load(Ordering::Relaxed) != seen
    };
    tokio::select! {
        alive = proof => alive,
        () = rival.done.cancelled() => false,
    }
}

/// Makes the end of the journal durable, so that the stream resumes from one definite position.
async fn settle(vm: &Arc<Vm>) -> Result<(Arc<Journal>, Position, u64), Refusal> {
    let log = Arc::clone(&vm.log);
    let settled = tokio::task::spawn_blocking(move || {
        if log.journal().is_err() || log.watch().borrow().failed.is_some() {
            log.reopen();
        }
        let journal = log
            .writable()
            .map_err(|down| Refusal::Later(format!("the journal cannot be written: {down}")))?;
        log.sync();
        let durable = log.watch().borrow().clone();
        if durable.failed.is_some() || durable.full {
            return Err(Refusal::Later("the journal cannot be written: its disk is full or failed".into()));
        }
        let position = durable.position;
        let last_time_us = match position.lsn.0 {
            0 => 0,
            _ => journal.timeline().time_of(position.lsn).map_err(later)?,
        };
        Ok((journal, position, last_time_us))
    });
    settled.await.map_err(later)?
}

/// What the splitter believes to be acknowledged must be in the journal, with the same history.
fn check_last_acked(last_acked: Option<&StreamPosition>, durable: &Position) -> Result<(), Refusal> {
    let Some(acked) = last_acked.filter(|acked| acked.seq > 0) else { return Ok(()) };
    if acked.seq > durable.seq {
        return Err(Refusal::Quarantine(format!(
            "its splitter remembers frame {} as stored and the journal ends at {}: the journal was replaced by an older copy, \
             or the splitter's state is another VM's",
            acked.seq, durable.seq
        )));
    }
    if acked.seq == durable.seq && acked.chain.as_ref() != durable.chain.0 {
        return Err(Refusal::Quarantine(
            "its splitter's history differs from the journal's: another splitter wrote here".into(),
        ));
    }
    Ok(())
}

/// Gives each disk its id, durably; returns those of the hello.
async fn add_disks(journal: &Arc<Journal>, disks: &[Disk]) -> Result<Vec<Disk>, Refusal> {
    let (journal, mut disks) = (Arc::clone(journal), disks.to_vec());
    let added = tokio::task::spawn_blocking(move || {
        let known = journal.disks();
        // The stream is the truth: a session may end between a resize and the note of it.
        let timeline = journal.timeline();
        let mut next = known.iter().map(|disk| disk.id.0).max().unwrap_or(0);
        for disk in &mut disks {
            let record = known.iter().find(|record| record.identity == disk.identity);
            let id = match record {
                Some(record) => record.id,
                None => {
                    next = next.saturating_add(1);
                    DiskId(next)
                }
            };
            disk.disk_id = id.0;
            // A changed size comes as a Resize in the stream, at its place; only a new disk brings it here.
            let size_bytes = record.map_or(disk.size_bytes, |record| {
                timeline.newest_size(record.id).unwrap_or(record.size_bytes)
            });
            let told =
                DiskRecord { id, identity: disk.identity.clone(), path: disk.path.clone(), size_bytes };
            if record != Some(&told) {
                journal.put_disk(told).map_err(later)?;
            }
            disk.size_bytes = size_bytes;
        }
        Ok(disks)
    });
    added.await.map_err(later)?
}

async fn record(
    core: &Core,
    vm: &Vm,
    hello: &Hello,
    platform: &Platform,
    pending: &str,
) -> Result<(), Refusal> {
    let given = (!hello.nonce.is_empty()).then(|| secret_hash(&hello.nonce));
    let some = |text: &'_ String| (!text.is_empty()).then(|| text.clone());
    let (dmi_uuid, machine_id) = (some(&platform.dmi_uuid), some(&platform.machine_id));
    let record = HelloRecord {
        nonce_hash: given.as_deref(),
        pending_nonce_hash: pending,
        dmi_uuid: dmi_uuid.as_deref(),
        machine_id: machine_id.as_deref(),
        hostname: &platform.hostname,
        software: &hello.software,
    };
    core.catalog.record_hello(vm.id, &record).await.map_err(later)
}

/// A position as the protocol carries it.
pub(super) fn stream_position(position: &Position) -> StreamPosition {
    StreamPosition {
        seq: position.seq,
        lsn: position.lsn.0,
        capture_id: position.capture_id.0.to_vec().into(),
        ring_position: position.ring_position,
        chain: position.chain.0.to_vec().into(),
    }
}

/// The handle under which the session of a hello is known.
pub(super) fn handle(
    id: u64,
    hello: &Hello,
    protocol: u32,
    commands: tokio::sync::mpsc::Sender<crate::fleet::Command>,
    done: tokio_util::sync::CancellationToken,
) -> SessionHandle {
    SessionHandle {
        id,
        boot_id: hello.platform.as_ref().map(|platform| platform.boot_id.clone()).unwrap_or_default(),
        capture_id: hello.capture_id.to_vec(),
        software: hello.software.clone(),
        protocol,
        commands,
        last_message_us: Arc::new(std::sync::atomic::AtomicU64::new(now_us())),
        done,
    }
}
