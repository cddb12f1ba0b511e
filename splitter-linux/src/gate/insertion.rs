//! Putting a gate under a live volume, and taking it away.
//!
//! ```text
//! before                      with the gate
//! /dev/vg/lv ─ linear ─ disk  /dev/vg/lv ─ linear ─ /dev/ublkbN ─ gate ─ tidemark-gate-vg-lv ─ linear ─ disk
//! ```
//!
//! The private mapping has the volume's own table, so the data stays where it is. The volume changes its table in one
//! device-mapper call each way; whatever is killed between two steps is found by the next look (the kernel's tables are
//! the only state) and finished or undone.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::device::Control;
use super::error::GateError;
use super::mapper::{Mapper, Target};
use super::page::{self, Page};
use super::server;
use super::volume::{Volume, private_name};

/// How long a gate's process may take to be ready: taking over waits for requests of its predecessor.
const READY_MAX: Duration = Duration::from_secs(90);
/// How long it may take to end when it is told to. Beyond it the splitter tries again later.
const STOP_MAX: Duration = Duration::from_secs(30);

/// Starts the gate's process and waits until it serves.
pub(super) fn start_process(capture: &str, volume: &str) -> Result<Child, GateError> {
    // The file that runs, also when an upgrade has replaced it on disk.
    let mut child = Command::new("/proc/self/exe")
        .arg0("tidemark-splitter")
        .args(["gate", "--capture", capture, "--volume", volume])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(GateError::os("start the gate's process"))?;
    let (said, hearing) = mpsc::channel();
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(out).read_line(&mut line);
            let _ = said.send(line);
        });
    }
    let line = hearing.recv_timeout(READY_MAX).unwrap_or_default();
    if line.starts_with("ready ") {
        return Ok(child);
    }
    let _ = child.kill();
    let mut text = String::new();
    if let Some(errors) = child.stderr.take() {
        let _ = errors.take(4096).read_to_string(&mut text);
    }
    let _ = child.wait();
    let reason = text.lines().next_back().unwrap_or("it said nothing").trim();
    Err(GateError::NotStarted(reason.trim_start_matches("tidemark-splitter: ").to_owned()))
}

/// Puts the gate under a volume that has none. Nothing is held yet: the page promises nothing.
pub(super) fn insert(mapper: &Mapper, capture: &str, volume: &Volume) -> Result<Child, GateError> {
    let name = &volume.mapped.name;
    clear_away(mapper, capture, name)?;
    let private = volume.private_name();
    mapper.create(&private, &format!("TIDEMARK-GATE-{}", volume.mapped.uuid))?;
    let placed = place(mapper, capture, volume, &private);
    if placed.is_err() {
        let _ = mapper.clear(name);
        if let Err(error) = clear_away(mapper, capture, name) {
            tracing::warn!(%error, volume = name, "what is left of a gate cannot be removed yet");
        }
    }
    placed
}

fn place(mapper: &Mapper, capture: &str, volume: &Volume, private: &str) -> Result<Child, GateError> {
    let name = &volume.mapped.name;
    mapper.load(private, &volume.table)?;
    mapper.swap(private, true)?;
    let mut child = start_process(capture, name)?;
    let swapped = over_gate(capture, name, volume.sectors).and_then(|target| {
        mapper.load(name, &[target])?;
        mapper.swap(name, false)
    });
    if let Err(error) = swapped {
        stop_process(capture, name)?;
        let _ = child.wait();
        return Err(error);
    }
    Ok(child)
}

/// The whole volume as one segment over its ublk device.
fn over_gate(capture: &str, name: &str, sectors: u64) -> Result<Target, GateError> {
    let device = device_of(capture, name)
        .ok_or_else(|| GateError::NotStarted("its device has no number".to_owned()))?;
    let numbers = std::fs::read_to_string(format!("/sys/block/ublkb{device}/dev"))
        .map_err(GateError::os("find the gate's device"))?;
    Ok(Target { start: 0, sectors, kind: "linear".into(), parameters: format!("{} 0", numbers.trim()) })
}

fn device_of(capture: &str, name: &str) -> Option<u32> {
    std::fs::read_to_string(page::folder(capture, name).join("device")).ok()?.trim().parse().ok()
}

/// Takes the gate away from under a volume. The page must promise nothing any more.
pub(super) fn remove(mapper: &Mapper, capture: &str, volume: &Volume) -> Result<(), GateError> {
    let name = &volume.mapped.name;
    if volume.gated_by.is_some() {
        let table = mapper.table(&private_name(name))?;
        mapper.load(name, &table)?;
        mapper.swap(name, false)?;
    }
    clear_away(mapper, capture, name)
}

/// Removes everything of a gate that no volume lies on.
pub(super) fn clear_away(mapper: &Mapper, capture: &str, name: &str) -> Result<(), GateError> {
    let folder = page::folder(capture, name);
    if folder.join("page").exists() {
        stop_process(capture, name)?;
        if let Some(device) = device_of(capture, name) {
            // Its process was killed: nobody else removes it.
            let mut control = Control::open()?;
            if control.info(device).is_ok() {
                let _ = control.stop(device);
                control.delete(device)?;
            }
        }
        let _ = std::fs::remove_dir_all(&folder);
    }
    mapper.remove(&private_name(name))
}

/// Tells a gate's process to end and waits for it.
fn stop_process(capture: &str, name: &str) -> Result<(), GateError> {
    let folder = page::folder(capture, name);
    let page = Page::open(&folder)?;
    let until = Instant::now() + STOP_MAX;
    while server::runs(&folder) {
        page.words().stop.store(1, Ordering::Release);
        page.wake_gate();
        if Instant::now() > until {
            return Err(GateError::NotStarted(format!("the gate of {name} does not end")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whether the process that serves a volume's gate runs.
pub(super) fn process_runs(capture: &str, name: &str) -> bool {
    server::runs(&page::folder(capture, name))
}
