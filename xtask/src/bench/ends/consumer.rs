//! The consumer's end: a real agent that dials the owner, and tells when all is in force and
//! proven.
//!
//! Commands: `proven` waits until a stream later than the last one told of has proven that both
//! hold the same set; `cost` tells what the process has cost.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use hamlet_core::durable::ImportStore;
use hamlet_protocol::consumer::ProofVerdict;
use hamlet_store::{Store, StoreOptions};
use hamlet_testkit::store::MemoryStore;
use serde::{Deserialize, Serialize};

use super::{Commands, EndOptions, Keeping, tell};
use crate::bench::agent::{Agent, AgentSpec, CONSUMER, OWNER};
use crate::bench::machine::Cost;

/// How often the consumer looks whether all is there.
const LOOK: Duration = Duration::from_millis(1);

/// What a consumer measured.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bench) struct Synced {
    /// From the first dial until the last service was in force, in seconds; after a reconnect,
    /// from the stream's begin.
    pub(in crate::bench) seconds: f64,
    /// From then until the proof that both hold the same set, in seconds.
    pub(in crate::bench) proof_seconds: f64,
    /// Services in force.
    pub(in crate::bench) in_force: usize,
    /// Services refused.
    pub(in crate::bench) refused: u64,
    /// Services that were in force before anything was dialled.
    pub(in crate::bench) kept: usize,
    /// Before the first dial.
    pub(in crate::bench) before: Cost,
    /// After the proof.
    pub(in crate::bench) after: Cost,
}

/// Runs it.
pub(super) async fn run(options: &EndOptions, mut commands: Commands) -> anyhow::Result<()> {
    let (store, loaded): (Arc<dyn ImportStore>, _) = match options.keep {
        Keeping::Memory => (MemoryStore::new(), [].into()),
        Keeping::Durable => {
            let opened = Store::open(&options.folder.join("data"), StoreOptions::default())?;
            (opened.store, opened.peers)
        }
    };
    let agent = Agent::start(AgentSpec {
        own: CONSUMER,
        peers: vec![OWNER.to_owned()],
        folder: &options.folder,
        address: options.address,
        store,
        loaded,
        services: options.services,
        one_in_flight: options.one_in_flight,
    })
    .await?;
    agent.publish();
    let kept = agent.catalogue.len_of(agent.link().peer());
    let before = Cost::now();
    let started = agent.clock.now();
    agent.dial();
    while agent.catalogue.len_of(agent.link().peer()) < options.services {
        tokio::time::sleep(LOOK).await;
    }
    let complete = agent.clock.now();
    // v1alpha1 has no proofs.
    let mut stream = if options.one_in_flight { 0 } else { until_proven(&agent, 0).await.0 };
    let proven = agent.clock.now();
    let synced = |seconds, proof_seconds| Synced {
        seconds,
        proof_seconds,
        in_force: agent.catalogue.len_of(agent.link().peer()),
        refused: agent.link().status().counts.refused,
        kept,
        before,
        after: Cost::now(),
    };
    tell(&synced((complete - started).as_secs_f64(), (proven - complete).as_secs_f64()))?;
    while let Some(command) = commands.next().await {
        match command.first().map(String::as_str) {
            Some("proven") => {
                let proven_after;
                (stream, proven_after) = until_proven(&agent, stream).await;
                tell(&synced(0.0, proven_after.as_secs_f64()))?;
            }
            Some("cost") => tell(&Cost::now())?,
            _ => bail!("a consumer was told {command:?}"),
        }
    }
    agent.stop().await;
    Ok(())
}

/// Waits for a proof on a stream after `stream`; returns that one's number, and how long after its
/// begin the proof came, whenever that was asked.
async fn until_proven(agent: &Agent, stream: u64) -> (u64, Duration) {
    'looking: loop {
        let status = agent.link().status();
        let verdict = status.consumer.map(|c| c.verdict);
        if let Some(ProofVerdict::Equal(at)) = verdict
            && status.streams > stream
        {
            let begun = status.now.saturating_sub(status.age);
            break 'looking (status.streams, at.saturating_sub(begun));
        }
        tokio::time::sleep(LOOK).await;
    }
}
