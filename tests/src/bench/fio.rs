//! fio, and the figures of its report.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::output_of;

/// A load on a disk or an NBD export.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// fio's `rw`: `randwrite`, `write`, `randread`, `read`.
    pub pattern: &'a str,
    /// Bytes of a request, as fio writes them: `4k`.
    pub block: &'a str,
    /// Requests in flight.
    pub depth: u32,
    /// Requests per second, no limit without.
    pub rate: Option<u64>,
    /// Seconds.
    pub seconds: u64,
}

/// What fio measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fio {
    /// Requests per second.
    pub per_second: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Bytes in all.
    pub bytes: f64,
    /// Median time to completion in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
    /// Requests that failed.
    pub errors: u64,
}

/// Runs a load with `engine` (`libaio` or `nbd`) on `target` (a file name, or a URI).
///
/// # Errors
/// When fio fails or reports nothing.
pub fn fio(engine: &str, target: &str, load: &Load<'_>) -> Result<Fio> {
    let mut command = Command::new("fio");
    let place = if engine == "nbd" { format!("--uri={target}") } else { format!("--filename={target}") };
    command.args([
        "--name=load",
        "--output-format=json",
        "--time_based=1",
        "--randrepeat=0",
        "--norandommap=1",
    ]);
    command.args([format!("--ioengine={engine}"), place, format!("--rw={}", load.pattern)]);
    command.args([format!("--bs={}", load.block), format!("--iodepth={}", load.depth)]);
    command.arg(format!("--runtime={}", load.seconds));
    if engine != "nbd" {
        command.arg("--direct=1");
    }
    if let Some(rate) = load.rate {
        command.arg(format!("--rate_iops={rate}"));
    }
    let report = output_of(&mut command).context("fio")?;
    // Notes may stand before the report.
    let json = report.find('{').and_then(|start| report.get(start..)).context("fio printed no report")?;
    let report: Value = serde_json::from_str(json).context("fio's report")?;
    let job = report.pointer("/jobs/0").context("fio's report has no job")?;
    let side =
        job.get(if load.pattern.contains("write") { "write" } else { "read" }).context("no direction")?;
    let number = |pointer: &str| side.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
    Ok(Fio {
        per_second: number("/iops"),
        bytes_per_second: number("/bw_bytes"),
        bytes: number("/io_bytes"),
        p50_us: number("/clat_ns/percentile/50.000000") / 1000.0,
        p99_us: number("/clat_ns/percentile/99.000000") / 1000.0,
        errors: job.get("total_err").and_then(Value::as_u64).unwrap_or(0),
    })
}
