//! Peering by token: two meshes that share nothing but a chat channel exchange their trust
//! bundles, under a secret that is never sent, bound to the TLS channel and to both certificates
//! (extensions text, section 8).
//!
//! ```text
//!   B (accepts)                                A (invited)
//!     1  id, SHA-256(nB)            ------->
//!     2                             <-------   nA, docA
//!     3  nB, docB, HMAC(K,"B"||TH)  ------->   verifies, one transaction {used-by, peer}
//!     4                             <-------   HMAC(K,"A"||TH)
//!     5  commits
//! ```
//!
//! The protocol is a value: [`Inviter`] and [`Accepter`] take messages and give messages; random
//! numbers, time and the exporter are passed in. [`channel`] is the small loop that talks.
//! [`Ledger`] is what an agent remembers. This crate opens no socket, keeps nothing on disk and
//! decides nothing about policy. Its invariants:
//!
//! - the token's secret is never sent, stored by the inviter, or shown by `Debug`;
//! - nobody is trusted who has not proven the secret and a certificate under the bundle that it
//!   brought, and no bundle is taken that could speak for somebody known already;
//! - B commits to its nonce before it sees A's, so an attacker in the middle has one guess at
//!   the words;
//! - a wrong proof never burns an invitation.

mod accepter;
mod address;
pub mod channel;
mod crypto;
mod document;
mod frame;
mod inviter;
mod known;
mod ledger;
mod message;
mod refusal;
mod token;
mod words;

pub use accepter::{AcceptError, Accepter, Agreement, Revealed};
pub use address::{ADDRESSES_MAX, AddressError, AgentAddress, AllowedAddresses};
pub use crypto::{Binding, Key, NoRandomness, Nonce, Secret, Transcript, random};
pub use document::{DOCUMENT_BYTES_MAX, DocumentError, MeshDocument};
pub use inviter::{InvitationView, Inviter, Redeemer, Redemption};
pub use known::Known;
pub use ledger::{
    INVITATIONS_MAX, Invitation, KEPT_AFTER_EXPIRY, LIFETIME_DEFAULT, LIFETIME_MAX, LIFETIME_MIN, Ledger,
    LedgerError, MADE_MAX, MadePeer, Redeemed, USES_MAX, WRONG_PROOFS_A_MINUTE, short_id,
};
pub use message::{MESSAGE_BYTES_MAX, Message, MessageError};
pub use refusal::Refusal;
pub use token::{EXPIRY_SKEW, InvitationId, ROOTS_MAX, TOKEN_BYTES_MAX, TOKEN_PREFIX, Token, TokenError};
pub use words::{WORDS, Words};

/// The label of ALPN that selects the exchange on an agent's port.
pub const ALPN: &[u8] = hamlet_identity::peering::ALPN;
