//! What the processes of a bench do: the owner, the consumer, and the limits they are compared
//! with (a bare ping-pong over the same TLS, and the disk).
//!
//! An end gives up by itself after a deadline, so that a bench ends even when one hangs.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use hamlet_core::PeerName;
use hamlet_core::durable::ImportStore;
use hamlet_identity::{agent_client_config, agent_server_config, agent_server_name};
use hamlet_protocol::consumer::ProofVerdict;
use hamlet_protocol::transport;
use hamlet_runtime::{Clock, SystemClock};
use hamlet_store::{Store, StoreOptions};
use hamlet_testkit::store::MemoryStore;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::agent::{Agent, CONSUMER, Identities, OWNER};
use super::machine::{Cost, pin_to};
use crate::report::say;

/// Bytes of a ping, and of a pong.
pub(super) const PING_BYTES: usize = 500;
/// Bytes of an append.
pub(super) const APPEND_BYTES: usize = 600;
/// Pings before it counts.
const WARM_UP: usize = 500;
/// How often the consumer looks whether all is there.
const LOOK: Duration = Duration::from_millis(2);

/// What an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Offers services.
    Owner,
    /// Imports them.
    Consumer,
    /// Answers pings.
    Pong,
    /// Sends pings.
    Ping,
    /// Appends and syncs.
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
    #[arg(long, value_enum, default_value_t = Keeping::Memory)]
    keep: Keeping,
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    #[arg(long, default_value_t = 60)]
    deadline: u64,
}

/// An end can be used.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// Encoded bytes of a service.
    pub(super) service_bytes: usize,
}

/// What a consumer measured.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Synced {
    /// From the first dial until the last service was in force, in seconds.
    pub(super) seconds: f64,
    /// From then until the proof that both hold the same set, in seconds.
    pub(super) proof_seconds: f64,
    /// Services in force.
    pub(super) in_force: usize,
    /// Services refused.
    pub(super) refused: u64,
    /// Before the first dial.
    pub(super) before: Cost,
    /// After the proof.
    pub(super) after: Cost,
}

/// How often something was done, and what it cost.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Counted {
    /// How often.
    pub(super) count: u64,
    /// In how many seconds.
    pub(super) seconds: f64,
    /// Processor time of this end over it, in microseconds.
    pub(super) cpu_us: u64,
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
        return tell(&disk(options)?);
    }
    let (closed, input) = oneshot::channel();
    std::thread::spawn(move || {
        // Whatever comes, only its end counts.
        let _ = std::io::copy(&mut std::io::stdin().lock().take(u64::MAX), &mut std::io::sink());
        let _ = closed.send(());
    });
    runtime.enable_all().build()?.block_on(async {
        let role = async {
            match options.role {
                Role::Owner => owner(options, input).await,
                Role::Consumer => consumer(options).await,
                Role::Pong => pong(options, input).await,
                Role::Ping => ping(options).await,
                Role::Disk => Ok(()),
            }
        };
        let deadline = Duration::from_secs(options.deadline);
        let late = "an end of the bench took too long; fewer --services, or no --quick, leave it more time";
        tokio::time::timeout(deadline, role).await.context(late)?
    })
}

fn tell(line: &impl Serialize) -> anyhow::Result<()> {
    say(&serde_json::to_string(line)?);
    Ok(())
}

async fn owner(options: &EndOptions, input: oneshot::Receiver<()>) -> anyhow::Result<()> {
    let agent = Agent::start(OWNER, CONSUMER, &options.folder, None, MemoryStore::new(), 0).await?;
    let service_bytes = agent.publish(options.services)?;
    let address = agent.listen().await?;
    let before = Cost::now();
    tell(&Ready { address, service_bytes })?;
    let _ = input.await;
    let after = Cost::now();
    tell(&Counted { count: options.services as u64, seconds: 0.0, cpu_us: after.cpu_us - before.cpu_us })?;
    agent.stop().await;
    Ok(())
}

async fn consumer(options: &EndOptions) -> anyhow::Result<()> {
    let store: Arc<dyn ImportStore> = match options.keep {
        Keeping::Memory => MemoryStore::new(),
        Keeping::Durable => Store::open(&options.folder.join("data"), StoreOptions::default())?.store,
    };
    let agent =
        Agent::start(CONSUMER, OWNER, &options.folder, options.address, store, options.services).await?;
    agent.publish(0)?;
    let before = Cost::now();
    let started = agent.clock.now();
    agent.dial();
    while agent.catalogue.len_of(&agent.peer) < options.services {
        tokio::time::sleep(LOOK).await;
    }
    let complete = agent.clock.now();
    let equal = || agent.link.status().consumer.is_some_and(|c| matches!(c.verdict, ProofVerdict::Equal(_)));
    while !equal() {
        tokio::time::sleep(LOOK).await;
    }
    let proven = agent.clock.now();
    tell(&Synced {
        seconds: (complete - started).as_secs_f64(),
        proof_seconds: (proven - complete).as_secs_f64(),
        in_force: agent.catalogue.len_of(&agent.peer),
        refused: agent.link.status().counts.refused,
        before,
        after: Cost::now(),
    })?;
    agent.stop().await;
    Ok(())
}

async fn pong(options: &EndOptions, input: oneshot::Receiver<()>) -> anyhow::Result<()> {
    let Identities { identity, trust } = Identities::read(&options.folder, OWNER, CONSUMER)?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    tell(&Ready { address: listener.local_addr()?, service_bytes: PING_BYTES })?;
    let before = Cost::now();
    let (tcp, _) = listener.accept().await?;
    transport::tune(&tcp)?;
    let mut tls = TlsAcceptor::from(agent_server_config(&identity, &trust)).accept(tcp).await?;
    let mut message = [0; PING_BYTES];
    let mut count = 0;
    // The client's end is the end.
    while tls.read_exact(&mut message).await.is_ok() {
        tls.write_all(&message).await?;
        tls.flush().await?;
        count += 1;
    }
    let _ = input.await;
    tell(&Counted { count, seconds: 0.0, cpu_us: Cost::now().cpu_us - before.cpu_us })
}

async fn ping(options: &EndOptions) -> anyhow::Result<()> {
    let Identities { identity, trust } = Identities::read(&options.folder, CONSUMER, OWNER)?;
    let address = options.address.context("--address is missing")?;
    let tcp = TcpStream::connect(address).await?;
    transport::tune(&tcp)?;
    let peer = PeerName::parse(OWNER)?;
    let name = agent_server_name(&trust.peer(&peer).context("a peer without trust")?.trust_domain);
    let config = agent_client_config(&identity, &trust, &peer);
    let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
    let clock = SystemClock::new();
    let mut message = [7; PING_BYTES];
    let (mut count, mut started, mut before) = (0, Duration::ZERO, Cost::default());
    for round in 0.. {
        if round == WARM_UP {
            (started, before) = (clock.now(), Cost::now());
        }
        tls.write_all(&message).await?;
        tls.flush().await?;
        tls.read_exact(&mut message).await?;
        count += u64::from(round >= WARM_UP);
        if round > WARM_UP && (clock.now() - started).as_millis() as u64 >= options.millis {
            break;
        }
    }
    let seconds = (clock.now() - started).as_secs_f64();
    tell(&Counted { count, seconds, cpu_us: Cost::now().cpu_us - before.cpu_us })?;
    let _ = tls.shutdown().await;
    Ok(())
}

/// Appends and makes durable, one after the other.
fn disk(options: &EndOptions) -> anyhow::Result<Counted> {
    let path = options.folder.join("appended");
    let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
    let clock = SystemClock::new();
    let before = Cost::now();
    let mut count = 0;
    while (clock.now().as_millis() as u64) < options.millis {
        file.write_all(&[7; APPEND_BYTES])?;
        file.sync_data()?;
        count += 1;
    }
    let seconds = clock.now().as_secs_f64();
    std::fs::remove_file(&path)?;
    if count == 0 {
        bail!("the disk did nothing");
    }
    Ok(Counted { count, seconds, cpu_us: Cost::now().cpu_us - before.cpu_us })
}
