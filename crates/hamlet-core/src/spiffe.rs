//! SPIFFE ids and trust domains, exactly as the SPIFFE-ID standard writes them (sections 2.1
//! and 2.2). *Hardened to untrusted peer.* Compared byte by byte: no case folding, no
//! percent-decoding, no patterns.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest SPIFFE id in bytes (SPIFFE-ID, 2.3).
pub const SPIFFE_ID_MAX: usize = 2048;
/// Longest trust domain name in bytes (SPIFFE-ID, 2.3).
pub const TRUST_DOMAIN_MAX: usize = 255;

/// Why a text is not a SPIFFE id or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum SpiffeError {
    #[error("a SPIFFE id starts with spiffe://")]
    Scheme,
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    #[error("the text has {0} bytes, which is too long")]
    TooLong(usize),
    #[error("the trust domain has the character {0:?}: only a to z, 0 to 9, '.', '-' and '_' are allowed")]
    TrustDomainCharacter(char),
    #[error("the path has the character {0:?}: only letters, digits, '.', '-' and '_' are allowed")]
    PathCharacter(char),
    #[error("a path segment is empty, '.' or '..', or the id ends with '/'")]
    Segment,
    #[error("the id has no path: it names a trust domain, not a workload")]
    NoPath,
}

/// The name of a trust domain: one organisation's certificate authority and its ids.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks `text`; a leading `spiffe://` is accepted and dropped.
    pub fn parse(text: &str) -> Result<TrustDomain, SpiffeError> {
        let text = text.strip_prefix("spiffe://").unwrap_or(text);
        if text.is_empty() {
            return Err(SpiffeError::EmptyTrustDomain);
        }
        if text.len() > TRUST_DOMAIN_MAX {
            return Err(SpiffeError::TooLong(text.len()));
        }
        match text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) {
            Some(c) => Err(SpiffeError::TrustDomainCharacter(c)),
            None => Ok(TrustDomain(text.into())),
        }
    }

    /// The name, without scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the workload at `path` (without leading slash) in this trust domain.
    pub fn id(&self, path: &str) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::parse(&format!("spiffe://{}/{path}", self.0))
    }
}

/// The id of one workload: `spiffe://<trust domain>/<path>`, path required.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: Arc<str>,
    domain: TrustDomain,
}

impl SpiffeId {
    /// Checks `text`. The prefix `URI:` that one example of the Hamlet specification carries is
    /// the wire dialect's business, not ours.
    pub fn parse(text: &str) -> Result<SpiffeId, SpiffeError> {
        if text.len() > SPIFFE_ID_MAX {
            return Err(SpiffeError::TooLong(text.len()));
        }
        let rest = text.strip_prefix("spiffe://").ok_or(SpiffeError::Scheme)?;
        let (domain, path) = rest.split_once('/').ok_or(SpiffeError::NoPath)?;
        let domain = TrustDomain::parse(domain)?;
        if domain.as_str().len() + "spiffe:///".len() + path.len() != text.len() {
            return Err(SpiffeError::Scheme);
        }
        for segment in path.split('/') {
            if matches!(segment, "" | "." | "..") {
                return Err(SpiffeError::Segment);
            }
            let odd = |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
            if let Some(c) = segment.chars().find(odd) {
                return Err(SpiffeError::PathCharacter(c));
            }
        }
        Ok(SpiffeId { text: text.into(), domain })
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain it belongs to.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }
}

macro_rules! text_traits {
    ($name:ident, $field:tt) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.$field)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.$field, f)
            }
        }
        impl std::str::FromStr for $name {
            type Err = SpiffeError;
            fn from_str(s: &str) -> Result<Self, SpiffeError> {
                $name::parse(s)
            }
        }
        impl TryFrom<String> for $name {
            type Error = SpiffeError;
            fn try_from(s: String) -> Result<Self, SpiffeError> {
                $name::parse(&s)
            }
        }
        impl From<$name> for String {
            fn from(v: $name) -> String {
                v.$field.to_string()
            }
        }
    };
}
text_traits!(TrustDomain, 0);
text_traits!(SpiffeId, text);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_ids_are_refused_and_their_neighbours_accepted() {
        for (bad, good) in [
            ("spiffe://acme.example", "spiffe://acme.example/gateway"),
            ("spiffe://acme.example/", "spiffe://acme.example/a"),
            ("spiffe://acme.example//a", "spiffe://acme.example/a/a"),
            ("spiffe://acme.example/a/", "spiffe://acme.example/a/b"),
            ("spiffe://acme.example/../b", "spiffe://acme.example/..b"),
            ("spiffe://acme.example/./b", "spiffe://acme.example/.b"),
            ("SPIFFE://acme.example/a", "spiffe://acme.example/A"),
            ("spiffe://Acme.example/a", "spiffe://acme.example/a"),
            ("spiffe://acme.example:80/a", "spiffe://acme.example80/a"),
            ("spiffe://u@acme.example/a", "spiffe://uacme.example/a"),
            ("spiffe://acme.example/a%2fb", "spiffe://acme.example/a2fb"),
            ("spiffe://acme.example/a?b", "spiffe://acme.example/ab"),
            ("spiffe://acme.example/a\0b", "spiffe://acme.example/a0b"),
            ("spiffe://acme.example/*", "spiffe://acme.example/x"),
            ("spiffe://spiffe://acme.example/a", "spiffe://acme.example/spiffe"),
            ("https://acme.example/a", "spiffe://acme.example/https"),
            ("spiffe:///a", "spiffe://a/a"),
            (" spiffe://acme.example/a", "spiffe://acme.example/a"),
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad:?} was accepted");
            assert!(SpiffeId::parse(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn an_id_knows_its_trust_domain() {
        let id = SpiffeId::parse("spiffe://acme.example/hamlet/agent").unwrap();
        assert_eq!(id.trust_domain().as_str(), "acme.example");
    }
}
