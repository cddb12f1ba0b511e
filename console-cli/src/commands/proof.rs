//! What signatures prove, offline: of a journal's folder.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use tidemark_journal::attest::{Proof, PublicKey, prove};
use tidemark_journal::storage::OsStorage;
use tidemark_journal::timeline::{Timeline, TimelineError};
use tidemark_journal::{Journal, Options, VerifyReport};
use tidemark_proto::ids::Lsn;

use crate::when::When;
use crate::{moment, output};

/// Reads a public key from a file such as `DIR/signing/signing.pub`.
pub(super) fn read_key(path: &Path) -> Result<PublicKey> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.parse().map_err(|error| anyhow!("{}: {error}", path.display()))
}

/// Checks a journal against the signatures of one key.
pub(super) fn check(storage: &OsStorage, key: &Path) -> Result<(VerifyReport, Proof)> {
    let key = read_key(key)?;
    prove(storage, &key).context("verify the journal")
}

/// What was proven, as JSON.
pub(super) fn as_json(proof: &Proof) -> Value {
    let broken = proof.broken.as_ref().map(
        |one| json!({ "file": one.file, "offset": one.offset, "bytes": one.bytes, "problem": one.problem }),
    );
    let proven = proof.proven.map(|head| {
        json!({
            "lsn": head.lsn, "time": moment::json(head.time_us), "segment": head.segment, "head": hex(&head.hash),
        })
    });
    let images: Vec<_> = proof
        .images
        .iter()
        .map(|(disk, image)| json!({ "disk": disk.to_string(), "image": root(image) }))
        .collect();
    json!({
        "public_key": proof.public_key.to_string(), "from_lsn": proof.from_lsn, "end_lsn": proof.end_lsn,
        "proven": proven, "bookmarks": proof.bookmarks, "images": images, "signatures": proof.statements,
        "broken": broken,
    })
}

/// The same for people, but for what is wrong.
pub(super) fn show(proof: &Proof) -> Result<()> {
    let Some(head) = proof.proven else { return Ok(()) };
    output::line(&format!(
        "Proven by {}: every point from lsn:{} to lsn:{} ({}), {} of them bookmarks with a signature of their own.",
        proof.public_key,
        proof.from_lsn,
        head.lsn,
        moment::local(head.time_us),
        proof.bookmarks.len()
    ))?;
    output::line(&format!("The head there is {} in segment {}.", hex(&head.hash), head.segment))?;
    for (disk, image) in &proof.images {
        output::line(&format!("What lies below is the image {} of {disk}.", root(image)))?;
    }
    if proof.end_lsn > head.lsn && proof.broken.is_none() {
        output::line(&format!("Writes after it, up to lsn:{}, are not signed yet.", proof.end_lsn))?;
    }
    Ok(())
}

/// Fails when something is not as it was signed, or the point asked for is not proven.
pub(super) fn judge(proof: &Proof, point: Option<(Lsn, u64)>, json: bool) -> Result<()> {
    if let Some(broken) = &proof.broken {
        match proof.proven {
            Some(head) => bail!("not as it was signed: {broken}; points up to lsn:{} are proven", head.lsn),
            None => bail!("not as it was signed: {broken}; no point is proven"),
        }
    }
    let Some((lsn, time_us)) = point else { return Ok(()) };
    if !proof.covers(lsn) {
        bail!("lsn:{lsn} is not signed yet: choose an earlier point, or a later copy of the journal");
    }
    if json {
        return Ok(());
    }
    output::line(&format!("The point lsn:{lsn} ({}) is proven.", moment::local(time_us)))
}

/// The point that WHEN names in a folder: its LSN and time. Nothing but the folder is asked.
pub(super) fn find(path: &Path, storage: OsStorage, when: &When) -> Result<(Lsn, u64)> {
    let (journal, _) = Journal::open_read_only(Arc::new(storage), Options::default())
        .with_context(|| format!("open {}", path.display()))?;
    let timeline = journal.timeline();
    let lsn = resolve(&timeline, when)?;
    timeline.check(lsn, &[])?;
    Ok((lsn, timeline.time_of(lsn)?))
}

fn resolve(timeline: &Timeline, when: &When) -> Result<Lsn> {
    let at_time = |time_us| timeline.at_time(time_us, &[]);
    Ok(match when {
        When::Latest => {
            let horizon = timeline.horizon().context("nothing can be recovered from it yet")?;
            match timeline.check(horizon.lsn, &[]) {
                Ok(()) => horizon.lsn,
                Err(TimelineError::Refused(refused)) => {
                    refused.before.context("nothing can be recovered from it yet")?.lsn
                }
                Err(error) => return Err(error.into()),
            }
        }
        When::Time(time) => {
            let time_us = u64::try_from(time.as_microsecond()).context("the time lies before 1970")?;
            at_time(time_us)?
        }
        When::Ago(ago) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("read the clock")?;
            at_time(u64::try_from(now.saturating_sub(*ago).as_micros()).unwrap_or(u64::MAX))?
        }
        When::Lsn(lsn) => Lsn(*lsn),
        When::Bookmark(name) => {
            // One that fell into a gap was placed again under the same name: the newest that is a point counts.
            let mut found: Vec<Lsn> = timeline
                .markers()
                .iter()
                .filter(|marker| marker.name == *name)
                .map(|marker| marker.point.lsn)
                .collect();
            found.sort_by_key(|lsn| (timeline.check(*lsn, &[]).is_ok(), *lsn));
            *found.last().with_context(|| {
                format!("the journal has no bookmark named '{name}'; names that were changed are in the catalog only")
            })?
        }
    })
}

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An image's identity: the hash at the end of what describes it.
fn root(image: &[u8]) -> String {
    hex(image.get(image.len().saturating_sub(32)..).unwrap_or_default())
}
