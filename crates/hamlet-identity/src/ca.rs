//! The local CA: issues this mesh's agent and gateway certificates. ECDSA P-256.
//!
//! For meshes without a PKI of their own; it signs for one trust domain only and keeps no list of
//! what it issued (rotation is in [`crate::authority`]). Invariant: every leaf has exactly one
//! URI SAN, an id of this CA's trust domain, and never outlives the CA.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::{Fqdn, SpiffeId, TrustDomain};
use hamlet_runtime::Clock;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use crate::files::{FileError, private_folder, read_key, read_public, refuse_existing, write_new};
use crate::inspect::{Inspected, inspect};
use crate::refused::time_text;
use crate::tls::provider;
use crate::verify::NOT_BEFORE_SKEW;

/// File name of the CA certificate: the trust bundle to give to peers.
pub const CA_CERT_FILE: &str = "ca.pem";
/// File name of the CA's private key.
pub const CA_KEY_FILE: &str = "ca.key";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Default lifetime of the CA.
pub const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * DAY.as_secs());
/// Default lifetime of agent and gateway leaves.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(365 * DAY.as_secs());
/// Lifetime of leaves that the ingress mints for an SNI.
pub const SNI_LIFETIME: Duration = DAY;
/// Most DNS SANs in one leaf.
pub const DNS_NAMES_MAX: usize = 64;
/// Validity begins this long before now, for peers whose clock is behind.
pub(crate) const BACKDATED: Duration = NOT_BEFORE_SKEW;
/// Longest common or organisation name (RFC 5280, ub-common-name).
const NAME_PART_MAX: usize = 64;

/// Why the CA could not be made, opened or used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CaError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is not a CA certificate we can use: {reason}; use the ca.pem that was made with the key", .path.display())]
    Certificate { path: PathBuf, reason: String },
    #[error("{} is not the CA's private key: {reason}; use the ca.key that was made with the certificate", .path.display())]
    Key { path: PathBuf, reason: String },
    #[error("{id} is not in {domain}, the trust domain of this CA; use an id of {domain}")]
    ForeignId { id: SpiffeId, domain: TrustDomain },
    #[error("{0} DNS names are more than {DNS_NAMES_MAX}; name fewer hosts")]
    TooManyNames(usize),
    #[error("the name {0} has '_' and can't be a host name in a certificate; use letters, digits and '-'")]
    NotHostName(Fqdn),
    #[error("the CA expired at {}; make a new one and give its ca.pem to the peers", time_text(.0))]
    Expired(Duration),
    #[error(
        "the time {0:?} can't be written in a certificate; choose a shorter lifetime and check the clock"
    )]
    Time(Duration),
    #[error("there is no CA to sign with; `hamlet ca status` says why")]
    Absent,
    #[error("the cryptography library failed: {0}; this is a fault of the installation")]
    Crypto(String),
}

impl From<rcgen::Error> for CaError {
    fn from(error: rcgen::Error) -> CaError {
        CaError::Crypto(error.to_string())
    }
}

/// A certificate chain and its private key in PEM. Prints nothing of the key.
#[derive(Clone)]
pub struct PemPair {
    /// Leaf first, then intermediates if the CA is one.
    pub cert: String,
    /// PKCS#8.
    pub key: String,
}

impl fmt::Debug for PemPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemPair").field("cert", &self.cert).finish_non_exhaustive()
    }
}

impl PemPair {
    /// Writes `<stem>.pem` (0644) and `<stem>.key` (0600) into `folder`. Never overwrites.
    pub fn write(&self, folder: &Path, stem: &str) -> Result<(PathBuf, PathBuf), FileError> {
        let cert = folder.join(format!("{stem}.pem"));
        let key = folder.join(format!("{stem}.key"));
        refuse_existing(&cert)?;
        write_new(&key, self.key.as_bytes(), 0o600)?;
        write_new(&cert, self.cert.as_bytes(), 0o644)?;
        Ok((cert, key))
    }
}

/// A CA of one trust domain, with its key in memory.
pub struct LocalCa {
    domain: TrustDomain,
    pem: String,
    /// Sent after each leaf: empty when the CA is a root.
    above: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
    not_after: Duration,
    /// Longest life of a leaf.
    leaf_life: Duration,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for LocalCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCa").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl LocalCa {
    /// Makes a new CA and writes it to `folder` (made with mode 0700 if absent) as `ca.pem` and
    /// `ca.key` (0600). Fails if either exists. `lifetime` is usually [`CA_LIFETIME`].
    pub fn create(
        folder: &Path,
        domain: &TrustDomain,
        lifetime: Duration,
        clock: Arc<dyn Clock>,
    ) -> Result<LocalCa, CaError> {
        let (cert_path, key_path) = (folder.join(CA_CERT_FILE), folder.join(CA_KEY_FILE));
        refuse_existing(&cert_path)?;
        refuse_existing(&key_path)?;
        let (from, until) = (clock.wall().saturating_sub(BACKDATED), clock.wall() + lifetime);
        let mut params = params(from, until)?;
        params.distinguished_name = subject("Hamlet CA", domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))?];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        private_folder(folder)?;
        write_new(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        write_new(&cert_path, pem.as_bytes(), 0o644)?;
        let (domain, above, issuer) = (domain.clone(), Vec::new(), Issuer::new(params, key));
        Ok(LocalCa { domain, pem, above, issuer, not_after: until, leaf_life: Duration::MAX, clock })
    }

    /// Opens the CA that [`Self::create`] wrote to `folder`; its trust domain is in its
    /// certificate.
    pub fn open(folder: &Path, clock: Arc<dyn Clock>) -> Result<LocalCa, CaError> {
        LocalCa::open_files(&folder.join(CA_CERT_FILE), &folder.join(CA_KEY_FILE), None, clock)
    }

    /// Opens a CA from its two files. `domain` is needed where the certificate doesn't say its
    /// trust domain, and must agree where it does.
    pub fn open_files(
        cert: &Path,
        key: &Path,
        domain: Option<&TrustDomain>,
        clock: Arc<dyn Clock>,
    ) -> Result<LocalCa, CaError> {
        let (pem, text) = (read_public(cert)?, read_key(key)?);
        LocalCa::read(&pem, &text, (cert, key), domain, clock)
    }

    /// The same from what the files hold; `names` are for messages.
    pub(crate) fn read(
        pem: &[u8],
        text: &[u8],
        names: (&Path, &Path),
        domain: Option<&TrustDomain>,
        clock: Arc<dyn Clock>,
    ) -> Result<LocalCa, CaError> {
        let (cert, key) = names;
        let bad = |reason: String| CaError::Certificate { path: cert.to_owned(), reason };
        let bad_key = |reason: &str| CaError::Key { path: key.to_owned(), reason: reason.to_owned() };
        let mut ders: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|e| bad(format!("it can't be read as PEM: {e}")))?;
        let first = ders.first().ok_or_else(|| bad("it has no certificate".to_owned()))?.clone();
        let read = inspect(&first).map_err(bad)?;
        let domain = signing_domain(&read, domain).map_err(bad)?;
        // The parser's error is not shown: it could quote what it read.
        let private = rustls_pki_types::PrivateKeyDer::from_pem_slice(text)
            .map_err(|_| bad_key("it has no private key in PEM"))?;
        let pair = KeyPair::try_from(&private).map_err(|_| bad_key("the kind of key is not supported"))?;
        let public = x509_spki(&first).ok_or_else(|| bad("its public key can't be read".to_owned()))?;
        if rcgen::PublicKeyData::subject_public_key_info(&pair) != public {
            return Err(bad_key("it does not belong to the certificate"));
        }
        let issuer = Issuer::from_ca_cert_der(&first, pair)?;
        if read.self_issued {
            ders.clear();
        }
        let pem = String::from_utf8_lossy(pem).into_owned();
        let (above, not_after, leaf_life) = (ders, read.not_after, Duration::MAX);
        Ok(LocalCa { domain, pem, above, issuer, not_after, leaf_life, clock })
    }

    /// Signs no leaf that lives longer.
    pub(crate) fn with_leaf_life(self, leaf_life: Duration) -> LocalCa {
        LocalCa { leaf_life, ..self }
    }

    /// Whether it signs what the other signs, with the same chain.
    pub(crate) fn is_same(&self, other: &LocalCa) -> bool {
        self.pem == other.pem && self.leaf_life == other.leaf_life
    }

    /// Longest life of the leaves it mints for an SNI.
    pub(crate) fn sni_life(&self) -> Duration {
        SNI_LIFETIME.min(self.leaf_life)
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The certificate in PEM: the bundle that peers need.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// End of the CA's validity, since the epoch.
    pub fn not_after(&self) -> Duration {
        self.not_after
    }

    /// A new key and leaf for an agent. `dns_names` are the host names peers dial.
    pub fn issue_agent(
        &self,
        id: &SpiffeId,
        dns_names: &[Fqdn],
        lifetime: Duration,
    ) -> Result<PemPair, CaError> {
        self.issue("Hamlet agent", id, dns_names, lifetime)
    }

    /// A new key and leaf for a gateway.
    pub fn issue_gateway(
        &self,
        id: &SpiffeId,
        dns_names: &[Fqdn],
        lifetime: Duration,
    ) -> Result<PemPair, CaError> {
        self.issue("Hamlet gateway", id, dns_names, lifetime)
    }

    fn issue(
        &self,
        name: &str,
        id: &SpiffeId,
        dns_names: &[Fqdn],
        lifetime: Duration,
    ) -> Result<PemPair, CaError> {
        let key = KeyPair::generate()?;
        let leaf = self.sign(name, id, dns_names, lifetime, &key)?;
        let mut cert = leaf.pem();
        if !self.above.is_empty() {
            cert.push_str(&self.pem);
        }
        Ok(PemPair { cert, key: key.serialize_pem() })
    }

    /// A leaf for a gateway's `id` with `sni` as its only DNS SAN, for a key that the caller
    /// keeps. Returns the chain, and when it ends (since the epoch).
    pub(crate) fn issue_for_sni(
        &self,
        id: &SpiffeId,
        sni: &Fqdn,
        key: &KeyPair,
    ) -> Result<(Vec<CertificateDer<'static>>, Duration), CaError> {
        let life = self.sni_life();
        let until = self.until(life)?;
        let leaf = self.sign("Hamlet gateway", id, std::slice::from_ref(sni), life, key)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.above.iter().cloned());
        Ok((chain, until))
    }

    fn sign(
        &self,
        name: &str,
        id: &SpiffeId,
        dns_names: &[Fqdn],
        lifetime: Duration,
        key: &KeyPair,
    ) -> Result<rcgen::Certificate, CaError> {
        if *id.trust_domain() != self.domain {
            return Err(CaError::ForeignId { id: id.clone(), domain: self.domain.clone() });
        }
        if dns_names.len() > DNS_NAMES_MAX {
            return Err(CaError::TooManyNames(dns_names.len()));
        }
        let mut params = params(self.clock.wall().saturating_sub(BACKDATED), self.until(lifetime)?)?;
        params.distinguished_name = subject(name, &self.domain);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![uri(id.as_str())?];
        for dns in dns_names {
            if !dns.is_host_name() {
                return Err(CaError::NotHostName(dns.clone()));
            }
            let text = dns.as_str().try_into().map_err(|_| CaError::NotHostName(dns.clone()))?;
            params.subject_alt_names.push(SanType::DnsName(text));
        }
        Ok(params.signed_by(key, &self.issuer)?)
    }

    /// The end of a validity that starts now: no leaf outlives its CA.
    fn until(&self, lifetime: Duration) -> Result<Duration, CaError> {
        let now = self.clock.wall();
        if self.not_after <= now {
            return Err(CaError::Expired(self.not_after));
        }
        let lifetime = lifetime.min(self.leaf_life);
        // Whole seconds, as the certificate says it.
        Ok(Duration::from_secs((now + lifetime).min(self.not_after).as_secs()))
    }
}

/// The PEM of a key made for [`LocalCa::issue_for_sni`], in the form rustls loads.
pub(crate) fn signing_key(key: &KeyPair) -> Result<Arc<dyn rustls::sign::SigningKey>, CaError> {
    let der = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    provider().key_provider.load_private_key(der).map_err(|e| CaError::Crypto(e.to_string()))
}

pub(crate) fn params(from: Duration, until: Duration) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.not_before = date(from)?;
    params.not_after = date(until)?;
    let mut serial = [0u8; 16];
    provider().secure_random.fill(&mut serial).map_err(|e| CaError::Crypto(format!("{e:?}")))?;
    serial[0] = (serial[0] & 0x7f) | 0x40; // positive, and of full length (RFC 5280, 4.1.2.2)
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

/// Whole seconds; a certificate can't say more, and years beyond 9999 don't exist there.
fn date(at: Duration) -> Result<OffsetDateTime, CaError> {
    let seconds = i64::try_from(at.as_secs()).map_err(|_| CaError::Time(at))?;
    let date = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| CaError::Time(at))?;
    if date.year() > 9999 { Err(CaError::Time(at)) } else { Ok(date) }
}

pub(crate) fn subject(name: &str, domain: &TrustDomain) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    let organisation: String = domain.as_str().chars().take(NAME_PART_MAX).collect();
    subject.push(DnType::OrganizationName, organisation);
    subject.push(DnType::CommonName, name);
    subject
}

pub(crate) fn uri(text: &str) -> Result<SanType, CaError> {
    Ok(SanType::URI(text.try_into()?))
}

fn x509_spki(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let cert = webpki::EndEntityCert::try_from(der).ok()?;
    Some(cert.subject_public_key_info().as_ref().to_vec())
}

/// The trust domain that a CA certificate signs for, or why it can't sign.
fn signing_domain(read: &Inspected, given: Option<&TrustDomain>) -> Result<TrustDomain, String> {
    if !read.is_ca {
        return Err("it has no cA=true in its basic constraints".to_owned());
    }
    if read.key_usage.is_some_and(|usage| !usage.key_cert_sign) {
        return Err("its key usage lacks keyCertSign".to_owned());
    }
    if read.constrains_uris {
        return Err("it has name constraints for URIs, which verifiers of peers don't support".to_owned());
    }
    if let Some(key) = &read.bad_key {
        return Err(format!("it has {key}"));
    }
    let said = match read.uris.as_slice() {
        [] => None,
        [uri] => Some(TrustDomain::parse(uri).map_err(|e| format!("its URI name is no trust domain: {e}"))?),
        _ => return Err("it has several URI names".to_owned()),
    };
    match (said, given) {
        (Some(said), Some(given)) if said != *given => Err(format!("it is the CA of {said}, not of {given}")),
        (Some(said), _) => Ok(said),
        (None, Some(given)) => Ok(given.clone()),
        (None, None) => Err("it doesn't say its trust domain".to_owned()),
    }
}
