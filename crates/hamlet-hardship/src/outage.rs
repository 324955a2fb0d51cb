//! Disks that fail and processes that end, together if need be.
//!
//! What links and services do is in [`crate::script`]. Invariant: all is well again in the end.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::disk::Fault;
use crate::script::{a_hamlet, any_service, change, happened, later, trouble};
use crate::truth::{Key, MeshId};
use crate::world::{Birth, Death, Sim, World, start, stop};

/// A disk fails or is slow for a while.
pub(crate) async fn disk_trouble(sim: &Sim) {
    let (mesh, last, ends) = {
        let mut world = sim.lock();
        let mesh = a_hamlet(&mut world);
        trouble(&world, mesh, None);
        let kind = if world.meshes[mesh].real && world.draw.chance(50) { 1 } else { world.draw.below(6) };
        let last = Duration::from_millis(world.draw.between(200, 45_000));
        happened(&world, if kind < 3 { "disk failures" } else { "disk stalls" }, &[36, mesh as u64, kind]);
        let its = &world.meshes[mesh];
        match kind {
            0 => its.disk.set_fault(Fault::Write),
            1 => its.disk.set_fault(Fault::Sync),
            2 => its.disk.set_fault(Fault::Full),
            3 => its.pace.slowest_ms.store(2_000, Ordering::Relaxed),
            _ => its.pace.stalled.store(true, Ordering::Relaxed),
        }
        // What a store has most to fear: the process ends while syncs fail.
        let ends = its.real && kind == 1;
        (mesh, last, ends)
    };
    later(sim, last, move |world| heal_disk(world, mesh));
    if ends {
        tokio::time::sleep(last / 2).await;
        process_trouble(sim, Some(mesh)).await;
    }
}

pub(crate) fn heal_disk(world: &mut World, mesh: MeshId) {
    let its = &world.meshes[mesh];
    its.disk.set_fault(Fault::None);
    its.pace.stalled.store(false, Ordering::Relaxed);
    its.pace.slowest_ms.store(5, Ordering::Relaxed);
    trouble(world, mesh, None);
}

/// A process ends, of this mesh or of any, and a new one starts.
pub(crate) async fn process_trouble(sim: &Sim, mesh: Option<MeshId>) {
    let (mesh, death, away) = {
        let mut world = sim.lock();
        let mesh = mesh.unwrap_or_else(|| a_hamlet(&mut world));
        let death = *world
            .draw
            .pick(&[Death::Stop, Death::Stop, Death::Kill, Death::PowerCut])
            .unwrap_or(&Death::Kill);
        let name = match death {
            Death::Stop => "restarts",
            Death::Kill => "kills",
            Death::PowerCut => "power cuts",
        };
        trouble(&world, mesh, None);
        happened(&world, name, &[38, mesh as u64]);
        let longest = if world.draw.chance(15) { 120_000 } else { 5_000 };
        (mesh, death, world.draw.between(0, longest))
    };
    stop(sim, mesh, death).await;
    for _ in 0..away / 1_000 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut world = sim.lock();
        if world.draw.chance(10) {
            world.revision += 1;
            if let Some((key, shape)) = any_service(&mut world, mesh) {
                change(&mut world, mesh, &key, shape);
                world.tell(mesh);
            }
        }
    }
    {
        let mut world = sim.lock();
        if world.draw.chance(40) {
            leave_unread(&mut world, mesh);
        }
    }
    start(sim, mesh, Birth::New).await;
    let after = Duration::from_millis(sim.lock().draw.between(100, 20_000));
    later(sim, after, move |world| read_all(world, mesh));
}

/// Some services of a mesh are known to no source of its process.
pub(crate) fn leave_unread(world: &mut World, mesh: MeshId) {
    let keys: Vec<Key> = world.meshes[mesh].services.keys().cloned().collect();
    let share = *world.draw.pick(&[100, 60, 30]).unwrap_or(&60);
    let mut unread = BTreeSet::new();
    for key in keys {
        if world.draw.chance(share) {
            unread.insert(key);
        }
    }
    world.meshes[mesh].unread = Some(unread);
    happened(world, "unread phases", &[39, mesh as u64]);
}

pub(crate) fn read_all(world: &mut World, mesh: MeshId) {
    if world.meshes[mesh].unread.take().is_some() {
        trouble(world, mesh, None);
        world.tell(mesh);
    }
}
