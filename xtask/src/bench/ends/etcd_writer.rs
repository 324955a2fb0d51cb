//! The writer to etcd: makes the same changes as an owner, as puts, with the same values.
//!
//! Commands: `set` and `rate` as of the owner's end.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use hamlet_runtime::{Clock, Shutdown, Supervisor, SystemClock};
use hamlet_testkit::pki::TestLeaf;
use hamlet_testkit::tls::stranger_client;
use tokio::sync::Semaphore;

use super::owner::Pace;
use super::{Changed, Commands, EndOptions, Ready, numbers, tell};
use crate::bench::agent::{CONSUMER, SERVICE_BYTES, marker};
use crate::bench::lean::{Call, connect, put_request};

/// Most puts under way at once.
const PUTS_MAX: usize = 64;
const PUT: &str = "/etcdserverpb.KV/Put";

#[derive(Clone)]
struct Writer {
    sender: SendRequest<Bytes>,
    clock: SystemClock,
}

impl Writer {
    async fn put(mut self, key: u64, version: u64) -> anyhow::Result<()> {
        let text = marker(key as usize, version, self.clock.wall().as_nanos());
        let value = format!("{text:x<SERVICE_BYTES$}");
        let request = put_request(&format!("service-{key:06}"), value.as_bytes());
        self.sender = self.sender.ready().await?;
        let mut call = Call::open(&mut self.sender, PUT, &request, true)?;
        call.next().await?.context("a put without an answer").map(drop)
    }
}

/// Runs it.
pub(super) async fn run(options: &EndOptions, mut commands: Commands) -> anyhow::Result<()> {
    let supervisor = Supervisor::new(Shutdown::new());
    let spawner = supervisor.spawner();
    let address = options.peer_address()?;
    let (sender, connection) = connect(address, client(&options.folder)).await?;
    spawner.spawn("etcd", async move {
        // Its end shows in the next put.
        let _ = connection.await;
    });
    let writer = Writer { sender, clock: SystemClock::new() };
    for key in 0..options.services as u64 {
        writer.clone().put(key, 1).await?;
    }
    tell(&Ready { address, service_bytes: SERVICE_BYTES })?;
    while let Some(command) = commands.next().await {
        match command.first().map(String::as_str) {
            Some("set") => {
                let clock = SystemClock::new();
                let [first, count, version] = numbers(&command)?;
                for key in first..first + count {
                    writer.clone().put(key, version).await?;
                }
                tell(&Changed { changes: count, version, seconds: clock.now().as_secs_f64() })?;
            }
            Some("rate") => {
                let [a_second, millis, from] = numbers(&command)?;
                let keys = options.services as u64;
                let mut pace = Pace::new(a_second, millis, keys);
                let room = Arc::new(Semaphore::new(PUTS_MAX));
                let mut version = from;
                while let Some((first, last)) = pace.due().await {
                    for change in first..last {
                        version = from + change / keys;
                        let permit = room.clone().acquire_owned().await?;
                        let put = writer.clone().put(change % keys, version);
                        spawner.spawn_fallible("put", async move {
                            let outcome = put.await;
                            drop(permit);
                            outcome.map_err(|e| format!("{e:#}"))
                        });
                    }
                }
                // All answered.
                let _ = room.acquire_many(PUTS_MAX as u32).await?;
                tell(&pace.changed(version))?;
            }
            _ => bail!("a writer to etcd was told {command:?}"),
        }
    }
    Ok(())
}

fn client(folder: &Path) -> Arc<tokio_rustls::rustls::ClientConfig> {
    stranger_client(Some(&TestLeaf::read(folder, CONSUMER)), &[b"h2"])
}
