//! Revocation lists that came over the Workload API. *Hardened to the local platform, and to whoever
//! signs lists.*
//!
//! A file of lists belongs to one peer; these come for all trust domains at once, and two CAs may
//! bear one name (SPIRE's do by default). So a list counts for the CA whose key signed it, and for
//! no other, whatever name it has. What the file's lists get from the path library is done here for
//! that reason, on each way that the library found ([`crate::path`]).
//!
//! Invariants: what a CA didn't sign neither restricts it nor frees anybody; a message with a list
//! that can't be used takes no list away, since nobody knows which one it was to replace; a message
//! without any list does (Workload API, 4.4). Nothing is fetched.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::TrustDomain;
use rustls_pki_types::CertificateDer;
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::bundle::TrustBundle;
use crate::crl::{Lenience, ListedCrl, describe};
use crate::der::element;
use crate::tls::provider;
use crate::trust::{Fingerprint, fingerprint_of};

/// Most revocation lists that are read of one message: some for each of many trust domains. As many
/// may stay from earlier ones.
pub const GIVEN_CRLS_MAX: usize = 256;
/// Most bytes of the revocation lists that are read of one message, in DER.
pub const GIVEN_CRLS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Most lists that a message about unusable ones names.
const LISTS_SHOWN: usize = 4;

/// One list, read.
#[derive(Debug)]
struct GivenList {
    der: Vec<u8>,
    list: CertRevocationList<'static>,
    shown: ListedCrl,
    parts: Parts,
}

/// What no library tells of a list.
#[derive(Debug)]
struct Parts {
    /// `thisUpdate`, in seconds since the epoch: of two with one scope the later one counts.
    this_update: i64,
    /// What is signed, in the list's DER.
    signed: Range<usize>,
    algorithm: Vec<u8>,
    signature: Vec<u8>,
}

impl PartialEq for GivenList {
    fn eq(&self, other: &GivenList) -> bool {
        self.der == other.der
    }
}

impl GivenList {
    fn read(der: &[u8]) -> Result<GivenList, String> {
        let list =
            OwnedCertRevocationList::from_der(der).map_err(|error| format!("it can't be read ({error})"))?;
        let shown = describe(der)?;
        let parts = parts(der).ok_or("it can't be read")?;
        Ok(GivenList { der: der.to_vec(), list: list.into(), shown, parts })
    }

    /// Whether the key of this certificate signed it.
    fn is_signed_by(&self, ca: &CertificateDer<'_>) -> bool {
        let (Ok(ca), Some(signed)) = (EndEntityCert::try_from(ca), self.der.get(self.parts.signed.clone()))
        else {
            return false;
        };
        let all = provider().signature_verification_algorithms.all;
        let mut fitting = all.iter().filter(|one| *one.signature_alg_id() == *self.parts.algorithm);
        fitting.any(|one| ca.verify_signature(*one, signed, &self.parts.signature).is_ok())
    }

    /// Whether this one stands in the place of `other`, if one CA signed both.
    fn replaces(&self, other: &GivenList) -> bool {
        let scope = self.list.issuing_distribution_point();
        scope == other.list.issuing_distribution_point() && self.parts.this_update > other.parts.this_update
    }
}

/// `None` if it can't be taken apart.
fn parts(der: &[u8]) -> Option<Parts> {
    const SEQUENCE: u8 = 0x30;
    const BIT_STRING: u8 = 0x03;
    let (_, list) = CertificateRevocationList::from_der(der).ok()?;
    let begin = match der.get(1)? {
        length if length & 0x80 == 0 => 2,
        length => 2 + usize::from(length & 0x7f),
    };
    let signed = begin..begin + list.tbs_cert_list.as_ref().len();
    if der.get(signed.clone())? != list.tbs_cert_list.as_ref() {
        return None;
    }
    let mut rest = der.get(signed.end..)?;
    let (SEQUENCE, algorithm) = element(&mut rest).ok()? else { return None };
    let (BIT_STRING, bits) = element(&mut rest).ok()? else { return None };
    let (0, signature) = bits.split_first().map(|(unused, bits)| (*unused, bits))? else { return None };
    let (this_update, algorithm, signature) =
        (list.last_update().timestamp(), algorithm.to_vec(), signature.to_vec());
    Some(Parts { this_update, signed, algorithm, signature })
}

/// A list and the CAs of the bundles that signed it, each under its trust domain. Without any it may
/// still be that of an intermediate, which comes with a chain.
#[derive(Debug, Clone, PartialEq)]
struct Signed {
    list: Arc<GivenList>,
    by: Vec<(TrustDomain, Fingerprint)>,
}

impl Signed {
    fn is_of(&self, domain: &TrustDomain) -> bool {
        self.by.iter().any(|(of, _)| of == domain)
    }

    /// Whether both are of one CA, as far as can be told without a chain.
    fn has_signer_of(&self, other: &Signed) -> bool {
        match (self.by.is_empty(), other.by.is_empty()) {
            (true, true) => self.list.list.issuer() == other.list.list.issuer(),
            _ => self.by.iter().any(|signer| other.by.contains(signer)),
        }
    }

    /// Whether it stands in the place of an earlier message's.
    fn succeeds(&self, earlier: &Signed) -> bool {
        let scope = |signed: &Signed| signed.list.list.issuing_distribution_point().map(<[u8]>::to_vec);
        self.list == earlier.list || (self.has_signer_of(earlier) && scope(self) == scope(earlier))
    }
}

/// All lists that are in force, and what is wrong with others.
#[derive(Debug, Default)]
pub(super) struct AllLists {
    lists: Vec<Signed>,
    /// Why some can't be used.
    unusable: Vec<String>,
    /// The names of those that sign for nobody we know.
    strangers: Vec<String>,
}

/// The bundles of a message, by trust domain.
pub(super) type Bundles = BTreeMap<TrustDomain, Result<Arc<TrustBundle>, String>>;

impl AllLists {
    /// Reads the lists of a message beside its `bundles`; `last` is what was in force.
    pub(super) fn read(ders: &[Vec<u8>], bundles: &Bundles, last: &AllLists) -> AllLists {
        let mut all = AllLists::default();
        let mut bytes = 0_usize;
        if let Some(more @ 1..) = ders.len().checked_sub(GIVEN_CRLS_MAX) {
            all.unusable.push(format!("{more} more than {GIVEN_CRLS_MAX}, which are not read"));
        }
        for (index, der) in ders.iter().take(GIVEN_CRLS_MAX).enumerate() {
            let at = index + 1;
            bytes = bytes.saturating_add(der.len());
            if bytes > GIVEN_CRLS_BYTES_MAX {
                let reason = format!("list {at} exceeds {GIVEN_CRLS_BYTES_MAX} bytes of lists together");
                all.unusable.push(reason);
                bytes -= der.len();
                continue;
            }
            all.add(at, der, bundles, last);
        }
        if !all.unusable.is_empty() {
            all.keep(bundles, last);
        }
        all
    }

    fn add(&mut self, at: usize, der: &[u8], bundles: &Bundles, last: &AllLists) {
        if self.lists.iter().any(|earlier| earlier.list.der == der) {
            return;
        }
        // Each rotation of a certificate repeats the lists.
        let known = last.lists.iter().find(|known| known.list.der == der).map(|known| known.list.clone());
        let list = match known.map_or_else(|| GivenList::read(der).map(Arc::new), Ok) {
            Ok(list) => list,
            Err(reason) => return self.unusable.push(format!("list {at} is unusable: {reason}")),
        };
        let Claim { by, named } = claim(&list, bundles);
        let issuer = &list.shown.issuer;
        match (by.is_empty(), named) {
            (false, _) => {}
            (true, true) => self.unusable.push(format!("list {at} is not signed by its CA ({issuer})")),
            (true, false) => self.strangers.push(issuer.clone()),
        }
        self.lists.push(Signed { list, by });
    }

    /// Keeps what was in force and has no successor here.
    fn keep(&mut self, bundles: &Bundles, last: &AllLists) {
        let fresh = self.lists.clone();
        for earlier in last.lists.iter().take(GIVEN_CRLS_MAX) {
            let earlier = Signed { by: claim(&earlier.list, bundles).by, list: earlier.list.clone() };
            if !fresh.iter().any(|new| new.succeeds(&earlier)) {
                self.lists.push(earlier);
            }
        }
    }

    /// Those of a domain's CAs, and those that an intermediate may have signed; `None` if there are
    /// none. `stale` says what an outdated one means.
    pub(super) fn of(&self, domain: &TrustDomain, stale: Lenience) -> Option<Arc<GivenLists>> {
        let concerns = |signed: &&Signed| signed.by.is_empty() || signed.is_of(domain);
        let lists: Vec<Signed> = self.lists.iter().filter(concerns).cloned().collect();
        let some = !lists.is_empty();
        some.then(|| Arc::new(GivenLists { domain: domain.clone(), lists, stale }))
    }

    /// How many lists of known CAs are in force.
    pub(super) fn count(&self) -> usize {
        self.lists.iter().filter(|signed| !signed.by.is_empty()).count()
    }

    /// Why some can't be used and what that means, if so.
    pub(super) fn problem(&self) -> Option<String> {
        let shown: Vec<&str> = self.unusable.iter().take(LISTS_SHOWN).map(String::as_str).collect();
        let more = match self.unusable.len().saturating_sub(LISTS_SHOWN) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        (!shown.is_empty()).then(|| {
            format!(
                "revocation lists that can't be used: {}{more}; the lists before them stay in force: correct \
                 what the Workload API gives",
                shown.join(", ")
            )
        })
    }

    /// Whose lists count for no CA we know, if there are such.
    pub(super) fn strangers(&self) -> Option<String> {
        let shown: Vec<&str> = self.strangers.iter().take(LISTS_SHOWN).map(String::as_str).collect();
        let more = if self.strangers.len() > LISTS_SHOWN { " and others" } else { "" };
        (!shown.is_empty()).then(|| shown.join(" and ") + more)
    }
}

struct Claim {
    by: Vec<(TrustDomain, Fingerprint)>,
    /// Whether a CA of the bundles has the name that the list gives for its issuer.
    named: bool,
}

/// Which CAs of these bundles signed the list.
fn claim(list: &GivenList, bundles: &Bundles) -> Claim {
    let mut found = Claim { by: Vec::new(), named: false };
    for (domain, bundle) in bundles {
        let Ok(bundle) = bundle else { continue };
        for anchor in bundle.named(list.list.issuer()) {
            found.named = true;
            if list.is_signed_by(&anchor.der) {
                found.by.push((domain.clone(), anchor.fingerprint));
            }
        }
    }
    found
}

/// Why a certificate proves nothing by these lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenRefusal {
    /// It is named in a list.
    Revoked,
    /// The list that would name it was to be renewed then, since the epoch.
    Outdated(Duration),
    /// The list is by a CA whose key usage doesn't allow lists.
    NotEntitled,
}

/// A certificate and the CA above it.
pub(crate) struct Link<'a> {
    /// Its issuer's name in DER, without the header.
    pub(crate) issuer_name: &'a [u8],
    /// Its serial number, as it stands.
    pub(crate) serial: &'a [u8],
    /// Its issuer.
    pub(crate) issuer: CertificateDer<'a>,
    /// Whether the issuer's key usage allows it to sign lists.
    pub(crate) signs_lists: bool,
}

/// The lists that came over the Workload API and concern one trust domain, and how they are used. A
/// CA without one is not restricted: the Workload API doesn't say which of them make lists.
#[derive(Debug, PartialEq)]
pub struct GivenLists {
    domain: TrustDomain,
    lists: Vec<Signed>,
    stale: Lenience,
}

impl GivenLists {
    /// The lists of the domain's own CAs.
    pub fn listed(&self) -> Vec<&ListedCrl> {
        let own = self.lists.iter().filter(|signed| signed.is_of(&self.domain));
        own.map(|signed| &signed.list.shown).collect()
    }

    /// What an outdated one means.
    pub fn stale(&self) -> Lenience {
        self.stale
    }

    /// Whether the lists that the issuer signed allow this certificate at `now`.
    pub(crate) fn judge(&self, link: &Link<'_>, now: Duration) -> Result<(), GivenRefusal> {
        let print = fingerprint_of(&link.issuer);
        let signed = |one: &&Signed| {
            one.list.list.issuer() == link.issuer_name
                && (one.by.iter().any(|(_, by)| *by == print) || one.list.is_signed_by(&link.issuer))
        };
        let all: Vec<&GivenList> = self.lists.iter().filter(signed).map(|one| &*one.list).collect();
        if all.is_empty() {
            return Ok(());
        }
        if !link.signs_lists {
            return Err(GivenRefusal::NotEntitled);
        }
        let mut outdated = None;
        for list in all.iter().filter(|list| !all.iter().any(|other| other.replaces(list))) {
            if !matches!(list.list.find_serial(link.serial), Ok(None)) {
                return Err(GivenRefusal::Revoked);
            }
            if list.shown.next_update <= now && self.stale == Lenience::Refuse {
                outdated = Some(GivenRefusal::Outdated(list.shown.next_update));
            }
        }
        outdated.map_or(Ok(()), Err)
    }
}
