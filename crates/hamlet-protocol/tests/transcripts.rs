//! The protocol as a story: who says what, in order. Sessions are fed by hand; no sockets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::Rejection;
use hamlet_core::durable::PeerState;
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::ImportLimits;
use hamlet_core::view::{Offer, View};
use hamlet_protocol::consumer::held_of;
use hamlet_protocol::dialect::service::TYPE_URL;
use hamlet_protocol::dialect::{
    Dialect, Incoming, IncomingOffer, IncomingRequest, Operation, Outgoing, Secret,
};
use hamlet_protocol::session::{PeerClass, SessionConfig, StreamSession, our_hello};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;

mod common;
use common::ends::{End, many, said_by, slice_of, talk, tell, texts};
use common::{rules, service};

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
