//! The listener: binds UDP and TCP on one port and carries datagrams to and from [`answer`].
//!
//! It is not where answers are made, and TCP connections are in [`super::tcp`]. Invariant: no client
//! can make the UDP loop wait: a reply that the system doesn't take at once is dropped and counted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hamlet_runtime::{Backoff, Shutdown, Spawner};
use tokio::net::{TcpListener, UdpSocket};

use super::answer::{Outcome, Transport, answer};
use super::stats::{DnsCounters, add};
use super::translate::Zone;
use super::{config, tcp};

/// Why the listener has no port. Never fatal to the agent: it is a status with a remedy.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port is taken.
    #[error(
        "DNS can't listen on {transport} {addr}: another program holds the port (often a local \
         resolver); stop it or give the DNS listener another address or port, for example port 5300"
    )]
    InUse {
        /// The wanted address.
        addr: SocketAddr,
        /// `UDP` or `TCP`.
        transport: &'static str,
    },
    /// The right to bind is missing.
    #[error(
        "DNS can't listen on {transport} {addr}: not permitted; ports below 1024 need the capability \
         CAP_NET_BIND_SERVICE: grant it or use another port, for example 5300"
    )]
    NotPermitted {
        /// The wanted address.
        addr: SocketAddr,
        /// `UDP` or `TCP`.
        transport: &'static str,
    },
    /// The host doesn't have the address.
    #[error(
        "DNS can't listen on {transport} {addr}: this host has no such address; use one that \
         `ip address` lists, for example 127.0.0.1"
    )]
    NoSuchAddress {
        /// The wanted address.
        addr: SocketAddr,
        /// `UDP` or `TCP`.
        transport: &'static str,
    },
    /// Anything else the system says.
    #[error(
        "DNS can't listen on {transport} {addr}: {source}; try another address or port for the DNS listener"
    )]
    Other {
        /// The wanted address.
        addr: SocketAddr,
        /// `UDP` or `TCP`.
        transport: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl BindError {
    fn new(addr: SocketAddr, transport: &'static str, source: io::Error) -> BindError {
        match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { addr, transport },
            io::ErrorKind::PermissionDenied => BindError::NotPermitted { addr, transport },
            io::ErrorKind::AddrNotAvailable => BindError::NoSuchAddress { addr, transport },
            _ => BindError::Other { addr, transport, source },
        }
    }
}

/// A bound listener that does not answer yet.
#[derive(Debug)]
pub struct DnsServer {
    udp: UdpSocket,
    tcp: TcpListener,
    addr: SocketAddr,
    counters: Arc<DnsCounters>,
}

impl DnsServer {
    /// Binds UDP and TCP on `addr`. Port 0 is any port that is free on both.
    ///
    /// Bind an address that clients name, not the unspecified one, on a host with several: replies
    /// leave from the address the system chooses, and clients drop those from another one than they
    /// asked.
    pub async fn bind(addr: SocketAddr) -> Result<DnsServer, BindError> {
        let attempts = if addr.port() == 0 { config::PORT_ATTEMPTS } else { 1 };
        let mut last = None;
        for _ in 0..attempts {
            match bind_both(addr).await {
                Err(error @ BindError::InUse { .. }) => last = Some(error),
                other => return other,
            }
        }
        Err(last.unwrap_or(BindError::InUse { addr, transport: "UDP" }))
    }

    /// Where it listens, UDP and TCP alike.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its counters; they live on after [`DnsServer::run`].
    pub fn counters(&self) -> Arc<DnsCounters> {
        self.counters.clone()
    }

    /// Answers until the shutdown begins. Each question is answered from the zone that `zone` holds
    /// at that moment.
    pub async fn run(self, zone: Arc<ArcSwap<Zone>>, spawner: Spawner, shutdown: Shutdown) {
        tracing::debug!(address = %self.addr, "DNS listens");
        let udp = Arc::new(self.udp);
        for _ in 0..config::UDP_TASKS {
            let serve = serve_udp(udp.clone(), zone.clone(), self.counters.clone(), shutdown.clone());
            spawner.spawn("dns/udp", serve);
        }
        tcp::serve(self.tcp, zone, self.counters, spawner, shutdown).await;
    }
}

async fn bind_both(wanted: SocketAddr) -> Result<DnsServer, BindError> {
    let udp = UdpSocket::bind(wanted).await.map_err(|e| BindError::new(wanted, "UDP", e))?;
    let addr = udp.local_addr().map_err(|e| BindError::new(wanted, "UDP", e))?;
    let tcp = TcpListener::bind(addr).await.map_err(|e| BindError::new(addr, "TCP", e))?;
    Ok(DnsServer { udp, tcp, addr, counters: Arc::default() })
}

/// Delays after a system error, so that a lasting one doesn't become a busy loop.
pub(super) fn error_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(10), Duration::from_secs(1))
}

async fn serve_udp(
    socket: Arc<UdpSocket>,
    zone: Arc<ArcSwap<Zone>>,
    counters: Arc<DnsCounters>,
    shutdown: Shutdown,
) {
    // One byte more than we take, so that a longer datagram shows.
    let mut request = vec![0; config::REQUEST_MAX + 1];
    let mut reply = Vec::with_capacity(config::UDP_REPLY_MAX);
    let mut backoff = error_backoff();
    while let Some(received) = shutdown.or_begun(socket.recv_from(&mut request)).await {
        let (length, client) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "DNS can't receive");
                shutdown.or_begun(tokio::time::sleep(backoff.next_delay())).await;
                continue;
            }
        };
        backoff.reset();
        let outcome = answer(&zone.load(), &request[..length], Transport::Udp, &mut reply);
        counters.count(Transport::Udp, outcome);
        if outcome != Outcome::Dropped && socket.try_send_to(&reply, client).is_err() {
            add(&counters.udp_unsent);
        }
    }
}
