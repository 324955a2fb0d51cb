//! The judge of resources of any type: decode, then ask the program that embeds us. *Hardened to
//! untrusted peer*: a judge that panics refuses, because a dead committer would be worse.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::{ImportLimits, ImportedSlice, Judge, SliceChanges};
use hamlet_core::view::{Change, View};
use hamlet_core::{PeerName, Rejection, RejectionCode};
use tokio::sync::{broadcast, watch};

use crate::dialect::Dialect;
use crate::dialect::offered::Unsaid;
use crate::kind::{LinkJudge, PeerViews, StreamObserver};
use crate::owner::{ProofState, Refusal};
use crate::sdk::events::{ConsumerEvent, EVENTS_MAX, OwnerEvent};
use crate::sdk::resource::Resource;

/// What a consumer's judge is: `Ok` admits, a [`Rejection`] is what the owner is told.
pub type JudgeFn<R> = dyn Fn(&str, &R) -> Result<(), Rejection> + Send + Sync;

/// Decides on resources of one type as the embedding program says.
pub struct ResourceJudge<R: Resource> {
    rules: Option<Arc<JudgeFn<R>>>,
}

impl<R: Resource> std::fmt::Debug for ResourceJudge<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResourceJudge").field("rules", &self.rules.is_some()).finish()
    }
}

impl<R: Resource> Judge for ResourceJudge<R> {
    type Value = R;

    fn judge(&self, key: &str, value: &[u8], _now: Duration) -> Result<Arc<R>, Rejection> {
        let Some(rules) = &self.rules else {
            let message = "this program imports nothing from this peer; ask its operators";
            return Err(Rejection::new(RejectionCode::Policy, "no-import", "resource_id", message));
        };
        let judged = catch_unwind(AssertUnwindSafe(|| {
            let value = R::from_value(key, value)?;
            rules(key, &value).map(|()| Arc::new(value))
        }));
        judged.unwrap_or_else(|_| {
            let message = "the importing program failed on this entry; its log says more";
            Err(Rejection::new(RejectionCode::Malformed, "judge-failed", "resource", message))
        })
    }

    // Nothing is claimed beyond the entry itself.
    fn reclaim(&self, _value: &R, _now: Duration) {}

    fn release(&self, _value: &R, _now: Duration) {}
}

/// Where events of all peers go. Clones share it.
pub struct Observed<R> {
    pub(super) owner: broadcast::Sender<OwnerEvent>,
    pub(super) consumer: broadcast::Sender<ConsumerEvent<R>>,
}

impl<R: Resource> Observed<R> {
    pub(super) fn new() -> Observed<R> {
        Observed { owner: broadcast::Sender::new(EVENTS_MAX), consumer: broadcast::Sender::new(EVENTS_MAX) }
    }

    // With nobody there to be told, an event is no loss.
    pub(super) fn tell_owner(&self, event: OwnerEvent) {
        let _ = self.owner.send(event);
    }

    pub(super) fn tell_consumer(&self, event: ConsumerEvent<R>) {
        let _ = self.consumer.send(event);
    }
}

impl<R> Clone for Observed<R> {
    fn clone(&self) -> Self {
        Observed { owner: self.owner.clone(), consumer: self.consumer.clone() }
    }
}

impl<R> std::fmt::Debug for Observed<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observed").finish_non_exhaustive()
    }
}

/// One view for all peers.
#[derive(Debug)]
pub struct OneView(watch::Sender<Arc<View>>);

impl OneView {
    pub(super) fn new(view: Arc<View>) -> OneView {
        OneView(watch::Sender::new(view))
    }
}

impl PeerViews for OneView {
    fn view(&self, dialect: Dialect, _peer: &PeerName) -> Option<watch::Receiver<Arc<View>>> {
        (dialect == Dialect::V1alpha2).then(|| self.0.subscribe())
    }

    fn unsaid(&self, _peer: &PeerName) -> Vec<Unsaid> {
        vec![]
    }
}

impl<R: Resource> LinkJudge for ResourceJudge<R> {
    type Rules = JudgeFn<R>;
    type Shared = Observed<R>;
    type Views = OneView;

    const TYPE_URL: &'static str = <R as Resource>::TYPE_URL;
    // v1alpha1 has one fixed resource.
    const DIALECTS: &'static [Dialect] = &[Dialect::V1alpha2];
    const TELLS: bool = true;

    fn slice(peer: &PeerName, _shared: &Observed<R>) -> ImportedSlice<Self> {
        ImportedSlice::judged_by(peer.clone(), Self::TYPE_URL, ResourceJudge { rules: None })
    }

    fn set_rules(
        slice: &mut ImportedSlice<Self>,
        rules: Option<Arc<JudgeFn<R>>>,
        limits: ImportLimits,
        guard: GuardSettings,
    ) {
        slice.judge.rules = rules;
        slice.set_limits(limits, guard);
    }

    fn published(shared: &Observed<R>, peer: &PeerName, changes: SliceChanges<R>) {
        for (key, value) in changes {
            let peer = peer.clone();
            shared.tell_consumer(match value {
                Some(value) => ConsumerEvent::Upserted { peer, key, value },
                None => ConsumerEvent::Deleted { peer, key },
            });
        }
    }

    fn cleared(shared: &Observed<R>, peer: &PeerName) {
        shared.tell_consumer(ConsumerEvent::Cleared { peer: peer.clone() });
    }

    fn observer(shared: &Observed<R>, peer: &PeerName) -> Option<Arc<dyn StreamObserver>> {
        let (peer, observed) = (peer.clone(), shared.clone());
        Some(Arc::new(Answers { peer, observed, proven: AtomicU64::new(u64::MAX) }))
    }
}

/// Passes on what one peer says on one stream.
#[derive(Debug)]
struct Answers<R> {
    peer: PeerName,
    observed: Observed<R>,
    /// The version proven last; the same again is no news.
    proven: AtomicU64,
}

impl<R: Resource> StreamObserver for Answers<R> {
    fn spoke(&self) {
        self.observed.tell_owner(OwnerEvent::Connected { peer: self.peer.clone() });
        self.observed.tell_consumer(ConsumerEvent::Connected { peer: self.peer.clone() });
    }

    fn answered(&self, change: &Change, answer: Result<(), &Refusal>) {
        let (peer, key, version) = (self.peer.clone(), change.offer.key.clone(), change.version);
        self.observed.tell_owner(match answer {
            Ok(()) => OwnerEvent::Acknowledged { peer, key, version, deleted: change.deleted },
            Err(refusal) => {
                let (code, reason) = (refusal.code, refusal.message.clone());
                OwnerEvent::Refused { peer, key, version, code, reason }
            }
        });
    }

    fn compared(&self, proof: &ProofState) {
        let proven = if proof.equal { proof.version } else { u64::MAX };
        if self.proven.swap(proven, Ordering::Relaxed) == proven || !proof.equal {
            return;
        }
        let (peer, version, refused) = (self.peer.clone(), proof.version, proof.refused);
        self.observed.tell_owner(OwnerEvent::Proven { peer, version, refused });
    }
}
