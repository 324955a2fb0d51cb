//! What was said on a link's streams, for people who look for a fault: kinds, keys, versions,
//! sizes and verdicts. Never a value, a context, or metadata; not a trace of bytes.
//!
//! Invariants: bounded, and an idle stream doesn't make it grow: signs of life that only repeat
//! themselves are one entry with a count. What comes with every change is kept as numbers and made
//! into text when somebody reads it: noting it may cost no more than 2 % of the message.

mod ring;

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::rejection::one_line;
use parking_lot::Mutex;
use tonic::Code;

use crate::dialect::{Incoming, IncomingOffer, IncomingRequest, Operation, Outgoing, Secret};
use crate::session::StreamEnd;
use crate::wire::hamlet::federation::v1 as ext;

/// Most entries of a link's transcript; older ones go.
pub const TRANSCRIPT_ENTRIES: usize = 512;
/// Longest key in a transcript, in bytes; more of it is cut.
pub const TRANSCRIPT_KEY_BYTES: usize = 128;
/// Longest nonce in a transcript, in bytes.
pub const TRANSCRIPT_NONCE_BYTES: usize = 32;
/// Longest text in a transcript, in bytes.
pub const TRANSCRIPT_TEXT_BYTES: usize = 256;
/// Longest name of a rule in a peer's refusal; what is longer is no name of ours.
const RULE_BYTES: usize = 64;

/// Which way something went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the peer.
    In,
    /// To the peer.
    Out,
    /// Neither: the stream itself began or ended.
    None,
}

/// The nonce of a change and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nonce {
    /// A number, as ours are.
    Number(u64),
    /// Another text, cut.
    Text(Box<str>),
}

impl std::fmt::Display for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Nonce::Number(number) => number.fmt(f),
            Nonce::Text(text) => f.write_str(&one_line(text, TRANSCRIPT_NONCE_BYTES)),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A stream was opened.
    Opened {
        /// Whether by us.
        dialled: bool,
    },
    /// It ended.
    Ended {
        /// The gRPC status.
        code: i32,
        /// Why.
        text: Box<str>,
    },
    /// The initial request, with a summary of its hello.
    Subscribe(Box<str>),
    /// A service, new or changed.
    Upsert {
        /// Its key, perhaps cut.
        key: Arc<str>,
        /// To be repeated in the answer.
        nonce: Nonce,
        /// The owner's version; 0 if the peer isn't told.
        version: u64,
        /// Of the value or, from the peer, of the message.
        bytes: usize,
    },
    /// A service is withdrawn.
    Delete {
        /// Its key, perhaps cut.
        key: Arc<str>,
        /// To be repeated in the answer.
        nonce: Nonce,
        /// The owner's version; 0 if the peer isn't told.
        version: u64,
    },
    /// A change that is neither.
    Strange {
        /// Its key, perhaps cut.
        key: Arc<str>,
        /// To be repeated in the answer.
        nonce: Nonce,
        /// The operation's number.
        operation: i32,
    },
    /// A change was acknowledged.
    Ack(Nonce),
    /// A change was refused.
    Nack {
        /// Which.
        nonce: Nonce,
        /// The gRPC status code; `None` if the answer had no status.
        code: Option<i32>,
        /// The rule that refused it, if it is a name as we know them.
        rule: Box<str>,
    },
    /// An extension message: its kind and its main numbers.
    Control {
        /// Its kind in lower case.
        kind: &'static str,
        /// Its main numbers.
        text: Box<str>,
    },
    /// A message with nothing in it that we know.
    Empty,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TranscriptEntry {
    /// Grows with every entry of the link.
    pub seq: u64,
    /// Running time at which it happened, the last time if it is repeated.
    pub at: Duration,
    /// The stream, unique in this process.
    pub stream: u64,
    /// Which way.
    pub way: Way,
    /// What.
    pub said: Said,
    /// How often in a row, with nothing but signs of life between.
    pub times: u64,
}

/// An entry as it is kept.
#[derive(Debug, Clone)]
struct Entry {
    seq: u64,
    at: Duration,
    stream: u64,
    way: Way,
    noted: Noted,
    times: u64,
}

#[derive(Debug, Clone)]
enum Noted {
    Said(Said),
    Sign(Sign),
}

/// What an idle stream repeats and a busy one says with each change, as numbers.
#[derive(Debug, Clone, Copy)]
enum Sign {
    Bookmark { seq: u64, round: u32, version: u64, count: u64, root: Short },
    Proof { seq: u64, verdict: i32, refused: u64, withheld: u64 },
    Beat { seq: u64, echo_seq: u64, head: u64, unsent: u64, waits: u64, commits: u64 },
}

/// The first bytes of a digest; equal ones are most likely equal roots.
#[derive(Debug, Clone, Copy)]
struct Short {
    bytes: [u8; 4],
    len: u8,
}

/// The last things said on a link, over all of its streams.
#[derive(Debug, Default)]
pub struct Transcript {
    ring: Mutex<ring::Ring>,
}

impl Transcript {
    /// Entries after number `after`, oldest first, and how many of these are gone already. The
    /// context value is blotted out wherever the peer planted it.
    pub fn after(&self, after: u64, context: &Secret) -> (Vec<TranscriptEntry>, u64) {
        let (mut entries, first) = self.ring.lock().after(after);
        for entry in &mut entries {
            blot(&mut entry.said, context);
        }
        let gone = first.map_or(0, |first| first.saturating_sub(after.saturating_add(1)));
        (entries, gone)
    }

    /// Notes what came.
    pub(crate) fn received(&self, stream: u64, message: &Incoming, now: Duration) {
        if let Some(offer) = &message.offer {
            self.add(stream, Way::In, Noted::Said(offered(offer, message.bytes)), now);
        }
        if let Some(request) = &message.request {
            self.add(stream, Way::In, requested(request), now);
        }
        if message.offer.is_none() && message.request.is_none() {
            self.add(stream, Way::In, Noted::Said(Said::Empty), now);
        }
    }

    /// Notes what is about to be written.
    pub(crate) fn sent(&self, stream: u64, message: &Outgoing, now: Duration) {
        let said = match message {
            Outgoing::Subscribe { control } => Said::Subscribe(hello_text(control.as_ref())),
            Outgoing::Answer { nonce, answer: Ok(()) } => Said::Ack(nonce_of(nonce)),
            Outgoing::Answer { nonce, answer: Err(rejection) } => Said::Nack {
                nonce: nonce_of(nonce),
                code: Some(crate::dialect::v1alpha2::status_code(rejection.code)),
                rule: rejection.rule.as_str().into(),
            },
            Outgoing::Control(control) => return self.add(stream, Way::Out, noted(control), now),
            Outgoing::Offer { nonce, change, versioned } => {
                let (key, nonce) = (cut(&change.offer.key), Nonce::Number(*nonce));
                let version = if *versioned { change.version } else { 0 };
                match change.deleted {
                    true => Said::Delete { key, nonce, version },
                    false => Said::Upsert { key, nonce, version, bytes: change.offer.value.len() },
                }
            }
        };
        self.add(stream, Way::Out, Noted::Said(said), now);
    }

    /// Notes that a stream began.
    pub(crate) fn opened(&self, stream: u64, dialled: bool, now: Duration) {
        self.add(stream, Way::None, Noted::Said(Said::Opened { dialled }), now);
    }

    /// Notes that a stream ended.
    pub(crate) fn ended(&self, stream: u64, end: &StreamEnd, now: Duration) {
        let text = one_line(&end.message, TRANSCRIPT_TEXT_BYTES).into();
        self.add(stream, Way::None, Noted::Said(Said::Ended { code: end.code as i32, text }), now);
    }

    fn add(&self, stream: u64, way: Way, noted: Noted, now: Duration) {
        self.ring.lock().push(stream, way, noted, now);
    }
}

impl Entry {
    fn told(self) -> TranscriptEntry {
        let Entry { seq, at, stream, way, noted, times } = self;
        let said = match noted {
            Noted::Said(said) => said,
            Noted::Sign(sign) => sign.told(),
        };
        TranscriptEntry { seq, at, stream, way, said, times }
    }
}

impl Noted {
    /// Whether both are signs of the same kind.
    fn is_like(&self, other: &Noted) -> bool {
        match (self, other) {
            (Noted::Sign(a), Noted::Sign(b)) => std::mem::discriminant(a) == std::mem::discriminant(b),
            _ => false,
        }
    }
}

impl Short {
    fn of(digest: &[u8]) -> Short {
        let len = digest.len().min(4);
        let mut bytes = [0; 4];
        bytes[..len].copy_from_slice(&digest[..len]);
        Short { bytes, len: len as u8 }
    }
}

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bytes.iter().take(self.len.into()).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl Sign {
    fn told(self) -> Said {
        let (kind, text) = match self {
            Sign::Bookmark { seq, round, version, count, root } => (
                "bookmark",
                format!("{seq}, round {round}, version {version}, {count} services, root {root}"),
            ),
            Sign::Proof { seq, verdict, refused, withheld } => {
                let verdict = ext::proof::Verdict::try_from(verdict).map_or("?", |v| v.as_str_name());
                let verdict = verdict.to_ascii_lowercase();
                ("proof", format!("{seq}, {verdict}, {refused} refused, {withheld} withheld"))
            }
            Sign::Beat { seq, echo_seq, head, unsent, waits, commits } => (
                "beat",
                format!(
                    "{seq} echo {echo_seq}, head {head}, unsent {unsent} for {waits} ms, uncommitted {commits} ms"
                ),
            ),
        };
        Said::Control { kind, text: text.into() }
    }
}

/// Replaces a planted context value in what a peer chose.
fn blot(said: &mut Said, context: &Secret) {
    let clean = |text: &str| context.blotted(text);
    let nonce_clean = |nonce: &mut Nonce| {
        if let Nonce::Text(text) = nonce {
            *text = clean(text).into();
        } else if context.matches(&nonce.to_string()) {
            *nonce = Nonce::Text("***".into());
        }
    };
    match said {
        Said::Upsert { key, nonce, .. }
        | Said::Delete { key, nonce, .. }
        | Said::Strange { key, nonce, .. } => {
            *key = one_line(&clean(key), TRANSCRIPT_KEY_BYTES).into();
            nonce_clean(nonce);
        }
        Said::Ack(nonce) => nonce_clean(nonce),
        Said::Nack { nonce, rule, .. } => {
            nonce_clean(nonce);
            *rule = clean(rule).into();
        }
        Said::Ended { text, .. } | Said::Subscribe(text) | Said::Control { text, .. } => {
            *text = one_line(&clean(text), TRANSCRIPT_TEXT_BYTES).into();
        }
        Said::Opened { .. } | Said::Empty => {}
    }
}

/// A key as it is kept: shared if it is short, which ours are.
fn cut(key: &Arc<str>) -> Arc<str> {
    if key.len() <= TRANSCRIPT_KEY_BYTES { key.clone() } else { cut_text(key, TRANSCRIPT_KEY_BYTES).into() }
}

fn cut_text(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn nonce_of(nonce: &str) -> Nonce {
    let canonical = nonce == "0" || !nonce.starts_with(['0', '+']);
    match nonce.parse() {
        Ok(number) if canonical => Nonce::Number(number),
        _ => Nonce::Text(cut_text(nonce, TRANSCRIPT_NONCE_BYTES).into()),
    }
}

fn offered(offer: &IncomingOffer, bytes: usize) -> Said {
    let key: Arc<str> = cut_text(&offer.key, TRANSCRIPT_KEY_BYTES).into();
    let (nonce, version) = (nonce_of(&offer.nonce), offer.version);
    match offer.operation {
        Operation::Upsert => Said::Upsert { key, nonce, version, bytes },
        Operation::Delete => Said::Delete { key, nonce, version },
        Operation::Unknown(operation) => Said::Strange { key, nonce, operation },
        Operation::Unset => Said::Strange { key, nonce, operation: 0 },
    }
}

fn requested(request: &IncomingRequest) -> Noted {
    if request.nonce.is_empty() && request.status.is_none() {
        return match &request.control {
            Some(ext::Control { kind: Some(ext::control::Kind::Hello(_)) }) | None => {
                Noted::Said(Said::Subscribe(hello_text(request.control.as_ref())))
            }
            Some(control) => noted(control),
        };
    }
    let nonce = nonce_of(&request.nonce);
    Noted::Said(match &request.status {
        Some((0, _)) => Said::Ack(nonce),
        Some((code, message)) => Said::Nack { nonce, code: Some(*code), rule: rule_of(message).into() },
        None => Said::Nack { nonce, code: None, rule: "".into() },
    })
}

/// The rule stands before the first colon of a refusal's text. What isn't one is not shown: it
/// may be anything.
fn rule_of(message: &str) -> &str {
    let rule = message.split(':').next().unwrap_or_default();
    let named = rule.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if named && rule.len() <= RULE_BYTES { rule } else { "" }
}

fn hello_text(control: Option<&ext::Control>) -> Box<str> {
    let Some(ext::Control { kind: Some(ext::control::Kind::Hello(hello)) }) = control else {
        return "no hello".into();
    };
    let held = match &hello.held {
        Some(held) => format!("holds {} of yours, root {}", held.count, Short::of(&held.root)),
        None => "imports nothing".to_owned(),
    };
    let agent = one_line(&hello.agent, 64);
    let text = format!(
        "hello {}: {agent}, window {} messages {} bytes, beat {} ms, revision {}, {held}",
        hello.version, hello.window_messages, hello.window_bytes, hello.beat_ms, hello.revision
    );
    one_line(&text, TRANSCRIPT_TEXT_BYTES).into()
}

fn noted(control: &ext::Control) -> Noted {
    use ext::control::Kind;
    Noted::Sign(match &control.kind {
        Some(Kind::Bookmark(b)) => Sign::Bookmark {
            seq: b.seq,
            round: b.round,
            version: b.version,
            count: b.count,
            root: Short::of(&b.root),
        },
        Some(Kind::Proof(p)) => {
            Sign::Proof { seq: p.seq, verdict: p.verdict, refused: p.refused, withheld: p.withheld }
        }
        Some(Kind::Beat(b)) => Sign::Beat {
            seq: b.seq,
            echo_seq: b.echo_seq,
            head: b.head,
            unsent: b.unsent,
            waits: b.oldest_unsent_ms,
            commits: b.oldest_uncommitted_ms,
        },
        _ => return Noted::Said(control_said(control)),
    })
}

/// What is said now and then only.
fn control_said(control: &ext::Control) -> Said {
    use ext::control::Kind;
    let (kind, text) = match &control.kind {
        // The last three are told from their numbers.
        None | Some(Kind::Bookmark(_) | Kind::Proof(_) | Kind::Beat(_)) => ("unknown", String::new()),
        Some(Kind::Hello(_)) => return Said::Subscribe(hello_text(Some(control))),
        Some(Kind::Held(h)) => {
            let full = if h.full { ", everything" } else { "" };
            ("held", format!("round {}, {} held, root {}{full}", h.round, h.count, Short::of(&h.root)))
        }
        Some(Kind::Buckets(b)) => {
            let (level, first, hashes) = (b.level, b.first, b.hashes.len() / 8);
            ("buckets", format!("round {}, level {level}, {hashes} from {first}", b.round))
        }
        Some(Kind::Begin(b)) => {
            let mode = ext::begin::Mode::try_from(b.mode).map_or("?", |m| m.as_str_name());
            let (nodes, level) = (b.scope.iter().map(|byte| byte.count_ones()).sum::<u32>(), b.level);
            let scope =
                if b.scope.is_empty() { String::new() } else { format!(", {nodes} nodes of level {level}") };
            ("begin", format!("round {}, {}{scope}", b.round, mode.to_ascii_lowercase()))
        }
        Some(Kind::Applied(a)) => {
            let problems = a.changes.iter().filter(|c| c.error.is_some()).count();
            ("applied", format!("{} services, {problems} with a problem", a.changes.len()))
        }
        Some(Kind::Bundle(b)) => {
            let (domain, bytes) = (one_line(&b.trust_domain, TRANSCRIPT_KEY_BYTES), b.jwks.len());
            ("bundle", format!("of {domain}, sequence {}, {bytes} bytes", b.sequence))
        }
        Some(Kind::BundleAck(b)) => {
            let domain = one_line(&b.trust_domain, TRANSCRIPT_KEY_BYTES);
            let reason = b.error.as_ref().map(|e| one_line(&e.reason, RULE_BYTES));
            let outcome = reason.unwrap_or_else(|| "in force".to_owned());
            ("bundle-ack", format!("of {domain}, sequence {}, {outcome}", b.sequence))
        }
        Some(Kind::Goodbye(g)) => {
            let reason = ext::goodbye::Reason::try_from(g.reason).map_or("?", |r| r.as_str_name());
            ("goodbye", format!("{}, retry after {} ms", reason.to_ascii_lowercase(), g.retry_after_ms))
        }
    };
    Said::Control { kind, text: text.into() }
}

/// The name of a gRPC status code as the specification writes it.
pub fn code_name(code: i32) -> &'static str {
    match Code::from_i32(code) {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hamlet_core::{Rejection, RejectionCode};

    const T: fn(u64) -> Duration = Duration::from_secs;

    fn beat(seq: u64) -> Outgoing {
        let kind = Some(ext::control::Kind::Beat(ext::Beat { seq, ..ext::Beat::default() }));
        Outgoing::Control(ext::Control { kind })
    }

    fn all(transcript: &Transcript) -> Vec<TranscriptEntry> {
        transcript.after(0, &Secret::default()).0
    }

    #[test]
    fn it_keeps_the_last_entries_and_says_how_many_are_gone() {
        let transcript = Transcript::default();
        for i in 0..TRANSCRIPT_ENTRIES as u64 + 3 {
            transcript.sent(1, &Outgoing::Answer { nonce: i.to_string(), answer: Ok(()) }, T(i));
        }
        let (entries, gone) = transcript.after(0, &Secret::default());
        assert_eq!((entries.len(), gone), (TRANSCRIPT_ENTRIES, 3));
        assert_eq!(entries[0].said, Said::Ack(Nonce::Number(3)));
        let (later, gone) = transcript.after(entries[500].seq, &Secret::default());
        assert_eq!((later.len(), gone), (11, 0));
    }

    #[test]
    fn an_idle_stream_does_not_grow_it_and_anything_else_between_starts_a_new_entry() {
        let transcript = Transcript::default();
        for i in 0..1_000 {
            transcript.sent(1, &beat(i), T(i));
            let control = Some(ext::Control { kind: Some(ext::control::Kind::Proof(ext::Proof::default())) });
            let request = Some(IncomingRequest { control, ..IncomingRequest::default() });
            transcript.received(1, &Incoming { request, ..Incoming::default() }, T(i));
        }
        let entries = all(&transcript);
        assert_eq!(entries.iter().map(|e| e.times).collect::<Vec<_>>(), [1_000, 1_000]);
        assert_eq!(entries[0].at, T(999));
        transcript.sent(1, &Outgoing::Answer { nonce: "1".into(), answer: Ok(()) }, T(1_000));
        transcript.sent(1, &beat(1_000), T(1_000));
        transcript.sent(2, &beat(1), T(1_001));
        assert_eq!(all(&transcript).len(), 5, "another stream's beat is another entry");
    }

    #[test]
    fn a_value_a_context_and_metadata_are_never_kept_and_a_planted_context_is_blotted_out() {
        let secret = "s3cret-of-both";
        let transcript = Transcript::default();
        let offer = |key: &str, nonce: &str| IncomingOffer {
            nonce: nonce.to_owned(),
            key: key.to_owned(),
            resource: Some(("type".to_owned(), format!("value {secret}").into_bytes().into())),
            operation: Operation::Upsert,
            context: secret.to_owned(),
            ..IncomingOffer::default()
        };
        let say =
            |offer| transcript.received(1, &Incoming { offer: Some(offer), ..Incoming::default() }, T(1));
        say(offer("web", "7"));
        say(offer(&format!("x-{secret}\n\u{1b}[2J{}", "y".repeat(500)), secret));
        let request = IncomingRequest {
            nonce: "3".into(),
            status: Some((7, format!("no: {secret} is wrong"))),
            context: secret.to_owned(),
            ..IncomingRequest::default()
        };
        transcript.received(1, &Incoming { request: Some(request), ..Incoming::default() }, T(2));
        transcript.ended(1, &StreamEnd::new(Code::Unauthenticated, format!("got {secret}")), T(3));
        let (entries, _) = transcript.after(0, &Secret::new(secret));
        let text = format!("{entries:?}");
        assert!(!text.contains(secret) && !text.contains("value"), "{text}");
        assert!(text.contains("x-***") && text.contains("\"web\"") && text.contains("got ***"), "{text}");
        let Said::Upsert { key, .. } = &entries[1].said else { panic!("{text}") };
        assert!(key.len() <= TRANSCRIPT_KEY_BYTES && !key.contains('\n') && !key.contains('\u{1b}'), "{key}");
        assert!(text.contains("Nack { nonce: Number(3), code: Some(7), rule: \"no\" }"), "{text}");
    }

    #[test]
    fn what_comes_with_every_change_is_told_in_full_when_it_is_read() {
        let transcript = Transcript::default();
        let say = |kind| transcript.sent(1, &Outgoing::Control(ext::Control { kind: Some(kind) }), T(0));
        let root = vec![0xab, 0xcd, 0, 1, 2].into();
        let bookmark = ext::Bookmark { seq: 1, round: 2, version: 3, count: 4, root, ..Default::default() };
        say(ext::control::Kind::Bookmark(bookmark));
        let verdict = ext::proof::Verdict::Equal as i32;
        say(ext::control::Kind::Proof(ext::Proof {
            seq: 1,
            verdict,
            refused: 5,
            withheld: 6,
            ..Default::default()
        }));
        let beat = ext::Beat {
            seq: 7,
            echo_seq: 8,
            head: 9,
            unsent: 10,
            oldest_unsent_ms: 11,
            oldest_uncommitted_ms: 12,
        };
        say(ext::control::Kind::Beat(beat));
        let told = |kind, text: &str| Said::Control { kind, text: text.into() };
        let said: Vec<Said> = all(&transcript).into_iter().map(|e| e.said).collect();
        let expected = [
            told("bookmark", "1, round 2, version 3, 4 services, root abcd0001"),
            told("proof", "1, equal, 5 refused, 6 withheld"),
            told("beat", "7 echo 8, head 9, unsent 10 for 11 ms, uncommitted 12 ms"),
        ];
        assert_eq!(said, expected);
    }

    /// `cargo test --release -p hamlet-protocol --lib -- --ignored --nocapture what_it_costs`: the
    /// shortest of many rounds, so that a busy machine doesn't count.
    #[test]
    #[ignore = "a measurement, not a test"]
    fn what_it_costs_to_note_one_change_at_both_ends() {
        use hamlet_runtime::Clock;
        let clock = hamlet_runtime::SystemClock::new();
        let (owner, consumer) = (Transcript::default(), Transcript::default());
        let key = "service-000001.owner.example".to_owned();
        let offer =
            IncomingOffer { nonce: "123456".into(), key, operation: Operation::Upsert, ..Default::default() };
        let came = Incoming { offer: Some(offer), request: None, bytes: 480 };
        let ack = IncomingRequest {
            nonce: "123456".into(),
            status: Some((0, String::new())),
            ..Default::default()
        };
        let acked = Incoming { offer: None, request: Some(ack), bytes: 20 };
        let answer = Outgoing::Answer { nonce: "123456".into(), answer: Ok(()) };
        let control = |kind| ext::Control { kind: Some(kind) };
        let bookmark = control(ext::control::Kind::Bookmark(ext::Bookmark {
            root: vec![7; 32].into(),
            ..Default::default()
        }));
        let proof = control(ext::control::Kind::Proof(ext::Proof::default()));
        let proved = IncomingRequest { control: Some(proof.clone()), ..Default::default() };
        let proved = Incoming { request: Some(proved), ..Incoming::default() };
        let marked = IncomingRequest { control: Some(bookmark.clone()), ..Default::default() };
        let marked = Incoming { request: Some(marked), ..Incoming::default() };
        let (bookmark, proof) = (Outgoing::Control(bookmark), Outgoing::Control(proof));
        const ROUND: u32 = 1_000;
        let best = |f: &dyn Fn()| {
            let rounds = (0..200).map(|_| {
                let began = clock.now();
                (0..ROUND).for_each(|_| f());
                clock.now() - began
            });
            rounds.min().unwrap_or_default().as_nanos() as u32 / ROUND
        };
        let change = best(&|| {
            consumer.received(1, &came, T(1));
            consumer.sent(1, &answer, T(1));
            owner.received(1, &acked, T(1));
        });
        let proofs = best(&|| {
            consumer.received(1, &marked, T(1));
            consumer.sent(1, &proof, T(1));
            owner.sent(1, &bookmark, T(1));
            owner.received(1, &proved, T(1));
            owner.received(1, &acked, T(1));
        });
        println!("change, answer, answered: {change} ns; bookmark and proof at both ends: {proofs} ns");
    }

    #[test]
    fn a_refusal_shows_code_and_rule_and_nothing_else_of_its_text() {
        let transcript = Transcript::default();
        let rejection =
            Rejection::new(RejectionCode::Policy, "name-outside-suffixes", "fqdn", "bank.example");
        transcript.sent(1, &Outgoing::Answer { nonce: "4".into(), answer: Err(rejection) }, T(0));
        let said = Said::Nack {
            nonce: Nonce::Number(4),
            code: Some(Code::PermissionDenied as i32),
            rule: "name-outside-suffixes".into(),
        };
        assert_eq!(all(&transcript)[0].said, said);
        for (message, rule) in [
            ("name-outside-suffixes: fqdn: x", "name-outside-suffixes"),
            ("Something went wrong: x", ""),
            ("", ""),
            ("plain-rule", "plain-rule"),
        ] {
            assert_eq!(rule_of(message), rule, "{message}");
        }
    }
}
