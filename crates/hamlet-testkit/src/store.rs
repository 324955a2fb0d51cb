//! A store in memory, for tests that are not about durability.

use std::collections::BTreeMap;
use std::sync::Arc;

use hamlet_core::PeerName;
use hamlet_core::durable::{
    CommitError, CommitFuture, ImportChange, ImportRecord, ImportStore, LoadedPeer, PeerState,
};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Keeps records in memory; can be told to fail, or to hang.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
    hanging: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    peers: BTreeMap<PeerName, LoadedPeer>,
    failing: bool,
    commits: u64,
}

impl Inner {
    fn change(&mut self, f: impl FnOnce(&mut BTreeMap<PeerName, LoadedPeer>)) -> Result<(), CommitError> {
        if self.failing {
            return Err(CommitError { message: "told to fail".to_owned() });
        }
        f(&mut self.peers);
        self.commits += 1;
        Ok(())
    }
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

    /// From now on commits that are asked for wait, or all go on, in no particular order.
    pub fn set_hanging(&self, hanging: bool) {
        self.hanging.send_replace(hanging);
    }

    /// What a restart would find.
    pub fn load(&self, peer: &PeerName) -> LoadedPeer {
        self.inner.lock().peers.get(peer).cloned().unwrap_or_default()
    }

    /// Batches committed so far.
    pub fn commits(&self) -> u64 {
        self.inner.lock().commits
    }

    fn change(&self, f: impl FnOnce(&mut BTreeMap<PeerName, LoadedPeer>) + Send + 'static) -> CommitFuture {
        if !*self.hanging.borrow() {
            return Box::pin(std::future::ready(self.inner.lock().change(f)));
        }
        let (inner, mut hanging) = (self.inner.clone(), self.hanging.subscribe());
        Box::pin(async move {
            // An error would mean that the store is gone.
            let _ = hanging.wait_for(|hanging| !hanging).await;
            inner.lock().change(f)
        })
    }
}

impl ImportStore for MemoryStore {
    fn commit(&self, changes: Vec<ImportChange>) -> CommitFuture {
        self.change(move |peers| {
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
        let peer = peer.clone();
        self.change(move |peers| peers.entry(peer).or_default().state = state)
    }

    fn forget_peer(&self, peer: &PeerName) -> CommitFuture {
        let peer = peer.clone();
        self.change(move |peers| {
            peers.remove(&peer);
        })
    }
}
