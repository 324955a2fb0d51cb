//! Peers without SPIFFE ids, checked: DNS names and fingerprints.
//!
//! Invariant: a peer proves ids, names or fingerprints, one kind only; and each of them names one
//! peer only (decision 8).

use std::collections::BTreeMap;

use hamlet_identity::{ForeignIdentity, fingerprint_text};

use super::Check;
use crate::config::problem::Mark;
use crate::config::raw::{At, Peer};

const AGENT_IDS: &str = "agentIds: [\"spiffe://globex.example/hamlet/agent\"]";
const GATEWAY_IDS: &str = "gatewayIds: [\"spiffe://globex.example/hamlet/gateway\"]";

/// What proves a peer without SPIFFE ids; the outer `None` if that is wrong, which was reported.
pub(super) fn foreign_identity(raw: &Peer) -> Option<Option<ForeignIdentity>> {
    if raw.identity.is_none() {
        return Some(None);
    }
    let dns = raw.dns.iter().map(|at| at.value.clone()).collect();
    let fingerprints = raw.fingerprints.iter().map(|at| at.value.0).collect();
    match raw.foreign_written {
        [true, false] => Some(Some(ForeignIdentity::Dns(dns))),
        [false, true] => Some(Some(ForeignIdentity::Fingerprints(fingerprints))),
        _ => None,
    }
}

impl Check<'_> {
    /// One kind of proof: ids of agents and gateways, or else an identity.
    pub(super) fn peer_identity(&mut self, raw: &Peer) {
        let Some(mark) = raw.identity else {
            for (written, key, example) in
                [(raw.ids_written[0], "agentIds", AGENT_IDS), (raw.ids_written[1], "gatewayIds", GATEWAY_IDS)]
            {
                if written.is_none() {
                    let path = format!("{} spec.{key}", raw.meta.label);
                    let fix = format!("add `{example}`");
                    self.problems.error(raw.meta.mark, &path, format!("`{key}` is missing"), fix);
                }
            }
            return;
        };
        let path = format!("{} spec.identity", raw.meta.label);
        let message = match (raw.ids_written[0].is_some(), raw.foreign_written) {
            (true, _) => "there are `agentIds` as well: an agent proves ids, or else an identity",
            (false, [true, true]) => "`dns` and `fingerprint` stand together",
            (false, [false, false]) => "neither `dns` nor `fingerprint` is there",
            (false, _) => return,
        };
        let fix = "keep the one that the peer's agent really proves";
        self.problems.error(mark, &path, message.to_owned(), fix);
    }

    /// A name or a fingerprint stands once, over all peers.
    pub(super) fn identities_differ(&mut self, raw: &[Peer]) {
        let mut owner: BTreeMap<String, (String, Mark)> = BTreeMap::new();
        for peer in raw {
            let names = peer.dns.iter().map(|at| at_text(at, at.value.to_string()));
            let prints = peer.fingerprints.iter().map(|at| at_text(at, fingerprint_text(&at.value.0)));
            for at in names.chain(prints).collect::<Vec<_>>() {
                if let Some((other, mark)) = owner.get(&at.value) {
                    let message = format!("{} proves {other} already ({})", at.value, self.place(*mark));
                    self.error(&at, message, "it can prove one peer, once: remove one");
                    continue;
                }
                owner.insert(at.value.clone(), (peer.meta.label.clone(), at.mark));
            }
        }
    }
}

fn at_text<T>(at: &At<T>, value: String) -> At<String> {
    At { value, mark: at.mark, path: at.path.clone() }
}
