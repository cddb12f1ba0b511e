//! The splitter with a fault, for negative controls. Not a product: `TIDEMARK_FAULT` says what is wrong with it.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Parser, ValueEnum};
use tidemark_splitter::cli::{self, Arguments, Command};
use tidemark_splitter::daemon::Parts;
use tidemark_tests::faults::{FAULT_VARIABLE, Fault, FaultyKernel};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "tidemark-splitter-faulty: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Command::HoldWatchdog { .. }) {
        return cli::run(arguments, Parts::default());
    }
    let name = std::env::var(FAULT_VARIABLE)?;
    let fault = Fault::from_str(&name, false).map_err(|problem| anyhow!("{FAULT_VARIABLE}: {problem}"))?;
    let parts = Parts { kernel: Box::new(FaultyKernel::new(fault)), ..Parts::default() };
    cli::run(arguments, parts)
}
