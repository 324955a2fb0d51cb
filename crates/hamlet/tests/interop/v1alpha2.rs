//! A v1alpha2 peer with the habits of the unmerged Go implementation (`interop/python`): both roles
//! on one stream, dialled from either side.

use serde_json::Value;

use crate::foreign::{Foreign, Program, python_peer};
use crate::meeting::{DOMAIN, Meeting, Terms, names};
use crate::wait::until;

/// Enough that two peers of that kind hang with each other.
const MANY: usize = 1000;

/// Who opens the stream.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Dials {
    We,
    They,
}

/// Our running agent and the peer; `more` are the peer's further flags.
fn meet(python: &Program, dials: Dials, ours: &[String], more: &[&str]) -> (Meeting, Foreign) {
    let mut meeting = Meeting::new();
    meeting.offer(ours);
    let peer = match dials {
        Dials::We => {
            let (peer, address) = meeting.listener(python, "both", more);
            meeting.know(&Terms { address: Some(address), ..Terms::default() });
            meeting.acme.start();
            peer
        }
        Dials::They => {
            meeting.know(&Terms::default());
            meeting.acme.start();
            meeting.dialler(python, "both", more)
        }
    };
    (meeting, peer)
}

/// The services that the peer holds of ours, as its events tell.
fn held(peer: &Foreign) -> Vec<String> {
    let mut held = std::collections::BTreeSet::new();
    for event in peer.events_of(&["upsert", "delete"]) {
        let key = event["key"].as_str().unwrap().to_owned();
        if event["event"] == "upsert" {
            held.insert(key)
        } else {
            held.remove(&key)
        };
    }
    held.into_iter().collect()
}

/// Full state both ways, then each kind of change both ways.
fn changes_go_both_ways(dials: Dials) {
    let Some(python) = python_peer() else { return };
    let (meeting, peer) = meet(&python, dials, &names(2), &["--services", "3"]);
    meeting.until_imported(3);
    meeting.until_acknowledged(2);
    peer.until_count("upsert", 2);
    assert_eq!(held(&peer), ["ours-00000", "ours-00001"]);
    let service = peer.until_key("upsert", "ours-00000")["service"].clone();
    assert_eq!(service["fqdn"], "ours-00000.acme.example", "{service}");
    assert_eq!(service["instances"][0]["protocol"], "TCP", "{service}");

    // Theirs: created, changed, repeated, deleted.
    peer.say("create one");
    meeting.until_imported(4);
    let key = format!("{PEER_SERVICE}.{DOMAIN}");
    let version = |version: u32| {
        until(&format!("version {version} is in force"), || {
            let service = meeting.acme.service(&format!("foreign/{key}")).ok_or("it is not there")?;
            let fits = service["description"] == format!("version {version:07}");
            if fits { Ok(()) } else { Err(service.to_string()) }
        });
    };
    version(1);
    peer.say(&format!("update {PEER_SERVICE}"));
    version(2);
    peer.say(&format!("repeat {PEER_SERVICE}"));
    peer.until_key("suppressed", &key);
    peer.say(&format!("delete {PEER_SERVICE}"));
    meeting.until_imported(3);

    // Ours: created, changed, deleted.
    meeting.offer(&names(3));
    peer.until_key("upsert", "ours-00002");
    meeting.offer_described(&names(3), "changed");
    peer.until_fits("upsert", |e| e["key"] == "ours-00002" && e["service"]["description"] == "changed");
    meeting.offer_described(&names(1), "changed");
    peer.until_key("delete", "ours-00002");
    meeting.until_acknowledged(1);

    let seen = meeting.peer();
    assert_ne!(seen["state"]["kind"], "in-sync", "nothing is proven with this peer: {seen}");
    assert_eq!(seen["import"]["refusedTotal"], 0, "{seen}");
    assert_foreign(&peer, dials);
}

/// We said nothing that would have ended the original, and nothing of ours: but the hello if we
/// dialled, before we could know.
fn assert_foreign(peer: &Foreign, dials: Dials) {
    assert!(peer.events("crash").is_empty(), "{:?}", peer.events("crash"));
    let extensions = peer.events("extension");
    let seen: Vec<bool> = extensions.iter().map(|e| e["initial"] == true).collect();
    let allowed: &[bool] = if dials == Dials::We { &[true] } else { &[] };
    assert_eq!(seen, allowed, "{extensions:?}");
}

const PEER_SERVICE: &str = "one";

#[test]
#[ignore = "needs Python: interop/build"]
fn a_v1alpha2_peer_that_we_dial_and_we_follow_each_other() {
    changes_go_both_ways(Dials::We);
}

#[test]
#[ignore = "needs Python: interop/build"]
fn a_v1alpha2_peer_that_dials_us_and_we_follow_each_other() {
    changes_go_both_ways(Dials::They);
}

/// Two peers of that kind hang here: they read nothing while a write waits.
fn nobody_hangs(dials: Dials) {
    let Some(python) = python_peer() else { return };
    let flags = ["--services", &MANY.to_string(), "--bytes", "450"];
    let (meeting, peer) = meet(&python, dials, &names(MANY), &flags);
    meeting.until_imported(MANY as u64);
    meeting.until_acknowledged(MANY as u64);
    peer.until_count("upsert", MANY);
    assert_eq!(held(&peer).len(), MANY);
    peer.say("count");
    let counted = peer.until_fits("count", |c| c["acked"] == MANY);
    assert_eq!(counted["nacked"], Value::Null, "{counted}");
    assert_foreign(&peer, dials);
}

#[test]
#[ignore = "needs Python: interop/build"]
fn a_thousand_services_each_way_at_once_pass_when_we_dial() {
    nobody_hangs(Dials::We);
}

#[test]
#[ignore = "needs Python: interop/build"]
fn a_thousand_services_each_way_at_once_pass_when_they_dial() {
    nobody_hangs(Dials::They);
}

/// What shows that the tests above can fail.
#[test]
#[ignore = "needs Python: interop/build"]
fn two_peers_of_that_kind_hang_with_a_thousand_services_each() {
    let Some(python) = python_peer() else { return };
    let pair = |services: &str| {
        let meeting = Meeting::new();
        let flags = ["--services", services, "--bytes", "450"];
        let (accepting, dialling) = meeting.foreign_pair(&python, ["both", "both"], &flags);
        accepting.until("upsert");
        dialling.until("upsert");
        (accepting, dialling)
    };
    let (few, other) = pair("20");
    few.until_count("upsert", 20);
    other.until_count("upsert", 20);
    let (accepting, dialling) = pair(&MANY.to_string());
    // Both stand still with less than everything.
    let seen = || (accepting.events("upsert").len(), dialling.events("upsert").len());
    let mut before = (0, 0);
    let still = until("both stand still", || {
        std::thread::sleep(std::time::Duration::from_secs(2));
        let now = seen();
        if now == before {
            Ok(now)
        } else {
            before = now;
            Err(format!("{now:?}"))
        }
    });
    assert!(still.0 < MANY && still.1 < MANY, "they passed: {still:?}");
}

#[test]
#[ignore = "needs Python: interop/build"]
fn another_context_is_shown_as_refused_from_either_side_and_the_same_one_works() {
    let Some(python) = python_peer() else { return };
    for dials in [Dials::We, Dials::They] {
        for (theirs, works) in [("correct horse", true), ("another", false)] {
            let mut meeting = Meeting::new();
            meeting.offer(&names(1));
            let flags = ["--services", "1", "--context", theirs];
            let mut terms = Terms { context: Some("correct horse"), ..Terms::default() };
            let peer = if dials == Dials::We {
                let (peer, address) = meeting.listener(&python, "both", &flags);
                terms.address = Some(address);
                meeting.know(&terms);
                meeting.acme.start();
                peer
            } else {
                meeting.know(&terms);
                meeting.acme.start();
                meeting.dialler(&python, "both", &flags)
            };
            if works {
                meeting.until_imported(1);
                meeting.until_acknowledged(1);
                continue;
            }
            let seen = meeting.until_peer("a refusal", |p| p["state"]["kind"] == "refused");
            let reason = seen["state"]["reason"].as_str().unwrap();
            assert!(reason.contains("context"), "{dials:?}: {seen}");
            assert_eq!(seen["import"]["inForce"], 0, "{dials:?}: {seen}");
            assert!(held(&peer).is_empty(), "{dials:?}");
            assert!(!meeting.acme.log().contains("correct horse"), "the value is a secret");
        }
    }
}

#[test]
#[ignore = "needs Python: interop/build"]
fn what_a_v1alpha2_peer_offered_stays_when_it_is_killed_and_follows_it_when_it_is_back() {
    let Some(python) = python_peer() else { return };
    let (meeting, peer) = meet(&python, Dials::We, &names(2), &["--services", "5"]);
    meeting.until_imported(5);
    meeting.until_acknowledged(2);
    let address = peer.events("listening")[0]["address"].as_str().unwrap().to_owned();
    drop(peer);
    let seen = meeting.until_peer("its loss", |p| p["state"]["kind"] == "down");
    assert_eq!(seen["import"]["inForce"], 5, "the hold time keeps them: {seen}");
    let (peer, _) = meeting.listener_at(&python, "both", &address, &["--services", "7"]);
    meeting.until_imported(7);
    peer.until_count("upsert", 2);
    meeting.until_acknowledged(2);
}
