//! Where an agent can be reached, in a token or a mesh's document: checked before anything is
//! dialled or kept. *Hardened to untrusted peer* (threat T5).
//!
//! Invariant: an address in a special-purpose block (private, loopback, ...) is taken only if we
//! name an address of that block ourselves, or the operator allowed its range; one that no range
//! may admit (link-local, multicast, ...) is never taken.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use hamlet_core::{AddressRange, EndpointAddress, Fqdn};

/// Most addresses of one agent in a token or a document.
pub const ADDRESSES_MAX: usize = 8;

/// Why an address isn't taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum AddressError {
    #[error("{0} is no address of an agent: write HOST:PORT, an IPv6 address in brackets")]
    Syntax(String),
    #[error("{0} can never be an agent's address: it is unspecified, link-local, multicast or broadcast")]
    Never(String),
    #[error("{address} is a {block} address; if the other mesh is meant to be there, say --allow-range")]
    Special { address: String, block: &'static str },
    #[error("{0} names this machine; write an address that the other mesh can reach")]
    Localhost(String),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Ip(EndpointAddress),
    Name(Fqdn),
}

/// `HOST:PORT` of an agent's listener, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AgentAddress {
    host: Host,
    port: NonZeroU16,
}

impl AgentAddress {
    /// Reads `HOST:PORT`: an IP in strict form (IPv6 in brackets) or a full host name, and a port.
    ///
    /// # Errors
    /// [`AddressError`], also for `localhost` and for what can never be an endpoint.
    pub fn parse(text: &str) -> Result<AgentAddress, AddressError> {
        let syntax = || AddressError::Syntax(hamlet_core::rejection::one_line(text, 128));
        let (host, port) = text.rsplit_once(':').ok_or_else(syntax)?;
        let digits = !port.is_empty() && !port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse::<NonZeroU16>().ok().filter(|_| digits).ok_or_else(syntax)?;
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match (bracketed, EndpointAddress::parse(bracketed.unwrap_or(host))) {
            (brackets, Ok(ip)) if ip.ip().is_ipv6() == brackets.is_some() => Host::Ip(ip),
            (None, Err(_)) => {
                let name = Fqdn::parse(host).ok().filter(Fqdn::is_host_name).ok_or_else(syntax)?;
                if name.labels().next_back() == Some("localhost") {
                    return Err(AddressError::Localhost(name.to_string()));
                }
                Host::Name(name)
            }
            _ => return Err(syntax()),
        };
        let address = AgentAddress { host, port };
        match &address.host {
            Host::Ip(ip) if ip.never_an_endpoint() => Err(AddressError::Never(address.to_string())),
            _ => Ok(address),
        }
    }

    /// The name or address, without brackets.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Ip(ip) => ip.to_string(),
            Host::Name(name) => name.to_string(),
        }
    }

    /// The address, if it isn't a name.
    pub fn ip(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Ip(ip) => Some(ip.ip()),
            Host::Name(_) => None,
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port.get()
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) if ip.ip().is_ipv6() => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(ip) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Which addresses of the other side are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedAddresses {
    /// Our own, as we tell them: what is special about them may be special about the other side's.
    pub ours: Vec<AgentAddress>,
    /// What the operator allowed.
    pub ranges: Vec<AddressRange>,
}

impl AllowedAddresses {
    /// Whether the other side may be there.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn check(&self, address: &AgentAddress) -> Result<(), AddressError> {
        match address.ip() {
            Some(ip) => self.check_ip(ip),
            None => Ok(()),
        }
    }

    /// The same for what a name resolved to.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn check_ip(&self, ip: IpAddr) -> Result<(), AddressError> {
        let address = EndpointAddress::try_from(ip).map_err(|_| AddressError::Syntax(ip.to_string()))?;
        if address.never_an_endpoint() {
            return Err(AddressError::Never(ip.to_string()));
        }
        let Some(block) = address.special_purpose() else { return Ok(()) };
        let block_of = |a: &AgentAddress| EndpointAddress::try_from(a.ip()?).ok()?.special_purpose();
        let like_ours = self.ours.iter().any(|ours| block_of(ours) == Some(block));
        if like_ours || self.ranges.iter().any(|range| range.contains(ip)) {
            return Ok(());
        }
        Err(AddressError::Special { address: ip.to_string(), block })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strange_addresses_are_refused_and_their_plain_neighbours_taken() {
        let cases = [
            ("agent.globex.example:7443", "agent.globex.example"),
            ("8.8.8.8:7443", "8.8.8.8:0"),
            ("8.8.8.8:443", "8.8.8.8:0443"),
            ("[2600::1]:7443", "2600::1:7443"),
            ("8.8.8.8:1", "[8.8.8.8]:1"),
            ("127.0.0.1:7443", "127.1:7443"),
            ("[::1]:7443", "[::ffff:127.0.0.1]:7443"),
            ("hosts.example:7443", "localhost:7443"),
            ("hosts.example:7443", "x.localhost:7443"),
            ("10.0.0.1:65535", "10.0.0.1:65536"),
            ("10.0.0.1:7443", "169.254.169.254:80"),
            ("10.0.0.1:7443", "0.0.0.0:7443"),
            ("a.example:7443", "a b.example:7443"),
        ];
        for (good, bad) in cases {
            assert_eq!(AgentAddress::parse(good).unwrap().to_string(), good);
            assert!(AgentAddress::parse(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn special_addresses_are_taken_only_in_kind_or_in_an_allowed_range() {
        let at = |text: &str| AgentAddress::parse(text).unwrap();
        let none = AllowedAddresses::default();
        assert!(none.check(&at("8.8.8.8:7443")).is_ok() && none.check(&at("a.example:7443")).is_ok());
        assert!(matches!(none.check(&at("10.0.0.9:7443")), Err(AddressError::Special { .. })));
        let kind = AllowedAddresses { ours: vec![at("192.168.1.2:7443")], ranges: vec![] };
        assert!(kind.check(&at("10.0.0.9:7443")).is_ok());
        assert!(kind.check(&at("127.0.0.1:7443")).is_err());
        let ranges = vec![AddressRange::parse("127.0.0.0/8").unwrap()];
        let range = AllowedAddresses { ours: vec![], ranges };
        assert!(range.check(&at("127.0.0.1:7443")).is_ok() && range.check(&at("10.0.0.9:7443")).is_err());
        assert!(range.check_ip("169.254.169.254".parse().unwrap()).is_err());
    }
}
