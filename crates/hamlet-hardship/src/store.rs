//! The store as the simulation sees it: the real one on a simulated disk, with the time that a
//! commit takes, and the model told of what the disk has acknowledged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_core::durable::{CommitError, CommitFuture, ImportChange, ImportStore, LoadedPeer, PeerState};
use hamlet_store::Store;
use parking_lot::Mutex;

use crate::disk::{Fault, SimDisk};
use crate::draw::Draw;
use crate::model::{Model, Shared};
use crate::truth::MeshId;
use crate::world::World;

/// A commit that takes longer may outlive the stream it came from.
const LATE: Duration = Duration::from_secs(9);

/// How fast a mesh's disk is.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Longest time of a commit.
    pub(crate) slowest_ms: AtomicU64,
    /// Nothing moves.
    pub(crate) stalled: AtomicBool,
}

/// Records kept in memory, for most of the seeds: a commit is whole, and is durable when it is
/// acknowledged. A failing disk refuses.
#[derive(Debug, Default)]
pub(crate) struct Shelf(Mutex<BTreeMap<PeerName, LoadedPeer>>);

/// What is below.
#[derive(Clone)]
pub(crate) enum Below {
    /// The real store.
    Real(Arc<Store>),
    /// Memory.
    Shelf(Arc<Shelf>),
}

impl Shelf {
    pub(crate) fn load(&self, peer: &PeerName) -> LoadedPeer {
        self.0.lock().get(peer).cloned().unwrap_or_default()
    }

    fn commit(&self, changes: Vec<ImportChange>) {
        let mut peers = self.0.lock();
        for ImportChange { peer, key, record } in changes {
            let records = &mut peers.entry(peer).or_default().records;
            match record {
                Some(record) => records.insert(key, record),
                None => records.remove(&key),
            };
        }
    }
}

/// The store of one process.
pub(crate) struct SpyStore {
    inner: Arc<Inner>,
}

struct Inner {
    mesh: MeshId,
    below: Below,
    disk: SimDisk,
    pace: Arc<Pace>,
    names: BTreeMap<PeerName, MeshId>,
    model: Shared<Model>,
    draw: Mutex<Draw>,
    /// To look at what readers see before what is durable moves on.
    world: Weak<Mutex<World>>,
}

impl SpyStore {
    #[allow(clippy::too_many_arguments)] // the parts of one process
    pub(crate) fn new(
        mesh: MeshId,
        below: Below,
        disk: SimDisk,
        pace: Arc<Pace>,
        names: BTreeMap<PeerName, MeshId>,
        model: Shared<Model>,
        draw: Draw,
        world: Weak<Mutex<World>>,
    ) -> Arc<SpyStore> {
        let inner = Inner { mesh, below, disk, pace, names, model, draw: Mutex::new(draw), world };
        Arc::new(SpyStore { inner: Arc::new(inner) })
    }
}

impl Inner {
    async fn wait(&self) {
        let slowest = self.pace.slowest_ms.load(Ordering::Relaxed);
        let ms = self.draw.lock().below(slowest + 1);
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        while self.pace.stalled.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn failing(&self) -> Result<(), CommitError> {
        match self.disk.fault() {
            Fault::None => Ok(()),
            _ => Err(CommitError { message: "the disk fails".to_owned() }),
        }
    }

    async fn commit(
        &self,
        changes: Vec<ImportChange>,
        state: Option<(PeerName, PeerState)>,
    ) -> Result<(), CommitError> {
        let began = tokio::time::Instant::now();
        self.wait().await;
        let outcome = match &self.below {
            Below::Real(store) => match state {
                Some((peer, state)) => store.commit_with_state(changes.clone(), &peer, state).await,
                None => store.commit(changes.clone()).await,
            },
            Below::Shelf(shelf) => {
                let outcome = self.failing();
                if outcome.is_ok() {
                    shelf.commit(changes.clone());
                    if let Some((peer, state)) = state {
                        shelf.0.lock().entry(peer).or_default().state = state;
                    }
                }
                outcome
            }
        };
        let late = began.elapsed() > LATE;
        if let Some(world) = self.world.upgrade() {
            let mut world = world.lock();
            world.observe(self.mesh);
            if outcome.is_err() || late {
                // What couldn't be kept is offered again; until then the sets differ.
                world.excuse(self.mesh);
            }
        }
        {
            let mut model = self.model.lock();
            let mine = |c: ImportChange| Some((*self.names.get(&c.peer)?, c));
            let changes: Vec<_> = changes.into_iter().filter_map(mine).collect();
            if outcome.is_ok() {
                model.committed(self.mesh, &changes, late);
            } else {
                model.refused_by_disk(self.mesh, &changes);
            }
        }
        // Durable before anybody is told: that moment can be the last.
        self.wait().await;
        if began.elapsed() > LATE
            && let Some(world) = self.world.upgrade()
        {
            let world = world.lock();
            world.excuse(self.mesh);
            world.model.lock().late(self.mesh);
        }
        outcome
    }
}

impl ImportStore for SpyStore {
    fn commit(&self, changes: Vec<ImportChange>) -> CommitFuture {
        let inner = self.inner.clone();
        Box::pin(async move { inner.commit(changes, None).await })
    }

    fn put_peer_state(&self, peer: &PeerName, state: PeerState) -> CommitFuture {
        let (inner, peer) = (self.inner.clone(), peer.clone());
        Box::pin(async move {
            inner.wait().await;
            match &inner.below {
                Below::Real(store) => store.put_peer_state(&peer, state).await,
                Below::Shelf(shelf) => {
                    inner.failing()?;
                    shelf.0.lock().entry(peer).or_default().state = state;
                    Ok(())
                }
            }
        })
    }

    fn commit_with_state(
        &self,
        changes: Vec<ImportChange>,
        peer: &PeerName,
        state: PeerState,
    ) -> CommitFuture {
        let (inner, peer) = (self.inner.clone(), peer.clone());
        Box::pin(async move { inner.commit(changes, Some((peer, state))).await })
    }

    fn forget_peer(&self, peer: &PeerName) -> CommitFuture {
        let (inner, peer) = (self.inner.clone(), peer.clone());
        Box::pin(async move {
            inner.wait().await;
            let outcome = match &inner.below {
                Below::Real(store) => store.forget_peer(&peer).await,
                Below::Shelf(shelf) => inner.failing().map(|()| {
                    shelf.0.lock().remove(&peer);
                }),
            };
            if let (Ok(()), Some(owner)) = (&outcome, inner.names.get(&peer)) {
                inner.model.lock().forgotten((*owner, inner.mesh));
            }
            outcome
        })
    }
}
