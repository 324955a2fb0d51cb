//! B, the side that accepts a token: gives message 1, takes 2, gives 3, takes 4. *Hardened to
//! untrusted peer.* Pure: time, random numbers and the binding are given.
//!
//! Invariant: an [`Agreement`] exists only if the inviter has proven that it holds K over this very
//! channel, and brought a bundle under which the certificate that it showed is valid.

use std::sync::Arc;

use hamlet_identity::Usage;
use hamlet_identity::peering::{Claim, ClaimError, Pinned, proven_by};
use hamlet_runtime::Clock;
use rustls_pki_types::CertificateDer;

use crate::address::{AddressError, AllowedAddresses};
use crate::crypto::{Binding, Hash, Key, Nonce, Parts, Side, Transcript, sha256};
use crate::document::{DocumentError, MeshDocument};
use crate::known::Known;
use crate::message::{Message, MessageError};
use crate::refusal::Refusal;
use crate::token::{InvitationId, Token, TokenError};
use crate::words::Words;

/// Why a token could not be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum AcceptError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the inviting agent refused: {0}")]
    Refused(Refusal),
    #[error("refused here: {0}")]
    Ours(Refusal),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("what the inviting mesh says of itself can't be used: {0}")]
    Document(#[from] DocumentError),
    #[error(
        "the inviting mesh says another trust domain or agent than its token; somebody sits in the middle, or the token is old"
    )]
    OtherMesh,
    #[error("the inviting agent's certificate is not one of the bundle that it sent: {0}")]
    Certificate(ClaimError),
    #[error("an address of the inviting mesh can't be used: {0}")]
    Address(#[from] AddressError),
    #[error(
        "the inviting agent's proof is wrong, so somebody sits in the middle; nothing was taken from it. It may \
         have taken you for its peer: tell the other mesh"
    )]
    Proof,
}

impl AcceptError {
    /// A word for metrics.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            AcceptError::Token(_) => "token",
            AcceptError::Refused(refusal) | AcceptError::Ours(refusal) => refusal.word(),
            AcceptError::Message(_) | AcceptError::Document(_) => Refusal::Malformed.word(),
            AcceptError::OtherMesh => "other-mesh",
            AcceptError::Certificate(_) => Refusal::Certificate.word(),
            AcceptError::Address(_) => Refusal::Address.word(),
            AcceptError::Proof => Refusal::Proof.word(),
        }
    }
}

/// The exchange up to message 1.
#[derive(Debug)]
pub struct Accepter {
    id: InvitationId,
    key: Key,
    pinned: Pinned,
    nonce: Nonce,
    document: Vec<u8>,
}

/// The exchange up to message 3.
#[derive(Debug)]
pub struct Revealed {
    key: Key,
    transcript: Transcript,
    document: MeshDocument,
}

/// Both sides have proven the secret: the peer may be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    /// The inviting mesh.
    pub document: MeshDocument,
    /// What both people see.
    pub words: Words,
}

impl Accepter {
    /// Begins with a token that was checked ([`Token::check`]), our document and a fresh nonce.
    /// The token's secret isn't kept.
    pub fn new(token: &Token, document: Vec<u8>, nonce: Nonce) -> Accepter {
        let pinned = Pinned {
            roots: token.roots.clone(),
            trust_domain: token.trust_domain.clone(),
            agent_id: token.agent_id.clone(),
        };
        Accepter { id: token.id, key: token.secret.key(&token.id), pinned, nonce, document }
    }

    /// The invitation.
    pub fn id(&self) -> &InvitationId {
        &self.id
    }

    /// What the dialled agent must be.
    pub fn pinned(&self) -> &Pinned {
        &self.pinned
    }

    fn commitment(&self) -> Hash {
        sha256(&self.nonce)
    }

    /// Message 1.
    pub fn open(&self) -> Message {
        Message::Open { id: self.id, commitment: self.commitment() }
    }

    /// Takes message 2 and gives message 3. `chain` is what the server presented, leaf first.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub fn offer(
        self,
        message: Message,
        binding: &Binding,
        chain: &[CertificateDer<'_>],
        known: &Known,
        allowed: &AllowedAddresses,
        clock: &Arc<dyn Clock>,
    ) -> Result<(Message, Revealed), AcceptError> {
        let (nonce_a, bytes) = match message {
            Message::Offer { nonce, document } => (nonce, document),
            Message::Refused(refusal) => return Err(AcceptError::Refused(refusal)),
            _ => return Err(MessageError.into()),
        };
        let document = MeshDocument::parse(&bytes)?;
        let Pinned { trust_domain, agent_id, .. } = &self.pinned;
        if document.trust_domain != *trust_domain || !document.agent_ids.contains(agent_id) {
            return Err(AcceptError::OtherMesh);
        }
        let bundle = Arc::new(document.bundle().map_err(DocumentError::from)?);
        let claim = Claim { bundle, agent_ids: vec![agent_id.clone()] };
        proven_by(&claim, chain, Usage::Server, clock).map_err(AcceptError::Certificate)?;
        // The name under which we know it is not chosen yet, so nothing is excepted: who accepts a
        // second time removes the peer first, or repeats before it was committed.
        known.check(&document, None).map_err(AcceptError::Ours)?;
        for address in &document.addresses {
            allowed.check(address)?;
        }
        let transcript = Transcript::of(&Parts {
            id: &self.id,
            binding,
            commitment: &self.commitment(),
            nonce_a: &nonce_a,
            nonce_b: &self.nonce,
            document_a: &bytes,
            document_b: &self.document,
        });
        let mac = self.key.prove(Side::B, &transcript);
        let reveal = Message::Reveal { nonce: self.nonce, document: self.document, mac };
        Ok((reveal, Revealed { key: self.key, transcript, document }))
    }
}

impl Revealed {
    /// Takes message 4.
    ///
    /// # Errors
    /// [`AcceptError`].
    pub fn sealed(self, message: Message) -> Result<Agreement, AcceptError> {
        match message {
            Message::Sealed { mac } if self.key.is_proven(Side::A, &self.transcript, &mac) => {
                Ok(Agreement { words: Words::of(&self.transcript), document: self.document })
            }
            Message::Sealed { .. } => Err(AcceptError::Proof),
            Message::Refused(refusal) => Err(AcceptError::Refused(refusal)),
            _ => Err(MessageError.into()),
        }
    }
}
