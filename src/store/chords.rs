//! The tables of chords, `celeriac_chord` and `celeriac_chordmember`: what is told about chords is
//! recorded, and what has to be sent is found.
//!
//! A chord is complete when each of its members has been final once. Its row then has the time at
//! which the unlock message is sent next, so that nothing is forgotten if the process ends before.
//! Rows are locked in the order task, group, member, chord.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::dialect::{self, Dialect, patiently};
use super::session::Session;
use super::value::{Param, Record, first_integer};
use super::values::padded;
use super::{CHORD_MEMBERS as MEMBERS, CHORDS, ErrorClass, StoreError, TASKS};
use crate::row::chord::{Chord, ChordNews};
use crate::row::task_result::EVENT;

/// How soon an unlock message is sent again if the process that sends it ends before it has noted
/// that it was sent. The broker has less time to confirm it.
const SENDING: TimeDelta = TimeDelta::seconds(15);

/// How long a chord without an expiry is kept.
const EXPIRES: TimeDelta = TimeDelta::days(30);

/// How long a chord that has ended is remembered, so that a message about it that is delivered
/// again does not begin it anew.
const REMEMBERED: TimeDelta = TimeDelta::days(7);

/// Rows that were final longer than this before a chord was applied belong to an earlier run. The
/// clocks of the workers may differ.
const CLOCKS: TimeDelta = TimeDelta::minutes(1);

/// The same if the chord is known to be applied again.
const CLOCKS_AGAIN: TimeDelta = TimeDelta::seconds(2);

/// The most rows that one step of a sweep reads.
const SWEPT: usize = 1_000;

/// The most members whose results travel in the headers of an unlock message, and the longest of
/// these results in bytes.
const TRAVELLERS: usize = 500;
const TRAVELLER_BYTES: usize = 16_384;

/// An unlock message that has to be sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Unlock {
    /// The chord.
    pub group_id: String,
    /// The message as a line of a capture.
    pub message: String,
    /// How often it was sent before.
    pub unlocks: u32,
    /// The results of the members, as JSON arrays of the id, the state, the content type, the
    /// content encoding and the encoded result; `None` if they are too many or too large.
    pub results: Option<Vec<serde_json::Value>>,
}

/// What a sweep has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The chords whose unlock message has to be sent now.
    pub due: Vec<String>,
    /// The chords that have expired before they were complete.
    pub expired: Vec<String>,
    /// How many chords are open.
    pub open: u64,
    /// When the oldest open chord was applied.
    pub oldest: Option<DateTime<Utc>>,
}

/// A chord as `celeriac chords` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenChord {
    /// The id of the header's group.
    pub group_id: String,
    /// When it was applied, to within the tolerance for clocks.
    pub applied_at: Option<DateTime<Utc>>,
    /// When it expires.
    pub expires_at: Option<DateTime<Utc>>,
    /// When the unlock message is sent next; `None` while members are awaited.
    pub unlock_at: Option<DateTime<Utc>>,
    /// How often the unlock message was sent.
    pub unlocks: i64,
    /// Why the unlock message could not be sent.
    pub problem: Option<String>,
    /// The number of members.
    pub members: i64,
    /// The number of members that have not ended yet.
    pub awaited: i64,
}

/// Reads and changes the tables of chords, over a connection of its own.
pub struct ChordStore {
    dialect: Arc<dyn Dialect>,
    session: Option<Box<dyn Session>>,
}

impl std::fmt::Debug for ChordStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ChordStore").finish_non_exhaustive()
    }
}

impl ChordStore {
    pub(super) fn new(dialect: Arc<dyn Dialect>) -> Self {
        Self { dialect, session: None }
    }

    /// Whether the database has both tables and this user may change them.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked.
    pub async fn is_usable(&mut self) -> Result<Result<(), String>, StoreError> {
        let (dialect, mut session) = self.take().await?;
        for table in [CHORDS, MEMBERS] {
            if patiently(&*dialect, dialect.columns(&mut *session, table)).await?.is_empty() {
                self.session = Some(session);
                return Ok(Err(format!("there is no table {table}")));
            }
        }
        let rehearsed = Chords::new(&*dialect, &mut *session).rehearse().await;
        let rolled_back = patiently(&*dialect, session.execute("rollback")).await;
        if rolled_back.is_ok() {
            self.session = Some(session);
        }
        match rehearsed {
            Ok(()) => Ok(Ok(())),
            Err(error) if error.class == ErrorClass::Setup => Ok(Err(error.message)),
            Err(error) => Err(error),
        }
    }

    /// Finds what a crash, a race between daemons or a worker of an older version has left, and the
    /// chords whose unlock message is due. Those are noted as being sent.
    ///
    /// # Errors
    ///
    /// When the database refuses a statement. The next sweep finds the same.
    pub async fn sweep(&mut self) -> Result<Swept, StoreError> {
        let (dialect, mut session) = self.take().await?;
        let swept = Chords::new(&*dialect, &mut *session).sweep().await;
        self.give_back(session, swept).await
    }

    /// The unlock message of a chord; `None` if the chord has ended.
    ///
    /// # Errors
    ///
    /// When the database refuses a statement.
    pub async fn unlock(&mut self, group_id: &str) -> Result<Option<Unlock>, StoreError> {
        let (dialect, mut session) = self.take().await?;
        let unlock = Chords::new(&*dialect, &mut *session).unlock(group_id).await;
        self.give_back(session, unlock).await
    }

    /// Notes that an unlock message was sent, or why it could not be sent, and when to send it
    /// next unless a worker reports that it has processed it.
    ///
    /// # Errors
    ///
    /// When the database refuses a statement.
    pub async fn note(
        &mut self,
        group_id: &str,
        problem: Option<&str>,
        next: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let sent = if problem.is_none() { "unlocks + 1" } else { "unlocks" };
        let sql = format!(
            "update {CHORDS} set unlocks = {sent}, problem = ?, unlock_at = ?
            where group_id = ? and done_at is null"
        );
        let params =
            vec![Param::Text(problem), Param::Time(Some(next)), Param::Text(Some(group_id))];
        let (dialect, mut session) = self.take().await?;
        let noted = Chords::new(&*dialect, &mut *session).fetch(&sql, params).await.map(drop);
        self.give_back(session, noted).await
    }

    /// The open chords, the oldest first, or one of them.
    ///
    /// # Errors
    ///
    /// When the database refuses a statement.
    pub async fn open(&mut self, group_id: Option<&str>) -> Result<Vec<OpenChord>, StoreError> {
        let (dialect, mut session) = self.take().await?;
        let open = Chords::new(&*dialect, &mut *session).open(group_id).await;
        self.give_back(session, open).await
    }

    /// The ids of the members that have not ended yet, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database refuses a statement.
    pub async fn awaited(
        &mut self,
        group_id: &str,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let sql = format!(
            "select task_id from {MEMBERS} where group_id = ? and not is_final
            order by id limit {limit}"
        );
        let params = vec![Param::Text(Some(group_id))];
        let (dialect, mut session) = self.take().await?;
        let found = Chords::new(&*dialect, &mut *session).fetch(&sql, params).await.map(texts);
        self.give_back(session, found).await
    }

    /// Takes the connection, so that it is dropped if the caller is cancelled.
    async fn take(&mut self) -> Result<(Arc<dyn Dialect>, Box<dyn Session>), StoreError> {
        let dialect = Arc::clone(&self.dialect);
        let session = match self.session.take() {
            Some(session) => session,
            None => dialect::open(&*dialect).await?,
        };
        Ok((dialect, session))
    }

    /// Keeps the connection unless a statement has failed, which may have left a transaction.
    async fn give_back<T>(
        &mut self,
        session: Box<dyn Session>,
        done: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match done {
            Ok(done) => {
                self.session = Some(session);
                Ok(done)
            }
            Err(error) => {
                session.close().await;
                Err(error)
            }
        }
    }
}

/// The statements, over any connection.
pub(super) struct Chords<'store> {
    dialect: &'store dyn Dialect,
    session: &'store mut dyn Session,
    now: DateTime<Utc>,
}

impl<'store> Chords<'store> {
    pub(super) fn new(dialect: &'store dyn Dialect, session: &'store mut dyn Session) -> Self {
        Self { dialect, session, now: Utc::now() }
    }

    /// Records what messages tell, in a transaction. Returns the chords that became complete; they
    /// are noted as being sent.
    pub(super) async fn record(&mut self, news: &[&ChordNews]) -> Result<Vec<String>, StoreError> {
        let mut ended: Vec<&str> = news
            .iter()
            .filter_map(|news| match news {
                ChordNews::Ended { task_id } => Some(task_id.as_str()),
                _ => None,
            })
            .collect();
        ended.sort_unstable();
        ended.dedup();
        // Most chords of workers whose chords are not recorded end here, without a transaction.
        let mut touched = self.awaiting(&ended).await?;
        if touched.is_empty() && ended.len() == news.len() {
            return Ok(Vec::new());
        }
        dialect::begin(self.dialect, self.session).await?;
        for &news in news {
            match news {
                ChordNews::Applied(chord) => {
                    if self.apply(chord).await? {
                        touched.insert(chord.group_id.clone());
                    }
                }
                ChordNews::Added { task_id, added } => self.add(task_id, added).await?,
                ChordNews::Value { task_id, value } => {
                    touched.extend(self.keep_value(task_id, value).await?);
                }
                ChordNews::Unlocked { group_id, unlock_id } => {
                    self.end(group_id, unlock_id).await?;
                }
                ChordNews::Ended { .. } => {}
            }
        }
        if ended.len() < news.len() {
            // Members of chords that these messages themselves began or extended.
            touched.extend(self.awaiting(&ended).await?);
        }
        self.mark_final(&ended).await?;
        let complete = self.complete(&touched).await?;
        self.commit().await?;
        Ok(complete)
    }

    /// Changes both tables in a transaction that the caller rolls back.
    async fn rehearse(&mut self) -> Result<(), StoreError> {
        const ID: &str = "celeriac.check";
        let chord = Chord {
            group_id: ID.to_owned(),
            unlock_id: ID.to_owned(),
            members: vec![ID.to_owned()],
            applied_at: self.now,
            expires_at: None,
            unlock: String::new(),
        };
        dialect::begin(self.dialect, self.session).await?;
        self.apply(&chord).await?;
        self.mark_final(&[ID]).await?;
        self.complete(&BTreeSet::from([ID.to_owned()])).await?;
        self.delete(&[ID]).await
    }

    /// The chords that wait for some of the tasks.
    async fn awaiting(&mut self, ids: &[&str]) -> Result<BTreeSet<String>, StoreError> {
        let sql = format!(
            "select distinct group_id from {MEMBERS}
            where task_id in (?*) and group_id <> '' and not is_final"
        );
        Ok(texts(self.fetch_in(&sql, ids, &[]).await?).into_iter().collect())
    }

    async fn mark_final(&mut self, ids: &[&str]) -> Result<(), StoreError> {
        let sql =
            format!("update {MEMBERS} set is_final = true where task_id in (?*) and not is_final");
        self.fetch_in(&sql, ids, &[]).await.map(drop)
    }

    /// Records a chord that begins. Returns whether some of its members have already ended.
    async fn apply(&mut self, chord: &Chord) -> Result<bool, StoreError> {
        let group_id = chord.group_id.as_str();
        let sql = format!("select unlock_id, applied_at from {CHORDS} where group_id = ?");
        let known = self.fetch(&sql, vec![Param::Text(Some(group_id))]).await?;
        let mut clocks = CLOCKS;
        if let Some(mut known) = known.into_iter().next() {
            let is_same = known.text().is_some_and(|id| id == chord.unlock_id);
            if is_same || known.time().is_some_and(|applied_at| applied_at >= chord.applied_at) {
                return Ok(false);
            }
            self.delete(&[group_id]).await?;
            clocks = CLOCKS_AGAIN;
        }
        let applied_at = chord.applied_at - clocks;
        let members: Vec<&str> = chord.members.iter().map(String::as_str).collect();
        self.insert_members(group_id, &members).await?;
        let [insert, unless_there] = self.dialect.sql().insert_new;
        let sql = format!(
            "{insert} {CHORDS} (group_id, unlock_id, message, applied_at, expires_at, unlocks)
            values (?, ?, ?, ?, ?, 0) {unless_there}"
        );
        let expires_at = chord.expires_at.unwrap_or(self.now + EXPIRES);
        let params = vec![
            Param::Text(Some(group_id)),
            Param::Text(Some(&chord.unlock_id)),
            Param::Text(Some(&chord.unlock)),
            Param::Time(Some(applied_at)),
            Param::Time(Some(expires_at)),
        ];
        self.fetch(&sql, params).await?;
        let had_values = self.take_values(&members).await?;
        Ok(self.mark_those_with_rows(group_id, &members, applied_at).await? || had_values)
    }

    /// The chords that a task belongs to.
    async fn groups_of(&mut self, task_id: &str) -> Result<Vec<String>, StoreError> {
        let sql =
            format!("select distinct group_id from {MEMBERS} where task_id = ? and group_id <> ''");
        Ok(texts(self.fetch(&sql, vec![Param::Text(Some(task_id))]).await?))
    }

    /// Adds tasks to every chord that another task belongs to.
    async fn add(&mut self, task_id: &str, added: &[String]) -> Result<(), StoreError> {
        let groups = self.groups_of(task_id).await?;
        let added: Vec<&str> = added.iter().map(String::as_str).collect();
        for group_id in groups {
            self.insert_members(&group_id, &added).await?;
            self.take_values(&added).await?;
            self.mark_those_with_rows(&group_id, &added, DateTime::UNIX_EPOCH).await?;
        }
        Ok(())
    }

    async fn insert_members(&mut self, group_id: &str, ids: &[&str]) -> Result<(), StoreError> {
        let [insert, unless_there] = self.dialect.sql().insert_new;
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        for ids in ids.chunks(512) {
            let ids = padded(ids);
            // A repeated id is there already.
            let rows = vec!["(?, ?, false, ?)"; ids.len()].join(", ");
            let sql = format!(
                "{insert} {MEMBERS} (task_id, group_id, is_final, created_at)
                values {rows} {unless_there}"
            );
            let params = ids.iter().flat_map(|&id| {
                let now = Param::Time(Some(self.now));
                [Param::Text(Some(id)), Param::Text(Some(group_id)), now]
            });
            let params = params.collect();
            self.fetch(&sql, params).await?;
        }
        Ok(())
    }

    /// Moves values that came before their chords to the members of the chords. Returns whether
    /// there were any.
    async fn take_values(&mut self, ids: &[&str]) -> Result<bool, StoreError> {
        let sql =
            format!("select task_id, value from {MEMBERS} where task_id in (?*) and group_id = ''");
        let found = self.fetch_in(&sql, ids, &[]).await?;
        let had_values = !found.is_empty();
        for mut record in found {
            let (Some(task_id), Some(value)) = (record.text(), record.text()) else { continue };
            self.set_value(&task_id, &value).await?;
            let sql = format!("delete from {MEMBERS} where task_id = ? and group_id = ''");
            self.fetch(&sql, vec![Param::Text(Some(&task_id))]).await?;
        }
        Ok(had_values)
    }

    async fn set_value(&mut self, task_id: &str, value: &str) -> Result<(), StoreError> {
        let sql = format!(
            "update {MEMBERS} set is_final = true, value = coalesce(value, ?)
            where task_id = ? and group_id <> ''"
        );
        self.fetch(&sql, vec![Param::Text(Some(value)), Param::Text(Some(task_id))]).await.map(drop)
    }

    /// Keeps the result of a member, and returns the chords that it belongs to. If there is none
    /// yet, the result is kept for the chord that comes later.
    async fn keep_value(&mut self, task_id: &str, value: &str) -> Result<Vec<String>, StoreError> {
        let groups = self.groups_of(task_id).await?;
        if groups.is_empty() {
            let [insert, unless_there] = self.dialect.sql().insert_new;
            let sql = format!(
                "{insert} {MEMBERS} (task_id, group_id, is_final, value, created_at)
                values (?, '', true, ?, ?) {unless_there}"
            );
            let now = Param::Time(Some(self.now));
            self.fetch(&sql, vec![Param::Text(Some(task_id)), Param::Text(Some(value)), now])
                .await?;
        } else {
            self.set_value(task_id, value).await?;
        }
        Ok(groups)
    }

    /// Marks the members of a chord whose rows are final. Returns whether there are any.
    async fn mark_those_with_rows(
        &mut self,
        group_id: &str,
        ids: &[&str],
        since: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        let is_final = is_final("t");
        let sql = format!(
            "select t.task_id from {TASKS} t
            where t.task_id in (?*) and {is_final} and t.date_done >= ?"
        );
        let ended = texts(self.fetch_in(&sql, ids, &[Param::Time(Some(since))]).await?);
        self.mark_members(group_id, &ended).await?;
        Ok(!ended.is_empty())
    }

    async fn mark_members(&mut self, group_id: &str, ids: &[String]) -> Result<(), StoreError> {
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let sql =
            format!("update {MEMBERS} set is_final = true where task_id in (?*) and group_id = ?");
        self.fetch_in(&sql, &ids, &[Param::Text(Some(group_id))]).await.map(drop)
    }

    /// Locks chords and returns those of them that have become complete.
    async fn complete(&mut self, groups: &BTreeSet<String>) -> Result<Vec<String>, StoreError> {
        let ids: Vec<&str> = groups.iter().map(String::as_str).collect();
        let for_update = self.dialect.sql().for_update;
        let sql = format!(
            "select group_id from {CHORDS}
            where group_id in (?*) and done_at is null and unlock_at is null
            order by group_id {for_update}"
        );
        let locked = texts(self.fetch_in(&sql, &ids, &[]).await?);
        let ids: Vec<&str> = locked.iter().map(String::as_str).collect();
        let sql = format!(
            "select distinct group_id from {MEMBERS} where group_id in (?*) and not is_final"
        );
        let incomplete: BTreeSet<_> =
            texts(self.fetch_in(&sql, &ids, &[]).await?).into_iter().collect();
        let complete: Vec<_> = locked.into_iter().filter(|id| !incomplete.contains(id)).collect();
        self.note_sending(&complete).await?;
        Ok(complete)
    }

    async fn note_sending(&mut self, groups: &[String]) -> Result<(), StoreError> {
        let ids: Vec<&str> = groups.iter().map(String::as_str).collect();
        let sql = format!("update {CHORDS} set unlock_at = ? where group_id in (?*)");
        self.fetch_in(&sql, &ids, &[Param::Time(Some(self.now + SENDING))]).await.map(drop)
    }

    /// Notes that the body of a chord was sent or has failed, and forgets the members.
    async fn end(&mut self, group_id: &str, unlock_id: &str) -> Result<(), StoreError> {
        let sql = format!("delete from {MEMBERS} where group_id = ?");
        let is_known = format!("select 1 from {CHORDS} where group_id = ? and unlock_id = ?");
        let ids = || vec![Param::Text(Some(group_id)), Param::Text(Some(unlock_id))];
        if self.fetch(&is_known, ids()).await?.is_empty() {
            return Ok(());
        }
        self.fetch(&sql, vec![Param::Text(Some(group_id))]).await?;
        let sql = format!(
            "update {CHORDS} set done_at = ?, unlock_at = null, expires_at = ?, message = ''
            where group_id = ? and unlock_id = ? and done_at is null"
        );
        let times = [self.now, self.now + REMEMBERED].map(|time| Param::Time(Some(time)));
        self.fetch(&sql, [times.to_vec(), ids()].concat()).await.map(drop)
    }

    async fn delete(&mut self, groups: &[&str]) -> Result<(), StoreError> {
        for table in [MEMBERS, CHORDS] {
            let sql = format!("delete from {table} where group_id in (?*)");
            self.fetch_in(&sql, groups, &[]).await?;
        }
        Ok(())
    }

    async fn sweep(&mut self) -> Result<Swept, StoreError> {
        let mut due = self.find_complete().await?;
        due.extend(self.due().await?);
        let expired = self.expire().await?;
        let sql = format!("select count(*) from {CHORDS} where done_at is null");
        let open = first_integer(self.fetch(&sql, Vec::new()).await?);
        let open = open.and_then(|open| u64::try_from(open).ok()).unwrap_or(0);
        let sql = format!(
            "select applied_at from {CHORDS} where done_at is null order by applied_at limit 1"
        );
        let oldest = self.fetch(&sql, Vec::new()).await?.into_iter().next();
        let oldest = oldest.and_then(|mut record| record.time());
        Ok(Swept { due, expired, open, oldest })
    }

    /// Marks the members that have ended without a message that said so, and returns the chords
    /// that are complete.
    async fn find_complete(&mut self) -> Result<Vec<String>, StoreError> {
        // Members whose rows are final, and of which no message told that they are members.
        let is_final = is_final("t");
        let sql = format!(
            "select m.task_id, m.group_id from {MEMBERS} m
            join {CHORDS} c on c.group_id = m.group_id
            join {TASKS} t on t.task_id = m.task_id
            where not m.is_final and {is_final} and t.date_done >= c.applied_at
            limit {SWEPT}"
        );
        let mut ended = BTreeMap::<String, Vec<String>>::new();
        for mut record in self.fetch(&sql, Vec::new()).await? {
            if let (Some(task_id), Some(group_id)) = (record.text(), record.text()) {
                ended.entry(group_id).or_default().push(task_id);
            }
        }
        let sql = format!(
            "select o.task_id from {MEMBERS} o
            join {MEMBERS} m on m.task_id = o.task_id and m.group_id <> ''
            where o.group_id = '' limit {SWEPT}"
        );
        let early = texts(self.fetch(&sql, Vec::new()).await?);
        // Chords whose last members ended at the same time on two daemons.
        let sql = format!(
            "select group_id from {CHORDS} c
            where done_at is null and unlock_at is null and not exists
                (select 1 from {MEMBERS} m where m.group_id = c.group_id and not m.is_final)
            limit {SWEPT}"
        );
        let mut touched: BTreeSet<_> =
            texts(self.fetch(&sql, Vec::new()).await?).into_iter().collect();
        if ended.is_empty() && early.is_empty() && touched.is_empty() {
            return Ok(Vec::new());
        }
        dialect::begin(self.dialect, self.session).await?;
        let early: Vec<&str> = early.iter().map(String::as_str).collect();
        touched.extend(self.awaiting(&early).await?);
        self.take_values(&early).await?;
        for (group_id, ids) in ended {
            self.mark_members(&group_id, &ids).await?;
            touched.insert(group_id);
        }
        let complete = self.complete(&touched).await?;
        self.commit().await?;
        Ok(complete)
    }

    /// The chords whose unlock message has to be sent, again or because a process ended before.
    async fn due(&mut self) -> Result<Vec<String>, StoreError> {
        let now = || vec![Param::Time(Some(self.now))];
        let sql = format!("select group_id from {CHORDS} where unlock_at <= ? limit 1");
        if self.fetch(&sql, now()).await?.is_empty() {
            return Ok(Vec::new());
        }
        dialect::begin(self.dialect, self.session).await?;
        let skip_locked = self.dialect.sql().skip_locked;
        let sql = format!(
            "select group_id from {CHORDS} where unlock_at <= ? and done_at is null
            order by unlock_at limit {SWEPT} {skip_locked}"
        );
        let now = vec![Param::Time(Some(self.now))];
        let due = texts(self.fetch(&sql, now).await?);
        self.note_sending(&due).await?;
        self.commit().await?;
        Ok(due)
    }

    /// Deletes expired chords, and values whose chords have not come. Returns those that had not
    /// ended.
    async fn expire(&mut self) -> Result<Vec<String>, StoreError> {
        let sql =
            format!("select group_id, done_at from {CHORDS} where expires_at < ? limit {SWEPT}");
        let now = vec![Param::Time(Some(self.now))];
        let (mut all, mut open) = (Vec::new(), Vec::new());
        for mut record in self.fetch(&sql, now).await? {
            let Some(group_id) = record.text() else { continue };
            if record.time().is_none() {
                open.push(group_id.clone());
            }
            all.push(group_id);
        }
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        self.delete(&all).await?;
        let sql = format!("delete from {MEMBERS} where group_id = '' and created_at < ?");
        let before = self.now - REMEMBERED;
        self.fetch(&sql, vec![Param::Time(Some(before))]).await?;
        Ok(open)
    }

    async fn unlock(&mut self, group_id: &str) -> Result<Option<Unlock>, StoreError> {
        let sql =
            format!("select message, unlocks from {CHORDS} where group_id = ? and done_at is null");
        let found = self.fetch(&sql, vec![Param::Text(Some(group_id))]).await?;
        let Some(mut found) = found.into_iter().next() else { return Ok(None) };
        let message = found.text().unwrap_or_default();
        let unlocks = found.integer().and_then(|count| u32::try_from(count).ok()).unwrap_or(0);
        let results = self.results(group_id).await?;
        Ok(Some(Unlock { group_id: group_id.to_owned(), message, unlocks, results }))
    }

    async fn results(
        &mut self,
        group_id: &str,
    ) -> Result<Option<Vec<serde_json::Value>>, StoreError> {
        let short = |column: &str| {
            format!("case when length({column}) <= {TRAVELLER_BYTES} then {column} end")
        };
        let (value, result, is_final) = (short("m.value"), short("t.result"), is_final("t"));
        let sql = format!(
            "select m.task_id, {value}, m.value is not null and length(m.value) > {TRAVELLER_BYTES}
                or t.result is not null and length(t.result) > {TRAVELLER_BYTES},
                t.status, t.content_type, t.content_encoding, {result}
            from {MEMBERS} m
            left join {TASKS} t on t.task_id = m.task_id and {is_final}
            where m.group_id = ? order by m.id limit {}",
            TRAVELLERS + 1
        );
        let records = self.fetch(&sql, vec![Param::Text(Some(group_id))]).await?;
        if records.len() > TRAVELLERS {
            return Ok(None);
        }
        let mut results = Vec::with_capacity(records.len());
        for mut record in records {
            let (task_id, value) = (record.text(), record.text());
            if record.integer() == Some(1) {
                return Ok(None);
            }
            let mut texts: Vec<Option<String>> = (0..4).map(|_| record.text()).collect();
            if let Some(value) = value {
                let Ok(kept) = serde_json::from_str(&value) else { continue };
                texts = kept;
            }
            if texts[0].is_some() {
                texts.insert(0, task_id);
                results.push(serde_json::json!(texts));
            }
        }
        Ok(Some(results))
    }

    async fn open(&mut self, group_id: Option<&str>) -> Result<Vec<OpenChord>, StoreError> {
        let only = if group_id.is_some() { "and c.group_id = ?" } else { "" };
        let sql = format!(
            "select c.group_id, c.applied_at, c.expires_at, c.unlock_at, c.unlocks, c.problem,
                (select count(*) from {MEMBERS} m where m.group_id = c.group_id),
                (select count(*) from {MEMBERS} m where m.group_id = c.group_id
                    and not m.is_final)
            from {CHORDS} c where c.done_at is null {only} order by c.applied_at"
        );
        let params = group_id.map(|id| Param::Text(Some(id))).into_iter().collect();
        let records = self.fetch(&sql, params).await?;
        let open = |mut record: Record| OpenChord {
            group_id: record.text().unwrap_or_default(),
            applied_at: record.time(),
            expires_at: record.time(),
            unlock_at: record.time(),
            unlocks: record.integer().unwrap_or_default(),
            problem: record.text(),
            members: record.integer().unwrap_or_default(),
            awaited: record.integer().unwrap_or_default(),
        };
        Ok(records.into_iter().map(open).collect())
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        patiently(self.dialect, self.session.execute("commit")).await
    }

    /// Runs a statement whose parameters are written as question marks.
    async fn fetch(
        &mut self,
        sql: &str,
        params: Vec<Param<'_>>,
    ) -> Result<Vec<Record>, StoreError> {
        let sql = if self.dialect.sql().numbers_parameters {
            let mut parts = sql.split('?');
            let first = parts.next().unwrap_or_default().to_owned();
            parts.enumerate().fold(first, |sql, (place, part)| format!("{sql}${}{part}", place + 1))
        } else {
            sql.to_owned()
        };
        let sql = AssertSqlSafe(sql).into_sql_str();
        patiently(self.dialect, self.session.fetch(sql, params)).await
    }

    /// Runs a statement for lists of ids, which take the place of `?*` among the other parameters.
    async fn fetch_in(
        &mut self,
        sql: &str,
        ids: &[&str],
        others: &[Param<'_>],
    ) -> Result<Vec<Record>, StoreError> {
        let place = sql.split("?*").next().unwrap_or_default().matches('?').count();
        let (before, after) = others.split_at(place);
        let mut records = Vec::new();
        for ids in ids.chunks(512) {
            let ids = padded(ids);
            let sql = sql.replace("?*", &vec!["?"; ids.len()].join(", "));
            let ids: Vec<_> = ids.into_iter().map(|id| Param::Text(Some(id))).collect();
            records.extend(self.fetch(&sql, [before, &ids, after].concat()).await?);
        }
        Ok(records)
    }
}

/// The condition for rows that count as final, with the alias of the task table. An outcome that is
/// known only from an event does not, because its result may still come.
fn is_final(alias: &str) -> String {
    format!(
        "{alias}.status in ('FAILURE', 'REVOKED', 'SUCCESS') and {alias}.content_type <> '{EVENT}'"
    )
}

fn texts(records: Vec<Record>) -> Vec<String> {
    records.into_iter().filter_map(|mut record| record.text()).collect()
}
