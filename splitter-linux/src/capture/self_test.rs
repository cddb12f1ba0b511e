//! The self-test: writes known content to a scratch device and compares it with what the tap captured.
//!
//! It runs on the very programs and ring that are about to be pinned, before any disk is protected. A wrong
//! page-address constant, another layout of the kernel's structures or a verifier's surprise all show here.

use std::io::IoSlice;
use std::os::fd::AsFd;

use tidemark_proto::v1::{GapCause, WriteKind};
use tidemark_splitter_core::capture::{Event, Ring};

use super::control::{raise, restart};
use super::error::CaptureError;
use super::layout::SELF_TEST_SLOT;
use super::pinned::Pinned;
use super::ring::TapRing;
use super::scratch::{SCRATCH_BYTES, Scratch};
use super::sys;
use crate::disks::AlignedBuffer;

/// Sizes of plain writes, in bytes: one sector, one page, an odd number of sectors, each copy size, and several.
const SIZES: [usize; 7] = [512, 4096, 4096 + 512, 16 << 10, 64 << 10, (64 << 10) + 1536, 1 << 20];
/// Pieces of one gathered write, in bytes; together a whole number of sectors.
const GATHERED: [usize; 6] = [512, 4096, 1024, 8192, 512, 2048];

/// What the writes made of the device, and what the tap says they made.
struct Images {
    written: Vec<u8>,
    captured: Vec<u8>,
}

fn failed(detail: impl Into<String>) -> CaptureError {
    CaptureError::SelfTest(detail.into())
}

fn range(start: u64, length: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(start).ok()?;
    Some(start..start.checked_add(length)?)
}

/// Content that differs in every eight bytes.
fn fill(bytes: &mut [u8], seed: u64) {
    for (word, index) in bytes.chunks_exact_mut(8).zip(0_u64..) {
        let value = (seed << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// Runs the test. The ring's reader ends behind everything the test wrote, which is released.
///
/// # Errors
/// When a write fails, or the capture differs from it in any byte, place or kind.
pub(crate) fn run(pinned: &Pinned, ring: &mut TapRing, scratch: &Scratch) -> Result<(), CaptureError> {
    let slot = u32::from(SELF_TEST_SLOT);
    sys::map_set(pinned.objects.disks.as_fd(), scratch.kernel_device, slot)
        .map_err(CaptureError::io("register the scratch device"))?;
    restart(pinned.control_page(), ring.producer());
    let outcome = write_and_compare(pinned, ring, scratch);
    raise(pinned.control_page(), GapCause::CaptureRestarted);
    sys::map_delete(pinned.objects.disks.as_fd(), scratch.kernel_device)
        .map_err(CaptureError::io("remove the scratch device"))?;
    outcome?;
    pinned.wait_for_programs().map_err(CaptureError::io("wait for running programs"))?;
    let end = ring.producer();
    ring.seek(end).map_err(|error| failed(error.to_string()))?;
    ring.release(end);
    Ok(())
}

fn write_and_compare(pinned: &Pinned, ring: &mut TapRing, scratch: &Scratch) -> Result<(), CaptureError> {
    let length = usize::try_from(SCRATCH_BYTES).map_err(|error| failed(error.to_string()))?;
    let mut images = Images { written: vec![0; length], captured: vec![0; length] };
    write_all(scratch, &mut images.written).map_err(|error| failed(format!("writing failed: {error}")))?;
    let (mut open, mut kinds) = (Vec::new(), Vec::new());
    while let Some(unit) = ring.next().map_err(|error| failed(error.to_string()))? {
        match unit.event {
            Event::Issue(issue) => {
                open.push(issue.request);
                kinds.push(issue.kind);
                let bytes = issue.sectors as usize * 512;
                let place =
                    range(issue.start_sector * 512, bytes).and_then(|range| images.captured.get_mut(range));
                let place =
                    place.ok_or_else(|| failed(format!("a write at sector {}", issue.start_sector)))?;
                if issue.kind == WriteKind::Data {
                    let mut rest = place;
                    for part in issue.parts.iter() {
                        let (now, later) = rest
                            .split_at_mut_checked(part.len())
                            .ok_or_else(|| failed("too much content"))?;
                        now.copy_from_slice(part);
                        rest = later;
                    }
                } else {
                    place.fill(0);
                }
            }
            Event::Complete { start_sector, kind: WriteKind::Data, failed: true, .. } => {
                return Err(failed(format!("the write at sector {start_sector} failed")));
            }
            // The loop driver learns at the first attempt that memory cannot be zeroed; then zeroes are written.
            Event::Complete { request, .. } => {
                match open.iter().position(|candidate| *candidate == request) {
                    Some(place) => drop(open.swap_remove(place)),
                    None => return Err(failed("a completion was reported twice, or without its issue")),
                }
            }
            Event::Requeue { .. } | Event::Voided { .. } => {}
        }
    }
    if let Some(place) = images.written.iter().zip(&images.captured).position(|(a, b)| a != b) {
        return Err(failed(format!("the content differs at byte {place} of the scratch device")));
    }
    if !open.is_empty() {
        return Err(failed(format!("{} requests never completed", open.len())));
    }
    for kind in [WriteKind::Data, WriteKind::Zeroes] {
        if !kinds.contains(&kind) {
            return Err(failed(format!("no {} was captured", kind.as_str_name())));
        }
    }
    let misses: u64 = pinned
        .control_page()
        .misses
        .iter()
        .map(|count| count.load(std::sync::atomic::Ordering::Relaxed))
        .sum();
    if misses > 0 { Err(failed(format!("{misses} requests were missed"))) } else { Ok(()) }
}

fn write_all(scratch: &Scratch, model: &mut [u8]) -> std::io::Result<()> {
    let mut memory = AlignedBuffer::new(1 << 20);
    let mut at = 0_u64;
    let put = |model: &mut [u8], at: u64, bytes: &[u8]| {
        if let Some(place) = range(at, bytes.len()).and_then(|range| model.get_mut(range)) {
            place.copy_from_slice(bytes);
        }
    };
    for (seed, size) in (1_u64..).zip(SIZES) {
        let bytes = memory.as_mut_slice().get_mut(..size).unwrap_or_default();
        fill(bytes, seed);
        scratch.write(bytes, at)?;
        put(model, at, bytes);
        at += size as u64;
    }
    // Pieces from the middle of different pages, so that none joins another.
    fill(memory.as_mut_slice(), 99);
    let pieces: Vec<&[u8]> = GATHERED
        .iter()
        .enumerate()
        .filter_map(|(index, length)| {
            memory.as_slice().get(index * 32768 + 512..index * 32768 + 512 + length)
        })
        .collect();
    let vectors: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    scratch.write_gathered(&vectors, at)?;
    put(model, at, &pieces.concat());
    // Erased again in part: a hole in the middle of the large write, and one that may be refused by the device.
    scratch.flush()?;
    scratch.zero(256 << 10, 64 << 10)?;
    put(model, 256 << 10, &vec![0; 64 << 10]);
    if scratch.discard(512 << 10, 128 << 10).is_ok() {
        put(model, 512 << 10, &vec![0; 128 << 10]);
    }
    Ok(())
}
