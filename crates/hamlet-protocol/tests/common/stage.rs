//! A stage for hostile peers: agent `bank`, its honest peer `shop`, and `evil`, whom both trust
//! as far as its certificate goes.

use std::net::SocketAddr;

use hamlet_core::SpiffeId;
use hamlet_protocol::link::{Link, LinkStatus};
use hamlet_testkit::pki::{TestCa, TestLeaf};
use hamlet_testkit::store::MemoryStore;
use hamlet_testkit::{GENEROUS, eventually};

use super::agent::{Agent, Known, names};

/// All three, synchronised.
pub struct Stage {
    /// The agent under attack; it publishes `ledger` to both.
    pub bank: Agent,
    /// The honest peer.
    pub shop: Agent,
    /// The hostile peer's CA.
    pub evil: TestCa,
    /// The hostile peer's agent certificate: a good one.
    pub leaf: TestLeaf,
}

impl Stage {
    /// Sets it up; `bank` dials `evil` if an address is given.
    pub async fn set(evil_address: Option<SocketAddr>) -> Stage {
        let evil = TestCa::new("evil.example");
        let leaf = evil.agent();
        Stage::with(evil, leaf, evil_address).await
    }

    /// The same with a hostile peer that exists already.
    pub async fn with(evil: TestCa, leaf: TestLeaf, evil_address: Option<SocketAddr>) -> Stage {
        let shop_ca = TestCa::new("shop.example");
        let peers = [
            Known { name: "shop", ca: &shop_ca, address: None },
            Known { name: "evil", ca: &evil, address: evil_address },
        ];
        let bank = Agent::among("bank", TestCa::new("bank.example"), MemoryStore::new(), &peers).await;
        let address = Some(bank.address);
        let shop = Agent::restart("shop", shop_ca, MemoryStore::new(), &bank.ca, "bank", address).await;
        shop.publish("bank", &[]);
        bank.publish_to(&["shop", "evil"], &names(&["ledger"]));
        eventually("the honest peer has the service", GENEROUS, || shop.imports() == ["ledger.bank.example"])
            .await;
        Stage { bank, shop, evil, leaf }
    }

    /// The id of the hostile agent.
    pub fn evil_id(&self) -> SpiffeId {
        self.evil.agent_id()
    }

    /// The bank's link with the hostile peer.
    pub fn link(&self) -> std::sync::Arc<Link> {
        self.bank.link_with("evil")
    }

    /// The same as people see it.
    pub fn status(&self) -> LinkStatus {
        self.link().status()
    }

    /// The honest peer gets a change, and no task of either agent failed.
    pub async fn still_serves(&self) {
        self.bank.publish_to(&["shop", "evil"], &names(&["after", "ledger"]));
        eventually("the honest peer gets a change", GENEROUS, || {
            self.shop.imports() == ["after.bank.example", "ledger.bank.example"]
        })
        .await;
        assert_eq!(self.bank.failed_tasks(), Vec::<String>::new());
        assert_eq!(self.shop.failed_tasks(), Vec::<String>::new());
    }

    /// Checks that it still serves, and ends.
    pub async fn close(self) {
        self.still_serves().await;
        self.end().await;
    }

    /// Ends, after a test that has shown by itself that it still serves.
    pub async fn end(self) {
        assert_eq!(self.bank.failed_tasks(), Vec::<String>::new());
        self.shop.stop().await;
        self.bank.stop().await;
    }
}
