//! What the processes of a bench do: owner, consumer, a swarm of lean consumers, the chaos proxy,
//! a writer to etcd, and the limits they are compared with.
//!
//! An end gives up by itself after a deadline, so that a bench ends even when one hangs.

mod consumer;
mod etcd_writer;
mod flood;
mod limits;
mod owner;
mod proxy;
mod swarm;

use std::io::BufRead;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub(super) use consumer::Synced;
pub(super) use flood::{Called, Struck};
pub(super) use limits::Counted;
pub(super) use owner::Changed;
pub(super) use proxy::Passed;
pub(super) use swarm::{Arrived, Behaviour, Joined, Latest, Seen, System};

use super::machine::pin_to;
use crate::report::say;

/// What an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Offers services.
    Owner,
    /// Imports them.
    Consumer,
    /// Many lean consumers.
    Swarm,
    /// Strangers at the port.
    Flood,
    /// An honest peer that connects again and again.
    Caller,
    /// Writes to etcd.
    EtcdWriter,
    /// A line with a round trip that counts bytes.
    Proxy,
    /// Answers pings.
    Pong,
    /// Sends pings.
    Ping,
    /// Writes records and syncs.
    Disk,
}

/// Where the consumer keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Keeping {
    /// In the store of a real agent, on disk.
    Durable,
    /// In memory.
    Memory,
}

/// Flags of an end.
#[derive(Debug, Args)]
pub(crate) struct EndOptions {
    role: Role,
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    cpu: Option<usize>,
    #[arg(long, default_value_t = 0)]
    services: usize,
    #[arg(long)]
    address: Option<SocketAddr>,
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long, value_enum, default_value_t = Keeping::Memory)]
    keep: Keeping,
    /// A consumer that takes one message at a time: it speaks v1alpha1.
    #[arg(long)]
    one_in_flight: bool,
    /// Consumers of the swarm; for an owner, how many it knows beside the one mesh.
    #[arg(long, default_value_t = 0)]
    members: usize,
    /// Handshakes of strangers that run at a time.
    #[arg(long, default_value_t = 0)]
    strangers: usize,
    /// Handshakes that are begun at a time, and abandoned.
    #[arg(long, default_value_t = 0)]
    abandoners: usize,
    /// The first of them in this process.
    #[arg(long, default_value_t = 0)]
    first: usize,
    #[arg(long, value_enum, default_value_t = System::Hamlet)]
    system: System,
    #[arg(long, value_enum, default_value_t = Behaviour::Good)]
    behave: Behaviour,
    #[arg(long, default_value_t = 0)]
    delay_us: u64,
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    #[arg(long, default_value_t = 60)]
    deadline: u64,
}

impl EndOptions {
    fn peer_address(&self) -> anyhow::Result<SocketAddr> {
        self.address.context("--address is missing")
    }
}

/// An end can be used.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// Encoded bytes of a service.
    #[serde(default)]
    pub(super) service_bytes: usize,
}

/// Commands from the bench, a line each; their end is the end.
struct Commands(mpsc::Receiver<String>);

impl Commands {
    /// Reads standard input in a thread of its own.
    fn listen() -> Commands {
        let (commands, received) = mpsc::channel(16);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if commands.blocking_send(line).is_err() {
                    break;
                }
            }
        });
        Commands(received)
    }

    /// The next one's words; `None` at the end.
    async fn next(&mut self) -> Option<Vec<String>> {
        let line = self.0.recv().await?;
        Some(line.split_whitespace().map(str::to_owned).collect())
    }
}

/// Numbers of a command, after its name.
fn numbers<const N: usize>(words: &[String]) -> anyhow::Result<[u64; N]> {
    let numbers = words.iter().skip(1).map(|w| w.parse::<u64>()).collect::<Result<Vec<_>, _>>();
    match numbers.ok().and_then(|n| n.try_into().ok()) {
        Some(numbers) => Ok(numbers),
        None => bail!("an end was told {words:?}, which it doesn't understand"),
    }
}

/// Runs one end.
pub(super) fn run(options: &EndOptions) -> anyhow::Result<()> {
    let mut runtime = match options.cpu {
        Some(cpu) => {
            pin_to(cpu)?;
            tokio::runtime::Builder::new_current_thread()
        }
        None => tokio::runtime::Builder::new_multi_thread(),
    };
    if options.role == Role::Disk {
        return tell(&limits::disk(options)?);
    }
    // The first random number of a process takes tens of milliseconds (it gathers entropy), once.
    // Without this the first handshake that is measured would pay for it.
    if hamlet_identity::provider().secure_random.fill(&mut [0; 32]).is_err() {
        bail!("no random numbers");
    }
    let commands = Commands::listen();
    runtime.enable_all().build()?.block_on(async {
        let role = async {
            match options.role {
                Role::Owner => owner::run(options, commands).await,
                Role::Consumer => consumer::run(options, commands).await,
                Role::Swarm => swarm::run(options, commands).await,
                Role::Flood => flood::flood(options, commands).await,
                Role::Caller => flood::caller(options, commands).await,
                Role::EtcdWriter => etcd_writer::run(options, commands).await,
                Role::Proxy => proxy::run(options, commands).await,
                Role::Pong => limits::pong(options, commands).await,
                Role::Ping => limits::ping(options).await,
                Role::Disk => Ok(()),
            }
        };
        let deadline = Duration::from_secs(options.deadline);
        let late = "an end of the bench took too long; on a busy machine a second run may do";
        tokio::time::timeout(deadline, role).await.context(late)?
    })
}

fn tell(line: &impl Serialize) -> anyhow::Result<()> {
    say(&serde_json::to_string(line)?);
    Ok(())
}
