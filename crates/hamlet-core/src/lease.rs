//! Who holds which name: a name belongs to its first owner until some time after its last use,
//! so that another owner can neither race for it nor take it over right after a delete
//! (threat T3). Local services always win.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::name::Fqdn;
use crate::rejection::{Rejection, RejectionCode};
use crate::service::{ImportedService, ServiceId};

/// How long a released name stays bound to its owner.
pub const HOLD_DOWN: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct Leases {
    local: BTreeSet<Fqdn>,
    bound: BTreeMap<Fqdn, Lease>,
    by_service: BTreeMap<ServiceId, Vec<Fqdn>>,
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
            leases.release_name(&name, now);
        }
        for name in names {
            leases.bound.insert(name, Lease { holder: import.id.clone(), released: None });
        }
        leases.bound.retain(|_, l| l.released.is_none_or(|at| now.saturating_sub(at) < HOLD_DOWN));
        Ok(())
    }

    /// Releases all names of a service; they stay bound to their owner for [`HOLD_DOWN`].
    pub fn release(&self, id: &ServiceId, now: Duration) {
        let mut leases = self.lock();
        for name in leases.by_service.remove(id).unwrap_or_default() {
            leases.release_name(&name, now);
        }
    }
}

impl Leases {
    fn release_name(&mut self, name: &Fqdn, now: Duration) {
        if let Some(lease) = self.bound.get_mut(name) {
            lease.released = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::PeerName;
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
    fn a_local_name_is_refused_to_every_peer() {
        let leases = NameLeases::new();
        leases.set_local([Fqdn::parse("pay.shared.example").unwrap()].into());
        let claim = |f| leases.claim(&import("acme", "pay", f), Duration::ZERO);
        assert_eq!(claim("pay.shared.example").unwrap_err().rule, "name-local");
        claim("pay2.shared.example").unwrap();
    }
}
