//! Handshakes are scarce for addresses whose peers break the protocol: who comes back as soon as it
//! is thrown out must not take the processor from those who behave (threat T14).
//!
//! It counts, and keeps no connection. Invariants: only who has proven to be a peer gets an address
//! in here, so no stranger can slow another's; connections that are up are not touched; the table is
//! bounded, and forgets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;

/// How long an address is remembered after its last breach of the protocol.
pub const REMEMBERED: Duration = Duration::from_secs(60);
/// Meanwhile there is one handshake in so long for it.
pub const SPACING: Duration = Duration::from_millis(250);
/// So many of its connections may wait for theirs; the next one is closed.
pub const WAITING_MAX: u32 = 8;
/// Most addresses that are remembered; beyond it the one is forgotten whose last breach is oldest.
pub const ADDRESSES_MAX: usize = 1024;

/// More connections of one address wait than may.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a peer at this address broke the protocol less than {} s ago, and {WAITING_MAX} connections from it wait \
     already; connect less often",
    REMEMBERED.as_secs()
)]
pub(crate) struct TooMany;

#[derive(Debug)]
struct Breach {
    last: Duration,
    /// From when on there may be another handshake.
    next: Duration,
}

/// Where peers have broken the protocol lately; times are running time.
#[derive(Debug, Default)]
pub(crate) struct Breaches(Mutex<HashMap<IpAddr, Breach>>);

impl Breaches {
    /// A proven peer at `address` has broken the protocol.
    pub(crate) fn note(&self, address: IpAddr, now: Duration) {
        let mut breaches = self.0.lock();
        let known = breaches.entry(of(address)).or_insert(Breach { last: now, next: now + SPACING });
        known.last = now;
        if breaches.len() > ADDRESSES_MAX {
            breaches.retain(|_, breach| !is_old(breach, now));
        }
        if breaches.len() > ADDRESSES_MAX
            && let Some(oldest) = breaches.iter().min_by_key(|(_, b)| b.last).map(|(address, _)| *address)
        {
            breaches.remove(&oldest);
        }
    }

    /// How long a connection from `address` has to wait for its handshake.
    pub(crate) fn wait(&self, address: IpAddr, now: Duration) -> Result<Duration, TooMany> {
        let address = of(address);
        let mut breaches = self.0.lock();
        let Some(breach) = breaches.get_mut(&address) else { return Ok(Duration::ZERO) };
        if is_old(breach, now) {
            breaches.remove(&address);
            return Ok(Duration::ZERO);
        }
        let turn = breach.next.max(now);
        let wait = turn - now;
        if wait > SPACING * WAITING_MAX {
            return Err(TooMany);
        }
        breach.next = turn + SPACING;
        Ok(wait)
    }
}

fn is_old(breach: &Breach, now: Duration) -> bool {
    now.saturating_sub(breach.last) >= REMEMBERED
}

/// One IPv4 address, or the /64 that a host of IPv6 can choose from.
fn of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
    }
}

/// Whether a connection ended because the other side broke the rules of HTTP/2, and not because it
/// was lost or the other side ended it.
pub(crate) fn is_breach(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<h2::Error>()).any(h2::Error::is_library)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn who_keeps_the_protocol_never_waits() {
        let breaches = Breaches::default();
        breaches.note(B, s(1));
        assert!((0..10_000).all(|_| breaches.wait(A, s(1)) == Ok(Duration::ZERO)));
    }

    #[test]
    fn after_a_breach_handshakes_come_one_after_the_other_and_few_wait() {
        let breaches = Breaches::default();
        breaches.note(A, s(1));
        for turn in 1..=WAITING_MAX {
            assert_eq!(breaches.wait(A, s(1)), Ok(SPACING * turn));
        }
        assert_eq!(breaches.wait(A, s(1)), Err(TooMany));
        assert_eq!(breaches.wait(B, s(1)), Ok(Duration::ZERO));
        // Later there is room again.
        assert_eq!(breaches.wait(A, s(4)), Ok(Duration::ZERO));
    }

    #[test]
    fn a_further_breach_does_not_give_the_turn_back() {
        let breaches = Breaches::default();
        breaches.note(A, s(1));
        assert_eq!(breaches.wait(A, s(1)), Ok(SPACING));
        breaches.note(A, s(1));
        assert_eq!(breaches.wait(A, s(1)), Ok(SPACING * 2));
    }

    #[test]
    fn a_breach_is_forgotten_after_a_minute_without_another() {
        let breaches = Breaches::default();
        breaches.note(A, s(1));
        breaches.note(A, s(30));
        assert_eq!(breaches.wait(A, s(89)), Ok(Duration::ZERO));
        assert_ne!(breaches.wait(A, s(89)), Ok(Duration::ZERO));
        assert_eq!(breaches.wait(A, s(90)), Ok(Duration::ZERO));
        assert!(breaches.0.lock().is_empty());
    }

    #[test]
    fn the_table_keeps_the_latest_addresses() {
        let breaches = Breaches::default();
        let address = |i: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + i));
        let most = ADDRESSES_MAX as u32;
        (0..most + 10).for_each(|i| breaches.note(address(i), s(1) + Duration::from_millis(i.into())));
        assert_eq!(breaches.0.lock().len(), ADDRESSES_MAX);
        assert_eq!(breaches.wait(address(9), s(1)), Ok(Duration::ZERO));
        assert_ne!(breaches.wait(address(10), s(1)), Ok(Duration::ZERO));
    }

    #[test]
    fn hosts_of_ipv6_are_told_apart_by_their_network() {
        let breaches = Breaches::default();
        let [one, other, mapped]: [IpAddr; 3] =
            ["2001:db8::1", "2001:db8::ffff:2", "::ffff:192.0.2.1"].map(|a| a.parse().unwrap());
        breaches.note(one, s(1));
        assert_ne!(breaches.wait(other, s(1)), Ok(Duration::ZERO));
        breaches.note(mapped, s(1));
        assert_ne!(breaches.wait(A, s(1)), Ok(Duration::ZERO));
    }
}
