//! The protocol as a story: who says what, in order. Sessions are fed by hand; no sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::durable::PeerState;
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::{ImportLimits, ImportedSlice};
use hamlet_core::lease::NameLeases;
use hamlet_core::view::{Offer, VersionCounter, View};
use hamlet_core::{PeerName, Rejection};
use hamlet_protocol::consumer::held_of;
use hamlet_protocol::dialect::service::{TYPE_URL, decode};
use hamlet_protocol::dialect::{
    Dialect, Incoming, IncomingOffer, IncomingRequest, Operation, Outgoing, Secret,
};
use hamlet_protocol::session::{PeerClass, SessionConfig, StreamSession, our_hello};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;

mod common;
use common::{rules, service};

/// One end of a stream: its session, its view and its imports.
struct End {
    name: &'static str,
    session: StreamSession,
    view: Arc<View>,
    versions: VersionCounter,
    slice: ImportedSlice,
    now: Duration,
}

fn slice_of(peer: &str) -> ImportedSlice {
    let mut slice =
        ImportedSlice::new(PeerName::parse(peer).unwrap(), TYPE_URL, Arc::new(decode), NameLeases::new());
    slice.set_rules(Some(rules(peer)), ImportLimits::default(), GuardSettings::default());
    slice
}

impl End {
    fn new(name: &'static str, peer: &str, dialled: bool, hello: bool, slice: ImportedSlice) -> End {
        let view = View::new(TYPE_URL);
        End::with_view(name, peer, dialled, hello, slice, view, VersionCounter::default())
    }

    fn with_view(
        name: &'static str,
        peer: &str,
        dialled: bool,
        hello: bool,
        mut slice: ImportedSlice,
        view: Arc<View>,
        versions: VersionCounter,
    ) -> End {
        let held = held_of(&mut slice, &PeerState::default());
        let hello = hello.then(|| our_hello("test", 1, [7; 16], view.head(), 65_536, Some(held)));
        let config = SessionConfig {
            peer: peer.to_owned(),
            dialect: Dialect::V1alpha2,
            dialled,
            context: Secret::default(),
            hello,
            extensions_required: false,
            view: view.clone(),
            foreign_window: 1,
        };
        let session = StreamSession::new(config, Duration::ZERO);
        End { name, session, view, versions, slice, now: Duration::ZERO }
    }

    fn publish(&self, names: &[&str]) {
        let offer = |n: &&str| {
            let value = hamlet_protocol::dialect::service::encode(&service(self.name, n));
            (Arc::from(*n), Arc::new(Offer::new(TYPE_URL, n, value)))
        };
        let wanted: BTreeMap<Arc<str>, Arc<Offer>> = names.iter().map(offer).collect();
        self.view.set(&wanted, true, &self.versions);
    }

    /// Commits whatever came (the disk is perfect here) and returns what is to be written.
    fn speak(&mut self) -> Vec<Outgoing> {
        while let Some(batch) = self.session.consumer.batch(&mut self.slice, self.now) {
            self.session.consumer.finish(&mut self.slice, batch, Ok(()), self.now);
        }
        let mut out = vec![];
        while let Some(message) = self.session.next(self.now).unwrap() {
            out.push(message);
        }
        out
    }

    fn hear(&mut self, message: &Outgoing) {
        self.session.receive(heard(message), self.now).unwrap();
    }

    fn in_force(&self) -> u64 {
        self.slice.counts().in_force
    }
}

/// What a message looks like at the other end, through the real encoding.
fn heard(message: &Outgoing) -> Incoming {
    use prost::Message;
    let codec = hamlet_protocol::dialect::v1alpha2::V2Codec {
        resource_url: TYPE_URL,
        context: Secret::default(),
        message_bytes: hamlet_core::service::limits::MESSAGE_BYTES,
    };
    let mut bytes = vec![];
    codec.write(message, &mut bytes);
    let decoded =
        hamlet_protocol::wire::federation::resourcediscovery::v1alpha2::BidirectionalStream::decode(
            &bytes[..],
        )
        .unwrap();
    hamlet_protocol::dialect::v1alpha2::incoming(decoded, bytes.len())
}

fn tell(name: &str, message: &Outgoing) -> Option<String> {
    let text = match message {
        Outgoing::Subscribe { control: Some(_) } => "subscribe, hello".to_owned(),
        Outgoing::Subscribe { control: None } => "subscribe".to_owned(),
        Outgoing::Answer { nonce, answer: Ok(()) } => format!("ack #{nonce}"),
        Outgoing::Answer { nonce, answer: Err(Rejection { rule, .. }) } => format!("nack #{nonce} {rule}"),
        Outgoing::Offer { nonce, change, .. } => {
            format!("{} {} #{nonce}", if change.deleted { "delete" } else { "upsert" }, change.offer.key)
        }
        Outgoing::Control(c) => match c.kind.as_ref()? {
            ext::control::Kind::Begin(b) => {
                format!("begin {}", ext::begin::Mode::try_from(b.mode).unwrap().as_str_name())
            }
            ext::control::Kind::Bookmark(b) => format!("bookmark of {}", b.count),
            ext::control::Kind::Proof(p) => {
                format!("proof {}", ext::proof::Verdict::try_from(p.verdict).unwrap().as_str_name())
            }
            ext::control::Kind::Beat(_) => return None,
            ext::control::Kind::Buckets(b) => format!("{} hashes of level {}", b.hashes.len() / 8, b.level),
            ext::control::Kind::Applied(a) => format!("applied, {} changes", a.changes.len()),
            ext::control::Kind::Held(_) => "held, asks for a round".to_owned(),
            ext::control::Kind::Goodbye(_) => "goodbye".to_owned(),
            ext::control::Kind::Hello(_) => "hello".to_owned(),
        },
    };
    Some(format!("{name}: {text}"))
}

/// Lets two ends talk until both are silent; returns what was said.
fn talk(a: &mut End, b: &mut End) -> Vec<String> {
    let mut log = vec![];
    for _ in 0..10_000 {
        let (from_a, from_b) = (a.speak(), b.speak());
        if from_a.is_empty() && from_b.is_empty() {
            return log;
        }
        log.extend(from_a.iter().filter_map(|m| tell(a.name, m)));
        log.extend(from_b.iter().filter_map(|m| tell(b.name, m)));
        from_a.iter().for_each(|m| b.hear(m));
        from_b.iter().for_each(|m| a.hear(m));
    }
    panic!("they never fell silent: {log:#?}");
}

fn said_by<'a>(log: &'a [String], name: &str) -> Vec<&'a str> {
    log.iter().filter_map(|l| l.strip_prefix(&format!("{name}: "))).collect()
}

#[test]
fn the_full_state_comes_one_by_one_and_ends_in_a_proof() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["cart", "billing"]);
    shop.publish(&[]);
    let log = talk(&mut shop, &mut bank);
    assert_eq!(
        said_by(&log, "bank"),
        [
            "subscribe, hello",
            "begin ALL",
            "upsert billing #1",
            "upsert cart #2",
            "bookmark of 2",
            "proof EQUAL",
        ]
    );
    assert_eq!(
        said_by(&log, "shop"),
        ["subscribe, hello", "ack #1", "ack #2", "proof EQUAL", "begin EQUAL", "bookmark of 0"]
    );
    assert_eq!(shop.in_force(), 2);
    assert!(bank.session.owner.as_ref().unwrap().proven());
}

#[test]
fn a_superseded_change_is_never_sent_and_a_withdrawal_is_a_delete() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["cart"]);
    talk(&mut shop, &mut bank);
    bank.publish(&["cart", "flapping"]);
    bank.publish(&["cart"]);
    bank.publish(&["cart", "new"]);
    bank.publish(&["new"]);
    (bank.now, shop.now) = (Duration::from_secs(2), Duration::from_secs(2));
    let log = talk(&mut shop, &mut bank);
    assert_eq!(
        said_by(&log, "bank"),
        ["delete cart #2", "delete flapping #3", "upsert new #4", "bookmark of 1"]
    );
    assert_eq!(shop.in_force(), 1);
}

#[test]
fn a_delete_that_happened_while_the_consumer_was_away_is_swept_on_return() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["billing", "cart"]);
    talk(&mut shop, &mut bank);
    bank.publish(&["billing"]);
    let (view, versions) = (bank.view.clone(), bank.versions.clone());
    let mut bank = End::with_view("bank", "shop", false, true, slice_of("shop"), view, versions);
    let mut shop = End::new("shop", "bank", true, true, shop.slice);
    shop.publish(&[]);
    let log = talk(&mut shop, &mut bank);
    assert!(said_by(&log, "bank").contains(&"begin SCOPE"));
    assert_eq!(shop.in_force(), 1);
    assert!(bank.session.owner.as_ref().unwrap().proven());
}

#[test]
fn an_unchanged_set_costs_one_root_on_return() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["billing", "cart"]);
    talk(&mut shop, &mut bank);
    let (view, versions) = (bank.view.clone(), bank.versions.clone());
    let mut bank = End::with_view("bank", "shop", false, true, slice_of("shop"), view, versions);
    let mut shop = End::new("shop", "bank", true, true, shop.slice);
    let log = talk(&mut shop, &mut bank);
    assert_eq!(said_by(&log, "bank"), ["subscribe, hello", "begin EQUAL", "bookmark of 2"]);
}

#[test]
fn a_refused_service_is_told_with_its_rule_and_counted_in_the_proof() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    let wrong = hamlet_protocol::dialect::service::encode(&service("elsewhere", "x"));
    let offer = Arc::new(Offer::new(TYPE_URL, "x", wrong));
    bank.view.set(&[(Arc::from("x"), offer)].into(), true, &bank.versions);
    let log = talk(&mut shop, &mut bank);
    assert!(said_by(&log, "shop").contains(&"nack #1 name-outside-suffixes"), "{log:#?}");
    assert!(said_by(&log, "shop").contains(&"proof EQUAL"));
    let stats = bank.session.owner.as_ref().unwrap().stats().clone();
    assert_eq!(stats.refused["x"].code, 7);
    assert_eq!(stats.proof.unwrap().refused, 1);
}

#[test]
fn a_difference_found_by_a_bookmark_leads_to_one_whole_round() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["billing", "cart"]);
    talk(&mut shop, &mut bank);
    // Something is lost here that the owner knows nothing of.
    let lost = shop.slice.sweep(&[Arc::from("cart")].into(), None, shop.now);
    shop.slice.apply(lost, shop.now);
    assert_eq!(shop.in_force(), 1);
    (bank.now, shop.now) = (Duration::from_secs(61), Duration::from_secs(61));
    let log = talk(&mut shop, &mut bank);
    assert!(said_by(&log, "shop").contains(&"proof DIFFERENT"), "{log:#?}");
    (bank.now, shop.now) = (Duration::from_secs(72), Duration::from_secs(72));
    shop.session.consumer.tick(&mut shop.slice, shop.now);
    let log = talk(&mut shop, &mut bank);
    assert!(said_by(&log, "shop").contains(&"held, asks for a round"));
    assert!(said_by(&log, "shop").contains(&"proof EQUAL"), "{log:#?}");
    assert_eq!(shop.in_force(), 2);
}

#[test]
fn a_foreign_consumer_gets_one_at_a_time_and_never_a_control() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    bank.publish(&["billing", "cart"]);
    let url = TYPE_URL.to_owned();
    let request = IncomingRequest { resource_url: url, ..IncomingRequest::default() };
    let subscribe = Incoming { request: Some(request), ..Incoming::default() };
    bank.session.receive(subscribe, bank.now).unwrap();
    let said = |out: Vec<Outgoing>| out.iter().filter_map(|m| tell("bank", m)).collect::<Vec<_>>();
    assert_eq!(said(bank.speak()), ["bank: subscribe", "bank: upsert billing #1"]);
    assert_eq!(*bank.session.class(), PeerClass::Foreign);
    let ack = |nonce: &str| {
        let status = Some((0, String::new()));
        let request = IncomingRequest { nonce: nonce.into(), status, ..IncomingRequest::default() };
        Incoming { request: Some(request), ..Incoming::default() }
    };
    assert_eq!(said(bank.speak()), Vec::<String>::new(), "nothing more before the answer");
    bank.session.receive(ack("1"), bank.now).unwrap();
    assert_eq!(said(bank.speak()), ["bank: upsert cart #2"]);
    bank.session.receive(ack("2"), bank.now).unwrap();
    assert_eq!(said(bank.speak()), Vec::<String>::new(), "no bookmark to a foreign peer");
}

fn offer(operation: Operation, resource: Option<Bytes>) -> IncomingOffer {
    IncomingOffer {
        nonce: "n".into(),
        resource_url: TYPE_URL.into(),
        key: "billing".into(),
        resource: resource.map(|value| (TYPE_URL.to_owned(), value)),
        refused: None,
        operation,
        context: String::new(),
        version: 0,
    }
}

/// Each wrong change, with its proper neighbour, from a foreign owner.
#[test]
fn wrong_changes_are_refused_in_their_turn_and_the_stream_lives() {
    let value = hamlet_protocol::dialect::service::encode(&service("bank", "billing"));
    let good = || offer(Operation::Upsert, Some(value.clone()));
    let cases: Vec<(&str, IncomingOffer, usize)> = vec![
        ("ack", good(), 500),
        ("message-too-large", good(), 65_537),
        ("ack", good(), 65_536),
        ("resource-missing", offer(Operation::Upsert, None), 100),
        ("operation-unknown", offer(Operation::Unknown(3), Some(value.clone())), 500),
        ("operation-unknown", offer(Operation::Unknown(0), Some(value.clone())), 500),
        ("operation-unknown", offer(Operation::Unknown(-1), None), 500),
        ("resource-type", IncomingOffer { resource_url: "other".into(), ..good() }, 500),
        ("resource-type", IncomingOffer { resource: Some(("other".into(), value.clone())), ..good() }, 500),
        ("resource-id", IncomingOffer { key: String::new(), ..good() }, 500),
        ("resource-id", IncomingOffer { key: "k".repeat(254), ..good() }, 500),
        ("resource-undecodable", offer(Operation::Upsert, Some(Bytes::from_static(b"\xff\xff"))), 10),
        ("ack", offer(Operation::Delete, None), 100),
    ];
    for (expected, offer, bytes) in cases {
        let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
        shop.speak();
        let request = IncomingRequest { resource_url: TYPE_URL.to_owned(), ..IncomingRequest::default() };
        let subscribe = Incoming { request: Some(request), ..Incoming::default() };
        shop.session.receive(subscribe, shop.now).unwrap();
        let incoming = Incoming { offer: Some(offer), bytes, ..Incoming::default() };
        shop.session.receive(incoming, shop.now).unwrap();
        let answers: Vec<String> = shop.speak().iter().filter_map(|m| tell("shop", m)).collect();
        let expected =
            if expected == "ack" { "shop: ack #n".to_owned() } else { format!("shop: nack #n {expected}") };
        assert_eq!(answers, [expected]);
    }
}

#[test]
fn odd_answers_of_a_foreign_peer_are_counted_and_of_a_hello_peer_end_the_stream() {
    for hello in [false, true] {
        let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
        bank.publish(&["billing", "cart"]);
        let control = hello.then(|| {
            let held = Some(ext::Held { round: 1, ..ext::Held::default() });
            let hello = ext::Hello { version: 1, held, ..ext::Hello::default() };
            ext::Control { kind: Some(ext::control::Kind::Hello(hello)) }
        });
        let request =
            IncomingRequest { resource_url: TYPE_URL.to_owned(), control, ..IncomingRequest::default() };
        let subscribe = Incoming { request: Some(request.clone()), ..Incoming::default() };
        bank.session.receive(subscribe.clone(), bank.now).unwrap();
        bank.speak();
        let answer = |nonce: &str, status| {
            let request = IncomingRequest { nonce: nonce.into(), status, ..IncomingRequest::default() };
            Incoming { request: Some(request), ..Incoming::default() }
        };
        let ok = Some((0, String::new()));
        for odd in [answer("999", ok.clone()), answer("x", ok.clone()), subscribe, Incoming::default()] {
            assert_eq!(bank.session.receive(odd, bank.now).is_err(), hello);
        }
        assert_eq!(bank.session.violations(), 4);
        let without_status = bank.session.receive(answer("1", None), bank.now);
        assert_eq!(without_status.is_err(), hello);
        if !hello {
            let next: Vec<String> = bank.speak().iter().filter_map(|m| tell("bank", m)).collect();
            assert_eq!(next, ["bank: upsert cart #2"], "the other service still arrives");
        }
    }
}

#[test]
fn a_wrong_context_or_resource_type_is_told_and_the_right_one_passes() {
    let first = |context: &str, url: &str| {
        let view = View::new(TYPE_URL);
        let config = SessionConfig {
            peer: "shop".into(),
            dialect: Dialect::V1alpha2,
            dialled: false,
            context: Secret::new("open sesame"),
            hello: None,
            extensions_required: false,
            view,
            foreign_window: 1,
        };
        let mut session = StreamSession::new(config, Duration::ZERO);
        let request = IncomingRequest {
            resource_url: url.into(),
            context: context.into(),
            ..IncomingRequest::default()
        };
        let outcome =
            session.receive(Incoming { request: Some(request), ..Incoming::default() }, Duration::ZERO);
        outcome.map_err(|end| end.code)
    };
    assert_eq!(first("open", TYPE_URL), Err(tonic::Code::Unauthenticated));
    assert_eq!(first("open sesame", "other"), Err(tonic::Code::InvalidArgument));
    assert_eq!(first("open sesame", TYPE_URL), Ok(()));
}

#[test]
fn a_hello_consumer_that_never_answers_is_cut_off_and_a_foreign_one_is_kept() {
    for hello in [true, false] {
        let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
        let mut shop = End::new("shop", "bank", true, hello, slice_of("bank"));
        bank.publish(&["billing"]);
        shop.speak().iter().for_each(|m| bank.hear(m));
        bank.speak();
        assert!(bank.session.tick(Duration::from_secs(29)).is_ok());
        assert_eq!(bank.session.tick(Duration::from_secs(31)).is_err(), hello);
    }
}

#[test]
fn a_dialler_that_never_subscribes_gives_up_its_place() {
    for speaks in [false, true] {
        let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
        if speaks {
            let request = IncomingRequest { resource_url: TYPE_URL.to_owned(), ..IncomingRequest::default() };
            bank.session
                .receive(Incoming { request: Some(request), ..Incoming::default() }, bank.now)
                .unwrap();
        }
        assert!(bank.session.tick(Duration::from_secs(29)).is_ok());
        assert_eq!(bank.session.tick(Duration::from_secs(30)).is_ok(), speaks);
    }
}

#[test]
fn what_could_not_be_persisted_is_refused_as_unavailable_and_offered_again() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["billing"]);
    for _ in 0..2 {
        let (from_shop, from_bank) = (shop.speak(), bank.speak());
        from_shop.iter().for_each(|m| bank.hear(m));
        from_bank.iter().for_each(|m| shop.hear(m));
    }
    let batch = shop.session.consumer.batch(&mut shop.slice, shop.now).unwrap();
    let full =
        Rejection::new(hamlet_core::RejectionCode::Unavailable, "not-persisted", "resource", "disk full");
    shop.session.consumer.finish(&mut shop.slice, batch, Err(full), shop.now);
    let log = talk(&mut shop, &mut bank);
    assert!(said_by(&log, "shop").contains(&"nack #1 not-persisted"), "{log:#?}");
    assert_eq!(shop.in_force(), 0);
    (bank.now, shop.now) = (Duration::from_secs(2), Duration::from_secs(2));
    let log = talk(&mut shop, &mut bank);
    assert!(said_by(&log, "bank").contains(&"upsert billing #2"), "{log:#?}");
    assert_eq!(shop.in_force(), 1);
}
