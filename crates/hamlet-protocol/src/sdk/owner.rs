//! The owner's end: puts and deletes go to every peer, in order of each key, and nobody waits for
//! the slowest.

use std::net::SocketAddr;
use std::sync::Arc;

use hamlet_core::service::limits;
use hamlet_core::view::Offer;
use hamlet_core::{FederatedService, PeerName};
use tokio::sync::watch;

use crate::bundles::{HeardBundle, NotInForce, StreamBundle};
use crate::link::LinkStatus;
use crate::sdk::events::{Events, OwnerEvent};
use crate::sdk::identity::{Identity, Peer};
use crate::sdk::node::{Node, Plan, StartError};
use crate::sdk::resource::Resource;
use crate::transport::MESSAGE_HARD_BYTES;

/// Longest key, in bytes: longer ones are refused by every Hamlet peer.
pub const KEY_BYTES_MAX: usize = limits::NAME_BYTES;
/// Largest encoded resource that is offered, in bytes: what every implementation's gRPC library
/// takes, less room for the rest of the message. Consumers usually take less and refuse the rest.
pub const VALUE_BYTES_MAX: usize = MESSAGE_HARD_BYTES - 64 * 1024;

/// An entry can't be offered. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The key is empty, too long or unreadable.
    #[error("the key has {0} bytes; use 1 to {KEY_BYTES_MAX} bytes without control characters")]
    Key(usize),
    /// The encoded resource is too large for any peer.
    #[error("the resource has {0} bytes; at most {VALUE_BYTES_MAX} fit in a message: split it")]
    TooLarge(usize),
    /// The resource says why.
    #[error("the resource can't be offered: {0}")]
    Resource(String),
}

/// Says how an owner is to start.
#[must_use = "an owner starts with start()"]
pub struct OwnerBuilder<R: Resource = FederatedService> {
    plan: Plan<R>,
}

impl<R: Resource> OwnerBuilder<R> {
    /// Adds a peer to offer everything to.
    pub fn peer(mut self, peer: Peer) -> Self {
        self.plan.peers.push(peer);
        self
    }

    /// Listens for peers, for example on `127.0.0.1:7443`; port 0 takes any free one.
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.plan.listen = Some(address.into());
        self
    }

    /// Says our SPIFFE bundle to peers that are Hamlet, now and whenever `source` has another one: so
    /// their trust follows when our CAs change. What they say of it is told to observers.
    pub fn bundle(mut self, source: watch::Receiver<Option<StreamBundle>>) -> Self {
        self.plan.bundles.source = Some(source);
        self
    }

    /// Decides about the SPIFFE bundles that peers say of themselves; without it they are told that
    /// their bundle is not followed here. It must be quick, and changes no trust by itself: the
    /// bundle counts only for the trust domain that the peer proves, and only over a certificate that
    /// the old and the new bundle prove ([`hamlet_identity::proven_agent_under`]).
    pub fn on_bundle(
        mut self,
        handler: impl Fn(&PeerName, &HeardBundle) -> Result<(), NotInForce> + Send + Sync + 'static,
    ) -> Self {
        self.plan.bundles.handler = Some(Arc::new(handler));
        self
    }

    /// Name and version of the program, as peers show it.
    pub fn program(mut self, program: impl Into<String>) -> Self {
        self.plan.program = program.into();
        self
    }

    /// Starts. The owner listens and dials when this returns.
    ///
    /// # Errors
    /// What is missing or can't be had.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start(self) -> Result<Owner<R>, StartError> {
        Ok(Owner { node: self.plan.start().await? })
    }
}

/// Offers resources to peers. Dropping the last handle ends the streams; what consumers hold stays
/// theirs for their hold time.
pub struct Owner<R: Resource = FederatedService> {
    pub(super) node: Arc<Node<R>>,
}

impl<R: Resource> std::fmt::Debug for Owner<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").field("node", &self.node).finish()
    }
}

impl<R: Resource> Owner<R> {
    /// An owner that proves to be `identity`.
    pub fn builder(identity: Identity) -> OwnerBuilder<R> {
        OwnerBuilder { plan: Plan::new(identity, false) }
    }

    /// Offers `value` under `key`, in place of what was offered there. Returns its version, by which
    /// observers tell what was answered; putting an equal value again changes nothing.
    ///
    /// # Errors
    /// The key or value can't be offered to anyone. What a peer refuses is told to observers.
    pub fn put(&self, key: &str, value: &R) -> Result<u64, PutError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control) {
            return Err(PutError::Key(key.len()));
        }
        let bytes = value.to_value(key).map_err(PutError::Resource)?;
        if bytes.len() > VALUE_BYTES_MAX {
            return Err(PutError::TooLarge(bytes.len()));
        }
        let offer = Arc::new(Offer::new(<R as Resource>::TYPE_URL, key, bytes));
        Ok(self.node.view.put(offer, &self.node.versions))
    }

    /// Withdraws what is offered under `key`. Returns the deletion's version; `None` if nothing was
    /// offered there.
    pub fn delete(&self, key: &str) -> Option<u64> {
        self.node.view.remove(key, &self.node.versions)
    }

    /// Says that everything is put: from now on what is absent doesn't exist. Before this, peers
    /// keep what they hold of an earlier life of this owner, and a peer that connects is sent
    /// nothing for up to ten seconds, so that a restart neither repeats nor withdraws what is
    /// merely not read yet. Call it once the initial state is put, also if it is empty.
    pub fn ready(&self) {
        self.node.view.set_ready(true);
    }

    /// Whether [`ready`](Self::ready) was said.
    pub fn is_ready(&self) -> bool {
        self.node.view.is_ready()
    }

    /// How many entries are offered.
    pub fn len(&self) -> u64 {
        self.node.view.count()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything that happens from now on.
    pub fn observe(&self) -> Events<OwnerEvent> {
        Events::new(self.node.observed.owner.subscribe())
    }

    /// How each peer is doing, as the agent's `hamlet get peers` shows it.
    pub fn status(&self) -> Vec<LinkStatus> {
        self.node.status()
    }

    /// Whether every peer has proven to hold exactly what is offered now. Peers that aren't Hamlet
    /// never do.
    pub fn is_proven(&self) -> bool {
        self.node.status().iter().all(|s| s.owner_proven)
    }

    /// Where it listens, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.node.address
    }

    /// Says goodbye to all peers and waits until everything has ended: at most ten seconds.
    pub async fn stop(self) {
        self.node.stop().await;
    }
}
