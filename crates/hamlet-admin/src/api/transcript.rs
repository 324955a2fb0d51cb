//! What was said on a peer's streams, for people who look for a fault. Never a value, a context or
//! metadata: the agent doesn't keep them in it.

use serde::{Deserialize, Serialize};

/// Which way something went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// From the peer.
    In,
    /// To the peer.
    Out,
    /// Neither: a stream began or ended.
    #[default]
    None,
}

/// One entry. What doesn't belong to its kind is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TranscriptLine {
    /// Grows with every entry of the peer.
    pub seq: u64,
    /// When, in milliseconds since the Unix epoch; of what is repeated, the last time.
    pub at_ms: u64,
    /// The stream's number; each has its own.
    pub stream: u64,
    /// Which way.
    pub way: Way,
    /// What: `opened`, `ended`, `subscribe`, `upsert`, `delete`, `strange`, `ack`, `nack`, `empty`,
    /// or the name of an extension message.
    pub kind: String,
    /// The service's key, cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The nonce, cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// The owner's version, where it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Size in bytes: of the value we sent, or of the message we received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The gRPC status code by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The rule that refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Main numbers, or the reason of an end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// How often in a row, for signs of life.
    pub times: u64,
}

/// A part of a transcript, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TranscriptPage {
    /// The peer.
    pub peer: String,
    /// Entries that were asked for and are gone.
    pub gone: u64,
    /// The entries.
    pub entries: Vec<TranscriptLine>,
}
