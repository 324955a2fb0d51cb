//! Endpoint addresses and ranges: typed, strict, without the lenient forms of `inet_aton`.
//! *Hardened to untrusted peer* (threat T5).
//!
//! An address is an IP. Names as endpoint addresses are recognised and refused by import policy,
//! because checking them means resolving at connect time; see `docs/reference/limits.md`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Where an endpoint is. Only the canonical text form of an IP parses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointAddress(IpAddr);

/// Why a text is not an endpoint address or a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum AddressError {
    #[error("not an IP address: write four decimal numbers or an IPv6 address without brackets")]
    NotAnIp,
    #[error("an IPv4 address inside IPv6: write the IPv4 address itself")]
    Mapped,
    #[error("not a range: write ADDRESS/BITS, for example 203.0.113.0/24")]
    NotARange,
    #[error("the prefix length is longer than the address")]
    PrefixLength,
    #[error("the address has bits set beyond the prefix: write {0}")]
    HostBits(String),
    #[error("not a port or port range: write 443 or 8000-8999, from 1 to 65535")]
    NotAPort,
}

impl EndpointAddress {
    /// Parses the strict text form. `127.1`, `0x7f000001`, `[::1]`, `::ffff:1.2.3.4`, zone ids
    /// and CIDRs are refused.
    pub fn parse(text: &str) -> Result<EndpointAddress, AddressError> {
        let ip: IpAddr = text.parse().map_err(|_| AddressError::NotAnIp)?;
        EndpointAddress::try_from(ip)
    }

    /// The address.
    pub fn ip(self) -> IpAddr {
        self.0
    }

    /// The special-purpose block (IANA registries, RFC 6890) this address lies in, if any; such
    /// addresses are refused unless an import lists their range.
    pub fn special_purpose(self) -> Option<&'static str> {
        match self.0 {
            IpAddr::V4(ip) => special_v4(ip),
            IpAddr::V6(ip) => special_v6(ip),
        }
    }

    /// Whether no range may ever admit it: unspecified, broadcast, multicast, and the link-local
    /// blocks that hold cloud metadata services.
    pub fn never_an_endpoint(self) -> bool {
        match self.0 {
            IpAddr::V4(ip) => {
                ip.octets()[0] == 0 || ip.is_multicast() || ip.is_link_local() || ip.is_broadcast()
            }
            IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast() || ip.segments()[0] & 0xffc0 == 0xfe80,
        }
    }
}

impl TryFrom<IpAddr> for EndpointAddress {
    type Error = AddressError;
    fn try_from(ip: IpAddr) -> Result<Self, AddressError> {
        match ip {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(AddressError::Mapped),
            ip => Ok(EndpointAddress(ip)),
        }
    }
}

const V4_BLOCKS: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "shared address space"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignments"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 31, 196, 0), 24, "AS112"),
    (Ipv4Addr::new(192, 52, 193, 0), 24, "AMT"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(192, 175, 48, 0), 24, "AS112"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

fn special_v4(ip: Ipv4Addr) -> Option<&'static str> {
    V4_BLOCKS
        .iter()
        .find(|(net, bits, _)| u32::from(ip) >> (32 - bits) == u32::from(*net) >> (32 - bits))
        .map(|(_, _, what)| *what)
}

fn special_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let s = ip.segments();
    // Global unicast is 2000::/3; everything outside is special, and some blocks inside too.
    match s {
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        [0x64, 0xff9b, ..] => Some("NAT64"),
        [a, ..] if a & 0xfe00 == 0xfc00 => Some("unique local"),
        [a, ..] if a & 0xffc0 == 0xfe80 => Some("link-local"),
        [a, ..] if a & 0xff00 == 0xff00 => Some("multicast"),
        [0x2001, b, ..] if b < 0x200 => Some("protocol assignments"),
        [0x2001, 0xdb8, ..] => Some("documentation"),
        [0x2002, ..] => Some("6to4"),
        [0x3fff, b, ..] if b < 0x1000 => Some("documentation"),
        [a, ..] if a & 0xe000 == 0x2000 => None,
        _ => Some("reserved"),
    }
}

/// A block of addresses, `ADDRESS/BITS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange {
    base: IpAddr,
    bits: u8,
}

impl AddressRange {
    /// Parses `ADDRESS/BITS`; a bare address is the range of that one address.
    pub fn parse(text: &str) -> Result<AddressRange, AddressError> {
        let (address, bits) = match text.split_once('/') {
            Some((a, b)) => {
                let digits = !b.is_empty() && b.bytes().all(|c| c.is_ascii_digit());
                let bits = b.parse::<u8>().ok().filter(|_| digits).ok_or(AddressError::NotARange)?;
                (a, Some(bits))
            }
            None => (text, None),
        };
        let base = EndpointAddress::parse(address).map_err(|e| match e {
            AddressError::NotAnIp => AddressError::NotARange,
            other => other,
        })?;
        let width = if base.0.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        if bits > width {
            return Err(AddressError::PrefixLength);
        }
        let masked = mask(base.0, bits);
        if masked != base.0 {
            return Err(AddressError::HostBits(format!("{masked}/{bits}")));
        }
        Ok(AddressRange { base: base.0, bits })
    }

    /// Whether `address` lies in the range. IPv4 never lies in an IPv6 range.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.base.is_ipv4() == address.is_ipv4() && mask(address, self.bits) == self.base
    }

    /// The first address.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// The prefix length.
    pub fn bits(&self) -> u8 {
        self.bits
    }
}

fn mask(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let m = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & m).into())
        }
        IpAddr::V6(v6) => {
            let m = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & m).into())
        }
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}
impl TryFrom<String> for EndpointAddress {
    type Error = AddressError;
    fn try_from(s: String) -> Result<Self, AddressError> {
        EndpointAddress::parse(&s)
    }
}
impl From<EndpointAddress> for String {
    fn from(a: EndpointAddress) -> String {
        a.to_string()
    }
}
impl TryFrom<String> for AddressRange {
    type Error = AddressError;
    fn try_from(s: String) -> Result<Self, AddressError> {
        AddressRange::parse(&s)
    }
}
impl From<AddressRange> for String {
    fn from(r: AddressRange) -> String {
        r.to_string()
    }
}

/// An inclusive range of ports, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Parses `443` or `8000-8999`.
    pub fn parse(text: &str) -> Result<PortRange, AddressError> {
        let port = |t: &str| -> Result<u16, AddressError> {
            let digits = !t.is_empty() && t.bytes().all(|c| c.is_ascii_digit());
            let value = t.parse::<u16>().ok().filter(|p| *p > 0 && digits);
            value.ok_or(AddressError::NotAPort)
        };
        let (first, last) = match text.split_once('-') {
            Some((a, b)) => (port(a)?, port(b)?),
            None => (port(text)?, port(text)?),
        };
        if first > last {
            return Err(AddressError::NotAPort);
        }
        Ok(PortRange { first, last })
    }

    /// Whether `port` lies in the range.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}
impl TryFrom<String> for PortRange {
    type Error = AddressError;
    fn try_from(s: String) -> Result<Self, AddressError> {
        PortRange::parse(&s)
    }
}
impl From<PortRange> for String {
    fn from(r: PortRange) -> String {
        r.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lenient_and_disguised_addresses_are_refused() {
        for bad in [
            "127.1",
            "0x7f000001",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.01",
            "[::1]",
            "::ffff:127.0.0.1",
            "fe80::1%eth0",
            "10.0.0.0/8",
            "localhost",
            "",
            " 127.0.0.1",
            "127.0.0.1 ",
            "1.2.3.4:80",
            "١٢٧.0.0.1",
            "metadata.google.internal",
            "1.2.3",
            "1.2.3.4.5",
            "::ffff:7f00:1",
        ] {
            assert!(EndpointAddress::parse(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["127.0.0.1", "8.8.8.8", "::1", "2600::1"] {
            assert!(EndpointAddress::parse(good).is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn special_purpose_addresses_are_known_and_public_ones_are_not_special() {
        for special in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "198.18.0.1",
            "255.255.255.255",
            "224.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "ff02::1",
            "2001:db8::1",
            "::7f00:1",
            "2001::1",
        ] {
            assert!(EndpointAddress::parse(special).unwrap().special_purpose().is_some(), "{special}");
        }
        for public in ["8.8.8.8", "172.32.0.1", "11.0.0.1", "192.167.0.1", "2600::1", "2a00::1"] {
            assert!(EndpointAddress::parse(public).unwrap().special_purpose().is_none(), "{public}");
        }
    }

    #[test]
    fn a_range_contains_its_addresses_and_no_others() {
        let range = AddressRange::parse("127.64.0.0/10").unwrap();
        assert!(range.contains("127.64.0.1".parse().unwrap()));
        assert!(range.contains("127.127.255.255".parse().unwrap()));
        assert!(!range.contains("127.0.0.1".parse().unwrap()));
        assert!(!range.contains("::1".parse().unwrap()));
        assert!(AddressRange::parse("0.0.0.0/0").unwrap().contains("1.2.3.4".parse().unwrap()));
        assert_eq!(AddressRange::parse("10.0.0.1/8"), Err(AddressError::HostBits("10.0.0.0/8".into())));
        assert!(AddressRange::parse("10.0.0.0/33").is_err());
        assert!(AddressRange::parse("10.0.0.0/+8").is_err());
    }

    #[test]
    fn port_ranges_are_inclusive_and_ordered() {
        let range = PortRange::parse("8000-8999").unwrap();
        assert!(range.contains(8000) && range.contains(8999) && !range.contains(9000));
        assert!(PortRange::parse("0").is_err() && PortRange::parse("2-1").is_err());
        assert!(PortRange::parse("+1").is_err() && PortRange::parse("65536").is_err());
    }
}
