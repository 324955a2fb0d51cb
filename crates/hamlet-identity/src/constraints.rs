//! Name constraints of CAs (RFC 5280, 4.2.1.10), as far as the path library doesn't know them:
//! those on URIs, and so on SPIFFE ids. *Hardened to operator's files and untrusted peer.*
//!
//! Constraints of other kinds stay with the path library: [`split`] hands it exactly what it took
//! out nothing of. Invariant: a constraint is honoured to the letter or makes its certificate
//! unusable; none is passed over.

use std::net::Ipv4Addr;

use crate::der::{element, write};

/// Most URI subtrees in one CA certificate.
pub(crate) const URI_SUBTREES_MAX: usize = 64;

const SEQUENCE: u8 = 0x30;
const PERMITTED: u8 = 0xa0;
const EXCLUDED: u8 = 0xa1;
const DIRECTORY_NAME: u8 = 0xa4;
const URI: u8 = 0x86;

/// What a CA may name in URIs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UriConstraints {
    permitted: Vec<HostRule>,
    excluded: Vec<HostRule>,
}

/// One subtree. Hosts are in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HostRule {
    /// `west.test`: exactly that host.
    Host(String),
    /// `.west.test`, kept with its dot: any host below, not itself.
    Below(String),
}

/// A name constraints extension in two parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// Ours to check.
    pub(crate) uris: UriConstraints,
    /// What the path library checks: the content with the URI subtrees left out.
    pub(crate) rest: Option<Vec<u8>>,
}

/// Takes the content of a NameConstraints sequence apart. The error says why it can't be honoured.
pub(crate) fn split(content: &[u8]) -> Result<Split, String> {
    let mut uris = UriConstraints::default();
    let mut rest = Vec::new();
    let mut reader = content;
    let mut last_tag = 0;
    while !reader.is_empty() {
        let (tag, subtrees) = element(&mut reader)?;
        if !matches!(tag, PERMITTED | EXCLUDED) || tag <= last_tag {
            return Err("it has parts that no standard knows".to_owned());
        }
        last_tag = tag;
        let rules = if tag == PERMITTED { &mut uris.permitted } else { &mut uris.excluded };
        let kept = take_uris(subtrees, rules)?;
        if !kept.is_empty() {
            write(&mut rest, tag, &kept);
        }
    }
    if last_tag == 0 {
        return Err("it is empty".to_owned());
    }
    Ok(Split { uris, rest: (!rest.is_empty()).then_some(rest) })
}

/// Moves the URI subtrees into `rules` and returns the others as they stood.
fn take_uris(mut subtrees: &[u8], rules: &mut Vec<HostRule>) -> Result<Vec<u8>, String> {
    if subtrees.is_empty() {
        return Err("a list in it is empty".to_owned());
    }
    let mut kept = Vec::new();
    while !subtrees.is_empty() {
        let (tag, mut subtree) = element(&mut subtrees)?;
        if tag != SEQUENCE {
            return Err("a subtree in it can't be read".to_owned());
        }
        let whole = subtree;
        let (base, name) = element(&mut subtree)?;
        if !subtree.is_empty() {
            return Err("a subtree in it has a minimum or maximum, which RFC 5280 forbids".to_owned());
        }
        match base {
            URI if rules.len() == URI_SUBTREES_MAX => {
                return Err(format!("it has more than {URI_SUBTREES_MAX} URI subtrees"));
            }
            URI => rules.push(HostRule::read(name)?),
            DIRECTORY_NAME => {
                return Err("it constrains directory names, which the verifier doesn't support".to_owned());
            }
            _ => write(&mut kept, SEQUENCE, whole),
        }
    }
    Ok(kept)
}

impl UriConstraints {
    /// Whether it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.permitted.is_empty() && self.excluded.is_empty()
    }

    /// Whether a certificate below this CA may carry `uri`; the error says why not.
    pub(crate) fn allow(&self, uri: &str) -> Result<(), String> {
        if self.is_empty() {
            return Ok(());
        }
        let host = host_of(uri).ok_or("it has no host name, and a CA above it constrains those")?;
        if self.excluded.iter().any(|rule| rule.covers(&host)) {
            return Err(format!("a CA above it may not name {host} (excluded by its name constraints)"));
        }
        if !self.permitted.is_empty() && !self.permitted.iter().any(|rule| rule.covers(&host)) {
            return Err(format!("a CA above it may not name {host} (not permitted by its name constraints)"));
        }
        Ok(())
    }
}

impl HostRule {
    fn read(name: &[u8]) -> Result<HostRule, String> {
        let wrong = || "a URI constraint in it is neither a host name nor a dot and a domain".to_owned();
        let text = std::str::from_utf8(name).map_err(|_| wrong())?.to_ascii_lowercase();
        let name = text.strip_prefix('.').unwrap_or(&text);
        if !is_host(name) {
            return Err(wrong());
        }
        Ok(if text.starts_with('.') { HostRule::Below(text) } else { HostRule::Host(text) })
    }

    fn covers(&self, host: &str) -> bool {
        match self {
            HostRule::Host(name) => host == name,
            HostRule::Below(domain) => host.len() > domain.len() && host.ends_with(domain.as_str()),
        }
    }
}

/// The host of a URI in lower case; `None` if it has none, or an address (RFC 5280: such a name
/// must be refused where hosts are constrained).
fn host_of(uri: &str) -> Option<String> {
    let (scheme, rest) = uri.split_once("://")?;
    let scheme_char = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(scheme_char) {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default().to_ascii_lowercase();
    is_host(&host).then_some(host)
}

/// A name of labels, not an address. Underscores are allowed: trust domains may have them.
fn is_host(name: &str) -> bool {
    const HOST_BYTES_MAX: usize = 255;
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= HOST_BYTES_MAX && name.split('.').all(label) && name.parse::<Ipv4Addr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subtree(tag: u8, name: &[u8]) -> Vec<u8> {
        let (mut base, mut out) = (Vec::new(), Vec::new());
        write(&mut base, tag, name);
        write(&mut out, SEQUENCE, &base);
        out
    }

    fn content(permitted: &[(u8, &str)], excluded: &[(u8, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, names) in [(PERMITTED, permitted), (EXCLUDED, excluded)] {
            let list: Vec<u8> = names.iter().flat_map(|(tag, name)| subtree(*tag, name.as_bytes())).collect();
            if !list.is_empty() {
                write(&mut out, tag, &list);
            }
        }
        out
    }

    fn allowed(permitted: &[&str], excluded: &[&str], uri: &str) -> bool {
        let tagged = |names: &[&'static str]| names.iter().map(|n| (URI, *n)).collect::<Vec<_>>();
        let leak = |names: &[&str]| -> Vec<&'static str> {
            names.iter().map(|n| &*Box::leak((*n).to_owned().into_boxed_str())).collect()
        };
        let split = split(&content(&tagged(&leak(permitted)), &tagged(&leak(excluded)))).unwrap();
        assert_eq!(split.rest, None);
        split.uris.allow(uri).is_ok()
    }

    #[test]
    fn a_host_is_exactly_that_host_and_a_dot_means_any_below_it() {
        for (permitted, excluded, uri, good) in [
            (&["west.test"][..], &[][..], "spiffe://west.test/agent", true),
            (&["west.test"], &[], "spiffe://a.west.test/agent", false),
            (&["west.test"], &[], "spiffe://awest.test/agent", false),
            (&["west.test"], &[], "spiffe://east.test/agent", false),
            (&["WEST.test"], &[], "spiffe://West.TEST/agent", true),
            (&[".west.test"], &[], "spiffe://a.west.test/agent", true),
            (&[".west.test"], &[], "spiffe://b.a.west.test/agent", true),
            (&[".west.test"], &[], "spiffe://west.test/agent", false),
            (&[".west.test"], &[], "spiffe://awest.test/agent", false),
            (&[".west.test", "west.test"], &[], "spiffe://west.test/agent", true),
            (&[], &["west.test"], "spiffe://west.test/agent", false),
            (&[], &["west.test"], "spiffe://a.west.test/agent", true),
            (&[], &[".west.test"], "spiffe://a.west.test/agent", false),
            (&[], &[".west.test"], "spiffe://west.test/agent", true),
            (&[".west.test"], &["b.west.test"], "spiffe://a.west.test/x", true),
            (&[".west.test"], &["b.west.test"], "spiffe://b.west.test/x", false),
            (&["west.test"], &[], "https://user@west.test:8443/x?y#z", true),
            (&["west.test"], &[], "https://west.test@east.test/x", false),
            (&["west.test"], &[], "https://east.test/?https://west.test/", false),
            (&["west.test"], &[], "urn:west.test", false),
            (&["west.test"], &[], "https://[::1]/x", false),
            (&["west.test"], &[], "https:///x", false),
            (&[], &["west.test"], "https://127.0.0.1/x", false),
            (&[], &["west.test"], "urn:x", false),
            (&["west.test"], &[], "spiffe://west.test./x", false),
        ] {
            assert_eq!(allowed(permitted, excluded, uri), good, "{permitted:?} {excluded:?} {uri}");
        }
    }

    #[test]
    fn other_constraints_are_left_to_the_path_library_as_they_stood() {
        const DNS: u8 = 0x82;
        let whole = content(&[(DNS, "a.test"), (URI, "a.test"), (DNS, ".b.test")], &[(URI, ".c.test")]);
        let split = split(&whole).unwrap();
        assert_eq!(split.rest, Some(content(&[(DNS, "a.test"), (DNS, ".b.test")], &[])));
        assert_eq!(split.uris.permitted, [HostRule::Host("a.test".into())]);
        assert_eq!(split.uris.excluded, [HostRule::Below(".c.test".into())]);
    }

    #[test]
    fn what_cant_be_honoured_is_an_error() {
        let good = content(&[(URI, "a.test")], &[]);
        assert!(split(&good).is_ok());
        for name in
            ["", ".", "..a.test", "a..test", "a.test.", "https://a.test", "a.test:80", "10.0.0.1", "*.a"]
        {
            assert!(split(&content(&[(URI, name)], &[])).is_err(), "{name:?}");
            assert!(split(&content(&[], &[(URI, name)])).is_err(), "{name:?}");
        }
        assert!(split(&content(&[(DIRECTORY_NAME, "x")], &[])).is_err());
        assert!(split(&[]).is_err() && split(&[PERMITTED, 0]).is_err());
        for cut in 1..good.len() {
            assert!(split(&good[..cut]).is_err(), "cut at {cut}");
        }
        let twice = [good.clone(), good.clone()].concat();
        assert!(split(&twice).is_err());
        // A minimum beside the base.
        let mut bounded = subtree(URI, b"a.test");
        bounded.extend([0x80, 1, 0]);
        bounded[1] += 3;
        let mut list = Vec::new();
        write(&mut list, PERMITTED, &bounded);
        assert!(split(&list).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = split(&bytes);
        }

        #[test]
        fn what_is_left_over_reads_as_itself(dns in "[a-z]{1,200}", uri in "[a-z]{1,60}\\.test") {
            let whole = content(&[(0x82, &dns), (URI, &uri)], &[(0x82, &dns)]);
            let first = split(&whole).unwrap();
            let rest = first.rest.unwrap();
            prop_assert_eq!(&rest, &content(&[(0x82, &dns)], &[(0x82, &dns)]));
            prop_assert_eq!(split(&rest).unwrap().rest, Some(rest));
        }
    }
}
