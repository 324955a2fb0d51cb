//! The consumer's side of one stream: an inbox of what came, batches for the committer, answers
//! in the order of receipt, and the proof that we hold the same set. Sans-IO; *hardened to
//! untrusted peer*: the inbox is bounded in messages and bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::digest::{CUT_BYTES, Level, Scope};
use hamlet_core::durable::{ImportChange, PeerState};
use hamlet_core::imported::{ImportedSlice, Judge, SliceChanges, Staged};
use hamlet_core::seeded::{SeededBug, is_on};
use hamlet_core::service::limits;
use hamlet_core::{Rejection, RejectionCode};

use crate::dialect::{IncomingOffer, Operation, Outgoing};
use crate::session::{StreamEnd, Violation};
use crate::wire::hamlet::federation::v1 as ext;

/// Most messages in the inbox.
pub const INBOX_MESSAGES: usize = 2_048;
/// Most bytes in the inbox; one larger message is taken when it is empty.
pub const INBOX_BYTES: usize = 1 << 20;
/// Most answers that may wait to be written, towards a peer that sends without waiting.
pub const ANSWERS_MAX: usize = 65_536;
/// Most bytes of nonces of answers that wait to be written.
pub const NONCES_BYTES: usize = 1 << 20;
/// Most changes of one commit.
const BATCH_MAX: usize = 2_048;
/// Most hash bytes in one message.
const BUCKETS_BYTES: usize = 32 * 1024;
/// Most changes whose fate waits to be told in one message.
const APPLIED_BATCH: usize = 64;
/// Most changes whose fate waits to be told at all; beyond it a whole round tells.
pub const APPLIED_MAX: usize = 1_024;
/// Length of a digest root.
const ROOT_BYTES: usize = 32;
/// Length of the name of a log.
const LOG_ID_BYTES: usize = 16;
/// Longest nonce that we repeat.
const NONCE_MAX: usize = 1_024;
/// First wait before a further whole round when one did not end in equality; doubles to an hour.
const UNPROVEN_FIRST: Duration = Duration::from_secs(60);
const UNPROVEN_CAP: Duration = Duration::from_secs(3600);

#[derive(Debug)]
enum Item {
    Upsert { nonce: String, key: String, value: Bytes, version: u64 },
    Delete { nonce: String, key: String, version: u64 },
    Refuse { nonce: String, rejection: Rejection },
    Begin(ext::Begin),
    Bookmark(ext::Bookmark),
    Leaving,
}

#[derive(Debug)]
struct Queued {
    item: Item,
    bytes: usize,
    at: Duration,
}

/// An answer on its way to the writer.
#[derive(Debug)]
struct Answer {
    nonce: String,
    answer: Result<(), Rejection>,
    at: Duration,
}

/// What a consumer says it holds, for a hello. `stored` names the owner's log and revision at
/// the last proof.
pub fn held_of<J: Judge>(slice: &mut ImportedSlice<J>, stored: &PeerState) -> ext::Held {
    let (root, count) = slice.heard_root();
    // The coarsest hashes go along at once; finer ones are sent when they are asked for.
    let hashes = if count > 0 { slice.heard_hashes(&Scope::whole(Level::One)) } else { vec![] };
    ext::Held {
        round: 1,
        digest_version: 1,
        type_url: slice.type_url().to_owned(),
        root: root.to_vec().into(),
        count,
        log_id: stored.log_id.clone().into(),
        revision: stored.revision,
        hashes: hashes.into(),
        full: false,
    }
}

/// The nodes that a [`ext::Begin`] speaks of.
fn scope_of(begin: &ext::Begin) -> Option<Scope> {
    Scope::from_bytes(Level::from_number(begin.level)?, &begin.scope)
}

/// Where we stand with what the owner said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProofVerdict {
    /// Nothing was compared on this stream yet.
    None,
    /// We hold the same set as the owner said at this time.
    Equal(Duration),
    /// We don't, since this time; a whole round is due.
    Different(Duration),
}

/// Counters and last facts of one stream's consumer role.
#[derive(Debug, Clone, Copy)]
pub struct ConsumerStats {
    /// Changes received.
    pub received: u64,
    /// Changes refused.
    pub refused: u64,
    /// When the last message of the owner role came.
    pub last_offer: Option<Duration>,
    /// The last comparison.
    pub verdict: ProofVerdict,
    /// The owner's count at its last bookmark.
    pub owner_count: Option<u64>,
    /// Keys repeated so far in the open round.
    pub round_seen: Option<u64>,
    /// The owner's version up to which both are proven to hold the same; 0 if none.
    pub proven_version: u64,
    /// Rounds that ended.
    pub rounds: u64,
}

/// The owner's log and its revision at a proof; survives in the peer's stored state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenAt {
    /// Names the log.
    pub log_id: Vec<u8>,
    /// The revision.
    pub revision: u64,
}

/// What the committer has to make durable; give it back to [`ConsumerSession::finish`].
#[derive(Debug)]
pub struct Batch<V = hamlet_core::ImportedService> {
    /// The changes to commit; may be empty.
    pub changes: Vec<ImportChange>,
    /// The owner leaves for good: everything of it goes, once this is committed.
    pub leaving: bool,
    answers: Vec<(String, Result<(), Rejection>)>,
    staged: Vec<Staged<V>>,
    /// Keys repeated since the round began, and keys deleted.
    upserted: Vec<Arc<str>>,
    deleted: Vec<Arc<str>>,
    bookmark: Option<ext::Bookmark>,
    /// The newest of the owner's versions in it; 0 if it said none.
    version: u64,
    messages: usize,
}

impl<V> Batch<V> {
    /// Keys that the owner offered in it, and keys that it deleted.
    pub fn said(&self) -> (&[Arc<str>], &[Arc<str>]) {
        (&self.upserted, &self.deleted)
    }
}

/// What the next round is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Planned {
    due: Duration,
    full: bool,
}

/// The consumer role on one stream.
#[derive(Debug)]
pub struct ConsumerSession {
    type_url: Arc<str>,
    message_bytes: usize,
    inbox: VecDeque<Queued>,
    inbox_bytes: usize,
    committing: Option<Duration>,
    answers: VecDeque<Answer>,
    nonce_bytes: usize,
    hello: bool,
    log_id: Vec<u8>,
    marked: Option<BTreeSet<Arc<str>>>,
    scope: Option<Scope>,
    round: u32,
    full: bool,
    /// The coarsest level of which the owner may ask for children; it asks ever finer.
    askable: Option<Level>,
    proof: Option<ext::Proof>,
    proven_at: Option<ProvenAt>,
    ask_round: Option<ext::Held>,
    buckets: VecDeque<ext::Buckets>,
    next_round: Option<Planned>,
    asked_round: Option<Duration>,
    verdicts_changed: bool,
    applied: BTreeMap<Arc<str>, ext::applied::Change>,
    missed: bool,
    unproven_wait: Duration,
    stats: ConsumerStats,
}

impl ConsumerSession {
    /// A session for resources of one type.
    pub fn new(type_url: impl Into<Arc<str>>) -> ConsumerSession {
        ConsumerSession {
            type_url: type_url.into(),
            message_bytes: limits::MESSAGE_BYTES,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            committing: None,
            answers: VecDeque::new(),
            nonce_bytes: 0,
            hello: false,
            log_id: vec![],
            marked: None,
            scope: None,
            round: 1,
            full: false,
            askable: Some(Level::One),
            proof: None,
            proven_at: None,
            ask_round: None,
            buckets: VecDeque::new(),
            next_round: None,
            asked_round: None,
            verdicts_changed: false,
            applied: BTreeMap::new(),
            missed: false,
            unproven_wait: UNPROVEN_FIRST,
            stats: ConsumerStats {
                received: 0,
                refused: 0,
                last_offer: None,
                verdict: ProofVerdict::None,
                owner_count: None,
                round_seen: None,
                proven_version: 0,
                rounds: 0,
            },
        }
    }

    /// Refuses larger messages than this, in bytes.
    pub fn set_message_limit(&mut self, bytes: usize) {
        self.message_bytes = bytes;
    }

    /// The peer is a Hamlet agent: bookmarks and proofs are spoken.
    pub fn set_hello(&mut self) {
        self.hello = true;
    }

    /// Names the log that the owner's versions count in.
    pub fn set_log(&mut self, log_id: &[u8]) {
        if log_id.len() == LOG_ID_BYTES {
            self.log_id = log_id.to_vec();
        }
    }

    /// The owner's log and revision that a batch takes us to. A replica that is behind it must
    /// not speak to us, whether or not a proof came since.
    pub fn heard_by<V>(&self, batch: &Batch<V>) -> Option<ProvenAt> {
        let known = !self.log_id.is_empty() && batch.version > 0;
        known.then(|| ProvenAt { log_id: self.log_id.clone(), revision: batch.version })
    }

    /// What a seeded bug does with the stream that this one replaces: its inbox still counts.
    pub fn continue_from(&mut self, older: &mut ConsumerSession) {
        if is_on(SeededBug::OldStreamWrites) {
            self.inbox.append(&mut older.inbox);
            self.inbox_bytes += std::mem::take(&mut older.inbox_bytes);
        }
    }

    /// Counters and last facts.
    pub fn stats(&self) -> ConsumerStats {
        ConsumerStats { round_seen: self.marked.as_ref().map(|m| m.len() as u64), ..self.stats }
    }

    /// Whether the reader may take another message from the stream.
    pub fn has_room(&self) -> bool {
        self.inbox.len() < INBOX_MESSAGES && (self.inbox_bytes < INBOX_BYTES || self.inbox.is_empty())
    }

    /// Age of the oldest change that came and isn't answered yet.
    pub fn oldest_uncommitted(&self, now: Duration) -> Option<Duration> {
        let queued = self.inbox.front().map(|q| q.at);
        self.committing.into_iter().chain(queued).min().map(|at| now.saturating_sub(at))
    }

    /// Age of the oldest answer that the writer hasn't taken.
    pub fn oldest_unwritten(&self, now: Duration) -> Option<Duration> {
        self.answers.front().map(|a| now.saturating_sub(a.at))
    }

    /// The owner's log and revision at the last proof on this stream.
    pub fn proven_at(&self) -> Option<&ProvenAt> {
        self.proven_at.as_ref()
    }

    /// Whether the committer has something to do.
    pub fn has_work(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Takes one change. What is wrong with it becomes a refusal in its turn.
    pub fn receive(&mut self, offer: IncomingOffer, bytes: usize, now: Duration) -> Result<(), StreamEnd> {
        self.stats.received += 1;
        self.stats.last_offer = Some(now);
        if offer.nonce.len() > NONCE_MAX {
            return Err(StreamEnd::new(
                tonic::Code::InvalidArgument,
                "a nonce has more than 1024 bytes; shorten it",
            ));
        }
        if self.answers.len() >= ANSWERS_MAX || self.nonce_bytes >= NONCES_BYTES {
            let text = "more changes without reading our answers than we keep; read while you write";
            return Err(StreamEnd::new(tonic::Code::ResourceExhausted, text));
        }
        if is_on(SeededBug::DropOnOverflow) && self.inbox.len() >= 8 {
            self.answers.push_back(Answer { nonce: offer.nonce, answer: Ok(()), at: now });
            return Ok(());
        }
        self.nonce_bytes += offer.nonce.len();
        let item = self.check(offer, bytes);
        self.queue(item, bytes, now);
        Ok(())
    }

    fn queue(&mut self, item: Item, bytes: usize, now: Duration) {
        self.inbox_bytes += bytes;
        self.inbox.push_back(Queued { item, bytes, at: now });
    }

    fn check(&self, offer: IncomingOffer, bytes: usize) -> Item {
        let refuse = |nonce: String, code, rule: &str, field: &str, message: String| Item::Refuse {
            nonce,
            rejection: Rejection::new(code, rule, field, message),
        };
        let nonce = offer.nonce;
        if bytes > self.message_bytes {
            let message =
                format!("{bytes} bytes; at most {} are taken; offer less in one service", self.message_bytes);
            return refuse(nonce, RejectionCode::Quota, "message-too-large", "response", message);
        }
        if let Some(rejection) = offer.refused {
            return Item::Refuse { nonce, rejection };
        }
        if offer.resource_url != *self.type_url {
            let message = format!("this stream carries {}", self.type_url);
            return refuse(nonce, RejectionCode::Unknown, "resource-type", "resource_url", message);
        }
        if offer.key.is_empty() || offer.key.len() > limits::NAME_BYTES {
            let message = format!("required, at most {} bytes", limits::NAME_BYTES);
            return refuse(nonce, RejectionCode::Malformed, "resource-id", "resource_id", message);
        }
        match (offer.operation, offer.resource) {
            (Operation::Delete, _) => Item::Delete { nonce, key: offer.key, version: offer.version },
            (Operation::Upsert, Some((url, value))) if *url == *self.type_url => {
                // Copied: the value as it came keeps the whole message in memory for as long as
                // it lives, and only its own length counts against the quota.
                let value = Bytes::copy_from_slice(&value);
                Item::Upsert { nonce, key: offer.key, value, version: offer.version }
            }
            (Operation::Upsert, Some(_)) => {
                let message = format!("differs from resource_url; use {}", self.type_url);
                refuse(nonce, RejectionCode::Malformed, "resource-type", "resource.type_url", message)
            }
            (Operation::Upsert, None) => {
                let message = "required in an UPSERT; send the whole service".to_owned();
                refuse(nonce, RejectionCode::Malformed, "resource-missing", "resource", message)
            }
            (operation, _) => {
                let message =
                    format!("{operation:?} is not an operation of this version; use UPSERT or DELETE");
                refuse(nonce, RejectionCode::Unknown, "operation-unknown", "operation", message)
            }
        }
    }

    /// Takes the start of a round.
    ///
    /// # Errors
    /// [`Violation::Round`] for one that can't be.
    pub fn begin(&mut self, begin: ext::Begin, now: Duration) -> Result<(), Violation> {
        let mode = ext::begin::Mode::try_from(begin.mode).map_err(|_| Violation::Round)?;
        let asks = mode == ext::begin::Mode::WantBuckets;
        let scoped = asks || mode == ext::begin::Mode::Scope;
        let level = Level::from_number(begin.level);
        if scoped && level.is_none_or(|l| begin.scope.len() != l.nodes() / 8) {
            return Err(Violation::Round);
        }
        if asks {
            // Each level once: what a round can make us say is bounded by the tree.
            let some = begin.scope.iter().any(|bits| *bits != 0);
            let finer = level.filter(|l| some && self.askable.is_some_and(|least| *l >= least));
            let below = finer.and_then(Level::finer).ok_or(Violation::Round)?;
            self.askable = Some(below);
        }
        // What isn't used isn't kept, and what is kept is a copy: the peer decides how long it is.
        let scope = if scoped { Bytes::copy_from_slice(&begin.scope) } else { Bytes::new() };
        let bytes = scope.len();
        self.queue(Item::Begin(ext::Begin { scope, ..begin }), bytes, now);
        Ok(())
    }

    /// Takes a bookmark; it is handled when everything before it is committed.
    pub fn bookmark(&mut self, bookmark: ext::Bookmark, now: Duration) {
        let copied = |bytes: &Bytes, len: usize| match bytes.len() == len {
            true => Bytes::copy_from_slice(bytes),
            false => Bytes::new(),
        };
        let (root, log_id) = (copied(&bookmark.root, ROOT_BYTES), copied(&bookmark.log_id, LOG_ID_BYTES));
        self.queue(Item::Bookmark(ext::Bookmark { root, log_id, ..bookmark }), 0, now);
    }

    /// The owner said that it leaves for good; it counts after everything before it.
    pub fn leaving(&mut self, now: Duration) {
        self.queue(Item::Leaving, 0, now);
    }

    /// Decides on what came, up to a bookmark or a repeated key. `None` if nothing came.
    pub fn batch<J: Judge>(
        &mut self,
        slice: &mut ImportedSlice<J>,
        now: Duration,
    ) -> Option<Batch<J::Value>> {
        let mut batch = Batch {
            changes: vec![],
            leaving: false,
            answers: vec![],
            staged: vec![],
            upserted: vec![],
            deleted: vec![],
            bookmark: None,
            version: 0,
            messages: 0,
        };
        let since = self.inbox.front().map(|q| q.at);
        let mut keys: BTreeSet<Arc<str>> = BTreeSet::new();
        while batch.answers.len() < BATCH_MAX {
            match self.inbox.front().map(|q| &q.item) {
                None => break,
                Some(Item::Upsert { key, .. } | Item::Delete { key, .. }) if keys.contains(key.as_str()) => {
                    break;
                }
                // Behind a barrier: they speak of what is committed.
                Some(Item::Bookmark(_) | Item::Begin(_) | Item::Leaving) if !batch.answers.is_empty() => {
                    break;
                }
                Some(_) => {}
            }
            let Some(Queued { item, bytes, .. }) = self.inbox.pop_front() else { break };
            self.inbox_bytes -= bytes;
            batch.messages += 1;
            let (nonce, staged) = match item {
                Item::Begin(begin) => {
                    self.open_round(slice, &begin);
                    continue;
                }
                Item::Bookmark(bookmark) => {
                    batch.staged = self.sweep(slice, &bookmark, now);
                    batch.bookmark = Some(bookmark);
                    break;
                }
                Item::Leaving => {
                    batch.leaving = true;
                    break;
                }
                Item::Refuse { nonce, rejection } => {
                    batch.answers.push((nonce, Err(rejection)));
                    continue;
                }
                Item::Upsert { nonce, key, value, version } => {
                    batch.version = batch.version.max(version);
                    let staged = slice.offer(&key, value, version, now);
                    batch.upserted.push(staged.key.clone());
                    (nonce, staged)
                }
                Item::Delete { nonce, key, version } => {
                    batch.version = batch.version.max(version);
                    let staged = slice.delete(&key, now);
                    batch.deleted.push(staged.key.clone());
                    (nonce, staged)
                }
            };
            keys.insert(staged.key.clone());
            batch.answers.push((nonce, staged.answer.clone()));
            batch.staged.push(staged);
        }
        batch.changes = batch.staged.iter().filter_map(|s| slice.change(s, now)).collect();
        self.committing = since;
        (batch.messages > 0).then_some(batch)
    }

    fn open_round<J: Judge>(&mut self, slice: &mut ImportedSlice<J>, begin: &ext::Begin) {
        self.round = begin.round;
        self.marked = None;
        self.scope = None;
        self.full = false;
        match ext::begin::Mode::try_from(begin.mode) {
            Ok(ext::begin::Mode::WantBuckets) => {
                if let Some(among) = scope_of(begin).and_then(|scope| scope.children()) {
                    self.send_buckets(slice, &among);
                }
            }
            Ok(ext::begin::Mode::Scope) => {
                self.marked = Some(slice.surviving_marks(&[], &[]));
                self.scope = scope_of(begin);
            }
            Ok(ext::begin::Mode::All) => {
                self.marked = Some(slice.surviving_marks(&[], &[]));
                self.full = true;
            }
            _ => {}
        }
    }

    /// Hashes of what we hold, in messages of bounded size.
    fn send_buckets<J: Judge>(&mut self, slice: &mut ImportedSlice<J>, among: &Scope) {
        let (round, level) = (self.round, among.level().number());
        let hashes = Bytes::from(slice.heard_hashes(among));
        let message = |from: usize| {
            let to = hashes.len().min(from + BUCKETS_BYTES);
            let first = (from / CUT_BYTES) as u32;
            ext::Buckets { round, level, first, hashes: hashes.slice(from..to), last: to == hashes.len() }
        };
        self.buckets.extend((0..hashes.len()).step_by(BUCKETS_BYTES).map(message));
    }

    fn sweep<J: Judge>(
        &mut self,
        slice: &mut ImportedSlice<J>,
        bookmark: &ext::Bookmark,
        now: Duration,
    ) -> Vec<Staged<J::Value>> {
        if bookmark.round == 0 || bookmark.round != self.round {
            return vec![];
        }
        self.stats.rounds += 1;
        let Some(marked) = self.marked.take() else { return vec![] };
        let scope = self.scope.take().filter(|_| !is_on(SeededBug::SweepOutsideScope));
        // Equal sets have nothing to sweep, whatever was repeated.
        if slice.heard_root().0[..] == bookmark.root[..] || is_on(SeededBug::NeverSweep) {
            return vec![];
        }
        slice.sweep(&marked, scope.as_ref(), now)
    }

    /// Puts a committed batch in effect, or takes it back. Returns what changes in the catalogue.
    pub fn finish<J: Judge>(
        &mut self,
        slice: &mut ImportedSlice<J>,
        batch: Batch<J::Value>,
        outcome: Result<(), Rejection>,
        now: Duration,
    ) -> SliceChanges<J::Value> {
        let Batch { answers, staged, upserted, deleted, bookmark, .. } = batch;
        self.committing = None;
        let unmarked: BTreeSet<Arc<str>> = match is_on(SeededBug::MarkOnlyAdmitted) {
            true => {
                let refused = staged.iter().filter(|s| outcome.is_err() || s.answer.is_err());
                refused.map(|s| s.key.clone()).collect()
            }
            false => BTreeSet::new(),
        };
        if let Err(rejection) = outcome {
            slice.abandon(staged, now);
            self.mark(slice, upserted, deleted, &unmarked);
            for (nonce, _) in answers {
                self.answer(nonce, Err(rejection.clone()), now);
            }
            // The owner offers it again; a bookmark until then speaks of a state we don't have yet.
            self.missed = true;
            if let Some(bookmark) = bookmark {
                // It would have ended a round: another one has to.
                self.plan_round(bookmark.round != 0, now);
            }
            return vec![];
        }
        let mut changes = slice.apply(staged, now);
        self.mark(slice, upserted, deleted, &unmarked);
        for (nonce, answer) in answers {
            self.answer(nonce, answer, now);
        }
        if let Some(bookmark) = bookmark {
            self.prove(slice, &bookmark, now);
            changes.extend(slice.set_expired(false));
        } else if !self.hello {
            // A foreign owner gives no proof; that it talks to us again has to do.
            changes.extend(slice.set_expired(false));
        }
        changes
    }

    /// Notes what was repeated in the open round, whatever its verdict. Only what is heard can be
    /// swept, so nothing else needs a mark: marks are bounded by what may be heard.
    fn mark<J: Judge>(
        &mut self,
        slice: &mut ImportedSlice<J>,
        upserted: Vec<Arc<str>>,
        deleted: Vec<Arc<str>>,
        except: &BTreeSet<Arc<str>>,
    ) {
        slice.surviving_marks(&upserted, &deleted);
        let Some(marked) = &mut self.marked else { return };
        marked.extend(upserted.into_iter().filter(|key| slice.hears(key) && !except.contains(key)));
        for key in deleted {
            marked.remove(&key);
        }
    }

    fn answer(&mut self, nonce: String, answer: Result<(), Rejection>, now: Duration) {
        self.stats.refused += u64::from(answer.is_err());
        self.answers.push_back(Answer { nonce, answer, at: now });
    }

    fn prove<J: Judge>(&mut self, slice: &mut ImportedSlice<J>, bookmark: &ext::Bookmark, now: Duration) {
        let (root, _) = slice.heard_root();
        let equal = root[..] == bookmark.root[..];
        let counts = slice.counts();
        self.stats.owner_count = Some(bookmark.count);
        let missed = std::mem::take(&mut self.missed);
        let verdict = if equal {
            self.stats.verdict = ProofVerdict::Equal(now);
            self.stats.proven_version = bookmark.version;
            self.proven_at = Some(ProvenAt { log_id: bookmark.log_id.to_vec(), revision: bookmark.revision });
            self.next_round = None;
            self.unproven_wait = UNPROVEN_FIRST;
            ext::proof::Verdict::Equal
        } else {
            if !matches!(self.stats.verdict, ProofVerdict::Different(_)) {
                self.stats.verdict = ProofVerdict::Different(now);
            }
            if missed && bookmark.round == 0 {
                // The owner still has to offer what we couldn't keep.
                ext::proof::Verdict::Pending
            } else {
                self.plan_round(bookmark.round != 0, now);
                ext::proof::Verdict::Different
            }
        };
        self.proof = Some(ext::Proof {
            seq: bookmark.seq,
            verdict: verdict as i32,
            root: root.to_vec().into(),
            refused: counts.refused,
            withheld: counts.withheld,
        });
    }

    /// After an ordinary bookmark a round by buckets follows soon; when that did not help, one
    /// over everything; when that did not help either, ever later: never a loop.
    fn plan_round(&mut self, after_round: bool, now: Duration) {
        if self.next_round.is_some() {
            return;
        }
        let wait = if after_round && self.full {
            let wait = self.unproven_wait;
            self.unproven_wait = (wait * 2).min(UNPROVEN_CAP);
            wait
        } else {
            crate::owner::ROUND_GAP
        };
        self.next_round = Some(Planned { due: now + wait, full: after_round });
    }

    /// Our own policy changed a verdict on what the owner has said: it is told.
    pub fn verdict_changed<J: Judge>(&mut self, slice: &ImportedSlice<J>, key: &Arc<str>) {
        match slice.refusal(key) {
            None => self.report(slice, key, ext::applied::Level::Durable, None),
            Some(why) => self.report(slice, key, ext::applied::Level::Unspecified, Some(why.clone())),
        }
    }

    /// Tells the owner how far a change got beyond the acknowledgement, or why it got no further.
    pub fn report<J: Judge>(
        &mut self,
        slice: &ImportedSlice<J>,
        key: &Arc<str>,
        level: ext::applied::Level,
        why: Option<Rejection>,
    ) {
        if !self.hello || !slice.hears(key) {
            return;
        }
        if self.applied.len() >= APPLIED_MAX && !self.applied.contains_key(key) {
            self.verdicts_changed = true;
            return;
        }
        let change = ext::applied::Change {
            key: key.to_string(),
            version: slice.heard_version(key),
            level: level as i32,
            age_ms: 0,
            error: why.map(|why| crate::dialect::v1alpha2::error_info(&why)),
        };
        self.applied.insert(key.clone(), change);
    }

    /// How many more services the owner can be told of now.
    pub fn applied_room(&self) -> usize {
        APPLIED_MAX.saturating_sub(self.applied.len())
    }

    /// Asks for a round if one is due; `root` and `count` are over what was heard.
    pub fn tick<J: Judge>(&mut self, slice: &mut ImportedSlice<J>, now: Duration) {
        let planned = self.next_round.filter(|p| p.due <= now);
        let due = self.verdicts_changed || planned.is_some();
        // The owner takes asking sooner for a breach.
        let soon = self.asked_round.is_some_and(|at| now.saturating_sub(at) < crate::owner::ROUND_GAP);
        if self.hello && due && !soon && self.marked.is_none() {
            let full = self.verdicts_changed || planned.is_some_and(|p| p.full);
            self.asked_round = Some(now);
            self.next_round = None;
            self.verdicts_changed = false;
            self.askable = Some(Level::One);
            let held = held_of(slice, &PeerState::default());
            self.ask_round = Some(ext::Held { round: crate::owner::round_after(self.round), full, ..held });
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn wake_at(&self) -> Option<Duration> {
        self.next_round.map(|p| p.due)
    }

    /// Whether answers or controls wait for the writer.
    pub fn has_out(&self) -> bool {
        !self.answers.is_empty()
            || self.proof.is_some()
            || self.ask_round.is_some()
            || !self.buckets.is_empty()
            || !self.applied.is_empty()
    }

    /// The next answer or control to write.
    pub fn next_out(&mut self) -> Option<Outgoing> {
        if let Some(Answer { nonce, answer, .. }) = self.answers.pop_front() {
            self.nonce_bytes = self.nonce_bytes.saturating_sub(nonce.len());
            return Some(Outgoing::Answer { nonce, answer });
        }
        let kind = if let Some(proof) = self.proof.take() {
            ext::control::Kind::Proof(proof)
        } else if let Some(held) = self.ask_round.take() {
            ext::control::Kind::Held(held)
        } else if let Some(buckets) = self.buckets.pop_front() {
            ext::control::Kind::Buckets(buckets)
        } else {
            let mut changes = vec![];
            while changes.len() < APPLIED_BATCH
                && let Some((_, change)) = self.applied.pop_first()
            {
                changes.push(change);
            }
            if changes.is_empty() {
                return None;
            }
            ext::control::Kind::Applied(ext::Applied { changes })
        };
        Some(Outgoing::Control(ext::Control { kind: Some(kind) }))
    }
}
