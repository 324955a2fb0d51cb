//! The CA certificates of one trust domain. *Hardened to operator's files.*
//!
//! A bundle belongs to exactly one trust domain and is never joined with another. Everything in
//! it could really have signed an acceptable certificate: what can't is refused at load, where an
//! operator sees it, and not at the first handshake.

use std::time::Duration;

use hamlet_core::TrustDomain;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, Der, TrustAnchor};
use sha2::{Digest, Sha256};

use crate::constraints::{self, UriConstraints};
use crate::files::PEM_BYTES_MAX;
use crate::inspect::{Inspected, inspect};
use crate::trust::Fingerprint;
use crate::verify::NOT_BEFORE_SKEW;

/// Most CA certificates in one bundle. Rotation needs two or three.
pub const ANCHORS_MAX: usize = 16;

/// Why a file is not a trust bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BundleError {
    #[error(
        "the bundle has no CA certificate; put the peer's CA in it (PEM, -----BEGIN CERTIFICATE-----), for \
         example the ca.pem that `hamlet init` made there"
    )]
    Empty,
    #[error(
        "the bundle has {0} bytes, more than {PEM_BYTES_MAX}; keep only the peer's CA certificates in it"
    )]
    TooLarge(usize),
    #[error("the bundle has more than {ANCHORS_MAX} certificates; keep only the peer's current CAs in it")]
    TooMany,
    #[error("the bundle can't be read as PEM: {0}; export it again")]
    Pem(String),
    #[error("certificate {at} of the bundle can't be read: {reason}; export it again")]
    Malformed { at: usize, reason: String },
    #[error(
        "certificate {at} of the bundle ({subject}) is not a CA (no cA=true in its basic constraints); put \
         the CA that signs the peer's certificates in the bundle, not the certificates themselves"
    )]
    NotCa { at: usize, subject: String },
    #[error(
        "certificate {at} of the bundle ({subject}) may not sign certificates (its key usage lacks \
         keyCertSign); ask the peer for its signing CA"
    )]
    NoCertSign { at: usize, subject: String },
    #[error(
        "the name constraints of certificate {at} of the bundle ({subject}) can't be honoured: {reason}; ask \
         the peer for a CA without them (its ids are restricted to its trust domain here anyway)"
    )]
    NameConstraints { at: usize, subject: String, reason: String },
    #[error(
        "certificate {at} of the bundle ({subject}) has {key}; use ECDSA P-256 or P-384, Ed25519, or RSA of \
         2048 bits or more"
    )]
    Key { at: usize, subject: String, key: String },
    #[error(
        "certificate {at} of the bundle belongs to {found}, not to {expected}; check whose bundle it is, or \
         the trustDomain of the peer"
    )]
    OtherDomain { at: usize, found: String, expected: TrustDomain },
    #[error("the bundle can't be read as JSON: {0}; export it again")]
    Json(String),
    #[error("entry {at} of `keys` in the bundle can't be used: {reason}; ask the peer to export it again")]
    Entry { at: usize, reason: String },
    #[error("the bundle map names no usable trust domain: {0}; write each trust domain once")]
    MapDomain(String),
    #[error(
        "the bundle map has nothing for {expected}; it has {found}: check the trustDomain of the peer, or the map"
    )]
    NotInMap { expected: TrustDomain, found: String },
    #[error("certificate {at} of the bundle ({subject}) has a key that JWK can't express: {reason}")]
    NoJwk { at: usize, subject: String, reason: String },
    #[error(
        "the bundle has keys, but no CA for X.509 certificates: written without any key it would say that all is \
         revoked; name the file with the CA certificates"
    )]
    NothingToWrite,
}

/// One CA certificate of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// Its subject, as text.
    pub subject: String,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// End of its validity, since the epoch.
    pub not_after: Duration,
}

/// The CAs of one trust domain, never empty.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    domain: TrustDomain,
    anchors: Vec<Anchor>,
    parsed: Vec<TrustAnchor<'static>>,
    rules: Vec<AnchorRules>,
}

/// What an anchor demands that the path library doesn't check.
#[derive(Debug, Clone)]
pub(crate) struct AnchorRules {
    /// Which hosts it may name in URIs.
    pub(crate) uris: UriConstraints,
    /// How many intermediates may stand below it.
    pub(crate) path_len: Option<u32>,
    /// Begin of its validity, since the epoch.
    not_before: Duration,
    /// End of its validity, since the epoch.
    pub(crate) not_after: Duration,
    /// It is a leaf that a fingerprint names: nothing stands below it.
    pinned: bool,
    /// Whether its key usage allows it to sign revocation lists.
    pub(crate) signs_lists: bool,
    /// Its place in the bundle.
    pub(crate) at: usize,
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &TrustBundle) -> bool {
        self.domain == other.domain && self.anchors == other.anchors
    }
}

impl TrustBundle {
    /// Reads the certificates in `pem` as the CAs of `domain`. Other PEM sections are skipped, so
    /// that a file with comments or CRLs is fine. An expired CA is kept (it may stand beside its
    /// successor) but proves nothing.
    pub fn from_pem(domain: TrustDomain, pem: &[u8]) -> Result<TrustBundle, BundleError> {
        TrustBundle::from_pem_pinned(domain, pem, &[])
    }

    /// The same for a peer that is known by fingerprint: a certificate with one of `pinned` may
    /// stand in it without being a CA. It then proves itself and nobody else.
    pub fn from_pem_pinned(
        domain: TrustDomain,
        pem: &[u8],
        pinned: &[Fingerprint],
    ) -> Result<TrustBundle, BundleError> {
        if pem.len() > PEM_BYTES_MAX {
            return Err(BundleError::TooLarge(pem.len()));
        }
        let mut ders: Vec<CertificateDer<'static>> = Vec::new();
        for section in CertificateDer::pem_slice_iter(pem) {
            let der = section.map_err(|e| BundleError::Pem(e.to_string()))?;
            if ders.contains(&der) {
                continue;
            }
            if ders.len() == ANCHORS_MAX {
                return Err(BundleError::TooMany);
            }
            ders.push(der);
        }
        TrustBundle::from_parts(domain, ders, pinned)
    }

    /// The certificates, in that order and each once, as the CAs of `domain`: the same rules as
    /// for [`Self::from_pem`].
    pub fn from_ders(
        domain: TrustDomain,
        ders: Vec<CertificateDer<'static>>,
    ) -> Result<TrustBundle, BundleError> {
        TrustBundle::from_parts(domain, ders, &[])
    }

    /// What both have in common: from here on the format doesn't matter.
    fn from_parts(
        domain: TrustDomain,
        given: Vec<CertificateDer<'static>>,
        pinned: &[Fingerprint],
    ) -> Result<TrustBundle, BundleError> {
        let mut ders: Vec<CertificateDer<'static>> = Vec::new();
        for der in given {
            if !ders.contains(&der) {
                ders.push(der);
            }
        }
        if ders.is_empty() {
            return Err(BundleError::Empty);
        }
        if ders.len() > ANCHORS_MAX {
            return Err(BundleError::TooMany);
        }
        let (mut anchors, mut parsed, mut rules) = (Vec::new(), Vec::new(), Vec::new());
        for (index, der) in ders.into_iter().enumerate() {
            let (anchor, trust, rule) = read_anchor(&domain, index + 1, der, pinned)?;
            anchors.push(anchor);
            parsed.push(trust);
            rules.push(rule);
        }
        Ok(TrustBundle { domain, anchors, parsed, rules })
    }

    /// The trust domain these CAs speak for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The CA certificates.
    pub fn anchors(&self) -> &[Anchor] {
        &self.anchors
    }

    /// SHA-256 of each CA certificate, in file order.
    pub fn fingerprints(&self) -> Vec<[u8; 32]> {
        self.anchors.iter().map(|a| a.fingerprint).collect()
    }

    /// When the first of them expires, since the epoch.
    pub fn earliest_not_after(&self) -> Duration {
        self.anchors.iter().map(|a| a.not_after).min().unwrap_or_default()
    }

    /// The CAs that are valid at `now`, and beside each what it demands.
    pub(crate) fn usable(&self, now: Duration) -> (Vec<TrustAnchor<'_>>, Vec<&AnchorRules>) {
        let valid = |rules: &AnchorRules| {
            !rules.pinned && rules.not_after >= now && rules.not_before <= now + NOT_BEFORE_SKEW
        };
        let both = self.parsed.iter().zip(&self.rules).filter(|(_, rules)| valid(rules));
        both.map(|(parsed, rules)| (parsed.clone(), rules)).unzip()
    }

    /// The CAs of that name (in DER, without the header).
    pub(crate) fn named<'a>(&'a self, subject: &'a [u8]) -> impl Iterator<Item = &'a Anchor> {
        let both = self.anchors.iter().zip(&self.parsed);
        both.filter(move |(_, parsed)| parsed.subject.as_ref() == subject).map(|(anchor, _)| anchor)
    }

    /// Whether this very certificate stands in the bundle as a leaf that proves itself.
    pub(crate) fn pins(&self, der: &CertificateDer<'_>) -> bool {
        self.anchors.iter().zip(&self.rules).any(|(anchor, rules)| rules.pinned && anchor.der == *der)
    }
}

fn read_anchor(
    domain: &TrustDomain,
    at: usize,
    der: CertificateDer<'static>,
    pinned: &[Fingerprint],
) -> Result<(Anchor, TrustAnchor<'static>, AnchorRules), BundleError> {
    let cert = inspect(&der).map_err(|reason| BundleError::Malformed { at, reason })?;
    let fingerprint: Fingerprint = Sha256::digest(&der).into();
    let pinned = !cert.is_ca && pinned.contains(&fingerprint);
    if !pinned {
        check_anchor(domain, at, &cert)?;
    }
    if let Some(oid) = &cert.unknown_critical {
        let reason = format!("nobody here understands its critical extension {oid}");
        return Err(BundleError::Malformed { at, reason });
    }
    let subject = cert.subject;
    if let Some(key) = cert.bad_key {
        return Err(BundleError::Key { at, subject, key });
    }
    // A key that can't be written down is one that can't verify anything either.
    crate::spiffe::jwk_members(&der).map_err(|reason| BundleError::Malformed { at, reason })?;
    let mut trust = webpki::anchor_from_trusted_cert(&der)
        .map_err(|e| BundleError::Malformed { at, reason: e.to_string() })?
        .to_owned();
    let mut uris = UriConstraints::default();
    if let Some(content) = &trust.name_constraints {
        let split = constraints::split(content).map_err(|reason| BundleError::NameConstraints {
            at,
            subject: subject.clone(),
            reason,
        })?;
        uris = split.uris;
        trust.name_constraints = split.rest.map(Der::from);
    }
    let (path_len, not_before, not_after) = (cert.path_len, cert.not_before, cert.not_after);
    let signs_lists = cert.key_usage.is_none_or(|bits| bits.crl_sign);
    let rules = AnchorRules { uris, path_len, not_before, not_after, pinned, signs_lists, at: at - 1 };
    Ok((Anchor { der, subject, fingerprint, not_after }, trust, rules))
}

/// What only a CA must keep.
fn check_anchor(domain: &TrustDomain, at: usize, cert: &Inspected) -> Result<(), BundleError> {
    let subject = cert.subject.clone();
    if !cert.is_ca {
        return Err(BundleError::NotCa { at, subject });
    }
    if cert.key_usage.is_some_and(|usage| !usage.key_cert_sign) {
        return Err(BundleError::NoCertSign { at, subject });
    }
    // A CA may say whose it is (X509-SVID, 4.1). Where it says so it must be the right one.
    for uri in cert.uris.iter().filter(|uri| uri.starts_with("spiffe://")) {
        let found = uri.trim_start_matches("spiffe://").split('/').next().unwrap_or_default();
        if found != domain.as_str() {
            let found = crate::inspect::plain(uri);
            return Err(BundleError::OtherDomain { at, found, expected: domain.clone() });
        }
    }
    Ok(())
}
