//! A store in memory, for tests that are not about durability.

use std::collections::BTreeMap;
use std::sync::Arc;

use hamlet_core::PeerName;
use hamlet_core::durable::{
    CommitError, CommitFuture, ImportChange, ImportRecord, ImportStore, LoadedPeer, PeerState,
};
use parking_lot::Mutex;

/// Keeps records in memory; can be told to fail.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    peers: BTreeMap<PeerName, LoadedPeer>,
    failing: bool,
    commits: u64,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Arc<MemoryStore> {
        Arc::default()
    }

    /// From now on commits fail, or work again.
    pub fn set_failing(&self, failing: bool) {
        self.inner.lock().failing = failing;
    }

    /// What a restart would find.
    pub fn load(&self, peer: &PeerName) -> LoadedPeer {
        self.inner.lock().peers.get(peer).cloned().unwrap_or_default()
    }

    /// Batches committed so far.
    pub fn commits(&self) -> u64 {
        self.inner.lock().commits
    }

    fn change(&self, f: impl FnOnce(&mut BTreeMap<PeerName, LoadedPeer>)) -> CommitFuture {
        let mut inner = self.inner.lock();
        let outcome = if inner.failing {
            Err(CommitError { message: "told to fail".to_owned() })
        } else {
            f(&mut inner.peers);
            inner.commits += 1;
            Ok(())
        };
        Box::pin(std::future::ready(outcome))
    }
}

impl ImportStore for MemoryStore {
    fn commit(&self, changes: Vec<ImportChange>) -> CommitFuture {
        self.change(|peers| {
            for ImportChange { peer, key, record } in changes {
                let records: &mut BTreeMap<String, ImportRecord> =
                    &mut peers.entry(peer).or_default().records;
                match record {
                    Some(record) => records.insert(key, record),
                    None => records.remove(&key),
                };
            }
        })
    }

    fn put_peer_state(&self, peer: &PeerName, state: PeerState) -> CommitFuture {
        self.change(|peers| peers.entry(peer.clone()).or_default().state = state)
    }

    fn forget_peer(&self, peer: &PeerName) -> CommitFuture {
        self.change(|peers| {
            peers.remove(peer);
        })
    }
}
