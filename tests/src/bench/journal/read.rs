//! Reading a view whose disk was written over and over in 4 KiB blocks, against a plain file of its size; and what the
//! history takes on disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use tidemark_proto::ids::{DiskId, Lsn};

use super::super::{Goal, Table, folder_bytes};
use super::Sizes;
use super::stream::{Kind, MIB, Stream, as_f64};

const WRITE_BYTES: u64 = 4096;

/// Random reads for each figure.
const READS: u64 = 20_000;

pub(super) fn measure(sizes: &Sizes, folder: &Path, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir_in(folder)?;
    // Each block is written some four times.
    let disk_bytes = sizes.read_bytes / 4;
    let path = folder.path().join("journal");
    let mut stream = Stream::create(&path, disk_bytes, WRITE_BYTES, MIB, Kind::Encrypted)?;
    let frames = sizes.read_bytes / MIB;
    for frame in 0..frames {
        stream.write()?;
        if frame % 32 == 31 {
            stream.settle()?;
        }
    }
    stream.settle()?;
    let statistics = stream.journal.statistics();
    let payload = as_f64(statistics.payload_bytes);
    let written = as_f64(statistics.written_bytes) / payload;
    table.add("log: bytes written per byte received", "", written, None, Goal::AtMost(1.05));
    let index = as_f64(statistics.index_bytes) / payload * 100.0;
    table.add("log: index of 4 KiB writes", "% of payload", index, None, Goal::AtMost(2.0));
    let on_disk = folder_bytes(&path)? / payload;
    table.add("log: bytes on disk per byte received", "", on_disk, None, Goal::None);

    let plain = File::options().read(true).write(true).create_new(true).open(folder.path().join("plain"))?;
    for place in 0..disk_bytes / MIB {
        plain.write_all_at(stream.payload(), place * MIB)?;
    }
    let view = stream.journal.view(Lsn(stream.end()))?;
    let disk = DiskId(1);
    let sequential = |read: &dyn Fn(u64, &mut [u8]) -> Result<()>| -> Result<f64> {
        let mut buffer = vec![0; usize::try_from(MIB)?];
        let started = Instant::now();
        for place in 0..disk_bytes / MIB {
            read(place * MIB, &mut buffer)?;
        }
        Ok(as_f64(disk_bytes / MIB) / started.elapsed().as_secs_f64())
    };
    let random = |read: &dyn Fn(u64, &mut [u8]) -> Result<()>| -> Result<f64> {
        let mut buffer = [0; 4096];
        let started = Instant::now();
        for number in 0..READS {
            let place = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (disk_bytes / WRITE_BYTES);
            read(place * WRITE_BYTES, &mut buffer)?;
        }
        Ok(as_f64(READS) / started.elapsed().as_secs_f64())
    };
    let of_view = |offset: u64, buffer: &mut [u8]| Ok(view.read_at(disk, offset, buffer)?);
    let of_file = |offset: u64, buffer: &mut [u8]| Ok(plain.read_exact_at(buffer, offset)?);
    // Once before it counts: both from memory.
    sequential(&of_view)?;
    let baseline = Some(("plain file", sequential(&of_file)?));
    table.add("view: 1 MiB sequential reads", "MiB/s", sequential(&of_view)?, baseline, Goal::None);
    let baseline = Some(("plain file", random(&of_file)?));
    table.add("view: 4 KiB random reads", "1/s", random(&of_view)?, baseline, Goal::None);
    Ok(())
}
