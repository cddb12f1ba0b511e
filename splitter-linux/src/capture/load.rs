//! Loads the eBPF objects.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};

use super::error::CaptureError;
use super::pinned::Objects;
use super::sys;

static TAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tap.bpf.o"));
static CALIBRATE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/calibrate.bpf.o"));

/// Program and tracepoint. Completions are attached first and issues last, so that no captured write lacks its end.
/// Programs of one tracepoint run in the order of attachment, which the two for completion rely on.
const TAP_PROGRAMS: [(&str, &str); 4] = [
    ("tap_complete", "block_rq_complete"),
    ("tap_complete2", "block_rq_complete"),
    ("tap_requeue", "block_rq_requeue"),
    ("tap_issue", "block_rq_issue"),
];

/// What calibration found, as the map `finding` holds it.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Finding {
    pub(crate) from_variables: u64,
    pub(crate) from_buffer: u64,
    pub(crate) variables_seen: u64,
    pub(crate) buffer_seen: u64,
    pub(crate) page_struct_bytes: u64,
    pub(crate) vector_bytes: u64,
}

fn failed(program: &'static str, error: &dyn std::error::Error) -> CaptureError {
    // The verifier's log is long and its end says what is wrong; one line must do.
    let mut detail = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        detail = format!("{detail}: {cause}");
        source = cause.source();
    }
    let last = detail.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let first = detail.lines().next().unwrap_or_default();
    let detail = if first == last { first.to_owned() } else { format!("{first} … {last}") };
    CaptureError::Load { program, detail }
}

fn system_types() -> Result<Btf, CaptureError> {
    Btf::from_sys_fs().map_err(|error| failed("btf", &error))
}

fn load_program(
    object: &mut Ebpf,
    name: &'static str,
    tracepoint: &str,
    types: &Btf,
) -> Result<OwnedFd, CaptureError> {
    let program = object.program_mut(name).ok_or_else(|| missing(name))?;
    let program: &mut BtfTracePoint = program.try_into().map_err(|error| failed(name, &error))?;
    program.load(tracepoint, types).map_err(|error| failed(name, &error))?;
    let fd = program.fd().map_err(|error| failed(name, &error))?;
    copy(fd.as_fd())
}

fn missing(program: &'static str) -> CaptureError {
    CaptureError::Load { program, detail: "it is not in the object file".to_owned() }
}

fn copy(fd: BorrowedFd<'_>) -> Result<OwnedFd, CaptureError> {
    fd.try_clone_to_owned().map_err(CaptureError::io("duplicate a descriptor"))
}

fn map_fd(object: &Ebpf, name: &'static str) -> Result<OwnedFd, CaptureError> {
    use aya::maps::Map;
    let map = object.map(name).ok_or_else(|| missing(name))?;
    let data = match map {
        Map::RingBuf(data) | Map::Array(data) | Map::HashMap(data) | Map::ArrayOfMaps(data) => data,
        _ => {
            return Err(CaptureError::Load {
                program: name,
                detail: "the map has an unexpected type".to_owned(),
            });
        }
    };
    copy(data.fd().as_fd())
}

/// Loads and attaches the tap. It captures nothing: no disk is known and the mode is dirty-only.
pub(crate) fn tap(page_constant: u64, ring_bytes: u64, meta: OwnedFd) -> Result<Objects, CaptureError> {
    let types = system_types()?;
    let ring_size = u32::try_from(ring_bytes).unwrap_or(u32::MAX);
    let mut object = EbpfLoader::new()
        .btf(Some(&types))
        .override_global("page_constant", &page_constant, true)
        .map_max_entries("ring", ring_size)
        .load(TAP)
        .map_err(|error| failed("tap", &error))?;
    let mut programs = Vec::new();
    let mut complete_programs = Vec::new();
    for (name, tracepoint) in TAP_PROGRAMS {
        let program = load_program(&mut object, name, tracepoint, &types)?;
        let link =
            sys::attach(program.as_fd()).map_err(CaptureError::io(format!("attach to {tracepoint}")))?;
        if tracepoint == "block_rq_complete" {
            complete_programs.push(copy(program.as_fd())?);
        }
        let short = name.trim_start_matches("tap_");
        programs.push((format!("prog_{short}"), program));
        programs.push((format!("link_{short}"), link));
    }
    Ok(Objects {
        ring: map_fd(&object, "ring")?,
        control: map_fd(&object, "control")?,
        counters: map_fd(&object, "slots")?,
        disks: map_fd(&object, "disks")?,
        dirty: map_fd(&object, "dirty")?,
        meta,
        complete_programs,
        programs,
    })
}

/// The calibration programs, attached while this lives.
#[derive(Debug)]
pub(crate) struct Calibration {
    _object: Ebpf,
    _links: Vec<OwnedFd>,
    pub(crate) finding: OwnedFd,
}

/// Loads the calibration programs for events of one device. Addresses of 0 are unknown.
pub(crate) fn calibration(
    device: u32,
    vmemmap_base: u64,
    page_offset_base: u64,
    buffers: bool,
) -> Result<Calibration, CaptureError> {
    let types = system_types()?;
    let mut object = EbpfLoader::new()
        .btf(Some(&types))
        .override_global("scratch_dev", &device, true)
        .override_global("vmemmap_base_address", &vmemmap_base, true)
        .override_global("page_offset_base_address", &page_offset_base, true)
        .load(CALIBRATE)
        .map_err(|error| failed("calibrate", &error))?;
    let mut wanted = vec![("calibrate_variables", "block_rq_issue")];
    if buffers {
        wanted.push(("calibrate_buffer", "block_touch_buffer"));
    }
    let mut links = Vec::new();
    for (name, tracepoint) in wanted {
        let program = load_program(&mut object, name, tracepoint, &types)?;
        links
            .push(sys::attach(program.as_fd()).map_err(CaptureError::io(format!("attach to {tracepoint}")))?);
    }
    let finding = map_fd(&object, "finding")?;
    Ok(Calibration { _object: object, _links: links, finding })
}
