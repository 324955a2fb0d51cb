//! A mesh in a test: its CA, its gateway, its backends. Everything on loopback with port 0; all
//! tasks belong to one supervisor.

#![allow(dead_code, unreachable_pub)] // each test file uses its part

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::{
    AddressRange, CallerForm, DnsLabel, Fqdn, ImportedInstance, ImportedService, LocalInstance, LocalService,
    PeerName, Protocol, ServiceId, ServiceName, SpiffeId,
};
use hamlet_gateway::{
    AddressName, AddressPool, EgressTable, Gateway, GatewayConfig, IngressTable, ListenerKind, Outcome,
};
use hamlet_identity::{PeerTrust, TrustTable};
use hamlet_runtime::{Clock, Shutdown, Spawner, Supervisor, SystemClock};
use hamlet_testkit::pki::{TestCa, TestLeaf, trust_table};
use hamlet_testkit::{GENEROUS, eventually};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const ANY: &str = "127.0.0.1:0";

pub fn fqdn(text: &str) -> Fqdn {
    Fqdn::parse(text).unwrap()
}

pub fn label(text: &str) -> DnsLabel {
    DnsLabel::parse(text).unwrap()
}

/// One mesh with its gateway.
pub struct Mesh {
    pub ca: TestCa,
    pub trust: Arc<TrustTable>,
    pub gateway: Gateway,
    pub supervisor: Supervisor,
}

pub fn config() -> GatewayConfig {
    GatewayConfig {
        ingress: Some(ANY.parse().unwrap()),
        egress_http: Some(ANY.parse().unwrap()),
        ..GatewayConfig::default()
    }
}

impl Mesh {
    pub async fn start(ca: TestCa, peers: Vec<PeerTrust>, config: GatewayConfig) -> Mesh {
        let leaf = ca.gateway();
        Mesh::start_by(ca, &leaf, peers, config, SystemClock::shared()).await
    }

    /// The same with this leaf and another clock in the gateway; trust and identity go by the
    /// system's.
    pub async fn start_by(
        ca: TestCa,
        leaf: &TestLeaf,
        peers: Vec<PeerTrust>,
        config: GatewayConfig,
        clock: Arc<dyn Clock>,
    ) -> Mesh {
        let trust = trust_table(peers);
        let supervisor = Supervisor::new(Shutdown::new());
        let identity = leaf.identity();
        let spawner = supervisor.spawner();
        let gateway = Gateway::start(config, identity, None, trust.clone(), spawner, clock).await.unwrap();
        Mesh { ca, trust, gateway, supervisor }
    }

    /// An owner that believes `peers` under their names and serves `services` to those named.
    pub fn publish(&self, services: &[(LocalService, &[&str])]) {
        let allowed = |names: &[&str]| -> BTreeSet<PeerName> { names.iter().map(|n| label(n)).collect() };
        let all = services.iter().map(|(service, names)| (Arc::new(service.clone()), allowed(names)));
        self.gateway.set_ingress(IngressTable::build(all));
    }

    pub fn import(&self, services: &[ImportedService], pool: &mut AddressPool) {
        pool.assign(&AddressName::wanted(services), Duration::from_secs(1));
        let services: Vec<_> = services.iter().cloned().map(Arc::new).collect();
        self.gateway.set_egress(EgressTable::build(&services, pool));
    }

    pub fn ingress(&self) -> SocketAddr {
        self.gateway.ingress_addr().unwrap()
    }

    pub fn egress_http(&self) -> SocketAddr {
        self.gateway.egress_http_addr().unwrap()
    }

    pub fn spawner(&self) -> Spawner {
        self.supervisor.spawner()
    }

    /// Waits until `count` connections of `listener` ended with `outcome`.
    pub async fn ended(&self, listener: ListenerKind, outcome: Outcome, count: u64) {
        let what = format!("{count} {} connections {}", listener.as_str(), outcome.as_str());
        eventually(&what, GENEROUS, || self.gateway.stats().count(listener, outcome) >= count).await;
    }
}

/// A pool for the test with this number, so that tests in parallel have addresses of their own.
/// The process id keeps two runs apart.
pub fn pool(test: u8) -> AddressPool {
    let lot = (std::process::id() % 62 * 4) as u8;
    let range = format!("127.{}.{}.0/24", 65 + test % 60, lot);
    AddressPool::new(AddressRange::parse(&range).unwrap())
}

/// A service with one instance `main`.
pub fn service(name: &str, protocol: Protocol, caller: CallerForm, backends: &[SocketAddr]) -> LocalService {
    let name_here = fqdn(name);
    let instance = LocalInstance {
        id: label("main"),
        protocol,
        port: 8080.try_into().unwrap(),
        sni: name_here.child(&label("main")).unwrap(),
        backends: backends.to_vec(),
        caller,
    };
    LocalService {
        name: ServiceName::parse(name).unwrap(),
        fqdn: name_here,
        description: String::new(),
        tags: vec![],
        labels: BTreeMap::new(),
        instances: vec![instance],
    }
}

pub fn tcp_service(name: &str, backend: SocketAddr) -> LocalService {
    service(name, Protocol::Tcp, CallerForm::None, &[backend])
}

/// What a consumer imports of it, from the owner `peer`.
pub fn imported(
    name: &str,
    peer: &str,
    protocol: Protocol,
    port: u16,
    sans: &[SpiffeId],
    endpoints: &[SocketAddr],
) -> ImportedService {
    let name_here = fqdn(name);
    let own = name_here.child(&label("main")).unwrap();
    let instance = ImportedInstance {
        id: label("main"),
        fqdn: own.clone(),
        protocol,
        port: Some(port.try_into().unwrap()),
        sni: Some(own),
        hostname: None,
        endpoints: endpoints.to_vec(),
        not_programmed: None,
    };
    ImportedService {
        id: ServiceId { owner: label(peer), name: ServiceName::parse(name).unwrap() },
        fqdn: name_here,
        description: String::new(),
        tags: vec![],
        labels: BTreeMap::new(),
        sans: sans.to_vec(),
        instances: vec![instance],
    }
}

/// A TCP backend that counts its connections.
pub struct Backend {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

impl Backend {
    pub fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Runs `serve` on each connection.
    pub async fn start<F>(spawner: Spawner, serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Backend
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (counted, tasks) = (connections.clone(), spawner.clone());
        spawner.spawn("backend", async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tasks.spawn("backend/connection", serve(stream));
            }
        });
        Backend { address, connections }
    }

    /// Sends back what it gets as it gets it; after the client's end it says goodbye.
    pub async fn echo(spawner: Spawner) -> Backend {
        Backend::start(spawner, |mut stream| async move {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
            let _ = stream.write_all(b" bye").await;
        })
        .await
    }

    /// Reads to the client's end, then answers with `name` and what it read.
    pub async fn named(spawner: Spawner, name: &'static str) -> Backend {
        Backend::start(spawner, move |mut stream| async move {
            let mut all = Vec::new();
            if stream.read_to_end(&mut all).await.is_ok() {
                let _ = stream.write_all(name.as_bytes()).await;
                let _ = stream.write_all(&all).await;
            }
        })
        .await
    }

    /// An HTTP backend (both versions) whose answer's body is the request as it saw it: one line
    /// each for the request, its fields and its trailers, then the body.
    pub async fn http(spawner: Spawner) -> Backend {
        let tasks = Tasks(spawner.clone());
        Backend::start(spawner, move |stream| {
            let tasks = tasks.clone();
            async move {
                let builder = auto::Builder::new(tasks);
                let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service_fn(mirror));
                let _ = served.await;
            }
        })
        .await
    }
}

#[derive(Clone)]
pub struct Tasks(pub Spawner);
impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.spawn("test/http", task);
    }
}

async fn mirror(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let mut seen =
        format!("{} {} {:?} {authority}\n", request.method(), request.uri().path(), request.version());
    for (name, value) in request.headers() {
        seen += &format!("{name}: {}\n", value.to_str().unwrap_or("?"));
    }
    let body = request.into_body().collect().await;
    if let Ok(body) = body {
        for (name, value) in body.trailers().into_iter().flatten() {
            seen += &format!("trailer {name}: {}\n", value.to_str().unwrap_or("?"));
        }
        seen += &String::from_utf8_lossy(&body.to_bytes());
    }
    Ok(Response::new(Full::new(Bytes::from(seen))))
}

/// An address that refuses connections as long as the socket is kept: bound, but not listening.
pub fn dead() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(ANY.parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Connects with TLS to an ingress.
pub async fn tls(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    sni: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    TlsConnector::from(config).connect(ServerName::try_from(sni.to_owned()).unwrap(), tcp).await
}

/// Sends `request`, ends its own side, and reads to the other side's end.
pub async fn call(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: impl AsRef<[u8]>,
) -> io::Result<String> {
    let exchange = async {
        stream.write_all(request.as_ref()).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(GENEROUS, exchange).await.expect("an end within a generous deadline")
}

/// Writes `text` and reads it back.
pub async fn ping(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), text: &str) -> io::Result<()> {
    let exchange = async {
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await?;
        let mut echo = vec![0; text.len()];
        stream.read_exact(&mut echo).await?;
        assert_eq!(echo, text.as_bytes());
        Ok(())
    };
    tokio::time::timeout(GENEROUS, exchange).await.expect("an echo within a generous deadline")
}

/// Reads until the other side ends or fails; says whether it was a clean end.
pub async fn until_end(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut rest = Vec::new();
    let read = stream.read_to_end(&mut rest);
    tokio::time::timeout(GENEROUS, read).await.expect("an end within a generous deadline").is_ok()
}

/// One HTTP/1.1 request as text, `Connection: close` added, and the whole answer.
pub async fn http(stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> io::Result<String> {
    let mut stream = stream;
    let exchange = async {
        stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer).await {
            // hyper leaves out TLS's goodbye where a request wanted to upgrade; the answer is whole.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            out => drop(out?),
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(GENEROUS, exchange).await.expect("an answer within a generous deadline")
}
