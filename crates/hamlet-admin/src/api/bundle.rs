//! Trust bundles as an operator sees them: our own, and each peer's with its source and age.

use serde::{Deserialize, Serialize};

use super::peer::Event;

/// Our own bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnBundle {
    /// Our trust domain.
    pub trust_domain: String,
    /// The SPIFFE bundle (a JWK set) as its endpoint gives it.
    pub jwks: String,
}

/// One CA certificate of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AnchorStatus {
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// Its subject.
    pub subject: String,
    /// When it expires, in seconds since the Unix epoch.
    pub not_after_s: u64,
}

/// A CA certificate that a peer has announced.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AnnouncedStatus {
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// Time until it is used.
    pub used_in_ms: u64,
}

/// What a peer said of our own bundle on the stream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OursThere {
    /// The sequence that it was told.
    pub sequence: u64,
    /// Whether all of it is in force there.
    pub in_force: bool,
    /// Its reason, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The last change of what proves a peer, as the audit has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RootsChange {
    /// When, in seconds since the Unix epoch.
    pub at_s: u64,
    /// How it came: a word of [`BundleStatus::source`].
    pub source: String,
    /// SHA-256 of the CAs that came.
    pub added: Vec<String>,
    /// SHA-256 of the CAs that went.
    pub removed: Vec<String>,
}

/// A peer's bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BundleStatus {
    /// How what is in force came: `file`, `token`, `endpoint`, `stream` or `operator`; absent when nothing is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The file of the bundle, or of the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The endpoint that is followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// How the endpoint proves itself: `https_web` or `https_spiffe`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// `stream` if what its agent says on streams is followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follow: Option<String>,
    /// The sequence that the next document is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Time since the endpoint last gave a good answer; absent before the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Time to the next look at the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_refresh_ms: Option<u64>,
    /// Looks at the endpoint that failed, and bundles that were refused, since the last good one.
    pub failures: u64,
    /// Why the last of them failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Event>,
    /// Why the last bundle was refused: `stale`, `fork`, `jump`, and on streams `foreign-domain`,
    /// `leaf`, `nothing-left`, `unreadable` too. A fork is an alarm: somebody
    /// publishes two bundles as one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Whether the peer's bundle says that everything is revoked.
    pub revoked: bool,
    /// The CAs in force, in the bundle's order.
    pub authorities: Vec<AnchorStatus>,
    /// The CAs that the peer announced, which are not in force yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub announced: Vec<AnnouncedStatus>,
    /// What the peer said of our bundle; absent while it has said nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ours: Option<OursThere>,
    /// The last change of the CAs in force; `hamlet audit` has all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<RootsChange>,
}

impl BundleStatus {
    /// When the first of its CAs expires, in seconds since the Unix epoch.
    pub fn not_after_s(&self) -> Option<u64> {
        self.authorities.iter().map(|a| a.not_after_s).min()
    }
}

/// What setting a peer's bundle by hand changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BundleSet {
    /// The peer.
    pub peer: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// The sequence that the next document is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// SHA-256 of the CAs that are in force now and were not before.
    pub added: Vec<String>,
    /// SHA-256 of the CAs that are in force no more.
    pub removed: Vec<String>,
}

/// Why a bundle was not set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundleSetError {
    /// There is no such peer.
    NoPeer,
    /// The peer's bundle, or this one, doesn't allow it; the text says why and what to do.
    Refused(String),
}
