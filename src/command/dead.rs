//! `celeriac dead`: lists, shows, replays and deletes dead letters.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use celeriac::broker::rabbitmq::dead_queue::{self, DeadQueue, Replayer};
use celeriac::broker::{BrokerError, BrokerErrorClass};
use celeriac::config::Config;
use celeriac::message::Message;
use celeriac::message::capture;
use celeriac::message::dead_letter::{self, DeadLetter};
use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::exit::UsageError;
use super::progress::Progress;
use super::{listen_for_signals, print, print_line, printable, say};

/// The most letters, and the most bytes, that are sent back together.
const MAX_TOGETHER: usize = 200;
const MAX_TOGETHER_BYTES: usize = 4 << 20;

#[derive(clap::Subcommand)]
pub(crate) enum Action {
    /// Lists the dead letters.
    List {
        #[command(flatten)]
        selection: Selection,

        /// The maximum number of letters to list; 0 lists all.
        #[arg(long, value_name = "NUMBER", default_value_t = 100)]
        limit: usize,

        /// Prints each letter as a JSON object on one line.
        #[arg(long)]
        json: bool,
    },

    /// Shows one dead letter: the reason, the properties and the headers.
    Show {
        /// The id that `list` shows.
        id: String,

        /// Writes only the body, unchanged, to standard output.
        #[arg(long, conflicts_with = "json")]
        body: bool,

        /// Prints the letter as a line of a capture file, with its body.
        #[arg(long)]
        json: bool,
    },

    /// Sends dead letters back to the queues they came from.
    ///
    /// A letter is removed only after the broker has confirmed that it is in its original queue, so
    /// nothing is lost if the command is interrupted. Sending a letter twice changes nothing.
    /// A message that still cannot be stored becomes a dead letter again.
    Replay {
        #[command(flatten)]
        selection: Selection,

        /// Selects all dead letters.
        #[arg(long)]
        all: bool,
    },

    /// Deletes dead letters. It asks first.
    Purge {
        #[command(flatten)]
        selection: Selection,

        /// Selects all dead letters.
        #[arg(long)]
        all: bool,

        /// Selects the dead letters whose properties cannot be read. They cannot be shown or
        /// replayed, and the letters behind them in the queue cannot be reached.
        #[arg(long, conflicts_with_all = ["all", "reason", "id", "older_than", "newer_than"])]
        unreadable: bool,

        /// Deletes without asking.
        #[arg(long)]
        yes: bool,
    },
}

/// The options that select dead letters. A letter must match all of them.
#[derive(clap::Args)]
pub(crate) struct Selection {
    /// Selects letters with this reason, such as `undecodable`; can be given several times.
    #[arg(long, value_name = "CODE")]
    reason: Vec<String>,

    /// Selects letters with this id; can be given several times.
    #[arg(long, value_name = "ID")]
    id: Vec<String>,

    /// Selects letters that are older than this, such as 30m or 7days.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,

    /// Selects letters that are not older than this.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
}

impl Selection {
    fn is_empty(&self) -> bool {
        self.reason.is_empty()
            && self.id.is_empty()
            && self.older_than.is_none()
            && self.newer_than.is_none()
    }

    fn matches(&self, letter: &DeadLetter, now: DateTime<Utc>) -> bool {
        // A letter without a time matches neither `--older-than` nor `--newer-than`.
        let age = letter.time.map(|time| (now - time).to_std().unwrap_or_default());
        let is_wanted = |wanted: &[String], text| wanted.is_empty() || wanted.contains(text);
        is_wanted(&self.reason, &letter.reason)
            && is_wanted(&self.id, &letter.id)
            && self.older_than.is_none_or(|limit| age.is_some_and(|age| age > limit))
            && self.newer_than.is_none_or(|limit| age.is_some_and(|age| age <= limit))
    }

    /// Fails if ids were given and no letter has one of them.
    fn require_found(&self, found: usize) -> anyhow::Result<()> {
        if !self.id.is_empty() && found == 0 {
            bail!("no dead letter has such an id: `celeriac dead list` shows the ids");
        }
        Ok(())
    }

    /// Fails unless the user gave either a selection or `--all`, but not both.
    fn require(&self, all: bool) -> anyhow::Result<()> {
        match (self.is_empty(), all) {
            (true, false) => bail!(UsageError(
                "say which dead letters: --reason, --id, --older-than, --newer-than, or --all"
                    .to_owned()
            )),
            (false, true) => bail!(UsageError(
                "--all and a selection exclude each other: leave one out".to_owned()
            )),
            _ => Ok(()),
        }
    }
}

/// Runs the action.
#[tokio::main]
pub(crate) async fn run(action: Action, config: &Config) -> anyhow::Result<ExitCode> {
    let shutdown = CancellationToken::new();
    listen_for_signals(shutdown.clone())?;
    match &action {
        Action::Replay { selection, all }
        | Action::Purge { selection, all, unreadable: false, .. } => selection.require(*all)?,
        Action::Purge { .. } | Action::List { .. } | Action::Show { .. } => {}
    }
    let Some(queue) = DeadQueue::open(config).await? else {
        say(&format!(
            "there is no queue {}: there are no dead letters yet, or --dead-queue names another queue",
            config.dead_queue
        ));
        return Ok(ExitCode::SUCCESS);
    };
    match action {
        Action::List { selection, limit, json } => {
            list(queue, &selection, limit, json, &shutdown).await
        }
        Action::Show { id, body, json } => show(queue, &id, body, json, &shutdown).await,
        Action::Replay { selection, .. } => replay(queue, config, &selection, &shutdown).await,
        Action::Purge { unreadable: true, yes, .. } => {
            queue.close().await?;
            let question = format!(
                "Delete the dead letters in {} whose properties cannot be read?",
                config.dead_queue
            );
            confirm(yes, &question, &shutdown).await?;
            let purged = tokio::select! {
                purged = dead_queue::purge_unreadable(config) => purged?,
                () = shutdown.cancelled() => bail!("interrupted"),
            };
            say(&format!("{purged} dead letters were deleted"));
            Ok(ExitCode::SUCCESS)
        }
        Action::Purge { selection, yes, .. } => {
            purge(queue, config, &selection, yes, &shutdown).await
        }
    }
}

/// Reads the letters of the queue one by one and shows the progress.
struct Letters<'shutdown> {
    queue: DeadQueue,
    progress: Progress,
    shutdown: &'shutdown CancellationToken,
    now: DateTime<Utc>,
}

impl<'shutdown> Letters<'shutdown> {
    fn begin(queue: DeadQueue, shutdown: &'shutdown CancellationToken) -> Self {
        let progress = Progress::new(queue.remaining().into(), "dead letters");
        Self { queue, progress, shutdown, now: Utc::now() }
    }

    async fn next(&mut self) -> anyhow::Result<Option<(DeadLetter, Message)>> {
        let message = tokio::select! {
            message = self.queue.next() => message.map_err(with_advice)?,
            () = self.shutdown.cancelled() => None,
        };
        let Some(message) = message else { return Ok(None) };
        self.progress.add_one();
        Ok(Some((DeadLetter::of(&message), message)))
    }

    /// Closes the connection, which returns the letters that were not removed to the queue.
    async fn end(self) -> anyhow::Result<()> {
        self.progress.end();
        self.queue.close().await?;
        if self.shutdown.is_cancelled() {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Adds what to do, if the next letter cannot be read.
fn with_advice(error: BrokerError) -> anyhow::Error {
    let is_unreadable = error.class == BrokerErrorClass::Unreadable;
    let error = anyhow::Error::from(error);
    if !is_unreadable {
        return error;
    }
    error.context(
        "the next dead letter has properties that cannot be read, so the letters behind it cannot be \
         reached: `celeriac dead purge --unreadable` deletes only such letters",
    )
}

async fn list(
    queue: DeadQueue,
    selection: &Selection,
    limit: usize,
    json: bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let total = queue.remaining();
    let mut queue_letters = Letters::begin(queue, shutdown);
    let mut letters = Vec::new();
    let mut failure = None;
    while limit == 0 || letters.len() < limit {
        let letter = match queue_letters.next().await {
            Ok(Some((letter, _))) => letter,
            Ok(None) => break,
            Err(error) => {
                failure = Some(error);
                break;
            }
        };
        if !selection.matches(&letter, queue_letters.now) {
            continue;
        }
        if json {
            print_line(&serde_json::to_string(&letter)?);
        }
        letters.push(letter);
    }
    let unseen = queue_letters.queue.remaining();
    // A connection that has failed cannot be closed cleanly.
    match failure {
        Some(_) => queue_letters.progress.end(),
        None => queue_letters.end().await?,
    }
    if !json {
        letters.sort_by_key(|letter| letter.time);
        print_line(&table(&letters));
    }
    let mut summary = format!("{} of {total} dead letters", letters.len());
    if unseen > 0 {
        let _ = write!(summary, "; {unseen} were not looked at");
        if failure.is_none() {
            summary.push_str(": list more with --limit 0");
        }
    }
    say(&summary);
    if let Some(failure) = failure {
        return Err(failure);
    }
    selection.require_found(letters.len())?;
    Ok(ExitCode::SUCCESS)
}

/// The letters as a table; each column is as wide as its longest cell.
fn table(letters: &[DeadLetter]) -> String {
    let time = |time: &DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let head = ["ID", "DIED", "REASON", "QUEUE", "BYTES", "CORRELATION ID", "ERROR"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(letters.iter().map(|letter| {
        [
            letter.id.clone(),
            letter.time.as_ref().map_or_else(|| "-".to_owned(), time),
            letter.reason.clone(),
            or_dash(&letter.queue),
            letter.size_bytes.to_string(),
            or_dash(&letter.correlation_id),
            or_dash(&letter.error),
        ]
    }));
    // Text from a message must not contain characters that move the cursor.
    let rows: Vec<_> = rows.into_iter().map(|row| row.map(|cell| printable(&cell))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..head.len()).map(|column| width(column).unwrap_or_default()).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

async fn show(
    queue: DeadQueue,
    id: &str,
    body: bool,
    json: bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let mut queue_letters = Letters::begin(queue, shutdown);
    let found = loop {
        match queue_letters.next().await? {
            Some((letter, message)) if letter.id == id => break Some((letter, message)),
            Some(_) => {}
            None => break None,
        }
    };
    queue_letters.end().await?;
    let Some((letter, message)) = found else {
        bail!("no dead letter has the id {id:?}: `celeriac dead list` shows the ids");
    };
    if body {
        print(&message.body);
    } else if json {
        print_line(&capture::write(&dead_letter::as_published(message)));
    } else {
        print_line(&description(&letter, &message));
    }
    Ok(ExitCode::SUCCESS)
}

fn description(letter: &DeadLetter, message: &Message) -> String {
    // The line of a capture file contains every property and header with its name.
    let line = serde_json::from_str::<serde_json::Value>(&capture::write(message));
    let line = line.unwrap_or_default();
    let mut text = String::new();
    let mut add = |name: &str, value: &serde_json::Value| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let _ = writeln!(text, "{name:28} {}", printable(&value));
    };
    let fields = serde_json::to_value(letter).unwrap_or_default();
    for (name, value) in fields.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null()) {
        add(name, value);
    }
    for part in ["properties", "headers"] {
        for (name, value) in line[part].as_object().into_iter().flatten() {
            add(&format!("{part}.{name}"), value);
        }
    }
    text.trim_end().to_owned()
}

async fn replay(
    queue: DeadQueue,
    config: &Config,
    selection: &Selection,
    shutdown: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let mut queue_letters = Letters::begin(queue, shutdown);
    let mut replay = Replay::begin(config).await?;
    let mut chosen = 0;
    loop {
        let next = queue_letters.next().await?;
        let is_over = next.is_none();
        if let Some((letter, message)) = next
            && selection.matches(&letter, queue_letters.now)
        {
            chosen += 1;
            replay.add(letter.queue, message);
        }
        if is_over || replay.is_full() {
            replay.send(&mut queue_letters.queue, config).await?;
        }
        if is_over {
            break;
        }
    }
    let ended = queue_letters.end().await;
    replay.report();
    ended?;
    selection.require_found(chosen)?;
    Ok(if replay.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Dead letters on their way back to their queues, and how many could not be sent back.
struct Replay {
    replayer: Replayer,
    waiting: BTreeMap<String, Vec<Message>>,
    waiting_bytes: usize,
    replayed: usize,
    /// The letters that the broker did not take, by queue.
    refused: BTreeMap<String, usize>,
    without_queue: usize,
}

impl Replay {
    async fn begin(config: &Config) -> Result<Self, BrokerError> {
        Ok(Self {
            replayer: Replayer::open(config).await?,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            replayed: 0,
            refused: BTreeMap::new(),
            without_queue: 0,
        })
    }

    fn add(&mut self, queue: Option<String>, message: Message) {
        let Some(queue) = queue else {
            self.without_queue += 1;
            return;
        };
        if let Some(refused) = self.refused.get_mut(&queue) {
            *refused += 1;
            return;
        }
        self.waiting_bytes += message.body.len();
        self.waiting.entry(queue).or_default().push(message);
    }

    fn is_full(&self) -> bool {
        let together = self.waiting.values().map(Vec::len).sum::<usize>();
        together >= MAX_TOGETHER || self.waiting_bytes >= MAX_TOGETHER_BYTES
    }

    /// Publishes the waiting letters, and removes from the dead-letter queue those that the broker
    /// has confirmed.
    async fn send(&mut self, queue: &mut DeadQueue, config: &Config) -> Result<(), BrokerError> {
        self.waiting_bytes = 0;
        for (name, letters) in std::mem::take(&mut self.waiting) {
            match self.replayer.publish(&name, &letters).await {
                Ok(()) => {
                    let ids: Vec<_> = letters.iter().map(|letter| letter.delivery_id).collect();
                    queue.remove(&ids).await?;
                    self.replayed += letters.len();
                }
                Err(error) if error.class == BrokerErrorClass::Refused => {
                    // A publisher is not used again after an error.
                    self.replayer = Replayer::open(config).await?;
                    self.refused.insert(name, letters.len());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn report(&self) {
        say(&format!("{} dead letters were sent back to their queues", self.replayed));
        for (queue, letters) in &self.refused {
            say(&format!(
                "{letters} were left: the broker did not take them for the queue {queue}"
            ));
        }
        if self.without_queue > 0 {
            let letters = self.without_queue;
            say(&format!("{letters} were left: they do not say which queue they came from"));
        }
    }

    fn is_complete(&self) -> bool {
        self.without_queue == 0 && self.refused.is_empty()
    }
}

async fn purge(
    queue: DeadQueue,
    config: &Config,
    selection: &Selection,
    yes: bool,
    shutdown: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let total = queue.remaining();
    if selection.is_empty() {
        let question = format!("Delete all {total} dead letters in {}?", config.dead_queue);
        confirm(yes, &question, shutdown).await?;
        let purged = queue.purge().await?;
        queue.close().await?;
        say(&format!("{purged} dead letters were deleted"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut queue_letters = Letters::begin(queue, shutdown);
    let mut chosen = Vec::new();
    while let Some((letter, message)) = queue_letters.next().await? {
        if selection.matches(&letter, queue_letters.now) {
            chosen.push(message.delivery_id);
        }
    }
    if shutdown.is_cancelled() {
        return queue_letters.end().await.map(|()| ExitCode::FAILURE);
    }
    queue_letters.progress.end();
    selection.require_found(chosen.len())?;
    let question = format!("Delete {} of the {total} dead letters?", chosen.len());
    confirm(yes, &question, shutdown).await?;
    queue_letters.queue.remove(&chosen).await?;
    queue_letters.end().await?;
    say(&format!("{} dead letters were deleted", chosen.len()));
    Ok(ExitCode::SUCCESS)
}

/// Asks for confirmation, unless `--yes` was given.
async fn confirm(yes: bool, question: &str, shutdown: &CancellationToken) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!(
            "standard input is not a terminal, so the question cannot be asked: add --yes to delete"
        );
    }
    say(&format!("{question} [y/N]"));
    let (sender, answer) = oneshot::channel();
    // In a separate thread, because reading from a terminal cannot be cancelled.
    std::thread::spawn(move || {
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        sender.send(read.map(|_| answer))
    });
    let answer = tokio::select! {
        biased;
        () = shutdown.cancelled() => bail!("nothing was deleted"),
        answer = answer => answer??,
    };
    match answer.trim() {
        "y" | "Y" | "yes" if !shutdown.is_cancelled() => Ok(()),
        _ => bail!("nothing was deleted"),
    }
}
