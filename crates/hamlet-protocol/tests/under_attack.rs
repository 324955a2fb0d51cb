//! Each attack on HTTP/2 for a while, over and over, and what it costs an honest peer of the same
//! agent. A measurement, run by `cargo xtask attacks`; it stops by itself and stays on loopback.
//!
//! Invariant: the honest peer loses nothing, and no task of an agent fails.

use std::time::Duration;

use hamlet_runtime::{Clock, SystemClock};
use hamlet_testkit::GENEROUS;

mod common;
use common::agent::names;
use common::attacks::{Attack, of_nothing, with_streams};
use common::raw::RawHttp2;
use common::stage::Stage;

/// Between two changes for the honest peer.
const CHANGE_EVERY: Duration = Duration::from_millis(20);
/// How often is looked whether a change has arrived.
const LOOK_EVERY: Duration = Duration::from_millis(1);

#[allow(clippy::disallowed_methods, reason = "how long a measurement takes is told by the environment")]
fn seconds() -> u64 {
    std::env::var("HAMLET_ATTACK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10)
}

/// Memory of this process in KiB: both agents, and the attacker.
fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// Attacks until the time is over, on a new connection whenever the last one was closed. Returns how many.
async fn attack(stage: &Stage, attack: &Attack, clock: &SystemClock, until: Duration) -> u64 {
    let mut connections = 0;
    'attacking: while clock.now() < until {
        let Ok(mut raw) = RawHttp2::connect(stage.bank.address, &stage.leaf, 65_535).await else {
            // Those before may not be gone yet.
            tokio::time::sleep(LOOK_EVERY).await;
            continue 'attacking;
        };
        connections += 1;
        if raw.write(&attack.once).await.is_err() {
            continue 'attacking;
        }
        for from in (0..).step_by(64) {
            let burst: Vec<u8> = (from..from + 64).flat_map(&attack.again).collect();
            // Whoever doesn't read any more is left as well: that one stands still.
            let written = tokio::time::timeout(Duration::from_secs(1), raw.write(&burst)).await;
            if clock.now() >= until || !matches!(written, Ok(Ok(()))) {
                break;
            }
        }
    }
    connections
}

/// Changes one service after the other for the honest peer until the time is over. Returns how long each took
/// from the change until it was imported and answered.
async fn honest(stage: &Stage, name: &str, clock: &SystemClock, until: Duration) -> Vec<Duration> {
    let (mut took, link) = (vec![], stage.bank.link_with("shop"));
    while clock.now() < until {
        let service = format!("{name}-{}", took.len());
        let (began, arrives) = (clock.now(), format!("{service}.bank.example"));
        stage.bank.publish_to(&["shop", "evil"], &names(&["ledger", &service]));
        let arrived = || stage.shop.imports().contains(&arrives) && link.status().in_flight == 0;
        while !arrived() {
            assert!(clock.now() < began + GENEROUS, "{service} does not arrive");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        took.push(clock.now() - began);
        tokio::time::sleep(CHANGE_EVERY).await;
    }
    took
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took.get(took.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of minutes; cargo xtask attacks"]
async fn what_each_attack_costs_an_honest_peer_while_it_goes_on() {
    let stage = Stage::set(None).await;
    let (clock, time) = (SystemClock::new(), Duration::from_secs(seconds()));
    let calm = honest(&stage, "calm", &clock, clock.now() + time).await;
    println!("{:24} {:>8} {:>12} {:>12} {:>12}", "attack", "changes", "p99 ms", "KiB more", "connections");
    println!("{:24} {:>8} {:>12.1} {:>12} {:>12}", "none", calm.len(), ms(p99(calm)), 0, 0);
    for one in of_nothing().into_iter().chain(with_streams()) {
        let (before, until) = (resident(), clock.now() + time);
        let (connections, took) =
            tokio::join!(attack(&stage, &one, &clock, until), honest(&stage, one.name, &clock, until));
        assert!(connections > 0 && !took.is_empty(), "{}", one.name);
        let (changes, more) = (took.len(), resident() - before);
        println!("{:24} {changes:>8} {:>12.1} {more:>12} {connections:>12}", one.name, ms(p99(took)));
        assert_eq!(stage.bank.failed_tasks(), Vec::<String>::new());
    }
    // Not with the check of exactly what is imported: the guard holds back some of what went.
    stage.end().await;
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
