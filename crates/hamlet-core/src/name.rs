//! Names: canonical, checked, and compared only in canonical form. *Hardened to untrusted peer.*
//!
//! There is one canonicaliser for DNS names ([`Fqdn::parse`]); it is idempotent, so
//! `parse(x.as_str()) == x`. It is not a resolver and knows nothing of suffix policy
//! (see [`crate::import`]).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest DNS name in presentation form without the trailing dot (RFC 1035, 2.3.4).
pub const NAME_MAX: usize = 253;
/// Longest DNS label (RFC 1035, 2.3.4).
pub const LABEL_MAX: usize = 63;

/// Why a text is not the name it should be. The message says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum NameError {
    #[error("the name is empty")]
    Empty,
    #[error("the name has {0} bytes; at most {NAME_MAX} are possible")]
    TooLong(usize),
    #[error("a label is empty: remove the doubled or leading dot")]
    EmptyLabel,
    #[error("the label {0:?} has {1} bytes; at most {LABEL_MAX} are possible")]
    LabelTooLong(String, usize),
    #[error("wildcards are not names: list each name, or use a suffix where a suffix is asked for")]
    Wildcard,
    #[error("the character {0:?} is not allowed: use a to z, 0 to 9, '-' and '.'")]
    Character(char),
    #[error("non-ASCII name: write it in its A-label form (xn--...)")]
    NonAscii,
    #[error("the label {0:?} starts or ends with '-'")]
    Hyphen(String),
    #[error("the label {0:?} is not a valid internationalised label (IDNA2008)")]
    Idna(String),
    #[error("a single label is not a fully qualified name: add the domain")]
    SingleLabel,
    #[error("this is an address, not a name")]
    Numeric,
}

fn check_label(label: &str) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::EmptyLabel);
    }
    if label.len() > LABEL_MAX {
        return Err(NameError::LabelTooLong(label.to_owned(), label.len()));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(NameError::Hyphen(label.to_owned()));
    }
    let bytes = label.as_bytes();
    if bytes.len() >= 4 && &bytes[2..4] == b"--" {
        let back = label.starts_with("xn--").then(|| idna::domain_to_unicode(label));
        // An A-label must decode, and encode to itself again: otherwise two spellings of one
        // name could slip past a comparison.
        let stable = back.is_some_and(|(unicode, result)| {
            result.is_ok()
                && !unicode.is_ascii()
                && idna::domain_to_ascii(&unicode).is_ok_and(|ascii| ascii == label)
        });
        if !stable {
            return Err(NameError::Idna(label.to_owned()));
        }
    }
    Ok(())
}

/// Lower-cases, strips one trailing dot, checks every label. Shared by names and suffixes.
fn canonical(text: &str) -> Result<String, NameError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > NAME_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    if !text.is_ascii() {
        return Err(NameError::NonAscii);
    }
    let lower = text.to_ascii_lowercase();
    for c in lower.chars() {
        match c {
            'a'..='z' | '0'..='9' | '-' | '_' | '.' => {}
            '*' => return Err(NameError::Wildcard),
            other => return Err(NameError::Character(other)),
        }
    }
    for label in lower.split('.') {
        check_label(label)?;
    }
    let last = lower.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
    if last.bytes().all(|b| b.is_ascii_digit()) || hex {
        return Err(NameError::Numeric);
    }
    Ok(lower)
}

macro_rules! text_type {
    ($name:ident, $parse:path) => {
        impl $name {
            /// The canonical text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                $parse(s)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                $parse(&s)
            }
        }
        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0.to_string()
            }
        }
    };
}

/// A fully qualified DNS name in canonical form: lower case, no trailing dot, at least two
/// labels, letters, digits, `-` and `_`, IDNA2008 A-labels, no wildcard, not an address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fqdn(Arc<str>);
text_type!(Fqdn, Fqdn::parse);

impl Fqdn {
    /// Canonicalises and checks `text`.
    pub fn parse(text: &str) -> Result<Fqdn, NameError> {
        let lower = canonical(text)?;
        if !lower.contains('.') {
            return Err(NameError::SingleLabel);
        }
        Ok(Fqdn(lower.into()))
    }

    /// The labels, leftmost first.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// The name one label below this one. Fails when the result would be too long.
    pub fn child(&self, label: &DnsLabel) -> Result<Fqdn, NameError> {
        Fqdn::parse(&format!("{}.{}", label.as_str(), self.0))
    }

    /// Whether this name can be an SNI that every TLS stack accepts: no `_` (RFC 6066, 3).
    pub fn is_host_name(&self) -> bool {
        !self.0.contains('_')
    }
}

/// A single DNS label in canonical form (lower case LDH, no `_`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsLabel(Arc<str>);
text_type!(DnsLabel, DnsLabel::parse);

impl DnsLabel {
    /// Canonicalises and checks `text`.
    pub fn parse(text: &str) -> Result<DnsLabel, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if !text.is_ascii() {
            return Err(NameError::NonAscii);
        }
        let lower = text.to_ascii_lowercase();
        if let Some(c) = lower.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return Err(if c == '*' { NameError::Wildcard } else { NameError::Character(c) });
        }
        check_label(&lower)?;
        Ok(DnsLabel(lower.into()))
    }
}

/// The name of a peer document: a DNS label, unique in this mesh's configuration.
pub type PeerName = DnsLabel;
/// The name of a mesh: a DNS label.
pub type MeshName = DnsLabel;

/// A domain suffix that names are compared with at label boundaries.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameSuffix(Arc<str>);
text_type!(NameSuffix, NameSuffix::parse);

impl NameSuffix {
    /// Canonicalises and checks `text`; one leading dot is accepted (`.acme.example`).
    pub fn parse(text: &str) -> Result<NameSuffix, NameError> {
        Ok(NameSuffix(canonical(text.strip_prefix('.').unwrap_or(text))?.into()))
    }

    /// How many labels the suffix has.
    pub fn label_count(&self) -> usize {
        self.0.split('.').count()
    }

    /// Whether `name` is the suffix itself or lies below it, at a label boundary.
    pub fn contains(&self, name: &Fqdn) -> bool {
        match name.as_str().strip_suffix(&*self.0) {
            Some("") => true,
            Some(rest) => rest.ends_with('.'),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_is_lower_cased_and_loses_one_trailing_dot() {
        assert_eq!(Fqdn::parse("Ledger.ACME.example.").unwrap().as_str(), "ledger.acme.example");
    }

    #[test]
    fn hostile_names_are_refused_and_their_neighbours_accepted() {
        let long_label = format!("{}.example", "a".repeat(64));
        let fits = format!("{}.example", "a".repeat(63));
        let long = format!("{}example", "a.".repeat(124));
        for (bad, good) in [
            ("", "a.b"),
            (".", "a.b."),
            ("a..b", "a.b"),
            ("a.b..", "a.b."),
            ("*.acme.example", "x.acme.example"),
            ("a b.example", "a-b.example"),
            ("a\0b.example", "ab.example"),
            ("-a.example", "a.example"),
            ("a-.example", "a.example"),
            ("ledger", "ledger.example"),
            ("127.0.0.1", "127.0.0.1.example"),
            ("a.0x7f", "a.x7f"),
            ("p\u{0430}y.example", "pay.example"),
            ("xn--a.example", "xn--bcher-kva.example"),
            ("ab--c.example", "ab-c.example"),
            ("a/b.example", "a.b.example"),
            ("a:80.example", "a80.example"),
            (long_label.as_str(), fits.as_str()),
            (long.as_str(), "a.example"),
        ] {
            assert!(Fqdn::parse(bad).is_err(), "{bad:?} was accepted");
            assert!(Fqdn::parse(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_suffix_matches_at_label_boundaries_only() {
        let suffix = NameSuffix::parse(".acme.example").unwrap();
        assert!(suffix.contains(&Fqdn::parse("acme.example").unwrap()));
        assert!(suffix.contains(&Fqdn::parse("ledger.acme.example").unwrap()));
        assert!(!suffix.contains(&Fqdn::parse("notacme.example").unwrap()));
        assert!(!suffix.contains(&Fqdn::parse("acme.example.evil.example").unwrap()));
    }

    proptest! {
        #[test]
        fn canonicalisation_is_idempotent(text in "[a-zA-Z0-9._*-]{0,40}") {
            if let Ok(name) = Fqdn::parse(&text) {
                prop_assert_eq!(Fqdn::parse(name.as_str()).unwrap(), name);
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}") {
            let _ = Fqdn::parse(&text);
            let _ = DnsLabel::parse(&text);
            let _ = NameSuffix::parse(&text);
        }
    }
}
