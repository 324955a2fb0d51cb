//! Bundles on streams between two agents: a root that is rotated without anybody's doing, one that is
//! taken away, and a restart in between.

use serde_json::Value;

use crate::mesh::{Mesh, Two};
use crate::texts;
use crate::wait::{until, until_true};

/// Has the mesh use announced CAs after so long.
fn wait_for(mesh: &Mesh, wait: &str) {
    mesh.write("mesh.yaml", &texts::mesh(mesh, &format!("  bundleWait: {wait}\n")));
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
fn a_rotated_root_reaches_a_peer_made_by_token_and_issues_as_soon_as_it_is_in_force_there() {
    let mut two = Two::strangers();
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
    assert!(two.acme.log().contains("all peers have the new root"));
    two.until_in_sync();
    let shown = two.acme.cli(&["bundle", "show", "--format", "jwks"]);
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(shown["spiffe_sequence"], both["sequence"], "one count over all channels");
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
