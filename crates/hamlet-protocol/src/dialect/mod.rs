//! The dialects: what the session says and hears, and how one published version writes it.
//!
//! Sessions speak [`Incoming`] and [`Outgoing`]; numbers, names and encodings stay in the
//! dialect's own module. `2` means UPDATE in v1alpha1 and DELETE in v1alpha2: two modules, one
//! meaning.

pub(crate) mod codec;
pub mod offered;
pub mod service;
pub mod translate;
pub mod v1alpha1;
pub mod v1alpha2;

use std::fmt;

use bytes::Bytes;
use hamlet_core::Rejection;
use hamlet_core::view::Change;

use crate::wire::hamlet::federation::v1::Control;

/// A published version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dialect {
    /// The first one: the consumer dials, and each side of a stream has one role.
    V1alpha1,
    /// The second one: one stream carries both roles both ways.
    V1alpha2,
}

impl Dialect {
    /// Both, in the order in which a peer of unknown version is tried.
    pub const ALL: [Dialect; 2] = [Dialect::V1alpha2, Dialect::V1alpha1];

    /// As written in configuration and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Dialect::V1alpha1 => "v1alpha1",
            Dialect::V1alpha2 => "v1alpha2",
        }
    }

    /// Path of the stream's method.
    pub fn path(self) -> &'static str {
        match self {
            Dialect::V1alpha1 => v1alpha1::PATH,
            Dialect::V1alpha2 => v1alpha2::PATH,
        }
    }

    /// Type URL of the resource, which is also the stream's `resource_url`.
    pub fn type_url(self) -> &'static str {
        match self {
            Dialect::V1alpha1 => translate::TYPE_URL,
            Dialect::V1alpha2 => service::TYPE_URL,
        }
    }

    /// The dialect of a method's path.
    pub fn of_path(path: &str) -> Option<Dialect> {
        Dialect::ALL.into_iter().find(|d| d.path() == path)
    }

    /// A refusal in this dialect's words. Rules speak of v1alpha2's fields; in v1alpha1 the same
    /// things have other names.
    pub fn in_its_words(self, rejection: Rejection) -> Rejection {
        match self {
            Dialect::V1alpha1 => Rejection { field: translate::field(&rejection.field), ..rejection },
            Dialect::V1alpha2 => rejection,
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one message from the peer holds, the response first: it is handled first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Incoming {
    /// The owner's member.
    pub offer: Option<IncomingOffer>,
    /// The consumer's member.
    pub request: Option<IncomingRequest>,
    /// Size of the message on the wire.
    pub bytes: usize,
}

/// One change as the peer's owner role sends it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IncomingOffer {
    /// To be repeated in the answer.
    pub nonce: String,
    /// The stream's resource type, as said in this message.
    pub resource_url: String,
    /// The key.
    pub key: String,
    /// Type and raw value of the resource, if there is one; the value of a v1alpha1 resource is
    /// translated already.
    pub resource: Option<(String, Bytes)>,
    /// Why the offer can't be taken, where only its dialect can tell.
    pub refused: Option<Rejection>,
    /// What happened.
    pub operation: Operation,
    /// The shared context value.
    pub context: String,
    /// The owner's version of the change, between two Hamlet agents; else 0.
    pub version: u64,
}

/// What an offer does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Operation {
    /// Create or replace.
    Upsert,
    /// Remove.
    Delete,
    /// Anything else, with its number.
    Unknown(i32),
    /// The field's default.
    #[default]
    Unset,
}

/// A message of the peer's consumer role: subscription, answer or control.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IncomingRequest {
    /// The resource type; in an answer it may be missing.
    pub resource_url: String,
    /// The nonce answered; empty in a subscription or control, or if the peer sends none.
    pub nonce: String,
    /// Code and message of an answer; absent in other requests.
    pub status: Option<(i32, String)>,
    /// The shared context value.
    pub context: String,
    /// An extension message.
    pub control: Option<Control>,
}

/// One message to the peer.
#[derive(Debug, Clone, PartialEq)]
pub enum Outgoing {
    /// The initial request, with our hello.
    Subscribe {
        /// Our hello; absent if extensions are switched off for the peer.
        control: Option<Control>,
    },
    /// The answer to one offer.
    Answer {
        /// The offer's nonce.
        nonce: String,
        /// Acknowledged, or why not.
        answer: Result<(), Rejection>,
    },
    /// An extension message; only ever to a hello peer.
    Control(Control),
    /// One change.
    Offer {
        /// Unique on this stream.
        nonce: u64,
        /// The change.
        change: Change,
        /// Whether the peer is told the version; only a Hamlet agent is.
        versioned: bool,
    },
}

/// A value shared with a peer that must never be shown: printing it prints `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, for the wire only.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `text` with every occurrence of the secret replaced by `***`.
    pub(crate) fn blotted(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, "***") }
    }

    /// Whether `other` is the same text; takes the same time wherever they differ.
    pub fn matches(&self, other: &str) -> bool {
        let (a, b) = (self.0.as_bytes(), other.as_bytes());
        a.len() == b.len() && a.iter().zip(b).fold(0u8, |acc, (x, y)| acc | (x ^ y)) == 0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
