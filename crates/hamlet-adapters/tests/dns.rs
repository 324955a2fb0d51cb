//! The DNS listener as its clients see it: tables of questions and answers, the hypothesis that no
//! bytes break it, and both transports over loopback.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hamlet_adapters::dns::{
    BindError, DnsServer, Outcome, OwnedName, ServiceTarget, Transport, Zone, ZoneSuffix, answer, config,
};
use hamlet_core::{
    DnsLabel, Fqdn, ImportedInstance, ImportedService, NameSuffix, Protocol, ServiceId, ServiceName, SpiffeId,
};
use hamlet_runtime::{Shutdown, Spawner, Supervisor};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

const ID: u16 = 0x1234;

fn fqdn(text: &str) -> Fqdn {
    Fqdn::parse(text).unwrap()
}

fn suffix(text: &str, exclusive: bool) -> ZoneSuffix {
    ZoneSuffix { suffix: NameSuffix::parse(text).unwrap(), exclusive }
}

fn instance(service: &str, id: &str, protocol: Protocol, port: Option<u16>) -> ImportedInstance {
    let fqdn = fqdn(&format!("{id}.{service}"));
    ImportedInstance {
        id: DnsLabel::parse(id).unwrap(),
        sni: Some(fqdn.clone()),
        fqdn,
        protocol,
        port: port.and_then(NonZeroU16::new),
        hostname: None,
        endpoints: Vec::new(),
        not_programmed: None,
    }
}

fn service(name: &str, instances: Vec<ImportedInstance>) -> Arc<ImportedService> {
    Arc::new(ImportedService {
        id: ServiceId { owner: DnsLabel::parse("acme").unwrap(), name: ServiceName::parse(name).unwrap() },
        fqdn: fqdn(name),
        description: String::new(),
        tags: Vec::new(),
        labels: BTreeMap::new(),
        sans: vec![SpiffeId::parse("spiffe://acme.example/gateway").unwrap()],
        instances,
    })
}

/// Two imports under `acme.example` (shared with the public) and one under `globex.example` (ours
/// alone), a name with many addresses and one with many services, and one under no suffix.
fn zone() -> Zone {
    let ledger = "ledger.shop.acme.example";
    let imports = [
        service(
            ledger,
            vec![
                instance(ledger, "web", Protocol::Http, Some(80)),
                instance(ledger, "h2", Protocol::Http2, Some(8080)),
                instance(ledger, "rpc", Protocol::Grpc, Some(9000)),
                instance(ledger, "raw", Protocol::Tcp, Some(7000)),
                instance(ledger, "lost", Protocol::Https, None),
            ],
        ),
        service(
            "six.globex.example",
            vec![instance("six.globex.example", "db", Protocol::Mongo, Some(27017))],
        ),
    ];
    let address_of = |name: &Fqdn| match name.as_str() {
        "six.globex.example" | "db.six.globex.example" => Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        "lost.ledger.shop.acme.example" => None,
        _ => Some(IpAddr::V4(Ipv4Addr::new(127, 64, 0, 1))),
    };
    Zone::of_imports(
        &imports,
        address_of,
        [suffix("acme.example", false), suffix("globex.example", true), suffix("hamlet", true)],
        5,
        7,
    )
}

fn wide_zone() -> Zone {
    let many = OwnedName {
        name: fqdn("many.acme.example"),
        addresses: (1..=20).map(|i| IpAddr::V4(Ipv4Addr::new(127, 64, 0, i))).collect(),
        services: (0..100)
            .map(|i| ServiceTarget {
                port: NonZeroU16::MIN,
                target: fqdn(&format!("instance-{i}.many.acme.example")),
            })
            .collect(),
    };
    Zone::build([many], [suffix("acme.example", false)], 5, 1)
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(ID, MessageType::Query, OpCode::Query);
    // Label by label: the library's parser refuses what a client may well send.
    let labels = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
    message.add_query(Query::query(Name::from_labels(labels).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn ask_bytes(zone: &Zone, request: &[u8], transport: Transport) -> (Outcome, Vec<u8>) {
    let mut out = vec![0xff; 3];
    let outcome = answer(zone, request, transport, &mut out);
    (outcome, out)
}

fn ask(zone: &Zone, request: &Message, transport: Transport) -> (Outcome, Message) {
    let (outcome, reply) = ask_bytes(zone, &request.to_vec().unwrap(), transport);
    (outcome, Message::from_vec(&reply).unwrap())
}

/// One line for an answer: code, flags, records.
fn line(reply: &Message) -> String {
    let mut line = format!("{:?}", reply.metadata.response_code);
    if reply.metadata.authoritative {
        line += " AA";
    }
    for (mark, records) in [("", &reply.answers), ("auth ", &reply.authorities)] {
        for record in records {
            line += &format!("; {mark}{} {} {}", record.name, record.ttl, record.record_type());
            if !matches!(record.data, RData::SOA(_) | RData::HINFO(_)) {
                line += &format!(" {}", record.data);
            }
        }
    }
    line
}

#[test]
fn imported_names_answer_and_all_others_are_refused_or_absent() {
    let zone = zone();
    let ledger = "NoError AA; ledger.shop.acme.example. 5 A 127.64.0.1";
    let no_data = "NoError AA; auth acme.example. 5 SOA";
    let none_globex = "NXDomain AA; auth globex.example. 5 SOA";
    use RecordType as T;
    for (name, kind, expected) in [
        ("ledger.shop.acme.example.", T::A, ledger),
        ("web.ledger.shop.acme.example.", T::A, "NoError AA; web.ledger.shop.acme.example. 5 A 127.64.0.1"),
        ("ledger.shop.acme.example.", T::AAAA, no_data),
        ("ledger.shop.acme.example.", T::TXT, no_data),
        ("ledger.shop.acme.example.", T::SRV, no_data),
        ("lost.ledger.shop.acme.example.", T::A, no_data),
        ("shop.acme.example.", T::A, no_data),
        ("shop.acme.example.", T::ANY, no_data),
        ("_tcp.ledger.shop.acme.example.", T::A, no_data),
        ("ledger.shop.acme.example.", T::ANY, "NoError AA; ledger.shop.acme.example. 5 HINFO"),
        ("acme.example.", T::A, "Refused"),
        ("acme.example.", T::SOA, "Refused"),
        ("other.acme.example.", T::A, "Refused"),
        ("none.ledger.shop.acme.example.", T::A, "Refused"),
        ("notacme.example.", T::A, "Refused"),
        ("ledger.shop.acme.example.evil.example.", T::A, "Refused"),
        ("example.", T::A, "Refused"),
        (".", T::NS, "Refused"),
        ("www.example.org.", T::A, "Refused"),
        ("six.globex.example.", T::AAAA, "NoError AA; six.globex.example. 5 AAAA ::1"),
        ("six.globex.example.", T::A, "NoError AA; auth globex.example. 5 SOA"),
        ("seven.globex.example.", T::A, none_globex),
        ("a.b.c.six.globex.example.", T::A, none_globex),
        ("globex.example.", T::SOA, "NoError AA; globex.example. 5 SOA"),
        ("globex.example.", T::NS, "NoError AA; globex.example. 5 NS globex.example."),
        ("globex.example.", T::A, "NoError AA; auth globex.example. 5 SOA"),
        ("globex.example.", T::ANY, "NoError AA; globex.example. 5 HINFO"),
        ("six.globex.example.", T::NS, "NoError AA; auth globex.example. 5 SOA"),
        ("hamlet.", T::SOA, "NoError AA; hamlet. 5 SOA"),
        ("unknown.hamlet.", T::A, "NXDomain AA; auth hamlet. 5 SOA"),
        ("-odd.globex.example.", T::A, "Refused"),
        ("*.globex.example.", T::A, "Refused"),
        ("six.globex.example.", T::AXFR, "Refused"),
        ("six.globex.example.", T::IXFR, "Refused"),
    ] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let request = query(name, kind);
            let (_, reply) = ask(&zone, &request, transport);
            assert_eq!(line(&reply), expected, "{name} {kind} {transport:?}");
            assert_eq!(reply.queries, request.queries);
            assert_eq!((reply.metadata.id, reply.metadata.message_type), (ID, MessageType::Response));
            assert!(!reply.metadata.recursion_available && !reply.metadata.truncation);
        }
    }
}

#[test]
fn services_stand_under_the_protocol_of_their_instances() {
    let zone = zone();
    for (name, expected) in [
        (
            "_http._tcp.ledger.shop.acme.example.",
            &["0 1 80 web.ledger.shop.acme.example.", "0 1 8080 h2.ledger.shop.acme.example."][..],
        ),
        ("_grpc._tcp.ledger.shop.acme.example.", &["0 1 9000 rpc.ledger.shop.acme.example."]),
        ("_tcp.ledger.shop.acme.example.", &["0 1 7000 raw.ledger.shop.acme.example."]),
        ("_mongodb._tcp.six.globex.example.", &["0 1 27017 db.six.globex.example."]),
        // An instance without a port has no route, and so no service record.
        ("_https._tcp.ledger.shop.acme.example.", &[]),
    ] {
        let (_, reply) = ask(&zone, &query(name, RecordType::SRV), Transport::Tcp);
        let mut found: Vec<String> = reply.answers.iter().map(|r| r.data.to_string()).collect();
        let mut expected = expected.to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_service_whose_name_an_earlier_import_holds_is_left_out() {
    let first = service("x.example", vec![instance("x.example", "b", Protocol::Http, Some(80))]);
    let second = service("b.x.example", vec![instance("b.x.example", "i", Protocol::Http, Some(81))]);
    let address_of = |_: &Fqdn| Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let alone = Zone::of_imports(std::slice::from_ref(&second), address_of, [], 5, 1);
    let both = Zone::of_imports(&[first, second], address_of, [], 5, 1);
    let request = query("i.b.x.example.", RecordType::A);
    assert_eq!(ask(&alone, &request, Transport::Udp).0, Outcome::Answered);
    assert_eq!(ask(&both, &request, Transport::Udp).0, Outcome::Refused);
}

#[test]
fn the_absence_of_a_name_is_cached_briefly() {
    let (_, reply) = ask(&zone(), &query("seven.globex.example.", RecordType::A), Transport::Udp);
    let RData::SOA(soa) = &reply.authorities[0].data else { panic!("no SOA") };
    assert_eq!((soa.minimum, soa.serial, reply.authorities[0].ttl), (5, 7, 5));
}

/// A header and a body; the header's counts in order: questions, answers, authorities, additionals.
fn packet(flags: u16, counts: [u16; 4], body: &[u8]) -> Vec<u8> {
    let mut packet = ID.to_be_bytes().to_vec();
    packet.extend(flags.to_be_bytes());
    packet.extend(counts.iter().flat_map(|c| c.to_be_bytes()));
    packet.extend(body);
    packet
}

const QUESTION: &[u8] = b"\x03siX\x06GLobex\x07example\0\0\x1c\0\x01";
const OPT: &[u8] = b"\0\0\x29\x04\xd0\0\0\x80\0\0\0";

fn question_of(class: &[u8]) -> Vec<u8> {
    [&QUESTION[..QUESTION.len() - 2], class].concat()
}

#[test]
fn hostile_packets_get_their_code_and_their_neighbours_an_answer() {
    let zone = zone();
    let question_twice = [QUESTION, QUESTION].concat();
    let cut = &QUESTION[..QUESTION.len() - 1];
    let with_opt = [QUESTION, OPT].concat();
    let two_opts = [QUESTION, OPT, OPT].concat();
    let opt_version_1 = [QUESTION, b"\0\0\x29\x04\xd0\0\x01\0\0\0\0"].concat();
    let opt_broken = [QUESTION, b"\0\0\x29\x04\xd0\0\0\0\0\0\x05ab"].concat();
    let opt_named = [QUESTION, b"\x01a\0\0\x29\x04\xd0\0\0\0\0\0\0"].concat();
    let opt_unknown_option = [QUESTION, b"\0\0\x29\x04\xd0\0\0\0\0\0\x06\xff\x00\0\x02hi"].concat();
    let pointer_loop = b"\xc0\x0c\0\x01\0\x01".to_vec();
    // A pointer into the header: id and flags read as the label of a name.
    let pointer_to_header = b"\x03six\x06globex\xc0\x04\0\x01\0\x01".to_vec();
    let label_type_2 = b"\x80abc\0\0\x01\0\x01".to_vec();
    let dot_in_label = b"\x0asix.globex\x07example\0\0\x1c\0\x01".to_vec();
    let nul_in_label = b"\x04six\0\x06globex\x07example\0\0\x1c\0\x01".to_vec();
    let (chaos, any) = (question_of(b"\0\x03"), question_of(b"\0\xff"));
    let long_name = [&[63; 1][..], &[b'a'; 63]].concat().repeat(5);
    use Outcome as O;
    for (flags, counts, body, expected) in [
        (0x0100, [1, 0, 0, 0], QUESTION, O::Answered),
        (0x0100, [1, 0, 0, 1], &with_opt, O::Answered),
        (0x0100, [1, 0, 0, 1], &opt_unknown_option, O::Answered),
        (0x8100, [1, 0, 0, 0], QUESTION, O::Dropped),
        (0x0800, [1, 0, 0, 0], QUESTION, O::NotImplemented),
        (0x2000, [1, 0, 0, 0], QUESTION, O::NotImplemented),
        (0x7800, [1, 0, 0, 0], QUESTION, O::NotImplemented),
        (0x0100, [0, 0, 0, 0], b"", O::Malformed),
        (0x0100, [2, 0, 0, 0], &question_twice, O::Malformed),
        (0x0100, [1, 0, 0, 0], cut, O::Malformed),
        (0x0100, [1, 0, 0, 1], QUESTION, O::Malformed),
        (0x0100, [1, 1, 0, 0], &with_opt, O::Malformed),
        (0x0100, [1, 0, 1, 0], &with_opt, O::Malformed),
        (0x0100, [1, 0, 0, 2], &two_opts, O::Malformed),
        (0x0100, [1, 0, 0, 0xffff], &two_opts, O::Malformed),
        (0x0100, [1, 0, 0, 1], &opt_broken, O::Malformed),
        (0x0100, [1, 0, 0, 1], &opt_named, O::Malformed),
        (0x0100, [1, 0, 0, 1], &opt_version_1, O::BadVersion),
        (0x0100, [1, 0, 0, 0], &pointer_loop, O::Malformed),
        (0x0100, [1, 0, 0, 0], &pointer_to_header, O::Malformed),
        (0x0100, [1, 0, 0, 0], &label_type_2, O::Malformed),
        (0x0100, [1, 0, 0, 0], &long_name, O::Malformed),
        (0x0100, [1, 0, 0, 0], &dot_in_label, O::Refused),
        (0x0100, [1, 0, 0, 0], &nul_in_label, O::Refused),
        (0x0100, [1, 0, 0, 0], &chaos, O::Refused),
        (0x0100, [1, 0, 0, 0], &any, O::Refused),
    ] {
        let request = packet(flags, counts, body);
        let (outcome, reply) = ask_bytes(&zone, &request, Transport::Udp);
        assert_eq!(outcome, expected, "flags {flags:#x}, counts {counts:?}, {body:x?}");
        let code = match expected {
            O::Dropped => {
                assert!(reply.is_empty());
                continue;
            }
            O::Answered => ResponseCode::NoError,
            O::NotImplemented => ResponseCode::NotImp,
            O::Malformed => ResponseCode::FormErr,
            O::BadVersion => ResponseCode::BADVERS,
            _ => ResponseCode::Refused,
        };
        let reply = Message::from_vec(&reply).unwrap();
        let high = reply.edns.as_ref().map_or(0, |edns| u16::from(edns.rcode_high()));
        assert_eq!(high << 4 | u16::from(reply.metadata.response_code.low()), u16::from(code));
        assert_eq!((reply.metadata.id, reply.metadata.message_type), (ID, MessageType::Response));
        assert_eq!(u8::from(reply.metadata.op_code), ((flags >> 11) & 15) as u8);
    }
}

#[test]
fn what_is_shorter_than_a_header_or_longer_than_any_question_gets_no_answer() {
    let zone = zone();
    let request = packet(0x0100, [1, 0, 0, 0], QUESTION);
    for length in 0..12 {
        assert_eq!(ask_bytes(&zone, &request[..length], Transport::Udp), (Outcome::Dropped, Vec::new()));
    }
    let mut padded = request;
    padded.resize(config::REQUEST_MAX, 0);
    assert_eq!(ask_bytes(&zone, &padded, Transport::Tcp).0, Outcome::Answered);
    padded.push(0);
    assert_eq!(ask_bytes(&zone, &padded, Transport::Tcp).0, Outcome::Malformed);
}

#[test]
fn the_question_comes_back_byte_for_byte() {
    let body = [QUESTION, OPT].concat();
    let (_, reply) = ask_bytes(&zone(), &packet(0x0100, [1, 0, 0, 1], &body), Transport::Udp);
    assert_eq!(&reply[12..12 + QUESTION.len()], QUESTION);
    // The answer's owner is a pointer to it, so it has the same case.
    assert_eq!(&reply[12 + QUESTION.len()..][..2], b"\xc0\x0c");
    // The OPT record is last: our size, no version, the DO bit copied (RFC 3225, 3).
    assert_eq!(&reply[reply.len() - OPT.len()..], OPT);
}

#[test]
fn the_size_of_a_udp_reply_follows_the_client_and_the_request() {
    let zone = wide_zone();
    let many = |payload: Option<u16>, padding: usize| {
        let mut request = query("many.acme.example.", RecordType::SRV);
        request.metadata.recursion_desired = true;
        if let Some(payload) = payload {
            request = with_edns(request, payload);
        }
        let mut bytes = request.to_vec().unwrap();
        bytes.resize(bytes.len() + padding, 0);
        bytes
    };
    for (payload, padding, limit) in [
        (None, 600, 512),
        (Some(100), 600, 512),
        (Some(900), 600, 900),
        (Some(65_535), 600, 1232),
        (None, 0, 105),
    ] {
        let request = many(payload, padding);
        let (outcome, reply) = ask_bytes(&zone, &request, Transport::Udp);
        assert_eq!(outcome, Outcome::Truncated);
        assert!(reply.len() <= limit, "{} bytes of {limit}", reply.len());
        assert!(reply.len() <= 3 * request.len());
        let reply = Message::from_vec(&reply).unwrap();
        assert!(reply.metadata.truncation);
        assert_eq!(reply.edns.is_some(), payload.is_some());
    }
    let (outcome, reply) = ask_bytes(&zone, &many(None, 0), Transport::Tcp);
    assert_eq!(outcome, Outcome::Answered);
    assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), config::SERVICES_MAX);
}

#[test]
fn at_most_eight_addresses_are_given_and_each_in_its_turn() {
    let zone = wide_zone();
    let mut firsts = std::collections::BTreeSet::new();
    for id in 0..20 {
        let mut request = query("many.acme.example.", RecordType::A);
        request.metadata.id = id;
        let (outcome, reply) = ask(&zone, &request, Transport::Tcp);
        assert_eq!((outcome, reply.answers.len()), (Outcome::Answered, config::ADDRESSES_MAX));
        firsts.insert(reply.answers[0].data.to_string());
    }
    assert_eq!(firsts.len(), 20);
}

#[test]
fn every_answer_that_says_no_fits_the_smallest_request() {
    let long = format!("{0}.{0}.{0}.hamlet.", "a".repeat(63));
    for name in ["hamlet.", "b.hamlet.", long.as_str()] {
        let request = query(name, RecordType::A);
        let (outcome, reply) = ask(&zone(), &request, Transport::Udp);
        assert!(matches!(outcome, Outcome::NoData | Outcome::NoSuchName), "{name}: {outcome:?}");
        assert_eq!(reply.authorities.len(), 1);
    }
}

/// What holds for every reply to every request.
fn check_reply(zone: &Zone, request: &[u8]) -> Result<(), TestCaseError> {
    for transport in [Transport::Udp, Transport::Tcp] {
        let (outcome, reply) = ask_bytes(zone, request, transport);
        prop_assert_eq!(outcome == Outcome::Dropped, reply.is_empty());
        if reply.is_empty() {
            continue;
        }
        prop_assert_eq!(&reply[..2], &request[..2], "the id");
        prop_assert!(reply[2] & 0x80 != 0, "a reply says that it is one");
        prop_assert!(request[2] & 0x80 == 0, "replies are not answered");
        prop_assert!(Message::from_vec(&reply).is_ok());
        if transport == Transport::Udp {
            prop_assert!(reply.len() <= config::UDP_REPLY_MAX);
            prop_assert!(reply.len() <= config::AMPLIFICATION_MAX * request.len());
        }
        let (again, nothing) = ask_bytes(zone, &reply, transport);
        prop_assert_eq!((again, nothing.len()), (Outcome::Dropped, 0), "no loops");
    }
    Ok(())
}

fn any_query() -> impl Strategy<Value = Vec<u8>> {
    let names = prop::sample::select(vec![
        "ledger.shop.acme.example.",
        "_http._tcp.ledger.shop.acme.example.",
        "SIX.globex.example.",
        "seven.globex.example.",
        "shop.acme.example.",
        "globex.example.",
        "many.acme.example.",
        "hamlet.",
        "www.example.org.",
        ".",
    ]);
    let kinds = prop::sample::select(vec![1u16, 2, 6, 28, 33, 41, 64, 252, 255]);
    (names, kinds, prop::option::of(any::<u16>()), any::<u16>()).prop_map(|(name, kind, payload, id)| {
        let mut message = query(name, kind.into());
        message.metadata.id = id;
        if let Some(payload) = payload {
            message = with_edns(message, payload);
        }
        message.to_vec().unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_bytes_break_it(request in prop::collection::vec(any::<u8>(), 0..600)) {
        check_reply(&zone(), &request)?;
    }

    #[test]
    fn no_mutation_of_a_query_breaks_it(
        mut request in any_query(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..40),
        wide in any::<bool>(),
    ) {
        for (at, byte) in changes {
            let at = at.index(request.len());
            request[at] = byte;
        }
        if let Some(cut) = cut {
            request.truncate(cut.index(request.len()));
        }
        request.extend(tail);
        check_reply(&if wide { wide_zone() } else { zone() }, &request)?;
    }
}

// From here on over sockets.

const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("nothing happened for a long time")
}

struct Running {
    supervisor: Supervisor,
    addr: SocketAddr,
    zone: Arc<ArcSwap<Zone>>,
    counters: Arc<hamlet_adapters::dns::DnsCounters>,
}

impl Running {
    async fn start(zone: Zone) -> Running {
        let supervisor = Supervisor::new(Shutdown::new());
        let spawner: Spawner = supervisor.spawner();
        let server = DnsServer::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let (addr, counters) = (server.local_addr(), server.counters());
        let zone = Arc::new(ArcSwap::from_pointee(zone));
        spawner.spawn("dns", server.run(zone.clone(), spawner.clone(), spawner.shutdown()));
        Running { supervisor, addr, zone, counters }
    }

    async fn udp(&self, request: &Message) -> Message {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(self.addr).await.unwrap();
        socket.send(&request.to_vec().unwrap()).await.unwrap();
        let mut reply = vec![0; 4096];
        let length = soon(socket.recv(&mut reply)).await.unwrap();
        Message::from_vec(&reply[..length]).unwrap()
    }

    async fn stop(self) {
        assert_eq!(self.supervisor.stop(PATIENCE, PATIENCE).await, Vec::<String>::new());
    }
}

async fn send(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(&(message.len() as u16).to_be_bytes()).await.unwrap();
    stream.write_all(message).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> Message {
    let length = soon(stream.read_u16()).await.unwrap();
    let mut reply = vec![0; usize::from(length)];
    soon(stream.read_exact(&mut reply)).await.unwrap();
    Message::from_vec(&reply).unwrap()
}

/// Whether the other side has closed, without sending more.
async fn closed(stream: &mut TcpStream) -> bool {
    !matches!(soon(stream.read(&mut [0; 1])).await, Ok(1..))
}

#[tokio::test]
async fn a_truncated_answer_is_whole_over_tcp() {
    let running = Running::start(wide_zone()).await;
    let request = query("many.acme.example.", RecordType::A);
    let short = running.udp(&request).await;
    assert!(short.metadata.truncation && short.answers.len() < config::ADDRESSES_MAX);
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    send(&mut stream, &request.to_vec().unwrap()).await;
    let whole = receive(&mut stream).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), config::ADDRESSES_MAX);
    let stats = running.counters.stats();
    assert_eq!((stats.udp.of(Outcome::Truncated), stats.udp.total()), (1, 1));
    assert_eq!((stats.tcp.of(Outcome::Answered), stats.tcp.total()), (1, 1));
    drop(stream);
    running.stop().await;
}

#[tokio::test]
async fn one_connection_carries_many_questions_and_a_new_zone_is_used_at_once() {
    let running = Running::start(Zone::empty()).await;
    let request = query("six.globex.example.", RecordType::AAAA);
    let bytes = request.to_vec().unwrap();
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    send(&mut stream, &bytes).await;
    assert_eq!(receive(&mut stream).await.metadata.response_code, ResponseCode::Refused);
    running.zone.store(Arc::new(zone()));
    for _ in 0..3 {
        send(&mut stream, &bytes).await;
    }
    for _ in 0..3 {
        assert_eq!(receive(&mut stream).await.answers.len(), 1);
    }
    assert_eq!(running.udp(&request).await.answers.len(), 1);
    running.stop().await;
    assert!(closed(&mut stream).await, "the shutdown closes idle connections");
}

#[tokio::test]
async fn too_many_connections_close_the_oldest_and_a_broken_one_only_itself() {
    let running = Running::start(zone()).await;
    let bytes = query("six.globex.example.", RecordType::AAAA).to_vec().unwrap();
    let mut streams = Vec::new();
    for _ in 0..=config::TCP_CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(running.addr).await.unwrap();
        // Answered once, so accepted before the next one comes.
        send(&mut stream, &bytes).await;
        assert_eq!(receive(&mut stream).await.answers.len(), 1);
        streams.push(stream);
    }
    assert!(closed(&mut streams[0]).await);
    assert_eq!(running.counters.stats().tcp_evicted, 1);
    streams[1].write_all(&[0xff, 0xff, 0, 0]).await.unwrap();
    assert!(closed(&mut streams[1]).await, "longer than any question");
    let reply = packet(0x8100, [1, 0, 0, 0], QUESTION);
    send(&mut streams[2], &reply).await;
    assert!(closed(&mut streams[2]).await, "a reply is no question");
    send(&mut streams[3], &bytes).await;
    assert_eq!(receive(&mut streams[3]).await.answers.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn garbage_datagrams_leave_the_listener_answering() {
    let running = Running::start(zone()).await;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(running.addr).await.unwrap();
    for length in [0, 1, 11, 12, 512, 5000] {
        socket.send(&vec![0; length]).await.unwrap();
    }
    let reply = running.udp(&query("six.globex.example.", RecordType::AAAA)).await;
    assert_eq!(reply.answers.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_with_a_remedy() {
    let first = DnsServer::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let error = DnsServer::bind(first.local_addr()).await.unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }));
    let text = error.to_string();
    assert!(text.contains(&first.local_addr().to_string()) && text.contains("5300"), "{text}");
    let other = DnsServer::bind((Ipv4Addr::new(203, 0, 113, 1), 0).into()).await.unwrap_err();
    assert!(matches!(other, BindError::NoSuchAddress { .. }), "{other}");
}
