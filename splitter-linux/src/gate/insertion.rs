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

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tidemark_proto::limits::SYNC_LEASE_US;

use super::error::GateError;
use super::launch::{self, Process, Work};
use super::mapper::{Mapper, Target};
use super::page::{self, Page};
use super::server;
use super::volume::{Volume, private_name};
use crate::daemon::now_us;

/// How long it may take to end when it is told to. Beyond it the splitter tries again later.
const STOP_MAX: Duration = Duration::from_secs(30);

/// Puts the gate under a volume that has none. Nothing is held yet: the page promises nothing.
pub(super) fn insert(mapper: &Mapper, capture: &str, volume: &Volume) -> Result<Process, GateError> {
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

fn place(mapper: &Mapper, capture: &str, volume: &Volume, private: &str) -> Result<Process, GateError> {
    let name = &volume.mapped.name;
    launch::load(mapper, private, &volume.table)?;
    mapper.swap(private, true)?;
    let process = launch::start(capture, name, Work::Serve)?;
    let swapped = over_gate(capture, name, volume.sectors).and_then(|target| {
        launch::load(mapper, name, &[target])?;
        mapper.swap(name, false)
    });
    if let Err(error) = swapped {
        stop_process(capture, name)?;
        process.wait();
        return Err(error);
    }
    Ok(process)
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

/// Waits until a page promises nothing any more. Nobody may renew the promise meanwhile.
pub(super) fn end_promise(page: &Page) {
    let until = Instant::now() + Duration::from_micros(SYNC_LEASE_US) * 2;
    while !page.lapse(now_us(), 0) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    page.wake_gate();
}

/// Takes the gate away from under a volume. The page must promise nothing any more.
pub(super) fn remove(mapper: &Mapper, capture: &str, volume: &Volume) -> Result<(), GateError> {
    let name = &volume.mapped.name;
    let mut successor = None;
    if volume.gated_by.is_some() {
        // With a dead process the volume stands still, and so would the change of its table.
        if !process_runs(capture, name) {
            successor = Some(launch::start(capture, name, Work::Serve)?);
        }
        let table = mapper.table(&private_name(name))?;
        launch::load(mapper, name, &table)?;
        mapper.swap(name, false)?;
    }
    clear_away(mapper, capture, name)?;
    if let Some(process) = successor {
        process.wait();
    }
    Ok(())
}

/// Removes everything of a gate that no volume lies on.
pub(super) fn clear_away(mapper: &Mapper, capture: &str, name: &str) -> Result<(), GateError> {
    let folder = page::folder(capture, name);
    if folder.join("page").exists() {
        stop_process(capture, name)?;
        let left = device_of(capture, name);
        if left.is_some_and(|device| Path::new(&format!("/dev/ublkc{device}")).exists()) {
            // Its process was killed: nobody else removes it, and the splitter may not be allowed to.
            launch::start(capture, name, Work::Clear)?.wait();
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
