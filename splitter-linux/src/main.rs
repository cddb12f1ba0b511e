//! `tidemark-splitter`: see `--help`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tidemark_splitter::cli::{self, Arguments};
use tidemark_splitter::daemon::Parts;

fn main() -> ExitCode {
    match cli::run(Arguments::parse(), Parts::default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to try when even standard error is closed.
            let _ = writeln!(std::io::stderr(), "tidemark-splitter: {error:#}");
            ExitCode::FAILURE
        }
    }
}
