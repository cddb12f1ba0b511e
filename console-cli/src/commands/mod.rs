//! One module per noun of the command line.

mod bookmark;
mod cert;
mod certificate;
mod certificate_file;
mod clone;
mod diff;
mod export;
mod files;
mod grant;
mod job;
mod journal;
mod mount;
mod object;
mod point;
mod policy;
mod proof;
mod recover;
mod role;
mod search;
mod set;
mod set_point;
mod status;
mod token;
mod vm;

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use tidemark_proto::v1::CreateSetBookmarkRequest;
use tonic::transport::Channel;

use crate::appliance::{self, Client, attest, channel, clones, console, history, objects, retention, sets};
use crate::cli::{BookmarkCommand, Cli, Command, PointCommand, VmCommand};
use crate::context::Context;
use crate::renewal;

/// Runs the command and prints what it has to say.
pub(crate) fn run(cli: Cli) -> Result<()> {
    let Cli { context, json, command } = cli;
    match command {
        // These need no appliance, or processes of their own.
        Command::Journal(command) => journal::run(command, json),
        Command::Mount(arguments) => mount::run(context.as_deref(), &arguments, json),
        Command::Unmount { dir } => mount::unmount(&dir, json),
        Command::Manual { dir } => {
            clap_mangen::generate_to(Cli::command(), dir).context("write the manual pages")
        }
        command => runtime()?.block_on(online(context.as_deref(), command, json)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}

/// A connection with the context's credentials, which are renewed on it when that is due.
async fn connected(context: Option<&Path>) -> Result<Channel> {
    let context = Context::load(context)?;
    let channel = channel(&context).await?;
    renewal::renew_if_due(&console(channel.clone()), &context).await;
    Ok(channel)
}

async fn client(context: Option<&Path>) -> Result<Client> {
    Ok(console(connected(context).await?))
}

async fn online(context: Option<&Path>, command: Command, json: bool) -> Result<()> {
    let channel = connected(context).await?;
    let client = console(channel.clone());
    match command {
        Command::Role(command) => role::run(appliance::roles(channel), context, command, json).await,
        Command::Diff(arguments) => diff::run(history(channel), &arguments, json).await,
        Command::Files(command) => files::run(client, history(channel), command, json).await,
        Command::Object(command) => object::run(objects(channel), command, json).await,
        Command::Token(command) => token::run(client, command, json).await,
        Command::Cert(command) => cert::run(client, command, json).await,
        Command::Search(arguments) => search::run(appliance::search(channel), arguments, json).await,
        Command::Vm(VmCommand::Tag { name, tag }) => {
            search::tag(appliance::search(channel), name, tag, json).await
        }
        Command::Vm(VmCommand::Verify(arguments)) => {
            job::verify(appliance::jobs(channel), arguments, json).await
        }
        Command::Set(command) => set::run(sets(channel), command, json).await,
        Command::Grant(command) => grant::run(appliance::grants(channel), command, json).await,
        Command::Job(command) => job::run(appliance::jobs(channel), command, json).await,
        Command::Vm(command) => vm::run(client, command, json).await,
        Command::Bookmark(BookmarkCommand::Create {
            name, set: Some(set), consistency, allow_lower, ..
        }) => {
            let consistency = consistency.word().to_owned();
            let request = CreateSetBookmarkRequest { set, name, consistency, allow_lower };
            set_point::bookmark(sets(channel), request, json).await
        }
        Command::Bookmark(command) => bookmark::run(client, retention(channel), command, json).await,
        Command::Policy(command) => policy::run(retention(channel), command, json).await,
        Command::Point(PointCommand::List { set: Some(set), from, to, search, .. }) => {
            set_point::list(sets(channel), set, (from, to), search, json).await
        }
        Command::Point(command) => point::run(client, command, json).await,
        Command::Recover(arguments) => {
            recover::run(client, attest(channel.clone()), sets(channel), &arguments, json).await
        }
        Command::Export(arguments) => {
            export::run(client, clones(channel.clone()), sets(channel), arguments, json).await
        }
        Command::Clone(command) => clone::run(clones(channel), command, json).await,
        Command::Status => status::run(client, json).await,
        Command::Journal(_) | Command::Mount(_) | Command::Unmount { .. } | Command::Manual { .. } => Ok(()),
    }
}
