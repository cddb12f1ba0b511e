//! The workload and the checker as a program: for guests, for benchmarks and for hands.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use tidemark_tests::bank::{self, Branch, Counts};
use tidemark_tests::filework::FileWork;
use tidemark_tests::leftovers;
use tidemark_tests::stamp::{Checker, History, Options, run};
use tidemark_tests::witness;

/// Stamp workload, checker and clean-up of Tidemark's tests.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Overwrite a zeroed disk with stamped writes: tidemark-lab stamp --disk /dev/vdb --log /tmp/log --seconds 10
    Stamp {
        /// The disk or file; everything on it is lost.
        #[arg(long)]
        disk: PathBuf,
        /// Where to write the history; not on that disk.
        #[arg(long)]
        log: PathBuf,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        #[arg(long, default_value_t = u64::MAX)]
        operations: u64,
        #[arg(long, default_value_t = 1)]
        queue_depth: usize,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Largest write in 512-byte sectors.
        #[arg(long, default_value_t = 2048)]
        largest_sectors: u64,
        /// Operations per second, 0 for no limit.
        #[arg(long, default_value_t = 0)]
        rate: u64,
        /// Percentage of zeroings, and of discards.
        #[arg(long, default_value_t = 2)]
        zeroes_percent: u32,
        /// Writes that the disk fails are part of the test: the history tells them.
        #[arg(long)]
        allow_errors: bool,
    },
    /// Judge an image by a history: tidemark-lab check --image FILE --log /tmp/log
    Check {
        #[arg(long)]
        image: PathBuf,
        #[arg(long)]
        log: PathBuf,
        /// Every completed write must be there.
        #[arg(long)]
        complete: bool,
        /// Exactly this many writes must be there (queue depth 1).
        #[arg(long)]
        prefix: Option<u64>,
    },
    /// Write numbered blocks and say each over the network once it has completed: tidemark-lab witness --device /dev/vg/lv
    Witness {
        /// The device; everything on it is lost.
        #[arg(long)]
        device: PathBuf,
        /// Who is told, HOST:PORT.
        #[arg(long)]
        to: Option<String>,
        /// Blocks of 4 KiB to go round in.
        #[arg(long, default_value_t = 256)]
        slots: u64,
        #[arg(long, default_value_t = u64::MAX)]
        writes: u64,
        /// Writes need not be on the medium when they complete.
        #[arg(long)]
        no_sync: bool,
    },
    /// Work with files, until killed unless told: tidemark-lab files --dir /mnt/data
    Files {
        /// A folder of a mounted file system.
        #[arg(long)]
        dir: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// End after so many.
        #[arg(long, default_value_t = usize::MAX)]
        steps: usize,
    },
    /// Pass money to other machines through a hub, each durably entered first: tidemark-lab bank --ledger /mnt/ledger
    Bank {
        /// The file of the ledger, in a file system right on the device.
        #[arg(long)]
        ledger: PathBuf,
        /// The number of this member, from 0.
        #[arg(long)]
        member: usize,
        /// How many there are.
        #[arg(long)]
        members: usize,
        /// Tokens that begin here.
        #[arg(long, default_value_t = 2)]
        tokens: usize,
        /// HOST:PORT.
        #[arg(long)]
        hub: String,
    },
    /// Remove what killed test runs left behind.
    Sweep,
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(text) => {
            let _ = writeln!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "tidemark-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<String> {
    match command {
        Command::Stamp {
            disk,
            log,
            seconds,
            operations,
            queue_depth,
            seed,
            largest_sectors,
            rate,
            zeroes_percent,
            allow_errors,
        } => {
            let duration = Duration::from_secs(seconds);
            let options = Options {
                seed,
                queue_depth,
                operations,
                duration,
                largest_sectors,
                zeroes_percent,
                rate,
                ..Options::default()
            };
            let report = run(&disk, options)?;
            let mut out = BufWriter::new(File::create(&log).context("create the log")?);
            report.history.write_to(&mut out)?;
            out.flush()?;
            let failed = report.errors.len();
            ensure!(allow_errors || failed == 0, "{failed} writes failed: {:?}", report.errors.first());
            let (done, elapsed) = (report.history.completed(), report.elapsed.as_secs_f64());
            Ok(format!("{done} operations in {elapsed:.2} s, the slowest took {:?}", report.slowest))
        }
        Command::Check { image, log, complete, prefix } => {
            let history = History::read_from(BufReader::new(File::open(&log).context("open the log")?))?;
            let image = std::fs::read(&image).with_context(|| format!("read {}", image.display()))?;
            let checker = Checker::new(&history);
            if let Some(prefix) = prefix {
                checker.check_prefix(&image, prefix)?;
            }
            let verdict = checker.check(&image, if complete { u64::MAX } else { 0 })?;
            Ok(format!(
                "a legal state with at least {} of {} writes",
                verdict.must_contain,
                history.operations.len()
            ))
        }
        Command::Witness { device, to, slots, writes, no_sync } => {
            let done = witness::run(&device, to.as_deref(), slots, writes, !no_sync)?;
            Ok(format!(
                "{} writes, median {} us, slowest {} us",
                done.writes,
                done.median.as_micros(),
                done.slowest.as_micros()
            ))
        }
        Command::Files { dir, seed, steps } => {
            let work = FileWork::new(&dir)?;
            std::thread::scope(|scope| {
                let working = scope.spawn(|| work.run(seed));
                while work.steps() < steps && !working.is_finished() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                work.stop();
                working.join().unwrap_or_else(|_| anyhow::bail!("the work panicked"))
            })?;
            Ok(format!("{} steps", work.steps()))
        }
        Command::Bank { ledger, member, members, tokens, hub } => {
            let branch = Branch::create(&ledger)?;
            // For whoever looks for it in images of the device.
            writeln!(std::io::stdout(), "{}", branch.disk_offset)?;
            let (stop, counts) = (AtomicBool::new(false), Counts::default());
            bank::join(&branch, (member, members), tokens, &hub, &stop, &counts)?;
            Ok(String::new())
        }
        Command::Sweep => Ok(format!("{} leftovers removed", leftovers::sweep()?.len())),
    }
}
