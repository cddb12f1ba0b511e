//! What encrypting the log costs: appends without syncs, which cost the same in any case. The two are measured in turn,
//! so that a noisy machine meets both; the medians are shown.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::super::{Goal, Table};
use super::Sizes;
use super::stream::{Kind, MIB, Stream, as_f64, quantile, sorted};

const ROUNDS: usize = 5;

pub(super) fn measure(sizes: &Sizes, folder: &Path, table: &mut Table) -> Result<()> {
    for (write_bytes, frame_bytes) in [(4096, 4096), (4096, 256 << 10), (MIB, MIB)] {
        let (mut plain, mut sealed) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (kind, rates) in [(Kind::Plain, &mut plain), (Kind::Encrypted, &mut sealed)] {
                let folder = tempfile::tempdir_in(folder)?;
                let folder = folder.path().join("journal");
                let mut stream = Stream::create(&folder, 1 << 30, write_bytes, frame_bytes, kind)?;
                let frames = sizes.append_bytes / frame_bytes;
                let started = Instant::now();
                for _ in 0..frames {
                    stream.write()?;
                }
                let mib = as_f64(frames * frame_bytes) / as_f64(MIB);
                rates.push(mib / started.elapsed().as_secs_f64());
            }
        }
        let (plain, sealed) = (quantile(&sorted(plain), 0.5)?, quantile(&sorted(sealed), 0.5)?);
        let name = format!(
            "append, encrypted: writes of {} KiB, frames of {} KiB",
            write_bytes >> 10,
            frame_bytes >> 10
        );
        table.add(&name, "MiB/s", sealed, Some(("not encrypted", plain)), Goal::None);
    }
    Ok(())
}
