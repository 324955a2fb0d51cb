//! What a peer may say to a session, and what it costs us: each hostile word has one defined
//! answer and a bounded price, and its benign neighbour passes. No sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::{ImportLimits, ImportedSlice};
use hamlet_core::lease::NameLeases;
use hamlet_core::view::{Offer, VersionCounter, View};
use hamlet_core::{PeerName, Rejection, RejectionCode};
use hamlet_protocol::bundles::{STREAM_BUNDLE_BYTES_MAX, StreamBundle};
use hamlet_protocol::consumer::ConsumerSession;
use hamlet_protocol::dialect::service::{TYPE_URL, decode, encode};
use hamlet_protocol::dialect::{
    Dialect, Incoming, IncomingOffer, IncomingRequest, Operation, Outgoing, Secret,
};
use hamlet_protocol::owner::REFUSALS_MAX;
use hamlet_protocol::session::{PeerClass, SessionConfig, StreamEnd, StreamSession};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use tonic::Code;

mod common;
use common::{rules, service};

const T0: Duration = Duration::ZERO;

fn slice(limits: ImportLimits) -> ImportedSlice {
    let mut slice =
        ImportedSlice::new(PeerName::parse("bank").unwrap(), TYPE_URL, Arc::new(decode), NameLeases::new());
    slice.set_rules(Some(rules("bank")), limits, GuardSettings::default());
    slice
}

fn session(dialled: bool, context: &str, view: &Arc<View>) -> StreamSession {
    let held = Some(ext::Held { round: 1, ..ext::Held::default() });
    let config = SessionConfig {
        peer: "bank".to_owned(),
        dialect: Dialect::V1alpha2,
        dialled,
        context: Secret::new(context),
        hello: Some(ext::Hello { version: 1, held, ..ext::Hello::default() }),
        extensions_required: false,
        view: view.clone(),
        foreign_window: 1,
    };
    StreamSession::new(config, T0)
}

fn request(request: IncomingRequest) -> Incoming {
    Incoming { request: Some(request), ..Incoming::default() }
}

fn control(kind: Option<ext::control::Kind>) -> Incoming {
    request(IncomingRequest { control: Some(ext::Control { kind }), ..IncomingRequest::default() })
}

fn subscribe(hello: bool, context: &str) -> Incoming {
    let held = Some(ext::Held { round: 1, ..ext::Held::default() });
    let kind = Some(ext::control::Kind::Hello(ext::Hello { version: 1, held, ..ext::Hello::default() }));
    request(IncomingRequest {
        resource_url: TYPE_URL.to_owned(),
        context: context.to_owned(),
        control: hello.then_some(ext::Control { kind }),
        ..IncomingRequest::default()
    })
}

fn upsert(key: &str, value: Bytes) -> IncomingOffer {
    IncomingOffer {
        nonce: "n".into(),
        resource_url: TYPE_URL.into(),
        key: key.into(),
        resource: Some((TYPE_URL.to_owned(), value)),
        refused: None,
        operation: Operation::Upsert,
        context: String::new(),
        version: 0,
    }
}

fn offered(offer: IncomingOffer) -> Incoming {
    Incoming { offer: Some(offer), bytes: 500, ..Incoming::default() }
}

fn full() -> Rejection {
    Rejection::new(RejectionCode::Unavailable, "not-persisted", "resource", "disk full")
}

fn views(names: impl IntoIterator<Item = String>) -> BTreeMap<Arc<str>, Arc<Offer>> {
    let offer = |n: String| {
        let value = encode(&service("bank", &n));
        (Arc::from(n.as_str()), Arc::new(Offer::new(TYPE_URL, &n, value)))
    };
    names.into_iter().map(offer).collect()
}

#[test]
fn a_control_of_a_later_version_is_ignored_and_a_second_hello_is_not() {
    let mut s = session(false, "", &View::new(TYPE_URL));
    s.receive(subscribe(true, ""), T0).unwrap();
    assert_eq!(s.receive(control(None), T0), Ok(()));
    assert_eq!(s.violations(), 0);
    let again = s.receive(control(Some(ext::control::Kind::Hello(ext::Hello::default()))), T0);
    assert_eq!(again.unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn the_last_possible_round_number_is_followed_by_the_first() {
    for (round, next) in [(u32::MAX, 1), (7, 8)] {
        let mut s = slice(ImportLimits::default());
        let mut consumer = ConsumerSession::new(TYPE_URL);
        consumer.set_hello();
        let mode = ext::begin::Mode::Equal as i32;
        consumer.begin(ext::Begin { round, mode, ..ext::Begin::default() }, T0).unwrap();
        consumer.bookmark(ext::Bookmark { seq: 1, ..ext::Bookmark::default() }, T0);
        let batch = consumer.batch(&mut s, T0).unwrap();
        consumer.finish(&mut s, batch, Ok(()), T0);
        consumer.tick(&mut s, Duration::from_secs(3600));
        let asked = std::iter::from_fn(|| consumer.next_out()).find_map(|out| match out {
            Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Held(held)) }) => {
                Some(held.round)
            }
            _ => None,
        });
        assert_eq!(asked, Some(next));
    }
}

/// An owner's round number is the consumer's choice too.
#[test]
fn an_owner_that_must_begin_anew_survives_the_last_possible_round_number() {
    let (view, versions) = (View::new(TYPE_URL), VersionCounter::default());
    let many = hamlet_core::view::TOMBSTONES_MAX + 2;
    let cheap = |n: usize, v: &'static [u8]| {
        let key = format!("k{n:06}");
        (Arc::from(key.as_str()), Arc::new(Offer::new(TYPE_URL, &key, Bytes::from_static(v))))
    };
    view.set(&[cheap(0, b"1")].into(), true, &versions);
    let mut s = session(false, "", &view);
    s.receive(subscribe(true, ""), T0).unwrap();
    while s.next(T0).unwrap().is_some() {}
    let ack =
        IncomingRequest { nonce: "1".into(), status: Some((0, String::new())), ..IncomingRequest::default() };
    s.receive(request(ack), T0).unwrap();
    while s.next(T0).unwrap().is_some() {}
    let held = ext::Held { round: u32::MAX, full: true, ..ext::Held::default() };
    s.receive(control(Some(ext::control::Kind::Held(held))), Duration::from_secs(60)).unwrap();
    let now = Duration::from_secs(60);
    let round = |out: &Outgoing| match out {
        Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Begin(b)) }) => Some(b.round),
        _ => None,
    };
    let mut until_begun = || std::iter::from_fn(|| s.next(now).unwrap()).find_map(|out| round(&out));
    let first = until_begun();
    view.set(&(0..many).map(|n| cheap(n, b"2")).collect(), true, &versions);
    view.set(&BTreeMap::new(), true, &versions);
    assert_eq!((first, until_begun()), (Some(u32::MAX), Some(1)));
}

#[test]
fn nothing_counts_before_a_dialler_has_shown_the_context_value() {
    let value = encode(&service("bank", "ledger"));
    for (context, taken) in [("open", false), ("open sesame", true)] {
        let offer = IncomingOffer { context: context.into(), ..upsert("ledger", value.clone()) };
        let mut s = session(false, "open sesame", &View::new(TYPE_URL));
        let outcome: Result<(), StreamEnd> = s.receive(offered(offer), T0);
        assert_eq!(
            outcome.as_ref().map_err(|e| e.code),
            if taken { Ok(&()) } else { Err(Code::Unauthenticated) }
        );
        assert_eq!(s.consumer.has_work(), taken);
        if taken {
            assert_eq!(*s.class(), PeerClass::Foreign);
            assert_eq!(s.violations(), 1);
        }
    }
    // Whom we dial answers with what it likes; it has our value already.
    let mut s = session(true, "open sesame", &View::new(TYPE_URL));
    s.receive(offered(upsert("ledger", value)), T0).unwrap();
    assert!(s.consumer.has_work());
}

#[test]
fn a_small_value_does_not_keep_the_large_message_that_it_came_in() {
    let small = encode(&service("bank", "ledger"));
    let mut message = vec![0u8; 60_000];
    message[..small.len()].copy_from_slice(&small);
    let message = Bytes::from(message);
    let (start, end) = (message.as_ptr() as usize, message.as_ptr() as usize + message.len());
    let mut s = slice(ImportLimits::default());
    let mut consumer = ConsumerSession::new(TYPE_URL);
    consumer.receive(upsert("ledger", message.slice(..small.len())), 60_000, T0).unwrap();
    let root = message.slice(..32);
    consumer.bookmark(ext::Bookmark { root, log_id: message.slice(..16), ..ext::Bookmark::default() }, T0);
    let (mode, scope) = (ext::begin::Mode::Scope as i32, message.slice(..128));
    consumer.begin(ext::Begin { mode, level: 2, scope, ..ext::Begin::default() }, T0).unwrap();
    assert!(message.is_unique(), "nothing in the inbox keeps the message");
    let batch = consumer.batch(&mut s, T0).unwrap();
    let kept = batch.changes[0].record.as_ref().unwrap().heard.as_ref().unwrap().value.as_ptr() as usize;
    assert!(!(start..end).contains(&kept));
    consumer.finish(&mut s, batch, Ok(()), T0);
    assert_eq!(s.counts().in_force, 1);
}

#[test]
fn a_flood_of_refused_keys_in_an_open_round_costs_no_more_than_twice_the_quota() {
    let limits = ImportLimits { services: 10, ..ImportLimits::default() };
    let mut s = slice(limits);
    let mut consumer = ConsumerSession::new(TYPE_URL);
    consumer.set_hello();
    let all = ext::begin::Mode::All as i32;
    consumer.begin(ext::Begin { round: 1, mode: all, ..ext::Begin::default() }, T0).unwrap();
    for i in 0..5_000 {
        consumer.receive(upsert(&format!("k{i}"), Bytes::from_static(b"\xff")), 100, T0).unwrap();
        if !consumer.has_room() || i % 7 == 0 {
            while let Some(batch) = consumer.batch(&mut s, T0) {
                let outcome = if i % 2 == 0 { Ok(()) } else { Err(full()) };
                consumer.finish(&mut s, batch, outcome, T0);
            }
            while consumer.next_out().is_some() {}
        }
    }
    assert_eq!(s.counts().heard, 20);
    assert!(consumer.stats().round_seen.unwrap() <= 20, "marks are bounded by what is heard");
}

fn consumer_ack(s: &mut StreamSession, nonce: u64, code: i32) {
    let answer = IncomingRequest {
        nonce: nonce.to_string(),
        status: Some((code, String::new())),
        ..IncomingRequest::default()
    };
    s.receive(request(answer), T0).unwrap();
}

/// Everything the session offers now, each answered with `code`.
fn offers(s: &mut StreamSession, now: Duration, code: impl Fn(bool) -> i32) -> Vec<String> {
    let mut said = vec![];
    while let Some(out) = s.next(now).unwrap() {
        let Outgoing::Offer { nonce, change, .. } = out else { continue };
        said.push(format!("{}{}", if change.deleted { "-" } else { "+" }, change.offer.key));
        consumer_ack(s, nonce, code(change.deleted));
    }
    said
}

#[test]
fn a_deletion_that_a_foreign_consumer_could_not_take_is_offered_again() {
    let (view, versions) = (View::new(TYPE_URL), VersionCounter::default());
    let names = |n: &[&str]| views(n.iter().map(|n| (*n).to_owned()));
    view.set(&names(&["cart", "ledger"]), true, &versions);
    let mut s = session(false, "", &view);
    s.receive(subscribe(false, ""), T0).unwrap();
    assert_eq!(offers(&mut s, T0, |_| 0), ["+cart", "+ledger"]);
    view.set(&names(&["ledger"]), true, &versions);
    assert_eq!(offers(&mut s, T0, |_| Code::Unavailable as i32), ["-cart"]);
    // The view forgets the deletion: every consumer was told.
    view.set(&names(&["ledger", "new"]), true, &versions);
    assert_eq!(offers(&mut s, T0, |_| 0), ["+new"]);
    assert!(view.latest("cart").is_none());
    assert_eq!(offers(&mut s, Duration::from_secs(2), |_| 0), ["-cart"]);
    assert_eq!(offers(&mut s, Duration::from_secs(600), |_| 0), Vec::<String>::new());
}

#[test]
fn a_deletion_offered_again_yields_to_the_service_that_came_back() {
    let (view, versions) = (View::new(TYPE_URL), VersionCounter::default());
    view.set(&views(["cart".to_owned()]), true, &versions);
    let mut s = session(false, "", &view);
    s.receive(subscribe(false, ""), T0).unwrap();
    offers(&mut s, T0, |_| 0);
    view.set(&BTreeMap::new(), true, &versions);
    assert_eq!(offers(&mut s, T0, |_| Code::Unavailable as i32), ["-cart"]);
    view.set(&views(["cart".to_owned()]), true, &versions);
    assert_eq!(offers(&mut s, T0, |_| 0), ["+cart"]);
    assert_eq!(offers(&mut s, Duration::from_secs(600), |_| 0), Vec::<String>::new());
}

#[test]
fn a_foreign_consumer_that_can_take_nothing_is_offered_all_again_and_loses_no_deletion() {
    let (view, versions) = (View::new(TYPE_URL), VersionCounter::default());
    let name = |i: usize| format!("s{i:05}");
    view.set(&views((0..REFUSALS_MAX + 20).map(name)), true, &versions);
    let mut s = session(false, "", &view);
    s.receive(subscribe(false, ""), T0).unwrap();
    assert_eq!(offers(&mut s, T0, |_| 0).len(), REFUSALS_MAX + 20);
    // All change; one is gone, and its deletion would come last.
    let last = name(REFUSALS_MAX + 19);
    let changed: BTreeMap<_, _> = views((0..REFUSALS_MAX + 19).map(name))
        .into_keys()
        .map(|key| {
            let other = Arc::new(Offer::new(TYPE_URL, &key, encode(&service("bank", "other"))));
            (key, other)
        })
        .collect();
    view.set(&changed, true, &versions);
    let mut told = vec![];
    for _ in 0..=REFUSALS_MAX {
        let Some(Outgoing::Offer { nonce, change, .. }) = s.next(T0).unwrap() else {
            panic!("nothing to offer")
        };
        assert!(!change.deleted);
        consumer_ack(&mut s, nonce, Code::Unavailable as i32);
    }
    for seconds in 1..200 {
        told.extend(offers(&mut s, Duration::from_secs(seconds), |_| 0));
    }
    assert!(told.contains(&format!("-{last}")), "the deletion is not lost");
    let lived = told.iter().filter(|t| t.starts_with('+')).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(lived.len(), REFUSALS_MAX + 19);
}

#[test]
fn only_the_nonce_as_it_was_sent_is_an_answer() {
    let (view, versions) = (View::new(TYPE_URL), VersionCounter::default());
    view.set(&views(["cart".to_owned()]), true, &versions);
    for (nonce, known) in
        [("1", true), ("+1", false), ("01", false), (" 1", false), ("18446744073709551617", false)]
    {
        let mut s = session(false, "", &view);
        s.receive(subscribe(false, ""), T0).unwrap();
        while s.next(T0).unwrap().is_some() {}
        let status = Some((0, String::new()));
        let answer = IncomingRequest { nonce: nonce.into(), status, ..IncomingRequest::default() };
        s.receive(request(answer), T0).unwrap();
        assert_eq!(s.violations() == 0, known, "{nonce}");
    }
}

/// All that a session has to say now.
fn words(session: &mut StreamSession) -> Vec<Outgoing> {
    std::iter::from_fn(|| session.next(T0).unwrap()).collect()
}

fn is_bundle(word: &Outgoing) -> bool {
    let Outgoing::Control(control) = word else { return false };
    matches!(control.kind, Some(ext::control::Kind::Bundle(_) | ext::control::Kind::BundleAck(_)))
}

#[test]
fn a_bundle_is_said_to_a_hello_peer_and_never_to_a_foreign_one() {
    let ours = StreamBundle { trust_domain: "shop.example".into(), sequence: 1, jwks: "{}".into() };
    for (hello, dialled) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut session = session(dialled, "", &View::new(TYPE_URL));
        session.bundles.set_ours(Some(Arc::new(ours.clone())));
        assert!(!words(&mut session).iter().any(is_bundle), "not before the peer has spoken");
        session.receive(subscribe(hello, ""), T0).unwrap();
        assert_eq!(words(&mut session).iter().filter(|w| is_bundle(w)).count(), usize::from(hello));
        let theirs = ext::Bundle { trust_domain: "bank.example".into(), ..ext::Bundle::default() };
        let kind = ext::control::Kind::Bundle(theirs);
        let before = session.violations();
        session.receive(control(Some(kind)), T0).unwrap();
        assert_eq!((session.bundles.theirs().is_some(), session.violations() > before), (hello, !hello));
        session.bundles.answer(1, &Ok(()));
        assert_eq!(words(&mut session).iter().filter(|w| is_bundle(w)).count(), usize::from(hello));
    }
}

#[test]
fn a_bundle_that_breaks_a_limit_ends_the_stream_and_its_neighbour_does_not() {
    let of = |bytes: usize| {
        let jwks = vec![b' '; bytes].into();
        control(Some(ext::control::Kind::Bundle(ext::Bundle { jwks, ..ext::Bundle::default() })))
    };
    let mut session = session(false, "", &View::new(TYPE_URL));
    session.receive(subscribe(true, ""), T0).unwrap();
    session.receive(of(STREAM_BUNDLE_BYTES_MAX), T0).unwrap();
    let end = session.receive(of(STREAM_BUNDLE_BYTES_MAX + 1), T0).unwrap_err();
    assert_eq!(end.code, Code::InvalidArgument, "{end:?}");
}
