//! Opening views of a large, sparsely written disk, against the length of its history.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use tidemark_journal::view::View;
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;

use super::super::{Goal, Table, resident_bytes};
use super::Sizes;
use super::stream::{Kind, MIB, Stream, as_f64, quantile, sorted};

const DISK_BYTES: u64 = 1 << 40;

/// Writes of a frame: as many as the protocol allows, so that the payload is small.
const FRAME_WRITES: u64 = 2048;

/// Views opened for each figure.
const OPENS: u64 = 100;

/// Sectors read for each figure.
const READS: u64 = 2000;

pub(super) fn measure(sizes: &Sizes, folder: &Path, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir_in(folder)?;
    let idle = resident_bytes(std::process::id())?;
    let mut stream = Stream::create(
        &folder.path().join("journal"),
        DISK_BYTES,
        SECTOR_BYTES,
        FRAME_WRITES * SECTOR_BYTES,
        Kind::Encrypted,
    )?;
    // A tenth of the history first: what costs O(history) shows in the ratio.
    let (mut short, mut written) = (None, 0);
    while written < sizes.writes {
        stream.write()?;
        written += FRAME_WRITES;
        if written % (64 * FRAME_WRITES) == 0 {
            stream.settle()?;
        }
        if short.is_none() && written >= sizes.writes / 10 {
            stream.settle()?;
            short = Some(look(&stream)?);
        }
    }
    stream.settle()?;
    let short = short.context("the history is too short")?;
    let held = resident_bytes(std::process::id())?;
    let long = look(&stream)?;
    let name = |what: &str| format!("1 TiB disk, {} sector writes: {what}", sizes.writes);
    let tenth = |value| Some(("a tenth of the history", value));
    table.add(&name("open a view, p99"), "ms", long.open_ms, tenth(short.open_ms), Goal::AtMost(1000.0));
    table.add(
        &name("first read of a view, p99"),
        "ms",
        long.read_ms,
        tenth(short.read_ms),
        Goal::AtMost(1000.0),
    );
    table.add(&name("random sector reads"), "1/s", long.reads, tenth(short.reads), Goal::None);
    let started = Instant::now();
    let views = (0..OPENS).map(|place| view_at(&stream, place)).collect::<Result<Vec<_>>>()?;
    table.add(&name("100 views opened"), "s", started.elapsed().as_secs_f64(), None, Goal::AtMost(10.0));
    let open = resident_bytes(std::process::id())?;
    let each = (open - held).max(0.0) / as_f64(OPENS) / as_f64(MIB);
    table.add(&name("memory of an open view"), "MiB", each, None, Goal::AtMost(20.0));
    drop(views);
    let idle = (held - idle).max(0.0) / as_f64(MIB);
    table.add(&name("memory of the journal"), "MiB", idle, None, Goal::AtMost(20.0));
    Ok(())
}

struct Look {
    open_ms: f64,
    read_ms: f64,
    reads: f64,
}

fn view_at(stream: &Stream, place: u64) -> Result<View> {
    // Points all over the history, the newest included.
    let span = stream.end().saturating_sub(2);
    let lsn = Lsn(stream.end() - span / OPENS * place);
    stream.journal.view(lsn).with_context(|| format!("open a view at lsn:{lsn}"))
}

fn look(stream: &Stream) -> Result<Look> {
    let (mut opens, mut firsts) = (Vec::new(), Vec::new());
    let mut sector = [0; 512];
    let place = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (DISK_BYTES / SECTOR_BYTES);
    for number in 0..OPENS {
        let started = Instant::now();
        let view = view_at(stream, number)?;
        opens.push(started.elapsed().as_secs_f64() * 1000.0);
        let started = Instant::now();
        view.read_at(DiskId(1), place(number) * SECTOR_BYTES, &mut sector)?;
        firsts.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    let view = view_at(stream, 0)?;
    let started = Instant::now();
    for number in 0..READS {
        view.read_at(DiskId(1), place(number + OPENS) * SECTOR_BYTES, &mut sector)?;
    }
    let reads = as_f64(READS) / started.elapsed().as_secs_f64();
    Ok(Look { open_ms: quantile(&sorted(opens), 0.99)?, read_ms: quantile(&sorted(firsts), 0.99)?, reads })
}
