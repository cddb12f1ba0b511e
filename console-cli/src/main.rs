//! `tidemark`: the commands people type. It talks to the appliance over mTLS with the credentials of a context file and
//! knows nothing of journals, except that `journal verify` and `journal dump` read one offline.

mod appliance;
mod cli;
mod commands;
mod context;
mod ext4;
mod files;
mod fuse;
mod moment;
mod output;
mod progress;
mod renewal;
mod restore;
mod size;
mod view;
mod when;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;

/// The command ran and did not achieve what was asked.
const EXIT_FAILED: u8 = 1;
/// The command line makes no sense; nothing was tried.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            output::error(&cli::one_line(&error));
            return ExitCode::from(EXIT_USAGE);
        }
        // `--help` and `--version`.
        Err(error) => {
            return match error.print() {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::from(EXIT_FAILED),
            };
        }
    };
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough (`tidemark point list web-1 | head`).
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&format!("{error:#}"));
            ExitCode::from(if error.is::<cli::UsageError>() { EXIT_USAGE } else { EXIT_FAILED })
        }
    }
}
