//! A tenant of the owner's mesh who chooses what he publishes so that a sum of hashes stays the
//! same while the set changes: Gaussian elimination over the bits of the leaves.

use std::time::Duration;

use hamlet_core::digest::leaf;
use hamlet_protocol::dialect::service::TYPE_URL;

use crate::services::{Service, Shape, service};
use crate::truth::Key;
use crate::world::{Death, Net, Sim, pair};

/// One more than the bits of a leaf: some of so many differences always cancel out.
const KEYS: usize = 257;
const WORDS: usize = 9;

type Bits = [u32; WORDS];

fn bits(of: &[u8; 32]) -> [u32; 8] {
    let mut out = [0; 8];
    for (word, bytes) in out.iter_mut().zip(of.chunks(4)) {
        *word = bytes.iter().fold(0, |sum, b| sum << 8 | u32::from(*b));
    }
    out
}

/// Indices of differences that cancel each other out; never empty for more than 256 of them.
pub(crate) fn cancelling(differences: &[[u8; 32]]) -> Vec<usize> {
    let mut rows: Vec<([u32; 8], Bits)> = vec![];
    for (at, difference) in differences.iter().enumerate().take(KEYS) {
        let mut row = bits(difference);
        let mut which: Bits = [0; WORDS];
        which[at / 32] |= 1 << (at % 32);
        for (basis, members) in &rows {
            let Some(pivot) = basis.iter().position(|w| *w != 0) else { continue };
            let top = 1 << (31 - basis[pivot].leading_zeros());
            if row[pivot] & top != 0 {
                row.iter_mut().zip(basis).for_each(|(r, b)| *r ^= b);
                which.iter_mut().zip(members).for_each(|(w, m)| *w ^= m);
            }
        }
        if row == [0; 8] {
            return (0..=at).filter(|i| which[i / 32] & (1 << (i % 32)) != 0).collect();
        }
        rows.push((row, which));
    }
    vec![]
}

fn pair_of(key: &Key, revision: u64) -> (Service, Service) {
    let shape = |revision| Shape { revision, ..Shape::default() };
    (service("bank", key, shape(revision)), service("bank", key, shape(revision + 1_000_000)))
}

fn difference(key: &Key, a: &Service, b: &Service) -> [u8; 32] {
    let mut out = leaf(TYPE_URL, key, &a.meant.value);
    let other = leaf(TYPE_URL, key, &b.meant.value);
    out.iter_mut().zip(other).for_each(|(x, y)| *x ^= y);
    out
}

/// The consumer has everything, goes away, and comes back after the change.
pub(crate) async fn play(sim: &Sim) {
    let pairs: Vec<(Key, Service, Service)> = (0..KEYS)
        .map(|n| {
            let key = Key::from(format!("h{n:03}"));
            let (a, b) = pair_of(&key, n as u64 + 1);
            (key, a, b)
        })
        .collect();
    let differences: Vec<[u8; 32]> = pairs.iter().map(|(k, a, b)| difference(k, a, b)).collect();
    let chosen = cancelling(&differences);
    {
        let mut world = sim.lock();
        world.model.lock().tally.count("hostile contents");
        for (key, before, _) in &pairs {
            world.meshes[0].services.insert(key.clone(), before.clone());
        }
        world.tell(0);
    }
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let world = sim.lock();
        let model = world.model.lock();
        if model.violation().is_some() {
            return;
        }
        if model.ways.keys().all(|id| model.unsettled(*id).is_none()) {
            break;
        }
    }
    let restarts = sim.lock().draw.chance(50);
    if restarts {
        crate::world::stop(sim, 1, Death::Stop).await;
    } else {
        let mut world = sim.lock();
        world.nets.insert(pair(0, 1), Net { up: false, delay: Duration::ZERO });
        world.conns_of(0, Some(1)).iter().for_each(|c| c.break_off());
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    {
        let mut world = sim.lock();
        for at in chosen {
            let (key, _, after) = &pairs[at];
            world.meshes[0].services.insert(key.clone(), after.clone());
        }
        world.tell(0);
    }
    if restarts {
        crate::world::start(sim, 1, crate::world::Birth::New).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_differences_cancel_each_other_out() {
        let differences: Vec<[u8; 32]> = (0..KEYS)
            .map(|n| {
                let key = Key::from(format!("h{n:03}"));
                let (a, b) = pair_of(&key, n as u64 + 1);
                difference(&key, &a, &b)
            })
            .collect();
        let chosen = cancelling(&differences);
        assert!(!chosen.is_empty());
        let mut sum = [0; 32];
        for at in chosen {
            sum.iter_mut().zip(differences[at]).for_each(|(s, d)| *s ^= d);
        }
        assert_eq!(sum, [0; 32]);
    }
}
