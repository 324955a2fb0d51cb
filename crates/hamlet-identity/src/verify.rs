//! The one function that decides whether a certificate chain proves a peer: the SPIFFE check, and
//! the one for peers that are configured by DNS name or fingerprint. *Hardened to untrusted
//! network.*
//!
//! The way to a trust anchor is found by [`crate::path`], which only this function calls. Everything
//! about the leaf and the peer is here (X509-SVID sections 2 to 5, RFC 5280, decision 8). It knows no
//! sockets and no TLS state. Invariant: a chain is only ever tried against the bundle of one peer,
//! and `Ok` means that every rule below was checked.

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::{Fqdn, PeerName, SpiffeId};
use hamlet_runtime::Clock;
use rustls_pki_types::CertificateDer;

use crate::bundle::TrustBundle;
use crate::failures::Refusal;
use crate::inspect::{Inspected, inspect, plain};
use crate::path;
use crate::refused::VerifyError;
use crate::trust::{
    Fingerprint, ForeignIdentity, PeerTrust, ProvenId, ProvenPeer, Role, TrustTable, fingerprint_of,
    fingerprint_text,
};

/// Most certificates in a presented chain, the leaf included (threat T15).
pub const CHAIN_MAX: usize = 4;
/// How far in the future a validity may begin (decision 24). There is no such grace at its end.
pub const NOT_BEFORE_SKEW: Duration = Duration::from_secs(5 * 60);

/// Which side of the handshake the certificate was presented on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// By the side that dialled.
    Client,
    /// By the side that accepted.
    Server,
}

/// Whom we expect to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect<'a> {
    /// We accepted: the peer is chosen by the certificate's fingerprint, else by the trust domain of
    /// its single URI SAN, else by its DNS names (decision 8), and must present what is configured
    /// for the role.
    AnyPeer,
    /// We dialled this peer: it must present what is configured for the role.
    Peer(&'a PeerName),
    /// We dialled an imported service of this peer: it must present one of exactly these SANs of
    /// the offer, in the peer's trust domain.
    PeerSans(&'a PeerName, &'a [SpiffeId]),
}

/// Decides whether `chain` (leaf first, as presented) proves a peer in `role`. All verifiers call
/// this and nothing else decides. A refusal is kept in [`TrustTable::failures`].
pub fn verify_peer_chain(
    trust: &TrustTable,
    chain: &[CertificateDer<'_>],
    role: Role,
    usage: Usage,
    expect: Expect<'_>,
) -> Result<ProvenPeer, VerifyError> {
    let result = prove(trust, chain, role, usage, expect);
    if let Err(error) = &result {
        let text = error.to_string();
        tracing::debug!(rule = error.rule(), %role, error = %text, "certificate refused");
        trust.failures().record(Refusal { at: trust.wall(), role, rule: error.rule(), text });
    }
    result
}

/// Checks the chain that a client presented, after a handshake or again later: trust may have
/// changed since. `certs` is what the TLS connection calls its peer certificates.
pub fn proven_client(
    trust: &TrustTable,
    certs: Option<&[CertificateDer<'_>]>,
    role: Role,
) -> Result<ProvenPeer, VerifyError> {
    verify_peer_chain(trust, certs.unwrap_or_default(), role, Usage::Client, Expect::AnyPeer)
}

/// Checks the chain that a server presented, after a handshake or again later.
pub fn proven_server(
    trust: &TrustTable,
    certs: Option<&[CertificateDer<'_>]>,
    role: Role,
    expect: Expect<'_>,
) -> Result<ProvenPeer, VerifyError> {
    verify_peer_chain(trust, certs.unwrap_or_default(), role, Usage::Server, expect)
}

/// Whether a peer's agent, who proved itself with `chain` on the side of `usage`, is also proven by
/// another bundle of its trust domain: by `bundle` in place of `peer.bundle`, and by all else that is
/// configured of it. Extensions text, section 9.
pub fn proven_agent_under(
    peer: &PeerTrust,
    bundle: Arc<TrustBundle>,
    chain: &[CertificateDer<'_>],
    usage: Usage,
    clock: &Arc<dyn Clock>,
) -> Result<ProvenPeer, VerifyError> {
    let table = TrustTable::new(clock.clone());
    // A table that refuses the peer stays empty, and proves nobody.
    let _ = table.replace(vec![PeerTrust { bundle, ..peer.clone() }]);
    let name = peer.peer.clone();
    verify_peer_chain(&table, chain, Role::Agent, usage, Expect::Peer(&name))
}

fn prove(
    trust: &TrustTable,
    chain: &[CertificateDer<'_>],
    role: Role,
    usage: Usage,
    expect: Expect<'_>,
) -> Result<ProvenPeer, VerifyError> {
    let leaf = chain.first().ok_or(VerifyError::NoCertificate)?;
    if chain.len() > CHAIN_MAX {
        return Err(VerifyError::ChainTooLong(chain.len()));
    }
    let malformed = |reason| VerifyError::Malformed { at: 1, reason };
    let read = inspect(leaf).map_err(malformed)?;
    if let Some(reason) = read.bad_serial {
        return Err(malformed(reason.to_owned()));
    }
    let fingerprint = fingerprint_of(leaf);
    let (peer, id) = match foreign_peer(trust, &read, &fingerprint, role, expect)? {
        Some((peer, foreign)) => {
            let id = check_foreign(trust, &peer, &foreign, &read, &fingerprint, usage)?;
            (peer, id)
        }
        None => {
            let id = check_leaf(&read, &[usage])?;
            (choose_peer(trust, &id, expect)?, ProvenId::Spiffe(id))
        }
    };
    let pinned = matches!(id, ProvenId::Certificate(_)) && peer.bundle.pins(leaf);
    let path_end = match pinned {
        true => path::check_pinned(&peer, leaf, &read, &id, trust.wall())?,
        false => path::check(&peer, chain, &read, &id, usage, trust.wall())?,
    };
    if let ProvenId::Spiffe(id) = &id {
        check_id(&peer, id, role, expect)?;
    }
    let not_after = path_end.min(read.not_after);
    let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
    Ok(ProvenPeer { peer: peer.peer.clone(), id, role, fingerprint, not_after, chain })
}

/// The peer, if it is one whose agents have no SPIFFE ids, and what they prove instead.
fn foreign_peer(
    trust: &TrustTable,
    leaf: &Inspected,
    fingerprint: &Fingerprint,
    role: Role,
    expect: Expect<'_>,
) -> Result<Option<(Arc<PeerTrust>, ForeignIdentity)>, VerifyError> {
    let found = match expect {
        Expect::PeerSans(..) => None,
        Expect::Peer(name) => trust.peer(name),
        Expect::AnyPeer => match trust.peer_of_fingerprint(fingerprint) {
            Some(peer) => Some(peer),
            None => peer_of_names(trust, leaf)?,
        },
    };
    let with_foreign = |peer: Arc<PeerTrust>| peer.foreign(role).cloned().map(|foreign| (peer, foreign));
    Ok(found.and_then(with_foreign))
}

/// By the trust domain of the single URI, else by DNS name. A certificate with several URIs is
/// nobody's.
fn peer_of_names(trust: &TrustTable, leaf: &Inspected) -> Result<Option<Arc<PeerTrust>>, VerifyError> {
    if leaf.uris.len() > 1 {
        return Ok(None);
    }
    let id = leaf.uris.first().and_then(|uri| SpiffeId::parse(uri).ok());
    if let Some(peer) = id.and_then(|id| trust.peer_of_domain(id.trust_domain())) {
        return Ok(Some(peer));
    }
    let mut found: Option<Arc<PeerTrust>> = None;
    for peer in leaf.dns.iter().filter_map(|name| exact_name(name)).filter_map(|n| trust.peer_of_dns(&n)) {
        match &found {
            Some(first) if first.peer != peer.peer => {
                let names = leaf.dns.iter().map(|name| plain(name)).collect();
                return Err(VerifyError::SeveralPeers { names });
            }
            _ => found = Some(peer),
        }
    }
    Ok(found)
}

/// A DNS name of a certificate, if it is one to the letter (upper case aside): no wildcard, no dot
/// at its end, nothing to be corrected.
fn exact_name(name: &str) -> Option<Fqdn> {
    Fqdn::parse(name).ok().filter(|fqdn| name.eq_ignore_ascii_case(fqdn.as_str()))
}

/// What the leaf of a peer without SPIFFE ids must keep by itself. Such leaves are issued under
/// rules of their own: without a key usage extension every use is allowed (RFC 5280, 4.2.1.3).
fn check_foreign(
    trust: &TrustTable,
    peer: &PeerTrust,
    foreign: &ForeignIdentity,
    leaf: &Inspected,
    fingerprint: &Fingerprint,
    usage: Usage,
) -> Result<ProvenId, VerifyError> {
    check_use(leaf, &[usage], false)?;
    let refused = |presented: String, expected: Vec<String>| {
        Err(VerifyError::NotNamed { peer: peer.peer.clone(), presented, expected })
    };
    match foreign {
        ForeignIdentity::Fingerprints(all) if all.contains(fingerprint) => {
            Ok(ProvenId::Certificate(*fingerprint))
        }
        ForeignIdentity::Fingerprints(all) => {
            refused(fingerprint_text(fingerprint), all.iter().map(fingerprint_text).collect())
        }
        // Dialled or not, a certificate speaks for the same peer.
        ForeignIdentity::Dns(_) if leaf.uris.len() > 1 => Err(uri_count(leaf)),
        ForeignIdentity::Dns(names)
            if peer_of_names(trust, leaf)?.is_some_and(|other| other.peer != peer.peer) =>
        {
            let all: Vec<&str> = leaf.uris.iter().chain(&leaf.dns).map(String::as_str).collect();
            refused(plain(&all.join(", ")), names.iter().map(ToString::to_string).collect())
        }
        ForeignIdentity::Dns(names) => {
            let mut presented = leaf.dns.iter().filter_map(|name| exact_name(name));
            match presented.find(|name| names.contains(name)) {
                Some(name) => Ok(ProvenId::Dns(name)),
                None if leaf.dns.is_empty() => {
                    let subject = format!("a certificate without DNS names ({})", plain(&leaf.subject));
                    refused(subject, names.iter().map(ToString::to_string).collect())
                }
                None => refused(plain(&leaf.dns.join(", ")), names.iter().map(ToString::to_string).collect()),
            }
        }
    }
}

/// The rules a leaf must keep by itself (X509-SVID 2, 4.1 to 4.4). Used for our own as well.
pub(crate) fn check_leaf(leaf: &Inspected, usages: &[Usage]) -> Result<SpiffeId, VerifyError> {
    // Said first: what has no URI at all may be another kind of peer's, with other rules for the rest.
    if leaf.uris.is_empty() && !leaf.is_ca {
        return Err(uri_count(leaf));
    }
    check_use(leaf, usages, true)?;
    let [uri] = leaf.uris.as_slice() else { return Err(uri_count(leaf)) };
    SpiffeId::parse(uri).map_err(|error| VerifyError::NotSpiffe { presented: plain(uri), error })
}

fn uri_count(leaf: &Inspected) -> VerifyError {
    let shown = if leaf.uris.is_empty() { &leaf.dns } else { &leaf.uris };
    let presented = match shown.is_empty() {
        true => plain(&leaf.subject),
        false => plain(&shown.join(", ")),
    };
    VerifyError::UriCount { count: leaf.uris.len(), presented }
}

/// No CA, a key of an allowed kind, and meant for this use.
fn check_use(leaf: &Inspected, usages: &[Usage], key_usage_required: bool) -> Result<(), VerifyError> {
    let presented = || plain(leaf.uris.first().map_or(leaf.subject.as_str(), String::as_str));
    if leaf.is_ca {
        return Err(VerifyError::LeafIsCa { presented: presented() });
    }
    let wrong = |reason| Err(VerifyError::KeyUsage { presented: presented(), reason });
    match leaf.key_usage {
        None if key_usage_required => return wrong("there is none"),
        Some(bits) if bits.key_cert_sign => return wrong("keyCertSign is for CAs"),
        Some(bits) if bits.crl_sign => return wrong("cRLSign is for CAs"),
        Some(bits) if !bits.digital_signature => return wrong("digitalSignature is missing"),
        None | Some(_) => {}
    }
    for usage in usages {
        let (allowed, missing) = match (usage, leaf.purposes) {
            (_, None) => continue,
            (Usage::Client, Some(purposes)) => (purposes.client, "clientAuth"),
            (Usage::Server, Some(purposes)) => (purposes.server, "serverAuth"),
        };
        if !allowed {
            return Err(VerifyError::Purpose { presented: presented(), missing });
        }
    }
    match &leaf.bad_key {
        Some(key) => Err(VerifyError::Key { presented: presented(), key: key.clone() }),
        None => Ok(()),
    }
}

/// The one peer whose bundle will be used.
fn choose_peer(trust: &TrustTable, id: &SpiffeId, expect: Expect<'_>) -> Result<Arc<PeerTrust>, VerifyError> {
    let name = match expect {
        Expect::AnyPeer => {
            let found = trust.peer_of_domain(id.trust_domain());
            return found.ok_or_else(|| VerifyError::UnknownTrustDomain { id: id.clone() });
        }
        Expect::Peer(name) | Expect::PeerSans(name, _) => name,
    };
    let unknown = || VerifyError::UnknownPeer { peer: name.clone(), id: id.clone() };
    let peer = trust.peer(name).ok_or_else(unknown)?;
    if peer.trust_domain != *id.trust_domain() {
        return Err(VerifyError::OtherTrustDomain {
            peer: name.clone(),
            expected: peer.trust_domain.clone(),
            id: id.clone(),
        });
    }
    Ok(peer)
}

/// Exact ids only: another workload of the same trust domain is nobody (decision 8).
fn check_id(peer: &PeerTrust, id: &SpiffeId, role: Role, expect: Expect<'_>) -> Result<(), VerifyError> {
    let (peer_name, id) = (peer.peer.clone(), id.clone());
    match expect {
        Expect::PeerSans(_, sans) if sans.contains(&id) => Ok(()),
        Expect::PeerSans(_, sans) => {
            Err(VerifyError::NotOffered { peer: peer_name, id, expected: sans.to_vec() })
        }
        Expect::AnyPeer | Expect::Peer(_) if peer.ids(role).contains(&id) => Ok(()),
        Expect::AnyPeer | Expect::Peer(_) => {
            Err(VerifyError::NotListed { peer: peer_name, id, role, expected: peer.ids(role).to_vec() })
        }
    }
}
