//! PROXY protocol v2 (the `proxy-protocol.txt` of HAProxy, section 2.2): how a TCP backend
//! learns who calls. Written, never read: nothing in front of us may claim a caller.
//!
//! The only TLV is 0xE0, the SPIFFE id that the client's certificate *proved* (decision 20).

use std::net::{IpAddr, SocketAddr};

use hamlet_core::SpiffeId;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// Type of the TLV with the proven id.
const TLV_PROVEN: u8 = 0xE0;

/// The header for a connection from `source` to our listener at `destination`.
pub(crate) fn header(source: SocketAddr, destination: SocketAddr, proven: &SpiffeId) -> Vec<u8> {
    let id = proven.as_str().as_bytes();
    let mut block = Vec::with_capacity(64 + id.len());
    let family = match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            block.extend(from.octets());
            block.extend(to.octets());
            TCP_OVER_IPV4
        }
        (from, to) => {
            block.extend(v6(from));
            block.extend(v6(to));
            TCP_OVER_IPV6
        }
    };
    block.extend(source.port().to_be_bytes());
    block.extend(destination.port().to_be_bytes());
    block.push(TLV_PROVEN);
    // A SPIFFE id has at most 2048 bytes.
    block.extend((id.len() as u16).to_be_bytes());
    block.extend(id);
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_2_PROXY, family]);
    header.extend((block.len() as u16).to_be_bytes());
    header.extend(block);
    header
}

fn v6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_byte_for_byte_what_the_specification_says() {
        let id = SpiffeId::parse("spiffe://g.example/gw").unwrap();
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        expected.extend([0x21, 0x11, 0x00, 12 + 3 + 21]);
        expected.extend([192, 0, 2, 7, 198, 51, 100, 1, 0xC0, 0x00, 0x1D, 0x14]);
        expected.extend([0xE0, 0x00, 21]);
        expected.extend(b"spiffe://g.example/gw");
        let from = "192.0.2.7:49152".parse().unwrap();
        assert_eq!(header(from, "198.51.100.1:7444".parse().unwrap(), &id), expected);
        let mapped = "[::ffff:192.0.2.7]:49152".parse().unwrap();
        assert_eq!(header(mapped, "[::ffff:198.51.100.1]:7444".parse().unwrap(), &id), expected);
    }

    #[test]
    fn ipv6_addresses_are_written_whole() {
        let id = SpiffeId::parse("spiffe://g.example/gw").unwrap();
        let bytes = header("[2600::1]:1".parse().unwrap(), "[2600::2]:2".parse().unwrap(), &id);
        assert_eq!(bytes[13], 0x21);
        assert_eq!(bytes[14..16], [0, 36 + 3 + 21]);
        assert_eq!(bytes[16..20], [0x26, 0, 0, 0]);
        assert_eq!(bytes[48..52], [0, 1, 0, 2]);
    }
}
