//! C, the committer: the only task that changes a peer's imports. It batches whatever came while
//! the disk was busy, commits, applies, and lets the answers go; it also does what is due by time
//! (hold time, withheld withdrawals) and by policy. One for each peer, over all of its streams,
//! so a late batch of an old stream can never race a new one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::catalogue::SliceWriter;
use hamlet_core::durable::{CommitError, CommitFuture, ImportChange, ImportStore, PeerState};
use hamlet_core::guard::GuardSettings;
use hamlet_core::import::ImportRules;
use hamlet_core::imported::{ImportLimits, ImportedSlice, Judge, ServiceJudge, SliceChanges, Staged};
use hamlet_core::seeded::{SeededBug, is_on};
use hamlet_core::settle::Settle;
use hamlet_core::{ImportedService, PeerName, Rejection, RejectionCode};
use hamlet_runtime::{Clock, Shutdown, rarely};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::consumer::{Batch, ProvenAt, held_of};
use crate::kind::LinkJudge;
use crate::session::{PeerClass, StreamEnd, StreamSession};
use crate::stream::StreamCell;
use crate::wire::hamlet::federation::v1 as ext;

/// The import side's catalogue: a slice a peer, entries by wire key.
pub type ImportedCatalogue = hamlet_core::catalogue::Catalogue<PeerName, Arc<str>, ImportedService>;
/// The writer of one peer's slice.
pub type ImportedWriter = SliceWriter<PeerName, Arc<str>, ImportedService>;

/// How often time is looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often the time spent without the peer is made durable.
const STATE_EVERY: Duration = Duration::from_secs(30);
/// Most batches served before requests and time are looked at again.
const BATCHES_AT_ONCE: usize = 64;
/// How often a foreign owner is asked for its whole state again, unless configured otherwise.
pub const RESYNC_EVERY: Duration = Duration::from_secs(3600);
/// A commit that takes longer is answered as UNAVAILABLE, to a Hamlet agent.
pub const COMMIT_DEADLINE: Duration = Duration::from_secs(10);
/// A stopping agent waits no longer for the disk to take the peer's state. What it misses is the hold
/// time counted since the last time, as after a crash.
const LAST_SAVE_DEADLINE: Duration = Duration::from_secs(2);
/// What the Go owner says when it has discarded changes.
const OVERFLOW_TEXT: &str = "overflow";
/// Wait before a failed commit of a foreign owner's changes is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The same for any kind of resource.
pub type CatalogueOf<J> = hamlet_core::catalogue::Catalogue<PeerName, Arc<str>, <J as Judge>::Value>;
/// The writer of one peer's slice of it.
pub type WriterOf<J> = SliceWriter<PeerName, Arc<str>, <J as Judge>::Value>;

/// What import policy says of a peer now.
pub struct ImportSettings<R: ?Sized = ImportRules> {
    /// The rules; `None` refuses everything.
    pub rules: Option<Arc<R>>,
    /// Quotas and the hold of older versions.
    pub limits: ImportLimits,
    /// The brake on mass withdrawals.
    pub guard: GuardSettings,
    /// How long imports outlive the peer, counted while we run and try; `None` is for ever.
    pub hold: Option<Duration>,
    /// How often a foreign owner is asked for its whole state again, where that harms nothing;
    /// `None` is never.
    pub resync: Option<Duration>,
}

impl<R: ?Sized> Clone for ImportSettings<R> {
    fn clone(&self) -> Self {
        let ImportSettings { rules, limits, guard, hold, resync } = self;
        ImportSettings { rules: rules.clone(), limits: *limits, guard: *guard, hold: *hold, resync: *resync }
    }
}

impl<R: ?Sized> std::fmt::Debug for ImportSettings<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("ImportSettings");
        shown.field("rules", &self.rules.is_some()).field("limits", &self.limits);
        shown.field("guard", &self.guard).field("hold", &self.hold).field("resync", &self.resync).finish()
    }
}

/// What the link asks of the committer, between batches.
#[derive(Debug)]
pub enum Request<R: ?Sized = ImportRules> {
    /// What was heard so far, for a hello; nothing of an older stream is in flight afterwards.
    Held(oneshot::Sender<ext::Held>),
    /// New policy: judge everything anew.
    Configure(Box<ImportSettings<R>>, oneshot::Sender<()>),
    /// The peer was removed from the configuration: withdraw and forget everything.
    Forget(oneshot::Sender<()>),
}

/// State shared with the link for status.
#[derive(Debug)]
pub struct ImportState<J: Judge = ServiceJudge> {
    /// The slice; changed by the committer only.
    pub slice: Mutex<ImportedSlice<J>>,
    /// The stream whose inbox is served.
    pub stream: Mutex<Option<Arc<StreamCell>>>,
    /// Running time without the peer, in milliseconds.
    pub down_ms: std::sync::atomic::AtomicU64,
    /// When the last stream took its place, and when it was closed, running time in milliseconds.
    pub opened_ms: std::sync::atomic::AtomicU64,
    /// See `opened_ms`.
    pub closed_ms: std::sync::atomic::AtomicU64,
    /// When the last commit failed, and how.
    pub commit_error: Mutex<Option<String>>,
    /// Since when a batch has been at the disk.
    pub committing: Mutex<Option<Duration>>,
    /// What the last stream ended with, in words.
    pub last_end: Mutex<Option<String>>,
    /// What a foreign owner's silence means.
    pub settle: Mutex<Settle>,
    /// How often the owner said goodbye for good, and how many entries went with the last one.
    pub farewells: Mutex<(u64, u64)>,
}

/// The committer task of one peer.
pub struct Importer<J: LinkJudge = ServiceJudge> {
    peer: PeerName,
    state: Arc<ImportState<J>>,
    shared: J::Shared,
    writer: WriterOf<J>,
    store: Arc<dyn ImportStore>,
    clock: Arc<dyn Clock>,
    work: Arc<Notify>,
    requests: mpsc::Receiver<Request<J::Rules>>,
    hold: Option<Duration>,
    last_tick: Duration,
    last_state: Duration,
    /// Until when time without the peer is counted.
    counted: Duration,
    stored: PeerState,
    proven: Option<ProvenAt>,
    resync: Option<Duration>,
    /// A commit that the disk has kept waiting for too long, and the keys of its changes.
    stuck: Option<(CommitFuture, Vec<String>)>,
    /// The peer's state on its way to the disk. Nothing waits for it.
    saving: Option<(CommitFuture, PeerState)>,
    stopping: Shutdown,
}

/// What a committer is made of.
pub struct ImporterParts<J: LinkJudge = ServiceJudge> {
    /// Whose imports.
    pub peer: PeerName,
    /// What is loaded from the store already.
    pub state: Arc<ImportState<J>>,
    /// What judges of all links share.
    pub shared: J::Shared,
    /// The only writer of the peer's slice.
    pub writer: WriterOf<J>,
    /// Where changes become durable.
    pub store: Arc<dyn ImportStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Wakes the committer.
    pub work: Arc<Notify>,
    /// What the link asks.
    pub requests: mpsc::Receiver<Request<J::Rules>>,
    /// The peer's state as the store has it.
    pub stored: PeerState,
}

impl<J: LinkJudge> Importer<J> {
    /// A committer; it starts working when it is [run](Self::run).
    pub fn new(parts: ImporterParts<J>) -> Importer<J> {
        let ImporterParts { peer, state, shared, writer, store, clock, work, requests, stored } = parts;
        let now = clock.now();
        Importer {
            peer,
            state,
            shared,
            writer,
            store,
            clock,
            work,
            requests,
            hold: None,
            last_tick: now,
            last_state: now,
            counted: now,
            stored,
            proven: None,
            resync: Some(RESYNC_EVERY),
            stuck: None,
            saving: None,
            stopping: Shutdown::new(),
        }
    }

    /// Runs until shutdown; what was taken from an inbox is finished first.
    pub async fn run(mut self, shutdown: Shutdown) {
        self.stopping = shutdown.clone();
        let stopping = rarely(async move { shutdown.begun().await });
        tokio::pin!(stopping);
        let over = rarely(tokio::time::sleep(TICK));
        tokio::pin!(over);
        'committing: loop {
            let work = self.work.clone();
            tokio::select! {
                biased;
                () = &mut stopping => break 'committing,
                request = self.requests.recv() => match request {
                    Some(Request::Forget(done)) => {
                        self.forget().await;
                        // The slice is free before anybody hears of it: the peer may come back at
                        // once. There is no state left to save.
                        drop(self);
                        let _ = done.send(());
                        return;
                    }
                    Some(request) => self.serve(request).await,
                    None => break 'committing,
                },
                outcome = settled(&mut self.saving) => self.saved(outcome),
                () = work.notified() => self.drain().await,
                () = &mut over => over.set(rarely(tokio::time::sleep(TICK))),
            }
            self.tick().await;
        }
        self.save_state();
        // Behind a commit that the disk has kept waiting it could only wait as well.
        if self.stuck.is_none()
            && let Ok(outcome) = tokio::time::timeout(LAST_SAVE_DEADLINE, settled(&mut self.saving)).await
        {
            self.saved(outcome);
        }
    }

    async fn serve(&mut self, request: Request<J::Rules>) {
        match request {
            Request::Held(reply) => {
                let mut stored = self.stored.clone();
                if let Some(proven) = &self.proven {
                    stored.log_id.clone_from(&proven.log_id);
                    stored.revision = proven.revision;
                }
                let _ = reply.send(held_of(&mut self.state.slice.lock(), &stored));
            }
            Request::Configure(settings, done) => {
                self.configure(*settings).await;
                let _ = done.send(());
            }
            Request::Forget(done) => drop(done),
        }
    }

    async fn configure(&mut self, settings: ImportSettings<J::Rules>) {
        self.hold = settings.hold;
        self.resync = settings.resync;
        let staged = {
            let mut slice = self.state.slice.lock();
            J::set_rules(&mut slice, settings.rules, settings.limits, settings.guard);
            slice.reevaluate(self.clock.now())
        };
        self.commit_local(staged, "policy").await;
    }

    /// Serves the inbox, but not for ever: a peer that never pauses must not keep policy and
    /// time waiting.
    async fn drain(&mut self) {
        for _ in 0..BATCHES_AT_ONCE {
            let Some(cell) = self.state.stream.lock().clone() else { return };
            if !cell.look(|s| s.consumer.has_work()) {
                return;
            }
            let now = self.clock.now();
            let batch = {
                let mut slice = self.state.slice.lock();
                cell.take(|s| s.consumer.batch(&mut slice, now))
            };
            cell.made_room();
            let Some(batch) = batch else { return };
            if batch.leaving {
                self.withdraw_all().await;
            }
            let foreign = cell.look(|s| *s.class() == PeerClass::Foreign);
            if let Some(at) = cell.look(|s| s.consumer.heard_by(&batch)) {
                // Also if the disk won't keep it: then more is said to be heard than is.
                self.heard(at);
            }
            let said = if foreign { self.settling(&cell, &batch) } else { vec![] };
            let mut batch = batch;
            let changes = std::mem::take(&mut batch.changes);
            let (early, changes) = match is_on(SeededBug::AckBeforeDurable) {
                true => (Some(changes), vec![]),
                false => (None, changes),
            };
            let outcome = self.commit(changes, foreign).await;
            if foreign && outcome.is_err() {
                // We are stopping: the answer is withheld, and the next stream brings it again.
                return;
            }
            let now = self.clock.now();
            {
                let mut slice = self.state.slice.lock();
                // Visible to readers before the answer goes: the writer is woken last.
                cell.change(|s| {
                    let changes = s.consumer.finish(&mut slice, batch, outcome, now);
                    self.publish(changes);
                });
            }
            self.note_proof(&cell);
            self.note_said(said, now);
            if let Some(changes) = early {
                let _ = self.commit(changes, foreign).await;
            }
        }
        self.work.notify_one();
    }

    /// We have heard the owner up to here; within one log that only grows.
    fn heard(&mut self, at: ProvenAt) {
        match &mut self.proven {
            Some(before) if before.log_id == at.log_id => before.revision = before.revision.max(at.revision),
            _ => self.proven = Some(at),
        }
    }

    /// The peer's state as it is now.
    fn peer_state(&self) -> PeerState {
        let down_ms = self.state.down_ms.load(std::sync::atomic::Ordering::Relaxed);
        let mut state = PeerState { down_ms, ..self.stored.clone() };
        if let Some(proven) = &self.proven {
            state.log_id.clone_from(&proven.log_id);
            state.revision = proven.revision;
        }
        state
    }

    /// What a later hello says of the owner's log; stored with the peer's other state.
    fn note_proof(&mut self, cell: &StreamCell) {
        let proven = cell.look(|s| s.consumer.proven_at().cloned());
        if let Some(proven) = proven.filter(|p| !p.log_id.is_empty()) {
            self.heard(proven);
        }
    }

    /// The owner left for good: everything of it goes at once, outside guard and hold time.
    async fn withdraw_all(&mut self) {
        let entries = self.state.slice.lock().counts().in_force;
        tracing::warn!(peer = %self.peer, entries, "the peer leaves for good; its services are withdrawn");
        {
            let mut farewells = self.state.farewells.lock();
            *farewells = (farewells.0.saturating_add(1), entries);
        }
        self.forget().await;
    }

    /// What a foreign owner says in a batch, and whether we held it before.
    fn settling(&self, cell: &StreamCell, batch: &Batch<J::Value>) -> Vec<(Arc<str>, Option<bool>)> {
        let slice = self.state.slice.lock();
        let mut settle = self.state.settle.lock();
        if settle.stream() != Some(cell.id) {
            settle.begin(cell.id, slice.counts().heard as usize, self.clock.now());
        }
        let (offered, deleted) = batch.said();
        let offered = offered.iter().map(|key| (key.clone(), Some(slice.hears(key))));
        offered.chain(deleted.iter().map(|key| (key.clone(), None))).collect()
    }

    fn note_said(&self, said: Vec<(Arc<str>, Option<bool>)>, now: Duration) {
        let slice = self.state.slice.lock();
        let mut settle = self.state.settle.lock();
        for (key, held) in said {
            match held {
                Some(held) if slice.hears(&key) => settle.offered(&key, held, now),
                Some(_) => {}
                None => settle.deleted(&key),
            }
        }
    }

    /// Looks at what a foreign owner has left out, and whether to ask it for everything again.
    async fn settle(&mut self, cell: Option<&Arc<StreamCell>>, now: Duration) {
        let gone = {
            let mut slice = self.state.slice.lock();
            let mut settle = self.state.settle.lock();
            let foreign = cell.filter(|c| c.look(|s| *s.class() == PeerClass::Foreign));
            match foreign {
                Some(cell) if settle.stream() != Some(cell.id) => {
                    settle.begin(cell.id, slice.counts().heard as usize, now);
                }
                Some(_) => {}
                None if settle.stream().is_some() => {
                    let text = self.state.last_end.lock().clone().unwrap_or_default();
                    settle.ended(text.contains(OVERFLOW_TEXT), now);
                }
                None => return,
            }
            let gone = settle.due(slice.heard_keys(), now);
            slice.end_all(gone, now)
        };
        if !gone.is_empty() {
            tracing::info!(peer = %self.peer, entries = gone.len(), "twice left out by the peer");
            self.commit_local(gone, "left out twice").await;
        }
        let Some(cell) = cell else { return };
        let every = self.resync.unwrap_or(Duration::MAX);
        let wanted = self.state.settle.lock().wants_stream(every, now);
        if wanted && cell.dialled && cell.look(StreamSession::may_renew) {
            cell.end(StreamEnd::renewal());
        }
    }

    /// Commits; a foreign owner would lose an update that is refused as UNAVAILABLE, so for it
    /// the answer is withheld until the disk takes it.
    async fn commit(&mut self, changes: Vec<ImportChange>, foreign: bool) -> Result<(), Rejection> {
        // What a late commit may have left on the disk is written over before anything is answered.
        if changes.is_empty() && self.stuck.is_none() {
            return Ok(());
        }
        *self.state.committing.lock() = Some(self.clock.now());
        let outcome = 'trying: loop {
            match self.try_commit(&changes).await {
                Ok(()) => break 'trying Ok(()),
                Err(error) => {
                    tracing::error!(peer = %self.peer, %error, "could not commit imports");
                    *self.state.commit_error.lock() = Some(error.to_string());
                    if !foreign || self.stopping.has_begun() {
                        let text =
                            "the importing mesh could not persist the change now; offer it again later";
                        let code = RejectionCode::Unavailable;
                        break 'trying Err(Rejection::new(code, "not-persisted", "resource", text));
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        if outcome.is_ok() {
            *self.state.commit_error.lock() = None;
        }
        *self.state.committing.lock() = None;
        outcome
    }

    /// One commit, waited for no longer than the deadline. One that is late goes on by itself,
    /// and the next waits behind it: the disk keeps their order, and what it took late is still
    /// the owner's word.
    async fn try_commit(&mut self, changes: &[ImportChange]) -> Result<(), CommitError> {
        let late = || CommitError { message: "the disk took longer than 10 s".to_owned() };
        let mut all = vec![];
        if let Some((mut stuck, keys)) = self.stuck.take() {
            if tokio::time::timeout(COMMIT_DEADLINE, &mut stuck).await.is_err() {
                self.stuck = Some((stuck, keys));
                return Err(late());
            }
            // It was answered as not kept, but the disk may have it: what we hold is written over it.
            let (slice, now) = (self.state.slice.lock(), self.clock.now());
            all.extend(keys.iter().map(|key| slice.present(key, now)));
        }
        all.extend_from_slice(changes);
        let keys = all.iter().map(|c| c.key.clone()).collect();
        let state = self.peer_state();
        // How far we have heard the owner has to survive with what we have heard. A state that is still
        // on its way is older than this one.
        let saving = self.saving.take().is_some();
        let heard_more = state.revision != self.stored.revision || state.log_id != self.stored.log_id;
        let mut commit = match heard_more || saving {
            true => self.store.commit_with_state(all, &self.peer, state.clone()),
            false => self.store.commit(all),
        };
        match tokio::time::timeout(COMMIT_DEADLINE, &mut commit).await {
            Ok(outcome) => {
                if outcome.is_ok() {
                    self.stored = state;
                }
                outcome
            }
            Err(_) => {
                self.stuck = Some((commit, keys));
                Err(late())
            }
        }
    }

    /// Commits and applies decisions that are ours, not the owner's.
    async fn commit_local(&mut self, staged: Vec<Staged<J::Value>>, cause: &str) {
        if staged.is_empty() {
            return;
        }
        let now = self.clock.now();
        let changes = {
            let slice = self.state.slice.lock();
            staged.iter().filter_map(|s| slice.change(s, now)).collect()
        };
        tracing::info!(peer = %self.peer, entries = staged.len(), cause, "imports changed locally");
        // In effect even if the disk refuses: policy and time don't wait; after a restart the
        // same decision is made again.
        let _ = self.commit(changes, false).await;
        let (changes, verdicts) = {
            let mut slice = self.state.slice.lock();
            let changed = staged.iter().filter(|s| slice.changes_verdict(s)).map(|s| s.key.clone());
            let changed: Vec<Arc<str>> = changed.collect();
            (slice.apply(staged, now), changed)
        };
        self.publish(changes);
        let cell = self.state.stream.lock().clone();
        if let Some(cell) = cell.filter(|_| !verdicts.is_empty()) {
            let slice = self.state.slice.lock();
            cell.change(|s| verdicts.iter().for_each(|key| s.consumer.verdict_changed(&slice, key)));
        }
    }

    fn publish(&self, changes: SliceChanges<J::Value>) {
        let told = J::TELLS.then(|| changes.clone());
        self.writer.apply(changes);
        if let Some(changes) = told {
            J::published(&self.shared, &self.peer, changes);
        }
    }

    /// The next commit waits for this one as well.
    fn wait_behind(&mut self, late: CommitFuture) {
        let (before, keys) = self.stuck.take().unzip();
        let both = async move {
            if let Some(before) = before {
                // Whether the disk has it is made good with its keys.
                let _ = before.await;
            }
            late.await
        };
        self.stuck = Some((Box::pin(both), keys.unwrap_or_default()));
    }

    async fn tick(&mut self) {
        let now = match is_on(SeededBug::HoldOnWallClock) {
            true => self.clock.wall(),
            false => self.clock.now(),
        };
        let passed = now.saturating_sub(self.last_tick);
        if passed < TICK / 2 {
            return;
        }
        self.last_tick = now;
        let now = self.clock.now();
        let cell = self.state.stream.lock().clone();
        if let Some(cell) = &cell {
            let mut slice = self.state.slice.lock();
            cell.change(|s| s.consumer.tick(&mut slice, now));
        }
        self.settle(cell.as_ref(), now).await;
        let due = self.state.slice.lock().due(now);
        self.commit_local(due, "time").await;
        // The last look may have been long ago, and the stream up for most of the time since.
        let closed = Duration::from_millis(self.state.closed_ms.load(std::sync::atomic::Ordering::Relaxed));
        let seen = self.clock.now();
        let away = seen.saturating_sub(closed.max(self.counted));
        let up = self.state.stream.lock().is_some();
        if closed > self.counted {
            // A stream came and went between two looks: the peer was there.
            self.count_down_time(true, Duration::ZERO);
        }
        self.counted = seen;
        self.count_down_time(up, if is_on(SeededBug::HoldOnWallClock) { passed } else { away });
        // That the peer is back has to survive as well, or a crash would end the hold time early.
        let back = up && self.stored.down_ms > 0;
        if back || now.saturating_sub(self.last_state) >= STATE_EVERY {
            self.last_state = now;
            self.save_state();
        }
    }

    fn count_down_time(&self, up: bool, passed: Duration) {
        use std::sync::atomic::Ordering;
        let down = &self.state.down_ms;
        if up {
            down.store(0, Ordering::Relaxed);
            return;
        }
        let wipes = is_on(SeededBug::WipeOnDisconnect);
        let total = down.fetch_add(passed.as_millis() as u64, Ordering::Relaxed) + passed.as_millis() as u64;
        if wipes || self.hold.is_some_and(|hold| Duration::from_millis(total) >= hold) {
            let changes = self.state.slice.lock().set_expired(true);
            if !changes.is_empty() {
                tracing::warn!(peer = %self.peer, entries = changes.len(), "hold time ended, imports withdrawn");
                self.publish(changes);
            }
        }
    }

    /// Sends the peer's state on its way to the disk, if it has another and none is on its way.
    fn save_state(&mut self) {
        let state = self.peer_state();
        if state == self.stored || self.saving.is_some() {
            return;
        }
        self.state.committing.lock().get_or_insert(self.clock.now());
        self.saving = Some((self.store.put_peer_state(&self.peer, state.clone()), state));
    }

    fn saved(&mut self, outcome: Result<(), CommitError>) {
        let Some((_, state)) = self.saving.take() else { return };
        *self.state.committing.lock() = None;
        *self.state.commit_error.lock() = outcome.as_ref().err().map(ToString::to_string);
        match outcome {
            Ok(()) => self.stored = state,
            Err(error) => tracing::error!(peer = %self.peer, %error, "could not save the peer's state"),
        }
    }

    /// Withdraws everything now, and on the disk as soon as that takes it.
    async fn forget(&mut self) {
        // It would bring the state back.
        self.saving = None;
        let mut forgotten = self.store.forget_peer(&self.peer);
        match tokio::time::timeout(COMMIT_DEADLINE, &mut forgotten).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(peer = %self.peer, %error, "could not forget the removed peer's imports");
            }
            Err(_) => {
                tracing::error!(peer = %self.peer, "the disk does not take that the peer's imports are gone");
                self.wait_behind(forgotten);
            }
        }
        self.writer.replace(BTreeMap::new());
        J::cleared(&self.shared, &self.peer);
        self.state.slice.lock().forget(self.clock.now());
        self.proven = None;
        self.stored = PeerState::default();
        self.state.down_ms.store(0, std::sync::atomic::Ordering::Relaxed);
    }
}

/// What became of the state on its way to the disk; never if none is.
async fn settled(saving: &mut Option<(CommitFuture, PeerState)>) -> Result<(), CommitError> {
    match saving {
        Some((save, _)) => save.await,
        None => std::future::pending().await,
    }
}
