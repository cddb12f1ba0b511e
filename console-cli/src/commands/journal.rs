//! `tidemark journal`: offline, from the files alone.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tidemark_journal::VerifyReport;
use tidemark_journal::attest::Proof;
use tidemark_journal::storage::OsStorage;

use super::{certificate, proof};
use crate::cli::JournalCommand;
use crate::output;
use crate::size;
use crate::when::When;

pub(super) fn run(command: JournalCommand, json: bool) -> Result<()> {
    match command {
        JournalCommand::Verify { path, public_key, at } => {
            verify(&path, public_key.as_deref(), at.as_ref(), json)
        }
        JournalCommand::VerifyCertificate { certificate, public_key, file, disk } => {
            certificate::check(&certificate, &public_key, file.as_deref(), disk, json)
        }
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

fn verify(path: &Path, public_key: Option<&Path>, at: Option<&When>, json: bool) -> Result<()> {
    let (report, proof) = match public_key {
        Some(key) => proof::check(&storage(path)?, key).map(|(report, proof)| (report, Some(proof)))?,
        None => {
            let report = tidemark_journal::verify(&storage(path)?);
            (report.with_context(|| format!("verify {}", path.display()))?, None)
        }
    };
    let point = at.map(|when| proof::find(path, storage(path)?, when)).transpose()?;
    if json {
        as_json(&report, proof.as_ref())?;
    } else {
        show(&report)?;
        proof.as_ref().map_or(Ok(()), proof::show)?;
    }
    match report.damage.len() {
        0 if json || proof.is_some() => {}
        0 => output::line("The journal is sound.")?,
        count => {
            let proven = proof.as_ref().and_then(|proof| proof.proven).map(|head| head.lsn);
            let proven = proven.map_or(String::new(), |lsn| format!("; points up to lsn:{lsn} are proven"));
            bail!(
                "{count} places are damaged: points that need them cannot be read; copy the folder before anything else{proven}"
            )
        }
    }
    proof.map_or(Ok(()), |proof| proof::judge(&proof, point, json))
}

fn as_json(report: &VerifyReport, proof: Option<&Proof>) -> Result<()> {
    let damage: Vec<_> = report
        .damage
        .iter()
        .map(|one| json!({ "file": one.file, "offset": one.offset, "bytes": one.bytes, "problem": one.problem }))
        .collect();
    let tail: Vec<_> = report.torn_tail.iter().map(ToString::to_string).collect();
    output::json(&json!({
        "files": report.files, "bytes": report.bytes, "frames": report.frames, "damage": damage, "torn_tail": tail,
        "unlisted": report.unlisted, "proof": proof.map(proof::as_json),
    }))
}

fn show(report: &VerifyReport) -> Result<()> {
    let (files, frames, bytes) = (report.files, report.frames, size::show(report.bytes));
    output::line(&format!("{files} files, {frames} frames, {bytes} read."))?;
    for tail in &report.torn_tail {
        output::line(&format!("Unacknowledged tail, cut at the next start: {tail}"))?;
    }
    for damage in &report.damage {
        output::line(&format!("DAMAGED: {damage}"))?;
    }
    Ok(())
}
