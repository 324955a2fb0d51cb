//! The SPIFFE check: the one function that decides whether a certificate chain proves a peer.
//! *Hardened to untrusted network.*
//!
//! The path library finds a way to a trust anchor; it checks neither URI names nor key usage.
//! Everything else is here (X509-SVID sections 2 to 5, RFC 5280). It knows no sockets and no TLS
//! state. Invariant: a chain is only ever tried against the bundle of one peer, and `Ok` means
//! that every rule below was checked.

use std::time::Duration;

use hamlet_core::{PeerName, SpiffeError, SpiffeId, TrustDomain};
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage};

use crate::failures::Refusal;
use crate::inspect::{Inspected, inspect, plain};
use crate::tls::provider;
use crate::trust::{PeerTrust, ProvenPeer, Role, TrustTable};

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
    /// We accepted: the peer is chosen by the trust domain of the single URI SAN (decision 8) and
    /// must present an id configured for the role.
    AnyPeer,
    /// We dialled this peer: it must present an id configured for the role.
    Peer(&'a PeerName),
    /// We dialled an imported service of this peer: it must present one of exactly these SANs of
    /// the offer, in the peer's trust domain.
    PeerSans(&'a PeerName, &'a [SpiffeId]),
}

/// Why a chain proves nothing. The text names the rule, what was presented and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum VerifyError {
    #[error("no certificate was presented; the other side must use its agent or gateway certificate")]
    NoCertificate,
    #[error(
        "{0} certificates were presented, more than {CHAIN_MAX}; send the leaf and its intermediates only"
    )]
    ChainTooLong(usize),
    #[error("certificate {at} of the chain is unusable: {reason}; issue it again")]
    Malformed { at: usize, reason: String },
    #[error(
        "the certificate of {presented} is a CA (cA=true in its basic constraints); issue a leaf certificate \
         for the workload"
    )]
    LeafIsCa { presented: String },
    #[error(
        "the key usage of the certificate of {presented} is wrong: {reason}; issue it with digitalSignature only"
    )]
    KeyUsage { presented: String, reason: &'static str },
    #[error(
        "the certificate of {presented} is not for this use: its extended key usage lacks {missing}; issue it \
         with serverAuth and clientAuth"
    )]
    Purpose { presented: String, missing: &'static str },
    #[error(
        "the certificate of {presented} has {key}; use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more"
    )]
    Key { presented: String, key: String },
    #[error(
        "the certificate has {count} URI names ({presented}); exactly one, the SPIFFE id, must be in its \
         subject alternative name"
    )]
    UriCount { count: usize, presented: String },
    #[error("the certificate's URI name {presented} is not a workload's SPIFFE id: {error}")]
    NotSpiffe { presented: String, error: SpiffeError },
    #[error(
        "{id} is of trust domain {}, which no peer has; add a Peer with that trustDomain and its bundle, or \
         refuse on purpose", .id.trust_domain()
    )]
    UnknownTrustDomain { id: SpiffeId },
    #[error(
        "peer {peer} is not configured (any more), so {id} proves nothing; add the Peer again if it should"
    )]
    UnknownPeer { peer: PeerName, id: SpiffeId },
    #[error(
        "{id} is not in {expected}, the trust domain of peer {peer}; check whom the peer's address leads to, \
         or its trustDomain"
    )]
    OtherTrustDomain { peer: PeerName, expected: TrustDomain, id: SpiffeId },
    #[error("all CA certificates in the bundle of peer {peer} have expired; ask the peer for its new bundle")]
    BundleExpired { peer: PeerName, id: SpiffeId },
    #[error(
        "the certificate of {id} was not signed by a CA in the bundle of peer {peer}; compare fingerprints \
         with the peer and exchange bundles again if they differ"
    )]
    UntrustedIssuer { peer: PeerName, id: SpiffeId },
    #[error(
        "the certificate of {id} (peer {peer}) or its CA expired at {}; the peer must renew it (our clock says {})",
        time_text(.not_after), time_text(.now)
    )]
    Expired { peer: PeerName, id: SpiffeId, not_after: Duration, now: Duration },
    #[error(
        "the certificate of {id} (peer {peer}) is not valid before {}; our clock says {}: check both clocks",
        time_text(.not_before), time_text(.now)
    )]
    NotYetValid { peer: PeerName, id: SpiffeId, not_before: Duration, now: Duration },
    #[error(
        "certificate {at} of the chain of {id} (peer {peer}) may not sign others: {reason}; the peer must \
         present the intermediates of its CA"
    )]
    Issuer { peer: PeerName, id: SpiffeId, at: usize, reason: String },
    #[error(
        "the chain of {id} does not verify under the bundle of peer {peer}: {reason}; issue the certificate again"
    )]
    Path { peer: PeerName, id: SpiffeId, reason: String },
    #[error(
        "{id} is not a configured {role} of peer {peer}; expected {}; correct the peer's {role} ids, or the \
         certificate", list_text(.expected)
    )]
    NotListed { peer: PeerName, id: SpiffeId, role: Role, expected: Vec<SpiffeId> },
    #[error("{id} is not a name that the offer of peer {peer} allows: {}; the owner must correct its gateway or its offer", list_text(.expected))]
    NotOffered { peer: PeerName, id: SpiffeId, expected: Vec<SpiffeId> },
}

impl VerifyError {
    /// A stable name of the rule, for metrics and status.
    pub fn rule(&self) -> &'static str {
        match self {
            VerifyError::NoCertificate => "no-certificate",
            VerifyError::ChainTooLong(_) => "chain-too-long",
            VerifyError::Malformed { .. } => "malformed",
            VerifyError::LeafIsCa { .. } => "leaf-is-ca",
            VerifyError::KeyUsage { .. } => "key-usage",
            VerifyError::Purpose { .. } => "extended-key-usage",
            VerifyError::Key { .. } => "key-type",
            VerifyError::UriCount { .. } => "uri-count",
            VerifyError::NotSpiffe { .. } => "not-spiffe",
            VerifyError::UnknownTrustDomain { .. } => "unknown-trust-domain",
            VerifyError::UnknownPeer { .. } => "unknown-peer",
            VerifyError::OtherTrustDomain { .. } => "other-trust-domain",
            VerifyError::BundleExpired { .. } => "bundle-expired",
            VerifyError::UntrustedIssuer { .. } => "untrusted-issuer",
            VerifyError::Expired { .. } => "expired",
            VerifyError::NotYetValid { .. } => "not-yet-valid",
            VerifyError::Issuer { .. } => "issuer",
            VerifyError::Path { .. } => "path",
            VerifyError::NotListed { .. } => "not-listed",
            VerifyError::NotOffered { .. } => "not-offered",
        }
    }
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
    let read = inspect(leaf).map_err(|reason| VerifyError::Malformed { at: 1, reason })?;
    let id = check_leaf(&read, &[usage])?;
    let peer = choose_peer(trust, &id, expect)?;
    let path_end = check_path(&peer, chain, &id, usage, trust.wall())?;
    check_id(&peer, &id, role, expect)?;
    Ok(ProvenPeer {
        peer: peer.peer.clone(),
        id,
        role,
        fingerprint: Sha256::digest(leaf).into(),
        not_after: path_end.min(read.not_after),
    })
}

/// The rules a leaf must keep by itself (X509-SVID 2, 4.1 to 4.4). Used for our own as well.
pub(crate) fn check_leaf(leaf: &Inspected, usages: &[Usage]) -> Result<SpiffeId, VerifyError> {
    let presented = || plain(leaf.uris.first().map_or(leaf.subject.as_str(), String::as_str));
    if leaf.is_ca {
        return Err(VerifyError::LeafIsCa { presented: presented() });
    }
    let wrong = |reason| Err(VerifyError::KeyUsage { presented: presented(), reason });
    match leaf.key_usage {
        None => return wrong("there is none"),
        Some(bits) if bits.key_cert_sign => return wrong("keyCertSign is for CAs"),
        Some(bits) if bits.crl_sign => return wrong("cRLSign is for CAs"),
        Some(bits) if !bits.digital_signature => return wrong("digitalSignature is missing"),
        Some(_) => {}
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
    if let Some(key) = &leaf.bad_key {
        return Err(VerifyError::Key { presented: presented(), key: key.clone() });
    }
    let [uri] = leaf.uris.as_slice() else {
        let shown = if leaf.uris.is_empty() { &leaf.dns } else { &leaf.uris };
        let presented = match shown.is_empty() {
            true => plain(&leaf.subject),
            false => plain(&shown.join(", ")),
        };
        return Err(VerifyError::UriCount { count: leaf.uris.len(), presented });
    };
    SpiffeId::parse(uri).map_err(|error| VerifyError::NotSpiffe { presented: plain(uri), error })
}

/// The one peer whose bundle will be used.
fn choose_peer(
    trust: &TrustTable,
    id: &SpiffeId,
    expect: Expect<'_>,
) -> Result<std::sync::Arc<PeerTrust>, VerifyError> {
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

/// Finds a path to an anchor of this peer's bundle and checks every issuer on it. Returns the
/// earliest end of validity above the leaf.
fn check_path(
    peer: &PeerTrust,
    chain: &[CertificateDer<'_>],
    id: &SpiffeId,
    usage: Usage,
    now: Duration,
) -> Result<Duration, VerifyError> {
    let anchors = peer.bundle.usable(now);
    if anchors.is_empty() {
        return Err(VerifyError::BundleExpired { peer: peer.peer.clone(), id: id.clone() });
    }
    let failed = |error: webpki::Error| path_error(peer, id, now, error);
    let (leaf, above) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    let leaf = EndEntityCert::try_from(leaf).map_err(failed)?;
    let algorithms = provider().signature_verification_algorithms.all;
    let purpose = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let at = |time: Duration| {
        let time = UnixTime::since_unix_epoch(time);
        leaf.verify_for_usage(algorithms, &anchors, above, time, purpose, None, None)
    };
    let path = match at(now) {
        Err(webpki::Error::CertNotValidYet { .. }) => at(now + NOT_BEFORE_SKEW),
        other => other,
    }
    .map_err(failed)?;
    let mut end = peer.bundle.anchor_not_after(path.anchor());
    for (index, issuer) in path.intermediate_certificates().enumerate() {
        let wrong = |reason: String| VerifyError::Issuer {
            peer: peer.peer.clone(),
            id: id.clone(),
            at: index + 2,
            reason,
        };
        let issuer = inspect(&issuer.der()).map_err(wrong)?;
        if !issuer.is_ca {
            return Err(wrong("it is not a CA".to_owned()));
        }
        if issuer.key_usage.is_some_and(|bits| !bits.key_cert_sign) {
            return Err(wrong("its key usage lacks keyCertSign".to_owned()));
        }
        if let Some(key) = issuer.bad_key {
            return Err(wrong(format!("it has {key}")));
        }
        end = end.min(issuer.not_after);
    }
    Ok(end)
}

fn path_error(peer: &PeerTrust, id: &SpiffeId, now: Duration, error: webpki::Error) -> VerifyError {
    let (peer, id) = (peer.peer.clone(), id.clone());
    let seconds = |t: UnixTime| Duration::from_secs(t.as_secs());
    match error {
        webpki::Error::CertExpired { not_after, .. } => {
            VerifyError::Expired { peer, id, not_after: seconds(not_after), now }
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            VerifyError::NotYetValid { peer, id, not_before: seconds(not_before), now }
        }
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            VerifyError::UntrustedIssuer { peer, id }
        }
        webpki::Error::NameConstraintViolation => {
            let reason = "the name constraints of a CA in it exclude the certificate (constraints for URIs are not supported)";
            VerifyError::Path { peer, id, reason: reason.to_owned() }
        }
        other => VerifyError::Path { peer, id, reason: other.to_string() },
    }
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

fn list_text(ids: &[SpiffeId]) -> String {
    const SHOWN_MAX: usize = 4;
    if ids.is_empty() {
        return "nobody".to_owned();
    }
    let mut text = ids.iter().take(SHOWN_MAX).map(SpiffeId::as_str).collect::<Vec<_>>().join(" or ");
    if ids.len() > SHOWN_MAX {
        text.push_str(" or others");
    }
    text
}

/// A time since the epoch as UTC text.
pub(crate) fn time_text(at: &Duration) -> String {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    match time::OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(t) => format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute(),
            t.second()
        ),
        Err(_) => format!("{} s after the epoch", at.as_secs()),
    }
}
