//! How a link stands, as operators see it: states with reasons and ages, progress both ways, and
//! what was said. Pure: from a link's status to what the admin API gives.
//!
//! Invariant: an open connection alone is never shown as health (protocol text, section 7).

use std::time::Duration;

use hamlet_admin::api::{
    BeatStatus, Direction, Event, HelloStatus, ImportProgress, PeerState, PeerStatus, Proof, PublishProgress,
    RefusedService, RoundsStatus, StallKind, StallStatus, TranscriptLine, UnsaidService, Way, WindowStatus,
};
use hamlet_core::rejection::one_line;
use hamlet_protocol::beat::PeerBeat;
use hamlet_protocol::consumer::ProofVerdict;
use hamlet_protocol::link::{Connection, LinkStatus};
use hamlet_protocol::owner::OwnerStats;
use hamlet_protocol::session::{PeerClass, PeerHello, STALLED_HERE_AFTER, Stall};
use hamlet_protocol::transcript::{self, Said, TranscriptEntry};

/// Most refusals shown of one peer.
const REFUSED_SHOWN: usize = 100;

pub(super) fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn age_of(at: Duration, now: Duration) -> u64 {
    ms(now.saturating_sub(at))
}

/// What of a link's state is news; ages are not.
pub(super) fn fingerprint(l: &LinkStatus) -> String {
    let verdict = l.consumer.map(|c| std::mem::discriminant(&c.verdict));
    format!(
        "{:?} {:?} {} {:?} {verdict:?} {} {:?} {} {} {} {} {:?};",
        l.peer,
        l.version,
        l.unsaid.len(),
        std::mem::discriminant(&l.connection),
        peer_state(l).word(),
        l.counts,
        l.owner_proven,
        l.offered,
        l.behind == 0,
        l.refused.len(),
        l.owner.as_ref().map(|o| (o.refused.len(), o.unusable.len(), o.programmed)),
    )
}

fn import_proof(l: &LinkStatus) -> Proof {
    if !l.imports {
        return Proof::None;
    }
    match l.consumer.map(|c| c.verdict) {
        Some(ProofVerdict::Equal(at)) => Proof::Equal { age_ms: age_of(at, l.now) },
        Some(ProofVerdict::Different(at)) => Proof::Different { age_ms: age_of(at, l.now) },
        Some(ProofVerdict::None) if matches!(l.class, PeerClass::Hello(_)) => Proof::Pending,
        _ => Proof::None,
    }
}

fn publish_proof(l: &LinkStatus) -> Proof {
    if !l.peer_imports {
        return Proof::None;
    }
    match l.owner.as_ref().and_then(|o| o.proof) {
        Some(p) if p.pending => Proof::Pending,
        Some(p) if !p.equal => Proof::Different { age_ms: age_of(p.at, l.now) },
        Some(p) if l.owner_proven => Proof::Equal { age_ms: age_of(p.at, l.now) },
        _ if matches!(l.class, PeerClass::Hello(_)) => Proof::Pending,
        _ => Proof::None,
    }
}

/// The rule stands before the first colon of a refusal's text, the field before the second.
fn refusal(service: &str, text: &str, older: bool) -> RefusedService {
    let mut parts = text.splitn(3, ": ");
    let (rule, field, message) = (parts.next(), parts.next(), parts.next());
    let (rule, field, message) = match (rule, field, message) {
        (Some(r), Some(f), Some(m)) => (r, f, m),
        _ => ("", "", text),
    };
    RefusedService {
        service: one_line(service, 253),
        rule: rule.into(),
        field: field.into(),
        message: message.into(),
        older_in_force: older,
        ..RefusedService::default()
    }
}

fn unsaid((service, reason): &(String, String)) -> UnsaidService {
    UnsaidService { service: one_line(service, 253), reason: one_line(reason, 512) }
}

/// How many of our services the peer refuses. On a new stream it repeats no answers, so then only
/// its proofs tell the number.
fn refused_by_peer(l: &LinkStatus) -> u64 {
    let told = |o: &OwnerStats| (o.refused.len() as u64).max(o.proof.map_or(0, |proof| proof.refused));
    l.owner.as_ref().map_or(0, told)
}

fn publish_progress(l: &LinkStatus) -> PublishProgress {
    let owner = l.owner.as_ref();
    let refused_total = refused_by_peer(l);
    let refused = |(key, r): (&std::sync::Arc<str>, &hamlet_protocol::owner::Refusal)| RefusedService {
        code: Some(transcript::code_name(r.code).to_owned()),
        version: Some(r.version),
        ..refusal(key, &r.message, false)
    };
    let is_hello = matches!(l.class, PeerClass::Hello(_));
    PublishProgress {
        offered: l.offered,
        acknowledged: owner.map_or(0, |_| {
            let waiting = l.behind.saturating_add(l.in_flight);
            l.offered.saturating_sub(waiting).saturating_sub(refused_total)
        }),
        refused_total,
        refused: owner
            .map(|o| o.refused.iter().take(REFUSED_SHOWN).map(refused).collect())
            .unwrap_or_default(),
        unusable_total: owner.map_or(0, |o| o.unusable.len() as u64),
        unusable: owner
            .map(|o| o.unusable.iter().take(REFUSED_SHOWN).map(|(k, why)| refusal(k, why, false)).collect())
            .unwrap_or_default(),
        usable_reports: owner.map_or(0, |o| o.programmed),
        unsent: l.behind,
        window: l.window.map(|w| WindowStatus {
            messages: w.messages as u64,
            bytes: (w.bytes != usize::MAX).then_some(w.bytes as u64),
        }),
        rounds: owner.filter(|_| is_hello).map(|o| o.rounds).map(|[equal, buckets, all]| RoundsStatus {
            equal,
            buckets,
            all,
        }),
        in_flight: l.in_flight,
        oldest_unanswered_ms: l.oldest_unanswered.map(ms),
        proof: publish_proof(l),
        last_change_ms: None,
        unsaid_total: l.unsaid.len() as u64,
        unsaid: l.unsaid.iter().take(REFUSED_SHOWN).map(unsaid).collect(),
    }
}

pub(super) fn import_progress(l: &LinkStatus) -> ImportProgress {
    let refused =
        l.refused.iter().take(REFUSED_SHOWN).map(|(k, text, older)| refusal(k, text, *older)).collect();
    ImportProgress {
        heard: l.counts.heard,
        in_force: l.shown,
        refused_total: l.counts.refused,
        refused,
        older_in_force: l.counts.older_in_force,
        withheld_total: l.counts.withheld,
        withheld: l.withheld.iter().take(REFUSED_SHOWN).map(|k| one_line(k, 253)).collect(),
        guard_left_ms: l.guard_left.map(ms),
        rounds: l.consumer.map_or(0, |c| c.rounds),
        proof: import_proof(l),
        last_change_ms: l.consumer.and_then(|c| c.last_offer).map(|at| age_of(at, l.now)),
        unconfirmed_ms: l.unconfirmed.map(|(age, _)| ms(age)),
        left_out: l.unconfirmed.map_or(0, |(_, left_out)| left_out),
    }
}

/// What makes no progress. A commit of our own decisions is in no session, but in the link.
fn stalls(l: &LinkStatus) -> Vec<StallStatus> {
    if l.connection != Connection::Up {
        return vec![];
    }
    let one = |stall: &Stall| {
        let (what, age) = match *stall {
            Stall::Unanswered(age) => (StallKind::Unanswered, age),
            Stall::Unwritten(age) => (StallKind::Unwritten, age),
            Stall::Untaken(age) => (StallKind::Untaken, age),
            Stall::Unsent(age) => (StallKind::Unsent, age),
            Stall::Unproven(age) => (StallKind::Unproven, age),
            Stall::Uncommitted(age) => (StallKind::Uncommitted, age),
        };
        StallStatus { what, age_ms: ms(age) }
    };
    let mut stalls: Vec<StallStatus> = l.stalls.iter().map(one).collect();
    let here = stalls.iter().any(|s| s.what == StallKind::Uncommitted);
    if let Some(age) = l.committing.filter(|age| !here && *age >= STALLED_HERE_AFTER) {
        stalls.push(StallStatus { what: StallKind::Uncommitted, age_ms: ms(age) });
    }
    stalls
}

/// The state, without regard to whether the peer is trusted at all.
pub(super) fn peer_state(l: &LinkStatus) -> PeerState {
    let left = |at: &Option<Duration>| at.map(|at| ms(at.saturating_sub(l.now)));
    match &l.connection {
        Connection::Paused => PeerState::Paused,
        Connection::Waiting | Connection::Connecting => PeerState::Connecting,
        Connection::Down { next_attempt } => PeerState::Down {
            since_ms: ms(l.age),
            next_attempt_ms: left(next_attempt),
            hold_left_ms: l.hold_left.map(ms),
        },
        Connection::Refused { .. } => PeerState::Refused {
            reason: l.last_error.clone().unwrap_or_else(|| "no reason was given".into()),
        },
        Connection::Up => up_state(l),
    }
}

fn up_state(l: &LinkStatus) -> PeerState {
    if let Some(stall) = stalls(l).first() {
        return PeerState::Stalled { flow: stall.what.flow(), what: stall.what, age_ms: stall.age_ms };
    }
    let publishing =
        || PeerState::Syncing { received: l.offered.saturating_sub(l.behind), expected: Some(l.offered) };
    match l.class {
        PeerClass::Unknown => PeerState::Connecting,
        PeerClass::Foreign if l.behind > 0 || l.oldest_unanswered.is_some() => publishing(),
        PeerClass::Foreign => {
            let last = l.consumer.and_then(|c| c.last_offer).map(|at| age_of(at, l.now));
            PeerState::Quiet { since_ms: last.unwrap_or(ms(l.age)) }
        }
        PeerClass::Hello(_) => {
            let proven = |proof: Proof, needed: bool| match proof {
                Proof::Equal { age_ms } => Some(age_ms),
                _ => (!needed).then_some(0),
            };
            match (proven(import_proof(l), l.imports), proven(publish_proof(l), l.peer_imports)) {
                (Some(a), Some(b)) => PeerState::InSync {
                    proven_ms: a.max(b),
                    refused: l.counts.refused + refused_by_peer(l),
                    withheld: l.counts.withheld,
                    older_in_force: l.counts.older_in_force,
                },
                (None, _) => {
                    let consumer = l.consumer.as_ref();
                    PeerState::Syncing {
                        received: consumer.and_then(|c| c.round_seen).unwrap_or(l.counts.heard),
                        expected: consumer.and_then(|c| c.owner_count),
                    }
                }
                (_, None) => publishing(),
            }
        }
    }
}

fn hello(h: &PeerHello) -> HelloStatus {
    HelloStatus {
        agent: h.agent.clone(),
        version: h.version.to_string(),
        capabilities: vec![],
        window_messages: Some(h.window_messages.into()),
        window_bytes: Some(h.window_bytes.into()),
        max_message_bytes: Some(h.max_message_bytes.into()),
        beat_every_ms: Some(h.beat_ms.into()),
    }
}

fn beat(b: &PeerBeat, now: Duration) -> BeatStatus {
    BeatStatus {
        age_ms: age_of(b.at, now),
        unsent: b.unsent,
        oldest_unsent_ms: ms(b.oldest_unsent),
        oldest_uncommitted_ms: ms(b.oldest_uncommitted),
    }
}

/// A link as a peer; who it is, whether it is trusted, and for how long it has been in its state is
/// the caller's to say.
pub(super) fn peer_status(l: &LinkStatus, publishes: bool, imports: bool) -> PeerStatus {
    PeerStatus {
        name: l.peer.to_string(),
        address: l.address.clone(),
        direction: match (&l.connection, l.dialled) {
            (Connection::Up, true) => Direction::Dialled,
            (Connection::Up, false) => Direction::Accepted,
            _ => Direction::None,
        },
        next_attempt_ms: match &l.connection {
            Connection::Down { next_attempt } | Connection::Refused { next_attempt } => {
                next_attempt.map(|at| ms(at.saturating_sub(l.now)))
            }
            _ => None,
        },
        state: peer_state(l),
        proven_by: l.proven_by.clone(),
        version: l.version.map(|v| v.to_string()),
        version_note: l.version_note.clone(),
        hello: match &l.class {
            PeerClass::Hello(h) => Some(hello(h)),
            _ => None,
        },
        stalls: stalls(l),
        beat: l.beat.as_ref().map(|b| beat(b, l.now)),
        violations: l.violations,
        publish: publishes.then(|| publish_progress(l)),
        import: imports.then(|| import_progress(l)),
        attempts: l.attempts,
        floods: l.floods,
        hold_left_ms: l.hold_left.map(ms),
        last_error: l.last_error.clone().map(|message| Event { message, age_ms: ms(l.age) }),
        ..PeerStatus::default()
    }
}

/// An entry of a transcript as the API gives it; `now` and `wall` are the same moment.
pub(super) fn line(entry: TranscriptEntry, now: Duration, wall: Duration) -> TranscriptLine {
    let way = match entry.way {
        transcript::Way::In => Way::In,
        transcript::Way::Out => Way::Out,
        transcript::Way::None => Way::None,
    };
    let line = TranscriptLine {
        seq: entry.seq,
        at_ms: ms(wall.saturating_sub(now.saturating_sub(entry.at))),
        stream: entry.stream,
        way,
        times: entry.times,
        ..TranscriptLine::default()
    };
    let kind = |kind: &str| kind.to_owned();
    let said = |version: u64| (version != 0).then_some(version);
    let named = |code: i32| Some(transcript::code_name(code).to_owned());
    match entry.said {
        Said::Opened { dialled } => {
            let text = if dialled { "dialled" } else { "accepted" };
            TranscriptLine { kind: kind("opened"), text: Some(text.to_owned()), ..line }
        }
        Said::Ended { code, text } => {
            TranscriptLine { kind: kind("ended"), code: named(code), text: Some(text.into()), ..line }
        }
        Said::Subscribe(text) => TranscriptLine { kind: kind("subscribe"), text: Some(text.into()), ..line },
        Said::Upsert { key, nonce, version, bytes } => TranscriptLine {
            kind: kind("upsert"),
            key: Some(key.to_string()),
            nonce: Some(nonce.to_string()),
            version: said(version),
            bytes: Some(bytes as u64),
            ..line
        },
        Said::Delete { key, nonce, version } => TranscriptLine {
            kind: kind("delete"),
            key: Some(key.to_string()),
            nonce: Some(nonce.to_string()),
            version: said(version),
            ..line
        },
        Said::Strange { key, nonce, operation } => TranscriptLine {
            kind: kind("strange"),
            key: Some(key.to_string()),
            nonce: Some(nonce.to_string()),
            text: Some(format!("operation {operation}")),
            ..line
        },
        Said::Ack(nonce) => TranscriptLine { kind: kind("ack"), nonce: Some(nonce.to_string()), ..line },
        Said::Nack { nonce, code, rule } => TranscriptLine {
            kind: kind("nack"),
            nonce: Some(nonce.to_string()),
            code: code.and_then(named).or_else(|| Some("no status".to_owned())),
            rule: Some(rule.into()).filter(|rule: &String| !rule.is_empty()),
            ..line
        },
        Said::Control { kind: name, text } => TranscriptLine {
            kind: kind(name),
            text: Some(text.into()).filter(|text: &String| !text.is_empty()),
            ..line
        },
        Said::Empty => TranscriptLine { kind: kind("empty"), ..line },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hamlet_core::PeerName;
    use hamlet_core::imported::ImportCounts;
    use hamlet_protocol::consumer::ConsumerSession;
    use hamlet_protocol::owner::ProofState;

    const T: fn(u64) -> Duration = Duration::from_secs;

    fn agent() -> PeerClass {
        PeerClass::Hello(PeerHello {
            version: 1,
            agent: "hamlet".into(),
            instance: 1,
            window_messages: 8,
            window_bytes: 1,
            max_message_bytes: 1,
            beat_ms: 5_000,
        })
    }

    /// An open connection on which nothing is known yet, at second 100.
    fn link(class: PeerClass) -> LinkStatus {
        LinkStatus {
            peer: PeerName::parse("globex").unwrap(),
            address: None,
            connection: Connection::Up,
            age: T(50),
            last_error: None,
            proven_by: None,
            dialled: true,
            class,
            version: None,
            version_note: None,
            unsaid: vec![],
            imports: true,
            counts: ImportCounts::default(),
            refused: vec![],
            expired: false,
            shown: 0,
            hold_left: None,
            consumer: Some(ConsumerSession::new("t").stats()),
            committing: None,
            commit_error: None,
            owner: Some(OwnerStats::default()),
            offered: 3,
            behind: 0,
            oldest_unanswered: None,
            owner_proven: false,
            violations: 0,
            streams: 1,
            floods: 0,
            attempts: 0,
            in_flight: 0,
            peer_imports: true,
            withheld: vec![],
            guard_left: None,
            stalls: vec![],
            beat: None,
            window: None,
            unconfirmed: None,
            now: T(100),
        }
    }

    fn proven(mut l: LinkStatus) -> LinkStatus {
        if let Some(consumer) = &mut l.consumer {
            consumer.verdict = ProofVerdict::Equal(T(90));
        }
        let proof =
            ProofState { at: T(97), equal: true, version: 3, refused: 0, withheld: 0, pending: false };
        l.owner = Some(OwnerStats { proof: Some(proof), ..OwnerStats::default() });
        l.owner_proven = true;
        l
    }

    fn said(l: &LinkStatus) -> String {
        peer_state(l).to_string()
    }

    #[test]
    fn an_open_connection_alone_is_never_health() {
        assert_eq!(said(&link(PeerClass::Unknown)), "connecting");
        assert_eq!(said(&link(agent())), "syncing (0)");
        let quiet = "quiet for 50s; this peer offers no proof of what it holds";
        assert_eq!(said(&link(PeerClass::Foreign)), quiet);
        let held = LinkStatus { unconfirmed: Some((T(70), 2)), ..link(PeerClass::Foreign) };
        let import = import_progress(&held);
        assert_eq!((import.unconfirmed_ms, import.left_out), (Some(70_000), 2));
        assert_eq!(said(&LinkStatus { behind: 2, ..link(PeerClass::Foreign) }), "syncing (1 of 3)");
        let one_way =
            LinkStatus { owner_proven: false, owner: Some(OwnerStats::default()), ..proven(link(agent())) };
        assert_eq!(said(&one_way), "syncing (3 of 3)", "only one direction is proven");
    }

    #[test]
    fn a_proof_of_both_directions_is_health_and_its_exceptions_are_counted() {
        let mut l = proven(link(agent()));
        assert_eq!(said(&l), "in sync, proven 10s ago");
        l.counts.refused = 2;
        l.counts.older_in_force = 1;
        l.counts.withheld = 40;
        if let Some(proof) = l.owner.as_mut().and_then(|o| o.proof.as_mut()) {
            proof.refused = 1;
        }
        assert_eq!(said(&l), "in sync, proven 10s ago, 3 refused (1 older version in force), 40 withheld");
        l.imports = false;
        l.counts = ImportCounts::default();
        assert_eq!(said(&l), "in sync, proven 3s ago, 1 refused", "nothing is imported");
    }

    #[test]
    fn what_makes_no_progress_outweighs_a_proof_and_is_gone_with_the_stream() {
        for (stall, text) in [
            (Stall::Unanswered(T(31)), "stalled: publish: the peer has left a change unanswered for 31s"),
            (Stall::Untaken(T(31)), "stalled: publish: the peer takes no data, and has not for 31s"),
            (Stall::Unsent(T(32)), "stalled: publish: a change of ours has waited to be sent for 32s"),
            (Stall::Unwritten(T(33)), "stalled: import: the peer has taken none of our answers for 33s"),
            (
                Stall::Unproven(T(34)),
                "stalled: import: the peer has had changes that we can't prove to hold for 34s",
            ),
            (
                Stall::Uncommitted(T(11)),
                "stalled: import: our store has not taken the peer's changes for 11s",
            ),
        ] {
            let l = LinkStatus { stalls: vec![stall], ..proven(link(agent())) };
            assert_eq!(said(&l), text);
            let lost = LinkStatus { connection: Connection::Down { next_attempt: Some(T(104)) }, ..l };
            assert_eq!(said(&lost), "down for 50s, next attempt in 4s");
        }
        let ours = LinkStatus { committing: Some(T(10)), ..proven(link(agent())) };
        assert!(said(&ours).starts_with("stalled: import: our store"), "a commit of our own decisions");
        let brief = LinkStatus { committing: Some(T(9)), ..proven(link(agent())) };
        assert_eq!(peer_state(&brief).word(), "in-sync");
    }

    #[test]
    fn a_refusal_is_told_with_code_rule_field_and_version() {
        let mut l = proven(link(agent()));
        if let Some(owner) = &mut l.owner {
            let message = "name-outside-suffixes: fqdn: bank.example".to_owned();
            owner
                .refused
                .insert("ledger".into(), hamlet_protocol::owner::Refusal { code: 7, message, version: 4 });
            owner.unusable.insert("web".into(), "port-unknown: instances.a: name one".into());
        }
        let publish = publish_progress(&l);
        let refused = &publish.refused[0];
        assert_eq!((refused.rule.as_str(), refused.field.as_str()), ("name-outside-suffixes", "fqdn"));
        assert_eq!((refused.code.as_deref(), refused.version), (Some("PERMISSION_DENIED"), Some(4)));
        assert_eq!((publish.acknowledged, publish.unusable_total), (2, 1));
        assert_eq!(publish.unusable[0].rule, "port-unknown");
    }
}
