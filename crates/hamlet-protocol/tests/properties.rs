//! Laws for any input: a session fed with anything answers each change once, in order, and keeps
//! its promises about what it sends; the wire's service is what it was; nothing panics on bytes.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::service::limits;
use hamlet_core::{
    DnsLabel, Endpoint, EndpointAddress, FederatedService, Fqdn, Instance, Protocol, ServiceName, SpiffeId,
};
use hamlet_protocol::dialect::service::{TYPE_URL, decode, encode};
use hamlet_protocol::dialect::v1alpha2::read;
use hamlet_protocol::dialect::{Dialect, Incoming, IncomingOffer, IncomingRequest, Operation};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use hamlet_testkit::session::{FedOptions, FedSession};
use proptest::prelude::*;

mod common;
use common::{rules, service};

// ---- anything at all, fed to a session

#[derive(Debug, Clone)]
enum Step {
    Hear(Box<Incoming>),
    Commit(bool),
    Speak(u8),
    Wait(u32),
    Publish(Vec<u8>, bool),
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        4 => (0..6u8).prop_map(|i| encode(&service("bank", &format!("s{i}")))),
        2 => (0..3u8).prop_map(|i| encode(&service("evil", &format!("s{i}")))),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
    ]
}

fn url() -> impl Strategy<Value = String> {
    prop_oneof![8 => Just(TYPE_URL.to_owned()), 1 => Just(String::new()), 1 => Just("other".to_owned())]
}

fn nonce() -> impl Strategy<Value = String> {
    prop_oneof![6 => (0u64..8).prop_map(|n| n.to_string()), 1 => Just(String::new()), 1 => "\\PC{0,4}"]
}

fn offer() -> impl Strategy<Value = IncomingOffer> {
    let key = prop_oneof![9 => (0..6u8).prop_map(|i| format!("s{i}")), 1 => "\\PC{0,3}"];
    let operation = prop_oneof![
        6 => Just(Operation::Upsert),
        3 => Just(Operation::Delete),
        1 => any::<i32>().prop_map(Operation::Unknown),
        1 => Just(Operation::Unset),
    ];
    (nonce(), url(), key, prop::option::weighted(0.9, (url(), value())), operation).prop_map(
        |(nonce, resource_url, key, resource, operation)| {
            let context = String::new();
            let refused = None;
            IncomingOffer { nonce, resource_url, key, resource, refused, operation, context, version: 0 }
        },
    )
}

fn control() -> impl Strategy<Value = ext::Control> {
    let round = || prop_oneof![4 => 0u32..4, 1 => Just(u32::MAX), 1 => any::<u32>()];
    let root = || {
        let lengths = [prop::collection::vec(any::<u8>(), 32), prop::collection::vec(any::<u8>(), 0..40)];
        prop::strategy::Union::new(lengths).prop_map(Bytes::from)
    };
    let held = (round(), root(), any::<bool>()).prop_map(|(round, root, full)| ext::Held {
        round,
        root,
        full,
        ..ext::Held::default()
    });
    let window = prop_oneof![Just(0), 1..8u32, any::<u32>()];
    let hello = (any::<u32>(), prop::option::of((round(), root())), "\\PC{0,200}", window).prop_map(
        |(version, held, agent, window_messages)| {
            let held = held.map(|(round, root)| ext::Held { round, root, ..ext::Held::default() });
            ext::control::Kind::Hello(ext::Hello {
                version,
                held,
                agent,
                window_messages,
                ..Default::default()
            })
        },
    );
    let kind = prop_oneof![
        2 => hello,
        2 => held.prop_map(ext::control::Kind::Held),
        4 => (round(), -1..6i32).prop_map(|(round, mode)| {
            ext::control::Kind::Begin(ext::Begin { round, mode, ..ext::Begin::default() })
        }),
        4 => (any::<u64>(), round(), root(), any::<u64>()).prop_map(|(seq, round, root, count)| {
            ext::control::Kind::Bookmark(ext::Bookmark { seq, round, root, count, ..ext::Bookmark::default() })
        }),
        2 => (0..4u64, -1..5i32, any::<u64>()).prop_map(|(seq, verdict, refused)| {
            ext::control::Kind::Proof(ext::Proof { seq, verdict, refused, ..ext::Proof::default() })
        }),
        1 => (any::<u64>(), prop_oneof![3 => 0..100usize, 1 => 48_000..50_000usize], prop_oneof![3 => Just(0), 1 => Just(32usize)])
            .prop_map(|(sequence, jwks, previous)| {
                ext::control::Kind::Bundle(ext::Bundle {
                    sequence,
                    jwks: vec![b'{'; jwks].into(),
                    previous_sha256: vec![0; previous].into(),
                    ..ext::Bundle::default()
                })
            }),
        1 => any::<u64>().prop_map(|sequence| {
            ext::control::Kind::BundleAck(ext::BundleAck { sequence, ..ext::BundleAck::default() })
        }),
        1 => any::<i32>().prop_map(|reason| {
            ext::control::Kind::Goodbye(ext::Goodbye { reason, ..ext::Goodbye::default() })
        }),
    ];
    prop::option::weighted(0.95, kind).prop_map(|kind| ext::Control { kind })
}

fn request() -> impl Strategy<Value = IncomingRequest> {
    let status = prop::option::weighted(
        0.9,
        (prop_oneof![3 => Just(0), 2 => Just(14), 1 => any::<i32>()], "\\PC{0,9}"),
    );
    let answer =
        (nonce(), status).prop_map(|(nonce, status)| IncomingRequest { nonce, status, ..Default::default() });
    let plain = (url(), prop::option::of(control())).prop_map(|(resource_url, control)| IncomingRequest {
        resource_url,
        control,
        ..Default::default()
    });
    let spoken =
        control().prop_map(|control| IncomingRequest { control: Some(control), ..Default::default() });
    prop_oneof![4 => answer, 1 => plain, 4 => spoken]
}

fn incoming() -> impl Strategy<Value = Incoming> {
    let bytes = prop_oneof![12 => 0..2_000usize, 1 => 60_000..70_000usize, 1 => Just(4 << 20)];
    (prop::option::weighted(0.6, offer()), prop::option::weighted(0.5, request()), bytes)
        .prop_map(|(offer, request, bytes)| Incoming { offer, request, bytes })
}

fn step() -> impl Strategy<Value = Step> {
    let names = prop::collection::vec(0..6u8, 0..6);
    prop_oneof![
        12 => incoming().prop_map(|i| Step::Hear(Box::new(i))),
        4 => prop::bool::weighted(0.7).prop_map(Step::Commit),
        5 => (1..8u8).prop_map(Step::Speak),
        2 => prop_oneof![0..20_000u32, any::<u32>()].prop_map(Step::Wait),
        2 => (names, any::<bool>()).prop_map(|(names, ready)| Step::Publish(names, ready)),
    ]
}

fn key(n: u8) -> String {
    format!("o{n}")
}

/// `false` when the stream has ended.
fn take(fed: &mut FedSession, step: Step) -> bool {
    match step {
        Step::Hear(incoming) => return fed.hear(*incoming),
        Step::Commit(durable) => fed.commit(durable),
        Step::Speak(n) => return fed.speak(n.into()),
        Step::Wait(ms) => return fed.wait(Duration::from_millis(ms.into())),
        Step::Publish(names, ready) => {
            fed.publish(names.into_iter().map(|n| (key(n), encode(&service("shop", &key(n))))), ready);
        }
    }
    true
}

proptest! {
    #![proptest_config(common::cases(400))]

    #[test]
    fn whatever_is_heard_each_change_is_answered_once_and_in_order(
        dialled in any::<bool>(),
        extensions in any::<bool>(),
        services in 0..8usize,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let hello = extensions.then(|| ext::Hello { held: Some(ext::Held::default()), ..ext::Hello::default() });
        let mut fed = FedSession::new(FedOptions {
            dialect: Dialect::V1alpha2,
            dialled,
            hello,
            rules: rules("bank"),
            quota: services,
            message_bytes: limits::MESSAGE_BYTES,
        });
        let mut lives = true;
        for step in steps {
            lives = lives && take(&mut fed, step);
            fed.check_bounds();
        }
        if lives {
            fed.finish();
        }
    }
}

// ---- the service on the wire

fn text(max: usize) -> impl Strategy<Value = String> {
    // Any characters at all, cut to a length in bytes.
    "\\PC{0,60}".prop_map(move |mut t: String| {
        while t.len() > max {
            t.pop();
        }
        t
    })
}

fn label() -> impl Strategy<Value = DnsLabel> {
    "[a-z][a-z0-9]{0,8}".prop_map(|t| DnsLabel::parse(&t).unwrap())
}

fn fqdn() -> impl Strategy<Value = Fqdn> {
    "[a-z][a-z0-9_]{0,8}(\\.[a-z][a-z0-9]{0,8}){1,4}".prop_map(|t| Fqdn::parse(&t).unwrap())
}

fn port() -> impl Strategy<Value = NonZeroU16> {
    (1..=u16::MAX).prop_map(|p| NonZeroU16::new(p).unwrap())
}

fn map() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map(text(limits::LABEL_KEY_BYTES), text(limits::LABEL_VALUE_BYTES), 0..6)
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(text(limits::LABEL_VALUE_BYTES), 0..5)
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let address = prop_oneof![
        any::<[u8; 4]>().prop_map(|a| std::net::Ipv4Addr::from(a).to_string()),
        any::<[u8; 16]>().prop_map(|a| std::net::Ipv6Addr::from(a).to_string()),
    ];
    let address = address.prop_filter_map("an address", |t| EndpointAddress::parse(&t).ok());
    (address, port(), texts(), text(limits::DESCRIPTION_BYTES))
        .prop_map(|(address, port, labels, description)| Endpoint { address, port, labels, description })
}

fn instance() -> impl Strategy<Value = Instance> {
    let reserved = |k: &String| ["SNI", "HOSTNAME", "PORT"].iter().any(|r| r.eq_ignore_ascii_case(k));
    let metadata = map().prop_map(move |m| m.into_iter().filter(|(k, _)| !reserved(k)).collect());
    let protocol = prop::sample::select(&Protocol::ALL[..]);
    let names = (prop::option::of(fqdn()), prop::option::of(fqdn()), prop::option::of(port()));
    (label(), protocol, names, metadata, texts(), text(limits::DESCRIPTION_BYTES)).prop_map(
        |(id, protocol, (sni, hostname, port), metadata, endpoint_selector, description)| Instance {
            id,
            protocol,
            sni,
            hostname: hostname.map(|h| h.to_string()),
            port,
            metadata,
            endpoint_selector,
            description,
        },
    )
}

fn any_service() -> impl Strategy<Value = FederatedService> {
    let san = ("[a-z]{1,8}(\\.[a-z]{1,8}){0,2}", "[a-zA-Z0-9_-]{1,8}(/[a-z]{1,8}){0,3}")
        .prop_map(|(domain, path)| SpiffeId::parse(&format!("spiffe://{domain}/{path}")).unwrap());
    let name = "[!-~]{1,60}".prop_map(|t| ServiceName::parse(&t).unwrap());
    let lists = (
        prop::collection::vec(endpoint(), 1..5),
        prop::collection::vec(san, 0..4),
        prop::collection::btree_map(label(), instance(), 1..5),
    );
    (name, fqdn(), text(limits::DESCRIPTION_BYTES), texts(), map(), lists).prop_map(
        |(name, fqdn, description, tags, labels, (endpoints, sans, instances))| {
            let instances = instances.into_iter().map(|(id, i)| Instance { id, ..i }).collect();
            FederatedService { name, fqdn, description, tags, labels, endpoints, sans, instances }
        },
    )
}

proptest! {
    #![proptest_config(common::cases(256))]

    #[test]
    fn a_service_is_read_as_it_was_written_and_written_the_same_each_time(service in any_service()) {
        let bytes = encode(&service);
        prop_assert_eq!(&bytes, &encode(&service.clone()));
        let again = decode(service.name.as_str(), &bytes);
        prop_assert_eq!(again.as_ref(), Ok(&service));
        prop_assert_eq!(encode(&again.unwrap()), bytes);
    }

    #[test]
    fn mutated_services_are_read_or_refused_in_one_line(
        service in any_service(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..12),
        key in "\\PC{0,9}",
    ) {
        let mut bytes = encode(&service).to_vec();
        for (at, byte, how) in changes {
            if bytes.is_empty() { break; }
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at),
            }
        }
        for key in [service.name.as_str(), &key] {
            if let Err(refused) = decode(key, &bytes) {
                prop_assert!(!refused.to_string().chars().any(char::is_control), "{}", refused);
                prop_assert!(refused.to_string().len() < 1_024);
            }
        }
    }

    #[test]
    fn random_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), limit in 0..300usize) {
        let _ = decode("key", &bytes);
        if let Err(status) = read(&bytes[..], limit) {
            prop_assert_eq!(status.code(), tonic::Code::InvalidArgument);
        }
    }

    #[test]
    fn a_message_says_the_same_whether_it_is_taken_whole_or_refused_for_its_size(said in offer(), n in nonce()) {
        use hamlet_protocol::wire::federation::resourcediscovery::v1alpha2 as pb;
        use prost::Message;
        let operation = match said.operation { Operation::Upsert => 1, Operation::Delete => 2, Operation::Unknown(n) => n, Operation::Unset => 0 };
        let response = pb::StreamResponse {
            nonce: n, resource_url: said.resource_url, resource_id: said.key, operation, ..pb::StreamResponse::default()
        };
        let bytes = pb::BidirectionalStream { request: None, response: Some(response) }.encode_to_vec();
        prop_assert_eq!(read(&bytes[..], bytes.len()).unwrap(), read(&bytes[..], 0).unwrap());
    }
}
