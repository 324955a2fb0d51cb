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
            ext::control::Kind::Bundle(b) => format!("bundle {}", b.sequence),
            ext::control::Kind::BundleAck(a) => format!("bundle ack {}", a.sequence),
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

/// A new stream between the same two, each with what it kept.
fn reconnect(bank: End, shop: End) -> (End, End) {
    let (view, versions) = (bank.view.clone(), bank.versions.clone());
    let again = End::with_view("bank", "shop", false, true, bank.slice, view, versions);
    let (view, versions) = (shop.view.clone(), shop.versions.clone());
    (again, End::with_view("shop", "bank", true, true, shop.slice, view, versions))
}

fn many(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("s{i:04}")).collect()
}

fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

#[test]
fn after_a_break_only_the_buckets_that_differ_are_repeated() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    let mut names = many(600);
    bank.publish(&texts(&names));
    shop.publish(&[]);
    talk(&mut shop, &mut bank);
    names.remove(7);
    names.push("new".to_owned());
    bank.publish(&texts(&names));
    let (mut bank, mut shop) = reconnect(bank, shop);
    let log = talk(&mut shop, &mut bank);
    assert!(said_by(&log, "bank").contains(&"begin WANT_BUCKETS"), "{log:#?}");
    assert!(said_by(&log, "shop").contains(&"1024 hashes of level 2"));
    let repeated = said_by(&log, "bank").iter().filter(|l| l.starts_with("upsert")).count();
    assert!((1..=8).contains(&repeated), "{repeated} of 600");
    assert!(said_by(&log, "shop").contains(&"proof EQUAL"), "{log:#?}");
    let held: Vec<&str> = shop.slice.heard_keys().map(|k| &**k).collect();
    assert!(held.contains(&"new") && !held.contains(&"s0007"));
    assert_eq!(bank.session.owner.as_ref().unwrap().stats().rounds, [0, 1, 0]);
}

#[test]
fn a_round_by_buckets_that_did_not_help_is_followed_by_a_whole_one() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["billing"]);
    talk(&mut shop, &mut bank);
    let said = |shop: &mut End| shop.speak().iter().filter_map(|m| tell("shop", m)).collect::<Vec<_>>();
    let wrong = |seq, round| {
        let root = vec![9; 32].into();
        let bookmark = ext::Bookmark { seq, round, version: 9, root, count: 1, ..ext::Bookmark::default() };
        Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Bookmark(bookmark)) })
    };
    let begin = |round, mode: ext::begin::Mode| {
        let scope = vec![0; 4].into();
        let begin = ext::Begin { round, mode: mode as i32, level: 1, scope };
        Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Begin(begin)) })
    };
    let asks = |shop: &mut End, after: u64| {
        shop.now += Duration::from_secs(after);
        shop.session.consumer.tick(&mut shop.slice, shop.now);
        let out = shop.speak();
        out.iter().find_map(|m| match m {
            Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Held(h)) }) => {
                Some((h.round, h.full))
            }
            _ => None,
        })
    };
    shop.hear(&wrong(90, 0));
    assert_eq!(said(&mut shop), ["shop: proof DIFFERENT"]);
    assert_eq!(asks(&mut shop, 9), None);
    assert_eq!(asks(&mut shop, 1), Some((2, false)), "first by buckets");
    shop.hear(&begin(2, ext::begin::Mode::Scope));
    shop.hear(&wrong(91, 2));
    assert_eq!(said(&mut shop), ["shop: proof DIFFERENT"]);
    assert_eq!(asks(&mut shop, 10), Some((3, true)), "then whole");
    shop.hear(&begin(3, ext::begin::Mode::All));
    shop.hear(&wrong(92, 3));
    assert_eq!(said(&mut shop), ["shop: proof DIFFERENT"]);
    assert_eq!(asks(&mut shop, 59), None, "and then ever later");
    assert_eq!(asks(&mut shop, 1), Some((4, true)));
}

#[test]
fn a_window_is_filled_and_not_exceeded_and_the_proof_does_not_wait_for_silence() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    let names = many(3_000);
    bank.publish(&texts(&names));
    shop.publish(&[]);
    let first = shop.speak();
    first.iter().for_each(|m| bank.hear(m));
    let sent = bank.speak();
    let offers = sent.iter().filter(|m| matches!(m, Outgoing::Offer { .. })).count();
    assert_eq!(offers, hamlet_protocol::consumer::INBOX_MESSAGES);
    assert_eq!(bank.session.owner.as_ref().unwrap().in_flight(), offers);
    sent.iter().for_each(|m| shop.hear(m));
    talk(&mut shop, &mut bank);
    bank.publish(&texts(&names[1..]));
    (bank.now, shop.now) = (Duration::from_secs(2), Duration::from_secs(2));
    let kinds: Vec<String> = bank.speak().iter().filter_map(|m| tell("bank", m)).collect();
    assert_eq!(kinds, ["bank: delete s0000 #3001", "bank: bookmark of 2999"], "in flight, and said whole");
}

#[test]
fn a_replica_that_is_behind_holds_back_and_then_sends_the_consumer_elsewhere() {
    for (log_id, lags) in [([7; 16], true), ([8; 16], false)] {
        let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
        bank.publish(&["cart"]);
        let stored = PeerState { down_ms: 0, log_id: log_id.to_vec(), revision: 9 };
        let held = held_of(&mut slice_of("bank"), &stored);
        let hello = our_hello("test", 1, [1; 16], 0, 65_536, Some(held));
        let kind = Some(ext::control::Kind::Hello(hello));
        bank.hear(&Outgoing::Subscribe { control: Some(ext::Control { kind }) });
        let offers = |bank: &mut End| bank.speak().iter().any(|m| matches!(m, Outgoing::Offer { .. }));
        assert_eq!(offers(&mut bank), !lags);
        bank.now = Duration::from_secs(10);
        let end = std::iter::from_fn(|| bank.session.next(bank.now).transpose()).find_map(Result::err);
        assert_eq!(end.map(|e| e.code), lags.then_some(tonic::Code::Unavailable));
    }
}

#[test]
fn whoever_leaves_takes_everything_along_and_whoever_restarts_takes_nothing() {
    for (reason, leaves) in [(ext::goodbye::Reason::Leaving, true), (ext::goodbye::Reason::Restarting, false)]
    {
        let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
        let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
        bank.publish(&["cart"]);
        talk(&mut shop, &mut bank);
        bank.session.say_goodbye(reason, Duration::from_secs(2));
        bank.speak().iter().for_each(|m| shop.hear(m));
        let batch = shop.session.consumer.batch(&mut shop.slice, shop.now);
        assert_eq!(batch.is_some_and(|b| b.leaving), leaves);
        assert_eq!(shop.session.peer_goodbye(), Some(reason));
        assert_eq!(shop.session.retry_after(), Duration::from_secs(2));
    }
}

#[test]
fn a_verdict_that_our_own_policy_changes_is_told_without_repeating_anything() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["cart"]);
    shop.publish(&[]);
    talk(&mut shop, &mut bank);
    for (rules, refused) in [(None, true), (Some(rules("bank")), false)] {
        shop.slice.set_rules(rules, ImportLimits::default(), GuardSettings::default());
        let staged = shop.slice.reevaluate(shop.now);
        assert!(shop.slice.changes_verdict(&staged[0]));
        shop.slice.apply(staged, shop.now);
        shop.session.consumer.verdict_changed(&shop.slice, &Arc::from("cart"));
        let log = talk(&mut shop, &mut bank);
        assert_eq!(said_by(&log, "shop"), ["applied, 1 changes"]);
        assert_eq!(said_by(&log, "bank"), Vec::<&str>::new());
        let told =
            bank.session.owner.as_ref().unwrap().stats().refused.get("cart").map(|r| r.message.clone());
        assert_eq!(told.is_some_and(|m| m.starts_with("no-import:")), refused);
    }
}

#[test]
fn a_peer_without_beats_is_given_up_at_the_second_look_and_a_beating_one_is_not() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&[]);
    shop.publish(&[]);
    talk(&mut shop, &mut bank);
    for seconds in 1..60 {
        (bank.now, shop.now) = (Duration::from_secs(seconds), Duration::from_secs(seconds));
        talk(&mut shop, &mut bank);
        assert_eq!(bank.session.tick(bank.now), Ok(()), "after {seconds} s");
    }
    assert!(bank.session.peer_beat().is_some());
    let silent = |s: u64| Duration::from_secs(59 + s);
    assert_eq!(bank.session.tick(silent(15)), Ok(()), "the first look");
    assert_eq!(bank.session.tick(silent(16)).unwrap_err().code, tonic::Code::Unavailable);
}

#[test]
fn what_the_owner_said_of_rounds_must_be_possible() {
    let kinds = |scope: usize, level| {
        let scope = vec![0; scope].into();
        let mode = ext::begin::Mode::Scope as i32;
        ext::control::Kind::Begin(ext::Begin { round: 1, mode, level, scope })
    };
    let wants = ext::Begin { round: 1, mode: ext::begin::Mode::WantBuckets as i32, ..ext::Begin::default() };
    let cases = [
        (kinds(4, 1), true),
        (kinds(5, 1), false),
        (kinds(4_096, 3), true),
        (kinds(4_096, 4), false),
        (kinds(0, 0), false),
        (ext::control::Kind::Begin(wants), true),
        (ext::control::Kind::Begin(ext::Begin { mode: 99, ..ext::Begin::default() }), false),
        (ext::control::Kind::Buckets(ext::Buckets::default()), false),
    ];
    for (kind, taken) in cases {
        let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
        let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
        talk(&mut shop, &mut bank);
        let message = Outgoing::Control(ext::Control { kind: Some(kind.clone()) });
        let received = shop.session.receive(heard(&message), shop.now);
        assert_eq!(received.is_ok(), taken, "{kind:?}");
    }
}

#[test]
fn buckets_out_of_order_or_of_another_level_end_the_stream_and_right_ones_do_not() {
    let message = |round, level, first, hashes: usize, last| {
        let buckets = ext::Buckets { round, level, first, hashes: vec![1; hashes * 8].into(), last };
        Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Buckets(buckets)) })
    };
    let cases: [(&[Outgoing], bool); 7] = [
        (&[message(1, 2, 0, 1_000, false), message(1, 2, 1_000, 24, true)], true),
        (&[message(1, 2, 0, 1_000, false), message(1, 2, 999, 25, true)], false),
        (&[message(1, 2, 0, 1_000, false), message(1, 3, 1_000, 24, true)], false),
        (&[message(1, 2, 0, 1_025, true)], false),
        (&[message(1, 2, 0, 1_023, true)], false),
        (&[message(2, 2, 0, 1_024, true)], false),
        (&[message(1, 4, 0, 1_024, true)], false),
    ];
    for (i, (messages, taken)) in cases.iter().enumerate() {
        let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
        bank.publish(&["cart"]);
        let held = ext::Held {
            round: 1,
            digest_version: 1,
            root: vec![5; 32].into(),
            count: 1_000,
            ..ext::Held::default()
        };
        let hello = our_hello("test", 1, [1; 16], 0, 65_536, Some(held));
        let kind = Some(ext::control::Kind::Hello(hello));
        bank.hear(&Outgoing::Subscribe { control: Some(ext::Control { kind }) });
        bank.speak();
        let received = messages.iter().try_for_each(|m| bank.session.receive(heard(m), bank.now));
        assert_eq!(received.is_ok(), *taken, "case {i}");
    }
}
