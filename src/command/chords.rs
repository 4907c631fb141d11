//! `celeriac chords`: shows the chords that are open.

use std::process::ExitCode;

use anyhow::{Context, bail};
use celeriac::config::Config;
use celeriac::store::{ChordStore, Database, OpenChord};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;

use super::{print_line, printable, say};

/// How many members `show` names.
const NAMED: usize = 20;

#[derive(Clone, clap::Subcommand)]
pub(crate) enum Action {
    /// Lists the open chords, the oldest first.
    List {
        /// Prints one JSON object for each chord.
        #[arg(long)]
        json: bool,
    },
    /// Shows what an open chord waits for.
    Show {
        /// The id of the chord, which is that of its header's group.
        id: String,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the action.
#[tokio::main]
pub(crate) async fn run(action: &Action, config: &Config) -> anyhow::Result<ExitCode> {
    let mut store = Database::new(config).context("database")?.chords();
    if let Err(problem) = store.is_usable().await? {
        bail!(
            "there are no open chords, because their tables cannot be used: {problem}. Run `python \
             manage.py migrate celeriac` or `celeriac migrate`"
        );
    }
    match action {
        Action::List { json } => list(&mut store, *json).await,
        Action::Show { id, json } => show(&mut store, id, *json).await,
    }
}

async fn list(store: &mut ChordStore, json: bool) -> anyhow::Result<ExitCode> {
    let chords = store.open(None).await?;
    if json {
        for chord in &chords {
            print_line(&object(chord).to_string());
        }
        return Ok(ExitCode::SUCCESS);
    }
    if chords.is_empty() {
        say("there are no open chords");
        return Ok(ExitCode::SUCCESS);
    }
    print_line(
        "APPLIED               AWAITED  MEMBERS  ID                                    STATE",
    );
    for chord in &chords {
        let (applied_at, awaited, members) = (time(chord.applied_at), chord.awaited, chord.members);
        let (id, state) = (printable(&chord.group_id), state(chord));
        print_line(&format!("{applied_at:<20}  {awaited:>7}  {members:>7}  {id:<36}  {state}"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(store: &mut ChordStore, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    let Some(chord) = store.open(Some(id)).await?.pop() else {
        bail!(
            "there is no open chord {}: it has ended, or was never handed to the daemon",
            printable(id)
        );
    };
    let awaited = store.awaited(id, if json { 100_000 } else { NAMED }).await?;
    if json {
        let mut object = object(&chord);
        object["awaited_ids"] = json!(awaited);
        print_line(&object.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    print_line(&format!("chord       {}", printable(&chord.group_id)));
    print_line(&format!("applied     {}", time(chord.applied_at)));
    print_line(&format!("expires     {}", time(chord.expires_at)));
    print_line(&format!("state       {}", state(&chord)));
    print_line(&format!(
        "members     {}, of which {} have not ended",
        chord.members, chord.awaited
    ));
    for id in &awaited {
        print_line(&format!("  awaited   {}", printable(id)));
    }
    if let Some(more) = usize::try_from(chord.awaited).ok().and_then(|all| all.checked_sub(NAMED))
        && more > 0
    {
        print_line(&format!("  and {more} more"));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the chord waits for, in a few words.
fn state(chord: &OpenChord) -> String {
    if let Some(problem) = &chord.problem {
        return format!("cannot be unlocked: {}", printable(problem));
    }
    match (chord.unlock_at, chord.unlocks) {
        (None, _) => "waits for members".to_owned(),
        (Some(_), 0) => "is being unlocked".to_owned(),
        (Some(_), _) => "waits for a worker to unlock it".to_owned(),
    }
}

fn time(time: Option<DateTime<Utc>>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

fn object(chord: &OpenChord) -> serde_json::Value {
    let time = |time: Option<DateTime<Utc>>| {
        time.map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true))
    };
    json!({
        "id": chord.group_id,
        "applied_at": time(chord.applied_at),
        "expires_at": time(chord.expires_at),
        "unlock_at": time(chord.unlock_at),
        "unlocks": chord.unlocks,
        "problem": chord.problem,
        "members": chord.members,
        "awaited": chord.awaited,
    })
}
