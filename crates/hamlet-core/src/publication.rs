//! Publications: who may see what of us. Nothing is visible to a peer unless a publication says
//! so (default deny), and the same filter serves snapshots, changes and counts (threat T13).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::name::PeerName;
use crate::service::{LocalService, ServiceName};

/// One publication: some services, to some peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationRule {
    /// The document's name.
    pub name: String,
    /// Services listed by name.
    pub names: BTreeSet<ServiceName>,
    /// Services selected by labels: all of these must be equal. Empty selects nothing.
    pub labels: BTreeMap<String, String>,
    /// Every service of this mesh, present and future.
    pub all: bool,
    /// The peers that get them.
    pub peers: BTreeSet<PeerName>,
}

impl PublicationRule {
    /// Whether this rule selects `service`.
    pub fn selects(&self, service: &LocalService) -> bool {
        let by_label =
            !self.labels.is_empty() && self.labels.iter().all(|(k, v)| service.labels.get(k) == Some(v));
        self.all || by_label || self.names.contains(&service.name)
    }
}

/// All publications of the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublicationPolicy {
    /// The rules, in order of their names.
    pub rules: Vec<PublicationRule>,
}

impl PublicationPolicy {
    /// Whether `peer` may see `service`.
    pub fn publishes(&self, service: &LocalService, peer: &PeerName) -> bool {
        self.rules.iter().any(|r| r.peers.contains(peer) && r.selects(service))
    }

    /// Every peer that may see `service`.
    pub fn peers_of(&self, service: &LocalService) -> BTreeSet<PeerName> {
        self.rules.iter().filter(|r| r.selects(service)).flat_map(|r| r.peers.iter().cloned()).collect()
    }

    /// What decides `peer`'s view: peers with equal keys always see the same.
    pub fn view_key(&self, peer: &PeerName) -> ViewKey {
        let applicable = self.rules.iter().filter(|r| r.peers.contains(peer));
        let selectors: BTreeSet<Selector> =
            applicable.map(|r| (r.all, r.names.clone(), r.labels.clone())).collect();
        ViewKey(selectors)
    }
}

type Selector = (bool, BTreeSet<ServiceName>, BTreeMap<String, String>);

/// The selectors that apply to a peer, without the names of the documents they came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ViewKey(BTreeSet<Selector>);

impl ViewKey {
    /// Whether a peer with this key sees `service`.
    pub fn selects(&self, service: &LocalService) -> bool {
        self.0.iter().any(|(all, names, labels)| {
            *all || names.contains(&service.name)
                || (!labels.is_empty() && labels.iter().all(|(k, v)| service.labels.get(k) == Some(v)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Fqdn;
    use proptest::prelude::*;

    pub(crate) fn service(name: &str, labels: &[(&str, &str)]) -> LocalService {
        LocalService {
            name: ServiceName::parse(name).unwrap(),
            fqdn: Fqdn::parse(&format!("{name}.acme.example")).unwrap(),
            description: String::new(),
            tags: vec![],
            labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            instances: vec![],
        }
    }

    fn rule(names: &[&str], labels: &[(&str, &str)], peers: &[&str]) -> PublicationRule {
        PublicationRule {
            name: "p".into(),
            names: names.iter().map(|n| ServiceName::parse(n).unwrap()).collect(),
            labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            all: false,
            peers: peers.iter().map(|p| PeerName::parse(p).unwrap()).collect(),
        }
    }

    #[test]
    fn nothing_is_visible_without_a_publication_and_an_empty_selector_selects_nothing() {
        let globex = PeerName::parse("globex").unwrap();
        let ledger = service("ledger", &[("team", "pay")]);
        assert!(!PublicationPolicy::default().publishes(&ledger, &globex));
        let empty = PublicationPolicy { rules: vec![rule(&[], &[], &["globex"])] };
        assert!(!empty.publishes(&ledger, &globex));
        let by_name = PublicationPolicy { rules: vec![rule(&["ledger"], &[], &["globex"])] };
        assert!(by_name.publishes(&ledger, &globex));
        assert!(!by_name.publishes(&ledger, &PeerName::parse("initech").unwrap()));
        let by_label = PublicationPolicy { rules: vec![rule(&[], &[("team", "pay")], &["globex"])] };
        assert!(by_label.publishes(&ledger, &globex));
        let both = PublicationPolicy { rules: vec![rule(&[], &[("team", "pay"), ("x", "y")], &["globex"])] };
        assert!(!both.publishes(&ledger, &globex));
    }

    proptest! {
        /// The view's filter and the policy are the same function, for any policy (threat T13).
        #[test]
        fn a_view_key_selects_exactly_what_the_policy_publishes(
            rules in proptest::collection::vec(
                (proptest::collection::btree_set(0u8..4, 0..3), proptest::collection::btree_map(0u8..2, 0u8..2, 0..3),
                 any::<bool>(), proptest::collection::btree_set(0u8..3, 0..3)), 0..5),
            services in proptest::collection::vec((0u8..4, proptest::collection::btree_map(0u8..2, 0u8..2, 0..3)), 0..8),
        ) {
            let policy = PublicationPolicy { rules: rules.into_iter().map(|(names, labels, all, peers)| PublicationRule {
                name: "r".into(),
                names: names.into_iter().map(|n| ServiceName::parse(&format!("s{n}")).unwrap()).collect(),
                labels: labels.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
                all: all && peers.len() == 1,
                peers: peers.into_iter().map(|p| PeerName::parse(&format!("p{p}")).unwrap()).collect(),
            }).collect() };
            for (name, labels) in services {
                let labels: Vec<(String, String)> = labels.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
                let borrowed: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                let s = service(&format!("s{name}"), &borrowed);
                for p in 0..3 {
                    let peer = PeerName::parse(&format!("p{p}")).unwrap();
                    let published = policy.publishes(&s, &peer);
                    prop_assert_eq!(policy.view_key(&peer).selects(&s), published);
                    prop_assert_eq!(policy.peers_of(&s).contains(&peer), published);
                }
            }
        }
    }
}
