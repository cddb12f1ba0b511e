//! `tidemark journal`: offline, from the files alone.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tidemark_journal::storage::OsStorage;

use crate::cli::JournalCommand;
use crate::output;
use crate::size;

pub(super) fn run(command: JournalCommand, json: bool) -> Result<()> {
    match command {
        JournalCommand::Verify { path } => verify(&path, json),
        JournalCommand::Dump { path } => {
            let mut out = BufWriter::new(io::stdout().lock());
            tidemark_journal::dump(&storage(&path)?, &mut out)
                .with_context(|| format!("dump {}", path.display()))?;
            out.flush().context("write to standard output")
        }
    }
}

fn storage(path: &Path) -> Result<OsStorage> {
    OsStorage::open(path)
        .with_context(|| format!("{} is no journal: name the folder vms/ID/journal", path.display()))
}

fn verify(path: &Path, json: bool) -> Result<()> {
    let report =
        tidemark_journal::verify(&storage(path)?).with_context(|| format!("verify {}", path.display()))?;
    if json {
        let damage: Vec<_> = report
            .damage
            .iter()
            .map(|one| json!({ "file": one.file, "offset": one.offset, "bytes": one.bytes, "problem": one.problem }))
            .collect();
        let tail: Vec<_> = report.torn_tail.iter().map(ToString::to_string).collect();
        output::json(&json!({
            "files": report.files, "bytes": report.bytes, "frames": report.frames, "damage": damage, "torn_tail": tail,
            "unlisted": report.unlisted,
        }))?;
    } else {
        let (files, frames, bytes) = (report.files, report.frames, size::show(report.bytes));
        output::line(&format!("{files} files, {frames} frames, {bytes} read."))?;
        for tail in &report.torn_tail {
            output::line(&format!("Unacknowledged tail, cut at the next start: {tail}"))?;
        }
        for damage in &report.damage {
            output::line(&format!("DAMAGED: {damage}"))?;
        }
    }
    match report.damage.len() {
        0 if json => Ok(()),
        0 => output::line("The journal is sound."),
        count => bail!(
            "{count} places are damaged: points that need them cannot be read; copy the folder before anything else"
        ),
    }
}
