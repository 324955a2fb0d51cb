//! What stands behind the two services: one echoes bytes, one answers each HTTP request with the
//! path that was asked for. Both are as simple as can be: what fails is the mesh's.

use std::net::{Ipv4Addr, SocketAddr};

use hamlet_runtime::Spawner;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::http::read_head;

/// Where the backends are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backends {
    /// Echoes.
    pub(super) raw: SocketAddr,
    /// Speaks HTTP/1.1.
    pub(super) web: SocketAddr,
}

impl Backends {
    /// Starts both.
    pub(super) async fn start(spawner: &Spawner) -> anyhow::Result<Backends> {
        let (raw, web) = (listen().await?, listen().await?);
        let at = Backends { raw: raw.local_addr()?, web: web.local_addr()? };
        let tasks = spawner.clone();
        spawner.spawn("backend/raw", async move {
            while let Ok((stream, _)) = raw.accept().await {
                tasks.spawn("backend/raw/connection", echo(stream));
            }
        });
        let tasks = spawner.clone();
        spawner.spawn("backend/web", async move {
            while let Ok((stream, _)) = web.accept().await {
                tasks.spawn("backend/web/connection", serve(stream));
            }
        });
        Ok(at)
    }
}

async fn listen() -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await
}

/// Until either side closes. A lost connection is the caller's to tell of.
async fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn serve(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    while let Ok(head) = read_head(&mut stream).await {
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
        if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
