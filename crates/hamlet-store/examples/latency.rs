//! How long a durable commit takes, beside what the disk does at most: one commit after the other
//! from a tokio runtime of one thread, everything on one core.
//!
//! `cargo run --release -p hamlet-store --example latency -- FOLDER` prints, in turns, how often a
//! second 600 bytes are appended to a file and synced (what `cargo xtask bench` calls the limit),
//! the same into a file that was filled before, and a commit of one record of about that size
//! through the store, checkpoints included; then how fast many commits at once are.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use hamlet_core::durable::{HeardRecord, ImportChange, ImportRecord, ImportStore, Verdict};
use hamlet_core::name::PeerName;
use hamlet_runtime::{Clock, SystemClock};
use hamlet_store::{Store, StoreOptions};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Bytes of an append, and about those of a record.
const BYTES: usize = 600;
/// Each way is measured this often, in turns.
const ROUNDS: usize = 5;
/// How long each time.
const EACH: Duration = Duration::from_millis(1500);
/// Different keys, as a peer has that offers so many services.
const KEYS: usize = 4096;
/// Commits of a burst, each of a key of its own.
const BURST: usize = 100_000;
/// So many of them at once.
const IN_FLIGHT: usize = 1024;
/// Bytes of the filled file.
const FILLED: usize = 16 * 1024 * 1024;

/// Does something again and again; how often a second.
fn rate(mut once: impl FnMut(usize) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let clock = SystemClock::new();
    let mut count = 0;
    while clock.now() < EACH {
        once(count)?;
        count += 1;
    }
    Ok(count as f64 / clock.now().as_secs_f64())
}

fn append(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join("appended");
    let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
    let rate = rate(|_| {
        file.write_all(&[7; BYTES])?;
        Ok(file.sync_data()?)
    })?;
    std::fs::remove_file(&path)?;
    Ok(rate)
}

fn overwrite(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join("filled");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
    file.write_all(&vec![0; FILLED])?;
    file.sync_all()?;
    let rate = rate(|n| {
        file.write_all_at(&[7; BYTES], (n * 1024 % (FILLED - 1024)) as u64)?;
        Ok(file.sync_data()?)
    })?;
    std::fs::remove_file(&path)?;
    Ok(rate)
}

fn change(peer: &PeerName, n: usize, keys: usize) -> ImportChange {
    let value = Bytes::from(vec![n as u8; BYTES - 100]);
    let heard = HeardRecord { value, leaf: [n as u8; 32], verdict: Verdict::Admitted, refused_ms: 0 };
    let record = ImportRecord { heard: Some(heard), in_force: None, withheld_ms: None };
    ImportChange {
        peer: peer.clone(),
        key: format!("service-{}.example.org", n % keys),
        record: Some(record),
    }
}

fn commit(folder: &Path) -> anyhow::Result<(f64, String)> {
    let folder = folder.join("data");
    let store = Store::open(&folder, StoreOptions::default())?.store;
    let peer = PeerName::parse("acme")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rate = runtime.block_on(async {
        let clock = SystemClock::new();
        let mut count = 0;
        while clock.now() < EACH {
            store.commit(vec![change(&peer, count, KEYS)]).await?;
            count += 1;
        }
        anyhow::Ok(count as f64 / clock.now().as_secs_f64())
    })?;
    let health = store.health();
    store.close()?;
    drop(store);
    std::fs::remove_dir_all(&folder)?;
    Ok((rate, format!("{} checkpoints, mean sync {:?}", health.checkpoints, health.sync_mean)))
}

/// Many commits at once; seconds until all are durable, and until the store is closed.
fn burst(folder: &Path) -> anyhow::Result<(f64, f64)> {
    let folder = folder.join("data");
    let store = Store::open(&folder, StoreOptions::default())?.store;
    let peer = PeerName::parse("acme")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let clock = SystemClock::new();
    runtime.block_on(async {
        let commits = (0..BURST).map(|n| store.commit(vec![change(&peer, n, BURST)]));
        futures::stream::iter(commits).buffered(IN_FLIGHT).try_collect::<()>().await
    })?;
    let durable = clock.now().as_secs_f64();
    store.close()?;
    let closed = clock.now().as_secs_f64();
    drop(store);
    std::fs::remove_dir_all(&folder)?;
    Ok((durable, closed))
}

fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1).context("which folder? It must be on the disk to be measured")?;
    let folder = Path::new(&folder);
    let mut core = CpuSet::new();
    core.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &core)?;
    let mut shares = Vec::new();
    for _ in 0..ROUNDS {
        let (appended, overwritten) = (append(folder)?, overwrite(folder)?);
        let (committed, how) = commit(folder)?;
        println!(
            "append {appended:.0}/s, overwrite {overwritten:.0}/s, commit {committed:.0}/s = {:.2} of append, \
             {:.2} of overwrite ({how})",
            committed / appended,
            committed / overwritten
        );
        shares.push(committed / appended);
    }
    shares.sort_by(f64::total_cmp);
    println!("commit as a share of append, median of {ROUNDS}: {:.2}", shares[ROUNDS / 2]);
    let (durable, closed) = burst(folder)?;
    println!(
        "{BURST} commits, {IN_FLIGHT} at once: durable after {durable:.2} s, closed after {closed:.2} s"
    );
    Ok(())
}
