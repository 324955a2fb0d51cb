//! Bundles on streams between two agents: a root that is rotated without anybody's doing, one that is
//! taken away, and a restart in between.

use std::fs;
use std::time::Duration;

use hamlet::config::AuthorityConfig;
use hamlet::config::init::AGENT_ID_PATH;
use hamlet_core::TrustDomain;
use hamlet_identity::authority::plan::Lives;
use hamlet_identity::{Authority, SpiffeBundle, TrustBundle};
use hamlet_protocol::bundles::{BundleAnswer, StreamBundle};
use hamlet_protocol::sdk::{Events, Identity, Owner, OwnerEvent, Peer};
use hamlet_runtime::SystemClock;
use hamlet_testkit::pki::{LeafSpec, TestCa};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::mesh::{Mesh, Two};
use crate::texts;
use crate::wait::{PATIENCE, until, until_true};

/// Has the mesh use announced CAs after so long.
fn wait_for(mesh: &Mesh, wait: &str) {
    mesh.write("mesh.yaml", &texts::mesh(mesh, &format!("  bundleWait: {wait}\n")));
}

/// Gives the mesh an authority whose leaves live for seconds, so that an old root can go.
fn short_lives(mesh: &Mesh) {
    let folder = mesh.folder.join("identity");
    fs::remove_dir_all(&folder).unwrap();
    let s = Duration::from_secs;
    let lives = Lives { leaf: s(12), issuing: s(600), root: s(7_200), overlap: s(1_200) };
    let config = AuthorityConfig { folder, hosts: vec![], lives };
    let domain = TrustDomain::parse(mesh.domain).unwrap();
    Authority::create(config.settings(&domain, SystemClock::shared()).unwrap()).unwrap();
    let text = fs::read_to_string(mesh.folder.join("mesh.yaml")).unwrap();
    let short = "{folder: identity, leafLife: 12s, issuingLife: 10m, rootLife: 2h, overlap: 20m}";
    mesh.write("mesh.yaml", &text.replace("{folder: identity}", short));
}

/// Waits for a state of the one peer's bundle.
#[track_caller]
fn until_bundle(mesh: &Mesh, expected: &str, fits: impl Fn(&Value) -> bool) -> Value {
    until(expected, || {
        let list = mesh.json(&["bundle", "list"]);
        if fits(&list[0]) { Ok(list[0].clone()) } else { Err(list.to_string()) }
    })
}

fn count(bundle: &Value, what: &str) -> usize {
    bundle[what].as_array().map_or(0, Vec::len)
}

/// The number of the root that issues.
fn issuing(mesh: &Mesh) -> Value {
    let status: Value = serde_json::from_str(&mesh.ca(&["status", "-o", "json"])).unwrap();
    let roots = status["state"]["roots"].as_array().unwrap().clone();
    roots.iter().find(|r| r["is"] == "issuing").unwrap()["number"].clone()
}

/// Both people take part, and say yes.
fn peered(two: &Two) {
    let invited = two.acme.cli(&["peer", "invite", "globex", "--yes"]);
    assert_eq!(invited.code, 0, "{invited:?}");
    let accepted = two.globex.cli_fed(&["peer", "accept", "--yes"], &invited.out);
    assert_eq!(accepted.code, 0, "{accepted:?}");
    two.until_in_sync();
}

#[test]
fn a_rotated_root_reaches_a_peer_made_by_token_issues_when_it_is_in_force_there_and_the_old_one_goes() {
    let mut two = Two::strangers();
    short_lives(&two.acme);
    wait_for(&two.globex, "10s");
    two.start();
    peered(&two);
    let first = until_bundle(&two.globex, "the peer's bundle", |b| count(b, "authorities") == 1);
    assert_eq!((&first["source"], &first["follow"]), (&Value::from("token"), &Value::from("stream")));
    until_bundle(&two.acme, "globex has ours", |b| b["ours"]["inForce"] == true);
    let old = issuing(&two.acme);

    two.acme.ca(&["rotate"]);
    let announced = until_bundle(&two.globex, "the new root is announced", |b| count(b, "announced") == 1);
    assert_eq!(count(&announced, "authorities"), 1, "not used yet: {announced}");
    assert!(announced["sequence"].as_u64() > first["sequence"].as_u64(), "{first} {announced}");
    until_bundle(&two.acme, "globex has it, and waits", |b| b["ours"]["reason"] == "BUNDLE_WAITING");

    until("our authority waits for globex", || {
        let missing = two.acme.json(&["status"])["agent"]["authority"]["missing"].clone();
        if missing[0]["peer"] == "globex" { Ok(()) } else { Err(missing.to_string()) }
    });
    assert_eq!(issuing(&two.acme), old);

    let both = until_bundle(&two.globex, "both roots are in force", |b| count(b, "authorities") == 2);
    assert_eq!((&both["source"], count(&both, "announced")), (&Value::from("stream"), 0), "{both}");
    until_bundle(&two.acme, "globex says so", |b| b["ours"]["inForce"] == true);
    // The overlap is a week.
    until_true("the new root issues", || issuing(&two.acme) != old);
    until_true("and not for the overlap", || two.acme.log().contains("all peers have the new root"));
    two.until_in_sync();
    let shown = two.acme.cli(&["bundle", "show", "--format", "jwks"]);
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(shown["spiffe_sequence"], both["sequence"], "one count over all channels");

    // When no leaf of it can live, the old root leaves the bundle, and is out there at once.
    let one = until_bundle(&two.globex, "the old root is out", |b| count(b, "authorities") == 1);
    assert_ne!(one["authorities"], first["authorities"]);
    until_bundle(&two.acme, "globex says so", |b| b["ours"]["inForce"] == true);
    two.acme.until_audited("own-root-dropped", |e| e["actor"]["by"] == "authority");
    two.until_in_sync();
}

#[test]
fn a_bundle_set_by_hand_is_told_to_its_owner_and_stands_until_a_newer_one_comes() {
    let mut two = Two::strangers();
    wait_for(&two.globex, "1s");
    two.start();
    peered(&two);
    until_bundle(&two.acme, "globex has ours", |b| b["ours"]["inForce"] == true);
    let by_hand = format!("{}{}", two.acme.bundle(), TestCa::new("acme.example").pem());
    two.globex.write("by-hand.pem", &by_hand);
    let file = two.globex.folder.join("by-hand.pem");
    let set = two.globex.cli(&["bundle", "set", "acme", file.to_str().unwrap()]);
    assert_eq!(set.code, 0, "{set:?}");
    let told = until_bundle(&two.acme, "globex says so", |b| b["ours"]["reason"] == "BUNDLE_OVERRIDDEN");
    assert_eq!(told["ours"]["inForce"], false, "{told}");
    two.until_in_sync();

    two.acme.ca(&["rotate"]);
    until_bundle(&two.acme, "ours is in force again", |b| b["ours"]["inForce"] == true);
    let newer = until_bundle(&two.globex, "the stream's", |b| b["source"] == "stream");
    assert_eq!(count(&newer, "authorities"), 2, "{newer}");
    two.until_in_sync();
}

#[test]
fn a_root_dropped_at_once_goes_there_by_hand_only_because_a_stream_may_not_take_all_that_is_in_force() {
    let mut two = Two::strangers();
    two.start();
    peered(&two);
    let first = until_bundle(&two.globex, "the peer's bundle", |b| count(b, "authorities") == 1);
    until_bundle(&two.acme, "globex has ours", |b| b["ours"]["inForce"] == true);
    two.acme.ca(&["rotate", "--now", "--drop-old"]);
    until_bundle(&two.acme, "globex refuses it", |b| b["ours"]["reason"] == "BUNDLE_NOTHING_LEFT");
    assert_eq!(two.globex.json(&["bundle", "list"])[0]["authorities"], first["authorities"]);

    let file = two.acme.folder.join("identity/ca.pem");
    let set = two.globex.cli(&["bundle", "set", "acme", file.to_str().unwrap()]);
    assert_eq!(set.code, 0, "{set:?}");
    let one = until_bundle(&two.globex, "the new root alone", |b| count(b, "authorities") == 1);
    assert_ne!(one["authorities"], first["authorities"]);
    until_bundle(&two.acme, "globex says so", |b| b["ours"]["inForce"] == true);
    until_bundle(&two.globex, "nothing is refused", |b| b["refused"].is_null() && b["problem"].is_null());
    two.until_in_sync();
}

#[test]
fn an_announced_root_outlives_a_restart_and_comes_into_force_without_a_further_word() {
    let mut two = Two::strangers();
    wait_for(&two.globex, "1h");
    two.start();
    peered(&two);
    let old = issuing(&two.acme);
    two.acme.ca(&["rotate"]);
    until_bundle(&two.globex, "the new root is announced", |b| count(b, "announced") == 1);
    two.globex.stop();
    two.acme.stop();
    two.globex.start();
    let kept = until_bundle(&two.globex, "it is announced still", |b| count(b, "announced") == 1);
    assert_eq!(count(&kept, "authorities"), 1, "{kept}");
    two.globex.stop();
    wait_for(&two.globex, "1s");
    two.globex.start();
    let both = until_bundle(&two.globex, "both roots are in force", |b| count(b, "authorities") == 2);
    assert_eq!((count(&both, "announced"), &both["source"]), (0, &Value::from("stream")), "{both}");
    assert_eq!(both["sequence"], kept["sequence"]);
    two.acme.start();
    two.until_in_sync();
    until_true("the new root issues", || issuing(&two.acme) != old);
}

/// A program that says to be acme's agent, with whatever bundles.
struct Sayer {
    says: watch::Sender<Option<StreamBundle>>,
    events: Events<OwnerEvent>,
    _owner: Owner,
    runtime: tokio::runtime::Runtime,
}

impl Sayer {
    fn start(ca: &TestCa, globex: &Mesh) -> Sayer {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let leaf = ca.leaf(LeafSpec::of(format!("spiffe://acme.example/{AGENT_ID_PATH}")));
        let identity = Identity::from_pem(leaf.cert_pem.as_bytes(), leaf.key_pem.as_bytes()).unwrap();
        let peer = Peer::new("globex", globex.domain, globex.bundle().as_bytes()).unwrap();
        let (says, source) = watch::channel(None);
        let starting =
            Owner::builder(identity).peer(peer.at(globex.at.agent.to_string())).bundle(source).start();
        let owner = runtime.block_on(starting).unwrap();
        Sayer { says, events: owner.observe(), _owner: owner, runtime }
    }

    /// What globex answers last, and its reason: being told to wait isn't the end of it.
    fn say(&mut self, bundle: &StreamBundle) -> Option<String> {
        self.says.send_replace(Some(bundle.clone()));
        let (sequence, events) = (bundle.sequence, &mut self.events);
        let answered = async {
            loop {
                match events.next().await.unwrap() {
                    OwnerEvent::BundleAnswered { answer: BundleAnswer { problem: Some(p), .. }, .. }
                        if p.is_waiting() => {}
                    OwnerEvent::BundleAnswered { answer, .. } if answer.sequence == sequence => {
                        break answer.problem.map(|p| p.reason);
                    }
                    _ => {}
                }
            }
        };
        let patient = async { tokio::time::timeout(PATIENCE, answered).await };
        self.runtime.block_on(patient).unwrap_or_else(|_| panic!("no answer to {bundle:?}"))
    }
}

fn bundle_of(cas: &[&TestCa], sequence: u64) -> StreamBundle {
    let domain = TrustDomain::parse("acme.example").unwrap();
    let pem: String = cas.iter().map(|ca| ca.pem()).collect();
    let bundle = match cas {
        [] => json!({"keys": [], "spiffe_sequence": sequence}).to_string(),
        _ => {
            let bundle = TrustBundle::from_pem(domain, pem.as_bytes()).unwrap();
            SpiffeBundle { sequence: Some(sequence), ..SpiffeBundle::of(bundle) }.to_jwks().unwrap()
        }
    };
    StreamBundle { trust_domain: "acme.example".to_owned(), sequence, jwks: bundle.into() }
}

/// A Peer of that CA, which follows the stream or not.
fn know(globex: &Mesh, acme: &Mesh, ca: &TestCa, follow: &str) {
    let text = texts::peer(acme, "").replace("-ca.pem}", &format!("-ca.pem{follow}}}"));
    globex.write("peers/acme-ca.pem", ca.pem());
    globex.write("peer-acme.yaml", &format!("{text}---\n{}", texts::import(acme)));
}

#[test]
fn of_what_a_stream_says_only_the_peers_own_successor_is_taken_and_each_refusal_names_its_rule() {
    let mut two = Two::new();
    wait_for(&two.globex, "1s");
    let [first, second, third] = [(); 3].map(|()| TestCa::new("acme.example"));
    know(&two.globex, &two.acme, &first, ", follow: stream");
    two.globex.start();
    let mut sayer = Sayer::start(&first, &two.globex);
    let good = bundle_of(&[&first, &second], 10);
    assert_eq!(sayer.say(&good), None, "it is announced, and then in force");
    let held = until_bundle(&two.globex, "both are in force", |b| count(b, "authorities") == 2);

    let foreign = StreamBundle { trust_domain: "globex.example".to_owned(), ..bundle_of(&[&first], 11) };
    let unlike = StreamBundle { sequence: 12, ..bundle_of(&[&first], 11) };
    let broken = StreamBundle { jwks: "{".into(), ..bundle_of(&[&first], 11) };
    for (what, rule, bad) in [
        ("another trust domain", "FOREIGN_DOMAIN", foreign),
        ("an older sequence", "STALE", bundle_of(&[&first], 9)),
        ("the same sequence with other content", "FORK", bundle_of(&[&first], 10)),
        ("a sequence far ahead", "JUMP", bundle_of(&[&first, &second], 11 + (1 << 32))),
        ("no CA", "NOTHING_LEFT", bundle_of(&[], 11)),
        ("CAs that don't prove the stream", "LEAF", bundle_of(&[&second, &third], 11)),
        ("no JSON", "UNREADABLE", broken),
        ("two sequences", "UNREADABLE", unlike),
    ] {
        assert_eq!(sayer.say(&bad), Some(format!("BUNDLE_{rule}")), "{what}");
        let seen = two.globex.json(&["bundle", "list"])[0].clone();
        let shown = rule.to_ascii_lowercase().replace('_', "-");
        assert_eq!(
            (&seen["authorities"], &seen["sequence"], &seen["refused"]),
            (&held["authorities"], &Value::from(10), &Value::from(shown)),
            "{what}: {seen}"
        );
        assert_eq!(sayer.say(&good), None, "the neighbour of {what}");
    }
    assert!(two.globex.log().contains("ALARM: a bundle on a stream is refused"));

    // What goes is out at once.
    assert_eq!(sayer.say(&bundle_of(&[&first], 11)), None);
    assert_eq!(count(&two.globex.json(&["bundle", "list"])[0], "authorities"), 1);

    // Without `follow` only what is in force anyhow is confirmed.
    know(&two.globex, &two.acme, &first, "");
    until_bundle(&two.globex, "it is by its file", |b| b["follow"].is_null());
    assert_eq!(sayer.say(&good), Some("BUNDLE_NOT_FOLLOWED".to_owned()));
    assert_eq!(sayer.say(&bundle_of(&[&first], 12)), None);
}
