//! What was rotated: read from each authority's file of state, never written to it. And who
//! rotates: every other root is asked for with `hamlet ca rotate`, the ones between are left to the
//! schedule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use hamlet_identity::authority::state::{LeafRole, State};
use hamlet_identity::authority::state_file;
use hamlet_runtime::Spawner;

use super::Goals;
use super::book::Book;
use super::mesh::Mesh;

/// Grows with every new certificate of any gateway.
#[derive(Debug, Clone, Default)]
pub(super) struct Generation(Arc<AtomicU64>);

impl Generation {
    /// Its value.
    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The rotations of one mesh.
pub(super) struct Rotations {
    mesh: Arc<Mesh>,
    book: Book,
    generation: Generation,
    leaves: BTreeMap<LeafRole, BTreeSet<String>>,
    issuing: BTreeSet<u64>,
    issued: BTreeSet<u64>,
    seen: BTreeSet<u64>,
    /// Roots that we asked for, by the number that is the newest after it.
    asked: BTreeSet<u64>,
}

impl Rotations {
    /// Of `mesh`, from what is there now.
    pub(super) fn new(mesh: Arc<Mesh>, book: &Book, generation: &Generation) -> anyhow::Result<Rotations> {
        let mut rotations = Rotations {
            mesh,
            book: book.clone(),
            generation: generation.clone(),
            leaves: BTreeMap::new(),
            issuing: BTreeSet::new(),
            issued: BTreeSet::new(),
            seen: BTreeSet::new(),
            asked: BTreeSet::new(),
        };
        rotations.look()?;
        Ok(rotations)
    }

    fn state(&self) -> anyhow::Result<State> {
        let path = state_file(&self.mesh.agent.folder().join("identity"));
        let text = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
        State::read(&text).map_err(anyhow::Error::msg)
    }

    /// Notes what is new.
    pub(super) fn look(&mut self) -> anyhow::Result<State> {
        let (state, name) = (self.state()?, self.mesh.name);
        for (role, leaf) in &state.leaves {
            if self.leaves.entry(*role).or_default().insert(leaf.sha256.clone()) {
                self.book.event(format!("{name}: new leaf of the {role}, from root {}", leaf.root));
                if *role == LeafRole::Gateway {
                    self.generation.0.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        if let Some(issuing) = &state.issuing
            && self.issuing.insert(issuing.number)
        {
            self.book.event(format!("{name}: new issuing CA of root {}", issuing.root));
        }
        if let Some(active) = state.active()
            && self.issued.insert(active.number)
        {
            self.book.event(format!("{name}: root {} issues", active.number));
        }
        let roots: BTreeSet<u64> = state.roots.iter().map(|root| root.number).collect();
        for number in roots.difference(&self.seen) {
            self.book.event(format!("{name}: root {number} staged"));
        }
        for number in self.seen.difference(&roots) {
            self.book.event(format!("{name}: root {number} left the bundle"));
        }
        self.seen = roots;
        Ok(state)
    }

    /// What all rotations of gateways' certificates are counted in.
    pub(super) fn generation(&self) -> Generation {
        self.generation.clone()
    }

    /// Whether it is as much as is wanted.
    pub(super) fn reached(&self, goals: &Goals) -> bool {
        LeafRole::ALL.iter().all(|role| self.leaves(*role) >= goals.leaves) && self.roots() >= goals.roots
    }

    /// New leaves of `role` since the begin.
    pub(super) fn leaves(&self, role: LeafRole) -> u32 {
        count(self.leaves.get(&role).map_or(0, BTreeSet::len))
    }

    /// Issuing CAs that came after the first one.
    pub(super) fn issuing(&self) -> u32 {
        count(self.issuing.len())
    }

    /// Roots whose predecessor is out of the bundle.
    pub(super) fn roots(&self) -> u32 {
        let oldest = self.seen.first().copied().unwrap_or_default();
        count(self.issued.iter().filter(|number| **number <= oldest).count())
    }

    /// Roots that an operator's command made.
    pub(super) fn asked(&self) -> usize {
        self.asked.len()
    }

    /// `hamlet ca rotate`, if it is its turn: when one root is left, and the one before it was the
    /// schedule's.
    pub(super) async fn ask(&mut self, state: &State, spawner: &Spawner) -> anyhow::Result<()> {
        let [only] = &state.roots[..] else { return Ok(()) };
        if self.asked.contains(&only.number) {
            return Ok(());
        }
        let newest = state.next;
        let rotation = self.mesh.rotation();
        // The schedule may have staged one a moment ago: that is a refusal, and no failure.
        let outcome = spawner.spawn_blocking(rotation).await?;
        let now = self.look()?;
        let staged = now.roots.iter().filter(|root| root.number >= newest).map(|root| root.number).next();
        ensure!(staged.is_some(), "`hamlet ca rotate` of {} staged nothing: {outcome:?}", self.mesh.name);
        if outcome.is_ok() {
            self.asked.extend(staged);
            self.book.event(format!("{}: hamlet ca rotate", self.mesh.name));
        }
        Ok(())
    }
}

impl fmt::Display for Rotations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (agent, gateway) = (self.leaves(LeafRole::Agent), self.leaves(LeafRole::Gateway));
        write!(f, "{}: {agent} and {gateway} leaves, {} roots", self.mesh.name, self.roots())
    }
}

/// So many after the first.
fn count(all: usize) -> u32 {
    u32::try_from(all.saturating_sub(1)).unwrap_or(u32::MAX)
}
