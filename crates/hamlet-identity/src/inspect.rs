//! What one certificate says, read once with a strict parser. *Hardened to untrusted peer.*
//!
//! It decides nothing and checks no signature; [`crate::verify`] and [`crate::bundle`] put rules
//! over it. Invariant: an extension that we rely on and that is doubled or unreadable is an error,
//! never "absent".

use std::time::Duration;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{BasicConstraints, GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_CERTIFICATE_POLICIES, OID_X509_EXT_EXTENDED_KEY_USAGE,
    OID_X509_EXT_KEY_USAGE, OID_X509_EXT_NAME_CONSTRAINTS, OID_X509_EXT_SUBJECT_ALT_NAME, Oid,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::der::element;

/// Smallest RSA modulus we accept, in bits.
pub(crate) const RSA_BITS_MIN: usize = 2048;
/// Largest RSA modulus we accept, in bits: what the signature library verifies.
pub(crate) const RSA_BITS_MAX: usize = 8192;

/// The KeyUsage bits that matter here (RFC 5280, 4.2.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyUsageBits {
    pub(crate) digital_signature: bool,
    pub(crate) key_cert_sign: bool,
    pub(crate) crl_sign: bool,
}

/// The ExtendedKeyUsage purposes that matter here (RFC 5280, 4.2.1.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Purposes {
    pub(crate) client: bool,
    pub(crate) server: bool,
}

/// One certificate, read.
#[derive(Debug, Clone)]
pub(crate) struct Inspected {
    /// Subject as text, control characters escaped.
    pub(crate) subject: String,
    /// Whether subject and issuer are the same name.
    pub(crate) self_issued: bool,
    /// URI SANs in order.
    pub(crate) uris: Vec<String>,
    /// DNS SANs in order.
    pub(crate) dns: Vec<String>,
    /// `cA` of BasicConstraints; false when the extension is absent.
    pub(crate) is_ca: bool,
    pub(crate) key_usage: Option<KeyUsageBits>,
    pub(crate) purposes: Option<Purposes>,
    /// `pathLenConstraint` of BasicConstraints.
    pub(crate) path_len: Option<u32>,
    /// Whether its name constraints say anything about URIs.
    pub(crate) constrains_uris: bool,
    /// What is wrong with its serial number (RFC 5280, 4.1.2.2), if anything.
    pub(crate) bad_serial: Option<&'static str>,
    /// A critical extension that nobody here understands, if any.
    pub(crate) unknown_critical: Option<String>,
    /// Since the epoch; times before it count as zero.
    pub(crate) not_before: Duration,
    /// Since the epoch; times before it count as zero.
    pub(crate) not_after: Duration,
    /// Why the key isn't one of the allowed kinds, if so.
    pub(crate) bad_key: Option<String>,
}

/// Reads one DER certificate; the error says what is wrong with it.
pub(crate) fn inspect(der: &[u8]) -> Result<Inspected, String> {
    let (rest, cert) =
        X509Certificate::from_der(der).map_err(|_| "it is not a readable X.509 certificate".to_owned())?;
    if !rest.is_empty() {
        return Err("bytes follow the certificate".to_owned());
    }
    let (uris, dns) = names(&cert)?;
    Ok(Inspected {
        subject: plain(&cert.subject().to_string()),
        self_issued: cert.subject().as_raw() == cert.issuer().as_raw(),
        uris,
        dns,
        is_ca: basic_constraints(&cert)?.is_some_and(|b| b.ca),
        path_len: basic_constraints(&cert)?.and_then(|b| b.path_len_constraint),
        key_usage: key_usage(&cert)?,
        purposes: purposes(&cert)?,
        constrains_uris: constrains_uris(&cert)?,
        bad_serial: bad_serial(cert.raw_serial()),
        unknown_critical: unknown_critical(&cert),
        not_before: since_epoch(cert.validity().not_before.timestamp()),
        not_after: since_epoch(cert.validity().not_after.timestamp()),
        bad_key: bad_key(cert.public_key()),
    })
}

/// `text` without control characters and not longer than is useful in a message.
pub(crate) fn plain(text: &str) -> String {
    const SHOWN_MAX: usize = 256;
    let mut out: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        out.push_str("...");
    }
    out
}

fn since_epoch(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The extension with `oid`, if there is exactly one and it can be read.
fn extension<'c, 'a>(
    cert: &'c X509Certificate<'a>,
    oid: &Oid<'_>,
    name: &str,
) -> Result<Option<&'c ParsedExtension<'a>>, String> {
    let mut found = cert.extensions().iter().filter(|e| e.oid == *oid);
    let Some(first) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(format!("its {name} extension is there twice"));
    }
    match first.parsed_extension() {
        ParsedExtension::ParseError { .. }
        | ParsedExtension::UnsupportedExtension { .. }
        | ParsedExtension::Unparsed => Err(format!("its {name} extension can't be read")),
        parsed => Ok(Some(parsed)),
    }
}

fn names(cert: &X509Certificate<'_>) -> Result<(Vec<String>, Vec<String>), String> {
    const WHAT: &str = "subject alternative name";
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    let Some(parsed) = extension(cert, &OID_X509_EXT_SUBJECT_ALT_NAME, WHAT)? else { return Ok((uris, dns)) };
    let ParsedExtension::SubjectAlternativeName(san) = parsed else {
        return Err(format!("its {WHAT} extension can't be read"));
    };
    // The parser takes a string in pieces (BER) for a name, and overlooks what follows the names.
    let whole = cert.extensions().iter().find(|e| e.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
    if !whole.is_some_and(|e| names_are_der(e.value)) {
        return Err(format!("its {WHAT} extension isn't DER"));
    }
    for name in &san.general_names {
        match name {
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => dns.push((*name).to_owned()),
            // It might be a second URI in bad encoding: never count it as nothing.
            GeneralName::Invalid(..) => return Err(format!("a name in its {WHAT} extension can't be read")),
            _ => {}
        }
    }
    Ok((uris, dns))
}

/// Whether these are the elements that GeneralNames has, each in its one form.
fn names_are_der(mut value: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    const TAGS: [u8; 9] = [0xa0, 0x81, 0x82, 0xa3, 0xa4, 0xa5, 0x86, 0x87, 0x88];
    let Ok((SEQUENCE, mut names)) = element(&mut value) else { return false };
    while !names.is_empty() {
        match element(&mut names) {
            Ok((tag, _)) if TAGS.contains(&tag) => {}
            _ => return false,
        }
    }
    value.is_empty()
}

fn basic_constraints<'c>(cert: &'c X509Certificate<'_>) -> Result<Option<&'c BasicConstraints>, String> {
    match extension(cert, &OID_X509_EXT_BASIC_CONSTRAINTS, "basic constraints")? {
        None => Ok(None),
        Some(ParsedExtension::BasicConstraints(constraints)) => Ok(Some(constraints)),
        Some(_) => Err("its basic constraints extension can't be read".to_owned()),
    }
}

/// A serial number is positive and has at most 20 octets.
fn bad_serial(serial: &[u8]) -> Option<&'static str> {
    const OCTETS_MAX: usize = 20;
    match serial {
        [] => Some("its serial number is empty"),
        [first, ..] if *first >= 0x80 => Some("its serial number is negative"),
        all if all.iter().all(|b| *b == 0) => Some("its serial number is zero"),
        all if all.len() > OCTETS_MAX => Some("its serial number is longer than 20 octets"),
        _ => None,
    }
}

/// The path library refuses such an extension in what is presented, but passes it over in an
/// anchor. Policies are known: without a policy asked for they demand nothing.
fn unknown_critical(cert: &X509Certificate<'_>) -> Option<String> {
    let known = [
        OID_X509_EXT_BASIC_CONSTRAINTS,
        OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_EXTENDED_KEY_USAGE,
        OID_X509_EXT_NAME_CONSTRAINTS,
        OID_X509_EXT_SUBJECT_ALT_NAME,
        OID_X509_EXT_CERTIFICATE_POLICIES,
    ];
    let strange = |e: &&X509Extension<'_>| e.critical && !known.contains(&e.oid);
    cert.extensions().iter().find(strange).map(|e| e.oid.to_id_string())
}

fn key_usage(cert: &X509Certificate<'_>) -> Result<Option<KeyUsageBits>, String> {
    match extension(cert, &OID_X509_EXT_KEY_USAGE, "key usage")? {
        None => Ok(None),
        Some(ParsedExtension::KeyUsage(bits)) => Ok(Some(KeyUsageBits {
            digital_signature: bits.digital_signature(),
            key_cert_sign: bits.key_cert_sign(),
            crl_sign: bits.crl_sign(),
        })),
        Some(_) => Err("its key usage extension can't be read".to_owned()),
    }
}

fn purposes(cert: &X509Certificate<'_>) -> Result<Option<Purposes>, String> {
    match extension(cert, &OID_X509_EXT_EXTENDED_KEY_USAGE, "extended key usage")? {
        None => Ok(None),
        Some(ParsedExtension::ExtendedKeyUsage(usage)) => {
            Ok(Some(Purposes { client: usage.client_auth, server: usage.server_auth }))
        }
        Some(_) => Err("its extended key usage extension can't be read".to_owned()),
    }
}

fn constrains_uris(cert: &X509Certificate<'_>) -> Result<bool, String> {
    match extension(cert, &OID_X509_EXT_NAME_CONSTRAINTS, "name constraints")? {
        None => Ok(false),
        Some(ParsedExtension::NameConstraints(constraints)) => {
            let both = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
            let mut bases = both.into_iter().flatten().flatten().map(|subtree| &subtree.base);
            Ok(bases.any(|base| matches!(base, GeneralName::URI(_) | GeneralName::Invalid(..))))
        }
        Some(_) => Err("its name constraints extension can't be read".to_owned()),
    }
}

/// Allow-list: ECDSA on P-256 or P-384, Ed25519, RSA of 2048 to 8192 bits.
fn bad_key(spki: &SubjectPublicKeyInfo<'_>) -> Option<String> {
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == OID_SIG_ED25519 {
        return None;
    }
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        return match curve {
            Some(curve) if curve == OID_EC_P256 || curve == OID_NIST_EC_P384 => None,
            Some(curve) => Some(format!("an elliptic-curve key on curve {curve}")),
            None => Some("an elliptic-curve key without a named curve".to_owned()),
        };
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(key)) = spki.parsed() else { return Some("an unreadable RSA key".to_owned()) };
        let bits = modulus_bits(key.modulus);
        let allowed = (RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits);
        return (!allowed).then(|| format!("an RSA key of {bits} bits"));
    }
    Some(format!("a key of algorithm {algorithm}"))
}

/// Counted by hand: the parser's own count assumes one leading zero byte.
fn modulus_bits(modulus: &[u8]) -> usize {
    let zeros = modulus.iter().take_while(|b| **b == 0).count();
    let significant = modulus.get(zeros..).unwrap_or_default();
    match significant.first() {
        Some(first) => significant.len() * 8 - first.leading_zeros() as usize,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_modulus_is_measured_by_its_significant_bits() {
        assert_eq!(modulus_bits(&[]), 0);
        assert_eq!(modulus_bits(&[0, 0]), 0);
        assert_eq!(modulus_bits(&[0, 0x80, 0]), 16);
        assert_eq!(modulus_bits(&[0, 0, 0, 0x01, 0]), 9);
    }

    #[test]
    fn shown_text_has_no_control_characters_and_an_end() {
        assert_eq!(plain("a\u{1b}[0m\n"), "a\\u{1b}[0m\\n");
        assert_eq!(plain(&"x".repeat(300)).len(), 256 + 3);
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(inspect(&bytes).is_err());
        }
    }
}
