//! An agent that stops: its streams say goodbye, its connections go, its peers keep their copy.

mod common;

use std::time::Duration;

use hamlet_testkit::pki::TestCa;
use hamlet_testkit::store::MemoryStore;
use hamlet_testkit::{GENEROUS, eventually};

use common::agent::{Agent, names};

/// Far longer than an orderly end takes, so that who waits for it has failed.
const DRAIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dialled_or_accepted_stops_without_waiting_for_the_drain_and_the_peer_keeps_its_copy() {
    let shop_ca = TestCa::new("shop.example");
    let bank = Agent::start("bank", &shop_ca, "shop", None).await;
    let shop =
        Agent::restart("shop", shop_ca, MemoryStore::new(), &bank.ca, "bank", Some(bank.address)).await;
    bank.publish("shop", &names(&["ledger"]));
    shop.publish("bank", &names(&["cart"]));
    eventually("proven", GENEROUS, || shop.link().is_proven() && bank.link().is_proven()).await;

    let stopped = tokio::time::timeout(GENEROUS, shop.supervisor.stop(DRAIN, DRAIN)).await;
    assert_eq!(stopped.expect("the dialling side is still draining"), Vec::<String>::new());
    eventually("the end is seen", GENEROUS, || bank.link().active().is_none()).await;
    assert_eq!(bank.imports(), ["cart.shop.example"]);

    let shop = Agent::restart("shop", shop.ca, shop.store, &bank.ca, "bank", Some(bank.address)).await;
    shop.publish("bank", &names(&["cart"]));
    eventually("proven again", GENEROUS, || shop.link().is_proven() && bank.link().is_proven()).await;
    let stopped = tokio::time::timeout(GENEROUS, bank.supervisor.stop(DRAIN, DRAIN)).await;
    assert_eq!(stopped.expect("the accepting side is still draining"), Vec::<String>::new());
    eventually("the end is seen", GENEROUS, || shop.link().active().is_none()).await;
    assert_eq!(shop.imports(), ["ledger.bank.example"]);
    shop.stop().await;
}
