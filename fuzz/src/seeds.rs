//! The corpus: inputs that reach deep from the start, made of valid messages. Small on purpose; a
//! long run grows its own beside it.
//!
//! Keys and certificates aren't among them: they are made anew in each process.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use bytes::{BufMut, Bytes};
use hamlet_core::durable::{HeardRecord, ImportRecord, Verdict};
use hamlet_core::{
    DnsLabel, Endpoint, EndpointAddress, FederatedService, Fqdn, Instance, Protocol, ServiceName, SpiffeId,
};
use hamlet_protocol::dialect::service::{TYPE_URL, encode};
use hamlet_protocol::dialect::translate::{TYPE_URL as V1_URL, down};
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha1 as v1;
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha2 as pb;
use hamlet_protocol::wire::google::{protobuf::Any, rpc};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use prost::Message;

/// A service that the rules of the targets let in, if `mesh` is `bank`.
fn service(mesh: &str, name: &str) -> FederatedService {
    let must = "a constant of this file";
    FederatedService {
        name: ServiceName::parse(name).expect(must),
        fqdn: Fqdn::parse(&format!("{name}.{mesh}.example")).expect(must),
        description: "what it is for".to_owned(),
        tags: vec!["blue".to_owned()],
        labels: BTreeMap::from([("team".to_owned(), "payments".to_owned())]),
        endpoints: vec![Endpoint {
            address: EndpointAddress::parse("9.9.9.9").expect(must),
            port: NonZeroU16::new(7444).expect(must),
            labels: vec!["a".to_owned()],
            description: String::new(),
        }],
        sans: vec![SpiffeId::parse(&format!("spiffe://{mesh}.example/gateway")).expect(must)],
        instances: vec![Instance {
            id: DnsLabel::parse("http").expect(must),
            protocol: Protocol::Http,
            sni: Some(Fqdn::parse(&format!("http.{name}.{mesh}.example")).expect(must)),
            hostname: None,
            port: NonZeroU16::new(80),
            metadata: BTreeMap::from([("zone".to_owned(), "1".to_owned())]),
            endpoint_selector: vec!["a".to_owned()],
            description: String::new(),
        }],
    }
}

/// The same as it is offered.
pub(crate) fn offered(mesh: &str, name: &str) -> Bytes {
    encode(&service(mesh, name))
}

/// The same as it is offered in v1alpha1.
pub(crate) fn offered_v1(mesh: &str, name: &str) -> Bytes {
    let mut service = service(mesh, name);
    service.instances[0].endpoint_selector.clear();
    down(&service).expect("v1alpha1 can say it").1
}

fn controls() -> Vec<ext::Control> {
    use ext::control::Kind;
    let root = || Bytes::from(vec![7; 32]);
    let hashes = Bytes::from(vec![0; 256]);
    let held =
        ext::Held { round: 1, digest_version: 1, root: root(), count: 300, hashes, ..ext::Held::default() };
    let scope = Bytes::from_static(&[0, 0, 1, 0]);
    let mode = ext::begin::Mode::WantBuckets as i32;
    let kinds = [
        Kind::Hello(ext::Hello {
            version: 1,
            agent: "hamlet".into(),
            held: Some(held.clone()),
            ..ext::Hello::default()
        }),
        Kind::Held(ext::Held { full: true, ..held }),
        Kind::Begin(ext::Begin { round: 1, mode: ext::begin::Mode::All as i32, ..ext::Begin::default() }),
        Kind::Bookmark(ext::Bookmark {
            seq: 1,
            round: 1,
            root: root(),
            count: 1,
            ..ext::Bookmark::default()
        }),
        Kind::Proof(ext::Proof { seq: 1, verdict: 1, ..ext::Proof::default() }),
        Kind::Begin(ext::Begin { round: 1, mode, level: 1, scope }),
        Kind::Buckets(ext::Buckets {
            round: 1,
            level: 2,
            first: 0,
            hashes: Bytes::from(vec![7; 256]),
            last: true,
        }),
        Kind::Goodbye(ext::Goodbye { reason: 1, retry_after_ms: 5_000 }),
        Kind::Bundle(bundle()),
        Kind::BundleAck(ext::BundleAck {
            trust_domain: "bank.example".into(),
            sequence: 7,
            error: Some(rpc::ErrorInfo { reason: "BUNDLE_STALE".into(), ..rpc::ErrorInfo::default() }),
        }),
    ];
    kinds.map(|kind| ext::Control { kind: Some(kind) }).into()
}

fn bundle() -> ext::Bundle {
    let (trust_domain, jwks) = ("bank.example".to_owned(), Bytes::from_static(br#"{"keys":[]}"#));
    ext::Bundle { trust_domain, sequence: 7, jwks, previous_sha256: Bytes::new() }
}

fn messages() -> Vec<Vec<u8>> {
    let asks = |request| pb::BidirectionalStream { request: Some(request), response: None }.encode_to_vec();
    let mut all = vec![];
    for control in [None].into_iter().chain(controls().into_iter().map(Some)) {
        let resource_url = TYPE_URL.to_owned();
        all.push(asks(pb::StreamRequest { resource_url, control, ..pb::StreamRequest::default() }));
    }
    let refused = rpc::Status { code: 7, message: "no".into(), ..rpc::Status::default() };
    for status in [rpc::Status::default(), refused] {
        let (response_nonce, status) = ("1".to_owned(), Some(status));
        all.push(asks(pb::StreamRequest { response_nonce, status, ..pb::StreamRequest::default() }));
    }
    for (operation, value) in [(1, Some(offered("bank", "s1"))), (1, Some(offered("evil", "s2"))), (2, None)]
    {
        let response = pb::StreamResponse {
            nonce: "1".into(),
            resource_url: TYPE_URL.into(),
            resource_id: "s1".into(),
            resource: value.map(|value| Any { type_url: TYPE_URL.into(), value }),
            operation,
            ..pb::StreamResponse::default()
        };
        all.push(pb::BidirectionalStream { request: None, response: Some(response) }.encode_to_vec());
    }
    all
}

/// What each end of v1alpha1 hears: the owner first.
fn messages_v1() -> [Vec<Vec<u8>>; 2] {
    let resource_url = || V1_URL.to_owned();
    let register = v1::StreamRequest { resource_url: resource_url(), ..v1::StreamRequest::default() };
    let refused = rpc::Status { code: 7, message: "no".into(), ..rpc::Status::default() };
    let answer = |nonce: &str, status| v1::StreamRequest {
        response_nonce: nonce.to_owned(),
        status: Some(status),
        ..register.clone()
    };
    let requests = [&register, &answer("1", rpc::Status::default()), &answer("", refused)];
    let change = |nonce: &str, operation: i32, mesh: &str, name: &str| {
        let resource = Some(Any { type_url: resource_url(), value: offered_v1(mesh, name) });
        v1::StreamResponse { nonce: nonce.to_owned(), resource_url: resource_url(), resource, operation }
    };
    let changes = [
        change("1", 1, "bank", "s1"),
        change("", 2, "bank", "s1"),
        change("2", 1, "evil", "s2"),
        change("", 3, "bank", "s1"),
    ];
    [requests.map(Message::encode_to_vec).into(), changes.map(|c| c.encode_to_vec()).into()]
}

/// A stream from its hello to its goodbye, as [`crate::targets::exchange`] reads it.
fn exchange(first: u8, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![first];
    for message in messages.iter().chain(&messages[1..]) {
        out.put_u16(message.len() as u16 | 0x8000);
        out.extend(message);
    }
    out
}

fn http2() -> Vec<u8> {
    let mut out = vec![0, 3, 8, 200, 30];
    let frame = |kind: u8, payload: &[u8]| {
        let mut bytes = vec![];
        bytes.put_uint(payload.len() as u64, 3);
        bytes.extend([kind, 0, 0, 0, 0, 1]);
        bytes.extend(payload);
        bytes
    };
    let mut theirs = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for kind in [4, 1, 6, 8, 0, 3, 2, 9, 200] {
        theirs.extend(frame(kind, &[0; 4]));
    }
    let mut ours: Vec<u8> = [4, 1, 0, 0, 3].iter().flat_map(|kind| frame(*kind, &[1; 20])).collect();
    ours.resize(theirs.len(), 0);
    out.extend(theirs);
    out.extend(ours);
    out
}

fn client_hello(name: &str) -> Vec<u8> {
    let config =
        rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = rustls::ClientConnection::new(config.into(), name).expect("a client");
    let mut bytes = vec![];
    client.write_tls(&mut bytes).expect("a buffer takes all");
    bytes
}

fn question(name: &str, kind: u16, edns: bool) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.put_u16(kind);
    bytes.put_u16(1);
    if edns {
        bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    }
    bytes
}

fn records() -> Vec<u8> {
    let value = offered("bank", "s1");
    let leaf = hamlet_core::digest::leaf(TYPE_URL, "s1", &value);
    let heard = HeardRecord { value: value.clone(), leaf, verdict: Verdict::Admitted, refused_ms: 0 };
    let record = |heard, in_force, withheld_ms| ImportRecord { heard, in_force, withheld_ms };
    let all = BTreeMap::from([
        ("s1".to_owned(), record(Some(heard), None, None)),
        ("s2".to_owned(), record(None, Some(value), Some(1_000))),
    ]);
    postcard::to_stdvec(&all).expect("records can be written")
}

const CONFIG: &str = "\
apiVersion: hamlet.dev/v1
kind: Mesh
metadata: {name: acme}
spec:
  trustDomain: acme.example
  identity:
    agent: {cert: agent.pem, key: agent.key}
    gateway: {cert: gateway.pem, key: gateway.key}
  advertise:
    ingress: [\"203.0.113.10:7444\"]
  limits: {peers: 4, messageBytes: 64KiB, controlFrames: 256}
---
apiVersion: hamlet.dev/v1
kind: Peer
metadata: {name: globex}
spec:
  address: agent.globex.example:7443
  trustDomain: globex.example
  trust: {bundle: globex.pem}
---
apiVersion: hamlet.dev/v1
kind: Import
metadata: {name: globex}
spec:
  peer: globex
  suffixes: [globex.example]
---
apiVersion: hamlet.dev/v1
kind: Service
metadata: {name: ledger, labels: {team: payments}}
spec:
  fqdn: ledger.acme.example
  instances:
  - {id: http, protocol: http, port: 80, backends: [\"127.0.0.1:8080\"]}
---
apiVersion: hamlet.dev/v1
kind: Publication
metadata: {name: all}
spec:
  services: {all: true}
  peers: [globex]
";

/// Every seed: target, name, bytes.
pub fn all() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut out: Vec<(&'static str, String, Vec<u8>)> = vec![];
    let mut add = |target, name: &str, bytes: Vec<u8>| out.push((target, name.to_owned(), bytes));
    for (i, message) in messages().into_iter().enumerate() {
        add("message", &format!("message-{i}"), message);
    }
    for (i, control) in controls().into_iter().enumerate() {
        add("control", &format!("control-{i}"), control.encode_to_vec());
    }
    add("service", "let-in", offered("bank", "ledger").to_vec());
    add("service", "foreign", offered("evil", "ledger").to_vec());
    for first in 0..4 {
        add("exchange", &format!("whole-{first}"), exchange(first | 0xf0, &messages()));
    }
    for (end, messages) in messages_v1().into_iter().enumerate() {
        let end = end as u8;
        add("exchange", &format!("v1-whole-{end}"), exchange(end | 0xf4, &messages));
        for (i, message) in messages.into_iter().enumerate() {
            add("message_v1", &format!("message-{end}-{i}"), [&[end], &message[..]].concat());
        }
    }
    add("service_v1", "let-in", offered_v1("bank", "ledger").to_vec());
    add("service_v1", "foreign", offered_v1("evil", "ledger").to_vec());
    let many = |n: u32| (0..600u32).map(|i| (i.wrapping_mul(n) >> 3) as u8).collect();
    for target in ["session", "session_v1"] {
        add(target, "zeros", vec![0; 200]);
        add(target, "counting", (0..=255).collect());
        add(target, "mixed", many(2_654_435_761));
        add(target, "mixed-more", many(40_503));
    }
    for (name, bytes) in crate::store::seeds() {
        add("journal", name, bytes);
    }
    add("frames", "one-of-each", http2());
    for (i, name) in ["ledger.acme.example", "a.b_c.example.", "xn--bcher-kva.example", "LEDGER.Acme.Example"]
        .iter()
        .enumerate()
    {
        add("names", &format!("name-{i}"), format!("{name}\nacme.example").into_bytes());
    }
    for (i, id) in
        ["spiffe://acme.example/gateway", "spiffe://a_b-c.9/x/y.z", "acme.example"].iter().enumerate()
    {
        add("spiffe", &format!("id-{i}"), id.as_bytes().to_vec());
    }
    let addresses =
        ["9.9.9.9", "127.0.0.1", "2600::1", "::ffff:127.0.0.1", "0x7f.1", "203.0.113.0/24", "8000-8999"];
    for (i, address) in addresses.iter().enumerate() {
        add("addresses", &format!("address-{i}"), address.as_bytes().to_vec());
    }
    add("digests", "mixed", many(69_069));
    add("config", "mesh", CONFIG.as_bytes().to_vec());
    add("config", "anchors", b"a: &x [1, {b: *x}]\n--- !!str |\n  text\n...\n".to_vec());
    add("hello", "name", client_hello("ledger.acme.example"));
    add("hello", "address", client_hello("192.0.2.1"));
    for (i, (name, kind, edns)) in
        [("ledger.acme.example", 1, false), ("many.acme.example", 33, true), ("acme.example", 6, true)]
            .into_iter()
            .enumerate()
    {
        add("dns", &format!("question-{i}"), question(name, kind, edns));
    }
    add("chain", "unedited", vec![]);
    add("chain", "edited", vec![0, 0, 40, 7, 3, 1, 0, 3]);
    add("chain", "bytes", [&[255][..], &[0x30, 0x82, 1, 0, 0x30, 0x81, 0xc0]].concat());
    add("trust", "good", vec![]);
    add("trust", "intermediates", [&[0; 12][..], &[7, 2, 8, 8, 8, 8]].concat());
    add("trust", "crossed", vec![1, 0, 0, 0]);
    add(
        "bundle",
        "text-before",
        b"# a comment\n-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n".to_vec(),
    );
    add("bundle", "good", vec![1]);
    let set = &include_bytes!("../../crates/hamlet-identity/tests/golden/spiffe/x509-and-jwt.json")[..];
    add("jwks", "set", set.to_vec());
    add("jwks", "revoked", br#"{"keys":[],"spiffe_sequence":7}"#.to_vec());
    let tokens = br#"{"keys":[{"use":"jwt-svid","kty":"EC"}],"spiffe_sequence":7}"#;
    add("jwks", "no-key-for-certificates", tokens.to_vec());
    add("jwks", "map", br#"{"trust_domains":{"acme.example":{"keys":[]}}}"#.to_vec());
    for (name, bytes) in crate::peering::exchange_seeds() {
        add("peering", &name, bytes);
    }
    for (name, bytes) in crate::peering::text_seeds() {
        add("peering_texts", &name, bytes);
    }
    add("records", "two", records());
    add("text", "cursor", b"\x40a\nb\x1b[31mc\xe2\x80\xaed".to_vec());
    out
}
