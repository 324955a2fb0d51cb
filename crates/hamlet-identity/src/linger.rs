//! How a socket is closed on whose client the handshake has failed: so that the client can read why.
//! *Hardened to untrusted peer* (threat T15).
//!
//! In TLS 1.3 a client is done with its handshake before its certificate is looked at, and speaks on. A
//! socket that is closed with something unread in it is reset, and the reset overtakes the alert: the
//! client would see a broken connection instead of a refusal. So our side is ended, and what still comes
//! is read and thrown away.
//!
//! Invariant: nobody is kept longer than [`LINGER_TIME`] or for more than [`LINGER_BYTES`], and never
//! more than [`LINGERING_SOCKETS`] of one listener. In a flood the oldest gives way: what the next one
//! needs, a handshake's slot or a silent socket's place, is held by none of them.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::silent::SilentSockets;

/// How long a client whose handshake failed may take to read why, and to close.
pub const LINGER_TIME: Duration = Duration::from_secs(1);
/// How much of what such a client still sends is read and thrown away, in bytes. HTTP/2 lets it send
/// 64 KiB before it is answered.
pub const LINGER_BYTES: usize = 128 * 1024;
/// Most sockets of one listener that are open only for that; the oldest makes room for the next.
pub const LINGERING_SOCKETS: usize = 256;
/// Of those, how many may be of one /24 (IPv4) or /56 (IPv6).
pub const LINGERING_PER_PREFIX: usize = 64;

/// One read of what nobody wants.
const READ: usize = 4096;

/// The sockets of one listener that are about to be closed.
#[derive(Debug)]
pub struct Lingering(SilentSockets);

impl Default for Lingering {
    fn default() -> Lingering {
        Lingering(SilentSockets::new(LINGERING_SOCKETS, Some(LINGERING_PER_PREFIX)))
    }
}

impl Lingering {
    /// Closes a socket to which everything is written that is to be: ends our side, then waits for the
    /// client's end as long as this module's bounds allow.
    pub async fn close<S>(&self, stream: S, from: IpAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let place = self.0.enter(from);
        let _ = place.keep(tokio::time::timeout(LINGER_TIME, read_out(stream))).await;
    }
}

async fn read_out(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let (mut buffer, mut left) = ([0; READ], LINGER_BYTES);
    'reading: while left > 0 {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break 'reading,
            Ok(read) => left = left.saturating_sub(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;
    use tokio::time::Instant;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Closes our end of a pipe while the other end does this, and tells how long that took.
    async fn closed_while<F: Future>(other: impl FnOnce(DuplexStream) -> F) -> Duration {
        let (mut ours, theirs) = tokio::io::duplex(64 * 1024);
        ours.write_all(b"why").await.unwrap();
        let began = Instant::now();
        let lingering = Lingering::default();
        let closing = async {
            lingering.close(ours, HERE).await;
            began.elapsed()
        };
        tokio::join!(closing, other(theirs)).0
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_reads_why_it_was_refused_and_is_let_go_as_soon_as_it_closes() {
        let took = closed_while(|mut client| async move {
            client.write_all(&[7; 10_000]).await.unwrap();
            let mut said = vec![];
            client.read_to_end(&mut said).await.unwrap();
            assert_eq!(said, b"why", "what was written, then our end");
            client.write_all(&[7; 10_000]).await.expect("it may still speak");
        })
        .await;
        assert_eq!(took, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_closes_is_let_go_after_the_time_and_one_that_never_stops_after_the_bytes() {
        let silent = closed_while(|client| async move {
            tokio::time::sleep(LINGER_TIME * 10).await;
            drop(client);
        });
        assert_eq!(silent.await, LINGER_TIME);

        let trickling = closed_while(|mut client| async move {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(LINGER_TIME / 10).await;
            }
        });
        assert_eq!(trickling.await, LINGER_TIME, "a byte now and then buys no time");

        let flooding = closed_while(|mut client| async move {
            let mut sent = 0;
            while client.write_all(&[7; READ]).await.is_ok() {
                sent += READ;
            }
            assert!((LINGER_BYTES..LINGER_BYTES * 2).contains(&sent), "{sent}");
        });
        assert_eq!(flooding.await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_flood_the_oldest_of_a_prefix_gives_way_and_other_networks_keep_theirs() {
        let (lingering, began) = (&Lingering::default(), Instant::now());
        let mut clients = vec![];
        let mut one = |from: &str| {
            let (ours, theirs) = tokio::io::duplex(64);
            clients.push(theirs);
            let from: IpAddr = from.parse().unwrap();
            async move {
                lingering.close(ours, from).await;
                began.elapsed()
            }
        };
        let others = [one("198.51.100.1"), one("2600::1")];
        let crowd: Vec<_> = (0..=LINGERING_PER_PREFIX).map(|_| one("192.0.2.1")).collect();
        let took = futures::future::join(futures::future::join_all(others), futures::future::join_all(crowd));
        let (others, crowd) = took.await;
        assert_eq!(others, [LINGER_TIME; 2]);
        assert_eq!(crowd[0], Duration::ZERO, "the oldest");
        assert_eq!(crowd[1..], [LINGER_TIME; LINGERING_PER_PREFIX]);
    }
}
