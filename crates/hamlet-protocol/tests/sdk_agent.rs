//! A program that embeds the SDK beside a whole agent: services both ways, with the agent's policy.

use hamlet_protocol::sdk::{Consumer, Identity, Owner, OwnerEvent, Peer};
use hamlet_testkit::pki::TestCa;
use hamlet_testkit::{GENEROUS, eventually};

mod common;
use common::agent::{Agent, CONTEXT, names};
use common::{rules, service};

/// The agent's mesh as a program knows it.
fn bank(agent: &Agent) -> Peer {
    let peer = Peer::new("bank", "bank.example", agent.ca.pem().as_bytes()).unwrap();
    let peer = peer.with_id(agent.ca.agent_id().as_str()).unwrap();
    peer.with_context(CONTEXT).at(agent.address.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_imports_from_an_agent_under_the_agents_own_rules() {
    let shop = TestCa::new("shop.example");
    let agent = Agent::start("bank", &shop, "shop", None).await;
    agent.publish("shop", &names(&["ledger", "rates"]));
    let consumer: Consumer = Consumer::builder(Identity::from(shop.agent().identity()))
        .peer(bank(&agent))
        .import_rules((*rules("bank")).clone())
        .start()
        .await
        .unwrap();
    let proven = || agent.link().status().owner_proven && consumer.len() == 2;
    eventually("the agent sees that the program holds the same", GENEROUS, proven).await;
    assert_eq!(consumer.get("bank", "ledger").unwrap().fqdn.as_str(), "ledger.bank.example");

    agent.publish("shop", &names(&["ledger"]));
    eventually("the withdrawal arrives", GENEROUS, || consumer.get("bank", "rates").is_none()).await;
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_imports_from_a_program_and_refuses_what_its_policy_refuses() {
    let shop = TestCa::new("shop.example");
    let agent = Agent::start("bank", &shop, "shop", None).await;
    agent.publish("shop", &[]);
    let identity = Identity::from(shop.agent().identity());
    let owner: Owner = Owner::builder(identity).peer(bank(&agent)).start().await.unwrap();
    let mut events = owner.observe();
    owner.put("cart", &service("shop", "cart")).unwrap();
    owner.put("thief", &service("bank", "thief")).unwrap();
    assert!(owner.put("other", &service("shop", "cart")).is_err(), "a service's key is its name");
    owner.ready();
    let refused = async {
        loop {
            match events.next().await.expect("more events") {
                OwnerEvent::Refused { key, reason, .. } => return (key, reason),
                _ => continue,
            }
        }
    };
    let (key, reason) = tokio::time::timeout(GENEROUS, refused).await.unwrap();
    assert_eq!(&*key, "thief");
    assert!(reason.starts_with("name-outside-suffixes: fqdn"), "{reason}");
    eventually("both hold the same set", GENEROUS, || owner.is_proven()).await;
    assert_eq!(agent.imports(), ["cart.shop.example"]);
    owner.stop().await;
    assert!(agent.failed_tasks().is_empty());
}
