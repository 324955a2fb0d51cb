//! The kit's own messages against bytes that Python's protobuf wrote: read, they say what was meant;
//! written again, they are the same bytes.

use hamlet_conformance::wire::{fields, v1, v2};
use hamlet_conformance::{Role, Said, Service, Version};
use prost::Message;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

macro_rules! golden {
    ($name:literal) => {
        bytes(include_str!(concat!("../../hamlet-protocol/tests/golden/", $name, ".hex")))
    };
}

fn again(golden: &[u8], speaker: Role) -> Said {
    let said = Said::decode(Version::V1alpha2, speaker, golden).unwrap();
    assert_eq!(said.encode(Version::V1alpha2), golden);
    said
}

#[test]
fn requests_of_v1alpha2_are_what_python_meant() {
    let ask = again(&golden!("subscription"), Role::Consumer).ask.unwrap();
    assert!(ask.is_initial());
    assert_eq!((ask.resource_url, ask.context.as_str()), (Version::V1alpha2.type_url(), "a b"));
    let ask = again(&golden!("ack"), Role::Consumer).ask.unwrap();
    assert_eq!((ask.nonce.as_str(), ask.status.unwrap().code), ("7", 0));
    let ask = again(&golden!("nack"), Role::Consumer).ask.unwrap();
    let status = ask.status.unwrap();
    assert!(status.code != 0 && !status.message.is_empty() && status.details.len() == 1);
}

#[test]
fn offers_of_v1alpha2_are_what_python_meant() {
    for (golden, operation) in [(golden!("upsert"), 1), (golden!("delete"), 2)] {
        let offer = again(&golden, Role::Owner).offer.unwrap();
        assert_eq!((offer.nonce.as_str(), offer.resource_id.as_str()), ("42", "ledger"));
        assert_eq!(offer.operation, operation);
        let any = offer.resource.unwrap();
        assert_eq!(any.type_url, Version::V1alpha2.type_url());
        assert!(Service::decode(Version::V1alpha2, &any.value).unwrap().lacks().is_empty());
    }
}

#[test]
fn a_service_of_v1alpha2_has_every_field_that_python_wrote() {
    let golden = golden!("service");
    let service = v2::FederatedService::decode(&golden[..]).unwrap();
    assert_eq!(service.encode_to_vec(), golden);
    let numbers = fields(&golden).unwrap();
    assert!([1, 2, 3, 4, 5, 9, 10, 11].iter().all(|n| numbers.iter().any(|(found, _)| found == n)));
}

#[test]
fn a_hello_is_an_extension_to_the_kit() {
    assert!(Said::decode(Version::V1alpha2, Role::Consumer, &golden!("hello")).unwrap().extended);
    assert!(!Said::decode(Version::V1alpha2, Role::Consumer, &golden!("ack")).unwrap().extended);
}

#[test]
fn messages_of_v1alpha1_are_what_python_meant() {
    let (version, url) = (Version::V1alpha1, Version::V1alpha1.type_url());
    let asks = [
        (golden!("v1_subscription"), "", None),
        (golden!("v1_ack"), "7", Some(0)),
        (golden!("v1_ack_of_empty_nonce"), "", Some(0)),
    ];
    for (golden, nonce, code) in asks {
        let said = Said::decode(version, Role::Consumer, &golden).unwrap();
        assert_eq!(said.encode(version), golden);
        let ask = said.ask.unwrap();
        assert_eq!((ask.resource_url.as_str(), ask.nonce.as_str()), (url.as_str(), nonce));
        assert_eq!(ask.status.map(|s| s.code), code);
    }
    let offers = [
        (golden!("v1_create"), 1),
        (golden!("v1_create_without_nonce"), 1),
        (golden!("v1_update"), 2),
        (golden!("v1_delete"), 3),
    ];
    for (golden, operation) in offers {
        let said = Said::decode(version, Role::Owner, &golden).unwrap();
        assert_eq!(said.encode(version), golden);
        let offer = said.offer.unwrap();
        assert_eq!((offer.resource_url.as_str(), offer.operation), (url.as_str(), operation));
        let any = offer.resource.unwrap();
        assert!(Service::decode(version, &any.value).unwrap().lacks().is_empty());
    }
    for golden in [golden!("v1_nack"), golden!("v1_nack_of_go")] {
        let said = Said::decode(version, Role::Consumer, &golden).unwrap();
        assert_eq!(said.encode(version), golden);
        let status = said.ask.unwrap().status.unwrap();
        assert!(status.code != 0 && !status.message.is_empty());
    }
    let golden = golden!("v1_service");
    assert_eq!(v1::FederatedService::decode(&golden[..]).unwrap().encode_to_vec(), golden);
}
