//! The owner's side of one stream: what it offers next, and what came of it. Sans-IO.
//!
//! It holds a place in a view and the few messages in flight, never a payload queue, so a slow or
//! silent consumer costs O(1). Towards a foreign peer there is never more than one unanswered
//! message.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::durable::Hash32;
use hamlet_core::rejection::one_line;
use hamlet_core::view::{Change, Next, Subscription, View};
use tonic::Code;

use crate::dialect::Outgoing;
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
/// First wait before something refused as UNAVAILABLE is offered again; doubles to a minute.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct InFlight {
    nonce: u64,
    change: Change,
    at: Duration,
}

/// Something refused as UNAVAILABLE, to be offered again.
#[derive(Debug)]
struct Retry {
    due: Duration,
    wait: Duration,
    /// The change if it is a deletion: the view may have forgotten it, as it was handed out.
    deletion: Option<Change>,
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
}

/// The owner role on one stream.
#[derive(Debug)]
pub struct OwnerSession {
    sub: Subscription,
    hello: bool,
    /// Whether the consumer wants anything at all (a hello peer that doesn't import says so).
    wanted: bool,
    window: usize,
    next_nonce: u64,
    in_flight: VecDeque<InFlight>,
    retry: BTreeMap<Arc<str>, Retry>,
    begin: Option<ext::Begin>,
    round: u32,
    round_open: bool,
    last_round: Option<Duration>,
    bookmark_seq: u64,
    bookmarked: Option<(u64, u64, Duration)>,
    log_id: Vec<u8>,
    stats: OwnerStats,
}

impl OwnerSession {
    /// Starts at the place that fits what the consumer holds: at the head if its root is equal,
    /// else before everything. `held` is `None` for a foreign peer.
    pub fn new(
        peer: &str,
        view: &Arc<View>,
        held: Option<&ext::Held>,
        hello: bool,
        log_id: &[u8],
    ) -> OwnerSession {
        let root: Option<Hash32> = held.and_then(|h| h.root.as_ref().try_into().ok());
        let (sub, equal) = view.subscribe(peer, root.as_ref());
        let mut session = OwnerSession {
            sub,
            hello,
            wanted: !hello || held.is_some(),
            window: 1,
            next_nonce: 1,
            in_flight: VecDeque::new(),
            retry: BTreeMap::new(),
            begin: None,
            round: held.map_or(0, |h| h.round),
            round_open: false,
            last_round: None,
            bookmark_seq: 0,
            bookmarked: None,
            log_id: log_id.to_vec(),
            stats: OwnerStats::default(),
        };
        if hello && session.wanted {
            let mode = if equal { ext::begin::Mode::Equal } else { ext::begin::Mode::All };
            session.begin_round(mode);
        }
        session
    }

    fn begin_round(&mut self, mode: ext::begin::Mode) {
        self.begin = Some(ext::Begin { round: self.round, mode: mode as i32, ..ext::Begin::default() });
        self.round_open = true;
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
        if self.wanted { self.sub.behind(max) } else { 0 }
    }

    /// Messages that wait for an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether the consumer takes anything of ours: a Hamlet agent that doesn't import says so.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Age of the oldest unanswered change.
    pub fn oldest_unanswered(&self, now: Duration) -> Option<Duration> {
        self.in_flight.front().map(|f| now.saturating_sub(f.at))
    }

    /// Follows the peer to its new view after a policy change.
    pub fn move_to(&mut self, view: &Arc<View>) {
        self.sub.move_to(view);
    }

    /// What to send next, if anything may be sent now.
    pub fn next(&mut self, now: Duration) -> Result<Option<Outgoing>, StreamEnd> {
        if !self.wanted {
            return Ok(None);
        }
        if let Some(begin) = self.begin.take() {
            return Ok(Some(control(ext::control::Kind::Begin(begin))));
        }
        if self.in_flight.len() >= self.window {
            return Ok(None);
        }
        if let Some(change) = self.due_retry(now) {
            return Ok(Some(self.send(change, now)));
        }
        match self.sub.take_next() {
            Next::Change(change) => Ok(Some(self.send(change, now))),
            Next::AtHead => Ok(self.bookmark(now)),
            Next::Resync if self.hello => {
                self.sub.restart();
                self.round = round_after(self.round);
                self.begin_round(ext::begin::Mode::All);
                self.next(now)
            }
            Next::Resync => Err(StreamEnd::new(
                Code::Unavailable,
                "fell behind by more deletions than are remembered; connect again for the whole state",
            )),
        }
    }

    fn due_retry(&mut self, now: Duration) -> Option<Change> {
        while let Some((key, retry)) = self.retry.iter_mut().find(|(_, r)| r.due <= now) {
            // Due again only if it is refused once more.
            retry.due = Duration::MAX;
            let (key, deletion) = (key.clone(), retry.deletion.clone());
            match self.sub.view().latest(&key).or(deletion) {
                Some(change) => return Some(change),
                None => self.retry.remove(&key),
            };
        }
        None
    }

    fn send(&mut self, change: Change, now: Duration) -> Outgoing {
        let nonce = self.next_nonce;
        self.next_nonce += 1;
        self.in_flight.push_back(InFlight { nonce, change: change.clone(), at: now });
        self.stats.sent += 1;
        Outgoing::Offer { nonce, change }
    }

    fn bookmark(&mut self, now: Duration) -> Option<Outgoing> {
        if !self.hello || !self.in_flight.is_empty() || now < self.bookmark_due(self.sub.view().head()) {
            return None;
        }
        let summary = self.sub.bookmark()?;
        self.bookmark_seq += 1;
        self.bookmarked = Some((self.bookmark_seq, summary.version, now));
        let round = if std::mem::take(&mut self.round_open) { self.round } else { 0 };
        Some(control(ext::control::Kind::Bookmark(ext::Bookmark {
            seq: self.bookmark_seq,
            round,
            version: summary.version,
            root: summary.root.to_vec().into(),
            count: summary.count,
            log_id: self.log_id.clone().into(),
            revision: summary.version,
        })))
    }

    fn bookmark_due(&self, head: u64) -> Duration {
        match self.bookmarked {
            None => Duration::ZERO,
            Some((_, version, at)) if self.round_open || version != head => at + BOOKMARK_BUSY,
            Some((_, _, at)) => at + BOOKMARK_IDLE,
        }
    }

    /// When [`next`](Self::next) should be asked again although nothing happened.
    pub fn wake_at(&self) -> Option<Duration> {
        if !self.wanted {
            return None;
        }
        let retry = self.retry.values().map(|r| r.due).min();
        let view = self.sub.view();
        let may_bookmark = self.hello && self.in_flight.is_empty() && view.is_ready();
        let bookmark = may_bookmark.then(|| self.bookmark_due(view.head()));
        retry.into_iter().chain(bookmark).min()
    }

    /// Takes the consumer's answer to one offer.
    pub fn answer(
        &mut self,
        nonce: &str,
        status: Option<(i32, String)>,
        now: Duration,
    ) -> Result<(), Violation> {
        // A peer that sends no nonce means the only message in flight.
        let by_nonce = |f: &InFlight| f.nonce.to_string() == nonce;
        let at = match self.in_flight.iter().position(by_nonce) {
            Some(at) => at,
            None if nonce.is_empty() && !self.hello && self.in_flight.len() == 1 => 0,
            None => return Err(Violation::UnknownNonce),
        };
        let missing = status.is_none();
        if missing && self.hello {
            return Err(Violation::AnswerWithoutStatus);
        }
        let Some(answered) = self.in_flight.remove(at) else { return Ok(()) };
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
        self.retry.remove(&answered.change.offer.key);
    }

    fn refused(&mut self, answered: InFlight, code: i32, message: &str, now: Duration) {
        self.stats.nacked += 1;
        let InFlight { change, .. } = answered;
        let key = change.offer.key.clone();
        if self.stats.refused.len() < REFUSALS_MAX || self.stats.refused.contains_key(&key) {
            let refusal = Refusal { code, message: one_line(message, 512), version: change.version };
            self.stats.refused.insert(key.clone(), refusal);
        }
        if code != Code::Unavailable as i32 {
            self.retry.remove(&key);
            return;
        }
        let waited = self.retry.get(&key).map(|r| r.wait);
        let wait = waited.map_or(RETRY_FIRST, |w| (w * 2).min(RETRY_CAP));
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
        self.retry.insert(key, Retry { due: now + wait, wait, deletion });
    }

    /// The consumer asks for a round on the live stream. Everything is repeated at its latest;
    /// what is in flight and behind stays so, because the place only moves back.
    pub fn held(&mut self, held: &ext::Held, now: Duration) -> Result<(), Violation> {
        if !self.wanted || self.last_round.is_some_and(|at| now.saturating_sub(at) < ROUND_GAP / 2) {
            return Err(Violation::RoundTooSoon);
        }
        self.last_round = Some(now);
        self.round = held.round;
        self.sub.restart();
        self.begin_round(ext::begin::Mode::All);
        Ok(())
    }

    /// The consumer's answer to a bookmark. One that answers an older bookmark is ignored.
    pub fn proof(&mut self, proof: &ext::Proof, now: Duration) {
        let Some((seq, version, _)) = self.bookmarked else { return };
        if proof.seq != seq {
            return;
        }
        let equal = proof.verdict == ext::proof::Verdict::Equal as i32;
        self.stats.proof =
            Some(ProofState { at: now, equal, version, refused: proof.refused, withheld: proof.withheld });
    }

    /// Whether the last proof covers everything the view holds now.
    pub fn proven(&self) -> bool {
        let head = self.sub.view().head();
        self.in_flight.is_empty() && self.stats.proof.is_some_and(|p| p.equal && p.version == head)
    }
}

fn control(kind: ext::control::Kind) -> Outgoing {
    Outgoing::Control(ext::Control { kind: Some(kind) })
}
