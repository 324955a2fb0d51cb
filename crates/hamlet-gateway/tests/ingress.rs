//! Ingress with real TLS: who is let in, what reaches the backend, when a connection ends.

mod common;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use common::*;
use hamlet_core::{CallerForm, Protocol};
use hamlet_gateway::{GatewayConfig, Limits, ListenerKind, Outcome};
use hamlet_identity::{Lenience, RevocationLists, RevocationPolicy};
use hamlet_runtime::ManualClock;
use hamlet_testkit::pki::{DAY, LeafSpec, TestCa};
use hamlet_testkit::tls::{old_client, stranger_client};
use hamlet_testkit::{GENEROUS, eventually};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const NAME: &str = "ledger.acme.example";
const OWN_NAME: &str = "main.ledger.acme.example";
const IN: ListenerKind = ListenerKind::Ingress;

/// The owner acme, which believes globex and initech and serves the ledger to globex.
struct Owner {
    mesh: Mesh,
    globex: TestCa,
    initech: TestCa,
    backend: Backend,
}

async fn owner_with(config: GatewayConfig) -> Owner {
    let [acme, globex, initech] = ["acme", "globex", "initech"].map(|m| TestCa::new(&format!("{m}.example")));
    let peers = vec![globex.trust_as("globex"), initech.trust_as("initech")];
    let mesh = Mesh::start(acme, peers, config).await;
    let backend = Backend::echo(mesh.spawner()).await;
    mesh.publish(&[(tcp_service(NAME, backend.address), &["globex"])]);
    Owner { mesh, globex, initech, backend }
}

async fn owner() -> Owner {
    owner_with(config()).await
}

impl Owner {
    /// The good client: globex's gateway.
    fn client(&self) -> Arc<ClientConfig> {
        stranger_client(Some(&self.globex.gateway()), &[])
    }

    async fn connect(&self) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        tls(self.mesh.ingress(), self.client(), NAME).await
    }

    /// A refused connection ends without an answer, reaches no backend, and is counted as
    /// `outcome`; right after it the good client is served.
    async fn refused(&self, what: &str, config: Arc<ClientConfig>, sni: &str, outcome: Outcome) {
        let before = (self.backend.count(), self.mesh.gateway.stats().count(IN, outcome));
        if let Ok(stream) = tls(self.mesh.ingress(), config, sni).await {
            let answer = call(stream, "hello").await.unwrap_or_default();
            assert_eq!(answer, "", "{what}");
        }
        self.mesh.ended(IN, outcome, before.1 + 1).await;
        assert_eq!(self.backend.count(), before.0, "{what} reached the backend");
        let neighbour = self.connect().await.unwrap_or_else(|e| panic!("beside {what}: {e}"));
        assert_eq!(call(neighbour, "hello").await.unwrap(), "hello bye", "beside {what}");
    }
}

#[tokio::test]
async fn certificates_that_prove_no_peer_are_refused_and_the_good_one_beside_each_is_served() {
    let owner = owner().await;
    let globex = &owner.globex;
    let id = globex.gateway_id();
    let other_ca = TestCa::new("globex.example");
    let two = LeafSpec {
        uris: vec![id.to_string(), "spiffe://globex.example/agent".into()],
        ..LeafSpec::of(id.as_str())
    };
    let expired = LeafSpec { not_before: -2 * DAY, not_after: -60, ..LeafSpec::of(id.as_str()) };
    let failed = Outcome::HandshakeFailed;
    for (what, leaf) in [
        ("a certificate of another CA", Some(other_ca.gateway())),
        (
            "the right CA with the wrong trust domain",
            Some(globex.leaf(LeafSpec::of("spiffe://initech.example/gateway"))),
        ),
        ("our own id from the peer's CA", Some(globex.leaf(LeafSpec::of("spiffe://acme.example/gateway")))),
        ("the right domain with another id", Some(globex.leaf(LeafSpec::of("spiffe://globex.example/web")))),
        ("the peer's agent", Some(globex.agent())),
        ("an expired certificate", Some(globex.leaf(expired))),
        ("two URI SANs", Some(globex.leaf(two))),
        ("no client certificate", None),
    ] {
        owner.refused(what, stranger_client(leaf.as_ref(), &[]), NAME, failed).await;
    }
    owner.refused("TLS 1.2", old_client(&globex.gateway()), NAME, failed).await;
}

#[tokio::test]
async fn names_that_are_not_served_to_that_peer_are_refused() {
    let owner = owner().await;
    let good = owner.client();
    owner.refused("an unknown SNI", good.clone(), "other.acme.example", Outcome::UnknownSni).await;
    owner.refused("a parent of the SNI", good.clone(), "acme.example", Outcome::UnknownSni).await;
    owner.refused("an address instead of SNI", good.clone(), "127.0.0.1", Outcome::NoSni).await;
    let mut silent = ClientConfig::clone(&good);
    silent.enable_sni = false;
    owner.refused("no SNI", Arc::new(silent), NAME, Outcome::NoSni).await;
    let initech = stranger_client(Some(&owner.initech.gateway()), &[]);
    owner.refused("a peer it isn't published to", initech, NAME, Outcome::NotPublished).await;

    let by_instance = tls(owner.mesh.ingress(), good.clone(), OWN_NAME).await.unwrap();
    assert_eq!(call(by_instance, "hello").await.unwrap(), "hello bye");
    let folded = tls(owner.mesh.ingress(), good, "LEDGER.acme.EXAMPLE").await.unwrap();
    assert_eq!(call(folded, "hello").await.unwrap(), "hello bye");
}

#[tokio::test]
async fn plaintext_is_closed_and_never_reaches_a_backend() {
    let owner = owner().await;
    let mut plain = TcpStream::connect(owner.mesh.ingress()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: ledger.acme.example\r\n\r\n").await.unwrap();
    until_end(&mut plain).await;
    owner.mesh.ended(IN, Outcome::NotTls, 1).await;
    assert_eq!(owner.backend.count(), 0);
    assert_eq!(call(owner.connect().await.unwrap(), "hello").await.unwrap(), "hello bye");
}

/// Writes a given number of bytes at a time, each in a segment of its own.
struct Trickle {
    tcp: TcpStream,
    first: usize,
    then: usize,
}

impl AsyncRead for Trickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        b: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, b)
    }
}
impl AsyncWrite for Trickle {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, b: &[u8]) -> Poll<io::Result<usize>> {
        let then = self.then;
        let most = std::mem::replace(&mut self.first, then).min(b.len());
        Pin::new(&mut self.tcp).poll_write(cx, &b[..most])
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_client_hello_in_single_bytes_or_split_anywhere_routes() {
    let owner = owner().await;
    // The client's provider offers X25519MLKEM768: this ClientHello is longer than a segment.
    for (first, then) in [(1, 1), (5, usize::MAX), (6, usize::MAX), (700, usize::MAX), (1460, usize::MAX)] {
        let tcp = TcpStream::connect(owner.mesh.ingress()).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let connector = TlsConnector::from(owner.client());
        let stream = connector.connect(name, Trickle { tcp, first, then }).await.unwrap();
        let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(call(stream, "hello").await.unwrap(), "hello bye", "{first} {then}");
    }
}

#[tokio::test]
async fn silent_sockets_are_evicted_and_cost_an_honest_client_nothing() {
    let limits = Limits { silent_sockets: 8, silent_per_prefix: None, ..Limits::default() };
    let owner = owner_with(GatewayConfig { limits, ..config() }).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(owner.mesh.ingress()).await.unwrap());
    }
    assert_eq!(call(owner.connect().await.unwrap(), "hello").await.unwrap(), "hello bye");
    owner.mesh.ended(IN, Outcome::Evicted, 32).await;
    until_end(&mut silent[0]).await;
}

#[tokio::test]
async fn a_slow_client_hello_has_a_deadline_and_an_abandoned_one_none() {
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let owner = owner_with(GatewayConfig { limits, ..config() }).await;
    let mut slow = TcpStream::connect(owner.mesh.ingress()).await.unwrap();
    slow.write_all(&[22, 3, 1]).await.unwrap();
    until_end(&mut slow).await;
    owner.mesh.ended(IN, Outcome::HandshakeTimeout, 1).await;
    drop(TcpStream::connect(owner.mesh.ingress()).await.unwrap());
    owner.mesh.ended(IN, Outcome::HelloClosed, 1).await;
}

#[tokio::test]
async fn a_tcp_backend_is_told_the_proven_caller_by_exact_proxy_v2_bytes() {
    let owner = owner().await;
    let raw = Backend::named(owner.mesh.spawner(), "").await;
    let told = service("raw.acme.example", Protocol::Tcp, CallerForm::ProxyV2, &[raw.address]);
    owner.mesh.publish(&[(told, &["globex"])]);
    let mut stream = tls(owner.mesh.ingress(), owner.client(), "raw.acme.example").await.unwrap();
    let (from, to) = (stream.get_ref().0.local_addr().unwrap(), owner.mesh.ingress());
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).await.unwrap();

    let id = b"spiffe://globex.example/gateway";
    let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    expected.extend((12 + 3 + id.len() as u16).to_be_bytes());
    expected.extend([127, 0, 0, 1, 127, 0, 0, 1]);
    expected.extend(from.port().to_be_bytes());
    expected.extend(to.port().to_be_bytes());
    expected.push(0xE0);
    expected.extend((id.len() as u16).to_be_bytes());
    expected.extend(id);
    expected.extend(b"hello");
    assert_eq!(seen, expected);
}

/// An owner with an HTTP service that is told its caller by header.
async fn http_owner(protocol: Protocol) -> (Owner, Backend) {
    let owner = owner().await;
    let backend = Backend::http(owner.mesh.spawner()).await;
    let told = service("web.acme.example", protocol, CallerForm::HttpHeader, &[backend.address]);
    owner.mesh.publish(&[(told, &["globex"])]);
    (owner, backend)
}

#[tokio::test]
async fn an_http_backend_is_told_the_proven_caller_and_no_client_can_forge_it() {
    let (owner, _backend) = http_owner(Protocol::Http).await;
    let connect = async || tls(owner.mesh.ingress(), owner.client(), "web.acme.example").await.unwrap();
    let forged = "POST /a?b=c HTTP/1.1\r\nHost: web.acme.example:8080\r\n\
                  X-Hamlet-Caller: spiffe://acme.example/root\r\nx_hamlet_caller: spiffe://acme.example/root\r\n\
                  X-Hamlet-Caller-Mesh: acme.example\r\nX-Hamlet-Role: admin\r\nX-Kept: yes\r\n\
                  Trailer: x-hamlet-caller, x-kept\r\nTransfer-Encoding: chunked\r\nConnection: close, x-hamlet-caller";
    let head = format!(
        "{forged}\r\n\r\n3\r\nabc\r\n0\r\nX-Hamlet-Caller: spiffe://acme.example/root\r\nX-Sum: 7\r\n"
    );
    let mut stream = connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("POST /a HTTP/1.1"), "{answer}");
    assert!(answer.contains("x-hamlet-caller: spiffe://globex.example/gateway\n"), "{answer}");
    assert!(answer.contains("x-hamlet-caller-mesh: globex.example\n"), "{answer}");
    assert!(answer.contains("host: web.acme.example:8080\n") && answer.contains("x-kept: yes\n"), "{answer}");
    assert!(!answer.contains("acme.example/root") && !answer.contains("admin"), "{answer}");
    assert!(answer.contains("abc"), "{answer}");
}

#[tokio::test]
async fn an_authority_that_is_no_name_of_the_route_is_misdirected() {
    let (owner, backend) = http_owner(Protocol::Http).await;
    for (host, status) in [
        ("Host: web.acme.example", "200"),
        ("Host: WEB.acme.example.:1234", "200"),
        ("Host: main.web.acme.example", "200"),
        ("Host: ledger.acme.example", "421"),
        ("Host: other.web.acme.example", "421"),
        ("Host: localhost", "421"),
        ("Host: 127.0.0.1", "421"),
        ("X-No: host", "421"),
        ("Host: web.acme.example\r\nHost: web.acme.example", "421"),
    ] {
        let before = backend.count();
        let stream = tls(owner.mesh.ingress(), owner.client(), "web.acme.example").await.unwrap();
        let answer = http(stream, &format!("GET / HTTP/1.1\r\n{host}")).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {answer}");
        assert_eq!(backend.count() - before, usize::from(status == "200"), "{host}");
    }
    let stream = tls(owner.mesh.ingress(), owner.client(), "web.acme.example").await.unwrap();
    let answer =
        http(stream, "CONNECT web.acme.example:80 HTTP/1.1\r\nHost: web.acme.example:80").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

#[tokio::test]
async fn an_http2_service_keeps_trailers_and_loses_forged_ones() {
    let (owner, backend) = http_owner(Protocol::Grpc).await;
    let stream = tls(owner.mesh.ingress(), owner.client(), "web.acme.example").await.unwrap();
    let tasks = Tasks(owner.mesh.spawner());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(tasks, TokioIo::new(stream)).await.unwrap();
    owner.mesh.spawner().spawn("test/client", async move {
        let _ = connection.await;
    });
    for _ in 0..2 {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-hamlet-caller", "spiffe://acme.example/root".parse().unwrap());
        trailers.insert("x-sum", "7".parse().unwrap());
        let frames = [Frame::data(bytes::Bytes::from_static(b"abc")), Frame::trailers(trailers)];
        let body = StreamBody::new(futures::stream::iter(frames.map(Ok::<_, std::convert::Infallible>)));
        let request = hyper::Request::post("http://web.acme.example/x").header("te", "trailers");
        let response = sender.send_request(request.body(body.boxed()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let seen = response.into_body().collect().await.unwrap().to_bytes();
        let seen = String::from_utf8_lossy(&seen);
        assert!(seen.starts_with("POST /x HTTP/2.0 web.acme.example\n"), "{seen}");
        assert!(seen.contains("te: trailers\n") && seen.contains("trailer x-sum: 7\n"), "{seen}");
        assert!(seen.contains("x-hamlet-caller: spiffe://globex.example/gateway\n"), "{seen}");
        assert!(!seen.contains("acme.example/root"), "{seen}");
    }
    assert_eq!(backend.count(), 1, "requests share a connection");
    let misdirected = hyper::Request::get("http://ledger.acme.example/").body(Empty::new().boxed()).unwrap();
    assert_eq!(sender.send_request(misdirected).await.unwrap().status(), 421);
}

#[tokio::test]
async fn a_web_socket_passes_through_and_the_caller_is_told() {
    let owner = owner().await;
    let backend = Backend::start(owner.mesh.spawner(), |mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        assert!(head.contains("x-hamlet-caller: spiffe://globex.example/gateway"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let told = service("web.acme.example", Protocol::Http, CallerForm::HttpHeader, &[backend.address]);
    owner.mesh.publish(&[(told, &["globex"])]);
    let mut stream = tls(owner.mesh.ingress(), owner.client(), "web.acme.example").await.unwrap();
    let head =
        "GET /chat HTTP/1.1\r\nHost: web.acme.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    ping(&mut stream, "frame").await.unwrap();
    owner.mesh.trust.replace(vec![owner.initech.trust_as("initech")]).unwrap();
    until_end(&mut stream).await;
}

#[tokio::test]
async fn requests_cannot_be_smuggled_through_an_upgrade_to_http2() {
    let (owner, _backend) = http_owner(Protocol::Http).await;
    let stream = tls(owner.mesh.ingress(), owner.client(), "web.acme.example").await.unwrap();
    let head = "GET / HTTP/1.1\r\nHost: web.acme.example\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\
                Connection: Upgrade, HTTP2-Settings";
    let answer = http(stream, head).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("h2c"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("http2-settings"), "{answer}");
}

#[tokio::test]
async fn a_backend_that_fails_is_passed_over() {
    let owner = owner().await;
    let (_kept, dead) = dead();
    let both = service(NAME, Protocol::Tcp, CallerForm::None, &[dead, owner.backend.address]);
    owner.mesh.publish(&[(both, &["globex"])]);
    for _ in 0..4 {
        assert_eq!(call(owner.connect().await.unwrap(), "hello").await.unwrap(), "hello bye");
    }
    owner.mesh.publish(&[(tcp_service(NAME, dead), &["globex"])]);
    assert_eq!(call(owner.connect().await.unwrap(), "hello").await.unwrap_or_default(), "");
    owner.mesh.ended(IN, Outcome::Unreachable, 1).await;
}

#[tokio::test]
async fn half_close_works_both_ways() {
    let owner = owner().await;
    // The client ends first, the backend answers after that.
    let late = Backend::named(owner.mesh.spawner(), "late ").await;
    // The backend ends first, the client's bytes still arrive.
    let (seen, mut wait) = tokio::sync::mpsc::channel(1);
    let early = Backend::start(owner.mesh.spawner(), move |mut stream| {
        let seen = seen.clone();
        async move {
            stream.write_all(b"early").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            seen.send(all).await.unwrap();
        }
    })
    .await;
    owner.mesh.publish(&[
        (tcp_service("late.acme.example", late.address), &["globex"]),
        (tcp_service("early.acme.example", early.address), &["globex"]),
    ]);
    let stream = tls(owner.mesh.ingress(), owner.client(), "late.acme.example").await.unwrap();
    assert_eq!(call(stream, "question").await.unwrap(), "late question");

    let mut stream = tls(owner.mesh.ingress(), owner.client(), "early.acme.example").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "early");
    stream.write_all(b"afterwards").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(wait.recv().await.unwrap(), "afterwards");
    owner.mesh.ended(IN, Outcome::Served, 2).await;
}

#[tokio::test]
async fn a_cut_client_resets_the_backend_instead_of_ending_it_cleanly() {
    let owner = owner().await;
    let (seen, mut wait) = tokio::sync::mpsc::channel(1);
    let backend = Backend::start(owner.mesh.spawner(), move |mut stream| {
        let seen = seen.clone();
        async move {
            let clean = until_end(&mut stream).await;
            let _ = seen.send(clean).await;
        }
    })
    .await;
    owner.mesh.publish(&[(tcp_service(NAME, backend.address), &["globex"])]);
    let mut stream = owner.connect().await.unwrap();
    stream.write_all(b"half a message").await.unwrap();
    stream.flush().await.unwrap();
    eventually("the backend is reached", GENEROUS, || backend.count() == 1).await;
    // TCP ends without TLS's close_notify: a truncation.
    drop(stream.into_inner().0);
    assert!(!wait.recv().await.unwrap(), "the backend saw a clean end");
}

#[tokio::test]
async fn a_change_of_routes_leaves_live_connections_alone_and_a_withdrawal_drains_them() {
    let owner = owner_with(GatewayConfig { drain: Duration::from_millis(300), ..config() }).await;
    let other = Backend::echo(owner.mesh.spawner()).await;
    let mut live = owner.connect().await.unwrap();
    ping(&mut live, "before").await.unwrap();
    // Other backends, another peer, another service: nothing of it concerns the connection.
    owner.mesh.publish(&[
        (tcp_service(NAME, other.address), &["globex", "initech"]),
        (tcp_service("new.acme.example", other.address), &["globex"]),
    ]);
    ping(&mut live, "changed").await.unwrap();
    assert_eq!(call(owner.connect().await.unwrap(), "x").await.unwrap(), "x bye");
    assert_eq!(other.count(), 1, "new connections go to the new backend");
    ping(&mut live, "still").await.unwrap();
    owner.mesh.publish(&[(tcp_service("new.acme.example", other.address), &["globex"])]);
    until_end(&mut live).await;
    owner.mesh.ended(IN, Outcome::Drained, 1).await;

    // Withdrawn from one peer only.
    owner.mesh.publish(&[(tcp_service(NAME, other.address), &["globex", "initech"])]);
    let mut live = owner.connect().await.unwrap();
    ping(&mut live, "again").await.unwrap();
    owner.mesh.publish(&[(tcp_service(NAME, other.address), &["initech"])]);
    until_end(&mut live).await;
    owner.mesh.ended(IN, Outcome::Drained, 2).await;
}

#[tokio::test]
async fn a_peer_that_is_no_longer_proven_is_cut_and_others_are_not() {
    let owner = owner().await;
    owner.mesh.publish(&[(tcp_service(NAME, owner.backend.address), &["globex", "initech"])]);
    let mut globex = owner.connect().await.unwrap();
    let initech = stranger_client(Some(&owner.initech.gateway()), &[]);
    let mut initech = tls(owner.mesh.ingress(), initech, NAME).await.unwrap();
    ping(&mut globex, "one").await.unwrap();
    ping(&mut initech, "one").await.unwrap();
    // The same trust again cuts nobody.
    let both = || vec![owner.globex.trust_as("globex"), owner.initech.trust_as("initech")];
    owner.mesh.trust.replace(both()).unwrap();
    ping(&mut globex, "two").await.unwrap();
    // Another gateway id for globex; its bundle is as before.
    let mut changed = both();
    changed[0].gateway_ids = vec![owner.globex.id("another-gateway")];
    owner.mesh.trust.replace(changed).unwrap();
    until_end(&mut globex).await;
    owner.mesh.ended(IN, Outcome::Unproven, 1).await;
    ping(&mut initech, "two").await.unwrap();
    owner.mesh.trust.replace(vec![]).unwrap();
    until_end(&mut initech).await;
    owner.mesh.ended(IN, Outcome::Unproven, 2).await;
    owner.refused_by_all().await;
}

#[tokio::test]
async fn a_revoked_gateway_loses_its_connections_and_an_outdated_list_lets_nobody_in() {
    let owner = owner().await;
    let (ca, leaf) = (&owner.globex, owner.globex.gateway());
    let believe = |crl: String, policy| {
        let mut trust = ca.trust_as("globex");
        let lists = RevocationLists::read(crl.as_bytes(), policy).unwrap();
        trust.revoked = Some(Arc::new(lists));
        owner.mesh.trust.replace(vec![trust]).unwrap();
    };
    let connect = || tls(owner.mesh.ingress(), stranger_client(Some(&leaf), &[]), NAME);
    let strict = RevocationPolicy::default();
    believe(ca.crl(&[&ca.gateway()], DAY), strict);
    let mut live = connect().await.unwrap();
    ping(&mut live, "one").await.unwrap();
    // Another certificate is revoked as well: nobody else is cut.
    believe(ca.crl(&[&ca.gateway(), &ca.agent()], DAY), strict);
    ping(&mut live, "two").await.unwrap();
    believe(ca.crl(&[&leaf], DAY), strict);
    until_end(&mut live).await;
    owner.mesh.ended(IN, Outcome::Unproven, 1).await;
    let refused = || async {
        match connect().await {
            Ok(stream) => call(stream, "hello").await.unwrap_or_default().is_empty(),
            Err(_) => true,
        }
    };
    assert!(refused().await);
    assert_eq!(owner.mesh.trust.failures().latest().unwrap().rule, "revoked");

    believe(ca.crl(&[], -60), strict);
    assert!(refused().await);
    assert_eq!(owner.mesh.trust.failures().latest().unwrap().rule, "revocation-unknown");
    believe(ca.crl(&[], -60), RevocationPolicy { stale: Lenience::Accept, ..strict });
    assert!(!refused().await);
}

impl Owner {
    async fn refused_by_all(&self) {
        if let Ok(stream) = self.connect().await {
            assert_eq!(call(stream, "hello").await.unwrap_or_default(), "");
        }
    }
}

#[tokio::test]
async fn a_connection_is_cut_when_the_certificate_that_opened_it_ends_and_another_is_not() {
    let [acme, globex] = ["acme", "globex"].map(|m| TestCa::new(&format!("{m}.example")));
    let day = Duration::from_secs(DAY.unsigned_abs());
    // The gateway's clock says that the usual leaf of a day ends now; one of two days goes on.
    let clock = ManualClock::at(globex.now() + day);
    let own = acme.gateway();
    let mesh = Mesh::start_by(acme, &own, vec![globex.trust_as("globex")], config(), clock).await;
    let backend = Backend::echo(mesh.spawner()).await;
    mesh.publish(&[(tcp_service(NAME, backend.address), &["globex"])]);
    let longer = LeafSpec { not_after: 2 * DAY, ..LeafSpec::of(globex.gateway_id().as_str()) };
    let longer = stranger_client(Some(&globex.leaf(longer)), &[]);
    let mut lives = tls(mesh.ingress(), longer, NAME).await.unwrap();
    ping(&mut lives, "before").await.unwrap();
    let mut ends = tls(mesh.ingress(), stranger_client(Some(&globex.gateway()), &[]), NAME).await.unwrap();
    until_end(&mut ends).await;
    mesh.ended(IN, Outcome::Expired, 1).await;
    ping(&mut lives, "after").await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let owner = owner_with(GatewayConfig { idle_timeout: Duration::from_millis(200), ..config() }).await;
    let mut stream = owner.connect().await.unwrap();
    ping(&mut stream, "one").await.unwrap();
    until_end(&mut stream).await;
    owner.mesh.ended(IN, Outcome::Idle, 1).await;
}

#[tokio::test]
async fn a_shutdown_stops_accepting_and_lets_live_connections_finish() {
    let owner = owner().await;
    let mut live = owner.connect().await.unwrap();
    ping(&mut live, "before").await.unwrap();
    owner.mesh.spawner().shutdown().begin();
    let accepting = || owner.mesh.spawner().tasks().iter().any(|t| t.name == "gateway/ingress");
    eventually("nothing accepts", GENEROUS, || !accepting()).await;
    ping(&mut live, "during").await.unwrap();
    let stop = owner.mesh.supervisor.stop(Duration::from_millis(50), GENEROUS);
    let (left, _) = tokio::join!(stop, until_end(&mut live));
    assert!(left.iter().all(|name| !name.starts_with("gateway")), "{left:?}");
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_the_listener_and_the_remedy() {
    let taken = std::net::TcpListener::bind(ANY).unwrap();
    let (acme, supervisor) =
        (TestCa::new("acme.example"), hamlet_runtime::Supervisor::new(Default::default()));
    let config = GatewayConfig { ingress: Some(taken.local_addr().unwrap()), ..GatewayConfig::default() };
    let clock = hamlet_runtime::SystemClock::shared();
    let trust = hamlet_testkit::pki::trust_table(vec![]);
    let started = hamlet_gateway::Gateway::start(
        config,
        acme.gateway().identity(),
        None,
        trust,
        supervisor.spawner(),
        clock,
    );
    let error = started.await.err().expect("a refused start").to_string();
    assert!(error.contains("ingress") && error.contains("another program"), "{error}");
}
