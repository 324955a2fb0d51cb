//! Who holds which name: a name belongs to its first owner until some time after its last use,
//! so that another owner can neither race for it nor take it over right after a delete
//! (threat T3). Local services always win.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::name::{Fqdn, PeerName};
use crate::rejection::{Rejection, RejectionCode};
use crate::service::{ImportedService, ServiceId};

/// How long a released name stays bound to its owner.
pub const HOLD_DOWN: Duration = Duration::from_secs(3600);
/// Most released names that stay bound to one owner. An owner that lets go of more within
/// [`HOLD_DOWN`] loses the hold-down of its own oldest ones, nobody else's.
pub const RELEASED_MAX: usize = 65_536;

#[derive(Debug, Default)]
struct Leases {
    local: BTreeSet<Fqdn>,
    bound: BTreeMap<Fqdn, Lease>,
    by_service: BTreeMap<ServiceId, Vec<Fqdn>>,
    // Released names by owner, oldest first.
    released: BTreeMap<PeerName, BTreeSet<(Duration, Fqdn)>>,
}

#[derive(Debug)]
struct Lease {
    holder: ServiceId,
    // Set while no entry of the holder uses the name any more: running time of the release.
    released: Option<Duration>,
}

/// The table of names, shared by all peers' sessions.
#[derive(Debug, Clone, Default)]
pub struct NameLeases {
    inner: Arc<Mutex<Leases>>,
}

impl NameLeases {
    /// A table without names.
    pub fn new() -> NameLeases {
        NameLeases::default()
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of local services; they are refused to every peer from now on.
    pub fn set_local(&self, names: BTreeSet<Fqdn>) {
        self.lock().local = names;
    }

    /// Binds all names of `import` to it, and releases those it held before and no longer has;
    /// or refuses, changing nothing. `now` is running time.
    pub fn claim(&self, import: &ImportedService, now: Duration) -> Result<(), Rejection> {
        let mut leases = self.lock();
        for name in import.names() {
            if leases.local.contains(name) {
                let message = format!("{name} is a service of the importing mesh itself; offer another name");
                return Err(Rejection::new(RejectionCode::NameTaken, "name-local", "fqdn", message));
            }
            let Some(lease) = leases.bound.get(name) else { continue };
            let expired = lease.released.is_some_and(|at| now.saturating_sub(at) >= HOLD_DOWN);
            let same_owner_let_go = lease.released.is_some() && lease.holder.owner == import.id.owner;
            if lease.holder != import.id && !expired && !same_owner_let_go {
                // The other owner isn't named: one peer must not learn of another.
                let message = format!(
                    "{name} is bound to another service; offer another name, or again after it is released"
                );
                return Err(Rejection::new(RejectionCode::NameTaken, "name-taken", "fqdn", message));
            }
        }
        let names: Vec<Fqdn> = import.names().cloned().collect();
        let before = leases.by_service.insert(import.id.clone(), names.clone()).unwrap_or_default();
        for name in before.into_iter().filter(|n| !names.contains(n)) {
            leases.release_name(&name, &import.id, now);
        }
        for name in names {
            leases.bind(name, &import.id);
        }
        leases.forget_released(&import.id.owner, now);
        Ok(())
    }

    /// Releases all names of a service; they stay bound to their owner for [`HOLD_DOWN`].
    pub fn release(&self, id: &ServiceId, now: Duration) {
        let mut leases = self.lock();
        for name in leases.by_service.remove(id).unwrap_or_default() {
            leases.release_name(&name, id, now);
        }
        leases.forget_released(&id.owner, now);
    }

    /// How many released names are still bound to `owner`.
    pub fn held_down(&self, owner: &PeerName) -> usize {
        self.lock().released.get(owner).map_or(0, BTreeSet::len)
    }
}

impl Leases {
    fn bind(&mut self, name: Fqdn, holder: &ServiceId) {
        let lease = Lease { holder: holder.clone(), released: None };
        let Some(Lease { holder, released: Some(at) }) = self.bound.insert(name.clone(), lease) else {
            return;
        };
        if let Some(released) = self.released.get_mut(&holder.owner) {
            released.remove(&(at, name));
        }
    }

    fn release_name(&mut self, name: &Fqdn, holder: &ServiceId, now: Duration) {
        let Some(lease) = self.bound.get_mut(name).filter(|l| l.holder == *holder) else { return };
        if lease.released.is_none() {
            lease.released = Some(now);
            self.released.entry(holder.owner.clone()).or_default().insert((now, name.clone()));
        }
    }

    /// Frees what `owner` released long ago, and its oldest beyond the limit.
    fn forget_released(&mut self, owner: &PeerName, now: Duration) {
        let Some(released) = self.released.get_mut(owner) else { return };
        while let Some((at, _)) = released.first() {
            if now.saturating_sub(*at) < HOLD_DOWN && released.len() <= RELEASED_MAX {
                break;
            }
            if let Some((_, name)) = released.pop_first() {
                self.bound.remove(&name);
            }
        }
        if released.is_empty() {
            self.released.remove(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::ServiceName;

    fn import(owner: &str, name: &str, fqdn: &str) -> ImportedService {
        ImportedService {
            id: ServiceId { owner: PeerName::parse(owner).unwrap(), name: ServiceName::parse(name).unwrap() },
            fqdn: Fqdn::parse(fqdn).unwrap(),
            description: String::new(),
            tags: vec![],
            labels: BTreeMap::new(),
            sans: vec![],
            instances: vec![],
        }
    }

    #[test]
    fn a_name_stays_with_its_first_owner_until_an_hour_after_release() {
        let leases = NameLeases::new();
        let first = import("acme", "pay", "pay.shared.example");
        let second = import("globex", "pay", "pay.shared.example");
        let at = Duration::from_secs;
        leases.claim(&first, at(0)).unwrap();
        assert_eq!(leases.claim(&second, at(1)).unwrap_err().rule, "name-taken");
        leases.release(&first.id, at(10));
        assert_eq!(leases.claim(&second, at(11)).unwrap_err().rule, "name-taken");
        leases.claim(&import("acme", "pay2", "pay.shared.example"), at(12)).unwrap();
        leases.release(&import("acme", "pay2", "pay.shared.example").id, at(20));
        leases.claim(&second, at(20) + HOLD_DOWN).unwrap();
    }

    #[test]
    fn an_owner_that_changes_names_all_the_time_costs_a_bounded_table() {
        let leases = NameLeases::new();
        let owner = PeerName::parse("acme").unwrap();
        leases.claim(&import("globex", "pay", "pay.shared.example"), Duration::ZERO).unwrap();
        leases.release(&import("globex", "pay", "pay.shared.example").id, Duration::ZERO);
        for i in 0..RELEASED_MAX + 100 {
            leases.claim(&import("acme", "churn", &format!("n{i}.acme.example")), Duration::ZERO).unwrap();
        }
        assert_eq!(leases.held_down(&owner), RELEASED_MAX);
        assert_eq!(leases.lock().bound.len(), RELEASED_MAX + 2);
        let theirs = leases.claim(&import("acme", "pay", "pay.shared.example"), Duration::ZERO).unwrap_err();
        assert_eq!(theirs.rule, "name-taken", "another owner's names are not let go");
        leases.claim(&import("acme", "churn", "last.acme.example"), HOLD_DOWN).unwrap();
        assert_eq!(leases.held_down(&owner), 1);
    }

    #[test]
    fn a_service_releases_only_the_names_that_it_holds_itself() {
        let leases = NameLeases::new();
        let (old, new) = (import("acme", "a", "x.acme.example"), import("acme", "b", "x.acme.example"));
        leases.claim(&old, Duration::ZERO).unwrap();
        leases.release(&old.id, Duration::ZERO);
        leases.claim(&new, Duration::ZERO).unwrap();
        leases.release(&old.id, Duration::ZERO);
        let other = import("globex", "c", "x.acme.example");
        assert_eq!(leases.claim(&other, HOLD_DOWN).unwrap_err().rule, "name-taken");
    }

    #[test]
    fn a_local_name_is_refused_to_every_peer() {
        let leases = NameLeases::new();
        leases.set_local([Fqdn::parse("pay.shared.example").unwrap()].into());
        let claim = |f| leases.claim(&import("acme", "pay", f), Duration::ZERO);
        assert_eq!(claim("pay.shared.example").unwrap_err().rule, "name-local");
        claim("pay2.shared.example").unwrap();
    }
}
