//! What was said on a link's streams, for people who look for a fault: kinds, keys, versions,
//! sizes and verdicts. Never a value, a context, or metadata; not a trace of bytes.
//!
//! Invariant: bounded, and an idle stream doesn't make it grow: signs of life that only repeat
//! themselves are one entry with a count.

mod ring;

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::rejection::one_line;
use parking_lot::Mutex;
use tonic::Code;

use crate::dialect::{Incoming, IncomingOffer, IncomingRequest, Operation, Outgoing, Secret};
use crate::session::StreamEnd;
use crate::wire::hamlet::federation::v1 as ext;
use ring::Ring;

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

/// The last things said on a link, over all of its streams.
#[derive(Debug, Default)]
pub struct Transcript {
    ring: Mutex<Ring>,
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
            self.add(stream, Way::In, offered(offer, message.bytes), now);
        }
        if let Some(request) = &message.request {
            self.add(stream, Way::In, requested(request), now);
        }
        if message.offer.is_none() && message.request.is_none() {
            self.add(stream, Way::In, Said::Empty, now);
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
            Outgoing::Control(control) => control_said(control),
            Outgoing::Offer { nonce, change, versioned } => {
                let (key, nonce) = (cut(&change.offer.key), Nonce::Number(*nonce));
                let version = if *versioned { change.version } else { 0 };
                match change.deleted {
                    true => Said::Delete { key, nonce, version },
                    false => Said::Upsert { key, nonce, version, bytes: change.offer.value.len() },
                }
            }
        };
        self.add(stream, Way::Out, said, now);
    }

    /// Notes that a stream began.
    pub(crate) fn opened(&self, stream: u64, dialled: bool, now: Duration) {
        self.add(stream, Way::None, Said::Opened { dialled }, now);
    }

    /// Notes that a stream ended.
    pub(crate) fn ended(&self, stream: u64, end: &StreamEnd, now: Duration) {
        let text = one_line(&end.message, TRANSCRIPT_TEXT_BYTES).into();
        self.add(stream, Way::None, Said::Ended { code: end.code as i32, text }, now);
    }

    fn add(&self, stream: u64, way: Way, said: Said, now: Duration) {
        self.ring.lock().push(stream, way, said, now);
    }
}

/// What an idle stream repeats.
fn is_sign_of_life(said: &Said) -> bool {
    matches!(said, Said::Control { kind: "beat" | "bookmark" | "proof", .. })
}

fn is_same_sign(a: &Said, b: &Said) -> bool {
    matches!((a, b), (Said::Control { kind: a, .. }, Said::Control { kind: b, .. }) if a == b)
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

fn requested(request: &IncomingRequest) -> Said {
    if request.nonce.is_empty() && request.status.is_none() {
        return match &request.control {
            Some(ext::Control { kind: Some(ext::control::Kind::Hello(_)) }) | None => {
                Said::Subscribe(hello_text(request.control.as_ref()))
            }
            Some(control) => control_said(control),
        };
    }
    let nonce = nonce_of(&request.nonce);
    match &request.status {
        Some((0, _)) => Said::Ack(nonce),
        Some((code, message)) => Said::Nack { nonce, code: Some(*code), rule: rule_of(message).into() },
        None => Said::Nack { nonce, code: None, rule: "".into() },
    }
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
        Some(held) => format!("holds {} of yours, root {}", held.count, short(&held.root)),
        None => "imports nothing".to_owned(),
    };
    let agent = one_line(&hello.agent, 64);
    let text = format!(
        "hello {}: {agent}, window {} messages {} bytes, beat {} ms, revision {}, {held}",
        hello.version, hello.window_messages, hello.window_bytes, hello.beat_ms, hello.revision
    );
    one_line(&text, TRANSCRIPT_TEXT_BYTES).into()
}

/// The first bytes of a digest; equal ones are most likely equal roots.
fn short(bytes: &[u8]) -> String {
    bytes.iter().take(4).map(|b| format!("{b:02x}")).collect()
}

fn control_said(control: &ext::Control) -> Said {
    use ext::control::Kind;
    let (kind, text) = match &control.kind {
        None => ("unknown", String::new()),
        Some(Kind::Hello(_)) => return Said::Subscribe(hello_text(Some(control))),
        Some(Kind::Held(h)) => {
            let full = if h.full { ", everything" } else { "" };
            ("held", format!("round {}, {} held, root {}{full}", h.round, h.count, short(&h.root)))
        }
        Some(Kind::Buckets(b)) => {
            let (level, first, hashes) = (b.level, b.first, b.hashes.len() / 8);
            ("buckets", format!("round {}, level {level}, {hashes} from {first}", b.round))
        }
        Some(Kind::Begin(b)) => {
            let mode = ext::begin::Mode::try_from(b.mode).map_or("?", |m| m.as_str_name());
            let buckets: u32 = b.scope.iter().map(|byte| byte.count_ones()).sum();
            let scope = if b.scope.is_empty() { String::new() } else { format!(", {buckets} buckets") };
            ("begin", format!("round {}, {}{scope}", b.round, mode.to_ascii_lowercase()))
        }
        Some(Kind::Bookmark(b)) => {
            let (seq, version, count) = (b.seq, b.version, b.count);
            let round = b.round;
            (
                "bookmark",
                format!("{seq}, round {round}, version {version}, {count} services, root {}", short(&b.root)),
            )
        }
        Some(Kind::Proof(p)) => {
            let verdict = ext::proof::Verdict::try_from(p.verdict).map_or("?", |v| v.as_str_name());
            let verdict = verdict.to_ascii_lowercase();
            ("proof", format!("{}, {verdict}, {} refused, {} withheld", p.seq, p.refused, p.withheld))
        }
        Some(Kind::Beat(b)) => {
            let (head, unsent) = (b.head, b.unsent);
            let (waits, commits) = (b.oldest_unsent_ms, b.oldest_uncommitted_ms);
            let text = format!(
                "{} echo {}, head {head}, unsent {unsent} for {waits} ms, uncommitted {commits} ms",
                b.seq, b.echo_seq
            );
            ("beat", text)
        }
        Some(Kind::Applied(a)) => {
            let problems = a.changes.iter().filter(|c| c.error.is_some()).count();
            ("applied", format!("{} services, {problems} with a problem", a.changes.len()))
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
