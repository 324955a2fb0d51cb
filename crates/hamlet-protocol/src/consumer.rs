//! The consumer's side of one stream: an inbox of what came, batches for the committer, answers
//! in the order of receipt, and the proof that we hold the same set. Sans-IO; *hardened to
//! untrusted peer*: the inbox is bounded in messages and bytes.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::durable::ImportChange;
use hamlet_core::imported::{ImportedSlice, SliceChanges, Staged};
use hamlet_core::service::limits;
use hamlet_core::{Rejection, RejectionCode};

use crate::dialect::{IncomingOffer, Operation, Outgoing};
use crate::session::StreamEnd;
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
const BATCH_MAX: usize = 512;
/// Length of a digest root.
const ROOT_BYTES: usize = 32;
/// Longest nonce that we repeat.
const NONCE_MAX: usize = 1_024;
/// First wait before a further whole round when one did not end in equality; doubles to an hour.
const UNPROVEN_FIRST: Duration = Duration::from_secs(60);
const UNPROVEN_CAP: Duration = Duration::from_secs(3600);

#[derive(Debug)]
enum Item {
    Upsert { nonce: String, key: String, value: Bytes },
    Delete { nonce: String, key: String },
    Refuse { nonce: String, rejection: Rejection },
    Begin(ext::Begin),
    Bookmark(ext::Bookmark),
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
}

/// What the committer has to make durable; give it back to [`ConsumerSession::finish`].
#[derive(Debug)]
pub struct Batch {
    /// The changes to commit; may be empty.
    pub changes: Vec<ImportChange>,
    answers: Vec<(String, Result<(), Rejection>)>,
    staged: Vec<Staged>,
    /// Keys repeated since the round began, and keys deleted.
    upserted: Vec<Arc<str>>,
    deleted: Vec<Arc<str>>,
    bookmark: Option<ext::Bookmark>,
    messages: usize,
}

/// The consumer role on one stream.
#[derive(Debug)]
pub struct ConsumerSession {
    type_url: &'static str,
    message_bytes: usize,
    inbox: VecDeque<(Item, usize)>,
    inbox_bytes: usize,
    answers: VecDeque<(String, Result<(), Rejection>)>,
    nonce_bytes: usize,
    hello: bool,
    marked: Option<BTreeSet<Arc<str>>>,
    round: u32,
    proof: Option<ext::Proof>,
    ask_round: Option<ext::Held>,
    next_round: Option<Duration>,
    asked_round: Option<Duration>,
    verdicts_changed: bool,
    unproven_wait: Duration,
    stats: ConsumerStats,
}

impl ConsumerSession {
    /// A session for resources of one type.
    pub fn new(type_url: &'static str) -> ConsumerSession {
        ConsumerSession {
            type_url,
            message_bytes: limits::MESSAGE_BYTES,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            answers: VecDeque::new(),
            nonce_bytes: 0,
            hello: false,
            marked: None,
            round: 1,
            proof: None,
            ask_round: None,
            next_round: None,
            asked_round: None,
            verdicts_changed: false,
            unproven_wait: UNPROVEN_FIRST,
            stats: ConsumerStats {
                received: 0,
                refused: 0,
                last_offer: None,
                verdict: ProofVerdict::None,
                owner_count: None,
                round_seen: None,
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

    /// Counters and last facts.
    pub fn stats(&self) -> ConsumerStats {
        ConsumerStats { round_seen: self.marked.as_ref().map(|m| m.len() as u64), ..self.stats }
    }

    /// Whether the reader may take another message from the stream.
    pub fn has_room(&self) -> bool {
        self.inbox.len() < INBOX_MESSAGES && (self.inbox_bytes < INBOX_BYTES || self.inbox.is_empty())
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
        self.nonce_bytes += offer.nonce.len();
        self.inbox_bytes += bytes;
        let item = self.check(offer, bytes);
        self.inbox.push_back((item, bytes));
        Ok(())
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
        if offer.resource_url != self.type_url {
            let message = format!("this stream carries {}", self.type_url);
            return refuse(nonce, RejectionCode::Unknown, "resource-type", "resource_url", message);
        }
        if offer.key.is_empty() || offer.key.len() > limits::NAME_BYTES {
            let message = format!("required, at most {} bytes", limits::NAME_BYTES);
            return refuse(nonce, RejectionCode::Malformed, "resource-id", "resource_id", message);
        }
        match (offer.operation, offer.resource) {
            (Operation::Delete, _) => Item::Delete { nonce, key: offer.key },
            (Operation::Upsert, Some((url, value))) if url == self.type_url => {
                // Copied: the value as it came keeps the whole message in memory for as long as
                // it lives, and only its own length counts against the quota.
                Item::Upsert { nonce, key: offer.key, value: Bytes::copy_from_slice(&value) }
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
    pub fn begin(&mut self, begin: ext::Begin) {
        // What isn't used isn't kept: the peer decides how long it is.
        let begin = ext::Begin { scope: Bytes::new(), ..begin };
        self.inbox.push_back((Item::Begin(begin), 0));
    }

    /// Takes a bookmark; it is handled when everything before it is committed.
    pub fn bookmark(&mut self, bookmark: ext::Bookmark) {
        let root = &bookmark.root[..];
        let root = if root.len() == ROOT_BYTES { Bytes::copy_from_slice(root) } else { Bytes::new() };
        let bookmark = ext::Bookmark { root, log_id: Bytes::new(), ..bookmark };
        self.inbox.push_back((Item::Bookmark(bookmark), 0));
    }

    /// Decides on what came, up to a bookmark or a repeated key. `None` if nothing came.
    pub fn batch(&mut self, slice: &mut ImportedSlice, now: Duration) -> Option<Batch> {
        let mut batch = Batch {
            changes: vec![],
            answers: vec![],
            staged: vec![],
            upserted: vec![],
            deleted: vec![],
            bookmark: None,
            messages: 0,
        };
        let mut keys: BTreeSet<Arc<str>> = BTreeSet::new();
        while batch.answers.len() < BATCH_MAX {
            match self.inbox.front().map(|(item, _)| item) {
                None => break,
                Some(Item::Upsert { key, .. } | Item::Delete { key, .. }) if keys.contains(key.as_str()) => {
                    break;
                }
                Some(Item::Bookmark(_)) if !batch.answers.is_empty() => break,
                Some(_) => {}
            }
            let Some((item, bytes)) = self.inbox.pop_front() else { break };
            self.inbox_bytes -= bytes;
            batch.messages += 1;
            let staged = match item {
                Item::Begin(begin) => {
                    self.open_round(&begin);
                    batch.upserted.clear();
                    continue;
                }
                Item::Bookmark(bookmark) => {
                    batch.staged = self.sweep(slice, &bookmark, now);
                    batch.bookmark = Some(bookmark);
                    break;
                }
                Item::Refuse { nonce, rejection } => {
                    batch.answers.push((nonce, Err(rejection)));
                    continue;
                }
                Item::Upsert { nonce, key, value } => {
                    let staged = slice.offer(&key, value, now);
                    batch.upserted.push(staged.key.clone());
                    (nonce, staged)
                }
                Item::Delete { nonce, key } => {
                    let staged = slice.delete(&key, now);
                    batch.deleted.push(staged.key.clone());
                    (nonce, staged)
                }
            };
            let (nonce, staged) = staged;
            keys.insert(staged.key.clone());
            batch.answers.push((nonce, staged.answer.clone()));
            batch.staged.push(staged);
        }
        batch.changes = batch.staged.iter().filter_map(|s| slice.change(s, now)).collect();
        (batch.messages > 0).then_some(batch)
    }

    fn open_round(&mut self, begin: &ext::Begin) {
        self.round = begin.round;
        self.marked = (begin.mode == ext::begin::Mode::All as i32).then(BTreeSet::new);
    }

    fn sweep(&mut self, slice: &mut ImportedSlice, bookmark: &ext::Bookmark, now: Duration) -> Vec<Staged> {
        if bookmark.round == 0 || bookmark.round != self.round {
            return vec![];
        }
        match self.marked.take() {
            Some(marked) => slice.sweep(&marked, now),
            None => vec![],
        }
    }

    /// Puts a committed batch in effect, or takes it back. Returns what changes in the catalogue.
    pub fn finish(
        &mut self,
        slice: &mut ImportedSlice,
        batch: Batch,
        outcome: Result<(), Rejection>,
        now: Duration,
    ) -> SliceChanges {
        let Batch { answers, staged, upserted, deleted, bookmark, .. } = batch;
        if let Err(rejection) = outcome {
            slice.abandon(staged, now);
            self.mark(slice, upserted, deleted);
            for (nonce, _) in answers {
                self.answer(nonce, Err(rejection.clone()));
            }
            // The bookmark speaks of a state we don't have: no proof and no sweep, but a new round.
            if bookmark.is_some() {
                self.plan_round(false, now);
            }
            return vec![];
        }
        let mut changes = slice.apply(staged, now);
        self.mark(slice, upserted, deleted);
        for (nonce, answer) in answers {
            self.answer(nonce, answer);
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
    fn mark(&mut self, slice: &ImportedSlice, upserted: Vec<Arc<str>>, deleted: Vec<Arc<str>>) {
        let Some(marked) = &mut self.marked else { return };
        marked.extend(upserted.into_iter().filter(|key| slice.hears(key)));
        for key in deleted {
            marked.remove(&key);
        }
    }

    fn answer(&mut self, nonce: String, answer: Result<(), Rejection>) {
        self.stats.refused += u64::from(answer.is_err());
        self.answers.push_back((nonce, answer));
    }

    fn prove(&mut self, slice: &mut ImportedSlice, bookmark: &ext::Bookmark, now: Duration) {
        let (root, _) = slice.heard_root();
        let equal = root[..] == bookmark.root[..];
        let counts = slice.counts();
        self.stats.owner_count = Some(bookmark.count);
        let verdict = if equal {
            self.stats.verdict = ProofVerdict::Equal(now);
            self.next_round = None;
            self.unproven_wait = UNPROVEN_FIRST;
            ext::proof::Verdict::Equal
        } else {
            if !matches!(self.stats.verdict, ProofVerdict::Different(_)) {
                self.stats.verdict = ProofVerdict::Different(now);
            }
            self.plan_round(bookmark.round != 0, now);
            ext::proof::Verdict::Different
        };
        self.proof = Some(ext::Proof {
            seq: bookmark.seq,
            verdict: verdict as i32,
            root: root.to_vec().into(),
            refused: counts.refused,
            withheld: counts.withheld,
        });
    }

    /// After an ordinary bookmark a whole round follows soon; after a round that did not help,
    /// ever later: never a loop.
    fn plan_round(&mut self, after_round: bool, now: Duration) {
        if self.next_round.is_some() {
            return;
        }
        let wait = if after_round {
            let wait = self.unproven_wait;
            self.unproven_wait = (wait * 2).min(UNPROVEN_CAP);
            wait
        } else {
            crate::owner::ROUND_GAP
        };
        self.next_round = Some(now + wait);
    }

    /// Our own policy changed verdicts on what the owner has said: it is told by a whole round, in
    /// which it gets a new answer for each.
    pub fn verdicts_changed(&mut self) {
        self.verdicts_changed = true;
    }

    /// Asks for a whole round if one is due; `root` and `count` are over what was heard.
    pub fn tick(&mut self, slice: &mut ImportedSlice, now: Duration) {
        let due = self.verdicts_changed || self.next_round.is_some_and(|due| due <= now);
        // The owner takes asking sooner for a breach.
        let soon = self.asked_round.is_some_and(|at| now.saturating_sub(at) < crate::owner::ROUND_GAP);
        if self.hello && due && !soon && self.marked.is_none() {
            self.asked_round = Some(now);
            self.next_round = None;
            self.verdicts_changed = false;
            let (root, count) = slice.heard_root();
            self.ask_round = Some(ext::Held {
                round: crate::owner::round_after(self.round),
                digest_version: 1,
                type_url: self.type_url.to_owned(),
                root: root.to_vec().into(),
                count,
                full: true,
                ..ext::Held::default()
            });
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    pub fn wake_at(&self) -> Option<Duration> {
        self.next_round
    }

    /// The next answer or control to write.
    pub fn next_out(&mut self) -> Option<Outgoing> {
        if let Some((nonce, answer)) = self.answers.pop_front() {
            self.nonce_bytes = self.nonce_bytes.saturating_sub(nonce.len());
            return Some(Outgoing::Answer { nonce, answer });
        }
        let kind = match self.proof.take() {
            Some(proof) => ext::control::Kind::Proof(proof),
            None => ext::control::Kind::Held(self.ask_round.take()?),
        };
        Some(Outgoing::Control(ext::Control { kind: Some(kind) }))
    }
}
