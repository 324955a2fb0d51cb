//! Sockets that have not sent a whole ClientHello yet: cheap, bounded, the oldest evicted.
//! *Hardened to untrusted peer* (threat T15, decision 25).
//!
//! Invariant: never more than the limit, and a new socket is never refused for silent ones. The
//! limit for one prefix evicts the oldest of that prefix, so that one network can't push out
//! others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::limits::Limits;

type Prefix = u64;

#[derive(Default)]
struct Waiting {
    next: u64,
    sockets: BTreeMap<u64, (Prefix, oneshot::Sender<()>)>,
    of_prefix: HashMap<Prefix, BTreeSet<u64>>,
}

impl Waiting {
    fn remove(&mut self, id: u64) {
        let Some((prefix, _evict)) = self.sockets.remove(&id) else { return };
        if let Some(ids) = self.of_prefix.get_mut(&prefix) {
            ids.remove(&id);
            if ids.is_empty() {
                self.of_prefix.remove(&prefix);
            }
        }
    }
}

/// The silent sockets of one listener.
pub(crate) struct Silent {
    total: usize,
    per_prefix: usize,
    waiting: Arc<Mutex<Waiting>>,
}

/// One silent socket; it leaves the set when this is dropped.
pub(crate) struct Place {
    id: u64,
    waiting: Arc<Mutex<Waiting>>,
    evicted: oneshot::Receiver<()>,
}

impl Silent {
    pub(crate) fn new(limits: &Limits) -> Silent {
        let total = limits.silent_sockets.max(1);
        let per_prefix = limits.silent_per_prefix.unwrap_or(total).clamp(1, total);
        Silent { total, per_prefix, waiting: Arc::default() }
    }

    /// Takes a place for a socket from `ip`, at the cost of the oldest where there is none.
    pub(crate) fn enter(&self, ip: IpAddr) -> Place {
        let prefix = prefix(ip);
        let (evict, evicted) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        let of_prefix = waiting.of_prefix.get(&prefix);
        let crowded =
            of_prefix.filter(|ids| ids.len() >= self.per_prefix).and_then(|ids| ids.first()).copied();
        let full = (waiting.sockets.len() >= self.total).then(|| waiting.sockets.keys().next().copied());
        // Dropping the sender tells the evicted task.
        if let Some(oldest) = crowded.or(full.flatten()) {
            waiting.remove(oldest);
        }
        let id = waiting.next;
        waiting.next += 1;
        waiting.sockets.insert(id, (prefix, evict));
        waiting.of_prefix.entry(prefix).or_default().insert(id);
        Place { id, waiting: self.waiting.clone(), evicted }
    }
}

impl Place {
    /// Runs `work` unless the place is lost first.
    pub(crate) async fn keep<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            out = work => Some(out),
            _ = &mut self.evicted => None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.lock().remove(self.id);
    }
}

/// The /24 or /56 as a number; the families can't meet because an IPv4 one is below 2^24.
fn prefix(ip: IpAddr) -> Prefix {
    match ip.to_canonical() {
        IpAddr::V4(ip) => u64::from(u32::from(ip) >> 8),
        IpAddr::V6(ip) => (u128::from(ip) >> 72) as u64 | 1 << 63,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn lost(place: &mut Place) -> bool {
        (&mut place.evicted).now_or_never().is_some()
    }

    #[test]
    fn the_oldest_silent_socket_is_evicted_and_the_newest_never() {
        let silent = Silent::new(&Limits { silent_sockets: 2, silent_per_prefix: None, ..Limits::default() });
        let ip: IpAddr = "192.0.2.1".parse().unwrap();
        let (mut a, mut b) = (silent.enter(ip), silent.enter(ip));
        let mut c = silent.enter(ip);
        assert!(lost(&mut a) && !lost(&mut b) && !lost(&mut c));
        drop(b);
        let mut d = silent.enter(ip);
        assert!(!lost(&mut c) && !lost(&mut d));
        drop((a, c, d));
        assert!(silent.waiting.lock().sockets.is_empty() && silent.waiting.lock().of_prefix.is_empty());
    }

    #[test]
    fn a_crowded_prefix_evicts_its_own_oldest_only() {
        let limits = Limits { silent_sockets: 10, silent_per_prefix: Some(1), ..Limits::default() };
        let silent = Silent::new(&limits);
        let mut honest = silent.enter("198.51.100.1".parse().unwrap());
        let mut first = silent.enter("192.0.2.1".parse().unwrap());
        let mut second = silent.enter("192.0.2.200".parse().unwrap());
        let mut six = silent.enter("2600::1".parse().unwrap());
        assert!(lost(&mut first) && !lost(&mut second) && !lost(&mut honest) && !lost(&mut six));
    }
}
