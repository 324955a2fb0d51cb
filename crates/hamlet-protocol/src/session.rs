//! Both roles of one stream as a value: messages in, messages out, time passed in. The same
//! machine runs in production, in the simulator and in the fuzzers. *Hardened to untrusted peer.*
//!
//! The peer's class (a Hamlet agent, or foreign) is fixed by its first message and never
//! remembered across streams.

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::rejection::one_line;
use hamlet_core::view::View;
use tonic::Code;

use crate::consumer::ConsumerSession;
use crate::dialect::service::TYPE_URL;
use crate::dialect::{Incoming, IncomingRequest, Outgoing, Secret};
use crate::owner::OwnerSession;
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

/// Why a stream ends, or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StreamEnd {
    /// The gRPC status.
    pub code: Code,
    /// One line, cleaned.
    pub message: String,
}

impl StreamEnd {
    /// An end with a reason.
    pub fn new(code: Code, message: impl AsRef<str>) -> StreamEnd {
        StreamEnd { code, message: one_line(message.as_ref(), 512) }
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
}

/// How this stream is to be spoken.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The peer's name, for the view's bookkeeping.
    pub peer: String,
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
    violations: u64,
    /// The owner role, once the peer has subscribed.
    pub owner: Option<OwnerSession>,
    /// The consumer role.
    pub consumer: ConsumerSession,
}

impl StreamSession {
    /// A stream that begins now.
    pub fn new(config: SessionConfig, now: Duration) -> StreamSession {
        StreamSession {
            config,
            started: now,
            class: PeerClass::Unknown,
            subscribed: false,
            sent_subscribe: false,
            goodbye: None,
            peer_goodbye: None,
            violations: 0,
            owner: None,
            consumer: ConsumerSession::new(TYPE_URL),
        }
    }

    /// What the peer is.
    pub fn class(&self) -> &PeerClass {
        &self.class
    }

    /// Breaches of the protocol so far.
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// Why the peer said it is leaving, if it did.
    pub fn peer_goodbye(&self) -> Option<ext::goodbye::Reason> {
        self.peer_goodbye
    }

    fn is_hello(&self) -> bool {
        matches!(self.class, PeerClass::Hello(_))
    }

    /// Takes one message: its response first, then its request.
    pub fn receive(&mut self, incoming: Incoming, now: Duration) -> Result<(), StreamEnd> {
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
        if self.config.dialled || self.config.context.matches(context) {
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
        if request.resource_url != TYPE_URL {
            let text = format!("unknown resource_url; this agent serves {TYPE_URL}");
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
        let hello = self.is_hello();
        self.owner =
            Some(OwnerSession::new(&self.config.peer, &self.config.view, held.as_ref(), hello, &log_id));
        Ok(())
    }

    fn classify(&mut self, hello: Option<ext::Hello>, _now: Duration) -> Result<(), StreamEnd> {
        self.class = match hello {
            Some(h) => {
                self.consumer.set_hello();
                let agent = one_line(&h.agent, 128);
                PeerClass::Hello(PeerHello { version: h.version, agent, instance: h.instance })
            }
            None if self.config.extensions_required => {
                let text = "this peer is configured with extensions: required, and said no hello";
                return Err(StreamEnd::new(Code::FailedPrecondition, text));
            }
            None => PeerClass::Foreign,
        };
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
            ext::control::Kind::Begin(begin) => self.consumer.begin(begin),
            ext::control::Kind::Bookmark(bookmark) => self.consumer.bookmark(bookmark),
            ext::control::Kind::Proof(proof) => {
                if let Some(owner) = &mut self.owner {
                    owner.proof(&proof, now);
                }
            }
            ext::control::Kind::Goodbye(goodbye) => {
                self.peer_goodbye = ext::goodbye::Reason::try_from(goodbye.reason).ok();
            }
            // Members of a later version of the extensions are ignored.
            ext::control::Kind::Buckets(_) | ext::control::Kind::Beat(_) | ext::control::Kind::Applied(_) => {
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
    pub fn next(&mut self, now: Duration) -> Result<Option<Outgoing>, StreamEnd> {
        if !self.sent_subscribe {
            if !self.config.dialled && self.class == PeerClass::Unknown {
                return Ok(None);
            }
            self.sent_subscribe = true;
            // Extensions in the initial request are invisible to anyone else.
            let hello = self.config.hello.clone().filter(|_| self.config.dialled || self.is_hello());
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
        match &mut self.owner {
            Some(owner) => owner.next(now),
            None => Ok(None),
        }
    }

    /// Says why we are about to end the stream; to hello peers only.
    pub fn say_goodbye(&mut self, reason: ext::goodbye::Reason, retry_after: Duration) {
        if self.is_hello() && self.sent_subscribe {
            let retry_after_ms = retry_after.as_millis() as u64;
            self.goodbye = Some(ext::Goodbye { reason: reason as i32, retry_after_ms });
        }
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
        let oldest = self.owner.as_ref().and_then(|o| o.oldest_unanswered(now));
        if self.is_hello() && oldest.is_some_and(|age| age >= ANSWER_DEADLINE) {
            let text = "no answer to a change within 30 s; connect again";
            return Err(StreamEnd::new(Code::Unavailable, text));
        }
        Ok(())
    }

    /// Follows the peer to its new view after a policy change.
    pub fn move_to(&mut self, view: &Arc<View>) {
        self.config.view = view.clone();
        if let Some(owner) = &mut self.owner {
            owner.move_to(view);
        }
    }
}
