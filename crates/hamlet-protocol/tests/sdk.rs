//! Owners and consumers as a program embeds them: any message, real sockets, mutual TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hamlet_protocol::sdk::{
    CertificateProvider, Consumer, ConsumerEvent, Events, HeardBundle, Identity, MemoryStore, Missable,
    NotInForce, Owner, OwnerEvent, Peer, PeerName, PemPair, ProtobufResource, ProviderError, PutError,
    Rejection, RejectionCode, StartError, StreamBundle,
};
use hamlet_testkit::pki::TestCa;
use tokio::sync::watch;

/// A message of nobody's protocol.
#[derive(Clone, PartialEq, prost::Message)]
struct Price {
    #[prost(string, tag = "1")]
    currency: String,
    #[prost(uint64, tag = "2")]
    cents: u64,
}

impl ProtobufResource for Price {
    const TYPE_URL: &'static str = "type.googleapis.com/hamlet.test.Price";
}

fn price(cents: u64) -> Price {
    Price { currency: "EUR".into(), cents }
}

/// Both meshes, each with a CA of its own.
struct Meshes {
    shop: TestCa,
    bank: TestCa,
}

impl Meshes {
    fn new() -> Meshes {
        Meshes { shop: TestCa::new("shop.example"), bank: TestCa::new("bank.example") }
    }

    fn peer(ca: &TestCa, name: &str, domain: &str) -> Peer {
        let id = ca.agent_id();
        Peer::new(name, domain, ca.pem().as_bytes()).unwrap().with_id(id.as_str()).unwrap()
    }

    fn shop(&self) -> Peer {
        Meshes::peer(&self.shop, "shop", "shop.example")
    }

    fn bank(&self) -> Peer {
        Meshes::peer(&self.bank, "bank", "bank.example")
    }

    async fn owner(&self, address: &str) -> Owner<Price> {
        let identity = Identity::from(self.bank.agent().identity());
        Owner::builder(identity).peer(self.shop()).listen(address).start().await.unwrap()
    }

    async fn consumer(&self, owner: &Owner<Price>, store: &Arc<MemoryStore>) -> Consumer<Price> {
        let bank = self.bank().at(owner.address().unwrap().to_string());
        let identity = Identity::from(self.shop.agent().identity());
        let builder = Consumer::builder(identity).peer(bank).memory(store);
        builder.judge(in_euros).start().await.unwrap()
    }
}

fn in_euros(_key: &str, price: &Price) -> Result<(), Rejection> {
    if price.currency == "EUR" {
        return Ok(());
    }
    Err(Rejection::new(RejectionCode::Policy, "currency", "currency", "only EUR is taken; convert it"))
}

/// Waits for an event, whatever comes before it.
async fn until<E: Missable + std::fmt::Debug>(events: &mut Events<E>, wanted: impl Fn(&E) -> bool) -> E {
    let waiting = async {
        loop {
            let event = events.next().await.expect("more events");
            if wanted(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("the event within a minute")
}

fn proven(event: &OwnerEvent) -> bool {
    matches!(event, OwnerEvent::Proven { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_any_type_is_federated_refused_and_deleted_and_both_ends_see_it() {
    let meshes = Meshes::new();
    let owner = meshes.owner("127.0.0.1:0").await;
    let mut told = owner.observe();
    let first = owner.put("apple", &price(30)).unwrap();
    owner.put("pear", &Price { currency: "USD".into(), cents: 40 }).unwrap();
    owner.ready();

    let consumer = meshes.consumer(&owner, &MemoryStore::new()).await;
    let mut seen = consumer.watch();
    until(&mut told, |e| matches!(e, OwnerEvent::Connected { .. })).await;
    let event = until(&mut told, |e| matches!(e, OwnerEvent::Refused { .. })).await;
    let OwnerEvent::Refused { key, code, reason, .. } = event else { panic!("{event:?}") };
    assert_eq!((&*key, code), ("pear", 7), "PERMISSION_DENIED");
    assert_eq!(reason, "currency: currency: only EUR is taken; convert it");
    let event = until(&mut told, proven).await;
    let OwnerEvent::Proven { refused, .. } = event else { panic!("{event:?}") };
    assert_eq!(refused, 1);
    assert_eq!(consumer.get("bank", "apple").as_deref(), Some(&price(30)));
    assert_eq!(consumer.get("bank", "pear"), None, "what is refused is not in force");
    until(&mut seen, |e| matches!(e, ConsumerEvent::Proven { count: 2, .. })).await;

    // A change, acknowledged once readers see it.
    let second = owner.put("apple", &price(31)).unwrap();
    assert!(second > first);
    assert_eq!(owner.put("apple", &price(31)).unwrap(), second, "the same again is no change");
    until(&mut told, |e| matches!(e, OwnerEvent::Acknowledged { version, .. } if *version == second)).await;
    assert_eq!(consumer.get("bank", "apple").as_deref(), Some(&price(31)));

    // A deletion.
    let gone = owner.delete("apple").unwrap();
    assert_eq!(owner.delete("apple"), None);
    let deletion = |e: &OwnerEvent| matches!(e, OwnerEvent::Acknowledged { version, deleted: true, .. } if *version == gone);
    until(&mut told, deletion).await;
    assert!(consumer.is_empty());
    until(&mut seen, |e| matches!(e, ConsumerEvent::Deleted { key, .. } if &**key == "apple")).await;

    // A new judge decides on what was refused as well.
    consumer.set_judge(|_, _| Ok(())).await;
    assert_eq!(consumer.get("bank", "pear").map(|p| p.cents), Some(40));

    consumer.stop().await;
    until(&mut told, |e| matches!(e, OwnerEvent::Down { .. })).await;
    owner.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_either_side_what_is_unchanged_is_not_sent_again() {
    let meshes = Meshes::new();
    let owner = meshes.owner("127.0.0.1:0").await;
    let address = owner.address().unwrap().to_string();
    let mut told = owner.observe();
    for n in 0..100 {
        owner.put(&format!("fruit-{n}"), &price(n)).unwrap();
    }
    owner.ready();
    let store = MemoryStore::new();
    let consumer = meshes.consumer(&owner, &store).await;
    until(&mut told, proven).await;
    consumer.stop().await;
    until(&mut told, |e| matches!(e, OwnerEvent::Down { .. })).await;

    // The consumer comes back: what its store kept is there before the owner is reached.
    let consumer = meshes.consumer(&owner, &store).await;
    assert_eq!(consumer.len(), 100);
    until(&mut told, proven).await;
    let sent = owner.status()[0].owner.as_ref().map(|o| o.sent);
    assert_eq!(sent, Some(0), "equal digests need no repetition");

    // The owner comes back with one price changed and one gone.
    let mut seen = consumer.watch();
    owner.stop().await;
    until(&mut seen, |e| matches!(e, ConsumerEvent::Down { .. })).await;
    assert_eq!(consumer.len(), 100, "an owner that restarts withdraws nothing");
    let owner = meshes.owner(&address).await;
    let mut told = owner.observe();
    for n in 1..100 {
        owner.put(&format!("fruit-{n}"), &price(if n == 7 { 700 } else { n })).unwrap();
    }
    owner.ready();
    until(&mut told, proven).await;
    assert_eq!(consumer.len(), 99);
    assert_eq!(consumer.get("bank", "fruit-7").map(|p| p.cents), Some(700));
    let sent = owner.status()[0].owner.as_ref().map(|o| o.sent).unwrap();
    assert!(sent < 50, "{sent} of 99 were sent again");
    consumer.stop().await;
    owner.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_not_ready_withdraws_nothing() {
    let meshes = Meshes::new();
    let owner = meshes.owner("127.0.0.1:0").await;
    let address = owner.address().unwrap().to_string();
    let mut told = owner.observe();
    owner.put("apple", &price(1)).unwrap();
    owner.put("pear", &price(2)).unwrap();
    owner.ready();
    let consumer = meshes.consumer(&owner, &MemoryStore::new()).await;
    until(&mut told, proven).await;
    owner.stop().await;

    let owner = meshes.owner(&address).await;
    let mut told = owner.observe();
    let changed = owner.put("apple", &price(3)).unwrap();
    until(&mut told, |e| matches!(e, OwnerEvent::Acknowledged { version, .. } if *version == changed)).await;
    assert_eq!(consumer.get("bank", "apple").as_deref(), Some(&price(3)));
    assert_eq!(consumer.get("bank", "pear").as_deref(), Some(&price(2)), "it may only be unread");
    owner.ready();
    until(&mut told, proven).await;
    assert_eq!(consumer.get("bank", "pear"), None, "now its absence says something");
    consumer.stop().await;
    owner.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judge_that_panics_refuses_and_the_next_entry_is_judged() {
    let meshes = Meshes::new();
    let owner = meshes.owner("127.0.0.1:0").await;
    let mut told = owner.observe();
    owner.put("bad", &price(13)).unwrap();
    owner.put("good", &price(14)).unwrap();
    owner.ready();
    let bank = meshes.bank().at(owner.address().unwrap().to_string());
    let consumer: Consumer<Price> = Consumer::builder(Identity::from(meshes.shop.agent().identity()))
        .peer(bank)
        .judge(|_, price: &Price| if price.cents == 13 { panic!("on purpose") } else { Ok(()) })
        .start()
        .await
        .unwrap();
    until(&mut told, proven).await;
    let keys: Vec<String> = consumer.entries().iter().map(|e| e.key.to_string()).collect();
    assert_eq!(keys, ["good"]);
    assert_eq!(consumer.status()[0].refused[0].0, "bad");
    consumer.stop().await;
    owner.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_carries_both_roles_of_two_programs() {
    let meshes = Meshes::new();
    let bank = Identity::from(meshes.bank.agent().identity());
    let builder = Consumer::<Price>::builder(bank).peer(meshes.shop()).listen("127.0.0.1:0");
    let (bank_owner, bank_consumer) = builder.start_both().await.unwrap();
    let address = bank_owner.address().unwrap().to_string();
    let shop = Identity::from(meshes.shop.agent().identity());
    let builder = Consumer::<Price>::builder(shop).peer(meshes.bank().at(address));
    let (shop_owner, shop_consumer) = builder.start_both().await.unwrap();
    let (mut to_shop, mut to_bank) = (bank_owner.observe(), shop_owner.observe());
    let of_bank = bank_owner.put("loan", &price(5)).unwrap();
    let of_shop = shop_owner.put("rent", &price(6)).unwrap();
    bank_owner.ready();
    shop_owner.ready();
    until(&mut to_shop, |e| matches!(e, OwnerEvent::Acknowledged { version, .. } if *version == of_bank))
        .await;
    until(&mut to_bank, |e| matches!(e, OwnerEvent::Acknowledged { version, .. } if *version == of_shop))
        .await;
    assert_eq!(shop_consumer.get("bank", "loan").as_deref(), Some(&price(5)));
    assert_eq!(bank_consumer.get("shop", "rent").as_deref(), Some(&price(6)));
    shop_consumer.stop().await;
    bank_consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_and_another_type_are_refused_and_the_observer_is_told_why() {
    let meshes = Meshes::new();
    let owner = meshes.owner("127.0.0.1:0").await;
    owner.ready();
    let address = owner.address().unwrap().to_string();
    let stranger = TestCa::new("thief.example");
    let consumer: Consumer<Price> = Consumer::builder(Identity::from(stranger.agent().identity()))
        .peer(meshes.bank().at(address.clone()))
        .start()
        .await
        .unwrap();
    let mut seen = consumer.watch();
    until(&mut seen, |e| matches!(e, ConsumerEvent::Down { .. })).await;
    consumer.stop().await;

    let services: Consumer = Consumer::builder(Identity::from(meshes.shop.agent().identity()))
        .peer(meshes.bank().at(address))
        .start()
        .await
        .unwrap();
    let mut seen = services.watch();
    let event = until(&mut seen, |e| matches!(e, ConsumerEvent::Down { .. })).await;
    let ConsumerEvent::Down { reason, .. } = event else { panic!("{event:?}") };
    assert!(reason.contains("hamlet.test.Price"), "{reason}");
    services.stop().await;
    owner.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_come_from_files_or_from_a_provider() {
    struct Provider(PemPair);
    impl CertificateProvider for Provider {
        fn current(&self) -> Result<PemPair, ProviderError> {
            Ok(self.0.clone())
        }
    }
    struct Empty;
    impl CertificateProvider for Empty {
        fn current(&self) -> Result<PemPair, ProviderError> {
            Err(ProviderError::new("the vault is sealed", "unseal it"))
        }
    }
    let meshes = Meshes::new();
    let leaf = meshes.bank.agent();
    let pair = PemPair { cert: leaf.cert_pem.clone(), key: leaf.key_pem.clone() };
    let provided = Identity::from_provider(Arc::new(Provider(pair))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = meshes.shop.agent().write(folder.path(), "shop");
    let read = Identity::from_files(cert, key).unwrap();
    assert_eq!(read.id(), meshes.shop.agent_id());
    assert!(Identity::from_provider(Arc::new(Empty)).unwrap_err().to_string().contains("sealed; unseal it"));

    let owner: Owner<Price> =
        Owner::builder(provided).peer(meshes.shop()).listen("127.0.0.1:0").start().await.unwrap();
    let mut told = owner.observe();
    owner.put("apple", &price(1)).unwrap();
    owner.ready();
    let bank = meshes.bank().at(owner.address().unwrap().to_string());
    let consumer: Consumer<Price> = Consumer::builder(read).peer(bank).start().await.unwrap();
    until(&mut told, proven).await;
    assert_eq!(consumer.len(), 1);
    drop(consumer);
    until(&mut told, |e| matches!(e, OwnerEvent::Down { .. })).await;
    drop(owner);
}

#[tokio::test]
async fn what_can_not_work_is_said_at_once() {
    let meshes = Meshes::new();
    let identity = || Identity::from(meshes.bank.agent().identity());
    let none = Owner::<Price>::builder(identity()).listen("127.0.0.1:0").start().await;
    assert!(matches!(none.unwrap_err(), StartError::NoPeers));
    let nowhere = Owner::<Price>::builder(identity()).peer(meshes.shop()).start().await;
    assert!(matches!(nowhere.unwrap_err(), StartError::Nowhere));
    let odd = Owner::<Price>::builder(identity()).peer(meshes.shop()).listen("here").start().await;
    assert!(matches!(odd.unwrap_err(), StartError::Address(..)));
    let own = Owner::<Price>::builder(identity()).peer(meshes.bank()).listen("127.0.0.1:0").start().await;
    assert!(matches!(own.unwrap_err(), StartError::Trust(_)));
    assert!(Peer::new("shop", "not a domain", b"").is_err());

    let owner = meshes.owner("127.0.0.1:0").await;
    assert_eq!(owner.put("", &price(1)).unwrap_err(), PutError::Key(0));
    assert_eq!(owner.put("a\nb", &price(1)).unwrap_err(), PutError::Key(3));
    let huge = Price { currency: "x".repeat(5 << 20), cents: 0 };
    assert!(matches!(owner.put("apple", &huge).unwrap_err(), PutError::TooLarge(_)));
    assert!(owner.put("apple", &price(1)).is_ok());
    owner.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_side_says_its_bundle_and_hears_what_the_other_decides_about_it() {
    let meshes = Meshes::new();
    let of = |domain: &str, sequence| StreamBundle {
        trust_domain: domain.to_owned(),
        sequence,
        jwks: "{\"keys\":[]}".into(),
    };
    let (says, source) = watch::channel(Some(of("bank.example", 1)));
    let owner = Owner::<Price>::builder(Identity::from(meshes.bank.agent().identity()))
        .peer(meshes.shop())
        .listen("127.0.0.1:0")
        .bundle(source)
        .start()
        .await
        .unwrap();
    let mut told = owner.observe();
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    let decide = move |peer: &PeerName, heard: &HeardBundle| match heard.bundle.sequence {
        _ if peer.as_str() != "bank" || heard.proven.peer != *peer => panic!("a stranger's bundle"),
        1 => Ok(()),
        2 if count.fetch_add(1, Ordering::Relaxed) == 0 => {
            Err(NotInForce::Waiting(Duration::from_millis(10)))
        }
        2 => Ok(()),
        _ => panic!("on purpose"),
    };
    let (_own, ours) = watch::channel(Some(of("shop.example", 7)));
    let consumer = Consumer::<Price>::builder(Identity::from(meshes.shop.agent().identity()))
        .peer(meshes.bank().at(owner.address().unwrap().to_string()))
        .bundle(ours)
        .on_bundle(decide)
        .start()
        .await
        .unwrap();
    let mut heard = consumer.watch();
    let ConsumerEvent::BundleAnswered { answer, .. } =
        until(&mut heard, |e| matches!(e, ConsumerEvent::BundleAnswered { .. })).await
    else {
        unreachable!()
    };
    assert_eq!(answer.problem.map(|p| p.reason).as_deref(), Some("BUNDLE_NOT_FOLLOWED"), "no handler there");
    for (sequence, reasons) in
        [(1, vec![None]), (2, vec![Some("BUNDLE_WAITING"), None]), (3, vec![Some("BUNDLE_UNREADABLE")])]
    {
        says.send_replace(Some(of("bank.example", sequence)));
        for reason in reasons {
            until(&mut told, |e| match e {
                OwnerEvent::BundleAnswered { answer, .. } => {
                    let said = answer.problem.as_ref().map(|p| p.reason.as_str());
                    (answer.sequence, said) == (sequence, reason)
                }
                _ => false,
            })
            .await;
        }
    }
    assert_eq!(asked.load(Ordering::Relaxed), 2, "a bundle that waits is asked about again");
    consumer.stop().await;
    owner.stop().await;
}
