//! `tidemark-splitter restore`.

use std::io::{IsTerminal, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tidemark_proto::token::{Token, TokenKind};

use super::status::{line, utc};
use crate::restore::{self, Phase};

pub(super) fn restore(appliance: &str, grant: &str, disk: &Path, json: bool) -> Result<()> {
    let grant = Token::read(TokenKind::Grant, grant)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the network run time")?;
    let bar = bar();
    let progress = |phase: Phase, done: u64, total: u64| {
        bar.set_message(match phase {
            Phase::Restoring => "restoring",
            Phase::Verifying => "verifying",
        });
        bar.set_length(total);
        bar.set_position(done);
    };
    let restored = runtime.block_on(restore::restore(appliance, &grant, disk, &progress));
    bar.finish_and_clear();
    let restored = restored?;
    for warning in &restored.warnings {
        let _ = writeln!(std::io::stderr(), "tidemark-splitter: warning: {warning}");
    }
    let time = utc(restored.time_us);
    if json {
        let value = json!({
            "vm": restored.vm, "disk": restored.disk, "lsn": restored.lsn, "time": time, "target": disk,
            "bytes": restored.size_bytes, "fetched_bytes": restored.fetched_bytes,
            "zeroed_bytes": restored.zeroed_bytes, "untouched_bytes": restored.untouched_bytes,
            "seconds": restored.took.as_secs_f64(),
        });
        return line(&serde_json::to_string_pretty(&value)?);
    }
    line(&format!(
        "{} is {} of '{}' as of {time} (lsn:{}), verified: {} MiB in {:.1} s, of which {} MiB were fetched",
        disk.display(),
        restored.disk,
        restored.vm,
        restored.lsn,
        restored.size_bytes >> 20,
        restored.took.as_secs_f64(),
        restored.fetched_bytes >> 20,
    ))?;
    if restored.untouched_bytes > 0 {
        line(&format!(
            "the last {} bytes of the device are beyond that disk, and as they were",
            restored.untouched_bytes
        ))?;
    }
    Ok(())
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let template = "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ETA {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
