//! `tidemark-splitter`: see `--help`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tidemark_splitter::cli::{self, Arguments};

fn main() -> ExitCode {
    match cli::run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to try when even standard error is closed.
            let _ = writeln!(std::io::stderr(), "tidemark-splitter: {error:#}");
            ExitCode::FAILURE
        }
    }
}
