//! What a link carries, as a type: services for the agent, any protobuf message for those who embed
//! this crate ([`crate::sdk`]).
//!
//! A [`LinkJudge`] is known when a link is compiled, so the agent pays nothing for the choice. What
//! is told to observers is told under locks of the stream: observers only pass it on.

use std::fmt::Debug;
use std::sync::Arc;

use hamlet_core::PeerName;
use hamlet_core::guard::GuardSettings;
use hamlet_core::import::ImportRules;
use hamlet_core::imported::{ImportLimits, ImportedSlice, Judge, ServiceJudge, SliceChanges};
use hamlet_core::lease::NameLeases;
use hamlet_core::view::{Change, View};
use tokio::sync::watch;

use crate::dialect::Dialect;
use crate::dialect::offered::{Offered, Unsaid};
use crate::dialect::service::{TYPE_URL, decode};
use crate::owner::{ProofState, Refusal};

/// Where links find what each peer is offered.
pub trait PeerViews: Send + Sync + 'static {
    /// The peer's view in a dialect, and its successors; `None` if it isn't published to.
    fn view(&self, dialect: Dialect, peer: &PeerName) -> Option<watch::Receiver<Arc<View>>>;

    /// What the peer isn't offered because v1alpha1 can't say it.
    fn unsaid(&self, peer: &PeerName) -> Vec<Unsaid>;
}

impl PeerViews for Offered {
    fn view(&self, dialect: Dialect, peer: &PeerName) -> Option<watch::Receiver<Arc<View>>> {
        Offered::view(self, dialect, peer)
    }

    fn unsaid(&self, peer: &PeerName) -> Vec<Unsaid> {
        Offered::unsaid(self, peer)
    }
}

/// Is told what a peer says on one stream. Called under the stream's lock: it must not block, nor call
/// back.
pub trait StreamObserver: Debug + Send + Sync + 'static {
    /// The peer has said its first word.
    fn spoke(&self);

    /// The peer answered a change: acknowledged, or refused.
    fn answered(&self, change: &Change, answer: Result<(), &Refusal>);

    /// The peer compared all it holds with all we said.
    fn compared(&self, proof: &ProofState);
}

/// A judge that links can make for each of their peers.
pub trait LinkJudge: Judge {
    /// What policy says of a peer; the judge's part of [`ImportSettings`](crate::importer::ImportSettings).
    type Rules: ?Sized + Send + Sync + 'static;
    /// What judges of all peers share.
    type Shared: Clone + Send + Sync + 'static;
    /// What peers are offered.
    type Views: PeerViews;

    /// The type of the resources in v1alpha2, which is also the stream's `resource_url`.
    const TYPE_URL: &'static str;
    /// The versions that can carry them, in the order in which a peer of unknown version is tried.
    const DIALECTS: &'static [Dialect];
    /// Whether [`published`](Self::published) wants to know.
    const TELLS: bool = false;

    /// A peer's empty slice; it admits nothing until it has rules.
    fn slice(peer: &PeerName, shared: &Self::Shared) -> ImportedSlice<Self>
    where
        Self: Sized;

    /// Puts policy in force for what comes from now on.
    fn set_rules(
        slice: &mut ImportedSlice<Self>,
        rules: Option<Arc<Self::Rules>>,
        limits: ImportLimits,
        guard: GuardSettings,
    ) where
        Self: Sized;

    /// Changes that readers of the catalogue see now. Called under locks: it must not block.
    fn published(_shared: &Self::Shared, _peer: &PeerName, _changes: SliceChanges<Self::Value>) {}

    /// All of a peer's entries are gone: it left for good, or was removed.
    fn cleared(_shared: &Self::Shared, _peer: &PeerName) {}

    /// Who is told what the peer says on a new stream.
    fn observer(_shared: &Self::Shared, _peer: &PeerName) -> Option<Arc<dyn StreamObserver>> {
        None
    }
}

impl LinkJudge for ServiceJudge {
    type Rules = ImportRules;
    type Shared = NameLeases;
    type Views = Offered;

    const TYPE_URL: &'static str = TYPE_URL;
    const DIALECTS: &'static [Dialect] = &Dialect::ALL;

    fn slice(peer: &PeerName, leases: &NameLeases) -> ImportedSlice {
        ImportedSlice::new(peer.clone(), TYPE_URL, Arc::new(decode), leases.clone())
    }

    fn set_rules(
        slice: &mut ImportedSlice,
        rules: Option<Arc<ImportRules>>,
        limits: ImportLimits,
        guard: GuardSettings,
    ) {
        slice.set_rules(rules, limits, guard);
    }
}
