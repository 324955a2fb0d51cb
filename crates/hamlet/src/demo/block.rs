//! The loopback addresses of one mesh of the demo: a /24 of 127.64.0.0/10 that no other demo has.
//!
//! Every mesh has an address of its own for its listeners, so that it can use the well-known ports
//! although the other mesh, another demo and perhaps a real agent run on the same machine.
//! Invariant: a block is claimed by a bound socket for as long as it is in use.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// Bound on `.2` of each block in use. Any port would do if all demos agree.
const CLAIM_PORT: u16 = 7400;
/// How many random blocks are tried.
const TRIES: usize = 64;

/// A claimed block.
pub(super) struct Block {
    second: u8,
    third: u8,
    _claim: TcpListener,
}

impl Block {
    /// Claims a random one. 127.64.0.0/16 is left to agents with the default pool.
    pub(super) fn claim() -> io::Result<Block> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..TRIES {
            let (second, third) = (rand::random_range(65..127), rand::random());
            match TcpListener::bind((Ipv4Addr::new(127, second, third, 2), CLAIM_PORT)) {
                Ok(_claim) => return Ok(Block { second, third, _claim }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Where the mesh's own listeners are.
    pub(super) fn home(&self) -> Ipv4Addr {
        Ipv4Addr::new(127, self.second, self.third, 1)
    }

    /// Where its egress gives addresses to imported services.
    pub(super) fn pool(&self) -> String {
        format!("127.{}.{}.128/25", self.second, self.third)
    }

    /// Whether egress gives that address.
    pub(super) fn in_pool(&self, address: Ipv4Addr) -> bool {
        let [first, second, third, last] = address.octets();
        (first, second, third) == (127, self.second, self.third) && last >= 128
    }

    /// A free port at home, `wanted` if it is free: another program may have it on all addresses.
    pub(super) fn listener(&self, wanted: u16) -> io::Result<SocketAddr> {
        let home = self.home();
        let port = free(home, wanted).or_else(|_| free(home, 0))?;
        Ok(SocketAddr::from((home, port)))
    }

    /// A free port for imported services, `wanted` if it is free.
    pub(super) fn service_port(&self, wanted: u16) -> io::Result<u16> {
        let address = Ipv4Addr::new(127, self.second, self.third, 129);
        free(address, wanted).or_else(|_| free(address, 0))
    }
}

/// A port that is free for TCP and UDP.
fn free(address: Ipv4Addr, port: u16) -> io::Result<u16> {
    let tcp = TcpListener::bind((address, port))?;
    let port = tcp.local_addr()?.port();
    UdpSocket::bind((address, port))?;
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_blocks_never_share_an_address() {
        let (one, other) = (Block::claim().unwrap(), Block::claim().unwrap());
        assert_ne!(one.home(), other.home());
        assert_ne!(one.pool(), other.pool());
    }

    #[test]
    fn a_taken_port_is_replaced_by_another() {
        let block = Block::claim().unwrap();
        let other = TcpListener::bind((block.home(), 0)).unwrap();
        let taken = other.local_addr().unwrap();
        let given = block.listener(taken.port()).unwrap();
        assert_ne!(given.port(), taken.port());
        assert_eq!(given.ip(), taken.ip());
        drop(TcpListener::bind(given).unwrap());
    }
}
