//! The journal's benchmarks: `tests/bench journal`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use tidemark_tests::bench::{Table, journal};
use tidemark_tests::leftovers::{Resource, Undo};

/// Measures the journal by itself: ingest, opening and reading views, space; and prints a table.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Seconds instead of minutes: shows that it works, not what it costs.
    #[arg(long)]
    smoke: bool,
    /// Where the journals are written: on the disk that is to be measured.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    folder: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "tidemark-bench-journal: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let folder = arguments.folder.join(format!("tidemark-bench-journal-{}", std::process::id()));
    let _remove = Resource::register(Undo::Folder(folder.clone()))?;
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let sizes = if arguments.smoke { journal::SMOKE } else { journal::FULL };
    let mut table = Table::new(!arguments.smoke);
    journal::measure(&sizes, &folder, &mut table)?;
    writeln!(std::io::stdout(), "== measured\n\n{table}")?;
    Ok(())
}
