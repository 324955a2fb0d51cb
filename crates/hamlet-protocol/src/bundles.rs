//! SPIFFE bundles on a stream (extensions text, section 9): what one side says of its own, what it
//! hears of the other's, and both answers. *Hardened to untrusted peer.*
//!
//! It reads no certificate and decides nothing about trust: whoever embeds the protocol does, between
//! [`Link::heard_bundle`](crate::link::Link::heard_bundle) and
//! [`Link::answer_bundle`](crate::link::Link::answer_bundle). Invariants: nothing of it is said before
//! the peer's hello; of several bundles or answers only the newest is kept; what is larger, or comes
//! more often, than the limits allow ends the stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::rejection::one_line;
use hamlet_core::{Rejection, RejectionCode};
use hamlet_identity::ProvenPeer;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::dialect::v1alpha2::error_info;
use crate::session::Violation;
use crate::wire::hamlet::federation::v1 as ext;

/// Largest bundle on a stream, in bytes of its JWK set: sixteen CAs with keys of 4,096 bits.
pub const STREAM_BUNDLE_BYTES_MAX: usize = 48 * 1024;
/// Most bundles that a peer may send on one stream in a minute. We send at most one a second.
pub const STREAM_BUNDLES_A_MINUTE: u32 = 120;
/// Least time between two bundles that we send on one stream.
pub const STREAM_BUNDLE_PAUSE: Duration = Duration::from_secs(1);
/// What a message has beside the bundle in it, at most, in bytes.
const MESSAGE_REST: usize = 8 * 1024;
/// Longest trust domain (SPIFFE id text, section 2.1).
const DOMAIN_BYTES: usize = 255;
/// Longest reason in an answer that is kept, in bytes.
const REASON_BYTES: usize = 64;
/// Longest text in an answer that is kept, in bytes.
const TEXT_BYTES: usize = 512;
/// Reason of an answer that says: announced, and in force later.
const WAITING: &str = "BUNDLE_WAITING";

/// A bundle as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamBundle {
    /// Whose CAs they are.
    pub trust_domain: String,
    /// Grows with the content, over all ways by which the bundle is published.
    pub sequence: u64,
    /// The SPIFFE bundle, a JWK set.
    pub jwks: Bytes,
}

impl StreamBundle {
    fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.jwks).into()
    }
}

/// What a peer said of our bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleAnswer {
    /// Which of ours.
    pub sequence: u64,
    /// Why not all of it is in force there, and nothing else is; `None`: it is.
    pub problem: Option<BundleProblem>,
}

/// A peer's reason, cleaned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleProblem {
    /// Of `google.rpc.ErrorInfo`.
    pub reason: String,
    /// In words; empty if it gave none.
    pub message: String,
}

impl BundleProblem {
    /// Whether it is only a matter of time.
    pub fn is_waiting(&self) -> bool {
        self.reason == WAITING
    }
}

/// Why a bundle that came on a stream is not in force, or not all of it. The reasons of
/// [`BundleAck`](ext::BundleAck).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotInForce {
    /// It is said of another trust domain than the one that the peer proves.
    ForeignDomain,
    /// The peer's bundle is not followed on streams here.
    NotFollowed,
    /// It is no bundle.
    Unreadable(String),
    /// Its sequence is older than the one held.
    Stale(String),
    /// The sequence held, with other content.
    Fork(String),
    /// A sequence too far ahead.
    Jump(String),
    /// It would leave nothing of what is in force.
    NothingLeft(String),
    /// The certificate of the stream is not proven by the bundle in force and by the new one.
    Leaf(String),
    /// It was taken; what it adds is used later.
    Waiting(Duration),
    /// An operator's bundle, or a newer one, is in force instead.
    Overridden,
}

impl NotInForce {
    /// As it is told and shown.
    pub fn rejection(&self) -> Rejection {
        use RejectionCode::{Malformed, Policy, Unavailable};
        match self {
            NotInForce::ForeignDomain => Rejection::new(
                Policy,
                "bundle-foreign-domain",
                "trust_domain",
                "a stream tells the bundle of its own peer's trust domain only",
            ),
            NotInForce::NotFollowed => Rejection::new(
                Policy,
                "bundle-not-followed",
                "jwks",
                "this mesh takes the bundle from elsewhere: give it to its operators, or have them set \
                 `trust.follow: stream`",
            ),
            NotInForce::Unreadable(why) => Rejection::new(Malformed, "bundle-unreadable", "jwks", why),
            NotInForce::Stale(why) => Rejection::new(Policy, "bundle-stale", "sequence", why),
            NotInForce::Fork(why) => Rejection::new(Policy, "bundle-fork", "sequence", why),
            NotInForce::Jump(why) => Rejection::new(Policy, "bundle-jump", "sequence", why),
            NotInForce::NothingLeft(why) => Rejection::new(Policy, "bundle-nothing-left", "jwks", why),
            NotInForce::Leaf(why) => Rejection::new(Policy, "bundle-leaf", "jwks", why),
            NotInForce::Waiting(left) => Rejection::new(
                Unavailable,
                "bundle-waiting",
                "jwks",
                format!("taken; what it adds is used in {} s", left.as_secs_f64().ceil()),
            ),
            NotInForce::Overridden => Rejection::new(
                Policy,
                "bundle-overridden",
                "jwks",
                "the operators of this mesh have set another bundle by hand; ask them",
            ),
        }
    }
}

/// A bundle that a peer's agent said, for whoever decides about trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeardBundle {
    /// The stream, unique in this process.
    pub stream: u64,
    /// Whether we dialled it.
    pub dialled: bool,
    /// Grows with each bundle of the stream; an answer names it.
    pub number: u64,
    /// What was said, whatever it claims.
    pub bundle: Arc<StreamBundle>,
    /// Who said it, proven when the connection was made.
    pub proven: Arc<ProvenPeer>,
}

/// What the links of one program share about bundles: ours, and word that there is something to look
/// at. Clones are the same exchange.
#[derive(Debug, Clone)]
pub struct BundleExchange {
    ours: watch::Sender<Option<Arc<StreamBundle>>>,
    news: watch::Sender<u64>,
}

impl Default for BundleExchange {
    fn default() -> BundleExchange {
        BundleExchange { ours: watch::Sender::new(None), news: watch::Sender::new(0) }
    }
}

impl BundleExchange {
    /// Says from now on that this is our bundle; [`Link::say_bundle`](crate::link::Link::say_bundle)
    /// passes it on to a stream that is up already. Returns whether it is another one than before.
    /// One that is too large for a stream is not said.
    pub fn publish(&self, ours: Option<StreamBundle>) -> bool {
        let ours = ours.filter(|b| {
            let fits = b.jwks.len() <= STREAM_BUNDLE_BYTES_MAX && b.trust_domain.len() <= DOMAIN_BYTES;
            if !fits {
                tracing::error!(
                    bytes = b.jwks.len(),
                    "our bundle is too large for streams; peers have to get it another way"
                );
            }
            fits
        });
        let changed = self.ours.send_if_modified(|held| {
            let other = held.as_deref() != ours.as_ref();
            if other {
                *held = ours.map(Arc::new);
            }
            other
        });
        if changed {
            self.note();
        }
        changed
    }

    /// Ours.
    pub fn ours(&self) -> Option<Arc<StreamBundle>> {
        self.ours.borrow().clone()
    }

    /// Ours, and its successors.
    pub fn published(&self) -> watch::Receiver<Option<Arc<StreamBundle>>> {
        self.ours.subscribe()
    }

    /// Moves when a peer said or answered a bundle, and when ours changed.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    pub(crate) fn note(&self) {
        self.news.send_modify(|v| *v = v.wrapping_add(1));
    }
}

/// A stream's talk about bundles, both ways.
#[derive(Debug, Default)]
pub struct BundleTalk {
    ours: Option<Arc<StreamBundle>>,
    /// What was said last, and when.
    said: Option<(Arc<StreamBundle>, Duration)>,
    /// Answers of ours that wait to be written: the newest only.
    answer: Option<ext::BundleAck>,
    theirs: Option<(u64, Arc<StreamBundle>)>,
    their_sha256: Option<[u8; 32]>,
    their_answer: Option<BundleAnswer>,
    /// Begin of the minute that is counted, and how many bundles came in it.
    minute: (Duration, u32),
    news: bool,
}

impl BundleTalk {
    /// What to say, if it isn't what was said last.
    pub fn set_ours(&mut self, ours: Option<Arc<StreamBundle>>) {
        self.ours = ours;
    }

    fn unsaid(&self) -> Option<&Arc<StreamBundle>> {
        let ours = self.ours.as_ref()?;
        // Asked with every message: as a rule it is the very same one.
        let is_said = |(said, _): &(Arc<StreamBundle>, Duration)| Arc::ptr_eq(said, ours) || said == ours;
        (!self.said.as_ref().is_some_and(is_said)).then_some(ours)
    }

    /// When the next bundle of ours may be said, if one waits.
    pub fn wake_at(&self) -> Option<Duration> {
        let (_, at) = self.said.as_ref()?;
        self.unsaid().map(|_| at.saturating_add(STREAM_BUNDLE_PAUSE))
    }

    /// The next word to a peer that takes messages of at most `most` bytes.
    pub fn next(&mut self, most: usize, now: Duration) -> Option<ext::control::Kind> {
        if let Some(answer) = self.answer.take() {
            return Some(ext::control::Kind::BundleAck(answer));
        }
        if self.wake_at().is_some_and(|at| now < at) {
            return None;
        }
        let ours = self.unsaid()?.clone();
        let before = self.said.as_ref().map(|(said, _)| Bytes::copy_from_slice(&said.sha256()));
        self.said = Some((ours.clone(), now));
        if ours.jwks.len().saturating_add(MESSAGE_REST) > most {
            let bytes = ours.jwks.len();
            tracing::warn!(bytes, most, "the peer takes no messages as large as our bundle; it isn't told");
            return None;
        }
        self.their_answer = None;
        Some(ext::control::Kind::Bundle(ext::Bundle {
            trust_domain: ours.trust_domain.clone(),
            sequence: ours.sequence,
            jwks: ours.jwks.clone(),
            previous_sha256: before.unwrap_or_default(),
        }))
    }

    /// Whether [`next`](Self::next) would say something.
    pub fn wants_write(&self, now: Duration) -> bool {
        self.answer.is_some() || (self.unsaid().is_some() && self.wake_at().is_none_or(|at| now >= at))
    }

    /// The peer said its bundle.
    ///
    /// # Errors
    /// It is too large, too soon, or doesn't follow the one before; nothing was taken.
    pub fn receive(&mut self, bundle: ext::Bundle, now: Duration) -> Result<(), Violation> {
        if now.saturating_sub(self.minute.0) >= Duration::from_secs(60) {
            self.minute = (now, 0);
        }
        self.minute.1 = self.minute.1.saturating_add(1);
        let before = self.their_sha256.as_ref().map_or(&[][..], |print| &print[..]);
        let fits = bundle.jwks.len() <= STREAM_BUNDLE_BYTES_MAX && bundle.trust_domain.len() <= DOMAIN_BYTES;
        if !fits || self.minute.1 > STREAM_BUNDLES_A_MINUTE || bundle.previous_sha256 != before {
            return Err(Violation::Bundle);
        }
        let ext::Bundle { trust_domain, sequence, jwks, .. } = bundle;
        let heard = StreamBundle { trust_domain, sequence, jwks };
        self.their_sha256 = Some(heard.sha256());
        let number = self.theirs.as_ref().map_or(1, |(number, _)| number + 1);
        self.theirs = Some((number, Arc::new(heard)));
        self.news = true;
        Ok(())
    }

    /// The peer said what became of ours. An answer to another one than was said last is late.
    pub fn answered(&mut self, ack: &ext::BundleAck) {
        let named = |of: &StreamBundle| of.sequence == ack.sequence && of.trust_domain == ack.trust_domain;
        if !self.said.as_ref().is_some_and(|(said, _)| named(said)) {
            return;
        }
        let problem = ack.error.as_ref().map(|info| BundleProblem {
            reason: one_line(&info.reason, REASON_BYTES),
            message: info.metadata.get("message").map(|m| one_line(m, TEXT_BYTES)).unwrap_or_default(),
        });
        let answer = BundleAnswer { sequence: ack.sequence, problem };
        self.news |= self.their_answer.as_ref() != Some(&answer);
        self.their_answer = Some(answer);
    }

    /// Says what became of the peer's bundle `number`, unless a newer one came since.
    pub fn answer(&mut self, number: u64, outcome: &Result<(), NotInForce>) {
        let Some((_, heard)) = self.theirs.as_ref().filter(|(newest, _)| *newest == number) else { return };
        self.answer = Some(ext::BundleAck {
            trust_domain: heard.trust_domain.clone(),
            sequence: heard.sequence,
            error: outcome.as_ref().err().map(|why| error_info(&why.rejection())),
        });
    }

    /// The peer's newest bundle, with its number.
    pub fn theirs(&self) -> Option<(u64, Arc<StreamBundle>)> {
        self.theirs.clone()
    }

    /// What the peer said last of ours; `None` until it has answered the newest.
    pub fn their_answer(&self) -> Option<&BundleAnswer> {
        self.their_answer.as_ref()
    }

    /// Whether there is something to look at since this was asked last.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: fn(u64) -> Duration = Duration::from_secs;

    fn bundle(sequence: u64, jwks: &'static str) -> StreamBundle {
        StreamBundle {
            trust_domain: "acme.example".into(),
            sequence,
            jwks: Bytes::from_static(jwks.as_bytes()),
        }
    }

    fn said(talk: &mut BundleTalk, at: u64) -> Option<ext::Bundle> {
        match talk.next(65_536, T(at)) {
            Some(ext::control::Kind::Bundle(bundle)) => Some(bundle),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_version_is_said_once_with_the_hash_of_the_one_before_and_not_more_often_than_once_a_second() {
        let (mut ours, mut theirs) = (BundleTalk::default(), BundleTalk::default());
        assert!(said(&mut ours, 0).is_none() && !ours.wants_write(T(0)));
        ours.set_ours(Some(Arc::new(bundle(1, "one"))));
        assert!(ours.wants_write(T(0)));
        let first = said(&mut ours, 0).unwrap();
        assert!(first.previous_sha256.is_empty());
        assert!(said(&mut ours, 9).is_none() && ours.wake_at().is_none());
        ours.set_ours(Some(Arc::new(bundle(2, "two"))));
        assert_eq!(ours.wake_at(), Some(T(1)));
        ours.set_ours(Some(Arc::new(bundle(3, "three"))));
        let half = Duration::from_millis(500);
        assert!(ours.next(65_536, half).is_none() && !ours.wants_write(half));
        let third = said(&mut ours, 1).unwrap();
        assert_eq!((third.sequence, &third.previous_sha256[..]), (3, &bundle(1, "one").sha256()[..]));
        for (at, message) in [(0, first), (1, third)] {
            theirs.receive(message, T(at)).unwrap();
            assert!(theirs.take_news() && !theirs.take_news());
        }
        assert_eq!(theirs.theirs().map(|(n, b)| (n, b.sequence)), Some((2, 3)));
    }

    #[test]
    fn a_bundle_that_is_too_large_out_of_chain_or_too_frequent_is_a_breach_and_its_neighbour_is_taken() {
        let of = |jwks: Vec<u8>, domain: usize, previous: &[u8]| ext::Bundle {
            trust_domain: "a".repeat(domain),
            sequence: 1,
            jwks: jwks.into(),
            previous_sha256: Bytes::copy_from_slice(previous),
        };
        let big = |more: usize| vec![b'x'; STREAM_BUNDLE_BYTES_MAX + more];
        for (good, bad) in [
            (of(big(0), 9, b""), of(big(1), 9, b"")),
            (of(vec![], 255, b""), of(vec![], 256, b"")),
            (of(vec![], 9, b""), of(vec![], 9, &[0; 32])),
        ] {
            assert_eq!(BundleTalk::default().receive(good, T(0)), Ok(()));
            let mut talk = BundleTalk::default();
            assert_eq!(talk.receive(bad, T(0)), Err(Violation::Bundle));
            assert!(talk.theirs().is_none() && !talk.take_news());
        }
        let mut talk = BundleTalk::default();
        let mut previous = vec![];
        for number in 0..STREAM_BUNDLES_A_MINUTE {
            talk.receive(of(vec![], 9, &previous), T(0)).unwrap();
            previous = Sha256::digest([]).to_vec();
            assert_eq!(talk.theirs().map(|(n, _)| n), Some(u64::from(number) + 1));
        }
        assert_eq!(talk.receive(of(vec![], 9, &previous), T(59)), Err(Violation::Bundle));
        assert_eq!(talk.receive(of(vec![], 9, &previous), T(60)), Ok(()));
    }

    #[test]
    fn only_an_answer_to_what_was_said_last_counts_and_only_to_the_newest_is_answered() {
        let (mut ours, mut theirs) = (BundleTalk::default(), BundleTalk::default());
        ours.set_ours(Some(Arc::new(bundle(1, "one"))));
        theirs.receive(said(&mut ours, 0).unwrap(), T(0)).unwrap();
        theirs.answer(7, &Ok(()));
        assert!(!theirs.wants_write(T(0)), "there is no seventh");
        theirs.answer(1, &Err(NotInForce::Waiting(T(3))));
        let Some(ext::control::Kind::BundleAck(waiting)) = theirs.next(65_536, T(0)) else { panic!() };
        ours.answered(&waiting);
        let answer = ours.their_answer().unwrap().clone();
        assert!(answer.sequence == 1 && answer.problem.as_ref().unwrap().is_waiting(), "{answer:?}");
        assert!(answer.problem.unwrap().message.contains("in 3 s") && ours.take_news());
        theirs.answer(1, &Ok(()));
        let Some(ext::control::Kind::BundleAck(held)) = theirs.next(65_536, T(3)) else { panic!() };
        ours.set_ours(Some(Arc::new(bundle(2, "two"))));
        ours.answered(&held);
        assert_eq!(ours.their_answer().unwrap().problem, None);
        said(&mut ours, 5).unwrap();
        assert!(ours.their_answer().is_none(), "of the second it has said nothing");
        let foreign = ext::BundleAck { trust_domain: "other.example".into(), sequence: 2, error: None };
        for late in [&held, &foreign] {
            ours.answered(late);
            assert!(ours.their_answer().is_none());
        }
    }

    #[test]
    fn a_bundle_that_the_peer_cannot_take_is_not_said_and_one_too_large_for_any_is_not_published() {
        let mut talk = BundleTalk::default();
        talk.set_ours(Some(Arc::new(bundle(1, "one"))));
        assert!(talk.next(MESSAGE_REST, T(0)).is_none() && talk.wake_at().is_none());
        let exchange = BundleExchange::default();
        assert!(exchange.publish(Some(bundle(1, "one"))) && !exchange.publish(Some(bundle(1, "one"))));
        let large = StreamBundle { jwks: vec![0; STREAM_BUNDLE_BYTES_MAX + 1].into(), ..bundle(2, "") };
        assert!(exchange.publish(Some(large)) && exchange.ours().is_none());
    }
}
