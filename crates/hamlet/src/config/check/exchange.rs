//! Publications and imports, checked against peers and services: who sees what, and what we accept.
//!
//! Invariant: a rule names only peers that exist, and an import's suffixes are narrower than what
//! the public shares unless its writer said so.

use std::collections::{BTreeMap, BTreeSet};

use hamlet_core::import::{ImportRules, RESERVED_ZONES};
use hamlet_core::publication::PublicationRule;
use hamlet_core::{NameSuffix, PeerName, SpiffeId};

use super::Check;
use super::service::Services;
use crate::config::model::{ImportConfig, PeerConfig};
use crate::config::problem::Mark;
use crate::config::raw::{At, Import, Publication};

/// What rules can refer to.
pub(super) struct Known<'k> {
    /// The peers that are right.
    pub(super) peers: &'k BTreeMap<PeerName, PeerConfig>,
    /// All peers that are declared.
    pub(super) names: &'k BTreeMap<PeerName, Mark>,
    pub(super) services: &'k Services,
}

impl Check<'_> {
    pub(super) fn publications(&mut self, raw: &[Publication], known: &Known) -> Vec<PublicationRule> {
        let mut rules: Vec<PublicationRule> = Vec::with_capacity(raw.len());
        for raw in raw {
            self.selector(raw, known);
            for at in &raw.peers {
                if self.peer_is_known(at, known) && known.peers.get(&at.value).is_some_and(|p| !p.publish) {
                    let message =
                        format!("Peer `{}` has `publish: false`: it sees nothing of this", at.value);
                    self.warning(at, message, "remove it here, or remove `publish: false` there");
                }
            }
            let (Some(name), Some(all)) = (&raw.meta.name, raw.all) else { continue };
            rules.push(PublicationRule {
                name: name.value.to_ascii_lowercase(),
                names: raw.names.iter().map(|at| at.value.clone()).collect(),
                labels: raw.labels.iter().cloned().collect(),
                all,
                peers: raw.peers.iter().map(|at| at.value.clone()).collect(),
            });
        }
        rules.sort_by(|a, b| a.name.cmp(&b.name));
        rules
    }

    /// The selector selects something.
    fn selector(&mut self, raw: &Publication, known: &Known) {
        let path = |key: &str| format!("{} spec.services{key}", raw.meta.label);
        if let Some(mark) = raw.services
            && !raw.selects
        {
            let fix = "add `names`, `labels` or `all: true`";
            self.problems.error(mark, &path(""), "the publication selects no service", fix);
        }
        if self.incomplete {
            return;
        }
        for at in raw.names.iter().filter(|at| !known.services.names.contains(at.value.as_str())) {
            let fix = self
                .suggest(at.value.as_str(), known.services.names.iter().map(String::as_str))
                .unwrap_or_else(|| "declare it with a Service document, or remove it here".into());
            self.warning(
                at,
                format!("no Service is called `{}`: nothing is published for it", at.value),
                fix,
            );
        }
        let carries =
            |labels: &BTreeMap<String, String>| raw.labels.iter().all(|(k, v)| labels.get(k) == Some(v));
        if let Some(mark) = raw.labels_mark
            && !raw.labels.is_empty()
            && !known.services.list.iter().any(|s| carries(&s.labels))
        {
            let message = "no Service carries these labels: nothing is published for them";
            let fix = "correct the labels, or add them to the `metadata.labels` of a Service";
            self.problems.warning(mark, &path(".labels"), message, fix);
        }
    }

    /// Whether the peer is declared; reports it if it surely isn't.
    fn peer_is_known(&mut self, at: &At<PeerName>, known: &Known) -> bool {
        if known.names.contains_key(&at.value) {
            return true;
        }
        if !self.incomplete {
            let fix = self
                .suggest(at.value.as_str(), known.names.keys().map(PeerName::as_str))
                .unwrap_or_else(|| format!("add a Peer document with `name: {}`", at.value));
            self.error(at, format!("no Peer is called `{}`", at.value), fix);
        }
        false
    }

    pub(super) fn imports(&mut self, raw: Vec<Import>, known: &Known) -> BTreeMap<PeerName, ImportConfig> {
        let mut imports = BTreeMap::new();
        let mut seen: BTreeMap<PeerName, Mark> = BTreeMap::new();
        for raw in raw {
            for suffix in &raw.suffixes {
                self.suffix(suffix, raw.allow_broad == Some(true), known);
            }
            for range in raw.ranges.iter().filter(|r| r.value.bits() == 0) {
                let message = format!("{} accepts private and loopback addresses too", range.value);
                self.warning(
                    range,
                    message,
                    "leave `ranges` out to accept every public address, or list narrower ranges",
                );
            }
            let Some(at) = &raw.peer else { continue };
            if let Some(first) = seen.get(&at.value) {
                let message = format!("Peer `{}` has an Import already, at {}", at.value, self.place(*first));
                self.error(at, message, "one Import for each peer: put the rules of both into one");
                continue;
            }
            seen.insert(at.value.clone(), at.mark);
            let declared = self.peer_is_known(at, known);
            if let Some(peer) = known.peers.get(&at.value).filter(|_| declared)
                && let Some(import) = self.import(&raw, at, peer)
            {
                imports.insert(at.value.clone(), import);
            }
        }
        imports
    }

    fn import(&mut self, raw: &Import, at: &At<PeerName>, peer: &PeerConfig) -> Option<ImportConfig> {
        if !peer.import {
            let message = format!("Peer `{}` has `import: false`: nothing is imported", peer.name);
            self.warning(at, message, "remove this Import, or remove `import: false` there");
        }
        for san in &raw.sans {
            self.in_trust_domain(san, &peer.trust_domain);
        }
        let sans: Vec<SpiffeId> = match raw.sans.is_empty() {
            true => peer.gateway_ids.clone(),
            false => raw.sans.iter().map(|s| s.value.clone()).collect(),
        };
        let mut once = BTreeSet::new();
        Some(ImportConfig {
            name: raw.meta.name.as_ref()?.value.to_ascii_lowercase(),
            rules: ImportRules {
                peer: peer.name.clone(),
                trust_domain: peer.trust_domain.clone(),
                suffixes: raw
                    .suffixes
                    .iter()
                    .map(|s| s.value.clone())
                    .filter(|s| once.insert(s.clone()))
                    .collect(),
                sans,
                ranges: raw.ranges.iter().map(|r| r.value).collect(),
                endpoint_ports: raw.endpoint_ports.clone(),
                service_ports: raw.ports.iter().cloned().collect(),
            },
        })
    }

    /// A suffix is the peer's own: not reserved, not shared by the public, not ours.
    fn suffix(&mut self, at: &At<NameSuffix>, allow_broad: bool, known: &Known) {
        let text = at.value.as_str();
        let under =
            |zone: &str| text.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if let Some(zone) = RESERVED_ZONES.iter().find(|zone| under(zone)) {
            let message = format!("{text} lies in the reserved zone {zone}, which no peer may name");
            self.error(at, message, "write a domain that belongs to the peer, for example globex.example");
            return;
        }
        if let Some(why) = broad(&at.value).filter(|_| !allow_broad) {
            let message = format!("{text} {why}: the peer could take names of others");
            self.error(
                at,
                message,
                "write a longer suffix that is the peer's own, or set `names.allowBroad: true`",
            );
        }
        if let Some(ours) = known.services.list.iter().find(|s| at.value.contains(&s.fqdn)) {
            let message = format!(
                "our own Service `{}` ({}) lies under {text}; the peer can't have its name",
                ours.name, ours.fqdn
            );
            self.warning(at, message, "write a narrower suffix that is the peer's own");
        }
    }
}

/// Why a suffix is broader than one organisation (decision 17).
fn broad(suffix: &NameSuffix) -> Option<&'static str> {
    if suffix.label_count() == 1 {
        return Some("is a single label");
    }
    let bytes = suffix.as_str().as_bytes();
    let public = psl::suffix(bytes).is_some_and(|found| found.is_known() && found.as_bytes() == bytes);
    public.then_some("is a public suffix, shared by many organisations")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_shared_by_the_public_are_broad_and_an_organisations_own_are_not() {
        for (bad, good) in [
            ("example", "globex.example"),
            ("com", "globex.com"),
            ("co.uk", "globex.co.uk"),
            ("github.io", "globex.github.io"),
            ("foo.ck", "www.ck"),
        ] {
            assert!(broad(&NameSuffix::parse(bad).unwrap()).is_some(), "{bad}");
            assert!(broad(&NameSuffix::parse(good).unwrap()).is_none(), "{good}");
        }
    }
}
