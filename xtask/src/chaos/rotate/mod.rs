//! `cargo xtask chaos --rotate`: everything that proves two meshes changes, again and again, while
//! services change and calls go through the gateways both ways. Nothing may be lost, and nothing
//! may fail.
//!
//! Both agents are real processes, peered by token. The load is from outside: services are files,
//! calls are made on plain sockets, without any second attempt. It doesn't look into the agents,
//! except for what their admin APIs, their logs and the authorities' files say.

mod backend;
mod book;
mod calls;
mod http;
mod log;
mod mesh;
mod rotations;
mod told;
mod updates;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use hamlet_identity::authority::state::LeafRole;
use hamlet_runtime::{Shutdown, Spawner, Supervisor};

use self::backend::Backends;
use self::book::{Book, Kind};
use self::calls::{Callers, PATIENCE};
use self::mesh::{Mesh, NAMES};
use self::rotations::{Generation, Rotations};
use self::updates::Updates;
use crate::report::{Tally, say};

/// Updates a second, both meshes together.
const UPDATES: u32 = 100;
/// Calls a second, both meshes together, besides the streams' pieces.
const CALLS: u32 = 50;
/// So much of a rate has to be reached.
const SHARE_OF_RATE: f64 = 0.95;
/// Peered, synchronised and callable within this.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often rotations are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often the run says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(20);
/// A connection through the gateways ends when what opened it does: the certificates shown at its
/// handshake. They have at least a third of a life left then, and a quarter if the session was
/// resumed. A workload that keeps connections opens the next one after one in so many parts of a
/// leaf's life, before that happens.
const KEPT_FOR: u32 = 5;
/// Most failures that are printed.
const FAILURES_SHOWN: usize = 40;

/// How much is to be rotated, on each side.
pub(super) struct Goals {
    /// New certificates of the agent, and of the gateway.
    pub(super) leaves: u32,
    /// New roots, whose predecessors are gone.
    pub(super) roots: u32,
    /// How long a certificate lives.
    pub(super) leaf_life: Duration,
}

impl fmt::Display for Goals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Goals { leaves, roots, leaf_life } = self;
        write!(f, "{leaves} leaf and {roots} root rotations on each side, leaves of {leaf_life:?},")
    }
}

impl Goals {
    /// Longer than this it never takes: each leaf at its very end, and each root by the schedule.
    fn deadline(&self) -> Duration {
        READY_WITHIN + (self.leaf_life * self.leaves).max(self.leaf_life * 9 * self.roots)
    }
}

/// What runs.
struct Run {
    meshes: [Arc<Mesh>; 2],
    updates: [Updates; 2],
    rotations: [Rotations; 2],
    book: Book,
    spawner: Spawner,
    /// Of the calls.
    calls: Supervisor,
    /// Ends the load.
    stop: Shutdown,
    /// Ends those who watch it.
    over: Shutdown,
    began: Duration,
    took: Duration,
}

/// Runs all of it; whether all is good.
pub(super) async fn rotate(program: &Path, above: &Path, goals: &Goals) -> anyhow::Result<bool> {
    let tasks = Supervisor::new(Shutdown::new());
    let mut run = Run::prepare(program, above, goals, tasks.spawner()).await?;
    run.load(goals).await?;
    run.until_rotated(goals).await?;
    let mut tally = Tally::default();
    run.settle(&mut tally).await;
    run.judge(goals, &mut tally);
    told::print(&run);
    Ok(tally.finish())
}

impl Run {
    /// Two meshes that are peers, synchronised and callable.
    async fn prepare(program: &Path, above: &Path, goals: &Goals, spawner: Spawner) -> anyhow::Result<Run> {
        let book = Book::new();
        let backends = Backends::start(&spawner).await?;
        let mut meshes = Vec::new();
        for name in NAMES {
            let mut mesh = Mesh::new(program, above, name, &backends, goals)?;
            mesh.agent.start().await?;
            meshes.push(mesh);
        }
        let [east, west] = [meshes.remove(0), meshes.remove(0)];
        east.peer_with(&west)?;
        let updates = [
            Updates::new(east.name, east.agent.folder(), &book)?,
            Updates::new(west.name, west.agent.folder(), &book)?,
        ];
        east.agree(&west).await?;
        west.agree(&east).await?;
        let meshes = [Arc::new(east), Arc::new(west)];
        let generation = Generation::default();
        let rotations = [
            Rotations::new(meshes[0].clone(), &book, &generation)?,
            Rotations::new(meshes[1].clone(), &book, &generation)?,
        ];
        let (stop, over) = (Shutdown::new(), Shutdown::new());
        let run = Run {
            meshes,
            updates,
            rotations,
            book,
            spawner,
            calls: Supervisor::new(Shutdown::new()),
            stop,
            over,
            began: Duration::ZERO,
            took: Duration::ZERO,
        };
        run.until_ready().await?;
        Ok(run)
    }

    async fn until_ready(&self) -> anyhow::Result<()> {
        let began = self.book.now();
        loop {
            let Err(reason) = self.ready().await else { return Ok(()) };
            if self.book.now() - began >= READY_WITHIN {
                let logs: Vec<String> = self.meshes.iter().map(|mesh| mesh.agent.tail()).collect();
                bail!("not ready after {READY_WITHIN:?}: {reason}\n{}", logs.join("\n--\n"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn ready(&self) -> Result<(), String> {
        let [east, west] = &self.meshes;
        self.updates[0].all_there(west).await?;
        self.updates[1].all_there(east).await?;
        for (mesh, peer) in [(east, west), (west, east)] {
            mesh.proven(peer).await?;
            mesh.doors(peer).await.map_err(|e| format!("{e:#}"))?;
        }
        Ok(())
    }

    /// Starts the changes and the calls, both ways.
    async fn load(&mut self, goals: &Goals) -> anyhow::Result<()> {
        self.began = self.book.now();
        let generation = self.rotations[0].generation();
        for (own, other) in [(0, 1), (1, 0)] {
            let (mesh, peer) = (self.meshes[own].clone(), self.meshes[other].clone());
            let callers = Callers {
                from: mesh.name,
                doors: mesh.doors(&peer).await?,
                book: self.book.clone(),
                generation: generation.clone(),
                keep: goals.leaf_life / KEPT_FOR,
                stop: self.stop.clone(),
            };
            callers.start(CALLS / 2, &self.calls.spawner());
            let updates = &self.updates[own];
            self.spawner.spawn("updates", updates.clone().run(mesh, UPDATES / 2, self.stop.clone()));
            self.spawner.spawn("updates/follow", updates.clone().follow(peer, self.over.clone()));
        }
        Ok(())
    }

    /// Until everything was rotated as often as it is to be; an error if an agent ends or it takes
    /// too long.
    async fn until_rotated(&mut self, goals: &Goals) -> anyhow::Result<()> {
        let mut tell = self.book.now() + TELL_EVERY;
        loop {
            for rotations in &mut self.rotations {
                let state = rotations.look()?;
                if rotations.roots() < goals.roots {
                    rotations.ask(&state, &self.spawner).await?;
                }
            }
            self.took = self.book.now() - self.began;
            if self.book.is_full() || self.rotations.iter().all(|r| r.reached(goals)) {
                return Ok(());
            }
            if self.took >= goals.deadline() {
                self.book.failed(&format!("the goals are not reached after {:?}", goals.deadline()));
                return Ok(());
            }
            if self.book.now() >= tell {
                tell += TELL_EVERY;
                self.tell();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn tell(&self) {
        let failed: u64 = Kind::ALL.iter().map(|kind| self.book.calls(*kind).failed).sum();
        let sides: Vec<String> = self.rotations.iter().map(ToString::to_string).collect();
        let updates: u64 = self.updates.iter().map(|u| u.fate().took.len() as u64).sum();
        let took = self.took.as_secs();
        say(&format!("{took} s: {}; {updates} updates seen, {failed} calls failed", sides.join("; ")));
    }

    /// Ends the load and waits for what is under way.
    async fn settle(&self, tally: &mut Tally) {
        self.stop.begin();
        for updates in &self.updates {
            updates.settle().await;
        }
        self.over.begin();
        // Each call ends by itself, at the latest when its caller's patience does.
        self.calls.stop(PATIENCE * 2, LOOK_EVERY).await;
        let [east, west] = &self.meshes;
        let mut proof = Err("never looked".to_owned());
        let began = self.book.now();
        while proof.is_err() && self.book.now() - began < READY_WITHIN {
            proof = east.proven(west).await.and(west.proven(east).await);
            tokio::time::sleep(LOOK_EVERY).await;
        }
        tally.check(proof.is_ok(), &format!("both sides prove the same sets at the end: {proof:?}"));
    }

    fn judge(&self, goals: &Goals, tally: &mut Tally) {
        for (rotations, mesh) in self.rotations.iter().zip(&self.meshes) {
            let name = mesh.name;
            for role in LeafRole::ALL {
                let count = rotations.leaves(role);
                let what = format!("{name}: {count} leaf rotations of the {role}, at least {}", goals.leaves);
                tally.check(count >= goals.leaves, &what);
            }
            let count = rotations.roots();
            tally.check(
                count >= goals.roots,
                &format!("{name}: {count} root rotations, at least {}", goals.roots),
            );
        }
        let seconds = self.took.as_secs_f64();
        for (updates, mesh) in self.updates.iter().zip(&self.meshes) {
            let (fate, name) = (updates.fate(), mesh.name);
            tally.check(
                fate.lost() == 0,
                &format!("{name}: {} of {} updates lost", fate.lost(), fate.written),
            );
            tally.check(fate.wrong == 0, &format!("{name}: {} wrong versions seen", fate.wrong));
            let (rate, wanted) = (fate.written as f64 / seconds, f64::from(UPDATES) / 2.0);
            let what = format!("{name}: {rate:.1} updates a second of {wanted}");
            tally.check(rate >= wanted * SHARE_OF_RATE, &what);
        }
        let mut made = [0, 0];
        for kind in Kind::ALL {
            let calls = self.book.calls(kind);
            tally.check(calls.failed == 0, &format!("{kind}: {} of {} failed", calls.failed, calls.count()));
            if kind != Kind::Stream {
                made[usize::from(kind.is_new())] += calls.count();
            }
        }
        for (count, what) in made.iter().zip(["kept", "new"]) {
            let (rate, wanted) = (*count as f64 / seconds, f64::from(CALLS) / 2.0);
            let what = format!("{rate:.1} calls a second on {what} connections, of {wanted}");
            tally.check(rate >= wanted * SHARE_OF_RATE, &what);
        }
        let story = self.book.story();
        tally.check(story.is_empty(), &format!("{} failures", story.len()));
        story.iter().take(FAILURES_SHOWN).for_each(|line| say(line));
    }
}
