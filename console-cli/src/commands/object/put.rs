//! `tidemark object put`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use indicatif::ProgressBar;
use serde_json::json;
use tidemark_proto::v1::{ObjectInfo, PutObjectHead, PutObjectRequest, put_object_reply, put_object_request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::source::Source;
use super::{TRIES_MAX, broke, pause, tags, to_json};
use crate::appliance::{ObjectsClient, refused};
use crate::cli::{ObjectKind, PutArguments, UsageError};
use crate::{output, progress, size};

/// Messages ahead of the network at most.
const MESSAGES_AHEAD: usize = 4;

pub(super) async fn run(client: ObjectsClient, arguments: &PutArguments, json: bool) -> Result<()> {
    let started = Instant::now();
    let source = Source::open(&arguments.file)?;
    let head = head(arguments, &source)?;
    let bar = progress::bytes(source.size_bytes(), &head.name);
    let done = tokio::select! {
        done = send(client, head.clone(), source, &bar) => done,
        _ = tokio::signal::ctrl_c() => {
            bail!("interrupted: nothing is kept yet; run the command again within ten minutes to continue");
        }
    };
    bar.finish_and_clear();
    let object = done.with_context(|| format!("put {}", arguments.file.display()))?;
    let seconds = started.elapsed().as_secs_f64();
    if json {
        let mut shown = to_json(&object);
        if let Some(fields) = shown.as_object_mut() {
            fields.insert("seconds".to_owned(), json!((seconds * 1000.0).round() / 1000.0));
        }
        return output::json(&shown);
    }
    output::line(&format!(
        "{} is kept: {}, of which {} were new, in {seconds:.1} s",
        object.name,
        size::show(object.size_bytes),
        size::show(object.new_bytes)
    ))
}

fn head(arguments: &PutArguments, source: &Source) -> Result<PutObjectHead> {
    let file_name = arguments.file.file_name().and_then(|name| name.to_str());
    let name = match (&arguments.name, file_name) {
        (Some(name), _) => name.clone(),
        (None, Some(name)) => name.to_owned(),
        (None, None) => {
            bail!(UsageError("the file's name cannot be the object's: give one with --name".to_owned()))
        }
    };
    let kind = arguments.kind.unwrap_or_else(|| kind_of(&arguments.file));
    Ok(PutObjectHead {
        name,
        kind: kind.word().to_owned(),
        size_bytes: source.size_bytes(),
        tags: tags(arguments.tags.clone()),
        published: arguments.publish,
        hold: arguments.hold,
        locked_until_us: arguments.lock_until.unwrap_or(0),
        source: source.identity().to_vec().into(),
    })
}

fn kind_of(file: &Path) -> ObjectKind {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    match ending.as_str() {
        "iso" => ObjectKind::Iso,
        "ova" => ObjectKind::Ova,
        _ => ObjectKind::File,
    }
}

/// How one try ended.
enum Try {
    Done(Box<ObjectInfo>),
    /// The connection broke; whether anything had been taken since it began.
    Broke(Status, bool),
}

/// Sends the file; goes on by itself when the connection breaks.
async fn send(
    client: ObjectsClient,
    head: PutObjectHead,
    mut source: Source,
    bar: &ProgressBar,
) -> Result<ObjectInfo> {
    let mut tries = 0;
    loop {
        let (back, tried) = one_try(client.clone(), head.clone(), source, bar).await?;
        source = back;
        match tried {
            Ok(Try::Done(object)) => return Ok(*object),
            Ok(Try::Broke(status, progress)) => {
                tries = if progress { 1 } else { tries + 1 };
                if tries >= TRIES_MAX {
                    return Err(refused(&status));
                }
            }
            // The appliance may still believe in the connection that broke.
            Err(status) if tries > 0 && status.code() == Code::Aborted => {
                tries += 1;
                if tries >= TRIES_MAX {
                    return Err(refused(&status));
                }
            }
            Err(status) => return Err(refused(&status)),
        }
        pause(tries).await;
    }
}

/// One connection's worth. The source comes back, wherever it is.
async fn one_try(
    mut client: ObjectsClient,
    head: PutObjectHead,
    source: Source,
    bar: &ProgressBar,
) -> Result<(Source, Result<Try, Status>)> {
    let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
    let first = PutObjectRequest { body: Some(put_object_request::Body::Head(head)) };
    // The channel is empty: this does not wait.
    let _ = sender.send(first).await;
    let outcome = |status: Status, progress| {
        if broke(&status) { Ok(Try::Broke(status, progress)) } else { Err(status) }
    };
    let mut replies = match client.put_object(ReceiverStream::new(receiver)).await {
        Ok(replies) => replies.into_inner(),
        Err(status) => return Ok((source, outcome(status, false))),
    };
    let begin_at = match replies.message().await {
        Ok(Some(reply)) => match reply.body {
            Some(put_object_reply::Body::BeginAt(at)) => at,
            _ => bail!("the appliance did not say where to begin: upgrade the appliance"),
        },
        Ok(None) => return Ok((source, outcome(Status::unavailable(""), false))),
        Err(status) => return Ok((source, outcome(status, false))),
    };
    bar.set_position(begin_at);
    let mut source = source;
    let feeding = tokio::task::spawn_blocking(move || {
        let fed = source.feed(begin_at, &sender);
        (source, fed)
    });
    let (mut progress, mut done) = (false, None);
    let ended = loop {
        match replies.message().await {
            Ok(Some(reply)) => match reply.body {
                Some(put_object_reply::Body::TakenBytes(bytes)) => {
                    progress = true;
                    bar.set_position(bytes);
                }
                Some(put_object_reply::Body::Done(object)) => done = Some(object),
                _ => {}
            },
            Ok(None) => break Status::unavailable(""),
            Err(status) => break status,
        }
    };
    // With the replies gone the connection's end of the channel goes too, and the feeder stops.
    drop(replies);
    let (source, fed) = feeding.await.context("read the file")?;
    if let Some(object) = done {
        return Ok((source, Ok(Try::Done(Box::new(object)))));
    }
    // What could not be read matters more than the stream that ended for it.
    fed?;
    Ok((source, outcome(ended, progress)))
}
