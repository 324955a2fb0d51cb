//! A CA's public key as the parameters of a JWK (RFC 7517, RFC 7518 section 6, RFC 8037), both ways.
//!
//! It decides nothing about trust: that is the certificate's matter. Invariant: what it writes
//! describes the key of the certificate beside it, and a key that says otherwise is never read.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use x509_parser::certificate::X509Certificate;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// The members of a JWK that say which key it is, in the order in which they are written.
pub(crate) type Members = Vec<(&'static str, String)>;

/// The key types whose entries are read. Others are for somebody else.
pub(super) const KEY_TYPES: [&str; 3] = ["EC", "RSA", "OKP"];

/// The JWK members of the certificate's key, `kty` first.
pub(crate) fn members(der: &[u8]) -> Result<Members, String> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|_| "the certificate can't be read".to_owned())?;
    let spki = cert.public_key();
    let algorithm = &spki.algorithm.algorithm;
    let raw: &[u8] = &spki.subject_public_key.data;
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    if *algorithm == OID_SIG_ED25519 {
        return Ok(vec![("kty", "OKP".into()), ("crv", "Ed25519".into()), ("x", text(raw))]);
    }
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        let (name, size) = match curve {
            Some(curve) if curve == OID_EC_P256 => ("P-256", 32),
            Some(curve) if curve == OID_NIST_EC_P384 => ("P-384", 48),
            _ => return Err("its curve is neither P-256 nor P-384".to_owned()),
        };
        // SEC 1, 2.3.3: 4, then both coordinates in full.
        let [4, point @ ..] = raw else { return Err("its point is compressed".to_owned()) };
        if point.len() != 2 * size {
            return Err("its point has the wrong size".to_owned());
        }
        let (x, y) = point.split_at(size);
        return Ok(vec![("kty", "EC".into()), ("crv", name.into()), ("x", text(x)), ("y", text(y))]);
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(key)) = spki.parsed() else {
            return Err("its RSA key can't be read".to_owned());
        };
        let number = |bytes: &[u8]| {
            let zeros = bytes.iter().take_while(|b| **b == 0).count();
            text(bytes.get(zeros..).unwrap_or_default())
        };
        return Ok(vec![("kty", "RSA".into()), ("n", number(key.modulus)), ("e", number(key.exponent))]);
    }
    Err(format!("its algorithm is {algorithm}"))
}

/// Whether the key that `entry` describes is that of its certificate (RFC 7517, 4.7). Members that
/// are absent claim nothing: only the certificate counts.
pub(super) fn agrees(entry: &Map<String, Value>, der: &[u8]) -> bool {
    let Ok(members) = members(der) else { return true };
    members.iter().all(|(name, value)| match entry.get(*name) {
        None | Some(Value::Null) => true,
        Some(Value::String(found)) => found.trim_end_matches('=') == value,
        Some(_) => false,
    })
}
