//! A link as people and metrics see it, and what people and owners are told of it: a snapshot made
//! now, the transcript, and reports of how far changes got.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hamlet_core::imported::ImportCounts;
use hamlet_core::rejection::one_line;
use hamlet_core::{PeerName, Rejection};

use super::{Connection, KEY_SHOWN, LEFT, Link, LinkConfig};
use crate::beat::PeerBeat;
use crate::consumer::{ConsumerStats, ProofVerdict};
use crate::dialect::Dialect;
use crate::kind::{LinkJudge, PeerViews};
use crate::owner::{OwnerStats, Window};
use crate::session::{PeerClass, Stall, StreamEnd, StreamSession};
use crate::transcript::TranscriptEntry;
use crate::wire::hamlet::federation::v1 as ext;

/// How far an admitted service got: our workloads can use it, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedReport {
    /// The owner's key.
    pub key: Arc<str>,
    /// Why it can't be used although it is admitted and durable; `None` if it can.
    pub problem: Option<Rejection>,
}

/// A link for people and metrics.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// The peer's name.
    pub peer: PeerName,
    /// Its configured address.
    pub address: Option<String>,
    /// The connection.
    pub connection: Connection,
    /// Since when (age).
    pub age: Duration,
    /// Why the last stream or attempt ended.
    pub last_error: Option<String>,
    /// Whether the active stream was dialled by us.
    pub dialled: bool,
    /// What in its certificate proved the peer, while there is a stream.
    pub proven_by: Option<String>,
    /// What the peer said of itself.
    pub class: PeerClass,
    /// The version in use, or the one that worked last, or the configured one.
    pub version: Option<Dialect>,
    /// What the version makes impossible as things are configured, and what to do.
    pub version_note: Option<String>,
    /// Services that policy offers it but its version can't say, and why (at most 1,000).
    pub unsaid: Vec<(String, String)>,
    /// Whether we import from it at all.
    pub imports: bool,
    /// What is heard, in force, refused, withheld.
    pub counts: ImportCounts,
    /// Refused services: key, rule and message, whether an older version is in force.
    pub refused: Vec<(String, String, bool)>,
    /// Whether the hold time ended without the peer, and no proof came since.
    pub expired: bool,
    /// How many services readers see: after the hold time only what the owner has said again.
    pub shown: u64,
    /// Hold time left while the peer is away; `None` for ever, or while it is there.
    pub hold_left: Option<Duration>,
    /// The active stream's consumer role.
    pub consumer: Option<ConsumerStats>,
    /// Age of the batch at the disk.
    pub committing: Option<Duration>,
    /// The last failed commit.
    pub commit_error: Option<String>,
    /// The active stream's owner role.
    pub owner: Option<OwnerStats>,
    /// How many services we offer it.
    pub offered: u64,
    /// How many of them it hasn't been sent (at most 10,000 are counted).
    pub behind: u64,
    /// Age of the oldest unanswered change.
    pub oldest_unanswered: Option<Duration>,
    /// Whether the last proof covers all we offer.
    pub owner_proven: bool,
    /// Breaches of the protocol on the active stream.
    pub violations: u64,
    /// Streams so far.
    pub streams: u64,
    /// Connections closed for a flood of streams or frames, or because HTTP/2 was broken.
    pub floods: u64,
    /// Attempts to dial since the last stream.
    pub attempts: u64,
    /// Messages that wait for the peer's answer.
    pub in_flight: u64,
    /// Whether the peer takes anything of ours.
    pub peer_imports: bool,
    /// Keys whose withdrawal the guard holds back (at most 1,000).
    pub withheld: Vec<String>,
    /// Time until the guard lets the first of them go.
    pub guard_left: Option<Duration>,
    /// What doesn't move on although the stream is up.
    pub stalls: Vec<Stall>,
    /// What a hello peer said in its last beat.
    pub beat: Option<PeerBeat>,
    /// How much the peer may have unanswered.
    pub window: Option<Window>,
    /// Of a foreign peer, which can prove nothing: for how long nothing has confirmed what we hold
    /// of it, and how many services its last whole state left out.
    pub unconfirmed: Option<(Duration, u64)>,
    /// Running time of the status, to make ages of.
    pub now: Duration,
}

impl<J: LinkJudge> Link<J> {
    /// The end of an attempt in the light of the peer's last goodbye: one that said that it leaves for good
    /// says no more by refusing our certificate.
    pub(crate) fn after_goodbye(&self, end: StreamEnd) -> StreamEnd {
        let left = end.is_shut_out() && self.left.load(Ordering::Relaxed);
        if left { StreamEnd::shut_out(LEFT) } else { end }
    }

    /// The link for people and metrics.
    pub fn status(&self) -> LinkStatus {
        let now = self.context.clock.now();
        let config = self.config();
        let (cell, served) = (self.active(), self.served());
        let speaking = cell.as_ref().or(served.as_ref()).map(|c| c.look(StreamSession::dialect));
        let version = speaking.or_else(|| self.pinned()).or(config.version);
        let dialect = version.unwrap_or(Dialect::V1alpha2);
        let (connection, since, last_error, attempts) = {
            let slot = self.slot.lock();
            (slot.connection.clone(), slot.since, slot.last_error.clone(), slot.attempts)
        };
        let (counts, refused, (expired, shown), withheld, guard_end) = {
            let slice = self.state.slice.lock();
            let refused = slice.refused().take(1_000).map(|(k, r, older)| {
                (one_line(k, KEY_SHOWN), dialect.in_its_words(r.clone()).to_string(), older)
            });
            let refused = refused.collect();
            let withheld: Vec<String> = slice.withheld().take(1_000).map(|(k, _)| k.to_string()).collect();
            let guard_end = slice.withheld().map(|(_, until)| until).min();
            let hold = (slice.is_expired(), slice.shown());
            (slice.counts(), refused, hold, withheld, guard_end)
        };
        let hold = config.import.as_ref().and_then(|i| i.hold);
        let down = Duration::from_millis(self.state.down_ms.load(Ordering::Relaxed));
        let mut status = LinkStatus {
            peer: self.peer.clone(),
            address: config.address.clone(),
            connection,
            age: now.saturating_sub(since),
            last_error,
            dialled: false,
            proven_by: (cell.is_some() || served.is_some())
                .then(|| self.proven_by.lock().as_ref().map(ToString::to_string))
                .flatten(),
            class: PeerClass::Unknown,
            version,
            version_note: version_note(&config, version, served.is_some()),
            unsaid: vec![],
            imports: config.imports(),
            counts,
            refused,
            expired,
            shown,
            hold_left: hold.filter(|_| cell.is_none() && counts.in_force > 0).map(|h| h.saturating_sub(down)),
            consumer: None,
            committing: self.state.committing.lock().map(|at| now.saturating_sub(at)),
            commit_error: self.state.commit_error.lock().clone(),
            owner: None,
            offered: self.context.publications.view(dialect, &self.peer).map_or(0, |v| v.borrow().count()),
            behind: 0,
            oldest_unanswered: None,
            owner_proven: false,
            violations: 0,
            streams: self.streams.load(Ordering::Relaxed),
            floods: self.floods.load(Ordering::Relaxed),
            attempts,
            in_flight: 0,
            peer_imports: true,
            withheld,
            guard_left: guard_end.map(|until| until.saturating_sub(now)),
            stalls: vec![],
            beat: None,
            window: None,
            unconfirmed: None,
            now,
        };
        if dialect == Dialect::V1alpha1 {
            let unsaid = self.context.publications.unsaid(&self.peer).into_iter().take(1_000);
            status.unsaid = unsaid.map(|(name, why)| (name.to_string(), why.to_string())).collect();
        }
        if let Some(cell) = &cell {
            status.dialled = cell.dialled;
            status.consumer = Some(cell.look(|s| s.consumer.stats()));
        }
        let told = cell.as_ref().is_some_and(|c| c.look(|s| matches!(s.class(), PeerClass::Hello(_))));
        if status.imports && !told {
            let settle = self.state.settle.lock();
            let absent = settle.absent() as u64;
            status.unconfirmed = settle.unconfirmed_for(now).map(|age| (age, absent));
        }
        // Of two v1alpha1 streams the served one has the owner's role.
        for cell in cell.into_iter().chain(served) {
            cell.look(|s| {
                status.class = s.class().clone();
                status.violations += s.violations();
                status.stalls.extend(s.stalls(now));
                status.beat = s.peer_beat();
                if let Some(owner) = &s.owner {
                    status.owner = Some(owner.stats().clone());
                    status.offered = owner.offered();
                    status.behind = owner.behind(10_000) as u64;
                    status.oldest_unanswered = owner.oldest_unanswered(now);
                    status.in_flight = owner.in_flight() as u64;
                    status.peer_imports = owner.is_wanted();
                    status.owner_proven = owner.proven();
                    status.window = Some(owner.window());
                }
            });
        }
        status
    }

    /// The active stream's number, if the peer on it is a Hamlet agent, which can be told how far
    /// its changes got.
    pub fn told_on(&self) -> Option<u64> {
        let cell = self.active()?;
        cell.look(|s| matches!(s.class(), PeerClass::Hello(_))).then_some(cell.id)
    }

    /// Tells the owner how far changes got after their acknowledgement (extensions text, `Applied`).
    /// Stops at the first for which there is no room now; returns how many were taken. What the
    /// owner doesn't offer, or what was refused, is passed over: its verdict is told already.
    pub fn report_applied(&self, stream: u64, reports: &[AppliedReport]) -> usize {
        let Some(cell) = self.active().filter(|cell| cell.id == stream) else { return 0 };
        let slice = self.state.slice.lock();
        cell.change(|s| {
            let room = s.consumer.applied_room().min(reports.len());
            for report in reports.iter().take(room).filter(|r| slice.refusal(&r.key).is_none()) {
                let level = match report.problem {
                    None => ext::applied::Level::Programmed,
                    Some(_) => ext::applied::Level::Durable,
                };
                s.consumer.report(&slice, &report.key, level, report.problem.clone());
            }
            room
        })
    }

    /// What was said on the link's streams after entry number `after`, oldest first, and how many
    /// entries in between are gone.
    pub fn transcript(&self, after: u64) -> (Vec<TranscriptEntry>, u64) {
        self.transcript.after(after, &self.config.load().context)
    }

    /// Whether both directions are proven to hold the same set, now.
    pub fn is_proven(&self) -> bool {
        let status = self.status();
        let import = status.consumer.is_some_and(|c| matches!(c.verdict, ProofVerdict::Equal(_)));
        status.connection == Connection::Up && status.owner_proven && (import || !status.imports)
    }
}

/// What v1alpha1 makes impossible as things are.
fn version_note<R: ?Sized>(config: &LinkConfig<R>, version: Option<Dialect>, served: bool) -> Option<String> {
    let note = match (config.imports(), &config.address) {
        _ if version != Some(Dialect::V1alpha1) => return None,
        (true, None) => "in v1alpha1 the importer dials: set spec.address to import from this peer",
        (false, _) if !served => "in v1alpha1 the importer dials: this peer has to dial us to be served",
        _ => return None,
    };
    Some(note.to_owned())
}
