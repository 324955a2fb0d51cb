//! A newer stream of the same peer: nothing more of the older one counts once the newer one has
//! said what we hold.

use std::sync::Arc;
use std::time::Duration;

use hamlet_core::PeerName;
use hamlet_identity::{ProvenPeer, Role};
use hamlet_protocol::dialect::service::{TYPE_URL, encode};
use hamlet_protocol::dialect::{Dialect, Incoming, IncomingOffer, IncomingRequest, Operation, Outgoing};
use hamlet_protocol::session::StreamEnd;
use hamlet_protocol::stream::StreamCell;
use hamlet_protocol::wire::hamlet::federation::v1 as ext;
use hamlet_testkit::pki::TestCa;
use hamlet_testkit::store::MemoryStore;
use tonic::Code;

mod common;
use common::agent::{Agent, CONTEXT, Known};
use common::service;

/// `bank` with a peer `shop` that isn't there: its streams are made by hand.
async fn bank() -> (Agent, ProvenPeer) {
    let shop = TestCa::new("shop.example");
    let known = [Known { name: "shop", ca: &shop, address: None }];
    let bank = Agent::among("bank", TestCa::new("bank.example"), MemoryStore::new(), &known).await;
    bank.publish("shop", &[]);
    let proven = ProvenPeer {
        peer: PeerName::parse("shop").unwrap(),
        id: shop.agent_id().into(),
        role: Role::Agent,
        fingerprint: [0; 32],
        not_after: Duration::MAX,
        chain: Arc::new([]),
    };
    (bank, proven)
}

fn upsert(name: &str) -> Incoming {
    let offer = IncomingOffer {
        nonce: "n".into(),
        resource_url: TYPE_URL.into(),
        key: name.into(),
        resource: Some((TYPE_URL.into(), encode(&service("shop", name)))),
        refused: None,
        operation: Operation::Upsert,
        context: CONTEXT.into(),
        version: 0,
    };
    let url = TYPE_URL.into();
    let request =
        IncomingRequest { resource_url: url, context: CONTEXT.into(), ..IncomingRequest::default() };
    Incoming { offer: Some(offer), request: Some(request), bytes: 500 }
}

/// How many services the stream's hello says we hold.
fn held(cell: &Arc<StreamCell>) -> u64 {
    let said = cell.change(|s| {
        let hello = ext::control::Kind::Hello(ext::Hello::default());
        let control = Some(ext::Control { kind: Some(hello) });
        let url = TYPE_URL.into();
        let request = IncomingRequest {
            resource_url: url,
            context: CONTEXT.into(),
            control,
            ..IncomingRequest::default()
        };
        s.receive(Incoming { request: Some(request), ..Incoming::default() }, Duration::ZERO).unwrap();
        s.next(Duration::ZERO).unwrap()
    });
    match said {
        Some(Outgoing::Subscribe {
            control: Some(ext::Control { kind: Some(ext::control::Kind::Hello(h)) }),
        }) => h.held.unwrap().count,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nothing_of_an_older_stream_is_taken_after_a_newer_one_has_said_what_is_held() {
    let (bank, proven) = bank().await;
    let link = bank.link();
    let (older, _views) = link.open(Dialect::V1alpha2, false, &proven).await.unwrap();
    older.change(|s| s.receive(upsert("late"), Duration::ZERO)).unwrap();
    // The stream breaks, which wakes the committer: it would now find the change in the inbox.
    older.end(StreamEnd::new(Code::Unavailable, "broken"));
    let (newer, _views) = link.open(Dialect::V1alpha2, false, &proven).await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(held(&newer), link.status().counts.heard);
    bank.stop().await;
}

#[tokio::test]
async fn of_two_streams_that_open_at_once_the_later_one_counts() {
    let (bank, proven) = bank().await;
    let link = bank.link();
    let (first, second) = tokio::join!(
        link.open(Dialect::V1alpha2, false, &proven),
        link.open(Dialect::V1alpha2, false, &proven)
    );
    assert_eq!(first.unwrap_err().code, Code::Aborted);
    let (second, _views) = second.unwrap();
    assert_eq!(link.active().unwrap().id, second.id);
    bank.stop().await;
}

#[tokio::test]
async fn a_stream_follows_the_view_that_replaced_its_own_before_it_ran() {
    let (bank, proven) = bank().await;
    let link = bank.link();
    let (cell, views) = link.open(Dialect::V1alpha2, false, &proven).await.unwrap();
    cell.change(|s| s.receive(upsert("x"), Duration::ZERO)).unwrap();
    let before = views.borrow().clone();
    // Another peer shared the view, and then the two part.
    let (sender, views) = tokio::sync::watch::channel(before);
    let after = hamlet_core::view::View::new(TYPE_URL);
    let offer = hamlet_core::view::Offer::new(TYPE_URL, "new", encode(&service("bank", "new")));
    let versions = hamlet_core::view::VersionCounter::default();
    after.set(&[("new".into(), Arc::new(offer))].into(), true, &versions);
    sender.send_replace(after);
    let never = std::future::pending::<Result<futures::stream::Empty<_>, _>>();
    let running = cell.run(never, views, link.shutdown().clone());
    let looking = async {
        loop {
            if cell.look(|s| s.owner.as_ref().unwrap().offered()) == 1 {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        end = running => panic!("{end:?}"),
        () = looking => {}
        () = tokio::time::sleep(hamlet_testkit::GENEROUS) => panic!("it stays on the old view"),
    }
    bank.stop().await;
}
