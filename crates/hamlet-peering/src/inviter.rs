//! A, the side that invited: takes message 1, gives 2, takes 3, and gives 4 once the peer is
//! durable. *Hardened to untrusted peer.* Pure: time, random numbers and the binding are given.
//!
//! Invariant: a [`Redemption`] exists only if the accepter has proven the secret over this very
//! channel, a certificate under its own bundle, and is nobody known; message 4 comes out of a
//! redemption only.

use std::sync::Arc;

use hamlet_core::{PeerName, TrustDomain};
use hamlet_identity::Usage;
use hamlet_identity::peering::{Claim, key_fingerprint, proven_by};
use hamlet_runtime::Clock;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::address::AllowedAddresses;
use crate::crypto::{Binding, Hash, Key, Mac, Nonce, Parts, Side, Transcript, sha256};
use crate::document::MeshDocument;
use crate::known::Known;
use crate::message::Message;
use crate::refusal::Refusal;
use crate::token::InvitationId;
use crate::words::Words;

/// Who has used an invitation: the same document over a leaf with the same key. That one may
/// repeat until expiry, and nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redeemer {
    /// SHA-256 of its document.
    pub document: [u8; 32],
    /// SHA-256 of its leaf's public key.
    pub leaf_key: [u8; 32],
}

/// What is known of an invitation when it is used.
#[derive(Debug, Clone)]
pub struct InvitationView {
    /// Its id.
    pub id: InvitationId,
    /// K.
    pub key: Key,
    /// The only trust domain that may use it.
    pub expected_domain: Option<TrustDomain>,
    /// Who has used it already, and which peer was made.
    pub used_by: Vec<(Redeemer, PeerName)>,
    /// How many different redeemers may use it.
    pub uses: usize,
}

/// The exchange up to message 2.
#[derive(Debug)]
pub struct Inviter {
    invitation: InvitationView,
    commitment: Hash,
    nonce: Nonce,
    document: Vec<u8>,
}

/// The accepter has proven itself; message 4 is due when the peer is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// Which invitation.
    pub id: InvitationId,
    /// Who.
    pub redeemer: Redeemer,
    /// The mesh that it is.
    pub document: MeshDocument,
    /// What both people see.
    pub words: Words,
    /// The peer that this redeemer has become already.
    pub repeated: Option<PeerName>,
    sealed: Mac,
}

impl Redemption {
    /// Message 4, to be said after the peer is durable.
    pub fn sealed(&self) -> Message {
        Message::Sealed { mac: self.sealed }
    }
}

impl Inviter {
    /// Takes message 1 for an invitation that is open; `document` is ours, `nonce` fresh.
    pub fn open(invitation: InvitationView, commitment: Hash, document: Vec<u8>, nonce: Nonce) -> Inviter {
        Inviter { invitation, commitment, nonce, document }
    }

    /// Message 2.
    pub fn offer(&self) -> Message {
        Message::Offer { nonce: self.nonce, document: self.document.clone() }
    }

    /// Takes message 3. `chain` is what the client presented in the handshake, leaf first.
    ///
    /// # Errors
    /// The refusal. [`Refusal::Proof`] is the only one of a sender who may not hold the token.
    pub fn reveal(
        self,
        message: Message,
        binding: &Binding,
        chain: &[CertificateDer<'_>],
        known: &Known,
        allowed: &AllowedAddresses,
        clock: &Arc<dyn Clock>,
    ) -> Result<Redemption, Refusal> {
        let Message::Reveal { nonce, document: bytes, mac } = message else { return Err(Refusal::Malformed) };
        let transcript = Transcript::of(&Parts {
            id: &self.invitation.id,
            binding,
            commitment: &self.commitment,
            nonce_a: &self.nonce,
            nonce_b: &nonce,
            document_a: &self.document,
            document_b: &bytes,
        });
        // The proof first: who doesn't hold the token learns nothing more.
        let is_committed = sha256(&nonce) == self.commitment;
        if !self.invitation.key.is_proven(Side::B, &transcript, &mac) || !is_committed {
            return Err(Refusal::Proof);
        }
        let leaf = chain.first().ok_or(Refusal::Certificate)?;
        let document = MeshDocument::parse(&bytes).map_err(|_| Refusal::Malformed)?;
        let leaf_key = key_fingerprint(leaf).ok_or(Refusal::Certificate)?;
        let redeemer = Redeemer { document: sha256(&bytes), leaf_key };
        let bundle = document.bundle().map_err(|_| Refusal::Malformed)?;
        let claim = Claim { bundle: Arc::new(bundle), agent_ids: document.agent_ids.clone() };
        proven_by(&claim, chain, Usage::Client, clock).map_err(|_| Refusal::Certificate)?;
        let repeated = self.repeated(&redeemer)?;
        if self.invitation.expected_domain.as_ref().is_some_and(|e| *e != document.trust_domain) {
            return Err(Refusal::ForeignDomain);
        }
        known.check(&document, repeated.as_ref())?;
        if document.addresses.iter().any(|address| allowed.check(address).is_err()) {
            return Err(Refusal::Address);
        }
        let words = Words::of(&transcript);
        let sealed = self.invitation.key.prove(Side::A, &transcript);
        Ok(Redemption { id: self.invitation.id, redeemer, document, words, repeated, sealed })
    }

    /// The peer that this redeemer made before, or whether there is a use left.
    fn repeated(&self, redeemer: &Redeemer) -> Result<Option<PeerName>, Refusal> {
        let used_by = &self.invitation.used_by;
        match used_by.iter().find(|(before, _)| before == redeemer) {
            Some((_, peer)) => Ok(Some(peer.clone())),
            None if used_by.len() < self.invitation.uses => Ok(None),
            None => Err(Refusal::Used),
        }
    }
}
