//! What happens, as streams of values for observers. *Bounded*: an observer that is slower than the
//! events misses some and is told how many; nobody waits for it.

use std::sync::Arc;

use hamlet_core::PeerName;
use tokio::sync::broadcast;

use crate::bundles::BundleAnswer;
use crate::session::Stall;

/// Most events that an observer may be behind before it misses the oldest.
pub const EVENTS_MAX: usize = 4_096;

/// What happens to an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OwnerEvent {
    /// A peer has a stream with us and has spoken.
    Connected {
        /// Which peer.
        peer: PeerName,
    },
    /// There is no stream with the peer, and why; told again only when the reason is another.
    Down {
        /// Which peer.
        peer: PeerName,
        /// What ended it, or why it can't be reached, in one line.
        reason: String,
    },
    /// The peer took a change: it has made it durable, and its readers see it.
    Acknowledged {
        /// Which peer.
        peer: PeerName,
        /// What it is about.
        key: Arc<str>,
        /// The version that [`put`](crate::sdk::Owner::put) or a deletion made.
        version: u64,
        /// Whether the change was a deletion.
        deleted: bool,
    },
    /// The peer refused a change; an older version of the key may still be in force there.
    Refused {
        /// Which peer.
        peer: PeerName,
        /// What it is about.
        key: Arc<str>,
        /// The version refused.
        version: u64,
        /// The gRPC status code.
        code: i32,
        /// The rule, the field and what to do, in the peer's words, one line.
        reason: String,
    },
    /// The peer proved, by digest, that it holds exactly what we said up to a version. Only a
    /// Hamlet peer does.
    Proven {
        /// Which peer.
        peer: PeerName,
        /// The version.
        version: u64,
        /// How many of our entries it holds as refused.
        refused: u64,
    },
    /// The peer said what became of our SPIFFE bundle.
    BundleAnswered {
        /// Which peer.
        peer: PeerName,
        /// Whether all of it is in force there, or why not.
        answer: BundleAnswer,
    },
    /// Something doesn't move on although there is a stream.
    Stalled {
        /// Which peer.
        peer: PeerName,
        /// What, and for how long.
        stall: Stall,
    },
    /// This observer was too slow and missed so many events.
    Missed(u64),
}

/// What happens to a consumer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ConsumerEvent<R> {
    /// An entry is new, or has a new value.
    Upserted {
        /// Whose.
        peer: PeerName,
        /// Its key.
        key: Arc<str>,
        /// Its value.
        value: Arc<R>,
    },
    /// An entry is gone.
    Deleted {
        /// Whose.
        peer: PeerName,
        /// Its key.
        key: Arc<str>,
    },
    /// All entries of a peer are gone: it left for good.
    Cleared {
        /// Whose.
        peer: PeerName,
    },
    /// A peer has a stream with us and has spoken.
    Connected {
        /// Which peer.
        peer: PeerName,
    },
    /// There is no stream with the peer, and why; told again only when the reason is another. Its
    /// entries stay for the hold time.
    Down {
        /// Which peer.
        peer: PeerName,
        /// What ended it, or why it can't be reached, in one line.
        reason: String,
    },
    /// We hold, by digest, exactly what the peer said.
    Proven {
        /// Which peer.
        peer: PeerName,
        /// How many entries it offers, refused ones included.
        count: u64,
    },
    /// The peer said what became of our SPIFFE bundle.
    BundleAnswered {
        /// Which peer.
        peer: PeerName,
        /// Whether all of it is in force there, or why not.
        answer: BundleAnswer,
    },
    /// Something doesn't move on although there is a stream.
    Stalled {
        /// Which peer.
        peer: PeerName,
        /// What, and for how long.
        stall: Stall,
    },
    /// This observer was too slow and missed so many events: look at the entries anew.
    Missed(u64),
}

/// How an observer is told that it missed something.
pub trait Missable: Clone {
    /// The event that says so.
    fn missed(count: u64) -> Self;
}

impl Missable for OwnerEvent {
    fn missed(count: u64) -> OwnerEvent {
        OwnerEvent::Missed(count)
    }
}

impl<R: Clone> Missable for ConsumerEvent<R> {
    fn missed(count: u64) -> ConsumerEvent<R> {
        ConsumerEvent::Missed(count)
    }
}

/// Events since the observer was made, in order.
#[derive(Debug)]
pub struct Events<E>(broadcast::Receiver<E>);

impl<E: Missable> Events<E> {
    pub(super) fn new(receiver: broadcast::Receiver<E>) -> Events<E> {
        Events(receiver)
    }

    /// The next event; `None` when the owner or consumer is gone. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Option<E> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(E::missed(count)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
