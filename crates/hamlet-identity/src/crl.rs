//! Certificate revocation lists of one peer. *Hardened to operator's files.*
//!
//! Reads them and says when they end; whether one is genuine (its CA's signature, its CA's right to
//! sign lists) and what it revokes is judged with each chain, by [`crate::verify`]. Nothing is
//! fetched; what comes over the Workload API is read in [`crate::workload`]. Invariant: a peer with lists is never judged without them.

use std::time::Duration;

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::inspect::plain;

/// Most lists for one peer: one for each CA and a few to spare.
pub const CRLS_MAX: usize = 32;
/// Most bytes of a peer's file of lists, as PEM or DER.
pub const CRL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What an outdated list, or a CA without one, means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lenience {
    /// Every certificate that it would have to speak for is refused.
    #[default]
    Refuse,
    /// The certificate is accepted; an outdated list still revokes what it names.
    Accept,
}

/// How a peer's lists are used. The default refuses in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RevocationPolicy {
    /// A list whose `nextUpdate` has passed.
    pub stale: Lenience,
    /// A CA in the chain for which there is no list.
    pub unlisted: Lenience,
}

/// Why a file is not a set of revocation lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CrlError {
    #[error("there is no revocation list in it; export the CA's CRL there, as PEM (X509 CRL) or DER")]
    Empty,
    #[error("it has {0} bytes, more than {CRL_BYTES_MAX}; keep only the current CRLs in it")]
    TooLarge(usize),
    #[error("it has more than {CRLS_MAX} lists; keep only the current one of each CA in it")]
    TooMany,
    #[error("it can't be read as PEM: {0}; export it again")]
    Pem(String),
    #[error("list {at} in it is unusable: {reason}; issue it again")]
    Malformed { at: usize, reason: String },
    #[error("list {at} in it has the same issuer as an earlier one ({issuer}); keep the newer one")]
    Twice { at: usize, issuer: String },
}

/// One list, for status and messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedCrl {
    /// The CA's name.
    pub issuer: String,
    /// `nextUpdate`, since the epoch: from then on it is outdated.
    pub next_update: Duration,
    /// How many certificates it revokes.
    pub revoked: usize,
}

/// The lists of one peer, never empty, and how they are used.
#[derive(Debug)]
pub struct RevocationLists {
    ders: Vec<Vec<u8>>,
    listed: Vec<ListedCrl>,
    lists: Vec<CertRevocationList<'static>>,
    policy: RevocationPolicy,
}

impl PartialEq for RevocationLists {
    fn eq(&self, other: &RevocationLists) -> bool {
        self.policy == other.policy && self.ders == other.ders
    }
}

impl RevocationLists {
    /// Reads one DER list, or any number in PEM.
    ///
    /// # Errors
    /// What in it is no list, and what to do.
    pub fn read(bytes: &[u8], policy: RevocationPolicy) -> Result<RevocationLists, CrlError> {
        if bytes.len() > CRL_BYTES_MAX {
            return Err(CrlError::TooLarge(bytes.len()));
        }
        const SEQUENCE: u8 = 0x30;
        let mut ders: Vec<Vec<u8>> = Vec::new();
        if bytes.first() == Some(&SEQUENCE) {
            ders.push(bytes.to_vec());
        } else {
            for section in CertificateRevocationListDer::pem_slice_iter(bytes) {
                let der = section.map_err(|e| CrlError::Pem(e.to_string()))?;
                if ders.len() == CRLS_MAX {
                    return Err(CrlError::TooMany);
                }
                ders.push(der.to_vec());
            }
        }
        if ders.is_empty() {
            return Err(CrlError::Empty);
        }
        let (mut listed, mut lists) = (Vec::<ListedCrl>::new(), Vec::<CertRevocationList<'static>>::new());
        for (index, der) in ders.iter().enumerate() {
            let at = index + 1;
            let malformed = |reason: String| CrlError::Malformed { at, reason };
            let list = OwnedCertRevocationList::from_der(der).map_err(|e| malformed(e.to_string()))?;
            let list = CertRevocationList::from(list);
            let shown = describe(der).map_err(malformed)?;
            // The path library asks the first list of an issuer's name and no other.
            if lists.iter().any(|earlier| earlier.issuer() == list.issuer()) {
                return Err(CrlError::Twice { at, issuer: shown.issuer });
            }
            listed.push(shown);
            lists.push(list);
        }
        Ok(RevocationLists { ders, listed, lists, policy })
    }

    /// The lists, in file order.
    pub fn listed(&self) -> &[ListedCrl] {
        &self.listed
    }

    /// How they are used.
    pub fn policy(&self) -> RevocationPolicy {
        self.policy
    }

    /// When the first of them is outdated, since the epoch.
    pub fn earliest_next_update(&self) -> Duration {
        self.listed.iter().map(|l| l.next_update).min().unwrap_or_default()
    }

    pub(crate) fn lists(&self) -> Vec<&CertRevocationList<'_>> {
        self.lists.iter().collect()
    }

    /// How the path library is to use `lists`, which are [`Self::lists`]: over the whole chain.
    /// `None` only if there are none, which [`Self::read`] excludes.
    pub(crate) fn options<'a>(
        &self,
        lists: &'a [&'a CertRevocationList<'a>],
    ) -> Option<RevocationOptions<'a>> {
        let builder = RevocationOptionsBuilder::new(lists).ok()?;
        let unknown = match self.policy.unlisted {
            Lenience::Refuse => UnknownStatusPolicy::Deny,
            Lenience::Accept => UnknownStatusPolicy::Allow,
        };
        let expired = match self.policy.stale {
            Lenience::Refuse => ExpirationPolicy::Enforce,
            Lenience::Accept => ExpirationPolicy::Ignore,
        };
        let builder = builder.with_depth(RevocationCheckDepth::Chain).with_status_policy(unknown);
        Some(builder.with_expiration_policy(expired).build())
    }
}

/// What a list says of itself.
pub(crate) fn describe(der: &[u8]) -> Result<ListedCrl, String> {
    let unreadable = || "it can't be read".to_owned();
    let (rest, list) = CertificateRevocationList::from_der(der).map_err(|_| unreadable())?;
    if !rest.is_empty() {
        return Err("bytes follow it".to_owned());
    }
    let next_update = list.next_update().ok_or("it doesn't say when the next one comes (nextUpdate)")?;
    Ok(ListedCrl {
        issuer: plain(&list.issuer().to_string()),
        next_update: Duration::from_secs(u64::try_from(next_update.timestamp()).unwrap_or(0)),
        revoked: list.iter_revoked_certificates().count(),
    })
}
