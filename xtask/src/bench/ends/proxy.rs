//! The chaos proxy as a process of its own: a line with a round trip that counts its bytes.
//!
//! Commands: `take` tells what was carried since the last time; `to ADDRESS` sends new connections
//! elsewhere; `reset` resets all.

use std::time::Duration;

use anyhow::{Context, bail};
use hamlet_runtime::{Shutdown, Supervisor};
use hamlet_testkit::chaos::{ChaosProxy, Weather};
use serde::{Deserialize, Serialize};

use super::{Commands, EndOptions, Ready, tell};

/// What the line carried.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bench) struct Passed {
    /// Bytes both ways.
    pub(in crate::bench) bytes: u64,
    /// Connections opened.
    pub(in crate::bench) connections: u64,
}

/// Runs it.
pub(super) async fn run(options: &EndOptions, mut commands: Commands) -> anyhow::Result<()> {
    let supervisor = Supervisor::new(Shutdown::new());
    let weather = Weather { delay: Duration::from_micros(options.delay_us), ..Weather::default() };
    let proxy = ChaosProxy::start(options.peer_address()?, weather, &supervisor.spawner()).await?;
    tell(&Ready { address: proxy.address(), service_bytes: 0 })?;
    while let Some(command) = commands.next().await {
        match command.first().map(String::as_str) {
            Some("take") => {
                let carried = proxy.take_counts();
                tell(&Passed { bytes: carried.up + carried.down, connections: carried.connections })?;
            }
            Some("to") => {
                let address = command.get(1).context("an address is missing")?;
                proxy.set_target(address.parse()?);
                tell(&Passed { bytes: 0, connections: 0 })?;
            }
            Some("reset") => {
                proxy.reset();
                tell(&Passed { bytes: 0, connections: 0 })?;
            }
            _ => bail!("a proxy was told {command:?}"),
        }
    }
    Ok(())
}
