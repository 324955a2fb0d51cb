//! Two agents in one process, with real sockets and mTLS: the whole protocol crate at work.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hamlet_core::{Fqdn, PeerName, Rejection, RejectionCode};
use hamlet_identity::{ForeignIdentity, RevocationLists, RevocationPolicy, fingerprint_of};
use hamlet_protocol::link::{AppliedReport, Connection, LinkConfig};
use hamlet_protocol::transcript::{Said, TranscriptEntry, Way};
use hamlet_testkit::pki::{DAY, LeafSpec, TestCa};
use hamlet_testkit::store::MemoryStore;
use hamlet_testkit::{GENEROUS, eventually};

mod common;
use common::agent::{Agent, CONTEXT, Known, names};

/// `shop` dials `bank`; both know each other.
async fn two() -> (Agent, Agent) {
    let shop_ca = TestCa::new("shop.example");
    let bank = Agent::start("bank", &shop_ca, "shop", None).await;
    let shop =
        Agent::restart("shop", shop_ca, MemoryStore::new(), &bank.ca, "bank", Some(bank.address)).await;
    (shop, bank)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_synchronise_both_ways_and_prove_it() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger", "rates"]));
    shop.publish("bank", &names(&["cart"]));
    eventually("both directions proven", GENEROUS, || shop.link().is_proven() && bank.link().is_proven())
        .await;
    assert_eq!(shop.imports(), ["ledger.bank.example", "rates.bank.example"]);
    assert_eq!(bank.imports(), ["cart.shop.example"]);

    bank.publish("shop", &names(&["ledger"]));
    eventually("the withdrawal arrives", GENEROUS, || shop.imports() == ["ledger.bank.example"]).await;
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_consumer_serves_before_it_has_reached_the_owner_and_then_sweeps() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger", "rates"]));
    shop.publish("bank", &[]);
    eventually("synchronised", GENEROUS, || shop.imports().len() == 2 && shop.link().is_proven()).await;
    let bank_address = bank.address;
    let (shop_ca, shop_store) = shop.stop().await;
    bank.publish("shop", &names(&["ledger"]));
    let unreachable: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let shop = Agent::restart("shop", shop_ca, shop_store, &bank.ca, "bank", Some(unreachable)).await;
    assert_eq!(shop.imports(), ["ledger.bank.example", "rates.bank.example"]);
    let (shop_ca, shop_store) = shop.stop().await;
    let shop = Agent::restart("shop", shop_ca, shop_store, &bank.ca, "bank", Some(bank_address)).await;
    shop.publish("bank", &[]);
    eventually("swept", GENEROUS, || shop.imports() == ["ledger.bank.example"]).await;
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_owner_leaves_the_imports_in_force_and_is_shown_down() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &[]);
    eventually("synchronised", GENEROUS, || shop.link().is_proven()).await;
    bank.stop().await;
    eventually("down", GENEROUS, || matches!(shop.link().status().connection, Connection::Down { .. })).await;
    assert_eq!(shop.imports(), ["ledger.bank.example"]);
    assert!(shop.link().status().last_error.is_some());
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_services_federate_fully_and_a_change_among_them_arrives() {
    let (shop, bank) = two().await;
    let mut all: Vec<String> = (0..10_000).map(|i| format!("svc-{i:05}")).collect();
    bank.publish("shop", &all);
    shop.publish("bank", &[]);
    let minutes = Duration::from_secs(300);
    eventually("all are in force and proven", minutes, || {
        shop.link().is_proven() && shop.imports().len() == 10_000
    })
    .await;
    assert_eq!(shop.link().status().counts.refused, 0);
    all[5_000] = "changed".to_owned();
    bank.publish("shop", &all);
    eventually("the change arrives", GENEROUS, || {
        let imports: BTreeSet<String> = shop.imports().into_iter().collect();
        imports.contains("changed.bank.example") && !imports.contains("svc-05000.bank.example")
    })
    .await;
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_both_dial_one_stream_is_left_and_both_directions_are_proven() {
    let shop_ca = TestCa::new("shop.example");
    let bank_ca = TestCa::new("bank.example");
    // Each needs the other's port before it is bound: bind one, then the other, then tell.
    let bank = Agent::restart("bank", bank_ca, MemoryStore::new(), &shop_ca, "shop", None).await;
    let shop =
        Agent::restart("shop", shop_ca, MemoryStore::new(), &bank.ca, "bank", Some(bank.address)).await;
    let told = LinkConfig { address: Some(shop.address.to_string()), ..(*bank.link().config()).clone() };
    bank.link().configure(told).await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &names(&["cart"]));
    eventually("both proven", GENEROUS, || shop.link().is_proven() && bank.link().is_proven()).await;
    let (a, b) = (shop.link().status(), bank.link().status());
    assert_ne!(a.dialled, b.dialled, "the same stream seen from both ends");
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_certificate_is_revoked_ends_and_comes_back_when_it_is_not() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &[]);
    eventually("synchronised", GENEROUS, || shop.link().is_proven() && bank.link().is_proven()).await;
    assert_eq!(bank.link().status().proven_by, Some(shop.ca.agent_id().to_string()));
    let believe = |crl: String| {
        let mut trust = shop.ca.trust_as("shop");
        let lists = RevocationLists::read(crl.as_bytes(), RevocationPolicy::default()).unwrap();
        trust.revoked = Some(Arc::new(lists));
        bank.trust.replace(vec![trust]).unwrap();
    };
    believe(shop.ca.crl(&[&shop.ca.agent()], DAY));
    assert_eq!(bank.trust.failures().total(), 0, "another certificate is revoked");
    believe(shop.ca.crl(&[&shop.leaf], DAY));
    let down = |agent: &Agent| matches!(agent.link().status().connection, Connection::Down { .. });
    eventually("the stream ends at the owner", GENEROUS, || down(&bank)).await;
    assert_eq!(bank.link().status().proven_by, None);
    let revoked = || bank.trust.failures().latest().is_some_and(|refusal| refusal.rule == "revoked");
    eventually("the refusal is kept", GENEROUS, revoked).await;
    assert_eq!(shop.imports(), ["ledger.bank.example"], "the imports outlive the stream");
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_proven_by_dns_name_or_fingerprint_where_that_is_configured() {
    let by_name = ForeignIdentity::Dns(vec![Fqdn::parse("agent.shop.example").unwrap()]);
    for (what, named) in [("dns", true), ("fingerprint", false)] {
        let shop_ca = TestCa::new("shop.example");
        let mut spec = LeafSpec::of(shop_ca.agent_id().as_str());
        spec.dns = vec!["agent.shop.example".into()];
        let leaf = shop_ca.leaf(spec);
        let bank = Agent::start("bank", &shop_ca, "shop", None).await;
        let mut trust = shop_ca.trust_as("shop");
        trust.agent_ids.clear();
        trust.foreign = Some(match named {
            true => by_name.clone(),
            false => ForeignIdentity::Fingerprints(vec![fingerprint_of(&leaf.chain[0])]),
        });
        bank.trust.replace(vec![trust]).unwrap();
        let known = [Known { name: "bank", ca: &bank.ca, address: Some(bank.address) }];
        let shop = Agent::presenting("shop", shop_ca, leaf, MemoryStore::new(), &known).await;
        bank.publish("shop", &names(&["ledger"]));
        shop.publish("bank", &names(&["cart"]));
        eventually("both proven", GENEROUS, || shop.link().is_proven() && bank.link().is_proven()).await;
        let proof = bank.link().status().proven_by.unwrap_or_default();
        let expected = if named { "dns:agent.shop.example" } else { "sha256:" };
        assert!(proof.starts_with(expected), "{what}: {proof}");
        shop.stop().await;
        bank.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_peer_is_forgotten_and_its_names_are_gone() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &[]);
    eventually("synchronised", GENEROUS, || shop.link().is_proven()).await;
    shop.link().remove().await;
    assert_eq!(shop.imports(), Vec::<String>::new());
    assert_eq!(shop.store.load(&PeerName::parse("bank").unwrap()), Default::default());
    assert!(shop.clock.now() > Duration::ZERO && !shop.shutdown.has_begun());
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_is_told_which_of_its_services_cannot_be_used_and_when_they_can() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger", "rates"]));
    shop.publish("bank", &[]);
    eventually("synchronised", GENEROUS, || shop.link().is_proven()).await;
    let stream = shop.link().told_on().expect("the peer is a Hamlet agent");
    let problem = || Rejection::new(RejectionCode::Policy, "port-unknown", "instances.a", "name one");
    let report = |key: &str, problem| AppliedReport { key: key.into(), problem };
    let reports = [report("ledger", Some(problem())), report("rates", None), report("none", Some(problem()))];
    assert_eq!(shop.link().report_applied(stream, &reports), 3);
    assert_eq!(shop.link().report_applied(stream + 1, &reports), 0, "another stream");
    let owner = || bank.link().status().owner.expect("the stream is up");
    eventually("the owner knows", GENEROUS, || owner().unusable.len() == 1 && owner().programmed == 1).await;
    assert_eq!(&*owner().unusable["ledger"], "port-unknown: instances.a: name one");
    assert!(owner().refused.is_empty() && bank.link().is_proven(), "it is admitted and held");

    shop.link().report_applied(stream, &[report("ledger", None)]);
    eventually("it can be used", GENEROUS, || owner().unusable.is_empty() && owner().programmed == 2).await;
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transcript_tells_at_both_ends_what_was_said_without_values_and_context() {
    let (shop, bank) = two().await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &[]);
    eventually("synchronised", GENEROUS, || shop.link().is_proven() && bank.link().is_proven()).await;
    let (consumer, owner) = (shop.link().transcript(0).0, bank.link().transcript(0).0);
    let has = |entries: &[TranscriptEntry], way: Way, fits: fn(&Said) -> bool| {
        entries.iter().any(|e| e.way == way && fits(&e.said))
    };
    for (entries, to_shop, to_bank) in [(&consumer, Way::In, Way::Out), (&owner, Way::Out, Way::In)] {
        assert!(has(entries, Way::None, |s| matches!(s, Said::Opened { .. })), "{entries:?}");
        assert!(has(
            entries,
            to_bank,
            |s| matches!(s, Said::Subscribe(hello) if hello.contains("hamlet test"))
        ));
        assert!(has(
            entries,
            to_shop,
            |s| matches!(s, Said::Upsert { key, bytes: 1.., .. } if &**key == "ledger")
        ));
        assert!(has(entries, to_bank, |s| matches!(s, Said::Ack(_))), "{entries:?}");
        assert!(has(entries, to_bank, |s| matches!(s, Said::Control { kind: "proof", .. })));
        let text = format!("{entries:?}");
        assert!(!text.contains(CONTEXT) && !text.contains("bank.example"), "{text}");
    }
    bank.stop().await;
    eventually("the end is in it", GENEROUS, || {
        has(&shop.link().transcript(0).0, Way::None, |s| matches!(s, Said::Ended { .. }))
    })
    .await;
    let last = consumer.last().map_or(0, |e| e.seq);
    assert!(shop.link().transcript(last).0.iter().all(|e| e.seq > last), "only what came later");
    shop.stop().await;
}
