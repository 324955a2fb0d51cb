//! Strangers at an agent's port, and one honest caller among them, each a process of its own.
//!
//! The flood: sockets that connect and never say anything, each back a second after it was thrown
//! out, from as many networks as loopback has; and handshakes with a certificate that nobody knows,
//! one after the other. Command: `take` tells what was done so far. The caller: command
//! `call N` connects N times, one after the other, to the first byte of the answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use hamlet_runtime::{Clock, Shutdown, Supervisor, SystemClock};
use hamlet_testkit::pki::{TestCa, TestLeaf};
use hamlet_testkit::tls::stranger_client;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{Commands, EndOptions, numbers, tell};
use crate::bench::agent::member;

/// How long a silent socket that was thrown out stays away.
const BACK_AFTER: Duration = Duration::from_secs(1);
/// Handshakes of strangers that run at a time.
pub(in crate::bench) const STRANGERS: usize = 16;
/// Silent sockets of each /24.
const OF_A_PREFIX: usize = 4;
/// Longest that one honest call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// What HTTP/2 begins with: the preface and empty settings (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

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
}

/// What the honest caller saw.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::bench) struct Called {
    /// Half of the calls took no longer, in milliseconds.
    pub(in crate::bench) p50_ms: f64,
    /// 99 of 100 took no longer.
    pub(in crate::bench) p99_ms: f64,
    /// Calls without an answer.
    pub(in crate::bench) failed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    silent: AtomicU64,
    evicted: AtomicU64,
    refused: AtomicU64,
    admitted: AtomicU64,
}

/// Runs the flood, with `--members` silent sockets.
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
    for _ in 0..STRANGERS {
        let (tls, counters) = (stranger_client(Some(&stranger), &[b"h2"]), counters.clone());
        spawner.spawn("stranger", async move { knock(server, tls, &counters).await });
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
        }
    }
}

/// Each group of four sockets has a /24 of its own.
fn network(number: usize) -> SocketAddr {
    let prefix = number / OF_A_PREFIX;
    let octet = |n: usize| u8::try_from(n % 250 + 1).unwrap_or(1);
    (Ipv4Addr::new(127, octet(prefix / 250 + 1), octet(prefix), 1), 0).into()
}

async fn stay_silent(number: usize, server: SocketAddr, counters: &Counters) {
    'coming: loop {
        if let Ok(mut stream) = connect_from(network(number), server).await {
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

async fn knock(server: SocketAddr, tls: Arc<ClientConfig>, counters: &Counters) {
    'knocking: loop {
        match call(server, tls.clone()).await {
            Ok(()) => counters.admitted.fetch_add(1, Ordering::Relaxed),
            Err(_) => counters.refused.fetch_add(1, Ordering::Relaxed),
        };
        continue 'knocking;
    }
}

/// One connection, to the first byte of the answer: in TLS 1.3 a client learns no sooner that it
/// was let in.
async fn call(server: SocketAddr, tls: Arc<ClientConfig>) -> anyhow::Result<()> {
    let tcp = TcpStream::connect(server).await?;
    tcp.set_nodelay(true)?;
    let mut stream = TlsConnector::from(tls).connect(ServerName::try_from("localhost")?, tcp).await?;
    stream.write_all(HTTP2_PREFACE).await?;
    stream.read_u8().await?;
    Ok(())
}

/// Runs the honest caller: the first of the owner's members.
pub(super) async fn caller(options: &EndOptions, mut commands: Commands) -> anyhow::Result<()> {
    let server = options.peer_address()?;
    let leaf = TestLeaf::read(&options.folder, &member(0));
    let tls = stranger_client(Some(&leaf), &[b"h2"]);
    let clock = SystemClock::new();
    tell(&Called { p50_ms: 0.0, p99_ms: 0.0, failed: 0 })?;
    while let Some(command) = commands.next().await {
        let [count] = match command.first().map(String::as_str) {
            Some("call") => numbers(&command)?,
            _ => bail!("a caller was told {command:?}"),
        };
        let (mut took, mut failed) = (Vec::new(), 0);
        for _ in 0..count {
            let began = clock.now();
            match tokio::time::timeout(CALL_TIMEOUT, call(server, tls.clone())).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => failed += 1,
            }
            // One that failed took as long as it took: it is no good call.
            took.push(clock.now().saturating_sub(began).as_secs_f64() * 1000.0);
        }
        took.sort_by(f64::total_cmp);
        let at = |part: f64| took.get((took.len() as f64 * part) as usize).or(took.last()).copied();
        let p50_ms = at(0.50).context("no calls")?;
        let p99_ms = at(0.99).context("no calls")?;
        tell(&Called { p50_ms, p99_ms, failed })?;
    }
    Ok(())
}
