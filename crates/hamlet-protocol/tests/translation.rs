//! v1alpha1 resources through the translation, our rules and back: lossless upwards, honest
//! downwards, and hostile ones refused in v1alpha1's words, each beside a benign neighbour.

use std::num::NonZeroU16;

use hamlet_core::{
    DnsLabel, Endpoint, EndpointAddress, FederatedService, Fqdn, Instance, Protocol, ServiceName, SpiffeId,
};
use hamlet_protocol::dialect::service::{decode, encode};
use hamlet_protocol::dialect::translate::{down, field, up};
use hamlet_protocol::dialect::{Dialect, offered::Offered};
use hamlet_protocol::wire::federation::types::v1alpha1 as v1;
use proptest::prelude::*;
use prost::Message;

mod common;
use common::{cases, rules, service};

/// A proper resource of mesh `bank`.
fn ledger() -> v1::FederatedService {
    v1::FederatedService {
        name: "The ledger".to_owned(),
        description: "books".to_owned(),
        tags: vec!["prod".to_owned()],
        labels: [("app".to_owned(), "ledger".to_owned())].into(),
        fqdn: "ledger.bank.example".to_owned(),
        id: "id1.bank.example".to_owned(),
        san: "spiffe://bank.example/gateway".to_owned(),
        protocols: vec!["HTTP".to_owned(), "TLS".to_owned()],
        endpoints: vec![v1::federated_service::Endpoint { address: "127.0.0.1".to_owned(), port: 7444 }],
    }
}

fn changed(change: impl FnOnce(&mut v1::FederatedService)) -> v1::FederatedService {
    let mut resource = ledger();
    change(&mut resource);
    resource
}

/// What becomes of a resource: its derived names, or `rule: field` of the refusal as it is answered.
fn outcome(resource: &v1::FederatedService) -> Result<Vec<String>, String> {
    let judged = up(&resource.encode_to_vec()).and_then(|(key, value)| {
        let offer = decode(&key, &value)?;
        rules("bank").admit(&offer)
    });
    match judged {
        Ok(service) => Ok(service.names().map(ToString::to_string).collect()),
        Err(rejection) => {
            let told = Dialect::V1alpha1.in_its_words(rejection);
            Err(format!("{}: {}", told.rule, told.field))
        }
    }
}

#[test]
fn a_resource_becomes_a_service_with_an_instance_for_each_protocol() {
    let (key, value) = up(&ledger().encode_to_vec()).unwrap();
    let service = decode(&key, &value).unwrap();
    assert_eq!(key, "id1.bank.example");
    assert_eq!(service.name.as_str(), key);
    let ids: Vec<_> = service.instances.iter().map(|i| (i.id.to_string(), i.protocol)).collect();
    assert_eq!(ids, [("http".to_owned(), Protocol::Http), ("tls".to_owned(), Protocol::Tls)]);
    assert!(service.instances.iter().all(|i| i.sni.as_ref().unwrap().as_str() == key));
    assert_eq!(service.instances[0].description, "The ledger", "the name for people is kept");
    let names = ["ledger.bank.example", "http.ledger.bank.example", "tls.ledger.bank.example"];
    assert_eq!(outcome(&ledger()).unwrap(), names);
}

#[test]
fn forms_that_known_peers_use_are_taken() {
    type Change = fn(&mut v1::FederatedService);
    let cases: [(&str, Change); 8] = [
        ("a SAN with its kind", |r| r.san = "URI:spiffe://bank.example/gateway".into()),
        ("a protocol in lower case", |r| r.protocols = vec!["https".into()]),
        ("no name for people", |r| r.name.clear()),
        ("no description", |r| r.description.clear()),
        ("the same protocol twice", |r| r.protocols = vec!["TLS".into(), "tls".into()]),
        ("a name in capitals", |r| r.fqdn = "Ledger.Bank.Example".into()),
        ("an id in capitals", |r| r.id = "ID1.Bank.Example".into()),
        ("no labels or tags", |r| {
            r.labels.clear();
            r.tags.clear();
        }),
    ];
    for (what, change) in cases {
        assert!(outcome(&changed(change)).is_ok(), "{what}: {:?}", outcome(&changed(change)));
    }
    let twice = outcome(&changed(|r| r.protocols = vec!["TLS".into(), "tls".into()])).unwrap();
    assert_eq!(twice[1..], ["tls.ledger.bank.example", "tls-2.ledger.bank.example"]);
}

#[test]
fn a_hostile_resource_is_refused_in_the_words_of_v1alpha1() {
    type Change = fn(&mut v1::FederatedService);
    let cases: [(&str, Change, Change); 20] = [
        ("resource-id-less", |r| r.id.clear(), |_| {}),
        ("name: id", |r| r.id = "an id with blanks".into(), |r| r.id = "another.id".into()),
        ("name: id", |r| r.id = "ä.bank.example".into(), |r| r.id = "xn--4ca.bank.example".into()),
        ("name: id", |r| r.id = "a".repeat(254), |r| r.id = format!("{}.b.example", "a".repeat(63))),
        ("sni: id", |r| r.id = "no-host-name".into(), |r| r.id = "no-host.name".into()),
        ("sni: id", |r| r.id = "*.bank.example".into(), |r| r.id = "x.bank.example".into()),
        ("fqdn: fqdn", |r| r.fqdn.clear(), |_| {}),
        ("name-outside-suffixes: fqdn", |r| r.fqdn = "ledger.shop.example".into(), |_| {}),
        ("name-reserved: fqdn", |r| r.fqdn = "kubernetes.default.svc".into(), |_| {}),
        ("san-missing: san", |r| r.san.clear(), |_| {}),
        ("san: san", |r| r.san = "bank.example".into(), |_| {}),
        ("san-outside-trust-domain: san", |r| r.san = "spiffe://shop.example/gateway".into(), |_| {}),
        ("san-not-accepted: san", |r| r.san = "spiffe://bank.example/other".into(), |_| {}),
        ("instances-missing: protocols", |r| r.protocols.clear(), |r| r.protocols = vec!["TCP".into()]),
        ("protocol: protocols[1]", |r| r.protocols[1] = "QUIC".into(), |r| r.protocols[1] = "GRPC".into()),
        (
            "too-many-entries: protocols",
            |r| r.protocols = vec!["TLS".into(); 100_000],
            |r| r.protocols = vec!["TLS".into(); 256],
        ),
        ("endpoints-missing: endpoints", |r| r.endpoints.clear(), |_| {}),
        (
            "endpoint-address: endpoints[0].address",
            |r| r.endpoints[0].address = "gateway.bank.example".into(),
            |r| r.endpoints[0].address = "127.0.0.2".into(),
        ),
        (
            "endpoint-port: endpoints[0].port",
            |r| r.endpoints[0].port = 65_536 + 7444,
            |r| r.endpoints[0].port = 7444,
        ),
        ("text-too-long: name", |r| r.name = "n".repeat(5_000), |r| r.name = "n".repeat(4_096)),
    ];
    for (expected, hostile, benign) in cases {
        let (hostile, benign) = (changed(hostile), changed(benign));
        let neighbour = outcome(&benign);
        assert!(neighbour.is_ok(), "{expected}: its neighbour is refused: {neighbour:?}");
        if hostile.id.is_empty() {
            // The consumer refuses a change without a key before it looks at the resource.
            assert_eq!(up(&hostile.encode_to_vec()).unwrap().0, "");
            assert_eq!(field("resource_id"), "id");
            continue;
        }
        assert_eq!(outcome(&hostile).unwrap_err(), expected);
    }
    assert_eq!(up(b"\xff\xff").unwrap_err().rule, "resource-undecodable");
    assert!(up(b"").is_ok(), "an empty message is a message");
}

#[test]
fn what_a_hostile_resource_becomes_is_a_small_multiple_of_it() {
    let many = changed(|r| {
        r.id = "a".repeat(253);
        r.protocols = vec!["T".into(); 20_000];
    });
    let bytes = many.encode_to_vec();
    assert!(bytes.len() < 64 * 1024, "it fits a message");
    let (_, value) = up(&bytes).unwrap();
    assert!(value.len() <= 2 * 64 * 1024, "{}", value.len());
}

#[test]
fn a_service_that_v1alpha1_cannot_say_is_named_with_the_reason() {
    type Change = fn(&mut FederatedService);
    let second = |s: &mut FederatedService| {
        let mut second = s.instances[0].clone();
        second.id = DnsLabel::parse("grpc").unwrap();
        s.instances.push(second);
    };
    let said = |change: &dyn Fn(&mut FederatedService)| {
        let mut service = service("bank", "ledger");
        second(&mut service);
        change(&mut service);
        down(&service)
    };
    assert_eq!(said(&|_| {}).unwrap().0, "http.ledger.bank.example", "two protocols, one SNI");
    let cases: [(&str, Change); 6] = [
        ("no SAN", |s| s.sans.clear()),
        ("no endpoint", |s| s.endpoints.clear()),
        ("no instance", |s| s.instances.clear()),
        ("http and grpc need different SNIs", |s| {
            s.instances[1].sni = Some(Fqdn::parse("grpc.ledger.bank.example").unwrap());
        }),
        ("http and grpc need different SNIs", |s| s.instances[1].sni = None),
        ("grpc belongs to some of the endpoints only", |s| {
            let mut east = s.endpoints[0].clone();
            east.labels = vec!["east".into()];
            s.endpoints.push(east);
            s.instances[1].endpoint_selector = vec!["east".into()];
        }),
    ];
    for (why, change) in cases {
        let refused = said(&change).unwrap_err();
        assert!(refused.contains(why), "{refused:?} instead of {why:?}");
    }
    // Without any SNI the name is what the consumer sends.
    let bare = said(&|s| s.instances.iter_mut().for_each(|i| i.sni = None)).unwrap();
    assert_eq!(bare.0, "ledger");
    // Of several SANs the first is said, and of everything else what there is a word for.
    let (_, value) =
        said(&|s| s.sans.push(SpiffeId::parse("spiffe://bank.example/second").unwrap())).unwrap();
    let resource = v1::FederatedService::decode(&value[..]).unwrap();
    assert_eq!(resource.san, "spiffe://bank.example/gateway");
    assert_eq!((resource.name.as_str(), resource.protocols.len()), ("ledger", 2));
}

#[test]
fn views_of_v1alpha1_exist_only_for_who_asks() {
    let offered = Offered::new();
    let peer = hamlet_core::PeerName::parse("shop").unwrap();
    assert!(offered.view(Dialect::V1alpha1, &peer).is_none(), "nothing was handed in");
    assert_eq!((offered.view_count(), offered.unsaid(&peer).len()), (0, 0));
}

/// Canonical resources: what our rules admit in the form in which we would write them.
fn resource() -> impl Strategy<Value = v1::FederatedService> {
    let text = "[ -~äöü]{0,40}";
    let label = "[a-z][a-z0-9]{0,9}";
    let protocol = (0..Protocol::ALL.len()).prop_map(|i| Protocol::ALL[i].to_string());
    let address = prop_oneof![
        any::<std::net::Ipv4Addr>().prop_map(|a| a.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|a| a.to_string())
    ]
    .prop_filter_map("no address", |a| EndpointAddress::parse(&a).ok().map(|a| a.to_string()));
    let endpoint = (address, 1u32..65_536);
    (
        (text, text, prop::collection::vec(text, 0..4), prop::collection::btree_map(label, text, 0..4)),
        (label, label, prop::bool::ANY),
        prop::collection::vec(protocol, 1..6),
        prop::collection::vec(endpoint, 1..5),
    )
        .prop_map(|((name, description, tags, labels), (host, id, own_name), protocols, endpoints)| {
            let id = format!("{id}.id.example");
            let endpoint = |(address, port)| v1::federated_service::Endpoint { address, port };
            v1::FederatedService {
                name: if own_name { name } else { id.clone() },
                description,
                tags,
                labels,
                fqdn: format!("{host}.bank.example"),
                id,
                san: "spiffe://bank.example/gateway".to_owned(),
                protocols,
                endpoints: endpoints.into_iter().map(endpoint).collect(),
            }
        })
}

/// Services as our own offers are: one SNI, whatever else.
fn offer() -> impl Strategy<Value = FederatedService> {
    (("[a-z]{1,8}", "[a-z]{1,8}"), prop::collection::vec(0..8usize, 1..4), "[ -~]{0,20}", 1u16..).prop_map(
        |((name, host), protocols, description, port)| {
            let instance = |(i, p): (usize, usize)| Instance {
                id: DnsLabel::parse(&format!("i{i}")).unwrap(),
                protocol: Protocol::ALL[p],
                sni: Some(Fqdn::parse(&format!("i0.{host}.bank.example")).unwrap()),
                port: NonZeroU16::new(port),
                ..service("bank", "x").instances[0].clone()
            };
            let endpoint =
                Endpoint { description: "lost".to_owned(), ..service("bank", "x").endpoints[0].clone() };
            FederatedService {
                name: ServiceName::parse(&name).unwrap(),
                fqdn: Fqdn::parse(&format!("{host}.bank.example")).unwrap(),
                description,
                endpoints: vec![endpoint],
                instances: protocols.into_iter().enumerate().map(instance).collect(),
                ..service("bank", "x")
            }
        },
    )
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn up_and_down_again_is_the_same_bytes(resource in resource()) {
        let bytes = resource.encode_to_vec();
        let (key, value) = up(&bytes).unwrap();
        prop_assert_eq!(&key, &resource.id);
        let service = decode(&key, &value).unwrap();
        prop_assert_eq!(&value, &encode(&service), "what is stored is in our own form");
        let (again, value) = down(&service).unwrap();
        prop_assert_eq!(again, key);
        prop_assert_eq!(&value[..], &bytes[..]);
    }

    #[test]
    fn down_and_up_again_keeps_all_that_a_call_needs(offer in offer()) {
        let (key, value) = down(&offer).unwrap();
        let (up_key, value) = up(&value).unwrap();
        prop_assert_eq!(&key, &up_key);
        let heard = decode(&key, &value).unwrap();
        prop_assert_eq!(&heard.fqdn, &offer.fqdn);
        prop_assert_eq!(&heard.sans, &offer.sans);
        prop_assert_eq!(&heard.description, &offer.description);
        let place = |s: &FederatedService| s.endpoints.iter().map(Endpoint::socket_addr).collect::<Vec<_>>();
        prop_assert_eq!(place(&heard), place(&offer));
        let ways = |s: &FederatedService| {
            s.instances.iter().map(|i| (i.protocol, i.sni.clone())).collect::<Vec<_>>()
        };
        prop_assert_eq!(ways(&heard), ways(&offer));
        // A second trip changes nothing more.
        let (again, bytes) = down(&heard).unwrap();
        prop_assert_eq!(up(&bytes).unwrap(), (again, value));
    }

    #[test]
    fn no_bytes_make_the_translation_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok((key, value)) = up(&bytes) {
            let _ = decode(&key, &value);
        }
    }
}
