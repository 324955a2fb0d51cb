//! Sockets of a listener that have not sent a whole ClientHello yet: cheap, bounded, the oldest evicted.
//! *Hardened to untrusted peer* (threat T15, decision 25).
//!
//! Invariant: never more than the limit, and a new socket is never refused for silent ones. The
//! limit for one prefix evicts the oldest of that prefix, so that one network can't push out
//! others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Connections that wait in the kernel for one listener that strangers reach. Where they don't fit, the
/// kernel drops the next one's first packet, and whoever sent it tries again only after a second: a
/// burst of strangers would cost an honest peer that second. The system's limit
/// (`net.core.somaxconn`, usually the same) holds too.
pub const STRANGERS_BACKLOG: u32 = 4096;
/// Sockets that have not sent a whole ClientHello; the oldest is evicted for the next.
pub const SILENT_SOCKETS: usize = 1024;
/// Of those, how many may come from one /24 (IPv4) or /56 (IPv6).
pub const SILENT_PER_PREFIX: usize = 256;

type Prefix = u64;

#[derive(Debug, Default)]
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
#[derive(Debug)]
pub struct SilentSockets {
    total: usize,
    per_prefix: AtomicUsize,
    waiting: Arc<Mutex<Waiting>>,
}

/// One silent socket; it leaves the set when this is dropped.
#[derive(Debug)]
pub struct SilentPlace {
    id: u64,
    waiting: Arc<Mutex<Waiting>>,
    evicted: oneshot::Receiver<()>,
}

impl SilentSockets {
    /// At most `total` at a time and `per_prefix` of them from one /24 or /56; `None` behind a load
    /// balancer, where all share an address.
    pub fn new(total: usize, per_prefix: Option<usize>) -> SilentSockets {
        let sockets =
            SilentSockets { total: total.max(1), per_prefix: AtomicUsize::new(0), waiting: Arc::default() };
        sockets.set_per_prefix(per_prefix);
        sockets
    }

    /// Another limit for one prefix, for sockets that come from now on.
    pub fn set_per_prefix(&self, per_prefix: Option<usize>) {
        let most = per_prefix.unwrap_or(self.total).clamp(1, self.total);
        self.per_prefix.store(most, Ordering::Relaxed);
    }

    /// Takes a place for a socket from `ip`, at the cost of the oldest where there is none.
    pub fn enter(&self, ip: IpAddr) -> SilentPlace {
        let prefix = prefix(ip);
        let most = self.per_prefix.load(Ordering::Relaxed);
        let (evict, evicted) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        let of_prefix = waiting.of_prefix.get(&prefix);
        let crowded = of_prefix.filter(|ids| ids.len() >= most).and_then(|ids| ids.first()).copied();
        let full = (waiting.sockets.len() >= self.total).then(|| waiting.sockets.keys().next().copied());
        // Dropping the sender tells the evicted task.
        if let Some(oldest) = crowded.or(full.flatten()) {
            waiting.remove(oldest);
        }
        let id = waiting.next;
        waiting.next += 1;
        waiting.sockets.insert(id, (prefix, evict));
        waiting.of_prefix.entry(prefix).or_default().insert(id);
        SilentPlace { id, waiting: self.waiting.clone(), evicted }
    }
}

impl SilentPlace {
    /// Runs `work` unless the place is lost first.
    pub async fn keep<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            out = work => Some(out),
            _ = &mut self.evicted => None,
        }
    }
}

impl Drop for SilentPlace {
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

    fn lost(place: &mut SilentPlace) -> bool {
        (&mut place.evicted).now_or_never().is_some()
    }

    #[test]
    fn the_oldest_silent_socket_is_evicted_and_the_newest_never() {
        let silent = SilentSockets::new(2, None);
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
        let silent = SilentSockets::new(10, Some(1));
        let mut honest = silent.enter("198.51.100.1".parse().unwrap());
        let mut first = silent.enter("192.0.2.1".parse().unwrap());
        let mut second = silent.enter("192.0.2.200".parse().unwrap());
        let mut six = silent.enter("2600::1".parse().unwrap());
        assert!(lost(&mut first) && !lost(&mut second) && !lost(&mut honest) && !lost(&mut six));
        // Behind a load balancer all come from one address.
        silent.set_per_prefix(None);
        let mut third = silent.enter("192.0.2.3".parse().unwrap());
        assert!(!lost(&mut second) && !lost(&mut third));
    }
}
