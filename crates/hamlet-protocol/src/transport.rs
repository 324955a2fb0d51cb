//! Sockets and HTTP/2 as both ends use them: options, and limits.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hamlet_runtime::Spawner;
use hyper::rt::Executor;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Data that is not acknowledged, or keepalive probes without an answer, for this long mean a
/// half-open peer. Shorter than the 15 s within which one must be found (protocol text, section
/// 7), because the clock starts with the first byte or probe after the break.
pub const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP connect and TLS handshake each must be done within this.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Most streams of one connection; the protocol needs one.
pub const STREAMS_MAX: u32 = 4;
/// Most bytes of request headers.
pub const HEADERS_BYTES: u32 = 8 * 1024;
/// Most bytes that HTTP/2 buffers for writing.
pub const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Flow-control windows, bytes.
pub const WINDOW_BYTES: u32 = 1 << 20;
/// Largest message that the library takes; over it the stream ends.
pub const MESSAGE_HARD_BYTES: usize = 4 << 20;
/// As a server we may ping as we like.
pub const SERVER_PING: Duration = Duration::from_secs(10);
/// As a client no more often than this: the Go server ends connections that ping more than every 40 s.
pub const CLIENT_PING: Duration = Duration::from_secs(45);
/// Longest time between our pings, after a server has complained of them.
pub const CLIENT_PING_MAX: Duration = Duration::from_secs(600);
/// What a client's HTTP/2 begins with: the preface and empty settings (RFC 9113, section 3.4). For
/// those who only want to be answered.
pub const HTTP2_OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A ping must be answered within this: with [`SERVER_PING`] that makes 15 s.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses of one name that are dialled; further ones are not.
pub const NAME_ADDRESSES_MAX: usize = 8;

/// The addresses that `HOST:PORT` stands for, or why there are none.
pub(crate) async fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    let looking = tokio::time::timeout(HANDSHAKE_DEADLINE, tokio::net::lookup_host(address));
    let found = match looking.await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("the name was not resolved within {HANDSHAKE_DEADLINE:?}")),
    };
    let mut addresses: Vec<SocketAddr> = vec![];
    for at in found.take(NAME_ADDRESSES_MAX) {
        if !addresses.contains(&at) {
            addresses.push(at);
        }
    }
    if addresses.is_empty() { Err("the name has no address".to_owned()) } else { Ok(addresses) }
}

/// Sets the options that find a dead peer: keepalive after 5 s, every 5 s, twice; and a user
/// timeout of [`USER_TIMEOUT`] for unacknowledged data. Invisible to the other side.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(5))
        .with_interval(Duration::from_secs(5))
        .with_retries(2);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

/// Runs HTTP/2's own tasks under the supervisor.
#[derive(Clone, Debug)]
pub struct SpawnExecutor(pub Spawner);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for SpawnExecutor {
    fn execute(&self, task: F) {
        self.0.spawn("http2", task);
    }
}

/// Whether the other side closed the connection because we said too much on it, as a gRPC server
/// does that is pinged more often than it likes.
pub fn told_to_calm(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let reason = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
        if reason == Some(h2::Reason::ENHANCE_YOUR_CALM) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_half_open_peer_is_found_within_fifteen_seconds() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tune(&stream).unwrap();
        let socket = SockRef::from(&stream);
        // Idle: the first probe, and those that follow without an answer.
        let idle = socket.tcp_keepalive_time().unwrap()
            + socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert_eq!(idle, Duration::from_secs(15));
        // With data or probes under way.
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(10)));
        assert!(SERVER_PING + PING_TIMEOUT <= Duration::from_secs(15));
        assert!(socket.tcp_nodelay().unwrap());
    }

    #[tokio::test]
    async fn an_address_is_its_only_one_and_a_name_without_a_port_has_none() {
        assert_eq!(resolve("192.0.2.1:7443").await, Ok(vec![([192, 0, 2, 1], 7443).into()]));
        assert_eq!(resolve("[2001:db8::1]:7443").await.unwrap().len(), 1);
        assert!(resolve("192.0.2.1").await.is_err());
    }

    /// A server's GOAWAY with this code, as the client's connection tells of it.
    async fn closed_with(code: u8) -> Option<hyper::Error> {
        use tokio::io::AsyncWriteExt;
        let (ours, mut theirs) = tokio::io::duplex(4_096);
        let executor = hyper_util::rt::TokioExecutor::new();
        let io = hyper_util::rt::TokioIo::new(ours);
        let handshake = hyper::client::conn::http2::handshake::<_, _, tonic::body::Body>(executor, io);
        let (sender, connection) = handshake.await.unwrap();
        // An empty SETTINGS, then GOAWAY for stream 0.
        theirs.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        theirs.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, code]).await.unwrap();
        let ended = connection.await.err();
        drop((sender, theirs));
        ended
    }

    #[tokio::test]
    async fn a_server_that_has_enough_of_our_pings_is_told_from_one_that_only_closes() {
        assert!(closed_with(0xb).await.is_some_and(|e| told_to_calm(&e)));
        assert!(!closed_with(0x2).await.is_some_and(|e| told_to_calm(&e)), "an internal error");
        assert!(!closed_with(0x0).await.is_some_and(|e| told_to_calm(&e)), "no error");
    }
}
