//! The Peer documents, checked: whom we believe.
//!
//! Invariant: a trust domain belongs to one peer only and never to us, and a peer's ids lie in its
//! trust domain; so a proven id names one peer (decision 8).

use std::collections::{BTreeMap, BTreeSet};

use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::ImportLimits;
use hamlet_core::{PeerName, SpiffeId, TrustDomain};

use hamlet_identity::RevocationPolicy;

use super::Check;
use super::foreign::foreign_identity;
use crate::config::model::{
    CrlFile, EndpointProof, Extensions, FollowedEndpoint, IdentityConfig, MeshConfig, PeerConfig, Profile,
    SecretFile, Version,
};
use crate::config::problem::Mark;
use crate::config::raw::{At, Peer, RawEndpoint};

impl Check<'_> {
    /// The peers that are right.
    pub(super) fn peers(
        &mut self,
        raw: &[Peer],
        mesh: Option<&MeshConfig>,
    ) -> BTreeMap<PeerName, PeerConfig> {
        self.trust_domains_differ(raw, mesh);
        self.identities_differ(raw);
        let domains: BTreeSet<&TrustDomain> =
            raw.iter().filter_map(|p| p.trust_domain.as_ref()).map(|at| &at.value).collect();
        if let (Some(mesh), Some(last)) = (mesh, raw.last())
            && raw.len() > mesh.limits.peers
        {
            let message = format!("{} peers, but the Mesh allows {}", raw.len(), mesh.limits.peers);
            let path = last.meta.label.clone();
            self.problems.error(
                last.meta.mark,
                &path,
                message,
                "raise `limits.peers` of the Mesh, or remove peers",
            );
        }
        let mut peers = BTreeMap::new();
        for raw in raw {
            self.peer_ids(raw);
            self.peer_identity(raw);
            self.peer_version(raw);
            self.peer_endpoint(raw, &domains);
            self.peer_follow(raw);
            self.peer_workload_api(raw, mesh);
            self.peer_crl(raw);
            if let (Some(name), Some(mesh)) = (&raw.meta.name, mesh)
                && name.value.eq_ignore_ascii_case(mesh.name.as_str())
            {
                let message = format!("the peer has the name of our own mesh, `{}`", mesh.name);
                self.error(name, message, "give the peer another name; it is only used here");
            }
            let peer = self.peer(raw, mesh);
            if let Some(peer) = peer {
                peers.entry(peer.name.clone()).or_insert(peer);
            }
        }
        peers
    }

    fn trust_domains_differ(&mut self, raw: &[Peer], mesh: Option<&MeshConfig>) {
        let mut owner: BTreeMap<&TrustDomain, (&str, Mark)> = BTreeMap::new();
        for peer in raw {
            let Some(at) = &peer.trust_domain else { continue };
            if mesh.is_some_and(|m| m.trust_domain == at.value) {
                let message = format!("{} is our own trust domain", at.value);
                let fix = "write the peer's trust domain; two meshes of one trust domain can't tell each other apart";
                self.error(at, message, fix);
            } else if let Some((other, mark)) = owner.get(&at.value) {
                let message =
                    format!("{} is the trust domain of {other} already ({})", at.value, self.place(*mark));
                self.error(
                    at,
                    message,
                    "a trust domain belongs to one peer: remove one, or correct the trust domain",
                );
            } else {
                owner.insert(&at.value, (&peer.meta.label, at.mark));
            }
        }
    }

    /// Each list names ids of the peer's trust domain, each once.
    fn peer_ids(&mut self, raw: &Peer) {
        for list in [&raw.agent_ids, &raw.gateway_ids] {
            let mut seen: BTreeSet<&SpiffeId> = BTreeSet::new();
            for at in list {
                if !seen.insert(&at.value) {
                    self.error(at, format!("{} stands twice", at.value), "remove one of the two");
                }
                if let Some(domain) = &raw.trust_domain {
                    self.in_trust_domain(at, &domain.value);
                }
            }
        }
        let agents: BTreeSet<&SpiffeId> = raw.agent_ids.iter().map(|at| &at.value).collect();
        for at in &raw.gateway_ids {
            if agents.contains(&at.value) {
                let message =
                    format!("{} is an agent's id too: its gateway could speak for the mesh", at.value);
                self.warning(at, message, "have the peer use an id of its own for its gateways");
            }
        }
    }

    /// v1alpha1 has neither extensions nor a context value, so neither can be asked for in it.
    fn peer_version(&mut self, raw: &Peer) {
        if raw.version != Some(Version::V1alpha1) {
            return;
        }
        if let Some(at) = raw.extensions.as_ref().filter(|at| at.value == Extensions::Required) {
            let message = "extensions are required, but `version` is v1alpha1, which has none".to_owned();
            self.error(at, message, "write `version: auto`, or leave `extensions` out");
        }
        if let Some(at) = &raw.context {
            let message =
                "there is a context value, but `version` is v1alpha1, which can't carry one".to_owned();
            self.error(at, message, "write `version: v1alpha2`, or leave `context` out");
        }
    }

    /// Something proves its ids, and the endpoint has what its profile needs and nothing of the other.
    fn peer_endpoint(&mut self, raw: &Peer, domains: &BTreeSet<&TrustDomain>) {
        let path = format!("{} spec.trust", raw.meta.label);
        let Some(endpoint) = &raw.endpoint else {
            if let Some(mark) = raw.proves_nothing {
                let message =
                    "nothing proves this peer: there is neither `bundle`, `endpoint` nor `workloadApi`"
                        .to_owned();
                self.problems.error(
                    mark,
                    &path,
                    message,
                    "write `bundle: FILE` with the peer's CA certificates",
                );
            }
            return;
        };
        match endpoint.profile.as_ref().map(|at| at.value) {
            Some(Profile::HttpsWeb) => {
                if let Some(at) = &endpoint.id {
                    let message = "with `https_web` the endpoint proves its host name, and no id".to_owned();
                    self.error(at, message, "remove it, or write `profile: https_spiffe`");
                }
            }
            Some(Profile::HttpsSpiffe) => {
                if let Some(at) = &endpoint.ca_file {
                    let message = "with `https_spiffe` web authorities prove nothing".to_owned();
                    self.error(at, message, "remove it, or write `profile: https_web`");
                }
                self.endpoint_id(raw, endpoint, domains);
            }
            None => {}
        }
    }

    /// Only one thing is followed, it has something to follow, and an id proves who says it.
    fn peer_follow(&mut self, raw: &Peer) {
        let Some(at) = &raw.follow else { return };
        if raw.endpoint.is_some() {
            let message = "the bundle is followed twice: `follow` and `endpoint`".to_owned();
            self.error(at, message, "remove one of the two");
        } else if raw.identity.is_some() {
            let message = "a peer without SPIFFE ids has no bundle to follow on a stream".to_owned();
            self.error(at, message, "remove it; the peer's CAs change when you change `bundle`");
        } else if raw.version == Some(Version::V1alpha1) {
            let message = "v1alpha1 carries no bundles".to_owned();
            self.error(at, message, "remove it, or write `version: auto`");
        }
    }

    /// The Workload API is the only source where it is one, and there is one.
    fn peer_workload_api(&mut self, raw: &Peer, mesh: Option<&MeshConfig>) {
        let Some(at) = raw.workload_api.as_ref().filter(|at| at.value) else { return };
        let other = raw.bundle.as_ref().map(|_| "bundle").or(raw.endpoint.as_ref().map(|_| "endpoint"));
        if let Some(key) = other.or(raw.follow.as_ref().map(|_| "follow")) {
            let message = format!("our Workload API proves this peer, and `{key}` is there as well");
            self.error(at, message, format!("remove `{key}`, or `workloadApi`"));
        }
        if mesh.is_some_and(|mesh| !matches!(mesh.identity, IdentityConfig::WorkloadApi(_))) {
            let message = "the Mesh has no Workload API that could say so".to_owned();
            let fix =
                "set `identity.workloadApi` of the Mesh, or name the peer's bundle in a file with `bundle`";
            self.error(at, message, fix);
        }
    }

    /// Lists come from a file, or with the bundle from our Workload API.
    fn peer_crl(&mut self, raw: &Peer) {
        let Some(mark) = raw.crl_fileless else { return };
        if raw.workload_api.as_ref().is_none_or(|at| !at.value) {
            let path = format!("{} spec.crl", raw.meta.label);
            let fix = "add `file: peers/globex.crl`; only with `trust.workloadApi` lists come without a file";
            self.problems.error(mark, &path, "`file` is missing".to_owned(), fix);
        }
    }

    fn endpoint_id(&mut self, raw: &Peer, endpoint: &RawEndpoint, domains: &BTreeSet<&TrustDomain>) {
        let Some(at) = &endpoint.id else {
            if let Some(profile) = &endpoint.profile {
                let message = "`https_spiffe` needs `endpointSpiffeId`".to_owned();
                self.error(profile, message, "ask the peer for the exact id of its bundle endpoint");
            }
            return;
        };
        let own = raw.trust_domain.as_ref().is_some_and(|d| d.value == *at.value.trust_domain());
        if own && raw.bundle.is_none() {
            let message = format!("nothing proves {} before its own bundle is there", at.value);
            self.error(at, message, "name the first bundle in `trust.bundle`, as the peer gave it to you");
        } else if !own && !domains.contains(at.value.trust_domain()) {
            let message = format!("no peer has the trust domain of {}, so nothing can prove it", at.value);
            self.error(
                at,
                message,
                "use an id of this peer's trust domain, or declare a Peer for the other one",
            );
        }
    }

    pub(super) fn in_trust_domain(&mut self, at: &At<SpiffeId>, domain: &TrustDomain) {
        if at.value.trust_domain() != domain {
            let message = format!("{} is outside the peer's trust domain {domain}", at.value);
            let fix = format!("write an id that starts with spiffe://{domain}/, or correct `trustDomain`");
            self.error(at, message, fix);
        }
    }

    fn followed(&mut self, raw: &RawEndpoint) -> Option<FollowedEndpoint> {
        let ca_file =
            raw.ca_file.as_ref().map(|at| self.file(at, "put the authority's certificate there as PEM"));
        Some(FollowedEndpoint {
            url: raw.url.as_ref()?.value.clone(),
            proof: match raw.profile.as_ref()?.value {
                Profile::HttpsWeb => EndpointProof::Web(ca_file),
                Profile::HttpsSpiffe => EndpointProof::Spiffe(raw.id.as_ref()?.value.clone()),
            },
            refresh: raw.refresh.map(|every| every.0),
        })
    }

    fn peer(&mut self, raw: &Peer, mesh: Option<&MeshConfig>) -> Option<PeerConfig> {
        let bundle = raw.bundle.as_ref().map(|at| {
            self.file(at, "copy the peer's CA certificates there; a Hamlet has them in `identity/ca.pem`")
        });
        let context = raw
            .context
            .as_ref()
            .map(|at| SecretFile { path: self.file(at, "write the secret into it, with mode 0600") });
        let crl = match &raw.crl {
            Some(at) => Some(CrlFile {
                path: self.file(at, "export the revocation lists of the peer's CAs there, in PEM or DER"),
                policy: RevocationPolicy { stale: raw.crl_stale?, unlisted: raw.crl_unlisted? },
            }),
            None => None,
        };
        let limits = &mesh?.limits;
        Some(PeerConfig {
            name: PeerName::parse(&raw.meta.name.as_ref()?.value).ok()?,
            address: raw.address.clone(),
            trust_domain: raw.trust_domain.as_ref()?.value.clone(),
            bundle,
            workload_api: raw.workload_api.as_ref()?.value,
            endpoint: match &raw.endpoint {
                None => None,
                Some(endpoint) => Some(self.followed(endpoint)?),
            },
            follow: raw.follow.as_ref().map(|at| at.value),
            agent_ids: ids(&raw.agent_ids, raw.identity.is_some())?,
            gateway_ids: ids(&raw.gateway_ids, raw.identity.is_some())?,
            identity: foreign_identity(raw)?,
            crl,
            crl_stale: raw.crl_stale?,
            publish: raw.publish?,
            import: raw.import?,
            context,
            hold_time: raw.hold_time?,
            resync: raw.resync?,
            guard: GuardSettings {
                percent: u8::try_from(raw.guard_percent?).ok()?,
                floor: usize::try_from(raw.guard_floor?).ok()?,
                wait: raw.guard_wait?,
            },
            limits: ImportLimits {
                services: match raw.quota_services {
                    Some(own) => usize::try_from(own).ok()?,
                    None => limits.services_per_peer,
                },
                bytes: raw.quota_bytes.map_or(limits.bytes_per_peer, |b| b.0),
                message_bytes: limits.message_bytes,
                refused_hold: raw.refused_hold?,
            },
            version: raw.version?,
            extensions: raw.extensions.as_ref()?.value,
            window: usize::try_from(raw.window?).ok()?,
            paused: raw.paused?,
        })
    }
}

/// At least one, unless something else proves who it is.
fn ids(list: &[At<SpiffeId>], foreign: bool) -> Option<Vec<SpiffeId>> {
    (foreign || !list.is_empty()).then(|| list.iter().map(|at| at.value.clone()).collect())
}
