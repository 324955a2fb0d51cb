//! What the listener counts: outcomes by transport, and what the loops met. Labels are bounded; no
//! name from a question ever becomes one.

use std::sync::atomic::{AtomicU64, Ordering};

use super::answer::{Outcome, Transport};

/// How often each outcome was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutcomeCounts([u64; Outcome::ALL.len()]);

impl OutcomeCounts {
    /// How often `outcome` was met.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize]
    }

    /// All requests.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DnsStats {
    /// Requests over UDP by outcome.
    pub udp: OutcomeCounts,
    /// Requests over TCP by outcome.
    pub tcp: OutcomeCounts,
    /// UDP replies that the system did not take at once; they are lost, the client asks again.
    pub udp_unsent: u64,
    /// TCP connections accepted.
    pub tcp_accepted: u64,
    /// TCP connections closed because there were too many.
    pub tcp_evicted: u64,
    /// TCP connections closed because they were too slow, broke off inside a message, or sent one
    /// that is too long.
    pub tcp_broken: u64,
}

/// The living counters, shared by all tasks of one listener.
#[derive(Debug, Default)]
pub struct DnsCounters {
    udp: [AtomicU64; Outcome::ALL.len()],
    tcp: [AtomicU64; Outcome::ALL.len()],
    pub(super) udp_unsent: AtomicU64,
    pub(super) tcp_accepted: AtomicU64,
    pub(super) tcp_evicted: AtomicU64,
    pub(super) tcp_broken: AtomicU64,
}

impl DnsCounters {
    /// Their values now.
    pub fn stats(&self) -> DnsStats {
        let load = |c: &AtomicU64| c.load(Ordering::Relaxed);
        DnsStats {
            udp: OutcomeCounts(self.udp.each_ref().map(load)),
            tcp: OutcomeCounts(self.tcp.each_ref().map(load)),
            udp_unsent: load(&self.udp_unsent),
            tcp_accepted: load(&self.tcp_accepted),
            tcp_evicted: load(&self.tcp_evicted),
            tcp_broken: load(&self.tcp_broken),
        }
    }

    pub(super) fn count(&self, transport: Transport, outcome: Outcome) {
        let counts = match transport {
            Transport::Udp => &self.udp,
            Transport::Tcp => &self.tcp,
        };
        add(&counts[outcome as usize]);
    }
}

pub(super) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
