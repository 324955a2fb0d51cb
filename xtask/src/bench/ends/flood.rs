//! Strangers at an agent's port, and one honest caller among them, each a process of its own.
//!
//! The flood: sockets that connect and never say anything, each back a second after it was thrown
//! out; handshakes with a certificate that nobody knows, one after the other; and handshakes that
//! are abandoned once the agent has done its part, begun with bytes that were made once, so that
//! they cost the flood next to nothing. All come from networks of loopback that are not the
//! caller's, so that the limit for one network doesn't count the caller among them. Command: `take` tells what was done so far. The caller: command `call N`
//! connects N times, with a pause before each, to the first byte of the answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use hamlet_protocol::transport::HTTP2_OPENING;
use hamlet_runtime::{Clock, Shutdown, Supervisor, SystemClock};
use hamlet_testkit::pki::{TestCa, TestLeaf};
use hamlet_testkit::tls::stranger_client;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection};

use super::{Commands, EndOptions, numbers, tell};
use crate::bench::agent::member;

/// How long a silent socket that was thrown out stays away.
const BACK_AFTER: Duration = Duration::from_secs(1);
/// Silent sockets of each /24.
const OF_A_PREFIX: usize = 4;
/// Second number of their addresses, from here on. The caller's is 0.
const SILENT_NETWORK: usize = 1;
/// Second number of the strangers' addresses, from here on; the silent ones stay below it.
const STRANGERS_NETWORK: usize = 128;
/// Second number of the addresses of those who abandon handshakes, from here on.
const ABANDONERS_NETWORK: usize = 192;
/// Between two honest calls: so long a series meets every moment of the flood, which comes in waves.
const BETWEEN_CALLS: Duration = Duration::from_millis(10);
/// Longest that one honest call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What the flood did.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::bench) struct Struck {
    /// Silent sockets that were opened.
    pub(in crate::bench) silent: u64,
    /// Of those, thrown out again.
    pub(in crate::bench) evicted: u64,
    /// Handshakes of strangers that were begun, and refused.
    pub(in crate::bench) refused: u64,
    /// Strangers that were let in.
    pub(in crate::bench) admitted: u64,
    /// Handshakes that the agent answered, and nobody went on with.
    pub(in crate::bench) abandoned: u64,
}

/// What the honest caller saw.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::bench) struct Called {
    /// Half of the calls took no longer, in milliseconds.
    pub(in crate::bench) p50_ms: f64,
    /// 99 of 100 took no longer.
    pub(in crate::bench) p99_ms: f64,
    /// The same until TCP was connected.
    pub(in crate::bench) tcp_p99_ms: f64,
    /// The same until TLS was done, as the client sees it.
    pub(in crate::bench) tls_p99_ms: f64,
    /// Calls without an answer.
    pub(in crate::bench) failed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    silent: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
    admitted: AtomicU64,
    abandoned: AtomicU64,
}

/// Runs the flood: `--members` silent sockets, `--strangers` that shake hands, and `--abandoners` that
/// only begin to.
pub(super) async fn flood(options: &EndOptions, mut commands: Commands) -> anyhow::Result<()> {
    let supervisor = Supervisor::new(Shutdown::new());
    let spawner = supervisor.spawner();
    let server = options.peer_address()?;
    let counters = Arc::new(Counters::default());
    for number in 0..options.members {
        let counters = counters.clone();
        spawner.spawn("silent", async move { stay_silent(number, server, &counters).await });
    }
    let stranger = TestCa::new("stranger.example").agent();
    for number in 0..options.strangers {
        let (tls, counters) = (stranger_client(Some(&stranger), &[b"h2"]), counters.clone());
        let from = network(STRANGERS_NETWORK, number);
        spawner.spawn("stranger", async move { knock(from, server, tls, &counters).await });
    }
    let hello: Arc<[u8]> = client_hello(stranger_client(Some(&stranger), &[b"h2"]))?.into();
    for number in 0..options.abandoners {
        let (hello, counters) = (hello.clone(), counters.clone());
        let from = network(ABANDONERS_NETWORK, number);
        spawner.spawn("abandoner", async move { begin_only(from, server, &hello, &counters).await });
    }
    tell(&counters.read())?;
    while let Some(command) = commands.next().await {
        match command.first().map(String::as_str) {
            Some("take") => tell(&counters.read())?,
            _ => bail!("a flood was told {command:?}"),
        }
    }
    Ok(())
}

impl Counters {
    fn read(&self) -> Struck {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Struck {
            silent: of(&self.silent),
            evicted: of(&self.evicted),
            refused: of(&self.refused),
            admitted: of(&self.admitted),
            abandoned: of(&self.abandoned),
        }
    }
}

/// An address in the `number`th /24 from `127.first.0.0` on; any port.
fn network(first: usize, number: usize) -> SocketAddr {
    let octet = |n: usize| u8::try_from(n % 256).unwrap_or(0);
    (Ipv4Addr::new(127, octet(first + number / 256), octet(number), 1), 0).into()
}

async fn stay_silent(number: usize, server: SocketAddr, counters: &Counters) {
    'coming: loop {
        if let Ok(mut stream) = connect_from(network(SILENT_NETWORK, number / OF_A_PREFIX), server).await {
            counters.silent.fetch_add(1, Ordering::Relaxed);
            let mut byte = [0];
            let _ = stream.read(&mut byte).await;
            counters.evicted.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(BACK_AFTER).await;
        continue 'coming;
    }
}

async fn connect_from(local: SocketAddr, server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(local)?;
    socket.connect(server).await
}

async fn knock(from: SocketAddr, server: SocketAddr, tls: Arc<ClientConfig>, counters: &Counters) {
    let clock = SystemClock::new();
    'knocking: loop {
        match call(from, server, tls.clone(), &clock).await {
            Ok(_) => counters.admitted.fetch_add(1, Ordering::Relaxed),
            Err(_) => counters.refused.fetch_add(1, Ordering::Relaxed),
        };
        continue 'knocking;
    }
}

/// The first flight of a client, which any number of connections may begin with.
fn client_hello(tls: Arc<ClientConfig>) -> anyhow::Result<Vec<u8>> {
    let mut client = ClientConnection::new(tls, ServerName::try_from("localhost")?)?;
    let mut hello = vec![];
    client.write_tls(&mut hello)?;
    Ok(hello)
}

/// Begins handshakes, waits until the agent has agreed on a key and signed, and goes.
async fn begin_only(from: SocketAddr, server: SocketAddr, hello: &[u8], counters: &Counters) {
    'beginning: loop {
        let begun = async {
            let mut stream = connect_from(from, server).await?;
            stream.write_all(hello).await?;
            stream.read_u8().await
        };
        if begun.await.is_ok() {
            counters.abandoned.fetch_add(1, Ordering::Relaxed);
        }
        continue 'beginning;
    }
}

/// When the steps of one connection were done, since it was begun.
struct Steps {
    tcp: Duration,
    tls: Duration,
    answer: Duration,
}

/// One connection, to the first byte of the answer: in TLS 1.3 a client learns no sooner that it
/// was let in.
async fn call(
    from: SocketAddr,
    server: SocketAddr,
    tls: Arc<ClientConfig>,
    clock: &dyn Clock,
) -> anyhow::Result<Steps> {
    let began = clock.now();
    let past = || clock.now().saturating_sub(began);
    let stream = connect_from(from, server).await?;
    stream.set_nodelay(true)?;
    let tcp = past();
    let mut stream = TlsConnector::from(tls).connect(ServerName::try_from("localhost")?, stream).await?;
    let tls = past();
    stream.write_all(HTTP2_OPENING).await?;
    stream.read_u8().await?;
    Ok(Steps { tcp, tls, answer: past() })
}

/// Runs the honest caller: the first of the owner's members.
pub(super) async fn caller(options: &EndOptions, mut commands: Commands) -> anyhow::Result<()> {
    let server = options.peer_address()?;
    let leaf = TestLeaf::read(&options.folder, &member(0));
    let tls = stranger_client(Some(&leaf), &[b"h2"]);
    let clock = SystemClock::new();
    tell(&Called::default())?;
    while let Some(command) = commands.next().await {
        let [count] = match command.first().map(String::as_str) {
            Some("call") => numbers(&command)?,
            _ => bail!("a caller was told {command:?}"),
        };
        let (mut steps, mut failed) = (Vec::new(), 0);
        for _ in 0..count {
            tokio::time::sleep(BETWEEN_CALLS).await;
            let began = clock.now();
            let calling = call(network(0, 0), server, tls.clone(), &clock);
            match tokio::time::timeout(CALL_TIMEOUT, calling).await {
                Ok(Ok(done)) => steps.push(done),
                Ok(Err(_)) | Err(_) => {
                    failed += 1;
                    // One that failed took as long as it took: it is no good call.
                    let took = clock.now().saturating_sub(began);
                    steps.push(Steps { tcp: took, tls: took, answer: took });
                }
            }
        }
        tell(&Called::of(&steps, failed)?)?;
    }
    Ok(())
}

impl Called {
    fn of(steps: &[Steps], failed: u64) -> anyhow::Result<Called> {
        let at = |part: f64, step: fn(&Steps) -> Duration| -> anyhow::Result<f64> {
            let mut took: Vec<f64> = steps.iter().map(|s| step(s).as_secs_f64() * 1000.0).collect();
            took.sort_by(f64::total_cmp);
            took.get((took.len() as f64 * part) as usize).or(took.last()).copied().context("no calls")
        };
        Ok(Called {
            p50_ms: at(0.50, |s| s.answer)?,
            p99_ms: at(0.99, |s| s.answer)?,
            tcp_p99_ms: at(0.99, |s| s.tcp)?,
            tls_p99_ms: at(0.99, |s| s.tls)?,
            failed,
        })
    }
}
