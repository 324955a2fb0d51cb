//! SPIFFE bundles on the streams of a program that embeds the protocol: its own, from where it has them,
//! and those of its peers, which it decides about.
//!
//! It changes no trust (a [`Peer`](crate::sdk::Peer) is believed as it was described): whoever accepts
//! a bundle has to believe it as well. Invariant: every bundle is answered, by default that it is not
//! followed here.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_runtime::{Clock, Shutdown};
use tokio::sync::watch;

use crate::bundles::{BundleAnswer, BundleExchange, HeardBundle, NotInForce, StreamBundle};
use crate::sdk::events::{ConsumerEvent, OwnerEvent};
use crate::sdk::judge::{Observed, ResourceJudge};
use crate::sdk::resource::Resource;
use crate::server::Links;

/// What decides about a peer's bundle. `Ok` says that all of it is in force;
/// [`NotInForce::Waiting`] is asked again when that time is over.
pub type BundleHandler = dyn Fn(&PeerName, &HeardBundle) -> Result<(), NotInForce> + Send + Sync;

/// Longest time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What was said of bundles before the start.
#[derive(Default)]
pub(super) struct BundlePlan {
    pub(super) source: Option<watch::Receiver<Option<StreamBundle>>>,
    pub(super) handler: Option<Arc<BundleHandler>>,
}

/// Says ours and answers theirs, for all links of a node.
pub(super) struct BundleTask<R: Resource> {
    pub(super) plan: BundlePlan,
    pub(super) exchange: BundleExchange,
    pub(super) links: Links<ResourceJudge<R>>,
    pub(super) observed: Observed<R>,
    pub(super) clock: Arc<dyn Clock>,
}

/// How far one peer's talk is.
#[derive(Default)]
struct Seen {
    /// Stream and number of its bundle.
    bundle: Option<(u64, u64)>,
    /// When to ask again.
    due: Option<Duration>,
    answer: Option<BundleAnswer>,
}

impl<R: Resource> BundleTask<R> {
    /// Runs until `shutdown` begins.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut news = self.exchange.news();
        let mut seen: BTreeMap<PeerName, Seen> = BTreeMap::new();
        'talking: loop {
            news.borrow_and_update();
            self.publish();
            for (peer, link) in self.links.load().iter() {
                let seen = seen.entry(peer.clone()).or_default();
                if let Some(heard) = link.heard_bundle() {
                    let place = Some((heard.stream, heard.number));
                    if seen.bundle != place || seen.due.is_some_and(|due| due <= self.clock.now()) {
                        let outcome = self.decide(peer, &heard);
                        link.answer_bundle(&heard, &outcome);
                        seen.bundle = place;
                        seen.due = match outcome {
                            Err(NotInForce::Waiting(left)) => Some(self.clock.now().saturating_add(left)),
                            _ => None,
                        };
                    }
                }
                let answer = link.bundle_answer();
                if let Some(answer) = answer.filter(|answer| seen.answer.as_ref() != Some(answer)) {
                    self.tell(peer, &answer);
                    seen.answer = Some(answer);
                }
            }
            let due = seen.values().filter_map(|s| s.due).min();
            let wait = due.map_or(LOOK_EVERY, |due| due.saturating_sub(self.clock.now())).min(LOOK_EVERY);
            tokio::select! {
                () = shutdown.begun() => break 'talking,
                Ok(()) = news.changed() => {}
                Ok(()) = moved(&mut self.plan.source) => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn publish(&mut self) {
        let Some(source) = &mut self.plan.source else { return };
        let ours = source.borrow_and_update().clone();
        if self.exchange.publish(ours) {
            for link in self.links.load().values() {
                link.say_bundle();
            }
        }
    }

    fn decide(&self, peer: &PeerName, heard: &HeardBundle) -> Result<(), NotInForce> {
        let Some(handler) = &self.plan.handler else { return Err(NotInForce::NotFollowed) };
        let decided = catch_unwind(AssertUnwindSafe(|| handler(peer, heard)));
        decided.unwrap_or_else(|_| {
            let why = "the program failed on this bundle; its log says more";
            Err(NotInForce::Unreadable(why.to_owned()))
        })
    }

    fn tell(&self, peer: &PeerName, answer: &BundleAnswer) {
        let (peer, answer) = (peer.clone(), answer.clone());
        self.observed.tell_owner(OwnerEvent::BundleAnswered { peer: peer.clone(), answer: answer.clone() });
        self.observed.tell_consumer(ConsumerEvent::BundleAnswered { peer, answer });
    }
}

/// Completes when the source has another bundle; never without a source, or when it is gone.
async fn moved(source: &mut Option<watch::Receiver<Option<StreamBundle>>>) -> Result<(), ()> {
    if let Some(receiver) = source
        && receiver.changed().await.is_ok()
    {
        return Ok(());
    }
    std::future::pending().await
}
