//! Our wire bytes against Python's protobuf: what we write is byte for byte what it writes, and
//! what it writes we read as what it meant. The `.hex` files come from `golden/make_golden.py`.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::Bytes;
use hamlet_core::service::limits::MESSAGE_BYTES;
use hamlet_core::view::{Change, Offer};
use hamlet_core::{
    DnsLabel, Endpoint, EndpointAddress, FederatedService, Fqdn, Instance, Protocol, Rejection,
    RejectionCode, ServiceName, SpiffeId,
};
use hamlet_protocol::dialect::service::{TYPE_URL, decode, encode};
use hamlet_protocol::dialect::v1alpha2::{V2Codec, read};
use hamlet_protocol::dialect::{IncomingOffer, IncomingRequest, Operation, Outgoing, Secret};
use hamlet_protocol::wire::google::rpc::ErrorInfo;
use hamlet_protocol::wire::hamlet::federation::v1 as ext;

const CONTEXT: &str = "a b";

fn golden(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

macro_rules! golden {
    ($name:literal) => {
        golden(include_str!(concat!("golden/", $name, ".hex")))
    };
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|t| (*t).to_owned()).collect()
}

fn service() -> FederatedService {
    let label = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let endpoint = |address: &str, port: u16, labels: &[&str], description: &str| Endpoint {
        address: EndpointAddress::parse(address).unwrap(),
        port: NonZeroU16::new(port).unwrap(),
        labels: texts(labels),
        description: description.to_owned(),
    };
    FederatedService {
        name: ServiceName::parse("ledger").unwrap(),
        fqdn: Fqdn::parse("ledger.bank.example").unwrap(),
        description: "Bücher".to_owned(),
        tags: texts(&["prod", "b"]),
        labels: [label("zone", "b"), label("app", "x"), label("Team", "ä")].into(),
        endpoints: vec![
            endpoint("192.0.2.7", 7444, &["east"], "one"),
            endpoint("2001:db8::7", 65535, &[], ""),
        ],
        sans: ["gateway", "gateway2"]
            .map(|g| SpiffeId::parse(&format!("spiffe://bank.example/{g}")).unwrap())
            .into(),
        instances: vec![
            Instance {
                id: DnsLabel::parse("http").unwrap(),
                protocol: Protocol::Http2,
                sni: Some(Fqdn::parse("http.ledger.bank.example").unwrap()),
                hostname: Some("ledger.bank.example".to_owned()),
                port: NonZeroU16::new(80),
                metadata: [label("x-other", "kept")].into(),
                endpoint_selector: texts(&["east", "west"]),
                description: "web".to_owned(),
            },
            Instance {
                id: DnsLabel::parse("tls").unwrap(),
                protocol: Protocol::Tls,
                sni: None,
                hostname: None,
                port: None,
                metadata: BTreeMap::new(),
                endpoint_selector: vec![],
                description: String::new(),
            },
        ],
    }
}

fn written(context: &str, message: &Outgoing) -> Vec<u8> {
    let codec =
        V2Codec { resource_url: TYPE_URL, context: Secret::new(context), message_bytes: MESSAGE_BYTES };
    let mut bytes = vec![];
    codec.write(message, &mut bytes);
    bytes
}

fn offer(deleted: bool) -> Outgoing {
    let offer = Arc::new(Offer::new(TYPE_URL, "ledger", encode(&service())));
    let change = Change { version: 9, offer, deleted, fresh: true };
    Outgoing::Offer { nonce: 42, change, versioned: false }
}

fn control(kind: ext::control::Kind) -> ext::Control {
    ext::Control { kind: Some(kind) }
}

fn hello() -> ext::Control {
    let held = ext::Held {
        round: 1,
        digest_version: 1,
        type_url: TYPE_URL.to_owned(),
        root: (0..32).collect::<Vec<u8>>().into(),
        count: 2,
        ..ext::Held::default()
    };
    control(ext::control::Kind::Hello(ext::Hello {
        version: 1,
        agent: "hamlet/1".to_owned(),
        window_messages: 1,
        max_message_bytes: 65_536,
        answer_ms: 30_000,
        instance: 0x0123_4567_89ab_cdef,
        log_id: (0..16).collect::<Vec<u8>>().into(),
        revision: 300,
        held: Some(held),
        ..ext::Hello::default()
    }))
}

fn controls() -> [(Vec<u8>, ext::Control); 7] {
    let bookmark = ext::Bookmark {
        seq: 3,
        round: 1,
        version: 300,
        root: vec![0; 32].into(),
        count: 2,
        log_id: vec![0; 16].into(),
        revision: 300,
    };
    let verdict = ext::proof::Verdict::Different as i32;
    let proof = ext::Proof { seq: 3, verdict, root: vec![0; 32].into(), refused: 1, withheld: 200 };
    let begin = ext::Begin { round: 1, mode: ext::begin::Mode::All as i32, ..ext::Begin::default() };
    let reason = ext::goodbye::Reason::Restarting as i32;
    let goodbye = ext::Goodbye { reason, retry_after_ms: 1_500 };
    let bundle = ext::Bundle {
        trust_domain: "acme.example".to_owned(),
        sequence: 300,
        jwks: Bytes::from_static(b"{\"keys\": [], \"spiffe_sequence\": 300}"),
        previous_sha256: (0..32).collect::<Vec<u8>>().into(),
    };
    let in_force = ext::BundleAck { trust_domain: "globex.example".to_owned(), sequence: 7, error: None };
    let why = ErrorInfo {
        reason: "BUNDLE_WAITING".to_owned(),
        domain: "hamlet.dev".to_owned(),
        metadata: [("message".to_owned(), "taken; what it adds is used in 300 s".to_owned())].into(),
    };
    let waiting = ext::BundleAck { error: Some(why), ..in_force.clone() };
    [
        (golden!("begin"), control(ext::control::Kind::Begin(begin))),
        (golden!("bookmark"), control(ext::control::Kind::Bookmark(bookmark))),
        (golden!("proof"), control(ext::control::Kind::Proof(proof))),
        (golden!("goodbye"), control(ext::control::Kind::Goodbye(goodbye))),
        (golden!("bundle"), control(ext::control::Kind::Bundle(bundle))),
        (golden!("bundle_ack"), control(ext::control::Kind::BundleAck(in_force))),
        (golden!("bundle_waiting"), control(ext::control::Kind::BundleAck(waiting))),
    ]
}

fn refusal() -> Rejection {
    Rejection::new(RejectionCode::Policy, "name-outside-suffixes", "fqdn", "rename it")
}

#[test]
fn a_service_is_written_and_read_as_python_writes_it() {
    assert_eq!(encode(&service()), golden!("service"));
    assert_eq!(decode("ledger", &golden!("service")).unwrap(), service());
}

/// The one difference, which proto3 leaves to the writer: Python writes the empty value of a map
/// entry, we leave it out. Both mean the same; digests are over the bytes as they came.
#[test]
fn an_empty_label_value_is_left_out_by_us_and_read_in_either_form() {
    use hamlet_protocol::wire::federation::types::v1alpha2::FederatedService;
    use prost::Message;
    let labels = [("app".to_owned(), String::new())].into();
    let message = FederatedService { name: "ledger".to_owned(), labels, ..FederatedService::default() };
    let (theirs, ours) = (golden!("empty_label"), message.encode_to_vec());
    assert_eq!(theirs.len(), ours.len() + 2);
    assert_eq!(FederatedService::decode(&theirs[..]).unwrap(), message);
    assert_eq!(FederatedService::decode(&ours[..]).unwrap(), message);
}

#[test]
fn every_message_is_written_as_python_writes_it() {
    let nonce = || "7".to_owned();
    let cases = [
        (golden!("subscription"), CONTEXT, Outgoing::Subscribe { control: None }),
        (golden!("hello"), CONTEXT, Outgoing::Subscribe { control: Some(hello()) }),
        (golden!("ack"), CONTEXT, Outgoing::Answer { nonce: nonce(), answer: Ok(()) }),
        (golden!("nack"), "", Outgoing::Answer { nonce: nonce(), answer: Err(refusal()) }),
        (golden!("upsert"), CONTEXT, offer(false)),
        (golden!("delete"), CONTEXT, offer(true)),
    ];
    for (expected, context, message) in cases {
        assert_eq!(written(context, &message), expected, "{message:?}");
    }
    for (expected, control) in controls() {
        assert_eq!(written(CONTEXT, &Outgoing::Control(control)), expected);
    }
}

#[test]
fn every_request_of_python_is_read_as_it_was_meant() {
    let context = || CONTEXT.to_owned();
    let base = || IncomingRequest {
        resource_url: TYPE_URL.to_owned(),
        context: context(),
        ..IncomingRequest::default()
    };
    let answer = |code, message: &str| IncomingRequest {
        nonce: "7".to_owned(),
        status: Some((code, message.to_owned())),
        ..base()
    };
    let nack = IncomingRequest { context: String::new(), ..answer(7, &refusal().to_string()) };
    let mut cases = vec![
        (golden!("subscription"), base()),
        (golden!("hello"), IncomingRequest { control: Some(hello()), ..base() }),
        (golden!("ack"), answer(0, "")),
        (golden!("nack"), nack),
    ];
    for (bytes, control) in controls() {
        let control = Some(control);
        cases.push((bytes, IncomingRequest { control, context: context(), ..IncomingRequest::default() }));
    }
    for (bytes, expected) in cases {
        let incoming = read(&bytes[..], MESSAGE_BYTES).unwrap();
        assert_eq!((incoming.request, incoming.offer), (Some(expected), None));
        assert_eq!(incoming.bytes, bytes.len());
    }
}

#[test]
fn every_change_of_python_is_read_as_it_was_meant() {
    for (bytes, operation) in [(golden!("upsert"), Operation::Upsert), (golden!("delete"), Operation::Delete)]
    {
        let expected = IncomingOffer {
            nonce: "42".to_owned(),
            resource_url: TYPE_URL.to_owned(),
            key: "ledger".to_owned(),
            resource: Some((TYPE_URL.to_owned(), Bytes::from(golden!("service")))),
            refused: None,
            operation,
            context: CONTEXT.to_owned(),
            version: 0,
        };
        let incoming = read(&bytes[..], MESSAGE_BYTES).unwrap();
        assert_eq!((incoming.offer, incoming.request), (Some(expected), None));
    }
}
