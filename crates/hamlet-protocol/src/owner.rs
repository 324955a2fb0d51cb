//! The owner's side of one stream: what it offers next, and what came of it. Sans-IO.
//!
//! It holds a place in a view and the messages in flight, never a payload queue, so a slow or
//! silent consumer costs O(1). Towards a foreign peer there is never more than one unanswered
//! message, unless its configuration allows more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::digest::Scope;
use hamlet_core::rejection::one_line;
use hamlet_core::seeded::{SeededBug, is_on};
use hamlet_core::view::{Change, Next, Subscription, View};
use tonic::Code;

use crate::dialect::Outgoing;
use crate::kind::StreamObserver;
use crate::round::{OwnerRound, Step};
use crate::session::{StreamEnd, Violation};
use crate::wire::hamlet::federation::v1 as ext;

/// Most refusals remembered for status, and most keys waiting to be offered again.
pub const REFUSALS_MAX: usize = 1_024;
/// Least time between bookmarks while changes flow.
pub const BOOKMARK_BUSY: Duration = Duration::from_secs(1);
/// Time between bookmarks while nothing changes.
pub const BOOKMARK_IDLE: Duration = Duration::from_secs(60);
/// Least time between rounds that a consumer asks for on a live stream.
pub const ROUND_GAP: Duration = Duration::from_secs(10);
/// Most services of which a consumer's word that they can't be used is remembered.
pub const UNUSABLE_MAX: usize = 1_024;
/// Changes that are not sent yet are counted up to this.
pub const BEHIND_COUNTED: usize = 1_000;
/// First wait before something refused as UNAVAILABLE is offered again; doubles to a minute.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct InFlight {
    nonce: u64,
    change: Change,
    at: Duration,
    // The same in the time that runs only while we read.
    judged_at: Duration,
}

impl InFlight {
    fn bytes(&self) -> usize {
        self.change.offer.value.len() + self.change.offer.key.len()
    }
}

/// How much a consumer takes before it has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Most unanswered changes; at least one.
    pub messages: usize,
    /// Most bytes of unanswered changes; one larger change is sent when nothing is in flight.
    pub bytes: usize,
}

impl Window {
    /// One at a time: what the published protocol promises to anyone.
    pub const ONE: Window = Window { messages: 1, bytes: usize::MAX };
}

/// Something refused as UNAVAILABLE, to be offered again.
#[derive(Debug)]
struct Retry {
    due: Duration,
    wait: Duration,
    /// The change if it is a deletion: the view may have forgotten it, as it was handed out.
    deletion: Option<Change>,
    /// What was refused; only a seeded bug offers that again.
    stored: Option<Change>,
    /// Whether it was refused as something new, and so still is.
    fresh: bool,
}

/// The number of the next round; 0 is none, and the last one is the peer's to choose.
pub(crate) fn round_after(round: u32) -> u32 {
    round.checked_add(1).unwrap_or(1)
}

/// A refusal as the consumer sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// gRPC status code.
    pub code: i32,
    /// The consumer's message, cleaned.
    pub message: String,
    /// The version that was refused.
    pub version: u64,
}

/// What the consumer proved last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProofState {
    /// When its proof came.
    pub at: Duration,
    /// Whether it holds the same set as the bookmark said.
    pub equal: bool,
    /// Version of the bookmark it answered.
    pub version: u64,
    /// How many of our services it refused.
    pub refused: u64,
    /// How many withdrawals it withholds.
    pub withheld: u64,
    /// It couldn't keep something and waits to be offered it again.
    pub pending: bool,
}

/// Counters and last facts of one stream's owner role.
#[derive(Debug, Clone, Default)]
pub struct OwnerStats {
    /// Changes sent.
    pub sent: u64,
    /// Changes acknowledged.
    pub acked: u64,
    /// Changes refused.
    pub nacked: u64,
    /// Refused services by key, the last word of each.
    pub refused: BTreeMap<Arc<str>, Refusal>,
    /// The last proof.
    pub proof: Option<ProofState>,
    /// Rounds by how they went: roots equal, by buckets, everything.
    pub rounds: [u64; 3],
    /// Services that the consumer admitted but can't use, and why, in its words.
    pub unusable: BTreeMap<Arc<str>, String>,
    /// How often the consumer reported that a change can be used by its workloads.
    pub programmed: u64,
}

/// The owner role on one stream.
#[derive(Debug)]
pub struct OwnerSession {
    sub: Subscription,
    hello: bool,
    /// Whether the consumer wants anything at all (a hello peer that doesn't import says so).
    wanted: bool,
    window: Window,
    next_nonce: u64,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    retry: BTreeMap<Arc<str>, Retry>,
    begin: Option<ext::Begin>,
    round: Option<OwnerRound>,
    /// The round whose hashes were asked for and are not waited for any more; 0 if none.
    given_up: u32,
    /// The number of the round whose end the next bookmark says; 0 if none.
    open: u32,
    last_number: u32,
    last_round: Option<Duration>,
    bookmark_seq: u64,
    bookmarked: Option<Bookmarked>,
    behind_since: Option<Duration>,
    log_id: Vec<u8>,
    observer: Option<Arc<dyn StreamObserver>>,
    stats: OwnerStats,
}

#[derive(Debug, Clone, Copy)]
struct Bookmarked {
    seq: u64,
    version: u64,
    at: Duration,
    pending: bool,
}

impl OwnerSession {
    /// Starts before everything. Of a hello peer, `held` is what it said it holds (`None` if it
    /// imports nothing), and the first round is about that.
    pub fn new(
        peer: &str,
        view: &Arc<View>,
        hello: bool,
        held: Option<&ext::Held>,
        window: Window,
        log_id: &[u8],
        now: Duration,
    ) -> OwnerSession {
        let round = held.filter(|_| hello).map(|held| OwnerRound::fresh(held, now));
        OwnerSession {
            sub: view.subscribe(peer),
            hello,
            wanted: !hello || held.is_some(),
            window: Window { messages: window.messages.max(1), ..window },
            next_nonce: 1,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            retry: BTreeMap::new(),
            begin: None,
            last_number: held.map_or(0, |h| h.round),
            round,
            given_up: 0,
            open: 0,
            last_round: None,
            bookmark_seq: 0,
            bookmarked: None,
            behind_since: None,
            log_id: log_id.to_vec(),
            observer: None,
            stats: OwnerStats::default(),
        }
    }

    fn begin_round(&mut self, number: u32, mode: ext::begin::Mode, scope: Option<&Scope>) {
        self.begin = Some(begin_over(number, mode, scope));
        self.open = number;
        self.last_number = number;
    }

    /// Who is told what the consumer answers.
    pub fn observe(&mut self, observer: Option<Arc<dyn StreamObserver>>) {
        self.observer = observer;
    }

    /// Counters and last facts.
    pub fn stats(&self) -> &OwnerStats {
        &self.stats
    }

    /// Number of live services offered.
    pub fn offered(&self) -> u64 {
        if self.wanted { self.sub.view().count() } else { 0 }
    }

    /// Keys not handed out yet (at most `max` are counted), and those in flight.
    pub fn behind(&self, max: usize) -> usize {
        if !self.wanted {
            return 0;
        }
        // The place moves when a pass is over, which those in flight may be part of or not.
        let passed = self.in_flight.iter().filter(|f| self.sub.has_passed(f.change.version));
        self.sub.behind(max) + passed.count()
    }

    /// Messages that wait for an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether the consumer takes anything of ours: a Hamlet agent that doesn't import says so.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// The window in use.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Version of the newest change that this consumer should have.
    pub fn head(&self) -> u64 {
        if self.wanted { self.sub.view().head() } else { 0 }
    }

    /// Age of the oldest unanswered change.
    pub fn oldest_unanswered(&self, now: Duration) -> Option<Duration> {
        self.in_flight.front().map(|f| now.saturating_sub(f.at))
    }

    /// The same in the time that runs only while we read: what the deadline is held against.
    pub fn oldest_judged(&self, judged: Duration) -> Option<Duration> {
        self.in_flight.front().map(|f| judged.saturating_sub(f.judged_at))
    }

    /// For how long there have been changes that are not handed out.
    pub fn behind_for(&self, now: Duration) -> Option<Duration> {
        self.behind_since.map(|at| now.saturating_sub(at))
    }

    /// Whether the window leaves room for another change.
    pub fn has_credit(&self) -> bool {
        self.in_flight.is_empty()
            || (self.in_flight.len() < self.window.messages && self.in_flight_bytes < self.window.bytes)
    }

    /// Looks whether there is something to hand out, for [`behind_for`](Self::behind_for).
    pub fn tick(&mut self, now: Duration) {
        if self.wanted && !self.sub.is_at_head() {
            self.behind_since.get_or_insert(now);
        } else {
            self.behind_since = None;
        }
    }

    /// Follows the peer to its new view after a policy change.
    pub fn move_to(&mut self, view: &Arc<View>) {
        self.sub.move_to(view);
    }

    /// What to send next, if anything may be sent now. `judged` is the time that runs only while
    /// we read.
    ///
    /// # Errors
    /// The end of the stream, when only a new one can help.
    pub fn next(&mut self, now: Duration, judged: Duration) -> Result<Option<Outgoing>, StreamEnd> {
        if !self.wanted {
            return Ok(None);
        }
        if is_on(SeededBug::ControlToForeign) && !self.hello && self.bookmark_seq == 0 {
            self.bookmark_seq = 1;
            return Ok(Some(control(ext::control::Kind::Beat(ext::Beat::default()))));
        }
        if !self.step_round(now)? {
            return Ok(None);
        }
        if let Some(begin) = self.begin.take() {
            return Ok(Some(control(ext::control::Kind::Begin(begin))));
        }
        if self.has_credit() {
            if let Some(change) = self.due_retry(now) {
                return Ok(Some(self.send(change, now, judged)));
            }
            match self.sub.take_next() {
                Next::Change(change) => return Ok(Some(self.send(change, now, judged))),
                Next::AtHead => self.behind_since = None,
                Next::Resync if self.hello => {
                    self.sub.restart();
                    if let Some(round) = self.round.take().filter(OwnerRound::awaits) {
                        self.given_up = round.number();
                    }
                    self.begin_round(round_after(self.last_number), ext::begin::Mode::All, None);
                    self.stats.rounds[2] += 1;
                    return self.next(now, judged);
                }
                Next::Resync => {
                    let text = "fell behind by more deletions than are remembered; connect again for the whole state";
                    return Err(StreamEnd::new(Code::Unavailable, text));
                }
            }
        }
        Ok(self.bookmark(now))
    }

    /// Takes the round forward. Whether changes may be sent meanwhile.
    fn step_round(&mut self, now: Duration) -> Result<bool, StreamEnd> {
        let Some(round) = &mut self.round else { return Ok(true) };
        let awaited = round.awaits();
        match round.step(&mut self.sub, &self.log_id, now)? {
            Step::Wait { may_send } => return Ok(may_send),
            Step::Ask(scope) => {
                let number = round.number();
                self.last_number = number;
                self.begin = Some(begin_over(number, ext::begin::Mode::WantBuckets, Some(&scope)));
                return Ok(true);
            }
            Step::Equal => {
                let number = round.number();
                self.begin_round(number, ext::begin::Mode::Equal, None);
                self.stats.rounds[0] += 1;
            }
            Step::Scope(scope) => {
                let number = round.number();
                self.begin_round(number, ext::begin::Mode::Scope, Some(&scope));
                self.stats.rounds[1] += 1;
            }
            Step::All => {
                let number = round.number();
                self.given_up = if awaited { number } else { 0 };
                self.begin_round(number, ext::begin::Mode::All, None);
                self.stats.rounds[2] += 1;
            }
        }
        self.round = None;
        Ok(true)
    }

    fn due_retry(&mut self, now: Duration) -> Option<Change> {
        while let Some((key, retry)) = self.retry.iter_mut().find(|(_, r)| r.due <= now) {
            // Due again only if it is refused once more.
            retry.due = Duration::MAX;
            let (key, deletion, fresh) = (key.clone(), retry.deletion.clone(), retry.fresh);
            let stored = retry.stored.clone().filter(|_| is_on(SeededBug::ReofferStored));
            match stored.or_else(|| self.sub.view().latest(&key)).or(deletion) {
                Some(change) => return Some(Change { fresh, ..change }),
                None => self.retry.remove(&key),
            };
        }
        None
    }

    fn send(&mut self, change: Change, now: Duration, judged: Duration) -> Outgoing {
        let nonce = self.next_nonce;
        self.next_nonce += 1;
        let in_flight = InFlight { nonce, change: change.clone(), at: now, judged_at: judged };
        self.in_flight_bytes += in_flight.bytes();
        self.in_flight.push_back(in_flight);
        self.stats.sent += 1;
        Outgoing::Offer { nonce, change, versioned: self.hello }
    }

    fn bookmark(&mut self, now: Duration) -> Option<Outgoing> {
        // What was refused as UNAVAILABLE is still to come: no bookmark before it.
        if !self.hello || !self.retry.is_empty() || now < self.bookmark_due() {
            return None;
        }
        let summary = self.sub.bookmark()?;
        self.bookmark_seq += 1;
        let (seq, version) = (self.bookmark_seq, summary.version);
        self.bookmarked = Some(Bookmarked { seq, version, at: now, pending: false });
        Some(control(ext::control::Kind::Bookmark(ext::Bookmark {
            seq,
            round: std::mem::take(&mut self.open),
            version,
            root: summary.root.to_vec().into(),
            count: summary.count,
            log_id: self.log_id.clone().into(),
            revision: version,
        })))
    }

    fn bookmark_due(&self) -> Duration {
        match self.bookmarked {
            None => Duration::ZERO,
            Some(b) if self.open != 0 || b.pending || b.version != self.sub.view().head() => {
                b.at + BOOKMARK_BUSY
            }
            Some(b) => b.at + BOOKMARK_IDLE,
        }
    }

    /// Whether [`next`](Self::next) would say something now; changes count if they are `hurried`.
    /// `true` may be said in vain.
    pub fn wants_write(&self, now: Duration, hurried: bool) -> bool {
        if !self.wanted {
            return false;
        }
        let at_head = self.sub.is_at_head();
        let retries = self.retry.values().any(|r| r.due <= now);
        let changes = hurried && self.has_credit() && (!at_head || retries);
        let bookmark = self.hello && at_head && self.retry.is_empty() && self.bookmark_due() <= now;
        self.begin.is_some() || self.round.is_some() || changes || bookmark
    }

    /// When [`next`](Self::next) should be asked again although nothing happened.
    pub fn wake_at(&self) -> Option<Duration> {
        if !self.wanted {
            return None;
        }
        let retry = self.retry.values().map(|r| r.due).min();
        let round = self.round.as_ref().map(OwnerRound::wake_at);
        // A fresh stream's place is at the head before it is known what the round repeats.
        let held_back = self.round.as_ref().is_some_and(OwnerRound::holds);
        let may_bookmark = self.hello
            && !held_back
            && self.retry.is_empty()
            && self.sub.view().is_ready()
            && self.sub.is_at_head();
        let bookmark = may_bookmark.then(|| self.bookmark_due());
        retry.into_iter().chain(round).chain(bookmark).min()
    }

    /// Takes the consumer's answer to one offer.
    pub fn answer(
        &mut self,
        nonce: &str,
        status: Option<(i32, String)>,
        now: Duration,
    ) -> Result<(), Violation> {
        // A peer that sends no nonce means the only message in flight.
        let canonical = !nonce.starts_with(['0', '+']);
        let number: Option<u64> = nonce.parse().ok().filter(|_| canonical);
        let at = match number.and_then(|n| self.in_flight.binary_search_by_key(&n, |f| f.nonce).ok()) {
            Some(at) => at,
            None if nonce.is_empty() && !self.hello && self.in_flight.len() == 1 => 0,
            None => return Err(Violation::UnknownNonce),
        };
        let missing = status.is_none();
        if missing && self.hello {
            return Err(Violation::AnswerWithoutStatus);
        }
        let Some(answered) = self.in_flight.remove(at) else { return Ok(()) };
        self.in_flight_bytes -= answered.bytes();
        let (code, message) = status.unwrap_or_default();
        if code == 0 {
            self.acknowledged(&answered);
        } else {
            self.refused(answered, code, &message, now);
        }
        // Counted, but taken as an acknowledgement: else this peer would wait for ever.
        if missing { Err(Violation::AnswerWithoutStatus) } else { Ok(()) }
    }

    fn acknowledged(&mut self, answered: &InFlight) {
        self.stats.acked += 1;
        self.stats.refused.remove(&answered.change.offer.key);
        if answered.change.deleted {
            self.stats.unusable.remove(&answered.change.offer.key);
        }
        self.retry.remove(&answered.change.offer.key);
        if let Some(observer) = &self.observer {
            observer.answered(&answered.change, Ok(()));
        }
    }

    fn refused(&mut self, answered: InFlight, code: i32, message: &str, now: Duration) {
        self.stats.nacked += 1;
        let InFlight { change, .. } = answered;
        let key = change.offer.key.clone();
        let refusal = Refusal { code, message: one_line(message, 512), version: change.version };
        if let Some(observer) = &self.observer {
            observer.answered(&change, Err(&refusal));
        }
        if self.stats.refused.len() < REFUSALS_MAX || self.stats.refused.contains_key(&key) {
            self.stats.refused.insert(key.clone(), refusal);
        }
        if code != Code::Unavailable as i32 {
            self.retry.remove(&key);
            return;
        }
        let waited = self.retry.get(&key).map(|r| r.wait);
        let wait = waited.map_or(RETRY_FIRST, |w| (w * 2).min(RETRY_CAP));
        let stored = is_on(SeededBug::ReofferStored).then(|| change.clone());
        let fresh = change.fresh;
        let deletion = change.deleted.then_some(change);
        if self.retry.len() >= REFUSALS_MAX && waited.is_none() {
            // Too many to remember singly: what lives is offered once more, and only deletions
            // are remembered, as many as there is room for.
            self.sub.repeat();
            self.retry.retain(|_, r| r.deletion.is_some());
            if deletion.is_none() || self.retry.len() >= REFUSALS_MAX {
                return;
            }
        }
        self.retry.insert(key, Retry { due: now + wait, wait, deletion, stored, fresh });
    }

    /// The consumer asks for a round on the live stream. What is in flight and behind stays so,
    /// because the place only moves back.
    ///
    /// # Errors
    /// [`Violation::RoundTooSoon`] while one is open or shortly after one.
    pub fn held(&mut self, held: &ext::Held, now: Duration) -> Result<(), Violation> {
        let soon = self.last_round.is_some_and(|at| now.saturating_sub(at) < ROUND_GAP / 2);
        if !self.wanted || soon || self.round.is_some() {
            return Err(Violation::RoundTooSoon);
        }
        self.last_round = Some(now);
        self.given_up = 0;
        self.round = Some(OwnerRound::live(held, now));
        Ok(())
    }

    /// Hashes of what the consumer holds, as it was asked for. Those that come too late are dropped:
    /// its disk may have kept it waiting.
    ///
    /// # Errors
    /// [`Violation::Buckets`] if it wasn't asked, or they don't follow on one another.
    pub fn buckets(&mut self, buckets: &ext::Buckets) -> Result<(), Violation> {
        match &mut self.round {
            Some(round) => round.buckets(buckets),
            None if self.given_up != 0 && self.given_up == buckets.round => {
                if buckets.last {
                    self.given_up = 0;
                }
                Ok(())
            }
            None => Err(Violation::Buckets),
        }
    }

    /// How far changes got at the consumer, and what it thinks of them now.
    pub fn applied(&mut self, applied: &ext::Applied) {
        for change in applied.changes.iter().take(UNUSABLE_MAX) {
            let key: Arc<str> = change.key.as_str().into();
            // Only of what we offer: the table is bounded, and not the peer's to fill.
            let Some(latest) = self.sub.view().latest(&key) else { continue };
            let why = change.error.as_ref().map(|e| {
                let text = e.metadata.get("message").map_or(e.reason.as_str(), String::as_str);
                one_line(text, 512)
            });
            let level = change.level;
            match why {
                Some(message) if level < ext::applied::Level::Admitted as i32 => {
                    if self.stats.refused.len() < REFUSALS_MAX || self.stats.refused.contains_key(&key) {
                        let code = Code::PermissionDenied as i32;
                        let refusal = Refusal { code, message, version: latest.version };
                        self.stats.refused.insert(key, refusal);
                    }
                }
                Some(message) => {
                    if self.stats.unusable.len() < UNUSABLE_MAX || self.stats.unusable.contains_key(&key) {
                        self.stats.unusable.insert(key, message);
                    }
                }
                None => {
                    // The last proof counted it as refused, if it is another word on an old change.
                    let told = self.stats.refused.remove(&key).is_some();
                    let refused = told || level == ext::applied::Level::Durable as i32;
                    if let Some(proof) = self.stats.proof.as_mut().filter(|_| refused) {
                        proof.refused = proof.refused.saturating_sub(1);
                    }
                    if level >= ext::applied::Level::Programmed as i32 {
                        self.stats.programmed += 1;
                        self.stats.unusable.remove(&key);
                    }
                }
            }
        }
    }

    /// The consumer's answer to a bookmark. One that answers an older bookmark is ignored.
    pub fn proof(&mut self, proof: &ext::Proof, now: Duration) {
        let Some(bookmarked) = self.bookmarked.as_mut().filter(|b| b.seq == proof.seq) else { return };
        let pending = proof.verdict == ext::proof::Verdict::Pending as i32;
        bookmarked.pending = pending;
        let proof = ProofState {
            at: now,
            equal: proof.verdict == ext::proof::Verdict::Equal as i32,
            version: bookmarked.version,
            refused: proof.refused,
            withheld: proof.withheld,
            pending,
        };
        self.stats.proof = Some(proof);
        if let Some(observer) = &self.observer {
            observer.compared(&proof);
        }
    }

    /// Whether the last proof covers everything the view holds now.
    pub fn proven(&self) -> bool {
        let head = self.sub.view().head();
        self.in_flight.is_empty() && self.stats.proof.is_some_and(|p| p.equal && p.version == head)
    }
}

fn begin_over(round: u32, mode: ext::begin::Mode, scope: Option<&Scope>) -> ext::Begin {
    let level = scope.map_or(0, |scope| scope.level().number());
    let scope = scope.map(|scope| scope.bytes().to_vec().into()).unwrap_or_default();
    ext::Begin { round, mode: mode as i32, level, scope }
}

fn control(kind: ext::control::Kind) -> Outgoing {
    Outgoing::Control(ext::Control { kind: Some(kind) })
}
