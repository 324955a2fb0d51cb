//! v1alpha1 as a story, with every quirk of the Go library that was seen on the wire (protocol
//! text, section 4): sessions and the real codec, fed with the bytes that it sends; no sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hamlet_core::PeerName;
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::{ImportLimits, ImportedSlice};
use hamlet_core::lease::NameLeases;
use hamlet_core::service::limits::MESSAGE_BYTES;
use hamlet_core::view::{Offer, VersionCounter, View};
use hamlet_protocol::dialect::service::{TYPE_URL as V2_URL, decode};
use hamlet_protocol::dialect::translate::{TYPE_URL, down};
use hamlet_protocol::dialect::v1alpha1::{End, V1Codec};
use hamlet_protocol::dialect::{Dialect, Outgoing, Secret};
use hamlet_protocol::session::{PeerClass, SessionConfig, StreamEnd, StreamSession};
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha1 as pb;
use hamlet_protocol::wire::google::{protobuf::Any, rpc};
use prost::Message;

mod common;
use common::{rules, service};

/// Our end of a stream with the Go library.
struct Ours {
    session: StreamSession,
    codec: V1Codec,
    view: Arc<View>,
    versions: VersionCounter,
    slice: ImportedSlice,
    now: Duration,
}

impl Ours {
    /// We import from mesh `bank`: we dialled its server.
    fn consumer() -> Ours {
        Ours::new(End::Consumer)
    }

    /// Mesh `bank` is us, and the library's client dialled us.
    fn owner() -> Ours {
        Ours::new(End::Owner)
    }

    fn new(end: End) -> Ours {
        let peer = PeerName::parse("bank").unwrap();
        let mut slice = ImportedSlice::new(peer, V2_URL, Arc::new(decode), NameLeases::new());
        slice.set_rules(Some(rules("bank")), ImportLimits::default(), GuardSettings::default());
        let view = View::new(TYPE_URL);
        let config = SessionConfig {
            peer: "bank".to_owned(),
            dialect: Dialect::V1alpha1,
            dialled: end == End::Consumer,
            context: Secret::default(),
            hello: None,
            extensions_required: false,
            view: view.clone(),
            foreign_window: 1,
        };
        let session = StreamSession::new(config, Duration::ZERO);
        let codec = V1Codec { end, message_bytes: MESSAGE_BYTES };
        Ours { session, codec, view, versions: VersionCounter::default(), slice, now: Duration::ZERO }
    }

    /// Publishes exactly these, each with a description to tell its versions apart.
    fn publish(&self, services: &[(&str, &str)]) {
        let offer = |(name, description): &(&str, &str)| {
            let (key, value) = down(&described("bank", name, description)).unwrap();
            (Arc::from(key.as_str()), Arc::new(Offer::new(TYPE_URL, &key, value)))
        };
        let wanted: BTreeMap<Arc<str>, Arc<Offer>> = services.iter().map(offer).collect();
        self.view.set(&wanted, true, &self.versions);
    }

    fn hear(&mut self, message: &impl Message) -> Result<(), StreamEnd> {
        let incoming = self.codec.read(&message.encode_to_vec()[..]).unwrap();
        self.session.receive(incoming, self.now)
    }

    /// All bytes that we want to write now; the disk is perfect.
    fn speak(&mut self) -> Vec<Vec<u8>> {
        while let Some(batch) = self.session.consumer.batch(&mut self.slice, self.now) {
            self.session.consumer.finish(&mut self.slice, batch, Ok(()), self.now);
        }
        let mut out = vec![];
        while let Some(message) = self.session.next(self.now).unwrap() {
            assert!(!matches!(message, Outgoing::Control(_)), "an extension on v1alpha1");
            let mut bytes = vec![];
            self.codec.write(&message, &mut bytes);
            out.push(bytes);
        }
        out
    }

    /// The same as the library's client reads it.
    fn offers(&mut self) -> Vec<pb::StreamResponse> {
        self.speak().iter().map(|b| pb::StreamResponse::decode(&b[..]).unwrap()).collect()
    }

    /// The same as the library's server reads it.
    fn requests(&mut self) -> Vec<pb::StreamRequest> {
        self.speak().iter().map(|b| pb::StreamRequest::decode(&b[..]).unwrap()).collect()
    }

    fn in_force(&self) -> u64 {
        self.slice.counts().in_force
    }
}

fn described(mesh: &str, name: &str, description: &str) -> hamlet_core::FederatedService {
    hamlet_core::FederatedService { description: description.to_owned(), ..service(mesh, name) }
}

fn resource(name: &str, description: &str) -> Option<Any> {
    let (_, value) = down(&described("bank", name, description)).unwrap();
    Some(Any { type_url: TYPE_URL.to_owned(), value })
}

/// A change as the Go server sends it: without a nonce.
fn change(operation: i32, resource: Option<Any>) -> pb::StreamResponse {
    pb::StreamResponse { nonce: String::new(), resource_url: TYPE_URL.to_owned(), resource, operation }
}

/// The Go client's initial request.
fn register() -> pb::StreamRequest {
    pb::StreamRequest { resource_url: TYPE_URL.to_owned(), ..pb::StreamRequest::default() }
}

fn answer(nonce: &str, code: i32, message: &str) -> pb::StreamRequest {
    let status = rpc::Status { code, message: message.to_owned(), details: vec![] };
    pb::StreamRequest { response_nonce: nonce.to_owned(), status: Some(status), ..register() }
}

/// `CREATE http.ledger.bank.example #1`, and so on.
fn told(offers: &[pb::StreamResponse]) -> Vec<String> {
    let one = |o: &pb::StreamResponse| {
        let value = &o.resource.as_ref().expect("a whole resource in every change").value;
        let resource =
            hamlet_protocol::wire::federation::types::v1alpha1::FederatedService::decode(&value[..]).unwrap();
        assert_eq!(o.resource_url, TYPE_URL);
        format!("{} {} #{}", o.operation().as_str_name(), resource.name, o.nonce)
    };
    offers.iter().map(one).collect()
}

fn code(request: &pb::StreamRequest) -> i32 {
    request.status.as_ref().expect("a status in every answer").code
}

#[test]
fn an_empty_nonce_is_answered_with_an_empty_nonce_and_a_status_that_is_present() {
    let mut us = Ours::consumer();
    assert_eq!(us.requests(), [register()], "the first word is the registration, without a hello");
    us.hear(&change(1, resource("ledger", ""))).unwrap();
    let said = us.speak();
    assert_eq!(said.len(), 1);
    assert!(said[0].ends_with(&[0x1a, 0x00]), "status present and empty: {:x?}", said[0]);
    assert_eq!(pb::StreamRequest::decode(&said[0][..]).unwrap(), answer("", 0, ""));
    assert_eq!(us.in_force(), 1);
}

#[test]
fn create_update_and_delete_have_the_numbers_of_v1alpha1() {
    let mut us = Ours::consumer();
    us.speak();
    us.hear(&change(1, resource("ledger", "one"))).unwrap();
    us.hear(&change(2, resource("ledger", "two"))).unwrap();
    us.hear(&change(2, resource("cart", "an update of something new"))).unwrap();
    us.hear(&change(1, resource("cart", "created twice"))).unwrap();
    assert_eq!(us.requests().iter().map(code).collect::<Vec<_>>(), [0, 0, 0, 0]);
    assert_eq!(us.in_force(), 2, "two is an update here, not the deletion that it is in v1alpha2");
    us.hear(&change(3, resource("ledger", "two"))).unwrap();
    us.hear(&change(3, resource("never-heard-of", ""))).unwrap();
    assert_eq!(us.requests().iter().map(code).collect::<Vec<_>>(), [0, 0]);
    assert_eq!(us.in_force(), 1);
}

#[test]
fn what_the_go_server_sends_wrong_is_refused_in_its_turn_and_the_stream_lives() {
    let mut us = Ours::consumer();
    us.speak();
    let other = |url: &str| Some(Any { type_url: url.to_owned(), ..resource("x", "").unwrap() });
    let garbage = Some(Any { type_url: TYPE_URL.to_owned(), value: Bytes::from_static(b"\xff") });
    let large = "d".repeat(70_000);
    let mut foreign_url = change(1, resource("x", ""));
    foreign_url.resource_url = V2_URL.to_owned();
    let cases: Vec<(&str, i32, &str, pb::StreamResponse)> = vec![
        ("a deletion without its resource", 3, "resource-missing: resource:", change(3, None)),
        ("a creation without its resource", 3, "resource-missing: resource:", change(1, None)),
        ("operation 0", 12, "operation-unknown: operation:", change(0, resource("x", ""))),
        ("operation 4", 12, "operation-unknown: operation:", change(4, resource("x", ""))),
        ("operation 4 and no resource", 12, "operation-unknown: operation:", change(4, None)),
        ("a resource of v1alpha2", 3, "resource-type: resource.type_url:", change(1, other(V2_URL))),
        ("another resource_url", 12, "resource-type: resource_url:", foreign_url),
        ("an undecodable resource", 3, "resource-undecodable: resource.value:", change(1, garbage)),
        ("over 64 KiB", 8, "message-too-large: response:", change(1, resource("x", &large))),
        ("a name of another mesh", 7, "name-outside-suffixes: fqdn:", {
            let (_, value) = down(&service("shop", "x")).unwrap();
            change(1, Some(Any { type_url: TYPE_URL.to_owned(), value }))
        }),
    ];
    for (what, expected, text, hostile) in cases {
        us.hear(&hostile).unwrap();
        us.hear(&change(1, resource("good", what))).unwrap();
        let said = us.requests();
        assert_eq!((said.len(), code(&said[0]), code(&said[1])), (2, expected, 0), "{what}");
        let message = &said[0].status.as_ref().unwrap().message;
        assert!(message.starts_with(text), "{what}: {message}");
    }
    assert_eq!(us.session.violations(), 0);
}

#[test]
fn a_refusal_that_is_ignored_leaves_the_older_version_in_force_and_is_shown_by_service() {
    let mut us = Ours::consumer();
    us.speak();
    us.hear(&change(1, resource("ledger", "good"))).unwrap();
    let mut bad = described("bank", "ledger", "bad");
    bad.sans = vec![hamlet_core::SpiffeId::parse("spiffe://bank.example/other").unwrap()];
    let (key, value) = down(&bad).unwrap();
    us.hear(&change(2, Some(Any { type_url: TYPE_URL.to_owned(), value }))).unwrap();
    // The Go server takes any answer for an acknowledgement and goes on.
    us.hear(&change(1, resource("cart", ""))).unwrap();
    assert_eq!(us.requests().iter().map(code).collect::<Vec<_>>(), [0, 7, 0]);
    assert_eq!(us.in_force(), 2);
    let refused: Vec<_> =
        us.slice.refused().map(|(k, r, older)| (k.to_string(), r.rule.clone(), older)).collect();
    assert_eq!(refused, [(key, "san-not-accepted".to_owned(), true)]);
}

#[test]
fn twenty_thousand_changes_that_nobody_waited_for_are_answered_in_order() {
    let mut us = Ours::consumer();
    us.slice.set_rules(
        Some(rules("bank")),
        ImportLimits { services: 30_000, ..ImportLimits::default() },
        GuardSettings::default(),
    );
    us.speak();
    let mut answered = vec![];
    for i in 0..20_000u32 {
        // The reader takes no more than there is room for.
        if !us.session.consumer.has_room() {
            answered.extend(us.requests());
        }
        let response =
            pb::StreamResponse { nonce: i.to_string(), ..change(1, resource(&format!("s{i}"), "")) };
        us.hear(&response).unwrap();
    }
    answered.extend(us.requests());
    let nonces: Vec<u32> = answered.iter().map(|a| a.response_nonce.parse().unwrap()).collect();
    assert_eq!(nonces, (0..20_000).collect::<Vec<_>>());
    assert!(answered.iter().all(|a| code(a) == 0));
    assert_eq!(us.in_force(), 20_000);
}

#[test]
fn an_empty_catalogue_is_silence_and_no_silence_ends_the_stream() {
    for mut us in [Ours::consumer(), Ours::owner()] {
        if !us.session.has_heard() && us.codec.end == End::Owner {
            us.hear(&register()).unwrap();
        }
        us.speak();
        for hours in 1..48 {
            us.now = Duration::from_secs(hours * 3600);
            us.session.tick(us.now).unwrap();
            us.session.consumer.tick(&mut us.slice, us.now);
            assert_eq!(us.speak(), Vec::<Vec<u8>>::new());
        }
        assert_eq!(*us.session.class(), PeerClass::Foreign);
    }
}

#[test]
fn each_side_keeps_to_its_role() {
    let mut us = Ours::owner();
    assert_eq!(us.speak(), Vec::<Vec<u8>>::new(), "the owner says nothing before it is asked");
    us.publish(&[("ledger", "")]);
    assert_eq!(us.speak(), Vec::<Vec<u8>>::new());
    us.hear(&register()).unwrap();
    assert_eq!(told(&us.offers()), ["CREATE ledger #1"]);

    let mut us = Ours::consumer();
    us.publish(&[("ledger", "")]);
    assert_eq!(us.requests(), [register()]);
    us.hear(&change(1, resource("cart", ""))).unwrap();
    assert_eq!(us.requests().len(), 1, "an answer, and never an offer");
    assert!(us.session.owner.is_none());
}

#[test]
fn the_go_client_gets_one_change_at_a_time_and_each_whole() {
    let mut us = Ours::owner();
    us.publish(&[("cart", "1"), ("ledger", "1")]);
    us.hear(&register()).unwrap();
    assert_eq!(told(&us.offers()), ["CREATE cart #1"]);
    assert_eq!(us.offers(), [], "nothing more before the answer");
    us.hear(&answer("1", 0, "")).unwrap();
    assert_eq!(told(&us.offers()), ["CREATE ledger #2"], "the nonce came back as we sent it");
    us.hear(&answer("2", 0, "")).unwrap();
    us.publish(&[("cart", "2"), ("new", "1")]);
    let mut log = vec![];
    for nonce in 3..6 {
        log.extend(told(&us.offers()));
        us.hear(&answer(&nonce.to_string(), 0, "")).unwrap();
    }
    assert_eq!(log, ["UPDATE cart #3", "DELETE ledger #4", "CREATE new #5"]);
    us.publish(&[("cart", "2"), ("ledger", "back"), ("new", "2")]);
    log.clear();
    for nonce in 6..8 {
        log.extend(told(&us.offers()));
        us.hear(&answer(&nonce.to_string(), 0, "")).unwrap();
    }
    assert_eq!(log, ["CREATE ledger #6", "UPDATE new #7"]);
    assert_eq!((us.offers(), us.session.violations()), (vec![], 0));
    let stats = us.session.owner.as_ref().unwrap().stats().clone();
    assert_eq!((stats.sent, stats.acked, stats.nacked), (7, 7, 0));
}

#[test]
fn the_unavailable_that_the_go_client_says_of_everything_is_offered_again_with_backoff() {
    let mut us = Ours::owner();
    us.publish(&[("cart", ""), ("ledger", "")]);
    us.hear(&register()).unwrap();
    assert_eq!(told(&us.offers()), ["CREATE cart #1"]);
    us.hear(&answer("1", 14, "unable to handle the message")).unwrap();
    assert_eq!(told(&us.offers()), ["CREATE ledger #2"], "the next service doesn't wait");
    us.hear(&answer("2", 0, "")).unwrap();
    assert_eq!(us.offers(), []);
    let refused = &us.session.owner.as_ref().unwrap().stats().refused;
    assert_eq!(refused["http.cart.bank.example"].code, 14, "shown by service");
    let mut waits = vec![];
    for nonce in 3..12u64 {
        let due = us.session.owner.as_ref().unwrap().wake_at().expect("it will be offered again");
        waits.push((due - us.now).as_secs());
        us.now = due;
        assert_eq!(told(&us.offers()), [format!("CREATE cart #{nonce}")], "still new to it");
        us.hear(&answer(&nonce.to_string(), 14, "again")).unwrap();
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    us.now += Duration::from_secs(60);
    assert_eq!(told(&us.offers()), ["CREATE cart #12"]);
    us.hear(&answer("12", 0, "")).unwrap();
    let owner = us.session.owner.as_ref().unwrap();
    assert!(owner.stats().refused.is_empty());
    assert_eq!(owner.wake_at(), None);
}

#[test]
fn any_other_refusal_is_final_until_the_service_changes() {
    let mut us = Ours::owner();
    us.publish(&[("cart", "1")]);
    us.hear(&register()).unwrap();
    us.offers();
    us.hear(&answer("1", 3, "no")).unwrap();
    us.now = Duration::from_secs(3600);
    assert_eq!(us.offers(), []);
    us.publish(&[("cart", "2")]);
    assert_eq!(told(&us.offers()), ["UPDATE cart #2"]);
}

#[test]
fn what_the_go_client_says_out_of_turn_is_counted_and_the_stream_lives() {
    let mut us = Ours::owner();
    us.publish(&[("cart", ""), ("ledger", "")]);
    us.hear(&register()).unwrap();
    us.offers();
    let mut breaches = 0;
    for message in [register(), answer("77", 0, ""), pb::StreamRequest::default()] {
        us.hear(&message).unwrap();
        breaches += 1;
        assert_eq!(us.session.violations(), breaches, "{message:?}");
        assert_eq!(us.offers(), []);
    }
    // No nonce with one message in flight means that one.
    us.hear(&answer("", 0, "")).unwrap();
    assert_eq!(us.session.violations(), breaches);
    assert_eq!(told(&us.offers()), ["CREATE ledger #2"]);
    // No status is taken as an acknowledgement, and counted: else it would wait for ever.
    us.hear(&pb::StreamRequest { response_nonce: "2".to_owned(), ..register() }).unwrap();
    assert_eq!(us.session.violations(), breaches + 1);
    us.publish(&[("cart", ""), ("ledger", ""), ("new", "")]);
    assert_eq!(told(&us.offers()), ["CREATE new #3"]);
}

#[test]
fn a_resource_type_that_we_do_not_serve_ends_the_stream_with_the_one_that_we_do() {
    for url in [V2_URL, "", "type.googleapis.com/google.protobuf.Empty"] {
        let mut us = Ours::owner();
        let end = us.hear(&pb::StreamRequest { resource_url: url.to_owned(), ..register() }).unwrap_err();
        assert_eq!(end.code, tonic::Code::InvalidArgument);
        assert!(end.message.contains(TYPE_URL), "{}", end.message);
    }
    let mut us = Ours::owner();
    us.hear(&register()).unwrap();
}

#[test]
fn a_new_stream_gets_the_whole_state_as_creations() {
    let us = Ours::owner();
    us.publish(&[("cart", "1"), ("ledger", "1")]);
    us.publish(&[("cart", "2"), ("ledger", "1")]);
    us.publish(&[("cart", "2")]);
    let mut second = Ours::owner();
    second.session.move_to(&us.view);
    second.hear(&register()).unwrap();
    assert_eq!(told(&second.offers()), ["CREATE cart #1"], "updated before, but new to this stream");
    second.hear(&answer("1", 0, "")).unwrap();
    assert_eq!(second.offers(), [], "what was deleted before isn't mentioned");
}

#[test]
fn extensions_from_a_peer_of_v1alpha1_are_ignored() {
    // Fields from 1000 on are unknown fields here.
    let mut us = Ours::owner();
    us.publish(&[("cart", "")]);
    let mut bytes = register().encode_to_vec();
    bytes.extend([0xc2, 0x3e, 0x02, 0x0a, 0x00]);
    us.session.receive(us.codec.read(&bytes[..]).unwrap(), us.now).unwrap();
    assert_eq!(*us.session.class(), PeerClass::Foreign);
    assert_eq!(told(&us.offers()), ["CREATE cart #1"]);
    us.hear(&answer("1", 0, "")).unwrap();
    us.now = Duration::from_secs(120);
    assert_eq!(us.offers(), [], "no bookmark");
}
