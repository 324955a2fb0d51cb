//! Says in the log, once for each level, that a certificate nears its end: ours, and the CAs of the
//! peers' bundles. `hamlet check` says the same on demand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::expiry::Expiry;
use hamlet_identity::Validity;
use hamlet_runtime::Shutdown;

use super::Agent;

/// How often the ends are looked at.
const LOOK: Duration = Duration::from_secs(60);

/// A certificate that somebody has to renew.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watched {
    /// Whose: `identity/agent`, `peer/globex`.
    about: String,
    /// Which: its subject or id.
    what: String,
    validity: Validity,
}

/// The level that was last said of each.
#[derive(Debug, Default)]
struct Said(BTreeMap<(String, String), Expiry>);

impl Said {
    /// Those whose level has risen since they were last looked at. What is gone is forgotten.
    fn risen(&mut self, now: Duration, watched: Vec<Watched>) -> Vec<(Watched, Expiry)> {
        let mut next = BTreeMap::new();
        let mut risen = vec![];
        for one in watched {
            let level = Expiry::at(now, one.validity.not_before, one.validity.not_after);
            let key = (one.about.clone(), one.what.clone());
            let before = self.0.get(&key).copied().unwrap_or_default();
            next.insert(key, level);
            if level > before {
                risen.push((one, level));
            }
        }
        self.0 = next;
        risen
    }
}

impl Agent {
    /// Starts looking.
    pub(super) fn start_watching_expiry(self: &Arc<Agent>) {
        let (agent, shutdown) = (self.clone(), self.spawner.shutdown());
        self.spawner.spawn("expiry", async move { agent.watch_expiry(shutdown).await });
    }

    async fn watch_expiry(self: Arc<Agent>, shutdown: Shutdown) {
        let mut said = Said::default();
        'looking: loop {
            for (one, level) in said.risen(self.clock.wall(), self.certificates()) {
                let left = one.validity.not_after.saturating_sub(self.clock.wall());
                let (about, certificate, left_seconds) = (&one.about, &one.what, left.as_secs());
                match level {
                    Expiry::Over => {
                        tracing::error!(%about, %certificate, "expired; renew it: it proves nothing any more");
                    }
                    _ => tracing::warn!(%about, %certificate, left_seconds, "expires soon; renew it in time"),
                }
            }
            if shutdown.or_begun(tokio::time::sleep(LOOK)).await.is_none() {
                break 'looking;
            }
        }
    }

    fn certificates(&self) -> Vec<Watched> {
        let mut all = vec![];
        for (role, identity) in [("agent", &self.agent_identity), ("gateway", &self.gateway_identity)] {
            let id = identity.spiffe_id();
            for (at, der) in identity.chain().iter().enumerate() {
                let what =
                    if at == 0 { id.to_string() } else { format!("certificate {} of its chain", at + 1) };
                let about = format!("identity/{role}");
                all.extend(Validity::of(der).map(|validity| Watched { about, what, validity }));
            }
        }
        for peer in self.trust.peers() {
            for anchor in peer.bundle.anchors() {
                let (about, what) = (format!("peer/{}", peer.peer), anchor.subject.clone());
                all.extend(Validity::of(&anchor.der).map(|validity| Watched { about, what, validity }));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn leaf(not_after: Duration) -> Watched {
        let validity = Validity { not_before: Duration::ZERO, not_after };
        Watched { about: "identity/agent".into(), what: "spiffe://acme.example/a".into(), validity }
    }

    #[test]
    fn each_level_is_said_once_and_a_renewal_starts_anew() {
        let mut said = Said::default();
        let end = 365 * DAY;
        let mut at = |left: Duration, end: Duration| {
            let risen = said.risen(end.saturating_sub(left), vec![leaf(end)]);
            risen.into_iter().map(|(_, level)| level).collect::<Vec<_>>()
        };
        assert_eq!(at(31 * DAY, end), []);
        assert_eq!(at(29 * DAY, end), [Expiry::Month]);
        assert_eq!(at(28 * DAY, end), []);
        assert_eq!(at(6 * DAY, end), [Expiry::Week]);
        assert_eq!(at(DAY / 2, end), [Expiry::Day]);
        assert_eq!(at(Duration::ZERO, end), [Expiry::Over]);
        assert_eq!(at(Duration::ZERO, end), []);
        assert_eq!(at(31 * DAY, 2 * end), [], "renewed");
        assert_eq!(at(29 * DAY, 2 * end), [Expiry::Month]);
    }

    #[test]
    fn what_is_about_to_expire_at_the_start_is_said_at_once_and_what_is_gone_is_forgotten() {
        let mut said = Said::default();
        let now = 364 * DAY + DAY / 2;
        assert_eq!(said.risen(now, vec![leaf(365 * DAY)]).len(), 1);
        assert_eq!(said.risen(now, vec![]), []);
        assert_eq!(said.risen(now, vec![leaf(365 * DAY)]).len(), 1, "it is another one");
    }
}
