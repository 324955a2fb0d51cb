//! SPIFFE bundles: the CAs of one trust domain as a JWK set with a sequence and a refresh hint, as
//! PEM, and as a map of several domains. *Hardened to untrusted peer.*
//!
//! Source: SPIFFE Trust Domain and Bundle, section 4. Read leniently (unknown members, entries of
//! unknown use or key type, a media type of any kind), written strictly. It fetches and stores
//! nothing; [`HeldBundle`] has the rules of succession. Invariants: a document belongs to the one
//! trust domain it was read for, its certificates pass the rules of [`TrustBundle`], and one bad
//! certificate refuses the whole document, because half a bundle looks like a removal.

mod held;
mod json;
mod key;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hamlet_core::TrustDomain;
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::bundle::{BundleError, TrustBundle};
use crate::inspect::plain;
use crate::trust::Fingerprint;

pub use held::{ADDITIONS_WAIT_MIN, BundleChange, BundleRefusal, Channel, HeldBundle, SEQUENCE_JUMP_MAX};
pub use json::{JSON_DEPTH_MAX, JSON_VALUES_MAX};
pub(crate) use key::members as jwk_members;

/// Largest bundle document, in bytes, in any of the formats.
pub const BUNDLE_BYTES_MAX: usize = 1024 * 1024;
/// Most entries in `keys` of a bundle, those for JWT-SVIDs included.
pub const BUNDLE_KEYS_MAX: usize = 256;
/// Most trust domains in a bundle map.
pub const MAP_DOMAINS_MAX: usize = 256;

/// `use` of a CA certificate for X.509-SVIDs (SPIFFE Trust Domain and Bundle, 4.2.2).
const USE_X509: &str = "x509-svid";
const SEQUENCE: &str = "spiffe_sequence";
const REFRESH_HINT: &str = "spiffe_refresh_hint";
const KEYS: &str = "keys";
const TRUST_DOMAINS: &str = "trust_domains";

/// Standard base64 as RFC 7517, 4.7 wants it; read with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a bundle says about X.509-SVIDs.
#[derive(Debug, Clone, PartialEq)]
pub enum Authorities {
    /// These CAs sign them.
    Certificates(TrustBundle),
    /// `keys` is empty: everything under this domain is revoked.
    Revoked,
    /// There are keys, but none for X.509: the domain has no X.509-SVIDs.
    NoX509,
}

impl Authorities {
    /// The CAs, if there are any.
    pub fn bundle(&self) -> Option<&TrustBundle> {
        match self {
            Authorities::Certificates(bundle) => Some(bundle),
            Authorities::Revoked | Authorities::NoX509 => None,
        }
    }

    /// SHA-256 of what it says; the order of the CAs doesn't count.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        match self {
            Authorities::Revoked => hash.update(b"revoked"),
            Authorities::NoX509 => hash.update(b"no-x509"),
            Authorities::Certificates(bundle) => {
                let mut each = bundle.fingerprints();
                each.sort_unstable();
                hash.update(b"certificates");
                each.iter().for_each(|one| hash.update(one));
            }
        }
        hash.finalize().into()
    }
}

/// One bundle document.
#[derive(Debug, Clone, PartialEq)]
pub struct SpiffeBundle {
    /// Whose CAs they are. Not in the document: whoever reads it has to know.
    pub domain: TrustDomain,
    /// `spiffe_sequence`: grows with the content. `None`: the newest is what was read last.
    pub sequence: Option<u64>,
    /// `spiffe_refresh_hint`: how often to look.
    pub refresh_hint: Option<Duration>,
    /// What it says.
    pub authorities: Authorities,
}

impl SpiffeBundle {
    /// A bundle that says no more than its CAs.
    pub fn of(bundle: TrustBundle) -> SpiffeBundle {
        SpiffeBundle {
            domain: bundle.trust_domain().clone(),
            sequence: None,
            refresh_hint: None,
            authorities: Authorities::Certificates(bundle),
        }
    }

    /// Reads any of the formats: PEM, a JWK set, or a bundle map with an entry for `domain`.
    pub fn from_bytes(domain: TrustDomain, bytes: &[u8]) -> Result<SpiffeBundle, BundleError> {
        SpiffeBundle::from_bytes_pinned(domain, bytes, &[])
    }

    /// The same for a peer that is known by fingerprint: in PEM a certificate with one of `pinned`
    /// may stand without being a CA ([`TrustBundle::from_pem_pinned`]). The other formats have CAs
    /// only.
    pub fn from_bytes_pinned(
        domain: TrustDomain,
        bytes: &[u8],
        pinned: &[Fingerprint],
    ) -> Result<SpiffeBundle, BundleError> {
        if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return TrustBundle::from_pem_pinned(domain, bytes, pinned).map(SpiffeBundle::of);
        }
        let document = object(bytes)?;
        if !document.contains_key(TRUST_DOMAINS) {
            return read_set(domain, &document);
        }
        let mut all = map_entries(&document)?;
        match all.remove(&domain) {
            Some(found) => read_set(domain, found),
            None => {
                let found: Vec<&str> = all.keys().map(TrustDomain::as_str).collect();
                let found = if found.is_empty() { "none".to_owned() } else { plain(&found.join(", ")) };
                Err(BundleError::NotInMap { expected: domain, found })
            }
        }
    }

    /// Reads a JWK set as the bundle of `domain`: what an endpoint answers.
    pub fn from_jwks(domain: TrustDomain, bytes: &[u8]) -> Result<SpiffeBundle, BundleError> {
        read_set(domain, &object(bytes)?)
    }

    /// Reads a bundle map: every domain once, every bundle good.
    pub fn from_map(bytes: &[u8]) -> Result<BTreeMap<TrustDomain, SpiffeBundle>, BundleError> {
        let document = object(bytes)?;
        let entries = map_entries(&document)?.into_iter();
        entries.map(|(domain, found)| Ok((domain.clone(), read_set(domain, found)?))).collect()
    }

    /// The document as SPIFFE has it, UTF-8 JSON of media type `application/json`.
    pub fn to_jwks(&self) -> Result<String, BundleError> {
        Ok(text(&self.set(true)?))
    }

    /// The CAs as PEM, each under a line with its subject. Sequence and hint have no place in it,
    /// and where nothing is trusted it is empty.
    pub fn to_pem(&self) -> String {
        let anchors = self.authorities.bundle().map(TrustBundle::anchors).unwrap_or_default();
        let mut pem = String::new();
        for anchor in anchors {
            pem += &format!("# {}\n-----BEGIN CERTIFICATE-----\n", anchor.subject);
            let body = BASE64.encode(&anchor.der);
            let mut rest = body.as_str();
            while !rest.is_empty() {
                let (line, after) = rest.split_at(rest.len().min(64));
                pem += line;
                pem.push('\n');
                rest = after;
            }
            pem += "-----END CERTIFICATE-----\n";
        }
        pem
    }

    /// Several bundles as one map. It has no refresh hints: a map is not an endpoint's answer.
    pub fn to_map<'a>(bundles: impl IntoIterator<Item = &'a SpiffeBundle>) -> Result<String, BundleError> {
        let mut domains = Map::new();
        for bundle in bundles {
            let domain = bundle.domain.as_str().to_owned();
            if domains.insert(domain, bundle.set(false)?).is_some() {
                return Err(BundleError::MapDomain(format!("{} stands twice", bundle.domain)));
            }
        }
        Ok(text(&json!({ TRUST_DOMAINS: domains })))
    }

    fn set(&self, hint: bool) -> Result<Value, BundleError> {
        if self.authorities == Authorities::NoX509 {
            // Its keys of other use aren't kept, and a set without keys means something else.
            return Err(BundleError::NothingToWrite);
        }
        let mut set = Map::new();
        if let Some(sequence) = self.sequence {
            set.insert(SEQUENCE.to_owned(), sequence.into());
        }
        if let Some(every) = self.refresh_hint.filter(|_| hint) {
            set.insert(REFRESH_HINT.to_owned(), every.as_secs().into());
        }
        let anchors = self.authorities.bundle().map(TrustBundle::anchors).unwrap_or_default();
        let mut keys = Vec::new();
        for (index, anchor) in anchors.iter().enumerate() {
            let members = key::members(&anchor.der).map_err(|reason| BundleError::NoJwk {
                at: index + 1,
                subject: anchor.subject.clone(),
                reason,
            })?;
            let mut members = members.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value)));
            let mut entry: Map<String, Value> = members.by_ref().take(1).collect();
            entry.insert("use".to_owned(), USE_X509.into());
            entry.extend(members);
            entry.insert("x5c".to_owned(), json!([BASE64.encode(&anchor.der)]));
            keys.push(Value::from(entry));
        }
        set.insert(KEYS.to_owned(), keys.into());
        Ok(set.into())
    }
}

fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, BundleError> {
    if bytes.len() > BUNDLE_BYTES_MAX {
        return Err(BundleError::TooLarge(bytes.len()));
    }
    match json::read(bytes).map_err(|e| BundleError::Json(plain(&e)))? {
        Value::Object(document) => Ok(document),
        _ => Err(BundleError::Json("it is no JSON object".to_owned())),
    }
}

/// The domains of a map and their sets. A domain that stands twice, also once in the form of an
/// id, is refused: which of the two counts would be anybody's guess.
fn map_entries(
    document: &Map<String, Value>,
) -> Result<BTreeMap<TrustDomain, &Map<String, Value>>, BundleError> {
    let Some(Value::Object(domains)) = document.get(TRUST_DOMAINS) else {
        return Err(BundleError::Json(format!("`{TRUST_DOMAINS}` is no JSON object")));
    };
    if domains.len() > MAP_DOMAINS_MAX {
        return Err(BundleError::MapDomain(format!("there are more than {MAP_DOMAINS_MAX}")));
    }
    let mut entries = BTreeMap::new();
    for (name, set) in domains {
        let bare = name.strip_prefix("spiffe://").unwrap_or(name);
        let bare = bare.strip_suffix('/').unwrap_or(bare);
        let domain = TrustDomain::parse(bare)
            .map_err(|e| BundleError::MapDomain(format!("{} is no trust domain: {e}", plain(name))))?;
        let Value::Object(set) = set else {
            return Err(BundleError::Json(format!("the bundle of {domain} is no JSON object")));
        };
        if entries.insert(domain.clone(), set).is_some() {
            return Err(BundleError::MapDomain(format!("{domain} stands twice")));
        }
    }
    Ok(entries)
}

fn read_set(domain: TrustDomain, set: &Map<String, Value>) -> Result<SpiffeBundle, BundleError> {
    let whole = |name: &str| match set.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(BundleError::Json(format!("`{name}` is no whole number from 0 to 2^64-1"))),
        },
    };
    let (sequence, hint) = (whole(SEQUENCE)?, whole(REFRESH_HINT)?);
    let keys = match set.get(KEYS) {
        Some(Value::Array(keys)) => keys,
        Some(_) => return Err(BundleError::Json(format!("`{KEYS}` is no list"))),
        None => return Err(BundleError::Json(format!("`{KEYS}` is missing, so it is no bundle"))),
    };
    if keys.len() > BUNDLE_KEYS_MAX {
        return Err(BundleError::Json(format!("`{KEYS}` has more than {BUNDLE_KEYS_MAX} entries")));
    }
    let mut ders = Vec::new();
    for (index, entry) in keys.iter().enumerate() {
        let bad = |reason: String| BundleError::Entry { at: index + 1, reason };
        let Value::Object(entry) = entry else { return Err(bad("it is no JSON object".to_owned())) };
        ders.extend(certificate(entry).map_err(bad)?);
    }
    let authorities = match (keys.is_empty(), ders.is_empty()) {
        (true, _) => Authorities::Revoked,
        (false, true) => Authorities::NoX509,
        (false, false) => Authorities::Certificates(TrustBundle::from_ders(domain.clone(), ders)?),
    };
    // Of a hint without meaning nothing is kept, so that nobody polls without a pause.
    let refresh_hint = hint.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    Ok(SpiffeBundle { domain, sequence, refresh_hint, authorities })
}

/// The certificate of an entry that is for X.509-SVIDs; `None` for entries of other use or kind.
fn certificate(entry: &Map<String, Value>) -> Result<Option<CertificateDer<'static>>, String> {
    let is = |name: &str, known: &[&str]| {
        entry.get(name).and_then(Value::as_str).is_some_and(|v| known.contains(&v))
    };
    if !is("use", &[USE_X509]) || !is("kty", &key::KEY_TYPES) {
        return Ok(None);
    }
    // Only the first counts (4.2.2): what follows is no chain that we would walk.
    let first = match entry.get("x5c") {
        Some(Value::Array(list)) => list.first().and_then(Value::as_str),
        _ => None,
    };
    let Some(first) = first else { return Err("it has no certificate in `x5c`".to_owned()) };
    let packed: Vec<u8> = first.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let der = BASE64.decode(packed).map_err(|_| "its `x5c` is no standard base64".to_owned())?;
    if !key::agrees(entry, &der) {
        return Err("its key is not that of its certificate".to_owned());
    }
    Ok(Some(der.into()))
}
