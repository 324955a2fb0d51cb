//! Peering by token: what can be asked for, and the answers.
//!
//! Invariant: a token is in a request or an answer only as a [`TokenText`], which `Debug` doesn't
//! show.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A token's text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenText(pub String);

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText(..)")
    }
}

/// What both sides of a peering say of themselves and take of the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeeringTerms {
    /// Where our agent can be reached, `HOST:PORT`; empty takes it from the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Special-purpose ranges in which the other side's addresses may lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<String>,
    /// Active without a person's confirmation of the words.
    #[serde(default)]
    pub yes: bool,
}

/// What is asked of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum PeeringRequest {
    /// Make an invitation.
    Invite {
        /// The name that the peer will have here.
        name: String,
        /// For how long it is open, in seconds.
        expires_s: u64,
        /// How many different meshes may use it.
        uses: usize,
        /// The only trust domain that may use it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expect_domain: Option<String>,
        /// What we say and take.
        #[serde(default)]
        terms: PeeringTerms,
    },
    /// Accept a token of another mesh.
    Accept {
        /// The token.
        token: TokenText,
        /// The name that the peer will have here; the first label of its trust domain otherwise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// What we say and take.
        #[serde(default)]
        terms: PeeringTerms,
    },
    /// All invitations and peers.
    List,
    /// The words are the same on both sides: the peer is active from now on.
    Confirm {
        /// The peer.
        name: String,
        /// The words as the other side read them out; compared if given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        words: Option<String>,
    },
    /// Keep the peer, but don't talk to it.
    Pause {
        /// The peer.
        name: String,
    },
    /// Talk to it again.
    Resume {
        /// The peer.
        name: String,
    },
    /// Say goodbye for good, and forget the peer; or withdraw the open invitations of that name.
    Remove {
        /// The peer or invitation.
        name: String,
    },
}

/// How a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeeringStanding {
    /// The words are not confirmed: nothing is exchanged.
    Unconfirmed,
    /// In force.
    Active,
    /// Kept, but not talked to.
    Paused,
}

impl PeeringStanding {
    /// As a word.
    pub fn word(self) -> &'static str {
        match self {
            PeeringStanding::Unconfirmed => "unconfirmed",
            PeeringStanding::Active => "active",
            PeeringStanding::Paused => "paused",
        }
    }
}

/// A peer, by token or in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeeringPeer {
    /// Its name here.
    pub name: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// Where its agent listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How it stands.
    pub standing: PeeringStanding,
    /// The four words; absent for a peer in files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
    /// SHA-256 of its root certificates, hexadecimal; empty for a peer in files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<String>,
    /// Seconds since the epoch when it was made; absent for a peer in files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_s: Option<u64>,
    /// The Peer document as it could stand in a file; absent for a peer in files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Its root certificates as PEM; absent for a peer in files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    /// Why it isn't in force although it is kept, or what else needs an eye.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An invitation. The token itself is shown once, when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InvitationStatus {
    /// The beginning of its id.
    pub id: String,
    /// The name that the peer will have.
    pub name: String,
    /// Seconds until it expires; negative: it has.
    pub expires_in_s: i64,
    /// How many may use it.
    pub uses: usize,
    /// The peers that it made.
    pub used_by: Vec<String>,
    /// Wrong proofs of its secret.
    pub wrong_proofs: u64,
    /// How often somebody else came with the used token. More than none: it was stolen.
    pub alarms: u64,
}

/// A new invitation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Invited {
    /// The token.
    pub token: TokenText,
    /// The invitation.
    pub invitation: InvitationStatus,
}

/// Everything of peering.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeeringList {
    /// The peers, by name.
    pub peers: Vec<PeeringPeer>,
    /// The invitations, the oldest first.
    pub invitations: Vec<InvitationStatus>,
}

/// What came of a removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRemoved {
    /// Its name.
    pub name: String,
    /// Whether it was told, and so has withdrawn what it had of us.
    pub told: bool,
    /// How many open invitations were withdrawn.
    pub invitations: usize,
    /// What still names it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PeeringAnswer {
    /// To an invitation.
    Invited(Invited),
    /// To all that concern one peer.
    Peer(PeeringPeer),
    /// To the list.
    List(PeeringList),
    /// To a removal.
    Removed(PeerRemoved),
}
