//! The benchmarks of first light: `tests/bench`.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::Value;
use tidemark_tests::bench::{Fio, Goal, Load, Table, cpu_seconds, fio, folder_bytes, resident_bytes};
use tidemark_tests::disks::LoopDisk;
use tidemark_tests::leftovers::{Resource, Undo};
use tidemark_tests::process::{Daemon, output_of};
use tidemark_tests::site::Site;

const VM: &str = "bench";
/// For how long the ring, 256 MiB, holds 20,000 writes of 4 KiB per second with room to spare.
const RING_SECONDS: u64 = 2;

/// Measures capture, ingest and recovery against baselines of the same run, and prints a table.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Seconds instead of minutes: shows that it works, not what it costs.
    #[arg(long)]
    smoke: bool,
}

fn main() -> ExitCode {
    use std::io::Write;
    match Bench::run(Arguments::parse().smoke) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "tidemark-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug)]
struct Sizes {
    disk_bytes: u64,
    seconds: u64,
    /// 4 KiB writes per second to try, rising.
    small_rates: &'static [u64],
    /// MiB per second to try, rising.
    large_rates: &'static [u64],
}

const FULL: Sizes = Sizes {
    disk_bytes: 1 << 30,
    seconds: 10,
    small_rates: &[20_000, 40_000, 61_000, 80_000],
    large_rates: &[100, 200, 300, 400, 500, 600],
};
const SMOKE: Sizes = Sizes { disk_bytes: 128 << 20, seconds: 2, small_rates: &[10_000], large_rates: &[100] };

struct Bench {
    sizes: Sizes,
    table: Table,
    site: Site,
    disk: LoopDisk,
    /// RAM, so that the disk below the tap is never the limit.
    folder: PathBuf,
    _remove: Resource,
}

fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "== {text}");
}

impl Bench {
    fn run(smoke: bool) -> Result<()> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the tap and loop devices need root: run 'sudo tests/bench'"
        );
        let folder = PathBuf::from(format!("/dev/shm/tidemark-bench-{}", std::process::id()));
        let remove = Resource::register(Undo::Folder(folder.clone()))?;
        std::fs::create_dir_all(&folder)?;
        let sizes = if smoke { SMOKE } else { FULL };
        let site = Site::start("bench")?;
        let disk = LoopDisk::create(&folder.join("disk"), sizes.disk_bytes)?;
        let mut bench = Self { sizes, table: Table::new(!smoke), site, disk, folder, _remove: remove };
        bench.capture()?;
        bench.sustained()?;
        bench.lag()?;
        bench.recovery()?;
        let Self { table, site, .. } = bench;
        // Before the logs are judged: what was measured was measured.
        say(&format!("measured\n\n{table}"));
        site.finish(&[])
    }

    fn load(&self, load: &Load<'_>) -> Result<Fio> {
        let device = self.disk.device().display().to_string();
        let result = fio("libaio", &device, load)?;
        ensure!(result.errors == 0, "the guest saw {} errors", result.errors);
        Ok(result)
    }

    fn loads(&self) -> [(&'static str, Load<'static>); 3] {
        let seconds = self.sizes.seconds;
        [
            (
                "4k random, 20,000/s",
                Load { pattern: "randwrite", block: "4k", depth: 16, rate: Some(20_000), seconds },
            ),
            ("4k random, QD16", Load { pattern: "randwrite", block: "4k", depth: 16, rate: None, seconds }),
            ("1 MiB sequential, QD4", Load { pattern: "write", block: "1M", depth: 4, rate: None, seconds }),
        ]
    }

    fn status(&mut self) -> Result<Value> {
        self.site.splitter(0)?.status()
    }

    fn dropped(&mut self) -> Result<u64> {
        self.status()?.get("dropped").and_then(Value::as_u64).context("status has no 'dropped'")
    }

    fn settle(&self) -> Result<()> {
        self.site.wait_state(VM, "protected", Duration::from_secs(180))
    }

    /// The same loads without and with the tap.
    fn capture(&mut self) -> Result<()> {
        say("writing without the tap");
        let bare: Vec<Fio> = self.loads().iter().map(|(_, load)| self.load(load)).collect::<Result<_>>()?;
        let splitter = self.site.add_splitter(VM, &[])?;
        let started = Instant::now();
        let device = self.disk.device().to_path_buf();
        self.site.splitter(splitter)?.protect(&device, true)?;
        self.settle()?;
        let mib = as_f64(self.sizes.disk_bytes >> 20);
        self.table.add("initial copy", "MiB/s", mib / started.elapsed().as_secs_f64(), None, Goal::None);
        self.tap_alone()?;
        for ((name, load), bare) in self.loads().into_iter().zip(bare) {
            say(&format!("{name} with the tap"));
            let before = self.dropped()?;
            let tapped = self.load(&load)?;
            let lost = self.dropped()?.saturating_sub(before);
            self.settle()?;
            if load.rate.is_some() {
                let add = |table: &mut Table, what, ours, theirs, goal| {
                    table.add(&format!("{name}: {what}"), "us", ours, Some(("no tap", theirs)), goal);
                };
                add(&mut self.table, "p50", tapped.p50_us, bare.p50_us, Goal::None);
                add(&mut self.table, "p99", tapped.p99_us, bare.p99_us, Goal::RatioAtMost(1.10));
            } else {
                let rate = Some(("no tap", bare.per_second));
                self.table.add(&format!("{name}: rate"), "1/s", tapped.per_second, rate, Goal::None);
            }
            self.table.add(&format!("{name}: not captured"), "writes", as_f64(lost), None, Goal::None);
        }
        Ok(())
    }

    /// The highest rate without a drop, and what it costs from capture to durable.
    fn sustained(&mut self) -> Result<()> {
        let seconds = self.sizes.seconds;
        let mut best = 0.0;
        for rate in self.sizes.small_rates {
            let load = Load { pattern: "randwrite", block: "4k", depth: 16, rate: Some(*rate), seconds };
            let Some(reached) = self.try_rate(&load)? else { break };
            best = f64::max(best, reached.per_second);
        }
        self.table.add(
            "4k random, captured, sent, durable without a gap",
            "1/s",
            best,
            None,
            Goal::AtLeast(60_000.0),
        );
        let (mut best, mut cost, mut amplification) = (0.0, 0.0, 0.0);
        for mib in self.sizes.large_rates {
            let load = Load { pattern: "write", block: "1M", depth: 4, rate: Some(*mib), seconds };
            let cpu_before = self.cpu()?;
            let bytes_before = folder_bytes(&self.site.data().join("vms"))?;
            let Some(reached) = self.try_rate(&load)? else { break };
            best = f64::max(best, reached.bytes_per_second / 1e6);
            cost = (self.cpu()? - cpu_before) / (reached.bytes / 1e9);
            amplification = (folder_bytes(&self.site.data().join("vms"))? - bytes_before) / reached.bytes;
        }
        let name = "1 MiB sequential, captured, sent, durable without a gap";
        self.table.add(name, "MB/s", best, None, Goal::AtLeast(400.0));
        self.table.add("processor time of splitter and appliance", "s/GB", cost, None, Goal::None);
        self.table.add(
            "journal bytes written per byte received",
            "",
            amplification,
            None,
            Goal::AtMost(1.05),
        );
        let splitter = self.status()?.get("rss_bytes").and_then(Value::as_f64).unwrap_or(0.0);
        self.table.add(
            "splitter memory besides the ring",
            "MiB",
            splitter / 1048576.0,
            None,
            Goal::AtMost(64.0),
        );
        let appliance = resident_bytes(self.site.appliance()?.pid())?;
        self.table.add("appliance memory", "MiB", appliance / 1048576.0, None, Goal::None);
        Ok(())
    }

    /// What the tap itself costs an application: the ring takes what is written while the splitter stands still, so
    /// that nothing else wants the processors.
    fn tap_alone(&mut self) -> Result<()> {
        say("4k random, 20,000/s, the splitter standing still");
        let load =
            Load { pattern: "randwrite", block: "4k", depth: 16, rate: Some(20_000), seconds: RING_SECONDS };
        let bare = {
            let device = self.disk.device().to_path_buf();
            self.site.splitter(0)?.command(&["unprotect", &device.display().to_string()])?;
            let bare = self.load(&load)?;
            self.site.splitter(0)?.protect(&device, true)?;
            self.settle()?;
            bare
        };
        let before = self.dropped()?;
        self.site.splitter(0)?.daemon()?.freeze()?;
        let tapped = self.load(&load);
        self.site.splitter(0)?.daemon()?.thaw()?;
        let tapped = tapped?;
        self.settle()?;
        ensure!(self.dropped()? == before, "the ring was too small for what was written");
        for (what, ours, theirs) in [("p50", tapped.p50_us, bare.p50_us), ("p99", tapped.p99_us, bare.p99_us)]
        {
            let name = format!("4k random, 20,000/s, tap alone: {what}");
            self.table.add(&name, "us", ours, Some(("no tap", theirs)), Goal::None);
        }
        Ok(())
    }

    fn cpu(&mut self) -> Result<f64> {
        let splitter = self.site.splitter(0)?.daemon()?.pid();
        Ok(cpu_seconds(splitter)? + cpu_seconds(self.site.appliance()?.pid())?)
    }

    /// Runs a load and waits until it is durable; `None` when a write was not captured or the rate not reached.
    fn try_rate(&mut self, load: &Load<'_>) -> Result<Option<Fio>> {
        say(&format!("{} {} at {}/s", load.pattern, load.block, load.rate.unwrap_or(0)));
        let before = self.dropped()?;
        let result = self.load(load)?;
        self.settle()?;
        let marker = self.site.bookmark(VM, &format!("after-{}-{}", load.block, load.rate.unwrap_or(0)))?;
        self.site.wait_point(VM, marker, Duration::from_secs(60))?;
        let reached = result.per_second >= 0.95 * load.rate.map_or(0.0, as_f64);
        Ok((self.dropped()? == before && reached).then_some(result))
    }

    /// RPO while 100 MB/s are written.
    fn lag(&mut self) -> Result<()> {
        say("recovery point objective at 100 MB/s");
        let idle = self.sample_rpo(Duration::from_secs(self.sizes.seconds.min(3)))?;
        let seconds = self.sizes.seconds * 2;
        let device = self.disk.device().display().to_string();
        let rate = Some(100_000_000 / 65_536);
        let load = Load { pattern: "randwrite", block: "64k", depth: 8, rate, seconds };
        let before = self.site.points(VM)?.gaps.len();
        let busy = std::thread::scope(|scope| {
            let running = scope.spawn(|| fio("libaio", &device, &load));
            std::thread::sleep(Duration::from_millis(500));
            let samples =
                self.sample_rpo(Duration::from_secs(seconds).saturating_sub(Duration::from_secs(1)));
            running.join().map_err(|_| anyhow::anyhow!("fio's thread ended"))??;
            samples
        })?;
        let name = "RPO at 100 MB/s";
        self.table.add(
            &format!("{name}: p50"),
            "ms",
            at(&busy, 0.5),
            Some(("idle", at(&idle, 0.5))),
            Goal::None,
        );
        let goal = Goal::AtMost(1000.0);
        self.table.add(&format!("{name}: p99"), "ms", at(&busy, 0.99), Some(("idle", at(&idle, 0.99))), goal);
        self.settle()?;
        // While a gap is open the last point before it is all there is: that is no delay of the pipeline.
        let gaps = self.site.points(VM)?.gaps;
        let opened = gaps.get(before..).unwrap_or_default();
        opened.iter().for_each(|gap| say(&format!("a gap meanwhile: {gap:?}")));
        self.table.add(&format!("{name}: gaps meanwhile"), "", as_f64(opened.len() as u64), None, Goal::None);
        Ok(())
    }

    fn sample_rpo(&self, duration: Duration) -> Result<Vec<f64>> {
        let started = Instant::now();
        let mut samples = Vec::new();
        while started.elapsed() < duration {
            let vm = self.site.vm(VM)?;
            samples.push(vm.get("rpo_ms").and_then(Value::as_f64).context("vm list has no rpo_ms")?);
            std::thread::sleep(Duration::from_millis(50));
        }
        samples.sort_by(f64::total_cmp);
        Ok(samples)
    }

    /// Views against a plain file with the same content.
    fn recovery(&mut self) -> Result<()> {
        say("recovery");
        let raw = self.site.path().join("restored");
        let started = Instant::now();
        let raw_text = raw.display().to_string();
        self.site.cli(&["recover", VM, "--at", "latest", "--disk", "disk-1", "--to", &raw_text])?;
        let restore = started.elapsed().as_secs_f64();
        let copy = self.site.path().join("copy");
        let started = Instant::now();
        output_of(Command::new("cp").args(["--sparse=never"]).arg(&raw).arg(&copy))?;
        output_of(Command::new("sync").arg(&copy))?;
        let mib = as_f64(self.sizes.disk_bytes >> 20);
        let cp = mib / started.elapsed().as_secs_f64();
        self.table.add(
            "restore to a file",
            "MiB/s",
            mib / restore,
            Some(("cp", cp)),
            Goal::RatioAtLeast(0.8),
        );
        std::fs::remove_file(&copy)?;
        let started = Instant::now();
        let exports = self.site.cli_json(&["export", VM, "--at", "latest"])?;
        let open = started.elapsed().as_secs_f64() * 1000.0;
        self.table.add("open a view and export it", "ms", open, None, Goal::AtMost(1000.0));
        let uri = exports.pointer("/0/uri").and_then(Value::as_str).context("export has no uri")?.to_owned();
        let socket = self.folder.join("qemu-nbd");
        let log = self.folder.join("qemu-nbd.log");
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--read-only", "--format=raw", "--shared=16"]);
        command.arg(format!("--socket={}", socket.display())).arg(&raw);
        let server = Daemon::spawn("qemu-nbd", &mut command, &log)?;
        let baseline = format!("nbd+unix:///?socket={}", socket.display());
        wait_for(&socket)?;
        let copy_rate = |uri: &str| -> Result<f64> {
            let started = Instant::now();
            output_of(Command::new("nbdcopy").args([uri, "null:"]))?;
            Ok(mib / started.elapsed().as_secs_f64())
        };
        let (theirs, ours) = (copy_rate(&baseline)?, copy_rate(&uri)?);
        let baseline_name = Some(("qemu-nbd", theirs));
        self.table.add(
            "read a view over NBD (nbdcopy)",
            "MiB/s",
            ours,
            baseline_name,
            Goal::RatioAtLeast(0.8),
        );
        let seconds = self.sizes.seconds.min(5);
        let load = Load { pattern: "randread", block: "4k", depth: 16, rate: None, seconds };
        let (theirs, ours) = (fio("nbd", &baseline, &load)?, fio("nbd", &uri, &load)?);
        let baseline_name = Some(("qemu-nbd", theirs.per_second));
        self.table.add("4k random reads over NBD, QD16", "1/s", ours.per_second, baseline_name, Goal::None);
        server.stop(Duration::from_secs(10))?;
        let id = exports.pointer("/0/id").and_then(Value::as_str).context("export has no id")?;
        self.site.cli(&["export", "stop", id])?;
        Ok(())
    }
}

fn wait_for(path: &std::path::Path) -> Result<()> {
    let started = Instant::now();
    while !path.exists() {
        ensure!(started.elapsed() < Duration::from_secs(10), "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The value at a part of sorted samples.
fn at(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index between 0 and a length that memory holds"
    )]
    let index = (part * as_f64(last as u64)).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::cast_precision_loss, reason = "figures to be shown")]
fn as_f64(value: u64) -> f64 {
    value as f64
}
