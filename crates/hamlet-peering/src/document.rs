//! What a mesh says of itself in the exchange: trust domain, bundle, sequence, exact ids,
//! addresses. *Hardened to untrusted peer.*
//!
//! Invariant: a document that was read is complete and consistent in itself: its roots are usable
//! CAs of its trust domain, and its ids lie in it. Whether it may be believed is decided elsewhere.

use std::collections::BTreeSet;

use hamlet_core::{SpiffeId, TrustDomain};
use hamlet_identity::{ANCHORS_MAX, BundleError, TrustBundle, peering};
use rustls_pki_types::CertificateDer;

use crate::address::{ADDRESSES_MAX, AgentAddress};
use crate::frame::{Broken, Reader, Writer};
use crate::token::{read_address, read_domain, read_id};

/// Largest document, in bytes: it fits a message.
pub const DOCUMENT_BYTES_MAX: usize = 56 * 1024;
/// Most ids of one role.
pub(crate) const IDS_MAX: usize = 32;

/// Why bytes are not a mesh's document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum DocumentError {
    #[error("it is not in the form that it must have, or larger than {DOCUMENT_BYTES_MAX} bytes")]
    Form,
    #[error("its bundle can't be used: {0}")]
    Bundle(#[from] BundleError),
    #[error("the id {0} is outside its trust domain, or stands twice")]
    Id(SpiffeId),
}

impl From<Broken> for DocumentError {
    fn from(_: Broken) -> DocumentError {
        DocumentError::Form
    }
}

/// A mesh, as it introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshDocument {
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Its root certificates, one to sixteen.
    pub roots: Vec<CertificateDer<'static>>,
    /// The number of its bundle's version; it only grows.
    pub sequence: u64,
    /// The exact ids of its agents.
    pub agent_ids: Vec<SpiffeId>,
    /// The exact ids of its gateways.
    pub gateway_ids: Vec<SpiffeId>,
    /// Where its agent listens; empty if it only dials.
    pub addresses: Vec<AgentAddress>,
}

impl MeshDocument {
    /// The bytes that are sent and hashed.
    ///
    /// # Errors
    /// [`DocumentError`] for what [`MeshDocument::parse`] would not take.
    pub fn encode(&self) -> Result<Vec<u8>, DocumentError> {
        let mut out = Writer::default();
        out.bytes(self.trust_domain.as_str().as_bytes());
        out.raw(&self.sequence.to_be_bytes());
        out.list(&self.roots, |out, root| out.bytes(root));
        out.list(&self.agent_ids, |out, id| out.bytes(id.as_str().as_bytes()));
        out.list(&self.gateway_ids, |out, id| out.bytes(id.as_str().as_bytes()));
        out.list(&self.addresses, |out, a| out.bytes(a.to_string().as_bytes()));
        let bytes = out.finish()?;
        MeshDocument::parse(&bytes)?;
        Ok(bytes)
    }

    /// Reads a document and checks it by itself.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn parse(bytes: &[u8]) -> Result<MeshDocument, DocumentError> {
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::Form);
        }
        let mut reader = Reader::new(bytes);
        let document = MeshDocument {
            trust_domain: read_domain(&mut reader)?,
            sequence: reader.u64()?,
            roots: reader.list(1, ANCHORS_MAX, |r| Ok(CertificateDer::from(r.bytes()?.to_vec())))?,
            agent_ids: reader.list(1, IDS_MAX, read_id)?,
            gateway_ids: reader.list(1, IDS_MAX, read_id)?,
            addresses: reader.list(0, ADDRESSES_MAX, read_address)?,
        };
        reader.end()?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), DocumentError> {
        for ids in [&self.agent_ids, &self.gateway_ids] {
            let mut seen = BTreeSet::new();
            if let Some(id) =
                ids.iter().find(|id| id.trust_domain() != &self.trust_domain || !seen.insert(*id))
            {
                return Err(DocumentError::Id(id.clone()));
            }
        }
        let unique: BTreeSet<&[u8]> = self.roots.iter().map(AsRef::as_ref).collect();
        if unique.len() != self.roots.len() {
            return Err(DocumentError::Form);
        }
        self.bundle()?;
        Ok(())
    }

    /// The roots as PEM.
    pub fn bundle_pem(&self) -> String {
        peering::to_pem(&self.roots)
    }

    /// The roots as a bundle of the trust domain.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn bundle(&self) -> Result<TrustBundle, BundleError> {
        TrustBundle::from_pem(self.trust_domain.clone(), self.bundle_pem().as_bytes())
    }
}
