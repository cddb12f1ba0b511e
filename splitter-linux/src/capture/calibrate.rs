//! Finds the page-address constant of the running kernel (x86-64): see `src/bpf/calibrate.bpf.c`.
//!
//! Finding it can take more rights than the tap itself (the right to see kernel addresses, to mount), so a service may
//! have it noted by a privileged step before its start. A note is as much worth as a finding: the self-test decides.

use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::CaptureError;
use super::load::{self, Finding};
use super::scratch::Scratch;
use super::scratch_fs;
use super::sys::Mapping;
use crate::disks::AlignedBuffer;

/// How the constant was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The kernel's variables, whose addresses `/proc/kallsyms` shows.
    Variables,
    /// A `block_touch_buffer` event.
    BufferHead,
    /// Noted earlier in this boot: see [`note_page_constant`].
    Noted,
}

/// Where the constant is noted; in memory, so a note ends with the boot, as the constant does.
const NOTE: &str = "/run/tidemark-splitter/page-constant";

/// Finds the constant and notes it for splitters with fewer rights, unless it is noted already.
///
/// # Errors
/// When it cannot be found, or the note cannot be written.
pub fn note_page_constant() -> Result<(), CaptureError> {
    if noted().is_some() {
        return Ok(());
    }
    let scratch = Scratch::new().map_err(CaptureError::io("make a scratch loop device"))?;
    let (constant, _) = page_constant(&scratch, None)?;
    note(constant).map_err(CaptureError::io(format!("write {NOTE}")))
}

/// Writes the note.
pub(crate) fn note(constant: u64) -> std::io::Result<()> {
    let folder = Path::new(NOTE).parent().unwrap_or(Path::new("/"));
    // Kernel addresses are hidden from users for a reason.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let fresh = folder.join("page-constant.new");
    std::fs::write(&fresh, format!("{constant:#x}\n"))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, NOTE)
}

fn noted() -> Option<u64> {
    let text = std::fs::read_to_string(NOTE).ok()?;
    u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// `struct page` on x86-64. With another size the address is not a multiplication.
const PAGE_STRUCT_BYTES: u64 = 64;
/// `struct bio_vec`, which is read as a whole.
const VECTOR_BYTES: u64 = 16;

/// Addresses of `vmemmap_base` and `page_offset_base`; 0 when the kernel hides or lacks them.
fn variable_addresses() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let address = |name: &str| {
        text.lines()
            .find_map(|line| {
                let mut words = line.split_whitespace();
                let address = words.next()?;
                (words.nth(1)? == name && words.next().is_none())
                    .then(|| u64::from_str_radix(address, 16).ok())?
            })
            .unwrap_or(0)
    };
    (address("vmemmap_base"), address("page_offset_base"))
}

fn read(finding: &Mapping) -> Finding {
    let word =
        |index: usize| finding.at::<AtomicU64>(index * 8).map_or(0, |word| word.load(Ordering::Acquire));
    Finding {
        from_variables: word(0),
        from_buffer: word(1),
        variables_seen: word(2),
        buffer_seen: word(3),
        page_struct_bytes: word(4),
        vector_bytes: word(5),
    }
}

/// The constant, with how it was found. `prefer` restricts the search to one source, for tests.
pub(crate) fn page_constant(
    scratch: &Scratch,
    prefer: Option<Source>,
) -> Result<(u64, Source), CaptureError> {
    if prefer.is_none_or(|source| source == Source::Noted)
        && let Some(constant) = noted()
    {
        return Ok((constant, Source::Noted));
    }
    let (vmemmap_base, page_offset_base) = match prefer {
        Some(Source::BufferHead) => (0, 0),
        _ => variable_addresses(),
    };
    let calibration = load::calibration(scratch.kernel_device, vmemmap_base, page_offset_base, true)?;
    let finding = Mapping::new(calibration.finding.as_fd(), 4096, 0, false)
        .map_err(CaptureError::io("map the result of the calibration"))?;
    let block = AlignedBuffer::new(4096);
    scratch.write(block.as_slice(), 0).map_err(CaptureError::io("write to a scratch loop device"))?;
    let found = read(&finding);
    if found.page_struct_bytes != PAGE_STRUCT_BYTES || found.vector_bytes != VECTOR_BYTES {
        return Err(CaptureError::Calibration(format!(
            "struct page has {} bytes and struct bio_vec {}, not {PAGE_STRUCT_BYTES} and {VECTOR_BYTES}",
            found.page_struct_bytes, found.vector_bytes
        )));
    }
    if found.variables_seen != 0 && vmemmap_base != 0 && page_offset_base != 0 {
        return Ok((found.from_variables, Source::Variables));
    }
    if prefer != Some(Source::Variables) {
        scratch_fs::touch_buffers(scratch, || read(&finding).buffer_seen != 0).map_err(|error| {
            CaptureError::Calibration(format!("/proc/kallsyms hides vmemmap_base, and {error}"))
        })?;
    }
    let found = read(&finding);
    if found.buffer_seen == 0 {
        return Err(CaptureError::Calibration(
            "/proc/kallsyms hides vmemmap_base, and no buffer was touched".to_owned(),
        ));
    }
    Ok((found.from_buffer, Source::BufferHead))
}
