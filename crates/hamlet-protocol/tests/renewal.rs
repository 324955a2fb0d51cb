//! The life of a stream: renewed on a new connection before its time or its certificates end, over
//! real sockets and mTLS, and nothing is lost or withdrawn meanwhile.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::agent::{Agent, Known, names};
use hamlet_identity::LocalIdentity;
use hamlet_protocol::limits::ConnectionLimits;
use hamlet_protocol::link::Connection;
use hamlet_runtime::SystemClock;
use hamlet_testkit::pki::{LeafSpec, TestCa, TestLeaf};
use hamlet_testkit::{GENEROUS, eventually};

/// A consumer that dials `bank`, with that identity.
async fn shop(bank: &Agent, ca: TestCa, (leaf, identity): (TestLeaf, Arc<LocalIdentity>)) -> Agent {
    let known = Known { name: "bank", ca: &bank.ca, address: Some(bank.address) };
    let shop = Agent::proving(identity, leaf, "shop", ca, &[known]).await;
    shop.publish("bank", &[]);
    shop
}

fn holds(agent: &Agent, name: &str) -> bool {
    agent.imports().iter().any(|n| *n == format!("{name}.bank.example"))
}

/// Publishes one service after the other, each seen, until `enough`; those before are there all the
/// while. Returns how many.
async fn publish_until(bank: &Agent, shop: &Agent, enough: impl Fn() -> bool) -> usize {
    let mut published = shop.imports().len();
    let publishing = async {
        while !enough() {
            published += 1;
            let all: Vec<String> = (1..=published).map(|n| format!("n{n}")).collect();
            bank.publish("shop", &all);
            eventually("the change arrives", GENEROUS, || {
                let held = shop.imports().len();
                assert!(held + 1 >= published, "nothing is withdrawn by a renewal: {held} of {published}");
                held == published
            })
            .await;
        }
    };
    tokio::time::timeout(GENEROUS, publishing).await.expect("enough renewals in time");
    published
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_renewed_at_its_age_again_and_again_and_no_update_is_lost() {
    let ca = TestCa::new("shop.example");
    let bank = Agent::start("bank", &ca, "shop", None).await;
    let leaf = ca.agent();
    let identity = leaf.identity();
    let shop = shop(&bank, ca, (leaf, identity)).await;
    let most = ConnectionLimits { stream_life: Duration::from_millis(150), ..ConnectionLimits::default() };
    shop.limits.store(Arc::new(most));
    let link = shop.link();
    let published = publish_until(&bank, &shop, || link.streams() >= 6).await;
    eventually("proven on the last one", GENEROUS, || link.is_proven()).await;
    assert_eq!(link.last_error(), None);
    assert_eq!(shop.imports().len(), published);
    assert!(matches!(link.status().connection, Connection::Up));
    assert_eq!((shop.failed_tasks(), bank.failed_tasks()), (vec![], vec![]));
    shop.stop().await;
    bank.stop().await;
}

/// Of shop's agent, good for so many seconds, in files that can be replaced.
fn short_lived(ca: &TestCa, folder: &std::path::Path, seconds: i64) -> (TestLeaf, Arc<LocalIdentity>) {
    let leaf = LeafSpec { not_after: seconds, ..LeafSpec::of("spiffe://shop.example/agent") };
    let leaf = ca.leaf(leaf);
    let (cert, key) = leaf.write(folder, "agent");
    (leaf, LocalIdentity::from_pem_files(&cert, &key, SystemClock::shared()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_renewed_before_its_certificates_end_if_there_are_later_ones() {
    let (ca, dir) = (TestCa::new("shop.example"), tempfile::tempdir().unwrap());
    let bank = Agent::start("bank", &ca, "shop", None).await;
    let (leaf, identity) = short_lived(&ca, dir.path(), 6);
    let later = ca.agent();
    let shop = shop(&bank, ca, (leaf, identity.clone())).await;
    let link = shop.link();
    publish_until(&bank, &shop, || link.streams() >= 1).await;
    later.write(dir.path(), "agent");
    assert!(identity.reload().unwrap());
    publish_until(&bank, &shop, || link.streams() >= 2).await;
    assert_eq!(link.last_error(), None, "the first one never failed");
    shop.stop().await;
    bank.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_its_certificates_if_there_are_no_later_ones_and_imports_stay() {
    let (ca, dir) = (TestCa::new("shop.example"), tempfile::tempdir().unwrap());
    let bank = Agent::start("bank", &ca, "shop", None).await;
    let (leaf, identity) = short_lived(&ca, dir.path(), 4);
    let later = ca.agent();
    let shop = shop(&bank, ca, (leaf, identity.clone())).await;
    let link = shop.link();
    bank.publish("shop", &names(&["ledger"]));
    eventually("the service is there", GENEROUS, || holds(&shop, "ledger")).await;
    eventually("the stream is over", GENEROUS, || link.active().is_none()).await;
    eventually("on the other side as well", GENEROUS, || bank.link().active().is_none()).await;
    eventually("it is told why", GENEROUS, || link.last_error().is_some()).await;
    assert!(holds(&shop, "ledger"), "nothing is withdrawn by it");
    later.write(dir.path(), "agent");
    assert!(identity.reload().unwrap());
    eventually("and it comes back with new ones", GENEROUS, || link.is_proven()).await;
    shop.stop().await;
    bank.stop().await;
}
