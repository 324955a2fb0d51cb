//! Following the peers' bundle endpoints: one task each, one look at a time.
//!
//! Invariants: a failure waits for the next look at its time, like a success; what an endpoint says
//! can't make us ask more often than once a minute; and the last good bundle stays in force.

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_core::rejection::one_line;
use hamlet_identity::{Channel, HeldBundle, SpiffeBundle, spiffe_endpoint_client, web_endpoint_client};
use hamlet_runtime::Shutdown;

use super::super::Agent;
use super::fetch::fetch;
use crate::config::{Config, EndpointProof, FollowedEndpoint, PeerConfig};

/// How often an endpoint is looked at if neither bundle nor configuration says.
const BUNDLE_REFRESH: Duration = Duration::from_secs(300);
/// What an endpoint says is never taken as more often than this.
const BUNDLE_REFRESH_MIN: Duration = Duration::from_secs(60);
/// What an endpoint says is never taken as less often than this: a revocation has to arrive.
const BUNDLE_REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long until the next look.
fn refresh(endpoint: &FollowedEndpoint, hint: Option<Duration>) -> Duration {
    let said = || hint.unwrap_or(BUNDLE_REFRESH).clamp(BUNDLE_REFRESH_MIN, BUNDLE_REFRESH_MAX);
    endpoint.refresh.unwrap_or_else(said)
}

impl Agent {
    /// One task for each endpoint that is to be followed; none for others, and nothing kept of them.
    pub(in crate::agent) async fn follow_bundles(self: &Arc<Agent>, config: &Config) {
        let wanted = |peer: &PeerConfig| peer.endpoint.clone().filter(|_| !peer.paused);
        let mut gone = Vec::new();
        {
            let mut tasks = self.bundles.tasks.lock();
            tasks.retain(|name, (endpoint, shutdown)| {
                let stays = config.peers.get(name).and_then(wanted).is_some_and(|now| now == *endpoint);
                if !stays {
                    shutdown.begin();
                }
                stays
            });
            for peer in config.peers.values() {
                let Some(endpoint) = wanted(peer) else { continue };
                if tasks.contains_key(&peer.name) {
                    continue;
                }
                let shutdown = self.spawner.shutdown().child();
                tasks.insert(peer.name.clone(), (endpoint.clone(), shutdown.clone()));
                let (agent, name) = (self.clone(), peer.name.clone());
                self.spawner.spawn(format!("bundle/{}", peer.name), async move {
                    agent.follow(name, endpoint, shutdown).await;
                });
            }
            let mut followed = self.bundles.followed.lock();
            followed.retain(|name, entry| {
                let stays = config.peers.get(name).is_some_and(PeerConfig::follows);
                if let Some(held) = entry.held.as_ref().filter(|_| !stays) {
                    gone.push(format!("peer-bundle/{}", held.domain()));
                }
                stays
            });
        }
        for document in gone {
            if let Err(error) = self.store.remove_document(&document).await {
                tracing::error!(document, %error, "a bundle that is followed no more could not be forgotten");
            }
        }
    }

    /// Begins to follow, and has the links keep up with what comes of it.
    pub(in crate::agent) async fn start_bundles(self: &Arc<Agent>) {
        let mut changed = self.bundles.changed.subscribe();
        let (agent, shutdown) = (self.clone(), self.spawner.shutdown());
        self.spawner.spawn("trust", async move {
            while let Some(Ok(())) = shutdown.or_begun(changed.changed()).await {
                agent.reconcile_links(&agent.config()).await;
            }
        });
        self.follow_bundles(&self.config()).await;
        let (agent, shutdown) = (self.clone(), self.spawner.shutdown());
        self.spawner.spawn("bundles/streams", async move { agent.keep_stream_bundles(shutdown).await });
    }

    async fn follow(self: Arc<Agent>, name: PeerName, endpoint: FollowedEndpoint, shutdown: Shutdown) {
        'looking: loop {
            let config = self.config();
            let Some(peer) = config.peers.get(&name) else { break 'looking };
            let Some(outcome) = shutdown.or_begun(self.look(peer, &endpoint)).await else { break 'looking };
            let wait = self.looked(peer, &endpoint, outcome);
            self.bump();
            if shutdown.or_begun(tokio::time::sleep(wait)).await.is_none() {
                break 'looking;
            }
        }
    }

    /// One look: the answer is read, and offered to what is held.
    async fn look(&self, peer: &PeerConfig, endpoint: &FollowedEndpoint) -> Result<(), Outcome> {
        let failed = |why: String| Outcome { rule: None, why };
        let tls = match &endpoint.proof {
            EndpointProof::Web(roots) => {
                // Reading a system's authorities takes a while.
                let roots = roots.clone();
                let read = self.spawner.spawn_blocking(move || web_endpoint_client(roots.as_deref())).await;
                read.map_err(|_| failed("reading the authorities was interrupted".to_owned()))?
            }
            EndpointProof::Spiffe(id) => {
                let domain = id.trust_domain();
                let proves = self.trust.peer_of_domain(domain).ok_or_else(|| {
                    let hint = "set one with `hamlet bundle set`";
                    failed(format!("no bundle of {domain} is in force that could prove {id}; {hint}"))
                })?;
                spiffe_endpoint_client(&proves, id, self.clock.clone())
            }
        };
        let tls = tls.map_err(|e| failed(e.to_string()))?;
        let bytes = fetch(&endpoint.url, tls).await.map_err(|e| failed(e.to_string()))?;
        let found = SpiffeBundle::from_jwks(peer.trust_domain.clone(), &bytes)
            .map_err(|e| failed(format!("{}: {e}", endpoint.url)))?;
        match self.take_bundle(peer, found, Channel::Endpoint).await {
            Ok(_) => Ok(()),
            Err(refusal) => {
                Err(Outcome { rule: Some(refusal.rule()), why: format!("the bundle is refused: {refusal}") })
            }
        }
    }

    /// Notes how it went; returns how long to wait.
    fn looked(
        &self,
        peer: &PeerConfig,
        endpoint: &FollowedEndpoint,
        outcome: Result<(), Outcome>,
    ) -> Duration {
        let now = self.clock.now();
        let wait = self.bundles.entry(&peer.name, |entry| {
            let hint = entry.held.as_ref().and_then(HeldBundle::refresh_hint);
            // A tenth earlier or later, so that agents don't ask in step.
            let wait = refresh(endpoint, hint).mul_f64(0.9 + 0.2 * rand::random::<f64>());
            entry.next_at = Some(now.saturating_add(wait));
            match &outcome {
                Ok(()) => entry.mended(),
                Err(outcome) => {
                    entry.failures += 1;
                    entry.last_error = Some((one_line(&outcome.why, 1024), now));
                    entry.refused = outcome.rule;
                }
            }
            wait
        });
        if let Err(Outcome { rule, why }) = outcome {
            if let Some(rule) = rule {
                self.audit.bundle_refused(peer, Channel::Endpoint, rule, None);
            }
            match rule {
                Some("fork") => tracing::error!(peer = %peer.name, error = %why, "two bundles as one"),
                _ => {
                    tracing::warn!(peer = %peer.name, error = %why, "no new bundle; the last good one stays")
                }
            }
        }
        wait
    }
}

/// A look that brought nothing.
struct Outcome {
    /// Of the refusal, if there was a bundle.
    rule: Option<&'static str>,
    why: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EndpointUrl;

    #[test]
    fn an_endpoint_can_ask_for_patience_and_not_for_haste() {
        let url = EndpointUrl::parse("https://globex.example/").unwrap();
        let of = |refresh| FollowedEndpoint { url: url.clone(), proof: EndpointProof::Web(None), refresh };
        let s = Duration::from_secs;
        for (configured, hint, expected) in [
            (None, None, s(300)),
            (None, Some(s(1)), s(60)),
            (None, Some(s(600)), s(600)),
            (None, Some(Duration::MAX), s(24 * 3600)),
            (Some(s(2)), Some(s(600)), s(2)),
        ] {
            assert_eq!(refresh(&of(configured), hint), expected, "{configured:?} {hint:?}");
        }
    }
}
