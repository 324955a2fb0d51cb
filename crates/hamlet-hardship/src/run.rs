//! One seed from beginning to end, on a runtime of its own with a paused clock.

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::seeded::{self, SeededBug};
use hamlet_runtime::{Executor, Shutdown, Supervisor, TaskState};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::draw::Draw;
use crate::executor::SeededExecutor;
use crate::model::{Model, Shared, Violation};
use crate::tally::Tally;
use crate::world::{World, share};

/// What came of one seed.
#[derive(Debug)]
pub struct Outcome {
    /// The invariant that was broken first, if one was.
    pub violation: Option<Violation>,
    /// What happened.
    pub tally: Tally,
    /// A number over everything that happened: the same for the same seed.
    pub story: u64,
    /// How long the simulated world lived.
    pub lived: Duration,
    /// Every event, if it was asked for.
    pub log: Vec<String>,
}

/// Plays one seed, with a seeded bug or none.
///
/// # Errors
/// If the runtime can't be made.
pub fn run_seed(seed: u64, bug: Option<SeededBug>, keep_log: bool) -> std::io::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    seeded::switch(bug);
    seeded::compare_down_to(depth(seed));
    let mut draw = Draw::new(seed);
    let executor = SeededExecutor::new(draw.fork());
    let outcome = runtime.block_on(executor.run(live(draw, executor.clone(), keep_log)));
    drop(runtime);
    seeded::switch(None);
    seeded::compare_down_to(1);
    Ok(outcome)
}

/// How far down the digest the comparisons of a seed go at least: a dozen services alone would
/// never be compared below the first level.
fn depth(seed: u64) -> u32 {
    match Draw::new(!seed).below(4) {
        0 => 1,
        1 => 2,
        _ => 3,
    }
}

async fn live(draw: Draw, executor: SeededExecutor, keep_log: bool) -> Outcome {
    let start = Instant::now();
    let model: Shared<Model> = Arc::new(Mutex::new(Model::new(start, keep_log)));
    let executor: Arc<dyn Executor> = Arc::new(executor);
    let supervisor = Supervisor::on(executor.clone(), Shutdown::new());
    let world = World::new(model.clone(), draw, executor, supervisor.spawner(), start);
    let sim = share(world);
    crate::script::play(&sim).await;
    let spawners: Vec<_> = {
        let world = sim.lock();
        let running = world.meshes.iter().filter_map(|m| m.process.as_ref());
        running.map(|p| p.spawner.clone()).chain([supervisor.spawner()]).collect()
    };
    for spawner in spawners {
        for task in spawner.tasks() {
            if let TaskState::Failed(how) = task.state {
                model.lock().complain("panic", format!("{}: {how}", task.name));
            }
        }
    }
    let meshes = sim.lock().meshes.len();
    for mesh in 0..meshes {
        crate::world::stop(&sim, mesh, crate::world::Death::Kill).await;
    }
    supervisor.stop(Duration::ZERO, Duration::from_millis(1)).await;
    let lived = start.elapsed();
    let mut model = model.lock();
    Outcome {
        violation: model.violation().cloned(),
        tally: model.tally.clone(),
        story: model.story(),
        lived,
        log: model.take_log(),
    }
}
