//! The way from a leaf to an anchor of one peer's bundle. *Hardened to untrusted network.*
//!
//! The path library finds it and checks signatures, validity, CA bits, path lengths below an anchor,
//! constraints on DNS names and the revocation lists of a file. What it doesn't know is checked here
//! on every way that it finds, before it takes that way: who may issue, constraints on URIs, an
//! anchor's own path length, revocation lists that came over the Workload API. Only [`crate::verify`] calls this. Invariant: a way with one breach is no way.

use std::cell::RefCell;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{Cert, EndEntityCert, KeyUsage, VerifiedPath};

use crate::bundle::AnchorRules;
use crate::inspect::{Inspected, inspect};
use crate::refused::{ListsFrom, VerifyError};
use crate::tls::provider;
use crate::trust::{PeerTrust, ProvenId};
use crate::verify::{NOT_BEFORE_SKEW, Usage};
use crate::workload::{GivenRefusal, Link};

/// One chain and whose it claims to be.
struct Walk<'a> {
    peer: &'a PeerTrust,
    id: &'a ProvenId,
    leaf: &'a Inspected,
    anchors: &'a [TrustAnchor<'a>],
    rules: &'a [&'a AnchorRules],
    now: Duration,
}

/// Finds a way for `chain` (leaf first; `leaf` is what it says) to a CA of this peer's bundle that
/// keeps every rule. Returns the earliest end of validity above the leaf.
pub(crate) fn check(
    peer: &PeerTrust,
    chain: &[CertificateDer<'_>],
    leaf: &Inspected,
    id: &ProvenId,
    usage: Usage,
    now: Duration,
) -> Result<Duration, VerifyError> {
    let (anchors, rules) = peer.bundle.usable(now);
    if anchors.is_empty() {
        return Err(VerifyError::BundleExpired { peer: peer.peer.clone(), id: id.clone() });
    }
    let walk = Walk { peer, id, leaf, anchors: &anchors, rules: &rules, now };
    let (first, above) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    let failed = |error: webpki::Error| walk.error(above, error);
    let cert = EndEntityCert::try_from(first).map_err(failed)?;
    let algorithms = provider().signature_verification_algorithms.all;
    let purpose = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    // Why the last way that the library found was none after all, or how long the good one lasts.
    let judged: RefCell<Option<Result<Duration, VerifyError>>> = RefCell::new(None);
    let judge = |path: &VerifiedPath<'_>| {
        let judgement = walk.judge(path);
        let refused = judgement.is_err();
        *judged.borrow_mut() = Some(judgement);
        if refused { Err(webpki::Error::UnknownIssuer) } else { Ok(()) }
    };
    let lists = peer.revoked.as_ref().map(|revoked| revoked.lists());
    let revocation = match (&peer.revoked, &lists) {
        (Some(revoked), Some(lists)) => match revoked.options(lists) {
            Some(options) => Some(options),
            // Without options there would be no check at all: that must not happen.
            None => return Err(failed(webpki::Error::UnknownRevocationStatus)),
        },
        _ => None,
    };
    let at = |time: Duration| {
        let time = UnixTime::since_unix_epoch(time);
        cert.verify_for_usage(algorithms, &anchors, above, time, purpose, revocation, Some(&judge))
            .map(|_| ())
    };
    let found = match at(now) {
        Err(webpki::Error::CertNotValidYet { .. }) => at(now + NOT_BEFORE_SKEW),
        other => other,
    };
    match (found, judged.into_inner()) {
        (Ok(()), Some(Ok(end))) => Ok(end),
        (_, Some(Err(refusal))) => Err(refusal),
        (Err(error), _) => Err(failed(error)),
        (Ok(()), None) => Err(failed(webpki::Error::UnknownIssuer)),
    }
}

/// A leaf that stands in the bundle itself, for a peer that is known by its fingerprint: nothing is
/// above it. Returns the end of its validity.
pub(crate) fn check_pinned(
    peer: &PeerTrust,
    der: &CertificateDer<'_>,
    leaf: &Inspected,
    id: &ProvenId,
    now: Duration,
) -> Result<Duration, VerifyError> {
    let (peer_name, id) = (peer.peer.clone(), id.clone());
    // Read by the path library as well: it refuses critical extensions that nobody understands.
    if let Err(error) = EndEntityCert::try_from(der) {
        return Err(VerifyError::Path { peer: peer_name, id, reason: error.to_string() });
    }
    if leaf.not_after < now {
        return Err(VerifyError::Expired { peer: peer_name, id, not_after: leaf.not_after, now });
    }
    if leaf.not_before > now + NOT_BEFORE_SKEW {
        return Err(VerifyError::NotYetValid { peer: peer_name, id, not_before: leaf.not_before, now });
    }
    if peer.revoked.is_some() {
        let reason = "it stands for itself, so no CA can revoke it".to_owned();
        return Err(VerifyError::Revocation { peer: peer_name, id, reason, from: ListsFrom::File });
    }
    Ok(leaf.not_after)
}

impl Walk<'_> {
    /// Whether a way that the library found keeps what it doesn't check; if so, how long it lasts.
    fn judge(&self, path: &VerifiedPath<'_>) -> Result<Duration, VerifyError> {
        let used = self.anchors.iter().zip(self.rules).find(|(a, _)| std::ptr::eq(*a, path.anchor()));
        let unknown = || VerifyError::UntrustedIssuer { peer: self.peer.peer.clone(), id: self.id.clone() };
        let (_, rules) = used.ok_or_else(unknown)?;
        let mut end = rules.not_after;
        let mut uris: Vec<String> = self.leaf.uris.clone();
        let mut issuers = 0;
        // Whether each CA above may sign lists, from the leaf's issuer up.
        let mut sign_lists = Vec::new();
        for (index, issuer) in path.intermediate_certificates().enumerate() {
            let issuer = self.issuer(index + 2, &issuer.der())?;
            end = end.min(issuer.not_after);
            uris.extend(issuer.uris);
            sign_lists.push(issuer.key_usage.is_none_or(|bits| bits.crl_sign));
            issuers += 1;
        }
        sign_lists.push(rules.signs_lists);
        if rules.path_len.is_some_and(|most| issuers > most) {
            let most = rules.path_len.unwrap_or_default();
            let reason = format!("its CA allows {most} intermediates, and there are {issuers}");
            return Err(VerifyError::Path { peer: self.peer.peer.clone(), id: self.id.clone(), reason });
        }
        for uri in &uris {
            rules.uris.allow(uri).map_err(|reason| VerifyError::NameConstraints {
                peer: self.peer.peer.clone(),
                id: self.id.clone(),
                reason,
            })?;
        }
        self.judge_given(path, rules, &sign_lists)?;
        Ok(end)
    }

    /// Holds each certificate of the way against the lists that its issuer signed, of those that came
    /// over the Workload API.
    fn judge_given(
        &self,
        path: &VerifiedPath<'_>,
        rules: &AnchorRules,
        sign_lists: &[bool],
    ) -> Result<(), VerifyError> {
        let Some(lists) = &self.peer.given_lists else { return Ok(()) };
        let untrusted = || VerifyError::UntrustedIssuer { peer: self.peer.peer.clone(), id: self.id.clone() };
        let anchor = self.peer.bundle.anchors().get(rules.at).ok_or_else(untrusted)?;
        let leaf: &Cert<'_> = path.end_entity();
        let below = std::iter::once(leaf).chain(path.intermediate_certificates());
        let issuers = path.intermediate_certificates().map(Cert::der).chain([anchor.der.clone()]);
        for ((cert, issuer), signs_lists) in below.zip(issuers).zip(sign_lists) {
            let (issuer_name, serial, signs_lists) = (cert.issuer(), cert.serial(), *signs_lists);
            let link = Link { issuer_name, serial, issuer, signs_lists };
            lists.judge(&link, self.now).map_err(|refusal| self.given_refusal(refusal))?;
        }
        Ok(())
    }

    fn given_refusal(&self, refusal: GivenRefusal) -> VerifyError {
        let (peer, id, from) = (self.peer.peer.clone(), self.id.clone(), ListsFrom::WorkloadApi);
        let reason = match refusal {
            GivenRefusal::Revoked => return VerifyError::Revoked { peer, id },
            GivenRefusal::Outdated(since) => {
                format!("the list of its CA is outdated since {}", crate::refused::time_text(&since))
            }
            GivenRefusal::NotEntitled => {
                "the key usage of its CA doesn't allow the list that it signed (cRLSign)".to_owned()
            }
        };
        VerifyError::Revocation { peer, id, reason, from }
    }

    /// One issuer above the leaf, `at` counted from one.
    fn issuer(&self, at: usize, der: &[u8]) -> Result<Inspected, VerifyError> {
        let wrong = |reason: String| VerifyError::Issuer {
            peer: self.peer.peer.clone(),
            id: self.id.clone(),
            at,
            reason,
        };
        let issuer = inspect(der).map_err(wrong)?;
        if !issuer.is_ca {
            return Err(wrong("it is not a CA".to_owned()));
        }
        if issuer.key_usage.is_some_and(|bits| !bits.key_cert_sign) {
            return Err(wrong("its key usage lacks keyCertSign".to_owned()));
        }
        if let Some(key) = issuer.bad_key {
            return Err(wrong(format!("it has {key}")));
        }
        if let Some(reason) = issuer.bad_serial {
            return Err(wrong(reason.to_owned()));
        }
        // An issuer may say whose it is (X509-SVID, 4.1); the bundle's own are checked at import.
        let own = format!("spiffe://{}", self.peer.trust_domain);
        let foreign = |uri: &&String| {
            let bare = uri.strip_suffix('/').unwrap_or(uri);
            uri.get(..9).is_some_and(|s| s.eq_ignore_ascii_case("spiffe://")) && bare != own
        };
        if let Some(uri) = issuer.uris.iter().find(foreign) {
            return Err(wrong(format!("it is the CA of {}, not of {own}", crate::inspect::plain(uri))));
        }
        Ok(issuer)
    }

    /// The library's error as a rule of ours.
    fn error(&self, above: &[CertificateDer<'_>], error: webpki::Error) -> VerifyError {
        let (peer, id, now, from) = (self.peer.peer.clone(), self.id.clone(), self.now, ListsFrom::File);
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
                let constrains = |der: &CertificateDer<'_>| inspect(der).is_ok_and(|c| c.constrains_uris);
                match above.iter().position(constrains) {
                    Some(index) => VerifyError::ConstrainedIssuer { peer, id, at: index + 2 },
                    None => {
                        let reason = "a name in it is excluded, or not permitted, by a CA above".to_owned();
                        VerifyError::NameConstraints { peer, id, reason }
                    }
                }
            }
            webpki::Error::CertRevoked => VerifyError::Revoked { peer, id },
            webpki::Error::UnknownRevocationStatus => {
                let reason = "no list of its CA is there".to_owned();
                VerifyError::Revocation { peer, id, reason, from }
            }
            webpki::Error::CrlExpired { next_update, .. } => {
                let ended = crate::refused::time_text(&seconds(next_update));
                let reason = format!("the list of its CA is outdated since {ended}");
                VerifyError::Revocation { peer, id, reason, from }
            }
            webpki::Error::InvalidCrlSignatureForPublicKey | webpki::Error::IssuerNotCrlSigner => {
                let reason = "the list of its CA wasn't signed by that CA".to_owned();
                VerifyError::Revocation { peer, id, reason, from }
            }
            other => VerifyError::Path { peer, id, reason: other.to_string() },
        }
    }
}
