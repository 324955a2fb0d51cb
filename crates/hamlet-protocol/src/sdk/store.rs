//! The store that a consumer has unless it is given another: what it acknowledges is kept for as
//! long as the value lives, not on any disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use hamlet_core::PeerName;
use hamlet_core::durable::{CommitFuture, ImportChange, ImportStore, LoadedPeer, PeerState};
use parking_lot::Mutex;

/// Import records in memory. Give the same value to the next consumer, and it resumes where the last
/// one was; its size is bounded by the consumers' limits.
#[derive(Debug, Default)]
pub struct MemoryStore {
    peers: Mutex<BTreeMap<PeerName, LoadedPeer>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Arc<MemoryStore> {
        Arc::default()
    }

    /// Everything kept, as a starting consumer wants it.
    pub fn load(&self) -> BTreeMap<PeerName, LoadedPeer> {
        self.peers.lock().clone()
    }

    fn change(&self, f: impl FnOnce(&mut BTreeMap<PeerName, LoadedPeer>)) -> CommitFuture {
        f(&mut self.peers.lock());
        Box::pin(std::future::ready(Ok(())))
    }
}

impl ImportStore for MemoryStore {
    fn commit(&self, changes: Vec<ImportChange>) -> CommitFuture {
        self.change(|peers| {
            for ImportChange { peer, key, record } in changes {
                let records = &mut peers.entry(peer).or_default().records;
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
