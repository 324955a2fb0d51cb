//! What an agent remembers of its invitations and of the peers that tokens made: a value, with its
//! form in the store. No disk, no clock.
//!
//! Invariant: of a token only K, id, expiry and use are kept; a change is made on a copy and takes
//! effect when it is durable.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use data_encoding::HEXLOWER;
use hamlet_core::{AddressRange, PeerName, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::crypto::Key;
use crate::document::MeshDocument;
use crate::inviter::{InvitationView, Redeemer, Redemption};
use crate::refusal::Refusal;
use crate::token::InvitationId;
use crate::words::Words;

/// Most invitations that are remembered, open and over ones.
pub const INVITATIONS_MAX: usize = 64;
/// Most peers made by token.
pub const MADE_MAX: usize = 1024;
/// Most uses of one invitation.
pub const USES_MAX: usize = 16;
/// How long an invitation is open if nothing else is said.
pub const LIFETIME_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// Shortest life of an invitation.
pub const LIFETIME_MIN: Duration = Duration::from_secs(1);
/// Longest life of an invitation.
pub const LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// For how long an invitation that is over is remembered, to say that it was used or has expired.
pub const KEPT_AFTER_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);
/// Wrong proofs of one invitation in a minute; then nobody may try for the rest of it.
pub const WRONG_PROOFS_A_MINUTE: u32 = 5;

/// Why the ledger can't be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum LedgerError {
    #[error("what the store holds of peerings can't be read: {0}; restore the data folder, or peer anew")]
    Damaged(String),
    #[error(
        "there are {INVITATIONS_MAX} open invitations; withdraw one with `hamlet peer remove`, or wait until one expires"
    )]
    TooManyInvitations,
    #[error("there are {MADE_MAX} peers made by token; write further ones into files")]
    TooManyPeers,
}

mod bytes {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>, const N: usize>(from: D) -> Result<[u8; N], D::Error> {
        let text = String::deserialize(from)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("another length"))
    }
}

/// One use of an invitation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redeemed {
    /// By whom.
    pub by: Redeemer,
    /// The peer that was made.
    pub peer: PeerName,
}

/// An invitation as it is remembered.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Its id.
    #[serde(with = "bytes")]
    pub id: InvitationId,
    #[serde(with = "bytes")]
    key: [u8; 32],
    /// The name that the peer will have.
    pub name: PeerName,
    /// Since the epoch.
    pub expires: Duration,
    /// The only trust domain that may use it.
    pub expected_domain: Option<TrustDomain>,
    /// How many different meshes may use it.
    pub uses: usize,
    /// Whether the peer is active without a confirmation of the words.
    pub confirmed: bool,
    /// Ranges in which the other side's addresses may lie.
    pub ranges: Vec<AddressRange>,
    /// Where we say that we are.
    pub addresses: Vec<String>,
    /// Who has used it.
    pub used_by: Vec<Redeemed>,
    /// Wrong proofs so far.
    pub wrong_proofs: u64,
    /// How often somebody else came with the used token.
    pub alarms: u64,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Invitation");
        shown.field("name", &self.name).field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Invitation {
    /// An invitation that nobody has used.
    pub fn new(id: InvitationId, key: &Key, name: PeerName, expires: Duration) -> Invitation {
        Invitation {
            id,
            key: *key.expose(),
            name,
            expires,
            expected_domain: None,
            uses: 1,
            confirmed: false,
            ranges: vec![],
            addresses: vec![],
            used_by: vec![],
            wrong_proofs: 0,
            alarms: 0,
        }
    }

    /// Whether it may be used at wall time `now`, be it again by the same redeemer.
    pub fn is_open(&self, now: Duration) -> bool {
        now < self.expires
    }

    /// Whether somebody new may use it.
    pub fn is_unused(&self, now: Duration) -> bool {
        self.is_open(now) && self.used_by.len() < self.uses
    }

    /// What the exchange needs of it.
    pub fn view(&self) -> InvitationView {
        InvitationView {
            id: self.id,
            key: Key::new(self.key),
            expected_domain: self.expected_domain.clone(),
            used_by: self.used_by.iter().map(|used| (used.by, used.peer.clone())).collect(),
            uses: self.uses,
        }
    }

    /// Which peers it makes, or made: its name, and the same with a number for further uses.
    pub fn names(&self) -> Vec<PeerName> {
        let numbered = (2..=self.uses).filter_map(|n| PeerName::parse(&format!("{}-{n}", self.name)).ok());
        std::iter::once(self.name.clone()).chain(numbered).collect()
    }
}

/// A peer that a token made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadePeer {
    /// Its name here.
    pub name: PeerName,
    /// Its document, as it was sent.
    #[serde(with = "document")]
    pub document: MeshDocument,
    /// The four words.
    pub words: String,
    /// Whether a person has confirmed them.
    pub confirmed: bool,
    /// Whether it isn't talked to.
    pub paused: bool,
    /// When it was made, wall time since the epoch.
    pub made: Duration,
    /// Whether we invited it.
    pub invited: bool,
}

mod document {
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serializer, de::Error, ser::Error as _};

    use crate::document::MeshDocument;

    pub(super) fn serialize<S: Serializer>(document: &MeshDocument, to: S) -> Result<S::Ok, S::Error> {
        let bytes = document.encode().map_err(S::Error::custom)?;
        to.serialize_str(&BASE64.encode(&bytes))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<MeshDocument, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = BASE64.decode(text.as_bytes()).map_err(D::Error::custom)?;
        MeshDocument::parse(&bytes).map_err(D::Error::custom)
    }
}

impl MadePeer {
    /// The words, as a value that can be compared.
    pub fn words(&self) -> Option<Words> {
        Words::parse(&self.words)
    }
}

/// Everything that is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The invitations, the oldest first.
    pub invitations: Vec<Invitation>,
    /// The peers made by token.
    pub peers: BTreeMap<PeerName, MadePeer>,
    /// Peers that are being removed: said goodbye to before anything else is forgotten.
    pub leaving: BTreeMap<PeerName, MadePeer>,
}

/// The part of the ledger that is one document in the store: invitations, and which peers there are.
#[derive(Serialize, Deserialize)]
struct Index {
    invitations: Vec<Invitation>,
    peers: Vec<PeerName>,
    leaving: Vec<MadePeer>,
}

impl Ledger {
    /// The index document, and with it one document a peer.
    ///
    /// # Errors
    /// [`LedgerError`] if a value can't be written.
    pub fn index(&self) -> Result<Vec<u8>, LedgerError> {
        let index = Index {
            invitations: self.invitations.clone(),
            peers: self.peers.keys().cloned().collect(),
            leaving: self.leaving.values().cloned().collect(),
        };
        serde_json::to_vec(&index).map_err(damaged)
    }

    /// One peer's document.
    ///
    /// # Errors
    /// [`LedgerError`] if it can't be written.
    pub fn peer_bytes(peer: &MadePeer) -> Result<Vec<u8>, LedgerError> {
        serde_json::to_vec(peer).map_err(damaged)
    }

    /// Reads what was written; `peer` gives the document of a peer that the index names.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`].
    pub fn read(
        index: &[u8],
        mut peer: impl FnMut(&PeerName) -> Result<Vec<u8>, LedgerError>,
    ) -> Result<Ledger, LedgerError> {
        let index: Index = serde_json::from_slice(index).map_err(damaged)?;
        let mut ledger = Ledger { invitations: index.invitations, ..Ledger::default() };
        for name in index.peers {
            let made: MadePeer = serde_json::from_slice(&peer(&name)?).map_err(damaged)?;
            if made.name != name {
                return Err(LedgerError::Damaged(format!("peer {name} is kept under another name")));
            }
            ledger.peers.insert(name, made);
        }
        ledger.leaving = index.leaving.into_iter().map(|made| (made.name.clone(), made)).collect();
        Ok(ledger)
    }

    /// Forgets invitations that were over for long.
    pub fn prune(&mut self, now: Duration) {
        self.invitations.retain(|i| now < i.expires + KEPT_AFTER_EXPIRY);
    }

    /// Adds an invitation; the oldest that is over makes room.
    ///
    /// # Errors
    /// [`LedgerError::TooManyInvitations`].
    pub fn invite(&mut self, invitation: Invitation, now: Duration) -> Result<(), LedgerError> {
        self.prune(now);
        if self.invitations.len() >= INVITATIONS_MAX {
            let over = self.invitations.iter().position(|i| !i.is_unused(now));
            self.invitations.remove(over.ok_or(LedgerError::TooManyInvitations)?);
        }
        self.invitations.push(invitation);
        Ok(())
    }

    /// Whether any invitation is open, so that the exchange is served.
    pub fn is_any_open(&self, now: Duration) -> bool {
        self.invitations.iter().any(|i| i.is_open(now))
    }

    /// The invitation with that id, if it may be used now.
    ///
    /// # Errors
    /// [`Refusal::Unknown`] or [`Refusal::Expired`].
    pub fn invitation(&self, id: &InvitationId, now: Duration) -> Result<&Invitation, Refusal> {
        let invitation = self.invitations.iter().find(|i| i.id == *id).ok_or(Refusal::Unknown)?;
        if invitation.is_open(now) { Ok(invitation) } else { Err(Refusal::Expired) }
    }

    /// The invitation with that id, to be changed.
    pub fn invitation_mut(&mut self, id: &InvitationId) -> Option<&mut Invitation> {
        self.invitations.iter_mut().find(|i| i.id == *id)
    }

    /// Notes a use and its peer; `is_taken` says which names others have. Returns the peer's name.
    /// The same redeemer again renews the words and nothing else.
    ///
    /// # Errors
    /// A refusal; nothing has changed then.
    pub fn redeem(
        &mut self,
        redemption: &Redemption,
        now: Duration,
        is_taken: impl Fn(&PeerName) -> bool,
    ) -> Result<PeerName, Refusal> {
        // Judged again: another exchange may have been faster.
        self.invitation(&redemption.id, now)?;
        let known = self.peers.len();
        let invitation = self.invitation_mut(&redemption.id).ok_or(Refusal::Unknown)?;
        let before = invitation.used_by.iter().find(|used| used.by == redemption.redeemer);
        if let Some(peer) = before.map(|used| used.peer.clone()) {
            // Removed meanwhile: the token doesn't bring it back.
            let made = self.peers.get_mut(&peer).ok_or(Refusal::Used)?;
            if !made.confirmed {
                made.words = redemption.words.to_string();
            }
            return Ok(peer);
        }
        if invitation.used_by.len() >= invitation.uses {
            return Err(Refusal::Used);
        }
        let used: Vec<PeerName> = invitation.used_by.iter().map(|used| used.peer.clone()).collect();
        let free = invitation.names().into_iter().find(|name| !used.contains(name) && !is_taken(name));
        let name = free.filter(|_| known < MADE_MAX).ok_or(Refusal::Unavailable)?;
        let used = Redeemed { by: redemption.redeemer, peer: name.clone() };
        invitation.used_by.push(used);
        let made = MadePeer {
            name: name.clone(),
            document: redemption.document.clone(),
            words: redemption.words.to_string(),
            confirmed: invitation.confirmed,
            paused: false,
            made: now,
            invited: true,
        };
        self.peers.insert(name.clone(), made);
        Ok(name)
    }
}

/// An id as people see it: its beginning, which names it well enough among so few.
pub fn short_id(id: &InvitationId) -> String {
    HEXLOWER.encode(&id[..4])
}

fn damaged(error: serde_json::Error) -> LedgerError {
    LedgerError::Damaged(error.to_string())
}
