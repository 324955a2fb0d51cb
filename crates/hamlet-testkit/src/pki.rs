//! A test CA of one trust domain: good agents and gateways in one call, and leaves that are wrong
//! in every way a [`LeafSpec`] can say.
//!
//! It checks nothing: that is the business of what is tested. Everything panics on failure.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::{PeerName, SpiffeId, TrustDomain};
use hamlet_identity::{LocalIdentity, PeerTrust, TrustBundle, TrustTable};
use hamlet_runtime::{Clock, SystemClock};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList, CertificateRevocationListParams,
    CustomExtension, DistinguishedName, DnType, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair,
    NameConstraints, PublicKeyData, RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm,
};
pub use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;

/// One hour in seconds.
pub const HOUR: i64 = 3600;
/// One day in seconds.
pub const DAY: i64 = 24 * HOUR;

/// Kinds of keys, allowed and not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA P-256.
    P256,
    /// ECDSA P-384.
    P384,
    /// ECDSA P-521: not allowed.
    P521,
    /// Ed25519.
    Ed25519,
    /// RSA of 2048 bits.
    Rsa2048,
    /// RSA of 1024 bits: not allowed. Only a public key, so it can't do a handshake.
    Rsa1024,
}

/// A leaf to issue. Start from [`LeafSpec::of`] and change what should be wrong.
#[derive(Debug, Clone)]
pub struct LeafSpec {
    /// URI SANs in order.
    pub uris: Vec<String>,
    /// DNS SANs in order.
    pub dns: Vec<String>,
    /// Begin of validity, in seconds from the CA's now.
    pub not_before: i64,
    /// End of validity, in seconds from the CA's now.
    pub not_after: i64,
    /// Extended key usage; empty leaves the extension out.
    pub purposes: Vec<ExtendedKeyUsagePurpose>,
    /// Key usage; empty leaves the extension out.
    pub key_usages: Vec<KeyUsagePurpose>,
    /// Whether basic constraints say cA=true.
    pub ca: bool,
    /// The leaf's key.
    pub key: KeyKind,
    /// Further extensions: object identifier and DER content.
    pub extensions: Vec<(Vec<u64>, Vec<u8>)>,
}

impl LeafSpec {
    /// A good leaf with that URI SAN, valid from an hour ago for a day.
    pub fn of(id: impl Into<String>) -> LeafSpec {
        LeafSpec {
            uris: vec![id.into()],
            dns: Vec::new(),
            not_before: -HOUR,
            not_after: DAY,
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            key_usages: vec![KeyUsagePurpose::DigitalSignature],
            ca: false,
            key: KeyKind::P256,
            extensions: Vec::new(),
        }
    }
}

/// A CA to make. Start from `CaSpec::default()` and change what should be wrong.
#[derive(Debug, Clone)]
pub struct CaSpec {
    /// Whether basic constraints say cA=true.
    pub ca: bool,
    /// Key usage; empty leaves the extension out.
    pub key_usages: Vec<KeyUsagePurpose>,
    /// Permitted DNS subtree, as name constraints.
    pub permitted_dns: Option<String>,
    /// Permitted URI host, as name constraints (not together with `permitted_dns`).
    pub permitted_uri: Option<String>,
    /// URI SANs.
    pub uris: Vec<String>,
    /// End of validity, in seconds from now.
    pub not_after: i64,
    /// Its key.
    pub key: KeyKind,
}

impl Default for CaSpec {
    fn default() -> CaSpec {
        CaSpec {
            ca: true,
            key_usages: vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign],
            permitted_dns: None,
            permitted_uri: None,
            uris: Vec::new(),
            not_after: 3650 * DAY,
            key: KeyKind::P256,
        }
    }
}

/// A CA of one trust domain; a root, or an intermediate under one.
pub struct TestCa {
    domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    /// This CA and the ones above it, the root left out.
    above: Vec<CertificateDer<'static>>,
    above_pem: String,
    root: CertificateDer<'static>,
    root_pem: String,
    now: Duration,
}

/// A leaf with its key and chain.
#[derive(Debug)]
pub struct TestLeaf {
    /// Leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The chain in PEM.
    pub cert_pem: String,
    /// PKCS#8 in PEM; empty for a key that is only public.
    pub key_pem: String,
    key: Option<PrivateKeyDer<'static>>,
}

impl TestCa {
    /// A good root for `domain`, as of the system's clock.
    pub fn new(domain: &str) -> TestCa {
        TestCa::with(domain, CaSpec::default())
    }

    /// A root as `spec` says.
    pub fn with(domain: &str, spec: CaSpec) -> TestCa {
        let domain = TrustDomain::parse(domain).expect("a trust domain");
        let now = SystemClock::new().wall();
        let (params, key) = (ca_params(&domain, &spec, now), key_pair(spec.key));
        let cert = params.self_signed(&key).expect("a root");
        let (root, root_pem) = (cert.der().clone(), cert.pem());
        let (issuer, above, above_pem) = (Issuer::new(params, key), Vec::new(), String::new());
        TestCa { domain, issuer, above, above_pem, root, root_pem, now }
    }

    /// An intermediate of this CA as `spec` says.
    pub fn intermediate(&self, spec: CaSpec) -> TestCa {
        let (mut params, key) = (ca_params(&self.domain, &spec, self.now), key_pair(spec.key));
        let name = format!("test intermediate {}", self.above.len() + 1);
        params.distinguished_name.push(DnType::CommonName, name);
        let cert = params.signed_by(&key, &self.issuer).expect("an intermediate");
        let mut above = vec![cert.der().clone()];
        above.extend(self.above.iter().cloned());
        TestCa {
            domain: self.domain.clone(),
            issuer: Issuer::new(params, key),
            above,
            above_pem: cert.pem() + &self.above_pem,
            root: self.root.clone(),
            root_pem: self.root_pem.clone(),
            now: self.now,
        }
    }

    /// The moment (since the epoch) that validities are counted from.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The root in PEM: what a peer loads as bundle.
    pub fn pem(&self) -> &str {
        &self.root_pem
    }

    /// The root.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The bundle of its trust domain.
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.bundle_for(self.domain.as_str())
    }

    /// The bundle as somebody would load it for another trust domain.
    pub fn bundle_for(&self, domain: &str) -> Arc<TrustBundle> {
        let domain = TrustDomain::parse(domain).expect("a trust domain");
        Arc::new(TrustBundle::from_pem(domain, self.root_pem.as_bytes()).expect("a bundle"))
    }

    /// The id `spiffe://<trust domain>/<path>`.
    pub fn id(&self, path: &str) -> SpiffeId {
        self.domain.id(path).expect("an id")
    }

    /// `spiffe://<trust domain>/agent`.
    pub fn agent_id(&self) -> SpiffeId {
        self.id("agent")
    }

    /// `spiffe://<trust domain>/gateway`.
    pub fn gateway_id(&self) -> SpiffeId {
        self.id("gateway")
    }

    /// What another mesh configures to believe this one as `peer`: agent and gateway ids.
    pub fn trust_as(&self, peer: &str) -> PeerTrust {
        let peer = PeerName::parse(peer).expect("a peer name");
        PeerTrust::new(peer, self.bundle(), vec![self.agent_id()], vec![self.gateway_id()])
    }

    /// A revocation list of this CA in PEM, good for `seconds` from now (negative: outdated since).
    pub fn crl(&self, revoked: &[&TestLeaf], seconds: i64) -> String {
        self.list(revoked, seconds.min(0) - DAY, seconds).pem().expect("PEM")
    }

    /// The same in DER, made at `from` and good until `until`, in seconds from now.
    pub fn crl_der(&self, revoked: &[&TestLeaf], from: i64, until: i64) -> Vec<u8> {
        self.list(revoked, from, until).der().to_vec()
    }

    fn list(&self, revoked: &[&TestLeaf], from: i64, until: i64) -> CertificateRevocationList {
        let at = |offset: i64| {
            let seconds = i64::try_from(self.now.as_secs()).expect("a time of today") + offset;
            OffsetDateTime::from_unix_timestamp(seconds).expect("a time that can be written")
        };
        let entry = |leaf: &&TestLeaf| RevokedCertParams {
            serial_number: SerialNumber::from(serial_of(&leaf.chain[0])),
            revocation_time: at(-HOUR),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: at(from),
            next_update: at(until),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("a list")
    }

    /// A good leaf for the agent.
    pub fn agent(&self) -> TestLeaf {
        self.leaf(LeafSpec::of(self.agent_id().as_str()))
    }

    /// A good leaf for the gateway.
    pub fn gateway(&self) -> TestLeaf {
        self.leaf(LeafSpec::of(self.gateway_id().as_str()))
    }

    /// A leaf as `spec` says, with the intermediates above it.
    pub fn leaf(&self, spec: LeafSpec) -> TestLeaf {
        let mut params = params(self.now, spec.not_before, spec.not_after);
        params.distinguished_name = name("test leaf", &self.domain);
        params.subject_alt_names = spec.uris.iter().map(|uri| uri_san(uri)).collect();
        let dns = |dns: &String| SanType::DnsName(dns.as_str().try_into().expect("a DNS name"));
        params.subject_alt_names.extend(spec.dns.iter().map(dns));
        params.is_ca = if spec.ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        params.key_usages = spec.key_usages;
        params.extended_key_usages = spec.purposes;
        let extension =
            |(oid, content): (Vec<u64>, Vec<u8>)| CustomExtension::from_oid_content(&oid, content);
        params.custom_extensions = spec.extensions.into_iter().map(extension).collect();
        params.use_authority_key_identifier_extension = true;
        let (cert, key) = if spec.key == KeyKind::Rsa1024 {
            (params.signed_by(&WeakRsa::new(), &self.issuer).expect("a leaf"), None)
        } else {
            let key = key_pair(spec.key);
            (params.signed_by(&key, &self.issuer).expect("a leaf"), Some(key))
        };
        let mut chain = vec![cert.der().clone()];
        chain.extend(self.above.iter().cloned());
        TestLeaf {
            cert_pem: cert.pem() + &self.above_pem,
            chain,
            key_pem: key.as_ref().map(KeyPair::serialize_pem).unwrap_or_default(),
            key: key.map(PrivateKeyDer::from),
        }
    }
}

impl TestLeaf {
    /// Its private key. Panics for a key that is only public.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.as_ref().expect("a private key").clone_key()
    }

    /// Reads what [`write`](Self::write) wrote.
    pub fn read(folder: &Path, stem: &str) -> TestLeaf {
        let text = |end: &str| std::fs::read_to_string(folder.join(format!("{stem}.{end}")));
        let (cert_pem, key_pem) = (text("pem").expect("a certificate"), text("key").expect("a key"));
        let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates in PEM");
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).expect("a key in PEM");
        TestLeaf { chain, cert_pem, key_pem, key: Some(key) }
    }

    /// The same certificate with the key of `other`: a stolen certificate. Only for handshakes.
    pub fn with_key_of(mut self, other: &TestLeaf) -> TestLeaf {
        self.key = Some(other.key());
        self
    }

    /// As the identity of an agent or gateway. Panics if it isn't good enough for one.
    pub fn identity(&self) -> Arc<LocalIdentity> {
        LocalIdentity::from_pem(self.cert_pem.as_bytes(), self.key_pem.as_bytes(), SystemClock::shared())
            .expect("an identity")
    }

    /// Writes `<stem>.pem` and `<stem>.key` (0600) into `folder`, over what is there.
    pub fn write(&self, folder: &Path, stem: &str) -> (PathBuf, PathBuf) {
        let (cert, key) = (folder.join(format!("{stem}.pem")), folder.join(format!("{stem}.key")));
        std::fs::write(&cert, &self.cert_pem).expect("write the certificate");
        write_key(&key, &self.key_pem);
        (cert, key)
    }
}

/// The content of a certificate's serial number.
fn serial_of(der: &CertificateDer<'_>) -> Vec<u8> {
    // Certificate and TBSCertificate have lengths of two bytes; the version is five bytes long.
    const SERIAL_AT: usize = 4 + 4 + 5;
    let length = usize::from(der[SERIAL_AT + 1]);
    der[SERIAL_AT + 2..SERIAL_AT + 2 + length].to_vec()
}

/// A table of the system's clock that believes `peers`.
pub fn trust_table(peers: Vec<PeerTrust>) -> Arc<TrustTable> {
    let table = TrustTable::new(SystemClock::shared());
    table.replace(peers).expect("peers that can be believed together");
    table
}

/// Writes a private key with mode 0600, over what is there.
pub fn write_key(path: &Path, pem: &str) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.expect("open the key file").write_all(pem.as_bytes()).expect("write the key");
}

/// The DER content of a subject alternative name extension with one URI.
pub fn san_content(uri: &str) -> Vec<u8> {
    tagged(0x30, &tagged(0x86, uri.as_bytes()))
}

/// One DER element with a short content.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).ok().filter(|n| *n < 0x80).expect("a short content");
    let mut der = vec![tag, length];
    der.extend_from_slice(content);
    der
}

/// Object identifier of the subject alternative name extension.
pub const SAN_OID: [u64; 4] = [2, 5, 29, 17];
const NAME_CONSTRAINTS_OID: [u64; 4] = [2, 5, 29, 30];

fn ca_params(domain: &TrustDomain, spec: &CaSpec, now: Duration) -> CertificateParams {
    let mut params = params(now, spec.not_after.min(0) - DAY, spec.not_after);
    params.distinguished_name = name("test root", domain);
    params.subject_alt_names = spec.uris.iter().map(|uri| uri_san(uri)).collect();
    params.is_ca = if spec.ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
    params.key_usages = spec.key_usages.clone();
    params.name_constraints = spec.permitted_dns.as_ref().map(|dns| NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(dns.clone())],
        excluded_subtrees: Vec::new(),
    });
    if let Some(host) = &spec.permitted_uri {
        let mut content = tagged(0x86, host.as_bytes());
        for tag in [0x30, 0xa0, 0x30] {
            content = tagged(tag, &content);
        }
        let mut extension = CustomExtension::from_oid_content(&NAME_CONSTRAINTS_OID, content);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
    }
    params
}

fn params(now: Duration, not_before: i64, not_after: i64) -> CertificateParams {
    let at = |offset: i64| {
        let seconds = i64::try_from(now.as_secs()).expect("a time of today") + offset;
        OffsetDateTime::from_unix_timestamp(seconds).expect("a time that can be written")
    };
    let mut params = CertificateParams::default();
    params.not_before = at(not_before);
    params.not_after = at(not_after);
    params
}

fn name(common: &str, domain: &TrustDomain) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, domain.as_str());
    name.push(DnType::CommonName, common);
    name
}

fn uri_san(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("an ASCII URI"))
}

fn key_pair(kind: KeyKind) -> KeyPair {
    let algorithm: &'static SignatureAlgorithm = match kind {
        KeyKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyKind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        KeyKind::P521 => &rcgen::PKCS_ECDSA_P521_SHA512,
        KeyKind::Ed25519 => &rcgen::PKCS_ED25519,
        KeyKind::Rsa2048 | KeyKind::Rsa1024 => &rcgen::PKCS_RSA_SHA256,
    };
    KeyPair::generate_for(algorithm).expect("a key")
}

/// The public half of an RSA key of 1024 bits that nobody has: rcgen makes no such keys.
struct WeakRsa(Vec<u8>);

impl WeakRsa {
    fn new() -> WeakRsa {
        let mut der = vec![0x30, 0x81, 0x89, 0x02, 0x81, 0x81, 0x00];
        der.extend_from_slice(&[0xc3; 128]);
        der.extend_from_slice(&[0x02, 0x03, 0x01, 0x00, 0x01]);
        WeakRsa(der)
    }
}

impl PublicKeyData for WeakRsa {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}
