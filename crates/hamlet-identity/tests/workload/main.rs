//! The Workload API client against a Workload API server of ours, over a real unix socket: identities
//! and bundles are taken, followed, dropped when they are absent, and kept when the server is lost.

mod api;
#[path = "../forge/mod.rs"]
mod forge;
mod lists;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hamlet_core::TrustDomain;
use hamlet_identity::workload::check_endpoint;
use hamlet_identity::{IdentityError, LocalIdentity, SvidChoice, WorkloadApi};
use hamlet_runtime::{Shutdown, Supervisor, SystemClock};
use hamlet_testkit::pki::{CaSpec, LeafSpec, TestCa};
use hamlet_testkit::{GENEROUS, eventually};
use tempfile::TempDir;
use tonic::Status;

use api::{Server, Svid, SvidResponse};

const AGENT: &str = "spiffe://acme.example/hamlet/agent";
const GATEWAY: &str = "spiffe://acme.example/hamlet/gateway";

/// A folder for the socket, a CA, and a client that follows.
struct Scene {
    folder: TempDir,
    ca: TestCa,
    api: Arc<WorkloadApi>,
    supervisor: Supervisor,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let api = WorkloadApi::new(&format!("unix://{}/api.sock", folder.path().display())).unwrap();
        let supervisor = Supervisor::new(Shutdown::new());
        Scene { folder, ca: TestCa::new("acme.example"), api, supervisor }
    }

    fn serve(&self, word: Result<SvidResponse, Status>) -> Server {
        Server::start(&self.folder.path().join("api.sock"), word)
    }

    fn follow(&self) {
        let spawner = self.supervisor.spawner();
        spawner.spawn("workload-api", self.api.clone().run(spawner.shutdown()));
    }

    /// The agent's and the gateway's identity, and bundles of other domains.
    fn both(&self, others: &[(&str, &TestCa)]) -> SvidResponse {
        let svid = |id: &str| Svid::of(id, &self.ca.leaf(LeafSpec::of(id)), &self.ca);
        let federated = others.iter().map(|(domain, ca)| ((*domain).to_owned(), ca.root().to_vec()));
        SvidResponse {
            svids: vec![svid(AGENT), svid(GATEWAY)],
            crl: vec![],
            federated_bundles: federated.collect(),
        }
    }

    async fn until(&self, what: &str, condition: impl Fn(&WorkloadApi) -> bool) {
        eventually(what, GENEROUS, || condition(&self.api)).await;
    }

    async fn end(self) {
        let Scene { supervisor, .. } = self;
        assert_eq!(supervisor.stop(GENEROUS, GENEROUS).await, Vec::<String>::new());
    }
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

#[tokio::test]
async fn identities_are_found_by_id_the_first_is_the_default_and_bundles_stay_apart() {
    let scene = Scene::new();
    let globex = TestCa::new("globex.example");
    let others = [("spiffe://globex.example", &globex)];
    let _server = scene.serve(Ok(scene.both(&others)));
    scene.follow();
    scene.until("a message", |api| api.ids().len() == 2).await;
    let clock = SystemClock::shared();
    let identity = |choice| LocalIdentity::from_provider(scene.api.provider(choice), clock.clone());
    let of_id = |id: &str| identity(SvidChoice::Id(hamlet_core::SpiffeId::parse(id).unwrap()));
    assert_eq!(identity(SvidChoice::Default).unwrap().spiffe_id().as_str(), AGENT);
    assert_eq!(of_id(GATEWAY).unwrap().spiffe_id().as_str(), GATEWAY);
    let error = of_id("spiffe://acme.example/other").unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, IdentityError::Provider { .. }) && text.contains(AGENT), "{text}");
    assert!(text.contains("; register this process"), "it says what to do: {text}");
    let fingerprints = |name: &str| scene.api.bundle(&domain(name)).unwrap().unwrap().fingerprints();
    assert_eq!(fingerprints("acme.example"), scene.ca.bundle().fingerprints());
    assert_eq!(fingerprints("globex.example"), globex.bundle().fingerprints());
    assert!(scene.api.bundle(&domain("initech.example")).is_none());
    scene.end().await;
}

#[tokio::test]
async fn an_identity_is_found_by_the_hint_of_its_entry_and_by_no_other_text() {
    let scene = Scene::new();
    let mut message = scene.both(&[]);
    message.svids[1].hint = "edge".to_owned();
    let _server = scene.serve(Ok(message));
    scene.follow();
    scene.until("a message", |api| api.ids().len() == 2).await;
    let identity = |hint: &str| {
        let provider = scene.api.provider(SvidChoice::Hint(hint.to_owned()));
        LocalIdentity::from_provider(provider, SystemClock::shared())
    };
    assert_eq!(identity("edge").unwrap().spiffe_id().as_str(), GATEWAY);
    for other in ["", "Edge", "edge ", GATEWAY] {
        assert!(identity(other).is_err(), "{other:?}");
    }
    scene.end().await;
}

#[tokio::test]
async fn who_asks_once_has_the_answer_or_the_reason_and_who_waits_hears_of_both() {
    let scene = Scene::new();
    scene.api.ask(GENEROUS).await;
    let problem = scene.api.problem().unwrap();
    assert!(problem.contains("start the SPIRE agent") && !scene.api.has_spoken(), "{problem}");
    scene.api.heard(GENEROUS).await;
    let server = scene.serve(Err(Status::permission_denied("no identity issued")));
    scene.api.ask(GENEROUS).await;
    let problem = scene.api.problem().unwrap();
    assert!(problem.contains("register this process") && scene.api.is_refused(), "{problem}");
    server.say(Ok(scene.both(&[])));
    scene.api.ask(GENEROUS).await;
    assert_eq!((scene.api.problem(), scene.api.ids().len(), scene.api.bundles()), (None, 2, 1));
    scene.end().await;
}

#[tokio::test]
async fn an_identity_that_waits_takes_what_comes_unless_it_is_of_another_trust_domain() {
    let scene = Scene::new();
    let wait = |domain: &str| {
        let expected = hamlet_core::SpiffeId::parse(&format!("spiffe://{domain}/hamlet/agent")).unwrap();
        let provider = scene.api.provider(SvidChoice::Default);
        LocalIdentity::from_provider_or_wait(provider, expected, SystemClock::shared())
    };
    let (ours, other) = (wait("acme.example"), wait("initech.example"));
    assert!(ours.unusable().is_some() && other.unusable().is_some());
    let _server = scene.serve(Ok(scene.both(&[])));
    scene.follow();
    scene.until("a message", |api| api.ids().len() == 2).await;
    assert!(ours.reload().unwrap());
    assert_eq!(ours.unusable(), None);
    assert!(matches!(other.reload(), Err(IdentityError::OtherDomain { .. })));
    assert!(other.unusable().unwrap().contains("initech.example"));
    scene.end().await;
}

#[tokio::test]
async fn a_rotation_is_followed_and_what_a_message_leaves_out_is_gone() {
    let scene = Scene::new();
    let globex = TestCa::new("globex.example");
    let server = scene.serve(Ok(scene.both(&[("spiffe://globex.example", &globex)])));
    scene.follow();
    scene.until("a message", |api| api.ids().len() == 2).await;
    let identity =
        LocalIdentity::from_provider(scene.api.provider(SvidChoice::Default), SystemClock::shared()).unwrap();
    let before = identity.fingerprint();
    let mut changed = scene.api.changed();
    changed.mark_unchanged();
    let mut next = scene.both(&[]);
    next.svids.truncate(1);
    server.say(Ok(next));
    tokio::time::timeout(GENEROUS, changed.changed()).await.unwrap().unwrap();
    assert!(identity.reload().unwrap());
    assert_ne!(identity.fingerprint(), before);
    assert_eq!(scene.api.ids().len(), 1, "the gateway's is registered no more");
    assert!(scene.api.bundle(&domain("globex.example")).is_none(), "the federation ended");
    assert_eq!(server.opened.load(Ordering::SeqCst), 1);
    scene.end().await;
}

#[tokio::test]
async fn what_was_said_last_stays_while_the_server_is_away_or_refuses_and_is_replaced_when_it_returns() {
    let scene = Scene::new();
    scene.follow();
    scene.until("no server", |api| api.last_error().is_some()).await;
    assert!(scene.api.ids().is_empty());
    let server = scene.serve(Ok(scene.both(&[])));
    scene.until("a message", |api| api.ids().len() == 2).await;
    assert_eq!(scene.api.last_error(), None);
    server.say(Err(Status::permission_denied("no identity issued")));
    scene.until("a refusal", |api| api.last_error().is_some()).await;
    assert_eq!(scene.api.ids().len(), 2, "a refusal is no revocation");
    drop(server);
    let server =
        scene.serve(Ok(SvidResponse { svids: scene.both(&[]).svids[..1].to_vec(), ..Default::default() }));
    scene.until("the new state", |api| api.ids().len() == 1).await;
    drop(server);
    scene.end().await;
}

#[tokio::test]
async fn a_stream_that_is_closed_in_order_is_opened_again_at_once() {
    let scene = Scene::new();
    let server = scene.serve(Ok(scene.both(&[])));
    scene.follow();
    scene.until("a message", |api| api.ids().len() == 2).await;
    let mut one = scene.both(&[]);
    one.svids.truncate(1);
    server.close_streams(Ok(one));
    scene.until("the next stream", |api| api.ids().len() == 1).await;
    scene.end().await;
}

#[tokio::test]
async fn a_message_with_a_hostile_part_is_refused_as_a_whole_and_its_benign_neighbour_is_taken() {
    let scene = Scene::new();
    let other = TestCa::with("acme.example", CaSpec::default());
    let good = || scene.both(&[]);
    let with = |change: &dyn Fn(&mut SvidResponse)| {
        let mut message = good();
        change(&mut message);
        message
    };
    let hostile: Vec<(&str, SvidResponse)> = vec![
        ("no identity", SvidResponse::default()),
        ("no key", with(&|m| m.svids[0].x509_svid_key.clear())),
        ("a key that is none", with(&|m| m.svids[0].x509_svid_key = vec![0x30, 0x03, 1, 2, 3])),
        ("no certificate", with(&|m| m.svids[0].x509_svid.clear())),
        ("half a certificate", with(&|m| m.svids[0].x509_svid.truncate(100))),
        (
            "a bundle of garbage",
            with(&|m| {
                m.federated_bundles = HashMap::from([("spiffe://globex.example".to_owned(), vec![1, 2, 3])]);
            }),
        ),
        (
            "a bundle of no trust domain",
            with(&|m| {
                m.federated_bundles = HashMap::from([("globex example".to_owned(), other.root().to_vec())]);
            }),
        ),
    ];
    let server = scene.serve(Ok(good()));
    scene.follow();
    let mut streams = 0;
    for (what, message) in hostile {
        scene.until(what, |api| api.ids().len() == 2 && api.last_error().is_none()).await;
        server.say(Ok(message));
        scene.until(what, |api| api.last_error().is_some()).await;
        assert_eq!(scene.api.ids().len(), 2, "{what}: the last good state stays");
        streams += 1;
        server.say(Ok(good()));
    }
    scene.until("the last neighbour", |api| api.last_error().is_none()).await;
    assert!(server.opened.load(Ordering::SeqCst) >= streams);
    scene.end().await;
}

#[tokio::test]
async fn the_id_in_the_certificate_counts_and_not_the_one_beside_it() {
    let scene = Scene::new();
    let mut message = scene.both(&[]);
    message.svids.truncate(1);
    message.svids[0].spiffe_id = GATEWAY.to_owned();
    let _server = scene.serve(Ok(message));
    scene.follow();
    scene.until("a message", |api| api.ids().len() == 1).await;
    assert_eq!(scene.api.ids()[0].as_str(), AGENT);
    scene.end().await;
}

#[test]
fn a_place_that_is_none_is_refused_with_an_example() {
    for bad in [
        "",
        "/run/agent.sock",
        "http://127.0.0.1:8081",
        "tcp://localhost",
        "tcp://192.0.2.1:8081",
        "unix://host/path",
    ] {
        let error = WorkloadApi::new(bad).unwrap_err().to_string();
        assert!(error.contains("unix:///run/spire/agent.sock"), "{error}");
    }
    for good in ["unix:///run/spire/agent.sock", "unix:/run/agent.sock", "tcp://127.0.0.1:8081"] {
        WorkloadApi::new(good).unwrap();
        check_endpoint(good).unwrap();
    }
}
