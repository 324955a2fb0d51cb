//! Offers and rules that the protocol's tests share: mesh `bank` owns `bank.example`, and so on.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

pub mod agent;
pub mod attacks;
pub mod ends;
pub mod go;
pub mod raw;
pub mod stage;

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::sync::Arc;

use hamlet_core::import::ImportRules;
use hamlet_core::{
    AddressRange, DnsLabel, Endpoint, EndpointAddress, FederatedService, Fqdn, Instance, NameSuffix,
    PeerName, PortRange, Protocol, ServiceName, SpiffeId, TrustDomain,
};

/// `name.mesh.example`, offered at a loopback gateway.
pub fn service(mesh: &str, name: &str) -> FederatedService {
    FederatedService {
        name: ServiceName::parse(name).unwrap(),
        fqdn: Fqdn::parse(&format!("{name}.{mesh}.example")).unwrap(),
        description: String::new(),
        tags: vec![],
        labels: BTreeMap::new(),
        endpoints: vec![Endpoint {
            address: EndpointAddress::parse("127.0.0.1").unwrap(),
            port: NonZeroU16::new(7444).unwrap(),
            labels: vec![],
            description: String::new(),
        }],
        sans: vec![SpiffeId::parse(&format!("spiffe://{mesh}.example/gateway")).unwrap()],
        instances: vec![Instance {
            id: DnsLabel::parse("http").unwrap(),
            protocol: Protocol::Http,
            sni: Some(Fqdn::parse(&format!("http.{name}.{mesh}.example")).unwrap()),
            hostname: None,
            port: NonZeroU16::new(80),
            metadata: BTreeMap::new(),
            endpoint_selector: vec![],
            description: String::new(),
        }],
    }
}

/// Accepts what `service(peer, _)` makes, on loopback because these are tests.
pub fn rules(peer: &str) -> Arc<ImportRules> {
    Arc::new(ImportRules {
        peer: PeerName::parse(peer).unwrap(),
        trust_domain: TrustDomain::parse(&format!("{peer}.example")).unwrap(),
        suffixes: vec![NameSuffix::parse(&format!("{peer}.example")).unwrap()],
        sans: vec![SpiffeId::parse(&format!("spiffe://{peer}.example/gateway")).unwrap()],
        ranges: vec![AddressRange::parse("127.0.0.0/8").unwrap()],
        endpoint_ports: vec![PortRange::parse("7444").unwrap()],
        service_ports: BTreeMap::new(),
    })
}

/// The same `cases` stories on every run, so that a red run is always the change's own doing.
/// `PROPTEST_CASES=20000 cargo test ...` tells so many new ones; a failure prints its story.
pub fn cases(cases: u32) -> proptest::prelude::ProptestConfig {
    use proptest::test_runner::RngSeed;
    let asked = proptest::prelude::ProptestConfig::default();
    let usual = proptest::prelude::ProptestConfig::with_cases(256).cases == asked.cases;
    proptest::prelude::ProptestConfig {
        cases: if usual { cases } else { asked.cases },
        rng_seed: if usual { RngSeed::Fixed(0x4a_4d_4c_45_54) } else { asked.rng_seed },
        failure_persistence: None,
        ..asked
    }
}
