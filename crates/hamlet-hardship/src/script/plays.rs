//! Seeds with a plot: situations that chance alone meets too seldom.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{
    Shape, Stage, any_service, broken, change, change_something, create, foreign_stall, happened, trouble,
};
use crate::outage::heal_disk;
use crate::truth::Key;
use crate::world::{Net, Sim, pair};

/// The foreign consumer stands still for long while services change; nothing else is wrong.
pub(super) async fn neighbours(sim: &Sim, stage: &Stage) {
    tokio::time::sleep(Duration::from_secs(30)).await;
    foreign_stall(sim);
    for _ in 0..20 {
        {
            let mut world = sim.lock();
            change_something(&mut world, stage, 0);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

/// A stalled disk makes the consumer ask for a round; meanwhile what it has goes and comes back,
/// byte for byte the same, over a slow link.
pub(super) async fn rounds(sim: &Sim, stage: &Stage) {
    {
        let mut world = sim.lock();
        (0..3).for_each(|_| create(&mut world, stage, 0));
        world.tell(0);
    }
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        {
            let mut world = sim.lock();
            trouble(&world, 1, None);
            happened(&world, "disk stalls", &[36, 1]);
            world.meshes[1].pace.stalled.store(true, Ordering::Relaxed);
            let delay = Duration::from_millis(world.draw.between(100, 900));
            world.nets.insert(pair(0, 1), Net { up: true, delay });
            world.conns_of(0, Some(1)).iter().for_each(|c| c.set_delay(delay));
            if let Some((key, shape)) = any_service(&mut world, 0) {
                change(&mut world, 0, &key, shape);
                world.tell(0);
            }
        }
        let stalled = sim.lock().draw.between(22, 28);
        tokio::time::sleep(Duration::from_secs(stalled)).await;
        sim.lock().meshes[1].pace.stalled.store(false, Ordering::Relaxed);
        for step in 0..60 {
            goes_and_comes_back(sim).await;
            // Now and then the owner says all it has, and bookmarks it.
            let pause = if step % 8 == 7 { 5_000 } else { sim.lock().draw.between(50, 500) };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            if broken(sim) {
                return;
            }
        }
    }
}

/// A service is hidden and shown again while its going is still on the way. Another one differs
/// for good: else the roots are equal again, and nothing is repeated.
async fn goes_and_comes_back(sim: &Sim) {
    let (key, pause) = {
        let mut world = sim.lock();
        let other = world.meshes[0].services.keys().nth(2).cloned();
        let shape = other.as_ref().and_then(|k| world.meshes[0].services.get(k)).map(|s| s.shape);
        if let (Some(key), Some(shape)) = (other, shape) {
            change(&mut world, 0, &key, shape);
        }
        let few: Vec<Key> = world.meshes[0].services.keys().take(2).cloned().collect();
        let Some(key) = world.draw.pick(&few).cloned() else { return };
        world.meshes[0].hidden.insert((key.clone(), 1));
        world.tell(0);
        (key, world.draw.between(10, 150))
    };
    tokio::time::sleep(Duration::from_millis(pause)).await;
    let mut world = sim.lock();
    world.meshes[0].hidden.remove(&(key, 1));
    world.tell(0);
}

/// So much comes while the disk stands still that the reader pauses; the peer answers all the same.
pub(super) async fn paused(sim: &Sim, stage: &Stage) {
    tokio::time::sleep(Duration::from_secs(5)).await;
    {
        let world = sim.lock();
        trouble(&world, 0, None);
        happened(&world, "disk stalls", &[36, 0]);
        world.meshes[0].pace.stalled.store(true, Ordering::Relaxed);
    }
    for step in 0..90 {
        {
            let mut world = sim.lock();
            if step % 3 == 0 {
                change_something(&mut world, stage, 0);
            }
            for _ in 0..3 {
                if let Some((key, shape)) = any_service(&mut world, 1) {
                    change(&mut world, 1, &key, Shape { fat: stage.fat, ..shape });
                }
            }
            world.tell(1);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    heal_disk(&mut sim.lock(), 0);
}
