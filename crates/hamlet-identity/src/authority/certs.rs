//! The certificates above the leaves: roots, the same roots signed by the one before, and the
//! intermediates that sign leaves.
//!
//! Makes values; knows neither files nor when. Invariant: every key is an ECDSA P-256 key of its
//! own, and every certificate says its trust domain in its one URI name.

use std::time::Duration;

use hamlet_core::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;

use crate::ca::{BACKDATED, CaError, params, subject, uri};
use crate::inspect::{Inspected, inspect};

/// CAs that may stand between one of our roots and a leaf: the next root, signed by this one, and
/// its issuing CA.
pub(super) const ROOT_PATH_LEN: u32 = 2;

/// A certificate and its key in PEM, and the certificate's digest.
pub(super) struct Made {
    pub(super) cert: String,
    pub(super) key: String,
    pub(super) sha256: String,
}

/// A key that signs, with its certificate.
pub(super) struct Signer {
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    /// From PEM; the caller has checked that they belong together.
    pub(super) fn new(cert: &[u8], key: &[u8]) -> Result<Signer, CaError> {
        let unusable = |what: &str| CaError::Crypto(format!("a root's {what} can't be used"));
        let cert = CertificateDer::from_pem_slice(cert).map_err(|_| unusable("certificate"))?;
        // The parser's error is not shown: it could quote what it read.
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| unusable("key"))?;
        let key = KeyPair::try_from(&key).map_err(|_| unusable("key"))?;
        Ok(Signer { issuer: Issuer::from_ca_cert_der(&cert, key)? })
    }
}

/// When something lives; whole seconds, as certificates say it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) made: Duration,
    pub(super) until: Duration,
}

/// A new root.
pub(super) fn root(domain: &TrustDomain, number: u64, span: Span) -> Result<Made, CaError> {
    let key = KeyPair::generate()?;
    let cert = authority(domain, &root_name(number), ROOT_PATH_LEN, span)?.self_signed(&key)?;
    Ok(Made { sha256: digest(cert.der()), cert: cert.pem(), key: key.serialize_pem() })
}

/// The root of that number, whose key is `key`, signed by the root before it: for peers that know
/// only that one.
pub(super) fn cross(
    domain: &TrustDomain,
    number: u64,
    key: &str,
    span: Span,
    by: &Signer,
) -> Result<String, CaError> {
    let key = KeyPair::from_pem(key)?;
    let mut params = authority(domain, &root_name(number), ROOT_PATH_LEN - 1, span)?;
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(&key, &by.issuer)?.pem())
}

/// A new intermediate that signs leaves.
pub(super) fn issuing(domain: &TrustDomain, number: u64, span: Span, by: &Signer) -> Result<Made, CaError> {
    let key = KeyPair::generate()?;
    let mut params = authority(domain, &format!("Hamlet issuing CA {number}"), 0, span)?;
    params.use_authority_key_identifier_extension = true;
    let cert = params.signed_by(&key, &by.issuer)?;
    Ok(Made { sha256: digest(cert.der()), cert: cert.pem(), key: key.serialize_pem() })
}

/// SHA-256 of the first certificate in a PEM text, in hexadecimal digits.
pub(super) fn digest_of_pem(pem: &[u8]) -> Option<String> {
    CertificateDer::from_pem_slice(pem).ok().map(|der| digest(&der))
}

/// Length limit of the paths below the first certificate in a PEM text; `None` has none.
pub(super) fn path_len_of_pem(pem: &[u8]) -> Option<u32> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, cert) = x509_parser::certificate::X509Certificate::from_der(&der).ok()?;
    cert.basic_constraints().ok()??.value.path_len_constraint
}

/// What the first certificate in a PEM text says.
pub(super) fn read_pem(pem: &[u8]) -> Result<Inspected, String> {
    let der = CertificateDer::from_pem_slice(pem).map_err(|e| format!("it can't be read as PEM: {e}"))?;
    inspect(&der)
}

fn digest(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn root_name(number: u64) -> String {
    format!("Hamlet root {number}")
}

fn authority(
    domain: &TrustDomain,
    name: &str,
    path_len: u32,
    span: Span,
) -> Result<CertificateParams, CaError> {
    let mut params = params(span.made.saturating_sub(BACKDATED), span.until)?;
    params.distinguished_name = subject(name, domain);
    let length = u8::try_from(path_len).map_err(|_| CaError::Crypto("a path of that length".to_owned()))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))?];
    Ok(params)
}
