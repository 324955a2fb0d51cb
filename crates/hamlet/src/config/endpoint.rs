//! The URL of a bundle endpoint: `https`, a host, a path, and nothing that could hold a secret.
//!
//! It resolves nothing and asks nobody. Invariant: what is parsed says one host and one port, the
//! same that will be dialled and, with `https_web`, proven.

use std::fmt;

use super::model::PeerAddress;

/// Port of `https` where the URL has none.
const HTTPS_PORT: u16 = 443;
/// Longest URL, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// Where a bundle is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointUrl {
    at: PeerAddress,
    path: String,
}

impl EndpointUrl {
    /// Reads `https://HOST[:PORT][/PATH]`. User names, fragments and other schemes are refused
    /// (SPIFFE Federation, 5.1).
    pub fn parse(text: &str) -> Result<EndpointUrl, String> {
        if text.len() > URL_BYTES_MAX {
            return Err(format!("the URL has more than {URL_BYTES_MAX} bytes"));
        }
        let rest = text.strip_prefix("https://").ok_or("it doesn't start with https://")?;
        if !rest.bytes().all(|b| b.is_ascii_graphic()) || rest.contains(['#', '\\', '"', '<', '>']) {
            return Err("it has a character that has no place in a URL".to_owned());
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("it has a user name or password in it".to_owned());
        }
        let has_port =
            authority.rsplit_once(':').is_some_and(|(host, _)| !host.starts_with('[') || host.ends_with(']'));
        let at = match has_port {
            true => PeerAddress::parse(authority)?,
            false => PeerAddress::parse(&format!("{authority}:{HTTPS_PORT}"))?,
        };
        let path = match path.starts_with('/') {
            true => path.to_owned(),
            false => format!("/{path}"),
        };
        Ok(EndpointUrl { at, path })
    }

    /// Where a `Location` that came with this URL's answer leads.
    pub fn redirected(&self, location: &str) -> Result<EndpointUrl, String> {
        match location.strip_prefix('/') {
            Some(rest) if !rest.starts_with('/') => {
                EndpointUrl::parse(&format!("https://{}{location}", self.at))
            }
            _ => EndpointUrl::parse(location),
        }
    }

    /// The host, IPv6 without brackets.
    pub fn host(&self) -> &str {
        self.at.host()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.at.port()
    }

    /// Host and port as the `Host` header has them.
    pub fn authority(&self) -> String {
        let full = self.at.to_string();
        match full.strip_suffix(":443") {
            Some(host) => host.to_owned(),
            None => full,
        }
    }

    /// Path and query, from the slash on.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_more_than_a_place_in_it_is_refused_and_its_neighbour_is_read() {
        for (bad, good, shown) in [
            ("http://globex.example/", "https://globex.example", "https://globex.example/"),
            ("https://a:b@globex.example/", "https://globex.example/a@b", "https://globex.example/a@b"),
            ("https://globex.example/#x", "https://globex.example/?x", "https://globex.example/?x"),
            ("https://globex.example:0/", "https://globex.example:8443/b", "https://globex.example:8443/b"),
            ("https://globex.example:443x/", "https://globex.example:443/", "https://globex.example/"),
            ("https:///b", "https://GLOBEX.example?b=1", "https://globex.example/?b=1"),
            ("https://[::1/", "https://[::1]/", "https://[::1]/"),
            ("https://::1/", "https://[::1]:1/", "https://[::1]:1/"),
            ("https://globex.example/a b", "https://globex.example/a%20b", "https://globex.example/a%20b"),
            ("https://globex.example\\@a/", "https://127.0.0.1/", "https://127.0.0.1/"),
        ] {
            assert!(EndpointUrl::parse(bad).is_err(), "{bad}");
            assert_eq!(EndpointUrl::parse(good).map(|u| u.to_string()).as_deref(), Ok(shown), "{good}");
        }
    }

    #[test]
    fn a_redirect_leads_to_https_or_stays_on_its_host() {
        let from = EndpointUrl::parse("https://globex.example:8443/a").unwrap();
        let to = |location: &str| from.redirected(location).map(|u| u.to_string());
        assert_eq!(to("/b").as_deref(), Ok("https://globex.example:8443/b"));
        assert_eq!(to("https://other.example/b").as_deref(), Ok("https://other.example/b"));
        for bad in ["//other.example/", "http://globex.example/", "b", "", "https://a@b/"] {
            assert!(to(bad).is_err(), "{bad}");
        }
    }
}
