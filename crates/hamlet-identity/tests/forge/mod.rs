//! Certificates written byte by byte, so that each can be wrong in exactly one way that no library
//! would write, and still carry a true signature.
//!
//! It checks nothing and panics on failure. Everything is P-256 unless a case says otherwise.

#![allow(dead_code)] // each test file uses its part

use std::sync::Arc;
use std::time::Duration;

use hamlet_runtime::{Clock, SystemClock};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use time::OffsetDateTime;

pub(crate) const SAN: &[u8] = &[0x55, 0x1d, 0x11];
pub(crate) const ISSUER_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x12];
pub(crate) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
pub(crate) const BASIC: &[u8] = &[0x55, 0x1d, 0x13];
pub(crate) const EKU: &[u8] = &[0x55, 0x1d, 0x25];
pub(crate) const CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
pub(crate) const POLICY_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x24];
pub(crate) const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];
pub(crate) const CRL_NUMBER: &[u8] = &[0x55, 0x1d, 0x14];
/// An extension of nobody.
pub(crate) const UNKNOWN: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x63, 0x01];

pub(crate) const DIGITAL_SIGNATURE: u8 = 0x80;
pub(crate) const NON_REPUDIATION: u8 = 0x40;
pub(crate) const KEY_ENCIPHERMENT: u8 = 0x20;
pub(crate) const KEY_AGREEMENT: u8 = 0x08;
pub(crate) const CERT_SIGN: u8 = 0x04;
pub(crate) const CRL_SIGN: u8 = 0x02;

pub(crate) const SERVER_AUTH: u8 = 1;
pub(crate) const CLIENT_AUTH: u8 = 2;
pub(crate) const CODE_SIGNING: u8 = 3;
pub(crate) const EMAIL: u8 = 4;
pub(crate) const TIME_STAMPING: u8 = 8;
pub(crate) const OCSP: u8 = 9;

pub(crate) const MINUTE: i64 = 60;
pub(crate) const HOUR: i64 = 3600;
pub(crate) const DAY: i64 = 24 * HOUR;

/// ecdsa-with-SHA256.
pub(crate) const ECDSA_SHA256: &[u8] =
    &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// One DER element.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        n @ 0..=0x7f => out.push(n as u8),
        n @ 0x80..=0xff => out.extend([0x81, n as u8]),
        n => out.extend([0x82, (n >> 8) as u8, n as u8]),
    }
    out.extend_from_slice(content);
    out
}

pub(crate) fn seq(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

pub(crate) fn oid(content: &[u8]) -> Vec<u8> {
    tlv(0x06, content)
}

/// A name of one common name.
pub(crate) fn name(common: &str) -> Vec<u8> {
    let value = seq(&[&oid(&[0x55, 0x04, 0x03]), &tlv(0x0c, common.as_bytes())]);
    seq(&[&tlv(0x31, &value)])
}

/// A bit string without unused bits.
pub(crate) fn bits(content: &[u8]) -> Vec<u8> {
    tlv(0x03, &[&[0], content].concat())
}

pub(crate) fn now() -> i64 {
    i64::try_from(SystemClock::new().wall().as_secs()).unwrap()
}

/// A time as UTCTime, `offset` seconds from now.
pub(crate) fn utc(offset: i64) -> Vec<u8> {
    let t = OffsetDateTime::from_unix_timestamp(now() + offset).unwrap();
    let text = format!(
        "{:02}{:02}{:02}{:02}{:02}{:02}Z",
        t.year() % 100,
        u8::from(t.month()),
        t.day(),
        t.hour(),
        t.minute(),
        t.second()
    );
    tlv(0x17, text.as_bytes())
}

pub(crate) fn validity(from: i64, to: i64) -> Vec<u8> {
    seq(&[&utc(from), &utc(to)])
}

/// One extension.
#[derive(Debug, Clone)]
pub(crate) struct Ext {
    pub(crate) oid: &'static [u8],
    pub(crate) critical: bool,
    /// What is in its octet string.
    pub(crate) content: Vec<u8>,
}

impl Ext {
    pub(crate) fn new(oid: &'static [u8], critical: bool, content: Vec<u8>) -> Ext {
        Ext { oid, critical, content }
    }

    fn der(&self) -> Vec<u8> {
        let critical: &[u8] = if self.critical { &[0x01, 0x01, 0xff] } else { &[] };
        seq(&[&oid(self.oid), critical, &tlv(0x04, &self.content)])
    }
}

pub(crate) fn key_usage(flags: u8) -> Vec<u8> {
    let unused = flags.trailing_zeros().min(7) as u8;
    if flags == 0 { vec![0x03, 0x01, 0x00] } else { vec![0x03, 0x02, unused, flags] }
}

pub(crate) fn eku(purposes: &[u8]) -> Vec<u8> {
    let all = purposes.iter().flat_map(|p| oid(&[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, *p]));
    tlv(0x30, &all.collect::<Vec<_>>())
}

/// A subject alternative name of names with their tags.
pub(crate) fn san(names: &[(u8, &[u8])]) -> Vec<u8> {
    tlv(0x30, &names.iter().flat_map(|(tag, name)| tlv(*tag, name)).collect::<Vec<_>>())
}

pub(crate) const URI: u8 = 0x86;
pub(crate) const DNS: u8 = 0x82;
pub(crate) const MAIL: u8 = 0x81;
pub(crate) const IP: u8 = 0x87;
pub(crate) const DIRECTORY: u8 = 0xa4;
pub(crate) const OTHER_NAME: u8 = 0xa0;
pub(crate) const REGISTERED_ID: u8 = 0x88;

/// Name constraints of permitted and excluded names with their tags.
pub(crate) fn constraints(permitted: &[(u8, &[u8])], excluded: &[(u8, &[u8])]) -> Vec<u8> {
    let list = |tag: u8, names: &[(u8, &[u8])]| match names {
        [] => Vec::new(),
        names => {
            let all = names.iter().flat_map(|(tag, name)| seq(&[&tlv(*tag, name)]));
            tlv(tag, &all.collect::<Vec<_>>())
        }
    };
    seq(&[&list(0xa0, permitted), &list(0xa1, excluded)])
}

pub(crate) fn basic(ca: bool, path_len: Option<u8>) -> Vec<u8> {
    let ca: &[u8] = if ca { &[0x01, 0x01, 0xff] } else { &[] };
    let len = path_len.map(|n| vec![0x02, 0x01, n]).unwrap_or_default();
    seq(&[ca, &len])
}

/// Everything in a certificate, to be spoilt before it is signed.
#[derive(Debug, Clone)]
pub(crate) struct Forge {
    /// The whole `[0]` element; empty is version 1.
    pub(crate) version: Vec<u8>,
    /// The content of the integer.
    pub(crate) serial: Vec<u8>,
    /// The signature algorithm inside, and beside the signature.
    pub(crate) algorithms: [Vec<u8>; 2],
    pub(crate) issuer: Vec<u8>,
    pub(crate) validity: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) spki: Vec<u8>,
    /// Between the key and the extensions.
    pub(crate) unique_ids: Vec<u8>,
    pub(crate) extensions: Vec<Ext>,
    /// After the extensions, inside what is signed.
    pub(crate) tail: Vec<u8>,
    /// What becomes of the signature's bit string content.
    pub(crate) signature: fn(Vec<u8>) -> Vec<u8>,
}

impl Forge {
    /// Replaces what an extension says.
    pub(crate) fn set(&mut self, oid: &'static [u8], content: Vec<u8>) {
        match self.extensions.iter_mut().find(|e| e.oid == oid) {
            Some(extension) => extension.content = content,
            None => self.extensions.push(Ext::new(oid, false, content)),
        }
    }

    pub(crate) fn remove(&mut self, oid: &'static [u8]) {
        self.extensions.retain(|e| e.oid != oid);
    }

    /// The same extension once more.
    pub(crate) fn double(&mut self, oid: &'static [u8]) {
        let again = self.extensions.iter().find(|e| e.oid == oid).expect("it is there").clone();
        self.extensions.push(again);
    }

    pub(crate) fn uris(&mut self, uris: &[&str]) {
        self.set(SAN, san(&uris.iter().map(|u| (URI, u.as_bytes())).collect::<Vec<_>>()));
    }

    fn sign(&self, key: &KeyPair) -> Vec<u8> {
        let extensions: Vec<u8> = self.extensions.iter().flat_map(Ext::der).collect();
        let extensions = match extensions.is_empty() {
            true => Vec::new(),
            false => tlv(0xa3, &tlv(0x30, &extensions)),
        };
        let tbs = seq(&[
            &self.version,
            &tlv(0x02, &self.serial),
            &self.algorithms[0],
            &self.issuer,
            &self.validity,
            &self.subject,
            &self.spki,
            &self.unique_ids,
            &extensions,
            &self.tail,
        ]);
        let signature = [vec![0], key.sign(&tbs).unwrap()].concat();
        seq(&[&tbs, &self.algorithms[1], &tlv(0x03, &(self.signature)(signature))])
    }
}

pub(crate) fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn serial() -> Vec<u8> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0x0100_0000);
    NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes().to_vec()
}

/// A CA: a root, or one under another.
#[derive(Clone)]
pub(crate) struct Authority {
    pub(crate) name: Vec<u8>,
    pub(crate) key: Arc<KeyPair>,
    pub(crate) der: Vec<u8>,
    /// This CA and those above it, the root left out.
    pub(crate) above: Vec<Vec<u8>>,
}

impl Authority {
    pub(crate) fn root(common: &str, edit: impl FnOnce(&mut Forge)) -> Authority {
        let key = Arc::new(new_key());
        let mut forge = Authority::ca_forge(&name(common), common, &key);
        edit(&mut forge);
        let (der, name) = (forge.sign(&key), forge.subject);
        Authority { name, key, der, above: Vec::new() }
    }

    pub(crate) fn intermediate(&self, common: &str, edit: impl FnOnce(&mut Forge)) -> Authority {
        self.intermediate_of(Arc::new(new_key()), common, edit)
    }

    /// One with that key.
    pub(crate) fn intermediate_of(
        &self,
        key: Arc<KeyPair>,
        common: &str,
        edit: impl FnOnce(&mut Forge),
    ) -> Authority {
        let mut forge = Authority::ca_forge(&self.name, common, &key);
        edit(&mut forge);
        let der = forge.sign(&self.key);
        let above = [vec![der.clone()], self.above.clone()].concat();
        Authority { name: forge.subject, key, der, above }
    }

    fn ca_forge(issuer: &[u8], common: &str, key: &KeyPair) -> Forge {
        Forge {
            version: vec![0xa0, 0x03, 0x02, 0x01, 0x02],
            serial: serial(),
            algorithms: [ECDSA_SHA256.to_vec(), ECDSA_SHA256.to_vec()],
            issuer: issuer.to_vec(),
            validity: validity(-400 * DAY, 400 * DAY),
            subject: name(common),
            spki: key.subject_public_key_info(),
            unique_ids: Vec::new(),
            extensions: vec![
                Ext::new(BASIC, true, basic(true, None)),
                Ext::new(KEY_USAGE, true, key_usage(CERT_SIGN | CRL_SIGN)),
            ],
            tail: Vec::new(),
            signature: |s| s,
        }
    }

    /// A leaf's chain: good for acme's agent unless `edit` spoils it.
    pub(crate) fn chain(&self, edit: impl FnOnce(&mut Forge)) -> Vec<Vec<u8>> {
        self.chain_of(&new_key(), edit)
    }

    /// One with that key.
    pub(crate) fn chain_of(&self, key: &KeyPair, edit: impl FnOnce(&mut Forge)) -> Vec<Vec<u8>> {
        let mut forge = Authority::ca_forge(&self.name, "leaf", key);
        forge.validity = validity(-HOUR, DAY);
        forge.extensions = vec![
            Ext::new(BASIC, true, basic(false, None)),
            Ext::new(KEY_USAGE, true, key_usage(DIGITAL_SIGNATURE)),
            Ext::new(EKU, false, eku(&[SERVER_AUTH, CLIENT_AUTH])),
            Ext::new(SAN, false, san(&[(URI, b"spiffe://acme.example/agent")])),
        ];
        edit(&mut forge);
        [vec![forge.sign(&self.key)], self.above.clone()].concat()
    }

    /// A revocation list of this CA, signed with `key`, good from two days ago until `until`.
    pub(crate) fn crl(&self, key: &KeyPair, until: i64, serials: &[Vec<u8>]) -> Vec<u8> {
        let revoked: Vec<u8> =
            serials.iter().flat_map(|serial| seq(&[&tlv(0x02, serial), &utc(-HOUR)])).collect();
        let revoked = if revoked.is_empty() { Vec::new() } else { tlv(0x30, &revoked) };
        let number = Ext::new(CRL_NUMBER, false, vec![0x02, 0x01, 0x01]).der();
        let authority = Ext::new(AUTHORITY_KEY, false, seq(&[&tlv(0x80, b"key")])).der();
        let extensions = tlv(0xa0, &tlv(0x30, &[authority, number].concat()));
        let tbs = seq(&[
            &[0x02, 0x01, 0x01],
            ECDSA_SHA256,
            &self.name,
            &utc(-2 * DAY),
            &utc(until),
            &revoked,
            &extensions,
        ]);
        seq(&[&tbs, ECDSA_SHA256, &bits(&key.sign(&tbs).unwrap())])
    }
}

/// The serial number of a certificate, as it stands.
pub(crate) fn serial_of(der: &[u8]) -> Vec<u8> {
    use x509_parser::prelude::FromDer;
    x509_parser::certificate::X509Certificate::from_der(der).unwrap().1.raw_serial().to_vec()
}

pub(crate) fn pem(label: &str, ders: &[Vec<u8>]) -> Vec<u8> {
    const LINE: usize = 64;
    let mut out = String::new();
    for der in ders {
        out += &format!("-----BEGIN {label}-----\n");
        let text = base64(der);
        for line in text.as_bytes().chunks(LINE) {
            out += std::str::from_utf8(line).unwrap();
            out.push('\n');
        }
        out += &format!("-----END {label}-----\n");
    }
    out.into_bytes()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let all = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
        let word = u32::from_be_bytes([0, all[0], all[1], all[2]]);
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// How long ago something is, for a clock.
pub(crate) fn wall(offset: i64) -> Duration {
    Duration::from_secs((now() + offset).unsigned_abs())
}
