//! Bundles: what proves each peer, from its file, its endpoint or our Workload API, and the one that we
//! publish.
//!
//! Which document may follow which is [`HeldBundle`]'s matter, and what a certificate proves is
//! [`TrustTable`]'s. Invariants: a peer's bundle comes from its configured source, with the token that
//! made it, or from an operator, never from another peer; what is in force is kept before it is used, and survives a restart.

mod fetch;
mod follow;
mod own;
mod serve;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hamlet_admin::api::{AnchorStatus, AnnouncedStatus, BundleSet, BundleSetError, BundleStatus, Event};
use hamlet_core::PeerName;
use hamlet_core::rejection::one_line;
use hamlet_identity::{
    Authorities, BUNDLE_BYTES_MAX, BundleChange, BundleError, Channel, ForeignIdentity, GivenLists,
    HeldBundle, SpiffeBundle, TrustBundle, WorkloadApi,
};
use hamlet_peering::MadePeer;
use hamlet_runtime::Shutdown;
use hamlet_store::Store;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::Agent;
use super::liveness::ms;
use super::peers::read_up_to;
use crate::config::{Config, EndpointProof, FollowedEndpoint, PeerConfig};
use crate::hex::{hex, unhex};

pub(super) use own::OwnBundles;
pub(crate) use own::own_authorities;
pub(super) use own::{own_file, read_authorities};
pub(super) use serve::BundleServer;
pub(super) use stream::StreamBundles;

/// Where the bundle of a peer made by token is from.
pub(crate) const TOKEN: &str = "token";
/// Where the bundle of a peer with `trust.workloadApi` is from.
pub(crate) const WORKLOAD_API: &str = "workload-api";

/// One peer's followed bundle.
#[derive(Default)]
struct Followed {
    held: Option<HeldBundle>,
    /// Of the first bundle's file, when the succession began.
    first: Option<[u8; 32]>,
    /// Which endpoint the sequence is of.
    url: String,
    /// Wall clock of the endpoint's last good answer.
    good_at: Option<Duration>,
    /// Monotonic time of the next look.
    next_at: Option<Duration>,
    /// Since the last good answer.
    failures: u64,
    last_error: Option<(String, Duration)>,
    refused: Option<&'static str>,
}

/// What is held of the peers whose endpoints are followed, by peer.
#[derive(Default)]
pub(super) struct PeerBundles {
    followed: Mutex<BTreeMap<PeerName, Followed>>,
    /// The tasks, with what they follow.
    tasks: Mutex<BTreeMap<PeerName, (FollowedEndpoint, Shutdown)>>,
    /// Moves when what is in force of some peer has changed.
    pub(super) changed: watch::Sender<u64>,
    /// What says the bundles of peers with `trust.workloadApi`.
    workload_api: Option<Arc<WorkloadApi>>,
}

/// The document in the store that holds a peer's bundle.
fn document(peer: &PeerConfig) -> String {
    format!("peer-bundle/{}", peer.trust_domain)
}

/// Reads the file of a bundle, whole and bounded; `whose` CA certificates belong there.
fn read_file(path: &std::path::Path, whose: &str) -> Result<Vec<u8>, String> {
    read_up_to(path, BUNDLE_BYTES_MAX)
        .map_err(|e| format!("{}: {e}; put {whose} CA certificates there", path.display()))
}

/// A peer's bundle in these bytes, of whichever format. A certificate that the peer is known by may
/// stand in it without being a CA; not if an endpoint is followed, since what that says replaces it.
pub(crate) fn read_bundle(peer: &PeerConfig, bytes: &[u8]) -> Result<SpiffeBundle, BundleError> {
    let pinned: &[_] = match (&peer.identity, &peer.endpoint) {
        (Some(ForeignIdentity::Fingerprints(all)), None) => all,
        _ => &[],
    };
    SpiffeBundle::from_bytes_pinned(peer.trust_domain.clone(), bytes, pinned)
}

/// The bundle in a file, of whichever format.
fn bundle_file(peer: &PeerConfig, path: &std::path::Path) -> Result<(SpiffeBundle, [u8; 32]), String> {
    let bytes = read_file(path, "the peer's")?;
    let bundle = read_bundle(peer, &bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok((bundle, Sha256::digest(&bytes).into()))
}

/// The bundle in a peer's file, if it has one.
pub(crate) fn peer_file(peer: &PeerConfig) -> Option<Result<SpiffeBundle, String>> {
    let path = peer.bundle.as_ref()?;
    Some(bundle_file(peer, path).map(|(bundle, _)| bundle))
}

/// A peer's first bundle.
struct First {
    bundle: SpiffeBundle,
    /// Tells it from another first one.
    print: [u8; 32],
    channel: Channel,
}

/// The first bundle, or why it can't be used; `None` if the endpoint is to bring it. Of a peer made by token the file in the data folder only repeats it.
fn first_bundle(peer: &PeerConfig, made: Option<&MadePeer>) -> Option<Result<First, String>> {
    let Some(made) = made else {
        let path = peer.bundle.as_ref()?;
        let channel = Channel::File;
        return Some(bundle_file(peer, path).map(|(bundle, print)| First { bundle, print, channel }));
    };
    let hint = "remove the peer, and peer anew";
    let read = made.document.bundle().map_err(|e| format!("what came with its token: {e}; {hint}"));
    Some(read.map(|bundle| {
        let bundle = SpiffeBundle { sequence: Some(made.document.sequence), ..SpiffeBundle::of(bundle) };
        // The words are others in each exchange: to peer anew is to begin anew.
        let mut print = Sha256::new();
        print.update(made.words.as_bytes());
        print.update(bundle.authorities.fingerprint());
        print.update(made.document.sequence.to_be_bytes());
        First { bundle, print: print.finalize().into(), channel: Channel::Token }
    }))
}

/// Certificates, or why there are none.
fn certificates(authorities: &Authorities) -> Result<TrustBundle, String> {
    match authorities {
        Authorities::Certificates(bundle) => Ok(bundle.clone()),
        Authorities::Revoked => Err("its bundle is empty: the peer has revoked everything".to_owned()),
        Authorities::NoX509 => {
            Err("its bundle has no CA for X.509 certificates; ask the peer which bundle is meant".to_owned())
        }
    }
}

/// The revocation lists that our Workload API gives for a peer whose bundle comes from there.
pub(crate) fn given_lists(api: &WorkloadApi, peer: &PeerConfig) -> Option<Arc<GivenLists>> {
    api.lists(&peer.trust_domain, peer.crl_stale).filter(|_| peer.workload_api)
}

/// What a Workload API says is the peer's bundle. Nothing is kept of it: what it leaves out is gone.
pub(crate) fn federated(api: &WorkloadApi, peer: &PeerConfig) -> Result<TrustBundle, String> {
    let domain = &peer.trust_domain;
    match api.bundle(domain) {
        Some(Ok(bundle)) => Ok((*bundle).clone()),
        Some(Err(why)) => Err(format!("the bundle of {domain} from the Workload API: {why}")),
        None if !api.has_spoken() => Err(api
            .problem()
            .unwrap_or_else(|| "the Workload API has said nothing yet; wait for it".to_owned())),
        None => Err(format!(
            "the Workload API gives no bundle of {domain}; let our registration entries federate with it \
             (`-federatesWith spiffe://{domain}`)"
        )),
    }
}

impl PeerBundles {
    /// Nothing is followed yet; a Workload API says what some peers' bundles are.
    pub(super) fn with(workload_api: Option<Arc<WorkloadApi>>) -> PeerBundles {
        PeerBundles { workload_api, ..PeerBundles::default() }
    }

    /// The revocation lists that came with the peer's bundle over our Workload API.
    pub(super) fn given_lists(&self, peer: &PeerConfig) -> Option<Arc<GivenLists>> {
        given_lists(self.workload_api.as_ref()?, peer)
    }

    /// What proves the peer now: what our Workload API says, or what came with its token or is in its
    /// file, and what followed it. Looks at the files anew.
    pub(super) fn of(&self, peer: &PeerConfig, made: Option<&MadePeer>) -> Result<TrustBundle, String> {
        if peer.workload_api {
            let api = self.workload_api.as_ref();
            let api = api.ok_or("there is no Workload API; a change of spec.identity takes a restart")?;
            return federated(api, peer);
        }
        let first = first_bundle(peer, made);
        if !peer.follows() {
            let first = first.ok_or("there is neither a bundle nor an endpoint")??;
            return certificates(&first.bundle.authorities);
        }
        let source = peer.endpoint.as_ref().map(|e| e.url.to_string()).unwrap_or_default();
        let mut followed = self.followed.lock();
        let entry = followed.entry(peer.name.clone()).or_default();
        match first {
            None => {}
            Some(Ok(first)) if entry.first == Some(first.print) && entry.held.is_some() => {}
            Some(Ok(First { bundle, print, channel })) => {
                let held = Some(HeldBundle::first(bundle, channel));
                *entry = Followed { held, first: Some(print), url: source.clone(), ..Followed::default() };
            }
            Some(Err(why)) if entry.held.is_none() => return Err(why),
            Some(Err(why)) => {
                tracing::warn!(peer = %peer.name, %why, "the first bundle can't be read; the held one stays")
            }
        }
        if entry.url != source {
            // Another endpoint counts by itself; between an endpoint and the stream the count goes on.
            if !entry.url.is_empty() && !source.is_empty() {
                entry.held.as_mut().map(HeldBundle::forget_sequence);
            }
            entry.url = source;
        }
        match &entry.held {
            Some(held) if held.domain() == &peer.trust_domain => certificates(held.in_force()),
            _ => Err(format!("no bundle has come from {} yet", entry.url)),
        }
    }

    /// Takes over what the store kept of the configured peers. If the first bundle's file was changed
    /// since then, [`Self::of`] begins anew with it.
    pub(super) fn load(&self, store: &Store, config: &Config, now: Duration) {
        let mut followed = self.followed.lock();
        for peer in config.peers.values().filter(|p| p.follows()) {
            let kept = match store.get_document(&document(peer)) {
                Ok(Some(bytes)) => Kept::read(&bytes, now, config.mesh.bundle_wait),
                Ok(None) => continue,
                Err(error) => Err(error.to_string()),
            };
            let kept = match kept {
                Ok(kept) => kept,
                Err(why) => {
                    tracing::error!(peer = %peer.name, %why, "the kept bundle can't be used; it begins with its source");
                    continue;
                }
            };
            if kept.held.domain() == &peer.trust_domain {
                let Kept { held, first, url, good_at } = kept;
                let entry = Followed { held: Some(held), first, url, good_at, ..Followed::default() };
                followed.insert(peer.name.clone(), entry);
            }
        }
    }

    /// From where what proves the peer comes; `made` if a token made it.
    pub(super) fn source(&self, peer: &PeerConfig, made: bool) -> &'static str {
        let held =
            || self.followed.lock().get(&peer.name).and_then(|f| Some(f.held.as_ref()?.channel().word()));
        match made {
            _ if peer.workload_api => WORKLOAD_API,
            true => held().unwrap_or(TOKEN),
            false => held().unwrap_or(Channel::File.word()),
        }
    }

    /// What an operator sees of it; `wall` and `now` are the same moment.
    pub(super) fn status(
        &self,
        peer: &PeerConfig,
        made: Option<&MadePeer>,
        in_force: Option<&TrustBundle>,
        now: Duration,
        wall: Duration,
    ) -> BundleStatus {
        let authorities = in_force.map(TrustBundle::anchors).unwrap_or_default().iter();
        let source = match made {
            Some(_) => TOKEN,
            None if peer.workload_api => WORKLOAD_API,
            None => Channel::File.word(),
        };
        let status = BundleStatus {
            source: in_force.map(|_| source.to_owned()),
            file: peer.bundle.as_ref().filter(|_| made.is_none()).map(|path| path.display().to_string()),
            sequence: made.map(|made| made.document.sequence),
            authorities: authorities
                .map(|a| AnchorStatus {
                    fingerprint: hex(&a.fingerprint),
                    subject: one_line(&a.subject, 256),
                    not_after_s: a.not_after.as_secs(),
                })
                .collect(),
            ..BundleStatus::default()
        };
        if !peer.follows() {
            return status;
        }
        let followed = self.followed.lock();
        let entry = followed.get(&peer.name);
        let held = entry.and_then(|f| f.held.as_ref());
        let profile = peer.endpoint.as_ref().map(|endpoint| match &endpoint.proof {
            EndpointProof::Web(_) => "https_web",
            EndpointProof::Spiffe(_) => "https_spiffe",
        });
        let announced = |(print, due): ([u8; 32], Duration)| AnnouncedStatus {
            fingerprint: hex(&print),
            used_in_ms: ms(due.saturating_sub(now)),
        };
        BundleStatus {
            source: held.filter(|_| in_force.is_some()).map(|h| h.channel().word().to_owned()),
            url: peer.endpoint.as_ref().map(|e| e.url.to_string()),
            profile: profile.map(str::to_owned),
            follow: peer.follow.map(|_| Channel::Stream.word().to_owned()),
            announced: held.map(|h| h.announced().map(announced).collect()).unwrap_or_default(),
            sequence: held.and_then(HeldBundle::sequence),
            age_ms: entry.and_then(|f| f.good_at).map(|at| ms(wall.saturating_sub(at))),
            next_refresh_ms: entry.and_then(|f| f.next_at).map(|at| ms(at.saturating_sub(now))),
            failures: entry.map_or(0, |f| f.failures),
            last_error: entry
                .and_then(|f| f.last_error.clone())
                .map(|(message, at)| Event { message, age_ms: ms(now.saturating_sub(at)) }),
            refused: entry.and_then(|f| f.refused).map(str::to_owned),
            revoked: held.is_some_and(|h| *h.in_force() == Authorities::Revoked),
            ..status
        }
    }

    /// Changes the peer's entry.
    fn entry<T>(&self, peer: &PeerName, change: impl FnOnce(&mut Followed) -> T) -> T {
        change(self.followed.lock().entry(peer.clone()).or_default())
    }
}

/// What the store keeps: three lines, then the held bundle's own form.
struct Kept {
    held: HeldBundle,
    first: Option<[u8; 32]>,
    url: String,
    good_at: Option<Duration>,
}

const NONE: &str = "-";

impl Followed {
    /// Nothing stands in the way any more.
    fn mended(&mut self) {
        (self.failures, self.last_error, self.refused) = (0, None, None);
    }

    fn to_bytes(&self) -> Option<Vec<u8>> {
        let held = self.held.as_ref()?;
        let good_at = self.good_at.map_or_else(|| NONE.to_owned(), |at| at.as_secs().to_string());
        let first = self.first.map_or_else(|| NONE.to_owned(), |print| hex(&print));
        let mut bytes = format!("{good_at}\n{first}\n{}\n", self.url).into_bytes();
        bytes.extend(held.to_bytes());
        Some(bytes)
    }
}

impl Kept {
    fn read(bytes: &[u8], now: Duration, wait: Duration) -> Result<Kept, String> {
        let mut parts = bytes.splitn(4, |b| *b == b'\n');
        let mut line = || parts.next().and_then(|l| std::str::from_utf8(l).ok()).ok_or("it has another form");
        let (good_at, first, url, held) = (line()?, line()?, line()?, line()?);
        let good_at = match good_at {
            NONE => None,
            text => Some(Duration::from_secs(text.parse().map_err(|_| "its time is no number")?)),
        };
        let first = match first {
            NONE => None,
            text => Some(unhex(text).ok_or("its fingerprint is none")?),
        };
        let held = HeldBundle::from_bytes(held.as_bytes(), now, wait).map_err(|e| e.to_string())?;
        Ok(Kept { held, first, url: url.to_owned(), good_at })
    }
}

/// For the log: who changed what by which way. Fingerprints, so that people can compare them.
fn note_change(peer: &PeerConfig, channel: Channel, change: &BundleChange) {
    if change.is_empty() {
        return;
    }
    let list = |prints: &[[u8; 32]]| prints.iter().map(|p| hex(p)).collect::<Vec<_>>().join(",");
    let (added, removed, announced) = (list(&change.added), list(&change.removed), list(&change.waiting));
    tracing::warn!(peer = %peer.name, %channel, added, removed, announced, "the peer's CAs changed");
}

impl Agent {
    /// Offers a document to what is held of a peer, keeps the outcome, and puts it in force.
    pub(super) async fn take_bundle(
        &self,
        peer: &PeerConfig,
        found: SpiffeBundle,
        channel: Channel,
    ) -> Result<BundleChange, hamlet_identity::BundleRefusal> {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let wait = self.additions_wait(found.refresh_hint);
        let taken = self.bundles.entry(&peer.name, |entry| {
            let first = entry.held.is_none();
            let change = match &mut entry.held {
                Some(held) => held.offer(&found, channel, now, wait)?,
                None => {
                    let added = found.authorities.bundle().map(TrustBundle::fingerprints).unwrap_or_default();
                    entry.held = Some(HeldBundle::first(found, channel));
                    BundleChange { added, ..BundleChange::default() }
                }
            };
            if channel == Channel::Endpoint {
                entry.good_at = Some(wall);
            }
            entry.refused = None;
            if channel == Channel::Stream {
                entry.last_error = None;
                entry.failures = 0;
            }
            Ok((change, first, entry.to_bytes()))
        });
        let (change, first, bytes) = taken?;
        self.keep_bundle(peer, bytes).await;
        note_change(peer, channel, &change);
        self.audit.announced(peer, channel, &change.waiting);
        if first || !change.is_empty() {
            self.believe();
            // Whether the peer is dialled may depend on it.
            self.bundles.changed.send_modify(|v| *v += 1);
        }
        Ok(change)
    }

    /// Makes it durable what is held of a peer. It acts all the same if that fails: not to take away a
    /// CA for want of disk would be worse.
    async fn keep_bundle(&self, peer: &PeerConfig, bytes: Option<Vec<u8>>) {
        if let Some(bytes) = bytes
            && let Err(error) = self.store.put_document(&document(peer), bytes).await
        {
            tracing::error!(peer = %peer.name, %error, "the bundle could not be kept; a restart begins with an older one");
        }
    }

    /// An operator's bundle for a peer whose bundle isn't from a file alone.
    pub(super) async fn override_bundle(
        &self,
        name: &str,
        bytes: &[u8],
    ) -> Result<BundleSet, BundleSetError> {
        let config = self.config();
        let known = PeerName::parse(name).ok().and_then(|name| config.peers.get(&name).cloned());
        let Some(peer) = known else { return Err(BundleSetError::NoPeer) };
        let refused = |why: String| BundleSetError::Refused(why);
        if peer.workload_api {
            let why = format!(
                "the bundle of {} comes from the Workload API: change the federation there",
                peer.name
            );
            return Err(refused(why));
        }
        if !peer.follows() {
            let file = peer.bundle.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
            let why = format!("the bundle of {} comes from its file: change {file}", peer.name);
            return Err(refused(why));
        }
        let found =
            SpiffeBundle::from_bytes(peer.trust_domain.clone(), bytes).map_err(|e| refused(e.to_string()))?;
        let change =
            self.take_bundle(&peer, found, Channel::Operator).await.map_err(|e| refused(e.to_string()))?;
        self.bump();
        Ok(BundleSet {
            peer: peer.name.to_string(),
            trust_domain: peer.trust_domain.to_string(),
            sequence: self.bundles.entry(&peer.name, |f| f.held.as_ref().and_then(HeldBundle::sequence)),
            added: change.added.iter().map(|p| hex(p)).collect(),
            removed: change.removed.iter().map(|p| hex(p)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_back_and_damage_is_an_error() {
        let domain = hamlet_core::TrustDomain::parse("acme.example").unwrap();
        let held = SpiffeBundle::from_jwks(domain, br#"{"keys":[],"spiffe_sequence":3}"#).unwrap();
        let followed = Followed {
            held: Some(HeldBundle::first(held, Channel::Endpoint)),
            first: Some([0xab; 32]),
            url: "https://acme.example/".into(),
            good_at: Some(Duration::from_secs(7)),
            ..Followed::default()
        };
        let bytes = followed.to_bytes().unwrap();
        let kept = Kept::read(&bytes, Duration::ZERO, Duration::ZERO).unwrap();
        assert_eq!(
            (Some(kept.held), kept.first, kept.url, kept.good_at),
            (followed.held, followed.first, followed.url, followed.good_at)
        );
        for bad in [&bytes[1..], &bytes[..40], b"", b"-\n-\nurl", b"-\nzz\nurl\n{}", b"\xff\n-\nurl\n{}"] {
            assert!(
                Kept::read(bad, Duration::ZERO, Duration::ZERO).is_err(),
                "{}",
                String::from_utf8_lossy(bad)
            );
        }
    }
}
