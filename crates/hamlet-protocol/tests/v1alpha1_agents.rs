//! v1alpha1 over real sockets and mTLS: two agents of ours, one beside v1alpha2 on the same port,
//! and peers that behave as the Go library does on the wire (protocol text, section 4).

use std::net::SocketAddr;
use std::time::Duration;

use hamlet_core::DnsLabel;
use hamlet_protocol::dialect::translate::{TYPE_URL, down};
use hamlet_protocol::dialect::{Dialect, v1alpha1, v1alpha2};
use hamlet_protocol::link::{Connection, LinkConfig, LinkStatus};
use hamlet_protocol::session::PeerClass;
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha1 as pb;
use hamlet_protocol::wire::google::{protobuf::Any, rpc};
use hamlet_testkit::pki::TestCa;
use hamlet_testkit::store::MemoryStore;
use hamlet_testkit::{GENEROUS, eventually};
use prost::Message;

mod common;
use common::agent::{Agent, Known, Manner, names};
use common::go::{Does, GoServer};
use common::raw::{Call, GOAWAY, Heard, RawHttp2, connect, frame, framed, request};
use common::service;

const V1: Manner = Manner { version: Some(Dialect::V1alpha1), no_context: true, no_import: false };
const AUTO: Manner = Manner { version: None, no_context: true, no_import: false };

/// An agent of mesh `name` that meets one peer in some manner.
async fn agent(
    name: &'static str,
    own: TestCa,
    peer: &TestCa,
    to: (&str, Option<SocketAddr>),
    manner: Manner,
) -> Agent {
    let known = Known { name: to.0, ca: peer, address: to.1 };
    Agent::mannered(name, own, MemoryStore::new(), &[known], manner).await
}

/// `bank` and `shop`, each dialling the other.
async fn two(bank: Manner, shop: Manner) -> (Agent, Agent) {
    let (bank_ca, shop_ca) = (TestCa::new("bank.example"), TestCa::new("shop.example"));
    let bank = agent("bank", bank_ca, &shop_ca, ("shop", None), bank).await;
    let shop = agent("shop", shop_ca, &bank.ca, ("bank", Some(bank.address)), shop).await;
    let told = LinkConfig { address: Some(shop.address.to_string()), ..(*bank.link().config()).clone() };
    bank.link().configure(told).await;
    (bank, shop)
}

/// An agent of mesh `shop` that dials `bank`, which is a server of the Go kind.
async fn dialling(
    does: impl Fn(Dialect) -> Does + Send + Sync + 'static,
    manner: Manner,
) -> (Agent, GoServer) {
    let bank_ca = TestCa::new("bank.example");
    let server = GoServer::start(bank_ca.agent(), does).await;
    let shop_ca = TestCa::new("shop.example");
    let shop = agent("shop", shop_ca, &bank_ca, ("bank", Some(server.address)), manner).await;
    shop.publish("bank", &names(&["cart"]));
    (shop, server)
}

async fn shown(agent: &Agent, what: &str, is: impl Fn(&LinkStatus) -> bool) -> LinkStatus {
    let last = || agent.link().status();
    eventually(what, GENEROUS, || is(&last())).await;
    last()
}

fn resource(name: &str) -> Option<Any> {
    let (_, value) = down(&service("bank", name)).unwrap();
    Some(Any { type_url: TYPE_URL.to_owned(), value })
}

fn create(name: &str) -> pb::StreamResponse {
    let resource_url = TYPE_URL.to_owned();
    pb::StreamResponse { nonce: String::new(), resource_url, resource: resource(name), operation: 1 }
}

fn register() -> pb::StreamRequest {
    pb::StreamRequest { resource_url: TYPE_URL.to_owned(), ..pb::StreamRequest::default() }
}

fn ack(nonce: &str) -> pb::StreamRequest {
    let status = Some(rpc::Status::default());
    pb::StreamRequest { response_nonce: nonce.to_owned(), status, ..register() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_told_to_speak_v1alpha1_import_from_each_other_on_two_streams() {
    let (bank, shop) = two(V1, V1).await;
    bank.publish("shop", &names(&["ledger", "rates"]));
    shop.publish("bank", &names(&["cart"]));
    let all = ["ledger.bank.example", "rates.bank.example"];
    eventually("shop has both", GENEROUS, || shop.imports() == all).await;
    eventually("bank has one", GENEROUS, || bank.imports() == ["cart.shop.example"]).await;
    bank.publish("shop", &names(&["rates"]));
    eventually("a withdrawal arrives", GENEROUS, || shop.imports() == ["rates.bank.example"]).await;
    for agent in [&bank, &shop] {
        let status = shown(agent, "up", |s| s.connection == Connection::Up && s.behind == 0).await;
        assert_eq!((status.version, status.class), (Some(Dialect::V1alpha1), PeerClass::Foreign));
        assert_eq!((status.violations, status.version_note, status.refused), (0, None, vec![]));
        assert!(status.dialled && status.owner.is_some() && status.consumer.is_some());
        assert_eq!(agent.failed_tasks(), Vec::<String>::new());
    }
    // A stream that is cut comes back, with the whole state.
    let cut = hamlet_protocol::session::StreamEnd::new(tonic::Code::Unavailable, "cut");
    shop.link().end_stream(cut);
    bank.publish("shop", &names(&["rates", "later"]));
    let all = ["later.bank.example", "rates.bank.example"];
    eventually("shop has the later one", GENEROUS, || shop.imports() == all).await;
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_finds_out_meets_one_that_is_told_and_keeps_what_worked() {
    let (bank, shop) = two(V1, AUTO).await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &names(&["cart"]));
    eventually("shop has it", GENEROUS, || shop.imports() == ["ledger.bank.example"]).await;
    eventually("bank has it", GENEROUS, || bank.imports() == ["cart.shop.example"]).await;
    assert_eq!(shop.link().pinned(), Some(Dialect::V1alpha1));
    assert_eq!(bank.link().pinned(), None, "nothing to find out");
    assert_eq!(shop.link().status().version, Some(Dialect::V1alpha1));

    // Told otherwise, both change to the version that carries proofs.
    bank.link().configure(LinkConfig { version: None, ..(*bank.link().config()).clone() }).await;
    let status = shown(&shop, "v1alpha2", |s| s.version == Some(Dialect::V1alpha2)).await;
    assert!(matches!(status.class, PeerClass::Hello(_) | PeerClass::Unknown), "{:?}", status.class);
    eventually("both are proven", GENEROUS, || bank.link().is_proven() && shop.link().is_proven()).await;
    // What was known by its id is swept, and its name goes to what is known by its name now.
    eventually("the service is back", GENEROUS, || shop.imports() == ["ledger.bank.example"]).await;
    eventually("under its other key", GENEROUS, || shop.link().status().counts.heard == 1).await;
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_that_find_out_meet_in_v1alpha2_and_pay_nothing_for_v1alpha1() {
    let (bank, shop) = two(AUTO, AUTO).await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &[]);
    eventually("both are proven", GENEROUS, || bank.link().is_proven() && shop.link().is_proven()).await;
    assert_eq!(shop.link().pinned(), Some(Dialect::V1alpha2));
    assert_eq!(bank.publications.view_count(), 1, "no view of v1alpha1");
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_unimplemented_makes_an_agent_speak_the_older_version() {
    let cases = [
        ("UNAVAILABLE", Does::Status(14, "later"), "later"),
        ("UNAUTHENTICATED", Does::Status(16, "not federated"), "not federated"),
        ("PERMISSION_DENIED", Does::Status(7, "not you"), "not you"),
        ("INTERNAL", Does::Status(13, "oops"), "oops"),
        ("UNKNOWN", Does::Status(2, "odd"), "odd"),
        ("INVALID_ARGUMENT", Does::Status(3, "not so"), "not so"),
        ("an end with OK and no message", Does::Status(0, ""), "context"),
        ("HTTP 503", Does::Http(503), "503"),
        ("HTTP 403", Does::Http(403), "403"),
    ];
    for (what, does, words) in cases {
        let (shop, server) = dialling(move |_| does.clone(), AUTO).await;
        let status = shown(&shop, what, |s| s.last_error.as_ref().is_some_and(|e| e.contains(words))).await;
        assert!(status.connection != Connection::Up, "{what}");
        assert_ne!(shop.link().pinned(), Some(Dialect::V1alpha1), "{what}");
        let asked = server.asked();
        assert!(!asked.is_empty() && asked.iter().all(|v| *v == Dialect::V1alpha2), "{what}: {asked:?}");
        shop.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_the_go_kind_is_found_out_pinned_and_imported_from() {
    let only_v1 = |version| match version {
        Dialect::V1alpha1 => Does::Go,
        Dialect::V1alpha2 => Does::Status(12, "unknown service"),
    };
    let (shop, server) = dialling(only_v1, AUTO).await;
    // Its catalogue is empty: no message, and so no headers. That is no hang.
    eventually("it is asked in v1alpha1", GENEROUS, || server.asked().len() == 2).await;
    assert_eq!(server.asked(), [Dialect::V1alpha2, Dialect::V1alpha1]);
    shown(&shop, "up without headers", |s| {
        s.connection == Connection::Up && s.version == Some(Dialect::V1alpha1)
    })
    .await;
    eventually("it has our registration", GENEROUS, || server.heard::<pb::StreamRequest>() == [register()])
        .await;
    server.say(&create("ledger"));
    eventually("imported", GENEROUS, || shop.imports() == ["ledger.bank.example"]).await;
    eventually("acknowledged with its empty nonce", GENEROUS, || {
        server.heard::<pb::StreamRequest>() == [register(), ack("")]
    })
    .await;
    assert_eq!(shop.link().pinned(), Some(Dialect::V1alpha1));
    server.say(&pb::StreamResponse { operation: 3, ..create("ledger") });
    eventually("withdrawn", GENEROUS, || shop.imports().is_empty()).await;
    // When the stream is lost, what worked is asked for first.
    server.end(None);
    eventually("dialled again", GENEROUS, || server.asked().len() == 3).await;
    assert_eq!(server.asked()[2], Dialect::V1alpha1);
    server.say(&create("rates"));
    eventually("imported again", GENEROUS, || shop.imports() == ["rates.bank.example"]).await;
    assert_eq!(shop.failed_tasks(), Vec::<String>::new());
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_server_that_is_replaced_by_one_of_the_other_version_is_found_out_anew() {
    let upgraded = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let now = upgraded.clone();
    let does = move |version| match (version, now.load(std::sync::atomic::Ordering::SeqCst)) {
        (Dialect::V1alpha1, false) | (Dialect::V1alpha2, true) => Does::Go,
        _ => Does::Status(12, "unknown service"),
    };
    let (shop, server) = dialling(does, AUTO).await;
    eventually("it is asked in v1alpha1", GENEROUS, || server.asked().len() == 2).await;
    server.say(&create("ledger"));
    eventually("pinned", GENEROUS, || shop.link().pinned() == Some(Dialect::V1alpha1)).await;
    upgraded.store(true, std::sync::atomic::Ordering::SeqCst);
    server.end(None);
    eventually("asked for both again", GENEROUS, || server.asked().len() >= 4).await;
    assert_eq!(server.asked()[2..4], [Dialect::V1alpha1, Dialect::V1alpha2]);
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overflowing_server_is_dialled_again_only_after_minutes_and_says_why() {
    let does = |version| match version {
        Dialect::V1alpha1 => Does::Status(2, "Discarding object due to overflow"),
        Dialect::V1alpha2 => Does::Status(12, "unknown service"),
    };
    let (shop, server) = dialling(does, AUTO).await;
    let status = shown(&shop, "waits for minutes", |s| match s.connection {
        Connection::Down { next_attempt: Some(at) } => at.saturating_sub(s.now) > Duration::from_secs(60),
        _ => false,
    })
    .await;
    assert!(status.last_error.unwrap().contains("4096 messages"));
    assert_eq!(server.asked().len(), 2, "one attempt, in both versions");
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_context_value_nor_required_extensions_are_lost_by_speaking_the_older_version() {
    let does = |version| match version {
        Dialect::V1alpha1 => Does::Go,
        Dialect::V1alpha2 => Does::Status(12, "unknown service"),
    };
    let (shop, server) = dialling(does, Manner::default()).await;
    shown(&shop, "the context value", |s| {
        s.last_error.as_ref().is_some_and(|e| e.contains("context value") && e.contains("unknown service"))
    })
    .await;
    let config = (*shop.link().config()).clone();
    let required = LinkConfig { context: Default::default(), extensions_required: true, ..config };
    shop.link().configure(required).await;
    shown(&shop, "the extensions", |s| {
        s.last_error.as_ref().is_some_and(|e| e.contains("extensions: required"))
    })
    .await;
    assert!(server.asked().iter().all(|v| *v == Dialect::V1alpha2), "{:?}", server.asked());
    // The same for a peer that dials us.
    let mut sender = connect(shop.address, &server.leaf).await.unwrap();
    let (call, _writer) = request("POST", v1alpha1::PATH, "application/grpc");
    let end = open(&mut sender, call, _writer).await.err().expect("refused");
    assert!(matches!(&end, Heard::Status(9, text) if text.contains("extensions")), "{end:?}");
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_imports_nothing_never_dials_in_v1alpha1_and_serves_who_dials() {
    let (bank_ca, shop_ca) = (TestCa::new("bank.example"), TestCa::new("shop.example"));
    // An address that nobody listens on: a dial would be seen as an error.
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let no_import = Manner { no_import: true, ..V1 };
    let bank = agent("bank", bank_ca, &shop_ca, ("shop", Some(nowhere)), no_import).await;
    bank.publish("shop", &names(&["ledger"]));
    let waiting = bank.link().status();
    assert_eq!((waiting.connection, waiting.last_error), (Connection::Waiting, None));
    assert!(waiting.version_note.unwrap().contains("has to dial us"));
    let shop = agent("shop", shop_ca, &bank.ca, ("bank", Some(bank.address)), V1).await;
    shop.publish("bank", &[]);
    eventually("served", GENEROUS, || shop.imports() == ["ledger.bank.example"]).await;
    let status = shown(&bank, "up", |s| s.connection == Connection::Up && s.behind == 0).await;
    assert_eq!((status.version_note, status.offered, status.attempts), (None, 1, 0));
    assert!(!status.dialled);
    shop.stop().await;
    shown(&bank, "no more", |s| matches!(s.connection, Connection::Down { next_attempt: None })).await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_v1alpha1_cannot_say_is_shown_and_the_rest_is_offered() {
    let (bank, shop) = two(V1, V1).await;
    let mut both = bank.local("both");
    let mut second = both.instances[0].clone();
    second.id = DnsLabel::parse("grpc").unwrap();
    second.sni = both.fqdn.child(&second.id).unwrap();
    both.instances.push(second);
    bank.publish_services(&["shop"], vec![both.clone(), bank.local("ledger")]);
    shop.publish("bank", &[]);
    eventually("what can be said arrives", GENEROUS, || shop.imports() == ["ledger.bank.example"]).await;
    let status = bank.link().status();
    assert_eq!((status.offered, status.unsaid.len()), (1, 1));
    let (name, why) = &status.unsaid[0];
    assert!(name == "both" && why.contains("different SNIs"), "{name}: {why}");
    // Mended, it is offered like any other.
    both.instances.pop();
    bank.publish_services(&["shop"], vec![both, bank.local("ledger")]);
    let all = ["both.bank.example", "ledger.bank.example"];
    eventually("and then both", GENEROUS, || shop.imports() == all).await;
    assert_eq!(bank.link().status().unsaid, []);
    shop.stop().await;
    bank.stop().await;
}

/// Opens a call and fails with how it ended, if it did at once.
async fn open(
    sender: &mut hyper::client::conn::http2::SendRequest<common::raw::Body>,
    call: http::Request<common::raw::Body>,
    writer: common::raw::Writer,
) -> Result<Call, Heard> {
    let mut call = Call::with(sender, call, writer).await?;
    match call.ended_at_once() {
        true => Err(call.hear_bytes().await.expect_err("no message")),
        false => Ok(call),
    }
}

/// `bank`, which publishes, and the certificate of its peer `shop`, which is us.
async fn served(publish: &[&str]) -> (Agent, hamlet_testkit::pki::TestLeaf) {
    let shop_ca = TestCa::new("shop.example");
    let bank = agent("bank", TestCa::new("bank.example"), &shop_ca, ("shop", None), AUTO).await;
    bank.publish("shop", &names(publish));
    (bank, shop_ca.agent())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_the_go_kind_gets_headers_at_once_and_then_change_after_change() {
    let (bank, leaf) = served(&[]).await;
    let mut sender = connect(bank.address, &leaf).await.unwrap();
    let (call, writer) = request("POST", v1alpha1::PATH, "application/grpc");
    // It returns when the headers come; there is nothing to offer yet.
    let mut call = open(&mut sender, call, writer).await.unwrap_or_else(|heard| panic!("{heard:?}"));
    call.writer.bytes(&register().encode_to_vec());
    bank.publish("shop", &names(&["ledger"]));
    let hear = async |call: &mut Call| {
        let bytes = call.hear_bytes().await.unwrap_or_else(|heard| panic!("{heard:?}"));
        let response = pb::StreamResponse::decode(bytes).unwrap();
        let value = &response.resource.as_ref().expect("the whole resource").value;
        assert_eq!(*value, resource_of("bank", "ledger"), "deletions too");
        (response.operation, response.nonce)
    };
    assert_eq!(hear(&mut call).await, (1, "1".to_owned()));
    call.writer.bytes(&ack("1").encode_to_vec());
    bank.publish("shop", &[]);
    assert_eq!(hear(&mut call).await, (3, "2".to_owned()));
    call.writer.bytes(&ack("2").encode_to_vec());
    bank.publish("shop", &names(&["ledger"]));
    assert_eq!(hear(&mut call).await, (1, "3".to_owned()));
    let status = shown(&bank, "one in flight", |s| s.in_flight == 1).await;
    assert_eq!((status.version, status.violations), (Some(Dialect::V1alpha1), 0));
    // It leaves by cancelling.
    drop((call, sender));
    shown(&bank, "gone", |s| matches!(s.connection, Connection::Down { .. })).await;
    assert_eq!(bank.failed_tasks(), Vec::<String>::new());
    bank.stop().await;
}

fn resource_of(mesh: &str, name: &str) -> bytes::Bytes {
    down(&service(mesh, name)).unwrap().1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_are_served_on_one_port_and_other_methods_are_told_of_them() {
    let (bank, leaf) = served(&["ledger"]).await;
    let mut sender = connect(bank.address, &leaf).await.unwrap();
    let unknown = "/federation.resourcediscovery.v1beta1.DiscoveryService/EstablishStream";
    let (call, writer) = request("POST", unknown, "application/grpc");
    match open(&mut sender, call, writer).await.err() {
        Some(Heard::Status(12, text)) => {
            assert!(text.contains("v1alpha1") && text.contains("v1alpha2"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let (call, writer) = request("POST", v1alpha1::PATH, "application/grpc");
    let mut first = open(&mut sender, call, writer).await.unwrap_or_else(|heard| panic!("{heard:?}"));
    first.writer.bytes(&register().encode_to_vec());
    let bytes = first.hear_bytes().await.unwrap();
    assert_eq!(pb::StreamResponse::decode(bytes).unwrap().operation, 1);
    // The same connection, in the other version.
    let (call, writer) = request("POST", v1alpha2::PATH, "application/grpc");
    let mut second = open(&mut sender, call, writer).await.unwrap_or_else(|heard| panic!("{heard:?}"));
    let mut subscription = common::raw::subscription();
    subscription.request.as_mut().unwrap().context.clear();
    second.writer.say(subscription);
    let offer = second.offer().await;
    assert_eq!((offer.resource_id.as_str(), offer.operation), ("ledger", 1));
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_resource_type_is_refused_with_the_one_that_is_served() {
    let (bank, leaf) = served(&["ledger"]).await;
    for url in ["", "type.googleapis.com/federation.types.v1alpha2.FederatedService"] {
        let mut sender = connect(bank.address, &leaf).await.unwrap();
        let (call, writer) = request("POST", v1alpha1::PATH, "application/grpc");
        let mut call = open(&mut sender, call, writer).await.unwrap_or_else(|heard| panic!("{heard:?}"));
        let ask =
            pb::StreamRequest { resource_url: url.to_owned(), response_nonce: String::new(), status: None };
        call.writer.bytes(&ask.encode_to_vec());
        match call.hear_bytes().await {
            Err(Heard::Status(3, text)) => assert!(text.contains(TYPE_URL), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    bank.stop().await;
}

/// The Go client pings every 20 s, with and without a stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_without_a_stream_are_answered_and_never_held_against_the_client() {
    const PING: u8 = 6;
    let (bank, leaf) = served(&[]).await;
    let mut raw = RawHttp2::connect(bank.address, &leaf, 65_535).await.unwrap();
    // Four idle minutes' worth.
    for i in 0..12u64 {
        raw.write(&frame(PING, 0, 0, &i.to_be_bytes())).await.unwrap();
        let (kind, _, _, payload) = raw
            .until(|(kind, flags, ..)| *kind == GOAWAY || (*kind == PING && flags & 1 == 1))
            .await
            .unwrap();
        assert_eq!((kind, payload), (PING, i.to_be_bytes().to_vec()));
    }
    bank.stop().await;
}

/// Its messages are at most 4 MiB; so are ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_over_the_hard_limit_is_not_asked_for_again_for_minutes() {
    let does = |version| match version {
        Dialect::V1alpha1 => Does::Go,
        Dialect::V1alpha2 => Does::Status(12, "unknown service"),
    };
    let (shop, server) = dialling(does, AUTO).await;
    eventually("it is asked in v1alpha1", GENEROUS, || server.asked().len() == 2).await;
    server.raw(framed(&vec![0; (4 << 20) + 1]));
    let status = shown(&shop, "waits for minutes", |s| match s.connection {
        Connection::Refused { next_attempt: Some(at) } => at.saturating_sub(s.now) > Duration::from_secs(60),
        _ => false,
    })
    .await;
    assert!(status.last_error.unwrap().contains("too large"));
    shop.stop().await;
}
