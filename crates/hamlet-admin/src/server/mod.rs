//! The two listeners: the unix socket with the whole API, and TCP with health and metrics alone.
//!
//! Not an authenticator: who may open the socket's file may do everything. Nothing that changes
//! state or names a service is ever served on TCP. Every task belongs to the spawner.

mod routes;
mod socket;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::{Extension, Router};
use hamlet_runtime::{Shutdown, Spawner};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::limits;
use crate::source::{Caller, StateSource};

pub use routes::{admin_router, health_router};

/// Why a listener could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another agent answers on the socket.
    #[error(
        "another agent is listening on {}: stop it, or give this one a folder or socket of its own",
        path.display()
    )]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something that is no socket lies at the path; it is never removed.
    #[error("{} exists and is not a socket: move it away, or choose another spec.socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The kernel allows no path as long as this.
    #[error(
        "the socket path {} has {} bytes; at most {} are possible: choose a shorter spec.socket",
        path.display(), path.as_os_str().len(), limits::SOCKET_PATH_BYTES
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The file system or the kernel said no.
    #[error("can't {action} {}: {source}; check the folder's owner and mode", path.display())]
    Socket {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The TCP address can't be bound.
    #[error(
        "can't listen on {address} for health and metrics: {source}; set spec.listen.admin to a free address, or to off"
    )]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The running unix socket. Its file is removed when the server has stopped.
#[derive(Debug, Clone)]
pub struct AdminSocket {
    path: PathBuf,
}

impl AdminSocket {
    /// Creates the socket (mode 0600, a missing folder with mode 0700) and serves the whole API on
    /// it until `stop` begins. A socket file that nobody answers on is replaced; one that somebody
    /// answers on is an error. `stop` may be another signal than the spawner's, so that the admin
    /// API can be the last to go.
    pub async fn start(
        path: &Path,
        source: Arc<dyn StateSource>,
        spawner: &Spawner,
        stop: Shutdown,
    ) -> Result<AdminSocket, ServeError> {
        let (listener, guard) = socket::bind(path).await?;
        let router = admin_router(source, stop.clone());
        let served = Served { router, spawner: spawner.clone(), stop, name: "admin/connection" };
        spawner.spawn("admin/socket", async move {
            served.run(Unix(listener), limits::SOCKET_CONNECTIONS).await;
            drop(guard);
        });
        Ok(AdminSocket { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Serves `/livez`, `/readyz` and `/metrics` on a TCP address until `stop` begins, and returns the
/// address that was bound. Nothing else is ever reachable there.
pub async fn start_health(
    address: SocketAddr,
    source: Arc<dyn StateSource>,
    spawner: &Spawner,
    stop: Shutdown,
) -> Result<SocketAddr, ServeError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    };
    let (listener, local) = bound.await.map_err(|source| ServeError::Bind { address, source })?;
    let router = health_router(source);
    let served = Served { router, spawner: spawner.clone(), stop, name: "health/connection" };
    spawner.spawn("health/listener", async move {
        served.run(Tcp(listener), limits::HEALTH_CONNECTIONS).await;
    });
    Ok(local)
}

/// The two kinds of listener, for [`Served::run`].
trait Accept: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    fn accept(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
    /// Who is on the other end, as the kernel says.
    fn caller(stream: &Self::Stream) -> Caller;
}
struct Unix(UnixListener);
impl Accept for Unix {
    type Stream = tokio::net::UnixStream;
    async fn accept(&self) -> std::io::Result<Self::Stream> {
        Ok(self.0.accept().await?.0)
    }
    fn caller(stream: &Self::Stream) -> Caller {
        Caller { uid: stream.peer_cred().ok().map(|cred| cred.uid()) }
    }
}
struct Tcp(TcpListener);
impl Accept for Tcp {
    type Stream = tokio::net::TcpStream;
    async fn accept(&self) -> std::io::Result<Self::Stream> {
        Ok(self.0.accept().await?.0)
    }
    fn caller(_: &Self::Stream) -> Caller {
        Caller::default()
    }
}

struct Served {
    router: Router,
    spawner: Spawner,
    stop: Shutdown,
    name: &'static str,
}

impl Served {
    /// Accepts until stopped. Returns when no connection is left or the drain time is over.
    async fn run<A: Accept>(self, listener: A, connections: usize) {
        let slots = Arc::new(Semaphore::new(connections));
        while let Some(Ok(slot)) = self.stop.or_begun(slots.clone().acquire_owned()).await {
            let stream = match self.stop.or_begun(listener.accept()).await {
                None => break,
                Some(Ok(stream)) => stream,
                Some(Err(error)) => {
                    // Out of files, most likely: wait for some to be closed instead of spinning.
                    tracing::warn!(%error, listener = self.name, "can't accept a connection");
                    let wait = tokio::time::sleep(std::time::Duration::from_millis(100));
                    self.stop.or_begun(wait).await;
                    continue;
                }
            };
            let router = self.router.clone().layer(Extension(A::caller(&stream)));
            let connection = serve_connection(stream, router, self.stop.clone());
            self.spawner.spawn(self.name, async move {
                connection.await;
                drop(slot);
            });
        }
        drop(listener);
        let all = u32::try_from(connections).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(limits::DRAIN, slots.acquire_many(all)).await;
    }
}

/// One connection: requests one after the other until the client leaves or we stop; then what was
/// begun may finish within the drain time.
async fn serve_connection<S>(stream: S, router: Router, stop: Shutdown)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .max_buf_size(limits::HEAD_BYTES);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    if let Some(ended) = stop.or_begun(connection.as_mut()).await {
        if let Err(error) = ended {
            tracing::debug!(%error, "an admin connection ended early");
        }
        return;
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(limits::DRAIN, connection).await;
}
