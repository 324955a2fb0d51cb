//! The token: `hamlet1.` and the invitation as text. Whoever holds it may become the peer, so it
//! is a secret until it is used or has expired. *Hardened to hostile text*: it comes by chat.
//!
//! Invariant: one invitation has one text; a changed character is noticed by the checksum before
//! anything is dialled.

use std::fmt;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use hamlet_core::{SpiffeId, TrustDomain};
use zeroize::Zeroizing;

use crate::address::{ADDRESSES_MAX, AddressError, AgentAddress, AllowedAddresses};
use crate::crypto::{Secret, sha256};
use crate::frame::{Broken, Reader, Writer};

/// What every token of this version begins with.
pub const TOKEN_PREFIX: &str = "hamlet1.";
/// Longest token, in bytes of text.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Most pinned roots in a token.
pub const ROOTS_MAX: usize = 4;
/// How far clocks may differ when we, the accepting side, judge an expiry. The inviter judges by
/// its own clock, without grace.
pub const EXPIRY_SKEW: Duration = Duration::from_secs(5 * 60);

const CHECKSUM: usize = 8;

/// Names one invitation.
pub type InvitationId = [u8; 16];

/// Why a text is not a usable token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum TokenError {
    #[error("there is no token; pipe it in, or name a file with it: --file FILE")]
    Empty,
    #[error(
        "this is no token: one begins with {TOKEN_PREFIX}; copy the whole line that `hamlet peer invite` printed"
    )]
    Prefix,
    #[error(
        "the token has more than {TOKEN_BYTES_MAX} bytes; copy only the line that `hamlet peer invite` printed"
    )]
    TooLong,
    #[error("the token was altered or cut on its way; copy the whole line again")]
    Altered,
    #[error("the token is of a form that this version doesn't know; ask for a new one, or update hamlet")]
    Form,
    #[error("the token has expired; ask the other mesh for a new one: `hamlet peer invite`")]
    Expired,
    #[error("the token is meant for the trust domain {expected}, and ours is {ours}; ask for one of our own")]
    ForeignDomain { expected: TrustDomain, ours: TrustDomain },
    #[error("the token invites into our own trust domain {0}; a peer is another mesh")]
    OwnDomain(TrustDomain),
    #[error("the token's agent {0} is outside its trust domain; ask for a new one")]
    ForeignAgent(SpiffeId),
    #[error("an address in the token can't be used: {0}")]
    Address(#[from] AddressError),
}

impl From<Broken> for TokenError {
    fn from(_: Broken) -> TokenError {
        TokenError::Form
    }
}

/// An invitation, as its text says it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Which invitation.
    pub id: InvitationId,
    /// What proves that we hold it.
    pub secret: Secret,
    /// Where the inviting agent listens, one to [`ADDRESSES_MAX`].
    pub addresses: Vec<AgentAddress>,
    /// The inviting mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// The exact id of the inviting agent.
    pub agent_id: SpiffeId,
    /// SHA-256 of its root certificates, one to [`ROOTS_MAX`].
    pub roots: Vec<[u8; 32]>,
    /// Since the epoch, whole seconds.
    pub expires: Duration,
    /// The only trust domain that may accept it.
    pub expected_domain: Option<TrustDomain>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domain = &self.trust_domain;
        f.debug_struct("Token")
            .field("trust_domain", domain)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// The text.
    ///
    /// # Errors
    /// [`TokenError::Form`] or [`TokenError::TooLong`] if it can't be said within the limits.
    pub fn encode(&self) -> Result<Zeroizing<String>, TokenError> {
        let mut out = Writer::default();
        out.raw(&self.id);
        out.raw(self.secret.expose());
        out.raw(&self.expires.as_secs().to_be_bytes());
        out.bytes(self.trust_domain.as_str().as_bytes());
        out.bytes(self.agent_id.as_str().as_bytes());
        out.list(&self.addresses, |out, a| out.bytes(a.to_string().as_bytes()));
        out.list(&self.roots, |out, root| out.raw(root));
        let expected: Vec<&TrustDomain> = self.expected_domain.iter().collect();
        out.list(&expected, |out, domain| out.bytes(domain.as_str().as_bytes()));
        let mut payload = Zeroizing::new(out.finish()?);
        let sum = checksum(&payload);
        payload.extend(sum);
        let text = Zeroizing::new(format!("{TOKEN_PREFIX}{}", BASE64URL_NOPAD.encode(&payload)));
        // What we can't read ourselves is not handed out.
        Token::parse(&text)?;
        Ok(text)
    }

    /// Reads a token; white space around it is passed over.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong);
        }
        let body = text.strip_prefix(TOKEN_PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| TokenError::Altered)?;
        let bytes = Zeroizing::new(bytes);
        let cut = bytes.len().checked_sub(CHECKSUM).ok_or(TokenError::Altered)?;
        let (payload, sum) = bytes.split_at(cut);
        if checksum(payload) != sum {
            return Err(TokenError::Altered);
        }
        let token = read(payload)?;
        if token.agent_id.trust_domain() != &token.trust_domain {
            return Err(TokenError::ForeignAgent(token.agent_id));
        }
        Ok(token)
    }

    /// Whether we, of trust domain `ours`, may accept it at wall time `now`.
    ///
    /// # Errors
    /// [`TokenError`]: expired, meant for another mesh, or at an address that isn't taken.
    pub fn check(
        &self,
        ours: &TrustDomain,
        now: Duration,
        allowed: &AllowedAddresses,
    ) -> Result<(), TokenError> {
        if now > self.expires + EXPIRY_SKEW {
            return Err(TokenError::Expired);
        }
        if self.trust_domain == *ours {
            return Err(TokenError::OwnDomain(ours.clone()));
        }
        if let Some(expected) = self.expected_domain.as_ref().filter(|e| *e != ours) {
            return Err(TokenError::ForeignDomain { expected: expected.clone(), ours: ours.clone() });
        }
        for address in &self.addresses {
            allowed.check(address)?;
        }
        Ok(())
    }
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM] {
    let hash = sha256(&[TOKEN_PREFIX.as_bytes(), payload].concat());
    std::array::from_fn(|i| hash[i])
}

fn read(payload: &[u8]) -> Result<Token, TokenError> {
    let mut reader = Reader::new(payload);
    let token = Token {
        id: reader.array()?,
        secret: Secret::new(reader.array()?),
        expires: Duration::from_secs(reader.u64()?),
        trust_domain: read_domain(&mut reader)?,
        agent_id: read_id(&mut reader)?,
        addresses: reader.list(1, ADDRESSES_MAX, read_address)?,
        roots: reader.list(1, ROOTS_MAX, |r| r.array())?,
        expected_domain: reader.list(0, 1, read_domain)?.pop(),
    };
    reader.end()?;
    // Later sums with it must not overflow.
    if token.expires.as_secs() > u64::from(u32::MAX) * 16 {
        return Err(TokenError::Form);
    }
    Ok(token)
}

pub(crate) fn read_domain(reader: &mut Reader<'_>) -> Result<TrustDomain, Broken> {
    let text = reader.text()?;
    TrustDomain::parse(text).ok().filter(|d| d.as_str() == text).ok_or(Broken)
}

pub(crate) fn read_id(reader: &mut Reader<'_>) -> Result<SpiffeId, Broken> {
    SpiffeId::parse(reader.text()?).map_err(|_| Broken)
}

pub(crate) fn read_address(reader: &mut Reader<'_>) -> Result<AgentAddress, Broken> {
    let text = reader.text()?;
    AgentAddress::parse(text).ok().filter(|a| a.to_string() == text).ok_or(Broken)
}
