//! The `tidemark-appliance` program.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};
use tidemark_appliance::master_key;
use tidemark_appliance::one_line::one_line;
use tidemark_appliance::server::Appliance;
use tidemark_appliance::settings::{Command, LogForm, Program, Settings};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let program = Program::parse();
    match run(program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody can be told when standard error is closed.
            let _ = writeln!(std::io::stderr(), "tidemark-appliance: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(program: Program) -> anyhow::Result<()> {
    let arguments = match (program.command, program.serve) {
        (Some(Command::Key(command)), _) => {
            start_log(LogForm::Text);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            return runtime.block_on(master_key::run(command));
        }
        (Some(Command::Manual { dir }), _) => {
            clap_mangen::generate_to(Program::command(), dir)?;
            return Ok(());
        }
        (None, Some(arguments)) => arguments,
        (None, None) => anyhow::bail!("name the data folder: --data DIR"),
    };
    let settings = Settings::load(arguments)?;
    start_log(settings.log);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(settings))
}

fn start_log(form: LogForm) {
    let filter = EnvFilter::try_from_env("TIDEMARK_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match form {
        LogForm::Text => builder.with_ansi(false).init(),
        LogForm::Json => builder.json().init(),
    }
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut appliance = Appliance::start(&settings).await?;
    tracing::info!(address = %appliance.address, http = %appliance.http, "serving");
    // Without systemd there is nobody to notify.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = appliance.failed() => Some(error),
    };
    if let Some(error) = failure {
        return Err(error);
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("shutting down");
    appliance.shutdown().await;
    Ok(())
}
