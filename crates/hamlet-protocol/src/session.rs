//! Both roles of one stream as a value: messages in, messages out, time passed in. The same
//! machine runs in production, in the simulator and in the fuzzers. *Hardened to untrusted peer.*
//!
//! The peer's class (a Hamlet agent, or foreign) is fixed by its first message and never
//! remembered across streams.

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::rejection::one_line;
use hamlet_core::seeded::{SeededBug, is_on};
use hamlet_core::service::limits::MESSAGE_BYTES;
use hamlet_core::view::View;
use tonic::Code;

use crate::beat::{BEAT_EVERY, Beats, PeerBeat, SecondLook};
use crate::bundles::BundleTalk;
use crate::consumer::{ConsumerSession, INBOX_BYTES, INBOX_MESSAGES};
use crate::dialect::{Dialect, Incoming, IncomingRequest, Outgoing, Secret};
use crate::kind::StreamObserver;
use crate::owner::{BEHIND_COUNTED, OwnerSession, Window};
use crate::wire::hamlet::federation::v1 as ext;

/// Version of the extensions that we speak.
pub const EXTENSION_VERSION: u32 = 1;
/// A silent acceptor counts as foreign after this.
pub const HELLO_WAIT: Duration = Duration::from_secs(5);
/// Whoever opens a stream to us must say its initial request within this: until then it holds the
/// place of the peer's only stream.
pub const SUBSCRIBE_DEADLINE: Duration = Duration::from_secs(30);
/// A hello consumer must answer within this.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// The same while its beats say that it is committing.
pub const ANSWER_DEADLINE_COMMITTING: Duration = Duration::from_secs(300);
/// A hello peer must have taken what we write within this.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// A direction that didn't move on for so long is shown as stalled.
pub const STALLED_AFTER: Duration = Duration::from_secs(30);
/// Changes that came and aren't committed for so long are shown as stalled here.
pub const STALLED_HERE_AFTER: Duration = Duration::from_secs(10);
/// Longest wait before a new stream that a peer's goodbye can ask for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// Most changes that a hello peer may have unanswered, however large its own window.
pub const WINDOW_MESSAGES_MAX: u32 = 16_384;
/// The same in bytes.
pub const WINDOW_BYTES_MAX: u32 = 16 << 20;

/// Why a stream ends, or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StreamEnd {
    /// The gRPC status.
    pub code: Code,
    /// One line, cleaned.
    pub message: String,
    /// The peer's TLS has refused us.
    shut_out: bool,
}

impl StreamEnd {
    /// An end with a reason.
    pub fn new(code: Code, message: impl AsRef<str>) -> StreamEnd {
        StreamEnd { code, message: one_line(message.as_ref(), 512), shut_out: false }
    }

    /// The peer's TLS has refused our certificate: a refusal before any stream.
    pub fn shut_out(message: impl AsRef<str>) -> StreamEnd {
        StreamEnd { shut_out: true, ..StreamEnd::new(Code::Unauthenticated, message) }
    }

    /// Whether the peer's TLS has refused our certificate.
    pub fn is_shut_out(&self) -> bool {
        self.shut_out
    }

    /// We end it only to begin anew at once.
    pub fn renewal() -> StreamEnd {
        StreamEnd::new(Code::Ok, "renewed, to hear the whole state again")
    }

    /// Whether it ends only to begin anew at once.
    pub fn is_renewal(&self) -> bool {
        self.code == Code::Ok
    }

    /// Whether connecting again soon is pointless until somebody changes something.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self.code,
            Code::Unauthenticated
                | Code::PermissionDenied
                | Code::InvalidArgument
                | Code::Unimplemented
                | Code::FailedPrecondition
                | Code::OutOfRange
        )
    }
}

/// A breach of the protocol by the peer. A foreign peer's is counted and ignored, because it
/// would not come back; a hello peer's ends the stream, never the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Violation {
    #[error("an answer to a nonce that is not in flight")]
    UnknownNonce,
    #[error("an answer without status")]
    AnswerWithoutStatus,
    #[error("a second initial request")]
    SecondSubscription,
    #[error("a round asked for too soon")]
    RoundTooSoon,
    #[error("a message with neither request nor response")]
    Empty,
    #[error("a change before the initial request")]
    OfferFirst,
    #[error("buckets that nobody asked for, or out of order")]
    Buckets,
    #[error("the beginning of a round that can't be")]
    Round,
    #[error("a bundle that is too large, too soon, or doesn't follow the one before")]
    Bundle,
}

/// How this stream is to be spoken.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The peer's name, for the view's bookkeeping.
    pub peer: String,
    /// The version spoken. On v1alpha1 the peer is foreign, whoever dialled only imports, and
    /// the other side only publishes.
    pub dialect: Dialect,
    /// Whether we opened the stream.
    pub dialled: bool,
    /// The configured context value; empty if none.
    pub context: Secret,
    /// Our hello; `None` switches the extensions off.
    pub hello: Option<ext::Hello>,
    /// End the stream if the peer says no hello.
    pub extensions_required: bool,
    /// What the peer gets of us.
    pub view: Arc<View>,
    /// How many unanswered changes a foreign peer may have; 1 unless its operator allows more.
    pub foreign_window: usize,
}

/// Our hello. `held` is what we hold of the peer's; `None` if we don't import from it.
pub fn our_hello(
    agent: &str,
    instance: u64,
    log_id: [u8; 16],
    revision: u64,
    message_bytes: usize,
    held: Option<ext::Held>,
) -> ext::Hello {
    ext::Hello {
        version: EXTENSION_VERSION,
        agent: agent.to_owned(),
        capabilities: vec![],
        window_messages: INBOX_MESSAGES as u32,
        window_bytes: INBOX_BYTES as u32,
        max_message_bytes: u32::try_from(message_bytes).unwrap_or(u32::MAX),
        beat_ms: BEAT_EVERY.as_millis() as u32,
        answer_ms: ANSWER_DEADLINE.as_millis() as u32,
        instance,
        log_id: log_id.to_vec().into(),
        revision,
        held,
    }
}

/// What a peer said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerHello {
    /// Version of its extensions.
    pub version: u32,
    /// Its program, cleaned.
    pub agent: String,
    /// Random for each of its processes.
    pub instance: u64,
    /// Most unanswered changes that it takes, as it said.
    pub window_messages: u32,
    /// The same in bytes.
    pub window_bytes: u32,
    /// Largest message that it takes, in bytes, as it said.
    pub max_message_bytes: u32,
    /// How often it beats, in milliseconds; 0 is never.
    pub beat_ms: u32,
}

/// A direction that doesn't move on although the connection is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stall {
    /// What we offer isn't answered.
    Unanswered(Duration),
    /// What we say isn't taken by the connection: answers to the peer's changes.
    Unwritten(Duration),
    /// The same of anything: the peer takes no data at all.
    Untaken(Duration),
    /// We have changes and room in the window, and don't send them.
    Unsent(Duration),
    /// The peer has changes that no proof covers.
    Unproven(Duration),
    /// Changes came, and our store doesn't take them.
    Uncommitted(Duration),
}

/// What we know of the peer's kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerClass {
    /// It hasn't spoken.
    Unknown,
    /// It said no hello.
    Foreign,
    /// A Hamlet agent.
    Hello(PeerHello),
}

/// What we may have unanswered at a hello peer.
fn window_of(peer: &PeerHello) -> Window {
    let messages = peer.window_messages.clamp(1, WINDOW_MESSAGES_MAX) as usize;
    let bytes = match peer.window_bytes {
        // It said nothing of bytes.
        0 => INBOX_BYTES,
        bytes => bytes.min(WINDOW_BYTES_MAX) as usize,
    };
    Window { messages, bytes }
}

/// One stream, both roles.
#[derive(Debug)]
pub struct StreamSession {
    config: SessionConfig,
    started: Duration,
    class: PeerClass,
    subscribed: bool,
    sent_subscribe: bool,
    goodbye: Option<ext::Goodbye>,
    peer_goodbye: Option<ext::goodbye::Reason>,
    retry_after: Duration,
    violations: u64,
    beats: Option<Beats>,
    paused_since: Option<Duration>,
    paused_total: Duration,
    late_answer: SecondLook,
    late_write: SecondLook,
    late_beat: SecondLook,
    observer: Option<Arc<dyn StreamObserver>>,
    /// The owner role, once the peer has subscribed.
    pub owner: Option<OwnerSession>,
    /// The consumer role.
    pub consumer: ConsumerSession,
    /// What is said of both sides' bundles; to hello peers only.
    pub bundles: BundleTalk,
}

impl StreamSession {
    /// A stream that begins now.
    pub fn new(config: SessionConfig, now: Duration) -> StreamSession {
        let v1alpha1 = config.dialect == Dialect::V1alpha1;
        let consumer = ConsumerSession::new(config.view.type_url());
        StreamSession {
            started: now,
            class: if v1alpha1 { PeerClass::Foreign } else { PeerClass::Unknown },
            subscribed: false,
            // Who accepts a v1alpha1 stream has nothing to ask for on it.
            sent_subscribe: v1alpha1 && !config.dialled,
            config,
            goodbye: None,
            peer_goodbye: None,
            retry_after: Duration::ZERO,
            violations: 0,
            beats: None,
            paused_since: None,
            paused_total: Duration::ZERO,
            late_answer: SecondLook::default(),
            late_write: SecondLook::default(),
            late_beat: SecondLook::default(),
            bundles: BundleTalk::default(),
            observer: None,
            owner: None,
            consumer,
        }
    }

    /// Who is told what the peer answers; say it before the peer's first message.
    pub fn observe(&mut self, observer: Arc<dyn StreamObserver>) {
        self.observer = Some(observer);
    }

    /// The version spoken.
    pub fn dialect(&self) -> Dialect {
        self.config.dialect
    }

    /// What the peer is.
    pub fn class(&self) -> &PeerClass {
        &self.class
    }

    /// Whether the peer has said anything.
    pub fn has_heard(&self) -> bool {
        self.owner.is_some() || self.consumer.stats().received > 0 || self.violations > 0
    }

    /// Breaches of the protocol so far.
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// Why the peer said it is leaving, if it did.
    pub fn peer_goodbye(&self) -> Option<ext::goodbye::Reason> {
        self.peer_goodbye
    }

    /// What the peer said in its last beat.
    pub fn peer_beat(&self) -> Option<PeerBeat> {
        self.beats.as_ref().and_then(Beats::peer)
    }

    /// Our reader stops for want of room in the inbox: what the peer may have answered meanwhile
    /// is not held against it.
    pub fn pause_reading(&mut self, now: Duration) {
        self.paused_since.get_or_insert(now);
    }

    /// Our reader goes on.
    pub fn resume_reading(&mut self, now: Duration) {
        if let Some(since) = self.paused_since.take() {
            self.paused_total += now.saturating_sub(since);
        }
    }

    /// The time that runs only while we read.
    fn judged(&self, now: Duration) -> Duration {
        if is_on(SeededBug::DeadlineWhilePaused) {
            return now;
        }
        let pause = self.paused_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        now.saturating_sub(self.paused_total + pause)
    }

    /// Whether ending the stream to begin anew harms nobody: a Go peer drops all that it imported
    /// from us when a stream ends.
    pub fn may_renew(&self) -> bool {
        self.owner.as_ref().is_none_or(|owner| owner.offered() == 0)
    }

    /// How long the peer's goodbye asked us to wait before a new stream.
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }

    /// Whether the peer has introduced itself as a Hamlet agent.
    pub fn is_hello(&self) -> bool {
        matches!(self.class, PeerClass::Hello(_))
    }

    /// Takes one message: its response first, then its request.
    pub fn receive(&mut self, incoming: Incoming, now: Duration) -> Result<(), StreamEnd> {
        let judged = self.judged(now);
        if let Some(beats) = &mut self.beats {
            beats.sign(judged);
        }
        if incoming.offer.is_none() && incoming.request.is_none() {
            return self.violation(Violation::Empty);
        }
        if let Some(offer) = incoming.offer {
            if self.class == PeerClass::Unknown {
                // A hello rides in the initial request: whoever begins with a change has none.
                self.classify(None, now)?;
                self.violation(Violation::OfferFirst)?;
            }
            if !self.subscribed {
                self.check_context(&offer.context)?;
            }
            self.consumer.receive(offer, incoming.bytes, now)?;
        }
        match incoming.request {
            Some(request) => self.receive_request(request, now),
            None => Ok(()),
        }
    }

    /// Whoever opens a stream to us shows the context value before anything of it counts.
    fn check_context(&self, context: &str) -> Result<(), StreamEnd> {
        let none = self.config.dialect == Dialect::V1alpha1;
        if self.config.dialled || none || self.config.context.matches(context) {
            return Ok(());
        }
        let text = "the context value differs; set the same value on both sides";
        Err(StreamEnd::new(Code::Unauthenticated, text))
    }

    fn receive_request(&mut self, mut request: IncomingRequest, now: Duration) -> Result<(), StreamEnd> {
        let control = request.control.take();
        let unknown_member = control.as_ref().is_some_and(|c| c.kind.is_none());
        let kind = control.and_then(|c| c.kind);
        if !request.nonce.is_empty() || request.status.is_some() {
            let Some(owner) = &mut self.owner else { return self.violation(Violation::UnknownNonce) };
            let answered = owner.answer(&request.nonce, request.status, now);
            return answered.or_else(|v| self.violation(v));
        }
        if !self.subscribed {
            return self.subscribe(&request, kind, now);
        }
        match kind {
            Some(kind) if self.is_hello() => self.receive_control(kind, now),
            // A member that a later version of the extensions has.
            None if self.is_hello() && unknown_member => Ok(()),
            // Foreign peers that send controls anyway, and anything else without a nonce.
            _ => self.violation(Violation::SecondSubscription),
        }
    }

    fn subscribe(
        &mut self,
        request: &IncomingRequest,
        kind: Option<ext::control::Kind>,
        now: Duration,
    ) -> Result<(), StreamEnd> {
        self.check_context(&request.context)?;
        let served = self.config.view.type_url();
        if request.resource_url != served {
            let text = format!("unknown resource_url; this agent serves {served}");
            return Err(StreamEnd::new(Code::InvalidArgument, text));
        }
        let hello = match kind {
            Some(ext::control::Kind::Hello(hello)) if self.config.hello.is_some() => Some(hello),
            _ => None,
        };
        let held = hello.as_ref().and_then(|h| h.held.clone());
        match self.class {
            PeerClass::Unknown => self.classify(hello, now)?,
            PeerClass::Foreign if hello.is_some() => {
                let text = "the hello came late; the stream is renewed to speak the extensions";
                return Err(StreamEnd::new(Code::Unavailable, text));
            }
            _ => {}
        }
        self.subscribed = true;
        let log_id = self.config.hello.as_ref().map(|h| h.log_id.to_vec()).unwrap_or_default();
        let (hello, window) = match &self.class {
            PeerClass::Hello(peer) => (true, window_of(peer)),
            _ if self.config.dialect == Dialect::V1alpha1 => (false, Window::ONE),
            _ => (false, Window { messages: self.config.foreign_window, bytes: usize::MAX }),
        };
        let (peer, view) = (&self.config.peer, &self.config.view);
        let mut owner = OwnerSession::new(peer, view, hello, held.as_ref(), window, &log_id, now);
        owner.observe(self.observer.clone());
        self.owner = Some(owner);
        Ok(())
    }

    fn classify(&mut self, hello: Option<ext::Hello>, now: Duration) -> Result<(), StreamEnd> {
        self.class = match hello {
            Some(h) => {
                self.consumer.set_hello();
                self.consumer.set_log(&h.log_id);
                self.beats = Some(Beats::new(h.beat_ms, now, self.judged(now)));
                PeerClass::Hello(PeerHello {
                    version: h.version,
                    agent: one_line(&h.agent, 128),
                    instance: h.instance,
                    window_messages: h.window_messages,
                    window_bytes: h.window_bytes,
                    max_message_bytes: h.max_message_bytes,
                    beat_ms: h.beat_ms,
                })
            }
            None if self.config.extensions_required => {
                let text = "this peer is configured with extensions: required, and said no hello";
                return Err(StreamEnd::new(Code::FailedPrecondition, text));
            }
            None => PeerClass::Foreign,
        };
        if let Some(observer) = &self.observer {
            observer.spoke();
        }
        Ok(())
    }

    fn receive_control(&mut self, kind: ext::control::Kind, now: Duration) -> Result<(), StreamEnd> {
        match kind {
            ext::control::Kind::Hello(_) => return self.violation(Violation::SecondSubscription),
            ext::control::Kind::Held(held) => {
                if let Some(owner) = &mut self.owner
                    && let Err(v) = owner.held(&held, now)
                {
                    // Refusing a round is enough; ending the stream would start one.
                    self.violations += 1;
                    tracing::debug!(peer = %self.config.peer, violation = %v, "round refused");
                }
            }
            ext::control::Kind::Buckets(buckets) => {
                if let Some(owner) = &mut self.owner
                    && let Err(violation) = owner.buckets(&buckets)
                {
                    return self.violation(violation);
                }
            }
            ext::control::Kind::Begin(begin) => {
                return self.consumer.begin(begin, now).or_else(|v| self.violation(v));
            }
            ext::control::Kind::Bookmark(bookmark) => self.consumer.bookmark(bookmark, now),
            ext::control::Kind::Proof(proof) => {
                if let Some(owner) = &mut self.owner {
                    owner.proof(&proof, now);
                }
            }
            ext::control::Kind::Beat(beat) => {
                let proven = self.consumer.stats().proven_version;
                if let Some(beats) = &mut self.beats {
                    beats.received(&beat, proven, now);
                }
            }
            ext::control::Kind::Applied(applied) => {
                if let Some(owner) = &mut self.owner {
                    owner.applied(&applied);
                }
            }
            ext::control::Kind::Bundle(bundle) => {
                return self.bundles.receive(bundle, now).or_else(|v| self.violation(v));
            }
            ext::control::Kind::BundleAck(ack) => self.bundles.answered(&ack),
            ext::control::Kind::Goodbye(goodbye) => {
                let reason = ext::goodbye::Reason::try_from(goodbye.reason).ok();
                if reason == Some(ext::goodbye::Reason::Leaving) {
                    self.consumer.leaving(now);
                }
                self.peer_goodbye = reason;
                self.retry_after = Duration::from_millis(goodbye.retry_after_ms).min(RETRY_AFTER_MAX);
            }
        }
        Ok(())
    }

    fn violation(&mut self, violation: Violation) -> Result<(), StreamEnd> {
        self.violations += 1;
        if self.is_hello() {
            return Err(StreamEnd::new(Code::InvalidArgument, format!("protocol violation: {violation}")));
        }
        tracing::debug!(peer = %self.config.peer, %violation, "foreign peer's violation ignored");
        Ok(())
    }

    /// What to write next: the initial request, answers, controls, then changes.
    ///
    /// # Errors
    /// The end of the stream.
    pub fn next(&mut self, now: Duration) -> Result<Option<Outgoing>, StreamEnd> {
        if !self.sent_subscribe {
            if !self.config.dialled && self.class == PeerClass::Unknown {
                return Ok(None);
            }
            self.sent_subscribe = true;
            // Extensions in the initial request are invisible to anyone else.
            let spoken = self.config.dialect == Dialect::V1alpha2;
            let hello =
                self.config.hello.clone().filter(|_| spoken && (self.config.dialled || self.is_hello()));
            let control = hello.map(|h| ext::Control { kind: Some(ext::control::Kind::Hello(h)) });
            return Ok(Some(Outgoing::Subscribe { control }));
        }
        if let Some(out) = self.consumer.next_out() {
            return Ok(Some(out));
        }
        if let Some(goodbye) = self.goodbye.take() {
            let kind = Some(ext::control::Kind::Goodbye(goodbye));
            return Ok(Some(Outgoing::Control(ext::Control { kind })));
        }
        if let Some(beat) = self.beats.as_mut().and_then(|b| b.due(now)) {
            let kind = Some(ext::control::Kind::Beat(self.filled(beat, now)));
            return Ok(Some(Outgoing::Control(ext::Control { kind })));
        }
        if let Some(most) = self.bundle_room()
            && let Some(kind) = self.bundles.next(most, now)
        {
            return Ok(Some(Outgoing::Control(ext::Control { kind: Some(kind) })));
        }
        let judged = self.judged(now);
        match &mut self.owner {
            Some(owner) => owner.next(now, judged),
            None => Ok(None),
        }
    }

    /// Largest message that the peer takes, if it is one that is told of bundles.
    fn bundle_room(&self) -> Option<usize> {
        let PeerClass::Hello(peer) = &self.class else { return None };
        match peer.max_message_bytes {
            // It said nothing of it.
            0 => Some(MESSAGE_BYTES),
            most => usize::try_from(most).ok(),
        }
    }

    /// A beat with how far both of our roles are.
    fn filled(&self, beat: ext::Beat, now: Duration) -> ext::Beat {
        let millis = |age: Option<Duration>| age.map_or(0, |age| age.as_millis() as u64);
        let owner = self.owner.as_ref();
        ext::Beat {
            head: owner.map_or(0, OwnerSession::head),
            unsent: owner.map_or(0, |o| o.behind(BEHIND_COUNTED) as u64),
            oldest_unsent_ms: millis(owner.and_then(|o| o.behind_for(now))),
            oldest_uncommitted_ms: millis(self.consumer.oldest_uncommitted(now)),
            ..beat
        }
    }

    /// What doesn't move on, the oldest kinds first; empty when all is well.
    pub fn stalls(&self, now: Duration) -> Vec<Stall> {
        let over = |age: Option<Duration>, limit: Duration| age.filter(|age| *age >= limit);
        let owner = self.owner.as_ref();
        let unanswered = over(owner.and_then(|o| o.oldest_unanswered(now)), STALLED_AFTER);
        let unsent = owner.filter(|o| o.has_credit()).and_then(|o| o.behind_for(now));
        let unwritten = self.consumer.oldest_unwritten(now);
        let proven = self.consumer.stats().proven_version;
        let ahead = self.beats.as_ref().and_then(|b| b.ahead_for(proven, now));
        let uncommitted = self.consumer.oldest_uncommitted(now);
        let untaken = self.beats.as_ref().and_then(|b| b.waited(now));
        [
            over(untaken, STALLED_AFTER).map(Stall::Untaken),
            unanswered.map(Stall::Unanswered),
            over(unwritten, STALLED_AFTER).map(Stall::Unwritten),
            over(unsent, STALLED_AFTER).map(Stall::Unsent),
            over(ahead, STALLED_AFTER).map(Stall::Unproven),
            over(uncommitted, STALLED_HERE_AFTER).map(Stall::Uncommitted),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Says why we are about to end the stream; to hello peers only.
    pub fn say_goodbye(&mut self, reason: ext::goodbye::Reason, retry_after: Duration) {
        if self.is_hello() && self.sent_subscribe {
            let retry_after_ms = retry_after.as_millis() as u64;
            self.goodbye = Some(ext::Goodbye { reason: reason as i32, retry_after_ms });
        }
    }

    /// Whether a goodbye waits to be written.
    pub fn has_goodbye(&self) -> bool {
        self.goodbye.is_some()
    }

    /// Looks at the time: a silent acceptor is foreign after a while, and a hello peer that
    /// doesn't answer is cut off.
    pub fn tick(&mut self, now: Duration) -> Result<(), StreamEnd> {
        if self.config.dialled
            && self.class == PeerClass::Unknown
            && now.saturating_sub(self.started) >= HELLO_WAIT
        {
            self.classify(None, now)?;
        }
        if !self.config.dialled && !self.subscribed && now.saturating_sub(self.started) >= SUBSCRIBE_DEADLINE
        {
            let text = "no initial request within 30 s; send it first, with the resource_url";
            return Err(StreamEnd::new(Code::Unavailable, text));
        }
        if let Some(owner) = &mut self.owner {
            owner.tick(now);
        }
        if !self.is_hello() {
            return Ok(());
        }
        let judged = self.judged(now);
        let committing = self.peer_beat().is_some_and(|b| !b.oldest_uncommitted.is_zero());
        let deadline = if committing { ANSWER_DEADLINE_COMMITTING } else { ANSWER_DEADLINE };
        let oldest = self.owner.as_ref().and_then(|o| o.oldest_judged(judged));
        if self.late_answer.confirms(oldest.is_some_and(|age| age >= deadline), now) {
            let text = format!("no answer to a change within {} s; connect again", deadline.as_secs());
            return Err(StreamEnd::new(Code::Unavailable, text));
        }
        // Whoever doesn't read doesn't get: nothing of ours was taken for so long.
        let waits = self.consumer.oldest_unwritten(now).is_some_and(|age| age >= WRITE_DEADLINE);
        if self.late_write.confirms(waits, now) {
            let text = "answers were not taken within 30 s; read while you write";
            return Err(StreamEnd::new(Code::Unavailable, text));
        }
        let waits = self.beats.as_ref().and_then(|b| b.waited(now)).is_some_and(|age| age >= deadline);
        if self.late_beat.confirms(waits, now) {
            let text = format!(
                "the peer takes no data: nothing of ours was taken within {} s; read while you write, and open \
                 the HTTP/2 window",
                deadline.as_secs()
            );
            return Err(StreamEnd::new(Code::Unavailable, text));
        }
        if self.beats.as_mut().is_some_and(|b| b.is_silent(now, judged)) {
            let text = "no sign of life within three beats; connect again";
            return Err(StreamEnd::new(Code::Unavailable, text));
        }
        Ok(())
    }

    /// Whether [`next`](Self::next) would say something now; changes count if they are `hurried`.
    /// `true` may be said in vain.
    pub fn wants_write(&self, now: Duration, hurried: bool) -> bool {
        let spoken = self.sent_subscribe || (!self.config.dialled && self.class == PeerClass::Unknown);
        let owner = self.owner.as_ref().is_some_and(|owner| owner.wants_write(now, hurried));
        let bundles = self.is_hello() && self.bundles.wants_write(now);
        !spoken || self.consumer.has_out() || self.goodbye.is_some() || bundles || owner
    }

    /// When to look at the time again although nothing happened.
    pub fn wake_at(&self) -> Option<Duration> {
        let owner = self.owner.as_ref().and_then(OwnerSession::wake_at);
        let late = [self.late_answer.due(), self.late_write.due(), self.late_beat.due()];
        let looks = [self.beats.as_ref().map(Beats::wake_at), self.bundles.wake_at()];
        owner.into_iter().chain(self.consumer.wake_at()).chain(looks.into_iter().chain(late).flatten()).min()
    }

    /// Follows the peer to its new view after a policy change.
    pub fn move_to(&mut self, view: &Arc<View>) {
        self.config.view = view.clone();
        if let Some(owner) = &mut self.owner {
            owner.move_to(view);
        }
    }
}
