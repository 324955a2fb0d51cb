//! The messages of the exchange, as bytes: a type, a length, the fields. *Hardened to untrusted
//! peer.*
//!
//! Invariant: one message has one encoding, and none is larger than [`MESSAGE_BYTES_MAX`].

use crate::crypto::{Hash, Mac, Nonce};
use crate::document::DOCUMENT_BYTES_MAX;
use crate::frame::{Broken, Reader, Writer};
use crate::refusal::Refusal;
use crate::token::InvitationId;

/// Largest message, in bytes, its head included.
pub const MESSAGE_BYTES_MAX: usize = DOCUMENT_BYTES_MAX + 256;
/// Bytes of a message's head: type and length.
pub(crate) const HEAD: usize = 5;

const OPEN: u8 = 1;
const OFFER: u8 = 2;
const REVEAL: u8 = 3;
const SEALED: u8 = 4;
const REFUSED: u8 = 0x7f;

/// The bytes are no message of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what came is no message of the peering exchange; does a hamlet listen there?")]
pub struct MessageError;

impl From<Broken> for MessageError {
    fn from(_: Broken) -> MessageError {
        MessageError
    }
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// (1) B to A: which invitation, and a commitment to B's nonce.
    Open {
        /// The invitation.
        id: InvitationId,
        /// SHA-256 of B's nonce.
        commitment: Hash,
    },
    /// (2) A to B.
    Offer {
        /// A's nonce.
        nonce: Nonce,
        /// A's document.
        document: Vec<u8>,
    },
    /// (3) B to A.
    Reveal {
        /// B's nonce.
        nonce: Nonce,
        /// B's document.
        document: Vec<u8>,
        /// HMAC(K, "B" || TH).
        mac: Mac,
    },
    /// (4) A to B: A has committed.
    Sealed {
        /// HMAC(K, "A" || TH).
        mac: Mac,
    },
    /// Either: the exchange is over.
    Refused(Refusal),
}

impl Message {
    /// The bytes, head included.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::default();
        let kind = match self {
            Message::Open { id, commitment } => {
                body.raw(id);
                body.raw(commitment);
                OPEN
            }
            Message::Offer { nonce, document } => {
                body.raw(nonce);
                body.raw(document);
                OFFER
            }
            Message::Reveal { nonce, document, mac } => {
                body.raw(nonce);
                body.raw(mac);
                body.raw(document);
                REVEAL
            }
            Message::Sealed { mac } => {
                body.raw(mac);
                SEALED
            }
            Message::Refused(refusal) => {
                body.raw(&[refusal.code()]);
                REFUSED
            }
        };
        // Nothing above has a length that could overflow.
        let body = body.finish().unwrap_or_default();
        let mut out = vec![kind];
        out.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend(body);
        out
    }

    /// The length of the body that a head announces.
    ///
    /// # Errors
    /// [`MessageError`] for an unknown type or more than is ever read.
    pub(crate) fn body_length(head: [u8; HEAD]) -> Result<usize, MessageError> {
        let [kind, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        let most = match kind {
            OPEN => 48,
            OFFER => 32 + DOCUMENT_BYTES_MAX,
            REVEAL => 64 + DOCUMENT_BYTES_MAX,
            SEALED => 32,
            REFUSED => 1,
            _ => return Err(MessageError),
        };
        if length > most { Err(MessageError) } else { Ok(length) }
    }

    /// Reads one whole message.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &[u8]) -> Result<Message, MessageError> {
        let mut reader = Reader::new(bytes);
        let head: [u8; HEAD] = reader.array()?;
        let mut body = Reader::new(reader.take(Message::body_length(head)?)?);
        reader.end()?;
        let rest = |body: &mut Reader<'_>, taken: usize| {
            let length = Message::body_length(head)?.checked_sub(taken).ok_or(MessageError)?;
            Ok::<Vec<u8>, MessageError>(body.take(length)?.to_vec())
        };
        let message = match head[0] {
            OPEN => Message::Open { id: body.array()?, commitment: body.array()? },
            OFFER => Message::Offer { nonce: body.array()?, document: rest(&mut body, 32)? },
            REVEAL => {
                let (nonce, mac) = (body.array()?, body.array()?);
                Message::Reveal { nonce, mac, document: rest(&mut body, 64)? }
            }
            SEALED => Message::Sealed { mac: body.array()? },
            _ => Message::Refused(Refusal::of_code(body.u8()?).ok_or(MessageError)?),
        };
        body.end()?;
        Ok(message)
    }
}
