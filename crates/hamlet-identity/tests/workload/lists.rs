//! Revocation lists in the messages of a Workload API: whom they refuse, for how long, and what comes
//! of lists that can't be used. Each hostile message has a neighbour that it must leave alone.

use std::sync::Arc;

use hamlet_core::PeerName;
use hamlet_identity::{
    Expect, GIVEN_CRLS_BYTES_MAX, GIVEN_CRLS_MAX, Lenience, PeerTrust, Role, TrustTable, Usage,
    verify_peer_chain,
};
use hamlet_runtime::SystemClock;
use hamlet_testkit::pki::{CaSpec, DAY, HOUR, TestCa, TestLeaf};
use rustls_pki_types::CertificateDer;

use super::api::{Server, SvidResponse};
use super::forge::{Authority, CERT_SIGN, CRL_SIGN, KEY_USAGE, key_usage};
use super::{AGENT, Scene, domain};

const GLOBEX: &str = "globex.example";

/// A Workload API that gives globex's bundle, and lists.
struct Given {
    scene: Scene,
    globex: TestCa,
    server: Server,
}

impl Given {
    async fn new() -> Given {
        let (scene, globex) = (Scene::new(), TestCa::new(GLOBEX));
        let server = scene.serve(Ok(message(&scene, globex.root(), vec![])));
        scene.follow();
        scene.until("a message", |api| api.ids().len() == 2).await;
        Given { scene, globex, server }
    }

    /// Says this, and waits until it is taken.
    async fn say(&self, roots: &[u8], lists: Vec<Vec<u8>>) {
        let mut changed = self.scene.api.changed();
        changed.mark_unchanged();
        self.server.say(Ok(message(&self.scene, roots, lists)));
        tokio::time::timeout(hamlet_testkit::GENEROUS, changed.changed()).await.unwrap().unwrap();
    }

    async fn lists(&self, lists: Vec<Vec<u8>>) {
        self.say(self.globex.root(), lists).await;
    }

    /// By which rule globex's certificate is refused now, if it is.
    fn refused(&self, leaf: &TestLeaf) -> Option<&'static str> {
        self.refused_with(&leaf.chain, Lenience::Refuse)
    }

    fn refused_with(&self, chain: &[CertificateDer<'_>], stale: Lenience) -> Option<&'static str> {
        let api = &self.scene.api;
        let bundle = api.bundle(&domain(GLOBEX)).unwrap().unwrap();
        let ids = (vec![self.globex.agent_id()], vec![self.globex.gateway_id()]);
        let trust = PeerTrust {
            given_lists: api.lists(&domain(GLOBEX), stale),
            ..PeerTrust::new(PeerName::parse("globex").unwrap(), bundle, ids.0, ids.1)
        };
        let table = TrustTable::new(SystemClock::shared());
        table.replace(vec![trust]).unwrap();
        let proven = verify_peer_chain(&table, chain, Role::Agent, Usage::Client, Expect::AnyPeer);
        proven.err().map(|error| error.rule())
    }

    fn problem(&self) -> Option<String> {
        self.scene.api.lists_problem()
    }
}

/// Our identities, new ones each time; globex's CAs in DER; and lists.
fn message(scene: &Scene, roots: &[u8], lists: Vec<Vec<u8>>) -> SvidResponse {
    let mut message = scene.both(&[]);
    message.federated_bundles.insert(format!("spiffe://{GLOBEX}"), roots.to_vec());
    message.crl = lists;
    message
}

/// A list of this CA, made yesterday and good until tomorrow.
fn list(ca: &TestCa, revoked: &[&TestLeaf]) -> Vec<u8> {
    ca.crl_der(revoked, -DAY, DAY)
}

#[tokio::test]
async fn a_list_refuses_whom_it_names_and_nobody_else_until_a_message_comes_without_it() {
    let given = Given::new().await;
    let (revoked, other) = (given.globex.agent(), given.globex.agent());
    assert_eq!((given.refused(&revoked), given.refused(&other)), (None, None));
    given.lists(vec![list(&given.globex, &[&revoked])]).await;
    assert_eq!((given.refused(&revoked), given.refused(&other)), (Some("revoked"), None));
    assert_eq!((given.scene.api.lists_in_force(), given.problem()), (1, None));
    given.lists(vec![list(&given.globex, &[&other])]).await;
    assert_eq!((given.refused(&revoked), given.refused(&other)), (None, Some("revoked")));
    given.lists(vec![]).await;
    assert_eq!((given.refused(&revoked), given.refused(&other)), (None, None));
    given.scene.end().await;
}

#[tokio::test]
async fn lists_stay_in_force_while_the_workload_api_is_away() {
    let given = Given::new().await;
    let revoked = given.globex.agent();
    given.lists(vec![list(&given.globex, &[&revoked])]).await;
    let Given { scene, globex, server } = given;
    drop(server);
    std::fs::remove_file(scene.folder.path().join("api.sock")).unwrap();
    scene.until("the socket is gone", |api| api.last_error().is_some()).await;
    let server = scene.serve(Err(tonic::Status::permission_denied("no identity issued")));
    let given = Given { scene, globex, server };
    given.scene.until("a refusal", |api| api.is_refused()).await;
    assert_eq!(given.refused(&revoked), Some("revoked"));
    given.scene.end().await;
}

/// Every message here takes the place of one with a good list.
#[tokio::test]
async fn a_list_that_cannot_be_used_frees_nobody_restricts_nobody_and_does_not_hold_up_the_message() {
    let given = Given::new().await;
    let (revoked, other) = (given.globex.agent(), given.globex.agent());
    let namesake = TestCa::new(GLOBEX);
    let ours = || list(&given.globex, &[&revoked]);
    let mut altered = given.globex.crl_der(&[&revoked, &other], -DAY, DAY);
    let last = altered.len() - 1;
    altered[last] ^= 1;
    let cut = ours()[..60].to_vec();
    let longer = [ours(), vec![0]].concat();
    let many: Vec<_> = (0..=GIVEN_CRLS_MAX).map(|n| vec![0x30, 0x01, (n & 0xff) as u8]).collect();
    for (what, lists, said) in [
        ("garbage", vec![vec![1, 2, 3]], "list 1 is unusable"),
        ("nothing", vec![vec![]], "list 1 is unusable"),
        ("a list that is cut", vec![cut], "list 1 is unusable"),
        ("a list with something behind it", vec![longer], "list 1 is unusable"),
        ("a certificate", vec![given.globex.root().to_vec()], "list 1 is unusable"),
        ("a list that nobody signed", vec![altered], "list 1 is not signed by its CA"),
        ("one of another CA of that name", vec![list(&namesake, &[&other])], "is not signed by its CA"),
        ("too many", many, "1 more than 256, which are not read"),
        ("too large a list", vec![vec![0x30; GIVEN_CRLS_BYTES_MAX + 1]], "list 1 exceeds 8388608 bytes"),
        (
            "too much together",
            vec![vec![0x30; GIVEN_CRLS_BYTES_MAX], vec![0x30; 1]],
            "list 2 exceeds 8388608 bytes",
        ),
    ] {
        given.lists(vec![ours()]).await;
        assert_eq!((given.refused(&revoked), given.problem()), (Some("revoked"), None), "{what}");
        let before = identity_of(&given);
        given.lists(lists).await;
        let problem = given.problem().unwrap_or_default();
        assert!(
            problem.contains(said) && problem.contains("; the lists before them stay"),
            "{what}: {problem}"
        );
        assert_eq!(given.refused(&revoked), Some("revoked"), "{what}: it was to be replaced by nothing");
        assert_eq!(given.refused(&other), None, "{what}: its CA revoked nobody else");
        assert_ne!(identity_of(&given), before, "{what}: the certificates in the message count");
        assert_eq!(given.scene.api.last_error(), None, "{what}");
        given.lists(vec![]).await;
        assert_eq!((given.refused(&revoked), given.problem()), (None, None), "{what}");
    }
    given.scene.end().await;
}

/// What we prove now.
fn identity_of(given: &Given) -> [u8; 32] {
    let id = hamlet_core::SpiffeId::parse(AGENT).unwrap();
    let provider = given.scene.api.provider(hamlet_identity::SvidChoice::Id(id));
    hamlet_identity::LocalIdentity::from_provider(provider, SystemClock::shared()).unwrap().fingerprint()
}

#[tokio::test]
async fn a_good_list_beside_one_that_cannot_be_used_counts_and_replaces_its_own_ca_s_only() {
    let given = Given::new().await;
    let next = TestCa::new(GLOBEX);
    let (first, second, of_next) = (given.globex.agent(), given.globex.agent(), next.agent());
    let roots = [given.globex.root().to_vec(), next.root().to_vec()].concat();
    given.say(&roots, vec![list(&given.globex, &[&first]), list(&next, &[&of_next])]).await;
    let refused = || [&first, &second, &of_next].map(|leaf| given.refused(leaf));
    assert_eq!(refused(), [Some("revoked"), None, Some("revoked")]);
    given.say(&roots, vec![vec![1, 2, 3], list(&given.globex, &[&second])]).await;
    assert_eq!(refused(), [None, Some("revoked"), Some("revoked")]);
    assert_eq!(given.scene.api.lists_in_force(), 2);
    given.say(&roots, vec![list(&given.globex, &[&second])]).await;
    assert_eq!(refused(), [None, Some("revoked"), None]);
    given.scene.end().await;
}

#[tokio::test]
async fn a_list_counts_for_the_ca_whose_key_signed_it_whatever_the_name() {
    let given = Given::new().await;
    // The next CA has the name of the first one, as SPIRE's have; a stranger's has another.
    let (next, stranger) = (TestCa::new(GLOBEX), TestCa::new("initech.example"));
    let (of_first, of_next) = (given.globex.agent(), next.agent());
    let roots = [given.globex.root().to_vec(), next.root().to_vec()].concat();
    let both = || [&of_first, &of_next].map(|leaf| given.refused(leaf));
    given.say(&roots, vec![list(&next, &[&of_first, &of_next])]).await;
    assert_eq!(both(), [None, Some("revoked")], "serial numbers of another CA are none of its business");
    given.say(&roots, vec![next.crl_der(&[], -2 * DAY, -HOUR)]).await;
    assert_eq!(both(), [None, Some("revocation-unknown")], "an outdated list of its own");
    given.say(&roots, vec![list(&stranger, &[&of_first, &of_next])]).await;
    assert_eq!((both(), given.problem()), ([None, None], None), "a stranger's is no list of theirs");
    assert_eq!(given.scene.api.lists_in_force(), 0);
    given.scene.end().await;
}

#[tokio::test]
async fn an_outdated_list_refuses_all_of_its_ca_unless_that_is_allowed_and_still_revokes_whom_it_names() {
    let given = Given::new().await;
    let (revoked, other) = (given.globex.agent(), given.globex.agent());
    let outdated = given.globex.crl_der(&[&revoked], -2 * DAY, -HOUR);
    given.lists(vec![outdated.clone()]).await;
    assert_eq!(
        (given.refused(&revoked), given.refused(&other)),
        (Some("revoked"), Some("revocation-unknown"))
    );
    let allowed = |leaf: &TestLeaf| given.refused_with(&leaf.chain, Lenience::Accept);
    assert_eq!((allowed(&revoked), allowed(&other)), (Some("revoked"), None));
    // Of two by one CA the later one counts, in whichever order they stand.
    let current = list(&given.globex, &[]);
    for lists in [vec![outdated.clone(), current.clone()], vec![current, outdated]] {
        given.lists(lists).await;
        assert_eq!((given.refused(&revoked), given.refused(&other)), (None, None));
    }
    given.scene.end().await;
}

#[tokio::test]
async fn an_intermediate_s_list_counts_below_it_and_the_root_s_for_it() {
    let given = Given::new().await;
    let between = given.globex.intermediate(CaSpec::default());
    let (revoked, other) = (between.agent(), between.agent());
    given.lists(vec![list(&between, &[&revoked])]).await;
    assert_eq!((given.refused(&revoked), given.refused(&other)), (Some("revoked"), None));
    assert_eq!(given.problem(), None, "nobody knows its CA before a chain comes");
    let mut above = between.agent();
    above.chain.remove(0);
    given.lists(vec![list(&given.globex, &[&above])]).await;
    assert_eq!((given.refused(&other), given.refused(&given.globex.agent())), (Some("revoked"), None));
    given.scene.end().await;
}

#[tokio::test]
async fn a_ca_that_may_not_sign_lists_is_held_to_what_it_signed() {
    let given = Given::new().await;
    for (usage, refused) in [(CERT_SIGN, Some("revocation-unknown")), (CERT_SIGN | CRL_SIGN, None)] {
        let usage = |ca: &mut super::forge::Forge| ca.set(KEY_USAGE, key_usage(usage));
        let root = Authority::root("root", usage);
        let plain = Authority::root("plain", |_| {});
        for ca in [root.clone(), plain.intermediate("between", usage)] {
            let chain = ca.chain(|leaf| leaf.uris(&["spiffe://globex.example/agent"]));
            let chain: Vec<CertificateDer<'static>> = chain.into_iter().map(CertificateDer::from).collect();
            let roots = [root.der.clone(), plain.der.clone()].concat();
            given.say(&roots, vec![]).await;
            assert_eq!(given.refused_with(&chain, Lenience::Refuse), None);
            given.say(&roots, vec![ca.crl(&ca.key, DAY, &[])]).await;
            assert_eq!(given.refused_with(&chain, Lenience::Refuse), refused);
        }
    }
    given.scene.end().await;
}

#[tokio::test]
async fn a_change_of_another_domain_s_lists_is_no_change_for_a_peer() {
    let given = Given::new().await;
    let lists = || given.scene.api.lists(&domain(GLOBEX), Lenience::Refuse);
    let of_globex = list(&given.globex, &[]);
    given.lists(vec![of_globex.clone()]).await;
    let before = lists();
    assert!(before.is_some());
    given.lists(vec![of_globex, list(&given.scene.ca, &[])]).await;
    assert_eq!((lists(), given.scene.api.lists_in_force()), (before, 2));
    let ours = given.scene.api.lists(given.scene.ca.trust_domain(), Lenience::Refuse);
    assert_eq!(ours.as_ref().map(|lists: &Arc<_>| lists.listed().len()), Some(1));
    given.scene.end().await;
}
