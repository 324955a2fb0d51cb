//! Egress with real TLS: from a workload through both gateways, failover, identities, listeners.

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::*;
use hamlet_core::{CallerForm, ImportedService, Protocol};
use hamlet_gateway::{AddressPool, EgressState, GatewayConfig, Limits, ListenerKind, Outcome};
use hamlet_runtime::{ManualClock, SystemClock};
use hamlet_testkit::pki::{DAY, LeafSpec, TestCa};
use hamlet_testkit::{GENEROUS, eventually};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NAME: &str = "ledger.acme.example";
/// Rarely taken by other programs, and below the ephemeral ones.
const PORT: u16 = 28473;
const OUT: ListenerKind = ListenerKind::Egress;

/// Two meshes: acme owns, globex consumes.
struct Pair {
    owner: Mesh,
    consumer: Mesh,
    pool: AddressPool,
}

async fn pair_with(test: u8, owner: GatewayConfig, consumer: GatewayConfig) -> Pair {
    let (acme, globex) = (TestCa::new("acme.example"), TestCa::new("globex.example"));
    let (of_acme, of_globex) = (acme.trust_as("acme"), globex.trust_as("globex"));
    Pair {
        owner: Mesh::start(acme, vec![of_globex], owner).await,
        consumer: Mesh::start(globex, vec![of_acme], consumer).await,
        pool: pool(test),
    }
}

async fn pair(test: u8) -> Pair {
    pair_with(test, config(), config()).await
}

impl Pair {
    fn offer(&self, name: &str, protocol: Protocol, port: u16) -> ImportedService {
        imported(name, "acme", protocol, port, &[self.owner.ca.gateway_id()], &[self.owner.ingress()])
    }

    fn import(&mut self, services: &[ImportedService]) {
        self.consumer.import(services, &mut self.pool);
    }

    /// The state of a name, once it is no longer pending.
    async fn state(&self, name: &str) -> (Option<SocketAddr>, EgressState) {
        let find =
            || self.consumer.gateway.egress_status().into_iter().find(|s| s.name == fqdn(name)).unwrap();
        eventually("a settled listener", GENEROUS, || find().state != EgressState::Pending).await;
        let status = find();
        (status.listen, status.state)
    }

    async fn listening(&self, name: &str) -> SocketAddr {
        let find = || self.consumer.gateway.egress_status().into_iter().find(|s| s.name == fqdn(name));
        let listens = || find().is_some_and(|s| s.state == EgressState::Listening);
        eventually("its listener", GENEROUS, listens).await;
        find().and_then(|s| s.listen).unwrap()
    }

    async fn connect(&self, name: &str) -> TcpStream {
        TcpStream::connect(self.listening(name).await).await.unwrap()
    }

    async fn get(&self, host: &str, path: &str) -> String {
        let stream = TcpStream::connect(self.consumer.egress_http()).await.unwrap();
        http(stream, &format!("GET {path} HTTP/1.1\r\nHost: {host}")).await.unwrap()
    }
}

#[tokio::test]
async fn a_call_goes_from_workload_to_workload_through_both_gateways_with_half_close() {
    let mut pair = pair(0).await;
    let backend = Backend::named(pair.owner.spawner(), "late ").await;
    pair.owner.publish(&[(tcp_service(NAME, backend.address), &["globex"])]);
    let offer = pair.offer(NAME, Protocol::Tcp, PORT);
    pair.import(&[offer]);
    assert_eq!(call(pair.connect(NAME).await, "question").await.unwrap(), "late question");
    let by_instance = pair.listening("main.ledger.acme.example").await;
    assert_ne!(by_instance, pair.listening(NAME).await, "an instance has an address of its own");
    assert_eq!(by_instance.port(), PORT);
    let stream = TcpStream::connect(by_instance).await.unwrap();
    assert_eq!(call(stream, "again").await.unwrap(), "late again");

    let big = "x".repeat(3_000_000);
    assert_eq!(call(pair.connect(NAME).await, &big).await.unwrap().len(), big.len() + 5);
    pair.consumer.ended(OUT, Outcome::Served, 3).await;
    let mut registry = prometheus_client::registry::Registry::default();
    pair.consumer.gateway.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = r#"gateway_connections_total{listener="egress",outcome="served"} 3"#;
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn an_unpublished_service_reaches_no_backend() {
    let mut pair = pair(1).await;
    let backend = Backend::echo(pair.owner.spawner()).await;
    pair.owner.publish(&[(tcp_service(NAME, backend.address), &["initech"])]);
    let offer = pair.offer(NAME, Protocol::Tcp, PORT);
    pair.import(&[offer]);
    assert_eq!(call(pair.connect(NAME).await, "hello").await.unwrap_or_default(), "");
    pair.owner.ended(ListenerKind::Ingress, Outcome::NotPublished, 1).await;
    assert_eq!(backend.count(), 0);
    pair.owner.publish(&[(tcp_service(NAME, backend.address), &["globex"])]);
    assert_eq!(call(pair.connect(NAME).await, "hello").await.unwrap(), "hello bye");
}

#[tokio::test]
async fn an_endpoint_that_does_not_connect_is_passed_over() {
    let mut pair = pair(2).await;
    let backend = Backend::echo(pair.owner.spawner()).await;
    pair.owner.publish(&[(tcp_service(NAME, backend.address), &["globex"])]);
    let (_kept, dead) = dead();
    let mut offer = pair.offer(NAME, Protocol::Tcp, PORT);
    offer.instances[0].endpoints.insert(0, dead);
    pair.import(&[offer.clone()]);
    for _ in 0..4 {
        assert_eq!(call(pair.connect(NAME).await, "hello").await.unwrap(), "hello bye");
    }
    assert_eq!(pair.consumer.gateway.stats().identity_alarms, 0);
    offer.instances[0].endpoints = vec![dead];
    pair.import(&[offer]);
    let answer = call(pair.connect(NAME).await, "hello").await;
    assert!(answer.is_err(), "a call that can't be made is reset: {answer:?}");
    pair.consumer.ended(OUT, Outcome::Unreachable, 1).await;
}

#[tokio::test]
async fn an_endpoint_with_another_identity_is_passed_over_with_an_alarm() {
    let mut pair = pair(3).await;
    let backend = Backend::echo(pair.owner.spawner()).await;
    pair.owner.publish(&[(tcp_service(NAME, backend.address), &["globex"])]);
    // An impostor of another CA that would serve the same name.
    let impostor = TestCa::new("acme.example");
    let trust = vec![pair.consumer.ca.trust_as("globex")];
    let impostor = Mesh::start(impostor, trust, config()).await;
    let stolen = Backend::echo(impostor.spawner()).await;
    impostor.publish(&[(tcp_service(NAME, stolen.address), &["globex"])]);

    let mut offer = pair.offer(NAME, Protocol::Tcp, PORT);
    offer.instances[0].endpoints.insert(0, impostor.ingress());
    pair.import(&[offer.clone()]);
    assert_eq!(call(pair.connect(NAME).await, "hello").await.unwrap(), "hello bye");
    assert_eq!(pair.consumer.gateway.stats().identity_alarms, 1);

    // The right CA, but not one of the exact SANs of the offer.
    let wrong = ImportedService {
        sans: vec![pair.owner.ca.id("other-gateway")],
        ..pair.offer(NAME, Protocol::Tcp, PORT)
    };
    pair.import(&[wrong]);
    assert!(call(pair.connect(NAME).await, "hello").await.is_err());
    pair.consumer.ended(OUT, Outcome::Misidentified, 1).await;
    assert_eq!((stolen.count(), backend.count()), (0, 1));
}

#[tokio::test]
async fn route_changes_leave_live_connections_alone_and_a_withdrawal_drains_them() {
    let drain = GatewayConfig { drain: Duration::from_millis(300), ..config() };
    let mut pair = pair_with(4, config(), drain).await;
    let backend = Backend::echo(pair.owner.spawner()).await;
    pair.owner.publish(&[(tcp_service(NAME, backend.address), &["globex"])]);
    let offer = pair.offer(NAME, Protocol::Tcp, PORT);
    pair.import(std::slice::from_ref(&offer));
    let mut live = pair.connect(NAME).await;
    ping(&mut live, "before").await.unwrap();
    let address = pair.listening(NAME).await;

    let mut moved = offer.clone();
    moved.instances[0].endpoints = vec!["127.0.0.1:9".parse().unwrap()];
    let more = pair.offer("other.acme.example", Protocol::Tcp, PORT);
    pair.import(&[moved, more.clone()]);
    pair.listening("other.acme.example").await;
    ping(&mut live, "moved").await.unwrap();
    assert_eq!(pair.listening(NAME).await, address, "its listener is the same");

    pair.import(&[more]);
    until_end(&mut live).await;
    pair.consumer.ended(OUT, Outcome::Drained, 1).await;
    eventually("nobody listens any more", GENEROUS, || std::net::TcpStream::connect(address).is_err()).await;
    pair.import(&[offer]);
    assert_eq!(pair.listening(NAME).await, address, "it returns to its address");
    ping(&mut pair.connect(NAME).await, "returned").await.unwrap();
}

#[tokio::test]
async fn connections_to_an_owner_that_is_no_longer_trusted_are_cut() {
    let mut pair = pair(5).await;
    let backend = Backend::echo(pair.owner.spawner()).await;
    pair.owner.publish(&[(tcp_service(NAME, backend.address), &["globex"])]);
    let offer = pair.offer(NAME, Protocol::Tcp, PORT);
    pair.import(&[offer]);
    let mut live = pair.connect(NAME).await;
    ping(&mut live, "before").await.unwrap();
    pair.consumer.trust.replace(vec![]).unwrap();
    until_end(&mut live).await;
    pair.consumer.ended(OUT, Outcome::Unproven, 1).await;
}

/// Two meshes of which the consumer believes that leaves of a day end now, and whose owner has a leaf
/// of so many seconds.
async fn pair_after_a_day(test: u8, owners_leaf: i64) -> Pair {
    let (acme, globex) = (TestCa::new("acme.example"), TestCa::new("globex.example"));
    let clock = ManualClock::at(acme.now().max(globex.now()) + Duration::from_secs(DAY.unsigned_abs()));
    let theirs = acme.leaf(LeafSpec { not_after: owners_leaf, ..LeafSpec::of(acme.gateway_id().as_str()) });
    let (ours, of_acme, of_globex) = (globex.gateway(), acme.trust_as("acme"), globex.trust_as("globex"));
    let system = SystemClock::shared();
    Pair {
        owner: Mesh::start_by(acme, &theirs, vec![of_globex], config(), system).await,
        consumer: Mesh::start_by(globex, &ours, vec![of_acme], config(), clock).await,
        pool: pool(test),
    }
}

#[tokio::test]
async fn a_connection_is_cut_when_the_owners_certificate_ends() {
    let mut pair = pair_after_a_day(30, DAY).await;
    let raw = Backend::echo(pair.owner.spawner()).await;
    pair.owner.publish(&[(tcp_service(NAME, raw.address), &["globex"])]);
    let offer = pair.offer(NAME, Protocol::Tcp, PORT);
    pair.import(std::slice::from_ref(&offer));
    let mut live = pair.connect(NAME).await;
    until_end(&mut live).await;
    pair.consumer.ended(OUT, Outcome::Expired, 1).await;
}

#[tokio::test]
async fn no_request_is_sent_on_a_connection_that_the_owner_closes_when_our_own_certificate_ends() {
    let mut pair = pair_after_a_day(31, 3 * DAY).await;
    let backend = Backend::http(pair.owner.spawner()).await;
    let web = service("web.acme.example", Protocol::Http, CallerForm::HttpHeader, &[backend.address]);
    pair.owner.publish(&[(web, &["globex"])]);
    let offer = pair.offer("web.acme.example", Protocol::Http, 80);
    pair.import(std::slice::from_ref(&offer));
    for _ in 0..3 {
        let answer = pair.get("web.acme.example", "/").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(backend.count(), 3, "each has a connection of its own");
}

#[tokio::test]
async fn tightened_sans_cut_a_connection_that_proved_another() {
    let mut pair = pair(6).await;
    let backend = Backend::echo(pair.owner.spawner()).await;
    pair.owner.publish(&[(tcp_service(NAME, backend.address), &["globex"])]);
    let offer = pair.offer(NAME, Protocol::Tcp, PORT);
    pair.import(std::slice::from_ref(&offer));
    let mut live = pair.connect(NAME).await;
    ping(&mut live, "before").await.unwrap();
    pair.import(&[ImportedService { sans: vec![pair.owner.ca.id("another")], ..offer }]);
    until_end(&mut live).await;
    pair.consumer.ended(OUT, Outcome::Unproven, 1).await;
}

#[tokio::test]
async fn a_port_that_cannot_be_bound_is_a_status_with_a_remedy_and_heals() {
    let mut pair = pair(7).await;
    let backend = Backend::http(pair.owner.spawner()).await;
    let web = service("web.acme.example", Protocol::Http, CallerForm::None, &[backend.address]);
    pair.owner.publish(&[(web, &["globex"])]);
    // Another program on all addresses.
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let web = pair.offer("web.acme.example", Protocol::Http, port);
    let raw = pair.offer("raw.acme.example", Protocol::Tcp, port);
    let free = pair.offer("free.acme.example", Protocol::Tcp, PORT);
    pair.import(&[web, raw, free]);
    let (_, state) = pair.state("web.acme.example").await;
    let EgressState::SharedOnly { reason, remedy } = state else { panic!("{state:?}") };
    assert!(reason.contains(&port.to_string()) && remedy.contains("another program"), "{reason}: {remedy}");
    let (_, state) = pair.state("raw.acme.example").await;
    assert!(matches!(state, EgressState::NotListening { .. }), "{state:?}");
    pair.listening("free.acme.example").await;
    let answer = pair.get("web.acme.example", "/").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "the shared listener serves it meanwhile: {answer}");
    drop(taken);
    let listening = || {
        let status = pair.consumer.gateway.egress_status();
        status.iter().all(|s| s.state == EgressState::Listening)
    };
    eventually("all listeners are bound at last", 2 * GENEROUS, listening).await;
}

#[tokio::test]
async fn above_the_limit_of_listeners_names_are_reachable_through_the_shared_one_and_say_so() {
    let limits = Limits { egress_listeners: 2, ..Limits::default() };
    let mut pair = pair_with(8, config(), GatewayConfig { limits, ..config() }).await;
    let backend = Backend::http(pair.owner.spawner()).await;
    let names = ["a.acme.example", "b.acme.example"];
    let all = names.map(|n| service(n, Protocol::Http, CallerForm::None, &[backend.address]));
    pair.owner.publish(&[(all[0].clone(), &["globex"]), (all[1].clone(), &["globex"])]);
    let offers = names.map(|n| pair.offer(n, Protocol::Http, PORT));
    pair.import(&offers);
    pair.listening("a.acme.example").await;
    let (_, state) = pair.state("b.acme.example").await;
    let EgressState::SharedOnly { reason, remedy } = state else { panic!("{state:?}") };
    assert!(reason.contains("2 egress listeners") && remedy.contains("ulimit"), "{reason}: {remedy}");
    assert!(pair.get("b.acme.example", "/").await.starts_with("HTTP/1.1 200"));
    // A place that becomes free is given to it.
    pair.import(&offers[1..]);
    pair.listening("b.acme.example").await;
}

#[tokio::test]
async fn the_shared_listener_routes_by_host_and_sends_the_owners_authority() {
    let mut pair = pair(9).await;
    let backend = Backend::http(pair.owner.spawner()).await;
    let web = service("web.acme.example", Protocol::Http, CallerForm::HttpHeader, &[backend.address]);
    let raw = tcp_service("raw.acme.example", backend.address);
    pair.owner.publish(&[(web, &["globex"]), (raw, &["globex"])]);
    let offers = [
        pair.offer("web.acme.example", Protocol::Http, 80),
        pair.offer("raw.acme.example", Protocol::Tcp, PORT),
    ];
    pair.import(&offers);
    for host in ["web.acme.example", "WEB.acme.example.:7480", "main.web.acme.example"] {
        let answer = pair.get(host, "/path").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
        assert!(answer.contains("GET /path HTTP/1.1"), "{answer}");
        assert!(answer.contains("host: web.acme.example\n"), "{host}: {answer}");
        assert!(answer.contains("x-hamlet-caller: spiffe://globex.example/gateway\n"), "{answer}");
    }
    for (host, status, code) in [
        ("nobody.acme.example", 404, "unknown-host"),
        ("127.0.0.1:22", 404, "unknown-host"),
        ("localhost", 404, "unknown-host"),
        ("raw.acme.example", 404, "not-http"),
    ] {
        let answer = pair.get(host, "/").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {answer}");
        assert!(answer.contains(&format!("x-hamlet-error: {code}")), "{host}: {answer}");
    }
    let stream = TcpStream::connect(pair.consumer.egress_http()).await.unwrap();
    let answer =
        http(stream, "CONNECT web.acme.example:443 HTTP/1.1\r\nHost: web.acme.example:443").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    let stream = TcpStream::connect(pair.consumer.egress_http()).await.unwrap();
    let answer =
        http(stream, "GET http://web.acme.example/proxied HTTP/1.1\r\nHost: web.acme.example").await.unwrap();
    assert!(answer.contains("GET /proxied HTTP/1.1"), "{answer}");
    let stream = TcpStream::connect(pair.consumer.egress_http()).await.unwrap();
    let answer = http(stream, "GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: web.acme.example").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn upstream_connections_are_reused_and_not_for_another_route() {
    let mut pair = pair(10).await;
    let backend = Backend::http(pair.owner.spawner()).await;
    let web = service("web.acme.example", Protocol::Http, CallerForm::None, &[backend.address]);
    pair.owner.publish(&[(web, &["globex"])]);
    let offer = pair.offer("web.acme.example", Protocol::Http, 80);
    pair.import(std::slice::from_ref(&offer));
    for _ in 0..5 {
        assert!(pair.get("web.acme.example", "/").await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(backend.count(), 1);
    // Withdrawn at the consumer: no request leaves although a connection waits.
    pair.import(&[]);
    assert!(pair.get("web.acme.example", "/").await.starts_with("HTTP/1.1 404"));
    // Withdrawn at the owner, or no longer trusted: the waiting connection is of no use.
    pair.import(std::slice::from_ref(&offer));
    assert!(pair.get("web.acme.example", "/").await.starts_with("HTTP/1.1 200"));
    pair.consumer.trust.replace(vec![]).unwrap();
    let answer = pair.get("web.acme.example", "/").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.contains("x-hamlet-error: upstream-identity"), "{answer}");
}

#[tokio::test]
async fn failures_upstream_have_codes_of_their_own() {
    let mut pair = pair(11).await;
    let (_kept, dead) = dead();
    let mut gone = pair.offer("gone.acme.example", Protocol::Http, 80);
    gone.instances[0].endpoints = vec![dead];
    let mut empty = pair.offer("empty.acme.example", Protocol::Http, 80);
    empty.instances[0].endpoints = vec![];
    let unserved = pair.offer("unserved.acme.example", Protocol::Http, 80);
    pair.import(&[gone, empty, unserved]);
    for (host, status, code) in [
        ("gone.acme.example", 503, "upstream-unreachable"),
        ("empty.acme.example", 503, "no-endpoint"),
        ("unserved.acme.example", 502, "upstream-failed"),
    ] {
        let answer = pair.get(host, "/").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {answer}");
        assert!(answer.contains(&format!("x-hamlet-error: {code}")), "{host}: {answer}");
    }
}

#[tokio::test]
async fn http2_with_prior_knowledge_reaches_a_grpc_service() {
    let mut pair = pair(12).await;
    let backend = Backend::http(pair.owner.spawner()).await;
    let web = service("rpc.acme.example", Protocol::Grpc, CallerForm::HttpHeader, &[backend.address]);
    pair.owner.publish(&[(web, &["globex"])]);
    let offer = pair.offer("rpc.acme.example", Protocol::Grpc, 80);
    pair.import(&[offer]);
    let stream = TcpStream::connect(pair.consumer.egress_http()).await.unwrap();
    let tasks = Tasks(pair.consumer.spawner());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(tasks, TokioIo::new(stream)).await.unwrap();
    pair.consumer.spawner().spawn("test/client", async move {
        let _ = connection.await;
    });
    for _ in 0..3 {
        let request =
            hyper::Request::get("http://rpc.acme.example/call").body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let seen = response.into_body().collect().await.unwrap().to_bytes();
        let seen = String::from_utf8_lossy(&seen);
        assert!(seen.starts_with("GET /call HTTP/2.0 rpc.acme.example\n"), "{seen}");
        assert!(seen.contains("x-hamlet-caller: spiffe://globex.example/gateway\n"), "{seen}");
    }
    assert_eq!(backend.count(), 1);
}

#[tokio::test]
async fn a_web_socket_passes_through_the_shared_listener() {
    let mut pair = pair(13).await;
    let backend = Backend::start(pair.owner.spawner(), |mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let web = service("web.acme.example", Protocol::Http, CallerForm::None, &[backend.address]);
    pair.owner.publish(&[(web, &["globex"])]);
    let offer = pair.offer("web.acme.example", Protocol::Http, 80);
    pair.import(&[offer]);
    let mut stream = TcpStream::connect(pair.consumer.egress_http()).await.unwrap();
    let head =
        "GET /chat HTTP/1.1\r\nHost: web.acme.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    ping(&mut stream, "frame").await.unwrap();
    pair.consumer.trust.replace(vec![]).unwrap();
    until_end(&mut stream).await;
}

#[tokio::test]
async fn a_shutdown_is_not_held_up_by_idle_http_connections() {
    let mut pair = pair(14).await;
    let backend = Backend::http(pair.owner.spawner()).await;
    let web = service("web.acme.example", Protocol::Http, CallerForm::None, &[backend.address]);
    pair.owner.publish(&[(web, &["globex"])]);
    let offer = pair.offer("web.acme.example", Protocol::Http, 80);
    pair.import(&[offer]);
    assert!(pair.get("web.acme.example", "/").await.starts_with("HTTP/1.1 200"));
    let _idle = TcpStream::connect(pair.consumer.egress_http()).await.unwrap();
    let shutdown = pair.consumer.spawner().shutdown();
    let left = pair.consumer.supervisor.stop(GENEROUS, Duration::ZERO).await;
    assert!(left.is_empty(), "{left:?}");
    assert!(shutdown.has_begun());
}
