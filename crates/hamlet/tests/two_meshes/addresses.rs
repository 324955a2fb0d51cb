//! Loopback addresses that no other mesh on this machine has: a /24 of 127.64.0.0/10 each.
//!
//! A block is claimed by a bound socket for as long as it is in use.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// Bound on `.3` of each block in use.
const CLAIM_PORT: u16 = 7400;

/// A claimed block: `.1` for the mesh's listeners, the upper half for its egress.
pub(crate) struct Block {
    second: u8,
    third: u8,
    given: RefCell<BTreeSet<u16>>,
    _claim: TcpListener,
}

impl Block {
    /// Claims a random one; the first /16 is left to agents with the default pool.
    pub(crate) fn claim() -> Block {
        let claimed = (0..64).find_map(|_| {
            let (second, third) = (rand::random_range(65..=127), rand::random());
            let claim = TcpListener::bind((Ipv4Addr::new(127, second, third, 3), CLAIM_PORT)).ok()?;
            Some(Block { second, third, given: RefCell::default(), _claim: claim })
        });
        claimed.expect("no free block of loopback addresses")
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.second, self.third, last)
    }

    /// The pool of egress addresses.
    pub(crate) fn pool(&self) -> String {
        format!("{}/25", self.address(128))
    }

    /// Whether egress gives that address.
    pub(crate) fn in_pool(&self, address: Ipv4Addr) -> bool {
        let [a, b, c, d] = address.octets();
        (a, b, c) == (127, self.second, self.third) && d >= 128
    }

    /// A free port for a listener of the mesh, another one each time.
    pub(crate) fn listener(&self) -> SocketAddr {
        let home = self.address(1);
        (home, self.free_port(home)).into()
    }

    /// A free port for imported services.
    pub(crate) fn service_port(&self) -> u16 {
        self.free_port(self.address(129))
    }

    /// A port that is free for TCP and UDP at that address and wasn't given before.
    fn free_port(&self, address: Ipv4Addr) -> u16 {
        let mut given = self.given.borrow_mut();
        let free = (0..64).find_map(|_| {
            let tcp = TcpListener::bind((address, 0)).ok()?;
            let port = tcp.local_addr().ok()?.port();
            UdpSocket::bind((address, port)).ok().filter(|_| given.insert(port)).map(|_| port)
        });
        free.expect("no free port")
    }
}
