//! `celeriac capture`: records messages in a file.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use celeriac::broker::rabbitmq::tap::{self, Origin, Tap};
use celeriac::broker::{BrokerError, BrokerErrorClass};
use celeriac::config::Config;
use celeriac::message::Message;
use celeriac::message::capture;
use celeriac::message::dead_letter;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::exit::UsageError;
use super::progress::Progress;
use super::{Compression, create_private, listen_for_signals};

/// How long to wait for the next message of a queue that is drained before the queue counts as
/// empty: another consumer may have taken the rest.
const IDLE: Duration = Duration::from_secs(5);

/// The most messages, and the most bytes, that are written together before they are acknowledged.
const MAX_UNWRITTEN: usize = 200;
const MAX_UNWRITTEN_BYTES: usize = 4 << 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The file to create. It is compressed if the name ends in `.gz` or `.zst`.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Records copies of the messages that are delivered from the results queue, whoever published
    /// them. RabbitMQ makes these copies while tracing is on (`rabbitmqctl trace_on -p VHOST`).
    #[arg(long, conflicts_with_all = ["drain", "binding"])]
    firehose: bool,

    /// Records copies of the messages published to another exchange, as `EXCHANGE=ROUTING_KEY`; can
    /// be given several times.
    #[arg(long, value_name = "BINDING")]
    binding: Vec<String>,

    /// Removes the messages of this queue and records them. A message is removed only after it is
    /// written to disk.
    #[arg(long, value_name = "QUEUE", conflicts_with = "binding")]
    drain: Option<String>,

    /// Ends after this many messages.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Ends after this time, such as 30s or 10m. Without it, Ctrl-C ends the recording.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
}

impl Arguments {
    fn origin(&self, config: &Config) -> anyhow::Result<Origin> {
        if let Some(queue) = &self.drain {
            return Ok(Origin::Queue(queue.clone()));
        }
        let mut bindings = Vec::new();
        if self.firehose {
            bindings.push(tap::firehose(&config.results_queue));
        }
        for binding in &self.binding {
            let Some((exchange, routing_key)) = binding.split_once('=') else {
                bail!(UsageError(format!(
                    "binding: {binding:?} has no `=`: write EXCHANGE=ROUTING_KEY"
                )));
            };
            bindings.push((exchange.to_owned(), routing_key.to_owned()));
        }
        if bindings.is_empty() {
            bindings.push((config.exchange.clone(), config.results_queue.clone()));
        }
        if config.events.is_some() {
            bindings.push((config.event_exchange.clone(), "task.#".to_owned()));
        }
        Ok(Origin::Bindings(bindings))
    }
}

/// Records until a limit is reached or the process is asked to stop.
#[tokio::main]
pub(crate) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let shutdown = CancellationToken::new();
    listen_for_signals(shutdown.clone())?;
    Recording::check(&arguments.file)?;
    let origin = arguments.origin(config)?;
    let mut tap = Tap::open(config, &origin).await?;
    let mut recording = Recording::create(&arguments.file)?;
    let is_drain = matches!(origin, Origin::Queue(_));
    let most = match (arguments.count, is_drain) {
        (Some(count), true) => Some(count.min(tap.waiting().into())),
        (None, true) => Some(tap.waiting().into()),
        (count, false) => count,
    };
    let mut progress = Progress::new(most.unwrap_or_default(), "messages");
    let deadline = arguments.duration.map(|duration| Instant::now() + duration);
    let mut recorded = 0_u64;
    let failure = loop {
        if most.is_some_and(|most| recorded >= most) {
            break None;
        }
        let room = most.map_or(MAX_UNWRITTEN, |most| {
            usize::try_from(most - recorded).unwrap_or(MAX_UNWRITTEN).min(MAX_UNWRITTEN)
        });
        let idle_at = is_drain.then(|| Instant::now() + IDLE);
        let mut messages = tap.messages();
        let first = tokio::select! {
            message = messages.next() => message,
            () = sleep_until(deadline.into_iter().chain(idle_at).min()) => break None,
            () = shutdown.cancelled() => break None,
        };
        let (taken, failure) = take_arrived(first, &mut messages, room);
        drop(messages);
        let mut failure = failure.map(|error| with_advice(error, is_drain));
        if let Some(last) = taken.last() {
            recording.write(&taken)?;
            recorded += taken.len() as u64;
            progress.set(recorded);
            if let Err(error) = tap.acknowledge(last.delivery_id).await {
                failure = Some(with_advice(error, is_drain));
            }
        }
        if failure.is_some() {
            break failure;
        }
    };
    progress.end();
    if failure.is_none() {
        tap.close().await?;
    }
    progress.say(&format!("{recorded} messages are in {}", arguments.file.display()));
    match failure {
        Some(failure) => Err(failure),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Takes messages that have already arrived, so that they are written together: at most `room` of
/// them. Also returns the error with which the stream ended, if it did.
fn take_arrived(
    first: Option<Result<Message, BrokerError>>,
    messages: &mut (impl Stream<Item = Result<Message, BrokerError>> + Unpin),
    room: usize,
) -> (Vec<Message>, Option<BrokerError>) {
    let mut taken = Vec::new();
    let mut taken_bytes = 0;
    let mut next = Some(first);
    while let Some(message) = next {
        match message {
            Some(Ok(message)) => {
                taken_bytes += message.body.len();
                taken.push(dead_letter::as_published(message));
            }
            Some(Err(error)) => return (taken, Some(error)),
            None => {
                let message = "the broker cancelled the consumer";
                let error = BrokerError::new(BrokerErrorClass::Unavailable, message);
                return (taken, Some(error));
            }
        }
        let has_room = taken.len() < room && taken_bytes < MAX_UNWRITTEN_BYTES;
        next = has_room.then(|| messages.next().now_or_never()).flatten();
    }
    (taken, None)
}

/// Adds what to do, if a message that cannot be read has closed the connection.
fn with_advice(error: BrokerError, is_drain: bool) -> anyhow::Error {
    let is_unreadable = error.class == BrokerErrorClass::Unreadable;
    let error = anyhow::Error::from(error);
    match (is_unreadable, is_drain) {
        (false, _) => error,
        (true, false) => error.context(
            "a message whose properties cannot be read has closed the connection, and the private \
             queue was deleted with it: start another capture, in a new file",
        ),
        (true, true) => error.context(
            "the next message of the queue has properties that cannot be read, so the messages \
             behind it cannot be reached: remove it with another client (a dead letter with \
             `celeriac dead purge --unreadable`)",
        ),
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// The file that is being written.
struct Recording {
    file: File,
    path: PathBuf,
    compression: Compression,
}

impl Recording {
    /// Refuses names of compression formats that are not supported, and standard output.
    fn check(path: &Path) -> anyhow::Result<()> {
        if let Some("xz" | "bz2" | "-") =
            path.extension().or(path.file_name()).and_then(OsStr::to_str)
        {
            bail!(UsageError(format!(
                "{} cannot be made: name a file, with .gz or .zst to compress it",
                path.display()
            )));
        }
        Ok(())
    }

    fn create(path: &Path) -> anyhow::Result<Self> {
        let made = create_private(path).and_then(|file| {
            // Syncs the folder too, so that the file's name is not lost in a crash.
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
            Ok(file)
        });
        let file =
            made.with_context(|| format!("{} cannot be made: name a new file", path.display()))?;
        Ok(Self { file, path: path.to_owned(), compression: Compression::of(path) })
    }

    /// Writes messages and syncs them to disk. In a compressed file each call writes a complete
    /// gzip member or zstd frame, so an interrupted file can be read up to the last call.
    fn write(&mut self, messages: &[Message]) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for message in messages {
            lines.extend_from_slice(capture::write(message).as_bytes());
            lines.push(b'\n');
        }
        let written = match self.compression {
            Compression::None => Ok(lines),
            Compression::Gzip => gzip(&lines),
            Compression::Zstd => zstd::encode_all(&*lines, 3),
        };
        written
            .and_then(|bytes| {
                self.file.write_all(&bytes)?;
                self.file.sync_data()
            })
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn gzip(lines: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(lines)?;
    encoder.finish()
}
