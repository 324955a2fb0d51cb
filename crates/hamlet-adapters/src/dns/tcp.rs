//! DNS over TCP (RFC 7766): length-prefixed messages, several on one connection, answered in order.
//! *Hardened to untrusted peer.*
//!
//! Invariant: a client holds at most one buffer of [`config::REQUEST_MAX`] and one reply, every wait
//! on it has a deadline, and a new client always gets in (the oldest connection gives way).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hamlet_runtime::{Shutdown, Spawner};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::answer::{Outcome, Transport, answer};
use super::config;
use super::sink::error_backoff;
use super::stats::{DnsCounters, add};
use super::translate::Zone;

/// Open connections by order of arrival, with the signal that closes each.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<BTreeMap<u64, Shutdown>>,
}

impl Connections {
    /// Enters a connection; beyond the limit the oldest is told to close. Says whether one was.
    fn enter(&self, id: u64, close: Shutdown) -> bool {
        let mut open = self.open.lock();
        open.insert(id, close);
        let oldest = if open.len() > config::TCP_CONNECTIONS_MAX { open.pop_first() } else { None };
        oldest.map(|(_, close)| close.begin()).is_some()
    }

    fn leave(&self, id: u64) {
        self.open.lock().remove(&id);
    }
}

/// Accepts connections until the shutdown begins.
pub(super) async fn serve(
    listener: TcpListener,
    zone: Arc<ArcSwap<Zone>>,
    counters: Arc<DnsCounters>,
    spawner: Spawner,
    shutdown: Shutdown,
) {
    let connections = Arc::new(Connections::default());
    let mut backoff = error_backoff();
    let mut next_id = 0;
    while let Some(accepted) = shutdown.or_begun(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "DNS can't accept a connection");
                shutdown.or_begun(tokio::time::sleep(backoff.next_delay())).await;
                continue;
            }
        };
        backoff.reset();
        add(&counters.tcp_accepted);
        let (id, close) = (next_id, shutdown.child());
        next_id += 1;
        if connections.enter(id, close.clone()) {
            add(&counters.tcp_evicted);
        }
        let (zone, counters, connections) = (zone.clone(), counters.clone(), connections.clone());
        spawner.spawn("dns/tcp", async move {
            if converse(stream, &zone, &counters, &close).await.is_err() {
                add(&counters.tcp_broken);
            }
            connections.leave(id);
        });
    }
}

/// Answers question after question until the client has no more, or `close` begins. A question that
/// was read is answered even then.
async fn converse(
    mut stream: TcpStream,
    zone: &ArcSwap<Zone>,
    counters: &DnsCounters,
    close: &Shutdown,
) -> io::Result<()> {
    // Best effort: without it replies come later, not wrong.
    let _ = stream.set_nodelay(true);
    let mut request = Vec::new();
    let mut reply = Vec::new();
    let mut framed = Vec::new();
    while let Some(read) = close.or_begun(read_message(&mut stream, &mut request)).await {
        if !read? {
            return Ok(());
        }
        let outcome = answer(&zone.load(), &request, Transport::Tcp, &mut reply);
        counters.count(Transport::Tcp, outcome);
        if outcome == Outcome::Dropped {
            return Ok(());
        }
        framed.clear();
        framed.extend_from_slice(&(reply.len() as u16).to_be_bytes());
        framed.extend_from_slice(&reply);
        timeout(config::TCP_WRITE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// Reads the next message into `request`; false if the client ended or stayed silent between two.
async fn read_message(stream: &mut (impl AsyncRead + Unpin), request: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; 2];
    let first = match timeout(config::TCP_IDLE, stream.read(&mut length)).await {
        Err(_idle) => return Ok(false),
        Ok(read) => read?,
    };
    if first == 0 {
        return Ok(false);
    }
    let rest = async {
        stream.read_exact(&mut length[first..]).await?;
        let length = usize::from(u16::from_be_bytes(length));
        if length > config::REQUEST_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than any question"));
        }
        request.resize(length, 0);
        stream.read_exact(request).await
    };
    timeout(config::TCP_READ, rest).await??;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a client that sends `bytes` and then, if `leaves`, ends, or else stays silent.
    async fn outcome(bytes: &[u8], leaves: bool) -> (Result<bool, io::ErrorKind>, Vec<u8>) {
        let (mut client, mut server) = tokio::io::duplex(1 << 16);
        client.write_all(bytes).await.unwrap();
        let client = (!leaves).then_some(client);
        let mut request = Vec::new();
        let read = read_message(&mut server, &mut request).await.map_err(|e| e.kind());
        drop(client);
        (read, request)
    }

    #[tokio::test(start_paused = true)]
    async fn slow_and_oversized_messages_end_a_connection_and_whole_ones_are_read() {
        let longest = [&[0x10, 0x00][..], &[7; 4096]].concat();
        let too_long = [&[0x10, 0x01][..], &[7; 4097]].concat();
        use io::ErrorKind::{InvalidData, TimedOut, UnexpectedEof};
        for (bytes, leaves, expected) in [
            (&b"\0\x03abc"[..], false, Ok(true)),
            (b"\0\x03ab", false, Err(TimedOut)),
            (b"\0\x03ab", true, Err(UnexpectedEof)),
            (b"\0", false, Err(TimedOut)),
            (b"", false, Ok(false)),
            (b"", true, Ok(false)),
            (b"\0\0", false, Ok(true)),
            (&longest, false, Ok(true)),
            (&too_long, false, Err(InvalidData)),
        ] {
            let (read, request) = outcome(bytes, leaves).await;
            assert_eq!(read, expected, "{} bytes, leaves: {leaves}", bytes.len());
            if expected == Ok(true) {
                assert_eq!(request, bytes[2..]);
            }
        }
    }

    #[test]
    fn beyond_the_limit_the_oldest_connection_gives_way() {
        let connections = Connections::default();
        let signals: Vec<Shutdown> = (0..=config::TCP_CONNECTIONS_MAX).map(|_| Shutdown::new()).collect();
        let evicted: Vec<bool> =
            signals.iter().zip(0..).map(|(signal, id)| connections.enter(id, signal.clone())).collect();
        assert_eq!(evicted.iter().filter(|e| **e).count(), 1);
        assert!(evicted[config::TCP_CONNECTIONS_MAX], "the last one to come made room");
        assert!(signals[0].has_begun() && !signals[1].has_begun());
        connections.leave(1);
        assert!(!connections.enter(1000, Shutdown::new()), "one left: there is room");
    }
}
