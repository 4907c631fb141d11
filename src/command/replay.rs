//! `celeriac replay`: stores the messages of capture files through the pipeline.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail};
use async_trait::async_trait;
use celeriac::broker::{Acknowledge, BrokerError};
use celeriac::chords::Chords;
use celeriac::config::Config;
use celeriac::decode::SourceKind;
use celeriac::hints::Hints;
use celeriac::message::Message;
use celeriac::message::capture;
use celeriac::message::dead_letter::{Reason, UNSTORABLE};
use celeriac::pipeline::{self, BatchPolicy, End, Reading};
use celeriac::row::Row;
use celeriac::row::group_result::GroupResult;
use celeriac::row::task_result::TaskResult;
use celeriac::store::{Catalog, Change, Database, Effect, Store, StoreError, Write, Written};
use celeriac::telemetry::{Counts, Telemetry};
use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{create_private, listen_for_signals, print_line};

/// How many refused messages are reported one by one.
const MAX_REPORTED: u64 = 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The capture files, plain or compressed with gzip, zstd, xz or bzip2; `-` is standard input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Only decodes and merges the messages, and prints each row that would be written as a JSON
    /// object on one line, including arguments and results.
    #[arg(long)]
    dry_run: bool,

    /// Also stores what the messages tell about chords, so that a daemon sends the bodies of complete
    /// ones. Use this only for messages that no daemon has processed, because bodies would run again.
    #[arg(long, conflicts_with = "dry_run")]
    chords: bool,

    /// Writes the messages that were refused to this file, so that they can be replayed later.
    #[arg(long, value_name = "FILE")]
    refused: Option<PathBuf>,
}

/// Replays the files.
#[tokio::main]
pub(crate) async fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<ExitCode> {
    let shutdown = CancellationToken::new();
    listen_for_signals(shutdown.clone())?;
    // Checks all files before the first message is stored.
    for path in arguments.files.iter().filter(|path| path.as_os_str() != "-") {
        File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    }
    if arguments.dry_run {
        replay(arguments, config, &mut Printer::default(), &shutdown).await
    } else {
        let mut store = Database::new(config).context("database")?.store();
        replay(arguments, config, &mut store, &shutdown).await
    }
}

async fn replay(
    arguments: &Arguments,
    config: &Config,
    store: &mut dyn Store,
    shutdown: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let report = Arc::new(Report::new(arguments, shutdown.clone())?);
    let (sender, mut receiver) = mpsc::channel(config.max_rows);
    let byte_limit = ByteLimit::new(config.max_bytes);
    // In a separate thread, because reading from standard input cannot be cancelled.
    let feeder = std::thread::spawn({
        let (files, report) = (arguments.files.clone(), Arc::clone(&report));
        let max_line_bytes = max_line_bytes(config.decoder.limits.body_bytes);
        let byte_limit = byte_limit.clone();
        move || feed(&files, max_line_bytes, &report, &byte_limit, &sender)
    });
    let messages = stream::poll_fn(|context| receiver.poll_recv(context)).map(|message| {
        byte_limit.release(&message);
        Ok(message)
    });
    let telemetry = Telemetry::new();
    let lane = telemetry.lane("replay", "");
    let (hints, chords) = (Hints::off(), Chords::without_sending(arguments.chords));
    let reading = Reading {
        decoder: &config.decoder,
        kind: SourceKind::ByExchange(&config.event_exchange),
        lane: &lane,
        hints: &hints,
        chords: &chords,
    };
    let policy = BatchPolicy::of(config);
    let end = pipeline::run(messages, reading, store, &*report, policy, shutdown).await;
    report.end();
    report.summarize(&telemetry.counts(), arguments.dry_run);
    match end {
        End::Stopped => {}
        End::StoreUnavailable(error, _) => bail!("the database cannot be written: {error}"),
        End::BrokerLost(error) | End::DeadLettersFailed(error) => return Err(error.into()),
    }
    if let Some(failure) = lock(&report.failure).take() {
        return Err(failure);
    }
    if shutdown.is_cancelled() {
        bail!(
            "interrupted: replay the same files again; messages that are already stored change nothing"
        );
    }
    match feeder.join() {
        Ok(fed) => fed?,
        Err(_) => bail!("the thread that reads the files has failed"),
    }
    report.finish()
}

/// The longest line, in bytes: the largest body in base64, and 1 MiB for the rest.
fn max_line_bytes(body_bytes: usize) -> u64 {
    let line = body_bytes.saturating_mul(4) / 3 + (1 << 20);
    u64::try_from(line).unwrap_or(u64::MAX)
}

/// Sends the messages of the files, numbered by their lines, until the end of the files or until
/// the receiver is closed.
fn feed(
    files: &[PathBuf],
    max_line_bytes: u64,
    report: &Arc<Report>,
    byte_limit: &ByteLimit,
    sender: &mpsc::Sender<Message>,
) -> anyhow::Result<()> {
    let mut number = 0;
    for path in files {
        let mut lines = report.open(path, number)?;
        let mut line = Vec::new();
        loop {
            line.clear();
            let cannot_read = || format!("{} cannot be read", path.display());
            let length = (&mut lines)
                .take(max_line_bytes)
                .read_until(b'\n', &mut line)
                .with_context(cannot_read)?;
            if length == 0 {
                break;
            }
            number += 1;
            if line.last() != Some(&b'\n') && u64::try_from(length).unwrap_or(0) == max_line_bytes {
                report.refuse_line(number, "the line is too long: raise max-body-size");
                skip_line(&mut lines).with_context(cannot_read)?;
                continue;
            }
            let Ok(text) = std::str::from_utf8(&line) else {
                report.refuse_line(number, "the line is not UTF-8");
                continue;
            };
            if text.trim().is_empty() {
                continue;
            }
            match capture::read(text, Utc::now(), number) {
                Ok(message) => {
                    byte_limit.acquire(&message);
                    if sender.blocking_send(message).is_err() {
                        return Ok(());
                    }
                }
                Err(error) => report.refuse_line(number, &error.to_string()),
            }
        }
    }
    Ok(())
}

/// Limits the bytes of messages that were read and not yet taken by the pipeline, to the size of a
/// batch. A single message may be larger.
#[derive(Clone)]
struct ByteLimit {
    bytes: Arc<(Mutex<usize>, Condvar)>,
    most: usize,
}

impl ByteLimit {
    fn new(most: usize) -> Self {
        Self { bytes: Arc::default(), most }
    }

    fn acquire(&self, message: &Message) {
        let (bytes, released) = &*self.bytes;
        let size = message.body.len();
        let is_full = |bytes: &mut usize| *bytes > 0 && *bytes + size > self.most;
        let mut bytes =
            released.wait_while(lock(bytes), is_full).unwrap_or_else(PoisonError::into_inner);
        *bytes += size;
    }

    fn release(&self, message: &Message) {
        let (bytes, released) = &*self.bytes;
        *lock(bytes) -= message.body.len();
        released.notify_one();
    }
}

/// Skips the rest of a line.
fn skip_line(lines: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let bytes = lines.fill_buf()?;
        let (passed, is_over) = match bytes.iter().position(|&byte| byte == b'\n') {
            Some(position) => (position + 1, true),
            None => (bytes.len(), bytes.is_empty()),
        };
        lines.consume(passed);
        if is_over {
            return Ok(());
        }
    }
}

/// Reads a file, decompressed according to its first bytes.
fn decompressed(file: impl Read + Send + 'static) -> anyhow::Result<Box<dyn BufRead + Send>> {
    let mut file = BufReader::with_capacity(1 << 16, file);
    let head = file.fill_buf()?;
    Ok(match head {
        [0x1F, 0x8B, ..] => Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(file))),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Box::new(BufReader::new(zstd::Decoder::with_buffer(file)?)),
        [0xFD, b'7', b'z', b'X', b'Z', ..] => {
            Box::new(BufReader::new(liblzma::bufread::XzDecoder::new_multi_decoder(file)))
        }
        [b'B', b'Z', b'h', ..] => {
            Box::new(BufReader::new(bzip2::bufread::MultiBzDecoder::new(file)))
        }
        _ => Box::new(file),
    })
}

/// Counts and prints what happens to the messages, and keeps the refused ones if the user asked for
/// it.
struct Report {
    progress: Mutex<Progress>,
    /// The number of bytes that were read from the files.
    bytes: Arc<AtomicU64>,
    /// Each opened file, with the number of lines in the files before it.
    files: Mutex<Vec<(u64, String)>>,
    /// The number of messages and lines that were refused.
    refused: AtomicU64,
    /// The number of lines that are not a message.
    bad_lines: AtomicU64,
    keep: Option<(PathBuf, Mutex<BufWriter<File>>)>,
    /// The error of writing refused messages.
    failure: Mutex<Option<anyhow::Error>>,
    shutdown: CancellationToken,
}

impl Report {
    fn new(arguments: &Arguments, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
        let total = arguments.files.iter().map(size).sum();
        let keep = arguments.refused.as_ref().map(|path| {
            let file = create_private(path).with_context(|| {
                format!("refused: {} cannot be made: name a new file", path.display())
            })?;
            anyhow::Ok((path.clone(), Mutex::new(BufWriter::new(file))))
        });
        Ok(Self {
            progress: Mutex::new(Progress::of_bytes(total)),
            bytes: Arc::default(),
            files: Mutex::default(),
            refused: AtomicU64::default(),
            bad_lines: AtomicU64::default(),
            keep: keep.transpose()?,
            failure: Mutex::default(),
            shutdown,
        })
    }

    fn open(&self, path: &Path, lines_before: u64) -> anyhow::Result<Box<dyn BufRead + Send>> {
        lock(&self.files).push((lines_before, path.display().to_string()));
        let read = Arc::clone(&self.bytes);
        if path.as_os_str() == "-" {
            return decompressed(Counting { file: std::io::stdin(), read });
        }
        let opened = File::open(path).map_err(anyhow::Error::from);
        opened
            .and_then(|file| decompressed(Counting { file, read }))
            .with_context(|| format!("{} cannot be read", path.display()))
    }

    /// The file and the line in it that belong to a message number.
    fn place(&self, number: u64) -> String {
        let files = lock(&self.files);
        match files.iter().rev().find(|(before, _)| *before < number) {
            Some((before, name)) => format!("{name}:{}", number - before),
            None => format!("line {number}"),
        }
    }

    fn refuse_line(&self, number: u64, problem: &str) {
        self.bad_lines.fetch_add(1, Ordering::Relaxed);
        self.report_refusal(number, problem);
    }

    fn report_refusal(&self, number: u64, problem: &str) {
        let reported = self.refused.fetch_add(1, Ordering::Relaxed);
        if reported < MAX_REPORTED {
            lock(&self.progress).say(&format!("{}: {problem}", self.place(number)));
        } else if reported == MAX_REPORTED {
            lock(&self.progress).say("further refused messages are only counted");
        }
    }

    fn end(&self) {
        lock(&self.progress).end();
    }

    fn summarize(&self, counts: &Counts, is_dry_run: bool) {
        let Counts { messages, rows_read, rows_written, dead } = counts;
        let unstorable = dead.get(UNSTORABLE).copied().unwrap_or_default();
        let merged = rows_read.saturating_sub(rows_written + unstorable);
        let would_be = if is_dry_run { "would be written" } else { "written" };
        let mut summary = format!(
            "{messages} messages with {rows_read} rows: {rows_written} rows {would_be}, {merged} \
             merged into them"
        );
        let refused = self.refused.load(Ordering::Relaxed);
        let bad_lines = self.bad_lines.load(Ordering::Relaxed);
        if refused > 0 {
            let _ = write!(summary, "; {refused} refused");
        }
        for (reason, count) in dead {
            let _ = write!(summary, ", {count} of them {reason}");
        }
        if bad_lines > 0 {
            let _ = write!(summary, ", {bad_lines} of them lines that are not a message");
        }
        lock(&self.progress).say(&summary);
    }

    fn finish(&self) -> anyhow::Result<ExitCode> {
        if let Some((path, file)) = &self.keep {
            lock(file).flush().with_context(|| format!("cannot write {}", path.display()))?;
        }
        let is_good = self.refused.load(Ordering::Relaxed) == 0;
        Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Acknowledge for Report {
    async fn acknowledge(&self, _messages: &[Message]) -> Result<(), BrokerError> {
        lock(&self.progress).set(self.bytes.load(Ordering::Relaxed));
        Ok(())
    }

    async fn dead_letter(&self, letters: &[(&Message, &Reason)]) -> Result<(), BrokerError> {
        for (message, reason) in letters {
            self.report_refusal(
                message.delivery_id.0,
                &format!("{}: {}", reason.code, reason.error),
            );
            if let Some((path, file)) = &self.keep {
                let line = capture::write(message);
                if let Err(error) = writeln!(lock(file), "{line}") {
                    // Returning an error would make the pipeline retry, which does not help with a
                    // file.
                    let cannot_write = format!("cannot write {}", path.display());
                    *lock(&self.failure) = Some(anyhow::Error::new(error).context(cannot_write));
                    self.shutdown.cancel();
                }
            }
        }
        Ok(())
    }

    /// Ends the pipeline without waiting for the rest of the files.
    async fn stop(&self) -> bool {
        false
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts the bytes that are read from a file.
struct Counting<F> {
    file: F,
    read: Arc<AtomicU64>,
}

impl<F: Read> Read for Counting<F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// A store that prints the rows and writes nothing, for `--dry-run`.
#[derive(Default)]
struct Printer {
    catalog: Catalog,
}

#[async_trait]
impl Store for Printer {
    async fn prepare(&mut self) -> Result<&Catalog, StoreError> {
        Ok(&self.catalog)
    }

    async fn store(
        &mut self,
        writes: &[Write<'_>],
        _changes: &mut Vec<Change>,
    ) -> Result<Written, StoreError> {
        for write in writes {
            print_line(&columns(write.row).to_string());
        }
        let tasks = Effect { rows: writes.len() as u64, ..Effect::default() };
        Ok(Written { tasks, ..Written::default() })
    }
}

/// The columns of a row, by name.
fn columns(row: &Row) -> serde_json::Value {
    let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Micros, true);
    match row {
        Row::Task(TaskResult {
            task_id, outcome, description, date_created, date_started, ..
        }) => {
            json!({
                "table": "django_celery_results_taskresult",
                "task_id": task_id,
                "status": outcome.status.as_str(),
                "content_type": outcome.content_type,
                "content_encoding": outcome.content_encoding,
                "result": outcome.result,
                "traceback": outcome.traceback,
                "meta": outcome.meta,
                "task_name": description.task_name,
                "task_args": description.task_args,
                "task_kwargs": description.task_kwargs,
                "worker": description.worker,
                "periodic_task_name": description.periodic_task_name,
                "queue": description.queue,
                "retries": description.retries,
                "date_created": time(*date_created),
                "date_started": date_started.map(time),
                "date_done": time(outcome.date_done),
            })
        }
        Row::Group(GroupResult {
            group_id,
            content_type,
            content_encoding,
            result,
            date_created,
            date_done,
        }) => {
            json!({
                "table": "django_celery_results_groupresult",
                "group_id": group_id,
                "content_type": content_type,
                "content_encoding": content_encoding,
                "result": result,
                "date_created": time(*date_created),
                "date_done": time(*date_done),
            })
        }
    }
}
