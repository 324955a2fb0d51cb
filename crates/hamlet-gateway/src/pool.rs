//! The pool of local addresses: one for each imported name, stable across restarts. Pure; the
//! agent keeps the saved form ([`AddressPool::to_bytes`]) and passes the wall clock in.
//!
//! Invariants: an address belongs to one name; a name keeps its address as long as it is wanted
//! and gets the same one back if it returns; another name gets it only 24 hours after its
//! release (`ADDRESS_COOLING`), so that a stale DNS answer never leads to a stranger.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use hamlet_core::{AddressRange, DnsLabel, ImportedService, ServiceId};
use serde::{Deserialize, Serialize};

use crate::limits::{ADDRESS_COOLING, POOL_BYTES, POOL_SLOTS};
use crate::routes::programmable;

/// What has an address: a service under its fqdn, or one instance under its own name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddressName {
    /// The service.
    pub id: ServiceId,
    /// The instance for `<instance>.<fqdn>`; `None` for the fqdn itself.
    pub instance: Option<DnsLabel>,
}

impl AddressName {
    /// The names of `imports` that need an address: those with a programmable instance.
    pub fn wanted<'a>(imports: impl IntoIterator<Item = &'a ImportedService>) -> BTreeSet<AddressName> {
        let mut names = BTreeSet::new();
        for service in imports {
            for instance in service.instances.iter().filter(|i| programmable(i).is_some()) {
                names.insert(AddressName { id: service.id.clone(), instance: None });
                names.insert(AddressName { id: service.id.clone(), instance: Some(instance.id.clone()) });
            }
        }
        names
    }

    /// FNV-1a over `owner|service|instance`; an owner that makes collisions gains nothing, see
    /// [`Probe`].
    fn hash(&self) -> u64 {
        let instance = self.instance.as_ref().map_or("", |i| i.as_str());
        let parts = [self.id.owner.as_str(), "|", self.id.name.as_str(), "|", instance];
        parts
            .iter()
            .flat_map(|p| p.bytes())
            .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    }
}

/// Why a name has no address, or saved state can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// All addresses are taken or cooling.
    #[error(
        "the egress pool {0} has no free address (addresses rest 24 h after their release): \
         give the agent a larger pool, or reach HTTP services through the shared HTTP listener"
    )]
    Exhausted(AddressRange),
    /// The name was not among those last assigned.
    #[error("no address was assigned to this name yet: assign names before routes are built")]
    Unassigned,
    /// The saved state does not parse.
    #[error("the saved egress addresses can't be read ({0}): start with an empty pool; addresses may change")]
    Damaged(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    address: IpAddr,
    /// Wall clock of the release in seconds, while it cools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    leases: Vec<(AddressName, Lease)>,
}

const SAVED_VERSION: u32 = 1;

/// Addresses by name, within one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPool {
    range: AddressRange,
    leases: BTreeMap<AddressName, Lease>,
    exhausted: BTreeSet<AddressName>,
}

impl AddressPool {
    /// An empty pool over `range`; its first and last address are left out if it has more than two.
    pub fn new(range: AddressRange) -> AddressPool {
        AddressPool { range, leases: BTreeMap::new(), exhausted: BTreeSet::new() }
    }

    /// Restores a pool. Saved addresses outside of `range`, and second uses of one address, are
    /// dropped: their names get new ones.
    pub fn from_bytes(range: AddressRange, bytes: &[u8]) -> Result<AddressPool, PoolError> {
        if bytes.len() > POOL_BYTES {
            return Err(PoolError::Damaged(format!("{} bytes are too many", bytes.len())));
        }
        let saved: Saved = serde_json::from_slice(bytes).map_err(|e| PoolError::Damaged(e.to_string()))?;
        if saved.version != SAVED_VERSION {
            return Err(PoolError::Damaged(format!("unknown version {}", saved.version)));
        }
        let mut pool = AddressPool::new(range);
        let mut used = HashSet::new();
        for (name, lease) in saved.leases {
            if pool.slot_of(lease.address).is_some() && used.insert(lease.address) {
                pool.leases.insert(name, lease);
            }
        }
        Ok(pool)
    }

    /// The form to save: JSON, readable by people.
    pub fn to_bytes(&self) -> Vec<u8> {
        let leases = self.leases.iter().map(|(n, l)| (n.clone(), *l)).collect();
        // Names, addresses and numbers only: serialisation has nothing to fail on.
        serde_json::to_vec(&Saved { version: SAVED_VERSION, leases }).unwrap_or_default()
    }

    /// The range.
    pub fn range(&self) -> AddressRange {
        self.range
    }

    /// Makes `names` the set that has addresses: new ones get one, others are released. `wall`
    /// is the wall clock since the epoch. Says whether the saved form changed.
    pub fn assign(&mut self, names: &BTreeSet<AddressName>, wall: Duration) -> bool {
        let now = wall.as_secs();
        let before = self.leases.clone();
        self.leases.retain(|name, lease| {
            if names.contains(name) {
                lease.released = None;
                return true;
            }
            // A clock that went back counts as no time.
            let since = *lease.released.get_or_insert(now);
            now.saturating_sub(since) < ADDRESS_COOLING.as_secs()
        });
        self.exhausted.clear();
        let slots = self.slots();
        let taken = self.leases.values().filter_map(|l| self.slot_of(l.address)).collect();
        let mut probe = Probe { taken, skip: HashMap::new(), slots };
        for name in names {
            if self.leases.contains_key(name) {
                continue;
            }
            match probe.take((name.hash() % u64::from(slots)) as u32) {
                Some(slot) => {
                    let lease = Lease { address: self.address_of(slot), released: None };
                    self.leases.insert(name.clone(), lease);
                }
                None => {
                    self.exhausted.insert(name.clone());
                }
            }
        }
        before != self.leases
    }

    /// The address of a name among those last assigned.
    pub fn address(&self, name: &AddressName) -> Result<IpAddr, PoolError> {
        match self.leases.get(name) {
            Some(lease) if lease.released.is_none() => Ok(lease.address),
            _ if self.exhausted.contains(name) => Err(PoolError::Exhausted(self.range)),
            _ => Err(PoolError::Unassigned),
        }
    }

    fn width(&self) -> u32 {
        if self.range.base().is_ipv4() { 32 } else { 128 }
    }

    /// Offset of slot 0: the network address is left out of ranges with more than two addresses.
    fn skipped(&self) -> u32 {
        u32::from(self.width() - u32::from(self.range.bits()) > 1)
    }

    fn slots(&self) -> u32 {
        match self.width() - u32::from(self.range.bits()) {
            host @ 0..=1 => 1 << host,
            host if host < POOL_SLOTS.ilog2() => (1 << host) - 2,
            _ => POOL_SLOTS - 2,
        }
    }

    fn address_of(&self, slot: u32) -> IpAddr {
        let offset = slot + self.skipped();
        match self.range.base() {
            IpAddr::V4(base) => IpAddr::V4((u32::from(base) + offset).into()),
            IpAddr::V6(base) => IpAddr::V6((u128::from(base) + u128::from(offset)).into()),
        }
    }

    fn slot_of(&self, address: IpAddr) -> Option<u32> {
        if !self.range.contains(address) {
            return None;
        }
        let offset = match (address, self.range.base()) {
            (IpAddr::V4(a), IpAddr::V4(base)) => u128::from(u32::from(a) - u32::from(base)),
            (IpAddr::V6(a), IpAddr::V6(base)) => u128::from(a) - u128::from(base),
            _ => return None,
        };
        let slot = u32::try_from(offset).ok()?.checked_sub(self.skipped())?;
        (slot < self.slots()).then_some(slot)
    }
}

/// Linear probing with path compression: names made to collide cost near constant time each.
struct Probe {
    taken: HashSet<u32>,
    skip: HashMap<u32, u32>,
    slots: u32,
}

impl Probe {
    fn take(&mut self, start: u32) -> Option<u32> {
        if self.taken.len() >= self.slots as usize {
            return None;
        }
        let (mut slot, mut path) = (start, Vec::new());
        while self.taken.contains(&slot) {
            path.push(slot);
            slot = self.skip.get(&slot).copied().unwrap_or((slot + 1) % self.slots);
        }
        for passed in path {
            self.skip.insert(passed, slot);
        }
        self.taken.insert(slot);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hamlet_core::ServiceName;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn name(service: &str) -> AddressName {
        let id =
            ServiceId { owner: DnsLabel::parse("acme").unwrap(), name: ServiceName::parse(service).unwrap() };
        AddressName { id, instance: None }
    }

    fn names(services: &[&str]) -> BTreeSet<AddressName> {
        services.iter().map(|s| name(s)).collect()
    }

    fn pool(range: &str) -> AddressPool {
        AddressPool::new(AddressRange::parse(range).unwrap())
    }

    #[test]
    fn an_address_is_stable_whatever_else_comes_and_goes_and_across_a_restart() {
        let mut first = pool("127.64.0.0/16");
        assert!(first.assign(&names(&["a", "b"]), DAY));
        assert!(!first.assign(&names(&["a", "b"]), DAY * 2), "nothing changed");
        let a = first.address(&name("a")).unwrap();
        assert!(first.range().contains(a));
        let mut again = AddressPool::from_bytes(first.range(), &first.to_bytes()).unwrap();
        assert_eq!(again, first);
        again.assign(&names(&["a", "c", "d"]), DAY * 3);
        assert_eq!(again.address(&name("a")).unwrap(), a);
        assert_eq!(again.address(&name("b")), Err(PoolError::Unassigned));
        let mut fresh = pool("127.64.0.0/16");
        fresh.assign(&names(&["a"]), DAY * 9);
        assert_eq!(fresh.address(&name("a")).unwrap(), a, "the slot follows from the name");
    }

    #[test]
    fn a_released_address_rests_for_24_hours_but_returns_to_its_own_name() {
        let mut pool = pool("127.64.0.0/30");
        pool.assign(&names(&["a", "b"]), DAY);
        let (a, b) = (pool.address(&name("a")).unwrap(), pool.address(&name("b")).unwrap());
        assert_ne!(a, b);
        pool.assign(&names(&["b"]), DAY);
        pool.assign(&names(&["b", "c"]), DAY * 2 - Duration::from_secs(1));
        assert!(matches!(pool.address(&name("c")), Err(PoolError::Exhausted(_))));
        assert_eq!(pool.address(&name("b")).unwrap(), b, "exhaustion concerns that name only");
        let mut returning = pool.clone();
        returning.assign(&names(&["a", "b"]), DAY * 2 - Duration::from_secs(1));
        assert_eq!(returning.address(&name("a")).unwrap(), a);
        pool.assign(&names(&["b", "c"]), DAY * 2);
        assert_eq!(pool.address(&name("c")).unwrap(), a);
    }

    #[test]
    fn a_clock_that_goes_back_frees_nothing() {
        let mut pool = pool("127.64.0.0/32");
        pool.assign(&names(&["a"]), DAY * 9);
        pool.assign(&names(&[]), DAY * 9);
        pool.assign(&names(&["b"]), DAY);
        assert!(matches!(pool.address(&name("b")), Err(PoolError::Exhausted(_))));
    }

    #[test]
    fn saved_addresses_outside_of_a_changed_range_are_given_anew() {
        let mut old = pool("127.64.0.0/16");
        old.assign(&names(&["a"]), DAY);
        let mut new =
            AddressPool::from_bytes(AddressRange::parse("127.65.0.0/16").unwrap(), &old.to_bytes()).unwrap();
        assert!(new.assign(&names(&["a"]), DAY));
        assert!(new.range().contains(new.address(&name("a")).unwrap()));
    }

    #[test]
    fn damaged_state_is_an_error_and_never_a_panic() {
        let range = AddressRange::parse("127.64.0.0/16").unwrap();
        let mut good = pool("127.64.0.0/16");
        good.assign(&names(&["a"]), DAY);
        let bytes = good.to_bytes();
        for cut in 0..bytes.len() {
            assert!(matches!(AddressPool::from_bytes(range, &bytes[..cut]), Err(PoolError::Damaged(_))));
        }
        assert!(AddressPool::from_bytes(range, b"{\"version\":2,\"leases\":[]}").is_err());
        assert!(AddressPool::from_bytes(range, &bytes).is_ok());
    }

    #[test]
    fn every_size_of_range_gives_distinct_addresses_within_it() {
        for (range, most) in [
            ("127.64.0.1", 1),
            ("127.64.0.0/31", 2),
            ("127.64.0.0/29", 6),
            ("::1", 1),
            ("fd00::/120", 254),
            ("0.0.0.0/0", 300),
            ("fd00::/8", 300),
        ] {
            let all: Vec<String> = (0..300).map(|i| format!("s{i}")).collect();
            let mut pool = pool(range);
            pool.assign(&all.iter().map(|s| name(s)).collect(), DAY);
            let given: BTreeSet<IpAddr> = all.iter().filter_map(|s| pool.address(&name(s)).ok()).collect();
            assert_eq!(given.len(), most, "{range}");
            assert!(given.iter().all(|a| pool.range().contains(*a)), "{range}");
        }
    }

    #[test]
    fn names_made_to_collide_get_addresses_in_reasonable_time() {
        let mut probe = Probe { taken: HashSet::new(), skip: HashMap::new(), slots: 65_534 };
        let given: HashSet<u32> = (0..65_534).filter_map(|_| probe.take(7)).collect();
        assert_eq!(given.len(), 65_534);
        assert_eq!(probe.take(7), None);
    }
}
