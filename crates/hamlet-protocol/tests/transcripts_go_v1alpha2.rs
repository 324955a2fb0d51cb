//! v1alpha2 with every quirk of its Go implementation that was seen on the wire (protocol text,
//! section 4): a session and the real codec, fed with the bytes that it sends; no sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_core::guard::GuardSettings;
use hamlet_core::imported::{ImportLimits, ImportedSlice};
use hamlet_core::lease::NameLeases;
use hamlet_core::service::limits::MESSAGE_BYTES;
use hamlet_core::view::{Offer, VersionCounter, View};
use hamlet_protocol::dialect::service::{TYPE_URL, decode, encode};
use hamlet_protocol::dialect::v1alpha2::{V2Codec, read};
use hamlet_protocol::dialect::{Dialect, Secret};
use hamlet_protocol::session::{PeerClass, SessionConfig, StreamEnd, StreamSession};
use hamlet_protocol::wire::federation::resourcediscovery::v1alpha2 as pb;
use hamlet_protocol::wire::google::{protobuf::Any, rpc};
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use prost::Message;

mod common;
use common::{rules, service};

const CONTEXT: &str = "as configured on both sides";
/// A nonce as the Go implementation makes them.
const NONCE: &str = "cTq8nRk3WxYz0aBcDeFg1H";

/// Our end of a stream with the Go implementation of mesh `bank`.
struct Ours {
    session: StreamSession,
    codec: V2Codec,
    view: Arc<View>,
    versions: VersionCounter,
    slice: ImportedSlice,
}

impl Ours {
    fn new(dialled: bool) -> Ours {
        let peer = PeerName::parse("bank").unwrap();
        let mut slice = ImportedSlice::new(peer, TYPE_URL, Arc::new(decode), NameLeases::new());
        slice.set_rules(Some(rules("bank")), ImportLimits::default(), GuardSettings::default());
        let view = View::new(TYPE_URL);
        let config = SessionConfig {
            peer: "bank".to_owned(),
            dialect: Dialect::V1alpha2,
            dialled,
            context: Secret::new(CONTEXT),
            hello: Some(ext::Hello { version: 1, ..ext::Hello::default() }),
            extensions_required: false,
            view: view.clone(),
            foreign_window: 1,
        };
        let session = StreamSession::new(config, Duration::ZERO);
        let codec =
            V2Codec { resource_url: TYPE_URL, context: Secret::new(CONTEXT), message_bytes: MESSAGE_BYTES };
        Ours { session, codec, view, versions: VersionCounter::default(), slice }
    }

    fn publish(&self, names: &[&str]) {
        let offer =
            |n: &&str| (Arc::from(*n), Arc::new(Offer::new(TYPE_URL, n, encode(&service("shop", n)))));
        let wanted: BTreeMap<Arc<str>, Arc<Offer>> = names.iter().map(offer).collect();
        self.view.set(&wanted, true, &self.versions);
    }

    fn hear(&mut self, message: &pb::BidirectionalStream) -> Result<(), StreamEnd> {
        let incoming = read(&message.encode_to_vec()[..], MESSAGE_BYTES).unwrap();
        self.session.receive(incoming, Duration::ZERO)
    }

    fn commit(&mut self) {
        while let Some(batch) = self.session.consumer.batch(&mut self.slice, Duration::ZERO) {
            self.session.consumer.finish(&mut self.slice, batch, Ok(()), Duration::ZERO);
        }
    }

    /// What we want to write now, as the Go implementation reads it: each message carries the
    /// context value, and what would crash it is missing from none.
    fn speak(&mut self) -> Vec<pb::BidirectionalStream> {
        self.commit();
        let mut out = vec![];
        while let Some(message) = self.session.next(Duration::ZERO).unwrap() {
            let mut bytes = vec![];
            self.codec.write(&message, &mut bytes);
            let message = pb::BidirectionalStream::decode(&bytes[..]).unwrap();
            if let Some(request) = &message.request {
                assert_eq!(request.context, CONTEXT);
                assert!(request.response_nonce.is_empty() || request.status.is_some());
            }
            if let Some(response) = &message.response {
                assert_eq!(response.context, CONTEXT);
                assert!(response.resource.is_some(), "deletions carry the last resource too");
            }
            out.push(message);
        }
        out
    }
}

fn asks(request: pb::StreamRequest) -> pb::BidirectionalStream {
    let context = CONTEXT.to_owned();
    pb::BidirectionalStream { request: Some(pb::StreamRequest { context, ..request }), response: None }
}

/// Its first message.
fn register() -> pb::BidirectionalStream {
    asks(pb::StreamRequest { resource_url: TYPE_URL.to_owned(), ..pb::StreamRequest::default() })
}

/// Its acknowledgement: no resource_url in it.
fn ack(nonce: &str) -> pb::BidirectionalStream {
    asks(pb::StreamRequest {
        response_nonce: nonce.to_owned(),
        status: Some(rpc::Status::default()),
        ..pb::StreamRequest::default()
    })
}

/// Its change: the resource_id is the fqdn, whatever the name in the resource.
fn change(nonce: &str, operation: i32, name: &str) -> pb::BidirectionalStream {
    let value = encode(&service("bank", name));
    let response = pb::StreamResponse {
        nonce: nonce.to_owned(),
        resource_url: TYPE_URL.to_owned(),
        resource_id: format!("{name}.bank.example"),
        resource: Some(Any { type_url: TYPE_URL.to_owned(), value }),
        operation,
        context: CONTEXT.to_owned(),
        ..pb::StreamResponse::default()
    };
    pb::BidirectionalStream { request: None, response: Some(response) }
}

fn answers(said: &[pb::BidirectionalStream]) -> Vec<(String, i32)> {
    let requests = said.iter().filter_map(|m| m.request.as_ref()).filter(|r| !r.response_nonce.is_empty());
    requests.map(|r| (r.response_nonce.clone(), r.status.as_ref().unwrap().code)).collect()
}

fn offers(said: &[pb::BidirectionalStream]) -> Vec<String> {
    let responses = said.iter().filter_map(|m| m.response.as_ref());
    responses.map(|r| format!("{} {} #{}", r.operation().as_str_name(), r.resource_id, r.nonce)).collect()
}

#[test]
fn the_accepting_side_speaks_only_after_it_has_seen_the_context_value() {
    let mut us = Ours::new(false);
    us.publish(&["cart"]);
    assert_eq!(us.speak(), []);
    let mut wrong = register();
    wrong.request.as_mut().unwrap().context = "something else".to_owned();
    assert_eq!(us.hear(&wrong).unwrap_err().code, tonic::Code::Unauthenticated);

    let mut us = Ours::new(false);
    us.publish(&["cart"]);
    us.hear(&register()).unwrap();
    let said = us.speak();
    let first = said[0].request.as_ref().unwrap();
    assert_eq!((first.resource_url.as_str(), first.control.as_ref()), (TYPE_URL, None), "no hello to it");
    assert_eq!(offers(&said), ["UPSERT cart #1"]);
    assert_eq!(*us.session.class(), PeerClass::Foreign);
}

#[test]
fn the_dialling_side_registers_first_and_then_both_publish_on_the_one_stream() {
    let mut us = Ours::new(true);
    us.publish(&["cart"]);
    let said = us.speak();
    assert_eq!((said.len(), said[0].request.as_ref().unwrap().resource_url.as_str()), (1, TYPE_URL));
    us.hear(&register()).unwrap();
    us.hear(&change(NONCE, 1, "ledger")).unwrap();
    let said = us.speak();
    assert_eq!(answers(&said), [(NONCE.to_owned(), 0)]);
    assert_eq!(offers(&said), ["UPSERT cart #1"]);
    assert_eq!(us.slice.counts().in_force, 1);
}

#[test]
fn an_acknowledgement_without_resource_url_is_one() {
    let mut us = Ours::new(false);
    us.publish(&["cart", "ledger"]);
    us.hear(&register()).unwrap();
    assert_eq!(offers(&us.speak()), ["UPSERT cart #1"]);
    assert_eq!(us.speak(), [], "one in flight");
    us.hear(&ack("1")).unwrap();
    assert_eq!(offers(&us.speak()), ["UPSERT ledger #2"]);
    us.hear(&ack("2")).unwrap();
    us.publish(&["ledger"]);
    assert_eq!(offers(&us.speak()), ["DELETE cart #3"]);
    us.hear(&ack("3")).unwrap();
    assert_eq!((us.speak(), us.session.violations()), (vec![], 0));
}

#[test]
fn changes_that_come_back_to_back_are_answered_each_in_order() {
    let mut us = Ours::new(true);
    us.speak();
    us.hear(&register()).unwrap();
    for i in 0..1_000 {
        us.hear(&change(&format!("{NONCE}{i}"), 1, &format!("s{i}"))).unwrap();
    }
    let expected: Vec<_> = (0..1_000).map(|i| (format!("{NONCE}{i}"), 0)).collect();
    assert_eq!(answers(&us.speak()), expected);
    assert_eq!(us.slice.counts().in_force, 1_000);
}

#[test]
fn with_a_thousand_services_each_way_reading_never_waits_for_writing() {
    // It sends and receives in one loop: whoever stops reading while he writes hangs with it.
    let mut us = Ours::new(true);
    let names: Vec<String> = (0..1_000).map(|i| format!("s{i}")).collect();
    us.publish(&names.iter().map(String::as_str).collect::<Vec<_>>());
    us.speak();
    us.hear(&register()).unwrap();
    // Nothing of ours gets out, and yet all of its changes are taken and committed.
    for i in 0..1_000 {
        assert!(us.session.consumer.has_room());
        us.hear(&change(&format!("{NONCE}{i}"), 1, &format!("t{i}"))).unwrap();
        us.commit();
    }
    assert_eq!(us.slice.counts().in_force, 1_000);
    let said = us.speak();
    assert_eq!((answers(&said).len(), offers(&said).len()), (1_000, 1));
}

#[test]
fn the_resource_id_is_the_key_whatever_it_holds_and_a_deletion_needs_nothing_else() {
    let mut us = Ours::new(true);
    us.speak();
    us.hear(&register()).unwrap();
    us.hear(&change("1", 1, "ledger")).unwrap();
    us.hear(&change("2", 1, "cart")).unwrap();
    us.speak();
    let keys: Vec<_> = us.slice.heard_keys().map(ToString::to_string).collect();
    assert_eq!(keys, ["cart.bank.example", "ledger.bank.example"], "not the names in the resources");
    // With the last resource, as it sends it, and without one.
    us.hear(&change("3", 2, "ledger")).unwrap();
    let mut bare = change("4", 2, "cart");
    bare.response.as_mut().unwrap().resource = None;
    us.hear(&bare).unwrap();
    us.hear(&change("5", 2, "never-heard-of")).unwrap();
    assert!(answers(&us.speak()).iter().all(|(_, code)| *code == 0));
    assert_eq!(us.slice.counts().in_force, 0);
}

#[test]
fn an_operation_that_does_not_exist_is_refused_and_the_stream_lives() {
    let mut us = Ours::new(true);
    us.speak();
    us.hear(&register()).unwrap();
    // 3 is DELETE in v1alpha1.
    for operation in [0, 3, -1] {
        us.hear(&change("odd", operation, "ledger")).unwrap();
        us.hear(&change("good", 1, "ledger")).unwrap();
        assert_eq!(answers(&us.speak()), [("odd".to_owned(), 12), ("good".to_owned(), 0)]);
    }
}
