//! Why a certificate chain proves nothing: one variant a rule, with a stable name and a hint.
//!
//! It decides nothing. Invariant: no text holds more of a stranger's certificate than is useful,
//! and no control characters ([`crate::inspect::plain`]).

use std::time::Duration;

use hamlet_core::{PeerName, SpiffeError, SpiffeId, TrustDomain};

use crate::trust::{ProvenId, Role};
use crate::verify::CHAIN_MAX;

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
         subject alternative name (a peer without SPIFFE ids is configured by DNS name or fingerprint)"
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
    #[error(
        "no CA certificate in the bundle of peer {peer} is valid now (expired, or not valid yet); ask the peer \
         for its new bundle"
    )]
    BundleExpired { peer: PeerName, id: ProvenId },
    #[error(
        "the certificate of {id} was not signed by a CA in the bundle of peer {peer}; compare fingerprints \
         with the peer and exchange bundles again if they differ"
    )]
    UntrustedIssuer { peer: PeerName, id: ProvenId },
    #[error(
        "the certificate of {id} (peer {peer}) or its CA expired at {}; the peer must renew it (our clock says {})",
        time_text(.not_after), time_text(.now)
    )]
    Expired { peer: PeerName, id: ProvenId, not_after: Duration, now: Duration },
    #[error(
        "the certificate of {id} (peer {peer}) is not valid before {}; our clock says {}: check both clocks",
        time_text(.not_before), time_text(.now)
    )]
    NotYetValid { peer: PeerName, id: ProvenId, not_before: Duration, now: Duration },
    #[error(
        "certificate {at} of the chain of {id} (peer {peer}) may not sign others: {reason}; the peer must \
         present the intermediates of its CA"
    )]
    Issuer { peer: PeerName, id: ProvenId, at: usize, reason: String },
    #[error(
        "the chain of {id} does not verify under the bundle of peer {peer}: {reason}; issue the certificate again"
    )]
    Path { peer: PeerName, id: ProvenId, reason: String },
    #[error(
        "{id} is not a configured {role} of peer {peer}; expected {}; correct the peer's {role} ids, or the \
         certificate", list_text(.expected)
    )]
    NotListed { peer: PeerName, id: SpiffeId, role: Role, expected: Vec<SpiffeId> },
    #[error(
        "{presented} is not how the agent of peer {peer} is configured; expected {}; correct the peer's \
         identity, or the certificate", expected.join(" or ")
    )]
    NotNamed { peer: PeerName, presented: String, expected: Vec<String> },
    #[error(
        "the certificate names several peers ({}); a certificate proves one peer: give each its own DNS name",
        names.join(", ")
    )]
    SeveralPeers { names: Vec<String> },
    #[error(
        "certificate {at} of the chain of {id} (peer {peer}) is a CA with name constraints for URIs, which are \
         honoured in a bundle only; put that CA itself into the peer's bundle"
    )]
    ConstrainedIssuer { peer: PeerName, id: ProvenId, at: usize },
    #[error(
        "{id} (peer {peer}) is outside of what its CA may name: {reason}; the peer must use another CA or id"
    )]
    NameConstraints { peer: PeerName, id: ProvenId, reason: String },
    #[error(
        "the certificate of {id} (peer {peer}), or a CA of it, is revoked by the peer's revocation list; the peer \
         must present a new one"
    )]
    Revoked { peer: PeerName, id: ProvenId },
    #[error(
        "whether the certificate of {id} (peer {peer}) is revoked can't be told: {reason}; {}", .from.remedy()
    )]
    Revocation { peer: PeerName, id: ProvenId, reason: String, from: ListsFrom },
    #[error("{id} is not a name that the offer of peer {peer} allows: {}; the owner must correct its gateway or its offer", list_text(.expected))]
    NotOffered { peer: PeerName, id: SpiffeId, expected: Vec<SpiffeId> },
}

/// Where revocation lists came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListsFrom {
    /// The peer's `crl` file.
    File,
    /// The Workload API.
    WorkloadApi,
}

impl ListsFrom {
    fn remedy(self) -> &'static str {
        match self {
            ListsFrom::File => "put the CA's current revocation list into the peer's `crl` file",
            ListsFrom::WorkloadApi => "renew the list where the Workload API has it from",
        }
    }
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
            VerifyError::NotNamed { .. } => "not-named",
            VerifyError::SeveralPeers { .. } => "several-peers",
            VerifyError::ConstrainedIssuer { .. } => "constrained-issuer",
            VerifyError::NameConstraints { .. } => "name-constraints",
            VerifyError::Revoked { .. } => "revoked",
            VerifyError::Revocation { .. } => "revocation-unknown",
            VerifyError::NotOffered { .. } => "not-offered",
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
