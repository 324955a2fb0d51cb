//! Our v1alpha1 wire bytes against Python's protobuf: what we write is byte for byte what it
//! writes, and what it writes we read as what it meant. The `.hex` files come from
//! `golden/make_golden.py`.

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
use hamlet_protocol::dialect::service::{decode, encode};
use hamlet_protocol::dialect::translate::{TYPE_URL, down, up};
use hamlet_protocol::dialect::v1alpha1::{End, V1Codec};
use hamlet_protocol::dialect::{IncomingOffer, IncomingRequest, Operation, Outgoing};

const ID: &str = "http.ledger.bank.example";

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

const CONSUMER: V1Codec = V1Codec { end: End::Consumer, message_bytes: MESSAGE_BYTES };
const OWNER: V1Codec = V1Codec { end: End::Owner, message_bytes: MESSAGE_BYTES };

fn written(codec: &V1Codec, message: &Outgoing) -> Vec<u8> {
    let mut bytes = vec![];
    codec.write(message, &mut bytes);
    bytes
}

/// The golden resource as the consumer of this side sees it.
fn service() -> FederatedService {
    let label = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let endpoint = |address: &str, port: u16| Endpoint {
        address: EndpointAddress::parse(address).unwrap(),
        port: NonZeroU16::new(port).unwrap(),
        labels: vec![],
        description: String::new(),
    };
    let instance = |id: &str, protocol, description: &str| Instance {
        id: DnsLabel::parse(id).unwrap(),
        protocol,
        sni: Some(Fqdn::parse(ID).unwrap()),
        hostname: None,
        port: None,
        metadata: BTreeMap::new(),
        endpoint_selector: vec![],
        description: description.to_owned(),
    };
    FederatedService {
        name: ServiceName::parse(ID).unwrap(),
        fqdn: Fqdn::parse("ledger.bank.example").unwrap(),
        description: "Bücher".to_owned(),
        tags: vec!["prod".to_owned(), "b".to_owned()],
        labels: [label("zone", "b"), label("app", "x"), label("Team", "ä")].into(),
        endpoints: vec![endpoint("192.0.2.7", 7444), endpoint("2001:db8::7", 65535)],
        sans: vec![SpiffeId::parse("spiffe://bank.example/gateway").unwrap()],
        instances: vec![instance("http2", Protocol::Http2, "ledger"), instance("tls", Protocol::Tls, "")],
    }
}

fn change(fresh: bool, deleted: bool) -> Outgoing {
    let (key, value) = down(&service()).unwrap();
    let offer = Arc::new(Offer::new(TYPE_URL, &key, value));
    let change = Change { version: 9, offer, deleted, fresh };
    Outgoing::Offer { nonce: 42, change, versioned: false }
}

#[test]
fn a_service_is_translated_from_and_to_the_bytes_of_python() {
    let (key, value) = up(&golden!("v1_service")).unwrap();
    assert_eq!(key, ID);
    assert_eq!(decode(&key, &value).unwrap(), service());
    assert_eq!(value, encode(&service()), "the form in which it is stored is our own");
    assert_eq!(down(&service()).unwrap(), (ID.to_owned(), Bytes::from(golden!("v1_service"))));
}

#[test]
fn the_consumer_writes_what_python_writes() {
    let rejection = Rejection::new(RejectionCode::Policy, "san-missing", "sans", "set it");
    let answer = |nonce: &str, answer| Outgoing::Answer { nonce: nonce.to_owned(), answer };
    let cases = [
        (golden!("v1_subscription"), Outgoing::Subscribe { control: None }),
        (golden!("v1_ack"), answer("7", Ok(()))),
        (golden!("v1_ack_of_empty_nonce"), answer("", Ok(()))),
        (golden!("v1_nack"), answer("7", Err(rejection))),
    ];
    for (expected, message) in cases {
        assert_eq!(written(&CONSUMER, &message), expected, "{message:?}");
    }
    for ack in [golden!("v1_ack"), golden!("v1_ack_of_empty_nonce")] {
        assert!(ack.ends_with(&[0x1a, 0x00]), "a status that is present and empty");
    }
}

#[test]
fn the_owner_writes_what_python_writes() {
    let cases = [
        (golden!("v1_create"), change(true, false)),
        (golden!("v1_update"), change(false, false)),
        (golden!("v1_delete"), change(false, true)),
        (golden!("v1_delete"), change(true, true)),
    ];
    for (expected, message) in cases {
        assert_eq!(written(&OWNER, &message), expected, "{message:?}");
    }
}

#[test]
fn what_v1alpha1_cannot_say_is_not_said() {
    let hello = hamlet_protocol::wire::hamlet::federation::v1::Control::default();
    let subscribe = Outgoing::Subscribe { control: Some(hello.clone()) };
    assert_eq!(written(&CONSUMER, &subscribe), golden!("v1_subscription"), "no extension travels");
    assert_eq!(written(&CONSUMER, &Outgoing::Control(hello.clone())), b"");
    assert_eq!(written(&CONSUMER, &change(true, false)), b"", "the consumer offers nothing");
    assert_eq!(written(&OWNER, &Outgoing::Control(hello)), b"");
    assert_eq!(written(&OWNER, &subscribe), b"", "the owner asks for nothing");
}

#[test]
fn every_request_of_python_is_read_as_it_was_meant() {
    let base = || IncomingRequest { resource_url: TYPE_URL.to_owned(), ..IncomingRequest::default() };
    let answer = |nonce: &str, code, message: &str| IncomingRequest {
        nonce: nonce.to_owned(),
        status: Some((code, message.to_owned())),
        ..base()
    };
    let cases = [
        (golden!("v1_subscription"), base()),
        (golden!("v1_ack"), answer("7", 0, "")),
        (golden!("v1_ack_of_empty_nonce"), answer("", 0, "")),
        (golden!("v1_nack"), answer("7", 7, "san-missing: san: set it")),
        (golden!("v1_nack_of_go"), answer("7", 14, "unable to handle the message")),
    ];
    for (bytes, expected) in cases {
        let incoming = OWNER.read(&bytes[..]).unwrap();
        assert_eq!((incoming.request, incoming.offer), (Some(expected), None));
        assert_eq!(incoming.bytes, bytes.len());
    }
}

#[test]
fn every_change_of_python_is_read_as_it_was_meant() {
    let cases = [
        (golden!("v1_create"), "42", Operation::Upsert),
        (golden!("v1_update"), "42", Operation::Upsert),
        (golden!("v1_delete"), "42", Operation::Delete),
        (golden!("v1_create_without_nonce"), "", Operation::Upsert),
    ];
    for (bytes, nonce, operation) in cases {
        let expected = IncomingOffer {
            nonce: nonce.to_owned(),
            resource_url: TYPE_URL.to_owned(),
            key: ID.to_owned(),
            resource: Some((TYPE_URL.to_owned(), encode(&service()))),
            refused: None,
            operation,
            context: String::new(),
            version: 0,
        };
        let incoming = CONSUMER.read(&bytes[..]).unwrap();
        assert_eq!((incoming.offer, incoming.request), (Some(expected), None));
    }
}

/// Whoever confuses the versions must not be understood as something else.
#[test]
fn a_message_of_the_other_version_is_never_taken_for_a_change() {
    for bytes in [golden!("upsert"), golden!("delete")] {
        // `BidirectionalStream.response` is member 2, where v1alpha1 has a text.
        match CONSUMER.read(&bytes[..]) {
            Err(status) => assert_eq!(status.code(), tonic::Code::InvalidArgument),
            Ok(incoming) => assert!(incoming.offer.unwrap().refused.is_some()),
        }
    }
}
