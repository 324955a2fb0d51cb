//! The owner's end: an agent that offers services and changes them when told to.
//!
//! Commands: `set FIRST COUNT VERSION` changes services; `rate A_SECOND MILLIS VERSION` changes one
//! after the other at that rate, counting the version up each time round; `cost` tells what the
//! process has cost.

use std::time::Duration;

use anyhow::bail;
use hamlet_runtime::{Clock, SystemClock};
use hamlet_testkit::store::MemoryStore;
use serde::{Deserialize, Serialize};

use super::{Commands, EndOptions, Ready, numbers, tell};
use crate::bench::agent::{Agent, AgentSpec, CONSUMER, OWNER, member};
use crate::bench::machine::Cost;

/// How often changes are made while there is a rate to keep.
const BEAT: Duration = Duration::from_millis(1);

/// What a command changed.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bench) struct Changed {
    /// How many changes.
    pub(in crate::bench) changes: u64,
    /// The last version of every service that was changed.
    pub(in crate::bench) version: u64,
    /// How long it took.
    pub(in crate::bench) seconds: f64,
}

/// Paces changes: how many are due by now.
pub(super) struct Pace {
    clock: SystemClock,
    a_second: u64,
    whole: u64,
    done: u64,
}

impl Pace {
    /// So many a second for so long; a whole number of times round `keys`.
    pub(super) fn new(a_second: u64, millis: u64, keys: u64) -> Pace {
        let whole = (a_second * millis / 1000).div_ceil(keys.max(1)) * keys.max(1);
        Pace { clock: SystemClock::new(), a_second, whole, done: 0 }
    }

    /// Waits until something is due: the first and the last of it; `None` when all is done.
    pub(super) async fn due(&mut self) -> Option<(u64, u64)> {
        while self.done < self.whole {
            let due = (self.clock.now().as_secs_f64() * self.a_second as f64) as u64;
            let due = due.min(self.whole);
            if due > self.done {
                let from = self.done;
                self.done = due;
                return Some((from, due));
            }
            tokio::time::sleep(BEAT).await;
        }
        None
    }

    /// What was changed, after the last of it.
    pub(super) fn changed(&self, version: u64) -> Changed {
        Changed { changes: self.done, version, seconds: self.clock.now().as_secs_f64() }
    }
}

/// Runs it.
pub(super) async fn run(options: &EndOptions, mut commands: Commands) -> anyhow::Result<()> {
    let peers = match options.members {
        0 => vec![CONSUMER.to_owned()],
        members => (0..members).map(member).collect(),
    };
    let mut agent = Agent::start(AgentSpec {
        own: OWNER,
        peers,
        folder: &options.folder,
        address: None,
        store: MemoryStore::new(),
        loaded: [].into(),
        services: 0,
        one_in_flight: false,
    })
    .await?;
    let service_bytes = agent.set(0, options.services, 1)?;
    let address = agent.listen(options.listen).await?;
    tell(&Ready { address, service_bytes })?;
    while let Some(command) = commands.next().await {
        match command.first().map(String::as_str) {
            Some("set") => {
                let clock = SystemClock::new();
                let [first, count, version] = numbers(&command)?;
                agent.set(first as usize, count as usize, version)?;
                tell(&Changed { changes: count, version, seconds: clock.now().as_secs_f64() })?;
            }
            Some("rate") => {
                let [a_second, millis, from] = numbers(&command)?;
                let keys = options.services as u64;
                let mut pace = Pace::new(a_second, millis, keys);
                let mut version = from;
                while let Some((first, last)) = pace.due().await {
                    for change in first..last {
                        version = from + change / keys;
                        agent.set((change % keys) as usize, 1, version)?;
                    }
                }
                tell(&pace.changed(version))?;
            }
            Some("cost") => tell(&Cost::now())?,
            _ => bail!("an owner was told {command:?}"),
        }
    }
    agent.stop().await;
    Ok(())
}
