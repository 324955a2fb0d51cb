//! Sockets: binding a listener, what a person can do where that fails, accepting.
//!
//! No failure here is fatal to anything but its own name (decision 18). Nothing is read or
//! written.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hamlet_runtime::Shutdown;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::limits::ACCEPT_PAUSE;

/// Connections that wait in the kernel for one listener of egress.
pub(crate) const BACKLOG: u32 = 1024;

/// A failed bind in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BindProblem {
    pub(crate) reason: String,
    pub(crate) remedy: String,
}

/// Binds and listens, with room for `backlog` connections that wait in the kernel.
pub(crate) fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// The next connection, or `None` once `stop` begins. Survives a lack of file descriptors.
pub(crate) async fn accept(listener: &TcpListener, stop: &Shutdown) -> Option<(TcpStream, SocketAddr)> {
    'accepting: loop {
        match stop.or_begun(listener.accept()).await? {
            Ok((stream, from)) => {
                tune(&stream);
                return Some((stream, from));
            }
            // The client went away between the kernel and us.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue 'accepting,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again shortly");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// No delay for small writes, and keepalive probes that find a half-open connection within a
/// minute. A socket that refuses an option still works.
pub(crate) fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let probe = Duration::from_secs(10);
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(probe).with_retries(3);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// Explains `error` of a bind to `address`.
pub(crate) fn explain(address: SocketAddr, error: &io::Error) -> BindProblem {
    let port = address.port();
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program listens on port {port}, perhaps on all addresses (see `ss -ltnp 'sport = :{port}'`): \
             stop it or bind it to one address, choose another port in the Import, or use the shared HTTP listener"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a right: `sysctl net.ipv4.ip_unprivileged_port_start={port}`, or \
             CAP_NET_BIND_SERVICE for this program (`AmbientCapabilities=` in its unit), or use the shared \
             HTTP listener"
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "the address {} is not local: choose a pool within 127.0.0.0/8, or add a route such as \
             `ip route add local POOL dev lo`",
            address.ip()
        ),
        _ if out_of_files(error) => {
            "the limit on open files is reached: raise it (`ulimit -n`, `LimitNOFILE=`) or lower the number \
             of egress listeners; HTTP services are reachable through the shared HTTP listener"
                .to_owned()
        }
        _ => "use the shared HTTP listener, or another address pool".to_owned(),
    };
    BindProblem { reason: format!("cannot listen on {address}: {error}"), remedy }
}

/// Whether the process or the host has no file descriptor left.
pub(crate) fn out_of_files(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

/// How many listeners the limit on open files leaves room for: half of it, the rest is for
/// connections.
pub(crate) fn listeners_possible() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE)
        .map_or(usize::MAX, |(soft, _)| usize::try_from(soft / 2).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_remedy() {
        let at: SocketAddr = "127.64.0.9:80".parse().unwrap();
        for (errno, word) in [
            (nix::errno::Errno::EADDRINUSE, "another program"),
            (nix::errno::Errno::EACCES, "ip_unprivileged_port_start=80"),
            (nix::errno::Errno::EADDRNOTAVAIL, "127.64.0.9 is not local"),
            (nix::errno::Errno::EMFILE, "ulimit -n"),
            (nix::errno::Errno::EIO, "shared HTTP listener"),
        ] {
            let problem = explain(at, &io::Error::from(errno));
            assert!(problem.remedy.contains(word), "{errno}: {}", problem.remedy);
            assert!(problem.reason.contains("127.64.0.9:80"));
        }
    }
}
