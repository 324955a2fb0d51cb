//! The audit of running agents: changed roots whichever way they come, peers that come and go, tokens
//! that are refused, and files that somebody changed.

use std::fs;

use hamlet_testkit::pki::TestCa;
use serde_json::{Value, json};

use crate::mesh::{Mesh, Outcome, Two};
use crate::texts;
use crate::wait::{until, until_true};

/// SHA-256 of the CAs in force of a mesh's one peer.
fn prints(mesh: &Mesh) -> Vec<Value> {
    let list = mesh.json(&["bundle", "list"]);
    let all = list[0]["authorities"].as_array().cloned().unwrap_or_default();
    all.iter().map(|ca| ca["fingerprint"].clone()).collect()
}

/// Waits until so many CAs are in force.
#[track_caller]
fn until_prints(mesh: &Mesh, count: usize) -> Vec<Value> {
    until(&format!("{count} CAs are in force"), || {
        let found = prints(mesh);
        if found.len() == count { Ok(found) } else { Err(format!("{found:?}")) }
    })
}

fn folder(mesh: &Mesh) -> String {
    mesh.data().join("audit").display().to_string()
}

fn verify(mesh: &Mesh, args: &[&str]) -> Outcome {
    mesh.cli(&[&["audit", "verify", "--folder", &folder(mesh)], args].concat())
}

fn head(mesh: &Mesh) -> String {
    let report: Value = serde_json::from_str(&verify(mesh, &["-o", "json"]).out).unwrap();
    report["head"].as_str().unwrap().to_owned()
}

/// Our user, as the kernel tells the agent.
fn operator() -> Value {
    json!({"by": "operator", "uid": nix::unistd::getuid().as_raw()})
}

#[test]
fn a_partners_root_changed_by_file_is_audited_shown_and_found_even_if_the_agent_was_stopped_meanwhile() {
    let mut two = Two::new();
    two.start();
    two.until_in_sync();
    let first = prints(&two.globex);
    let begun = two.globex.until_audited("peer-roots-changed", |e| e["peer"] == "acme");
    assert_eq!((&begun["subject"]["added"], &begun["subject"]["source"]), (&json!(first), &json!("file")));

    let (own, other) = (two.acme.bundle(), TestCa::new("acme.example"));
    two.globex.write("peers/acme-ca.pem", &format!("{own}{}", other.pem()));
    let both = until_prints(&two.globex, 2);
    let new: Vec<&Value> = both.iter().filter(|print| !first.contains(print)).collect();
    let added = two.globex.until_audited("peer-roots-changed", |e| e["subject"]["added"] == json!(new));
    assert_eq!((&added["actor"], &added["subject"]["removed"]), (&json!({"by": "files"}), &Value::Null));
    assert_eq!(added["subject"]["trustDomain"], "acme.example");
    let described = two.globex.cli(&["describe", "peer", "acme"]).out;
    let print = new[0].as_str().unwrap();
    assert!(described.contains(&format!(", from file: +{print}")), "{described}");

    two.globex.stop();
    two.globex.write("peers/acme-ca.pem", &own);
    two.globex.start();
    let removed = two.globex.until_audited("peer-roots-changed", |e| e["subject"]["removed"] == json!(new));
    assert!(removed["sequence"].as_u64() > added["sequence"].as_u64());
    let shown = two.globex.cli(&["audit", "--peer", "acme", "--since", "1h"]);
    assert!(shown.code == 0 && shown.out.contains(&format!("from file, -{print}")), "{shown:?}");
    assert!(shown.out.starts_with("TIME ") && !shown.out.contains("agent-started"), "{shown:?}");
    let life: Vec<Value> = two.globex.audit(&["--action", "agent-started", "--action", "agent-stopped"]);
    let life: Vec<&str> = life.iter().map(|e| e["action"].as_str().unwrap()).collect();
    assert_eq!(life, ["agent-started", "agent-stopped", "agent-started"]);
    assert_eq!(two.globex.cli(&["audit", "--action", "no-such-thing"]).code, 2);
    assert_eq!(two.globex.cli(&["audit", "--folder", "/nowhere"]).code, 5);
    let whole = two.globex.cli(&["audit", "verify"]);
    assert!(whole.code == 0 && whole.out.contains("the running agent wrote the same end"), "{whole:?}");
    assert!(whole.out.ends_with("The chain is whole.\n"), "{whole:?}");
}

#[test]
fn a_root_that_comes_on_the_stream_is_audited_on_both_sides_and_so_is_the_life_of_a_peer_by_token() {
    let mut two = Two::strangers();
    two.globex.write("mesh.yaml", &texts::mesh(&two.globex, "  bundleWait: 1s\n"));
    two.start();
    let invited = two.acme.cli(&["peer", "invite", "globex", "--yes"]);
    let altered = format!("{}\n", &invited.out[..invited.out.len() - 4]);
    let wrong = two.globex.cli_fed(&["peer", "accept"], &altered);
    assert_eq!(wrong.code, 1);
    let refused = two.globex.until_audited("peer-accepted", |e| e["outcome"] == "refused");
    assert_eq!(refused["actor"], operator());
    assert!(refused["subject"]["note"].as_str().unwrap().contains("altered"), "{refused}");
    assert_eq!(two.globex.cli_fed(&["peer", "accept", "--yes"], &invited.out).code, 0);
    two.until_in_sync();
    let first = until_prints(&two.globex, 1);
    let made = two.acme.until_audited("peer-invited", |e| e["peer"] == "globex");
    let used = two.acme.until_audited("invitation-used", |e| e["peer"] == "globex");
    assert_eq!((&made["actor"], made["subject"]["invitation"].is_string()), (&operator(), true), "{made}");
    assert_eq!(used["subject"]["invitation"], made["subject"]["invitation"]);
    assert_eq!(used["actor"], json!({"by": "peer", "name": "globex", "channel": "token"}));
    let accepted = two.globex.until_audited("peer-accepted", |e| e["outcome"] == "done");
    assert_eq!((&accepted["peer"], &accepted["subject"]["roots"]), (&json!("acme"), &json!(first)));
    two.globex.until_audited("peer-roots-changed", |e| e["subject"]["source"] == "token");

    // The new root, as both see it.
    two.acme.ca(&["rotate"]);
    let both = until_prints(&two.globex, 2);
    let new = json!(both.iter().filter(|print| !first.contains(print)).collect::<Vec<_>>());
    let stream = json!({"by": "peer", "name": "acme", "channel": "stream"});
    let announced = two.globex.until_audited("peer-roots-announced", |e| e["subject"]["announced"] == new);
    let added = two.globex.until_audited("peer-roots-changed", |e| e["subject"]["added"] == new);
    assert_eq!((&announced["actor"], &added["actor"]), (&stream, &stream));
    assert!(announced["sequence"].as_u64() < added["sequence"].as_u64());
    two.acme.until_audited("own-root-staged", |e| e["subject"]["roots"] == new);
    two.acme.until_audited("own-roots-changed", |e| e["subject"]["added"] == new);
    two.acme.until_audited("own-root-switched", |e| e["subject"]["roots"] == new);

    // A pause, its end, and the end of all.
    for (command, action) in [("pause", "peer-paused"), ("resume", "peer-resumed")] {
        assert_eq!(two.acme.cli(&["peer", command, "globex"]).code, 0);
        let entry = two.acme.until_audited(action, |e| e["peer"] == "globex");
        assert_eq!((&entry["actor"], &entry["outcome"]), (&operator(), &json!("done")));
    }
    assert_eq!(two.acme.audit(&["--action", "peer-paused"]).len(), 1, "told once");
    two.until_in_sync();
    let removed = two.acme.cli(&["peer", "remove", "globex"]);
    assert!(removed.err.contains("it was told"), "{removed:?}");
    let removed = two.acme.until_audited("peer-removed", |e| e["peer"] == "globex");
    assert_eq!((&removed["actor"], &removed["subject"]["told"]), (&operator(), &json!(true)));
    assert_eq!(two.acme.audit(&["--action", "peer-removed"]).len(), 1, "told once");
    let gone = two.acme.until_audited("peer-roots-changed", |e| e["subject"]["reason"] == "peer-removed");
    assert_eq!(gone["actor"], operator());
    let left = two.globex.until_audited("peer-left", |e| e["peer"] == "acme");
    assert_eq!(left["actor"], stream);
    for mesh in [&two.acme, &two.globex] {
        assert_eq!(mesh.cli(&["audit", "verify"]).code, 0);
    }
}

#[test]
fn a_refused_token_a_refused_login_and_a_broken_configuration_are_audited() {
    let mut two = Two::strangers();
    let mut initech = two.third();
    two.start();
    initech.start();
    let invited = two.acme.cli(&["peer", "invite", "globex"]);
    assert_eq!(two.globex.cli_fed(&["peer", "accept"], &invited.out).code, 0);
    assert_eq!(initech.cli_fed(&["peer", "accept"], &invited.out).code, 1);
    let used = two.acme.until_audited("peering-refused", |e| e["subject"]["reason"] == "used");
    assert_eq!((&used["actor"]["by"], &used["outcome"]), (&json!("stranger"), &json!("refused")));
    assert!(used["actor"]["address"].is_string(), "{used}");
    let wrong = two.globex.cli(&["peer", "confirm", "acme", "zoo", "zoo", "zoo", "zoo"]);
    assert_eq!(wrong.code, 1);
    two.globex.until_audited("peer-confirmed", |e| e["outcome"] == "refused" && e["peer"] == "acme");

    // A stranger's certificate: initech believes in a peer acme, which has never heard of it.
    initech.meet(&two.acme);
    assert_eq!(initech.cli(&["reload"]).code, 0);
    let added = initech.until_audited("peer-added", |e| e["peer"] == "acme");
    assert_eq!(added["actor"], operator(), "whoever asked for the reload");
    let login = two.acme.until_audited("logins-refused", |e| e["subject"]["reason"].is_string());
    assert_eq!(login["actor"]["by"], "stranger");

    initech.write("broken.yaml", "kind: Nonsense\n");
    assert_eq!(initech.cli(&["reload"]).code, 1);
    let refused = initech.until_audited("configuration-refused", |e| e["outcome"] == "refused");
    assert!(refused["subject"]["count"].as_u64() > Some(0), "{refused}");
    initech.remove("broken.yaml");
    initech.remove("peer-acme.yaml");
    until_true("the peer is gone", || initech.cli(&["get", "peer", "acme"]).code == 5);
    initech.until_audited("peer-removed", |e| e["peer"] == "acme");
    let applied = initech.until_audited("configuration-applied", |e| {
        e["subject"]["changes"].as_array().is_some_and(|all| all.contains(&json!("peer acme: removed")))
    });
    assert_eq!(applied["subject"]["configuration"].as_str().map(str::len), Some(64));
}

#[test]
fn an_altered_or_cut_audit_is_found_by_verify_and_by_the_agent_at_its_start() {
    let mut two = Two::new();
    two.globex.start();
    two.globex.until_audited("agent-started", |_| true);
    two.globex.stop();
    let good = head(&two.globex);
    assert_eq!(verify(&two.globex, &["--anchor", &good]).code, 0);

    let path = two.globex.data().join("audit/00000001.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() > 3, "{text}");
    let altered = text.replacen("\"by\":\"files\"", "\"by\":\"agent\"", 1);
    assert_ne!(altered, text);
    fs::write(&path, &altered).unwrap();
    let found = verify(&two.globex, &[]);
    assert!(found.code == 1 && found.out.contains("00000001.jsonl:") && found.out.contains("was altered"));
    let shown = two.globex.cli(&["audit", "--folder", &folder(&two.globex)]);
    assert!(shown.code == 3 && shown.err.contains("chain of these entries is broken"), "{shown:?}");

    // Cut off at the end, it is whole by itself. The head that was kept shows it.
    fs::write(&path, lines[..lines.len() - 1].join("\n") + "\n").unwrap();
    assert_eq!(verify(&two.globex, &[]).code, 0);
    let cut = verify(&two.globex, &["--anchor", &good]);
    assert!(cut.code == 1 && cut.out.contains("the end was cut off"), "{cut:?}");

    two.globex.start();
    let told = two.globex.until_audited("chain-broken", |e| e["subject"]["count"] == 1);
    assert!(told["subject"]["note"].as_str().unwrap().contains("the end was cut off"), "{told}");
    assert_eq!(two.globex.cli(&["audit", "verify"]).code, 1, "and it stays visible");
}

#[test]
fn an_audit_that_cant_be_written_degrades_the_agent_stops_nothing_and_is_written_later() {
    let mut two = Two::new();
    fs::create_dir_all(two.globex.data()).unwrap();
    let in_the_way = two.globex.data().join("audit");
    fs::write(&in_the_way, "in the way").unwrap();
    two.start();
    two.until_in_sync();
    let status = two.globex.json(&["status"]);
    let problems = status["problems"].as_array().unwrap();
    let problem = problems.iter().find(|p| p["about"] == "audit").expect("it is told");
    assert!(problem["message"].as_str().unwrap().contains("can't be written"), "{problem}");
    fs::remove_file(&in_the_way).unwrap();
    until_true("the audit is written", || two.globex.cli(&["audit"]).code == 0);
    let started = two.globex.until_audited("agent-started", |_| true);
    assert_eq!(started["sequence"], 2, "what waited is there, in order");
    two.globex.until_audited("peer-roots-changed", |e| e["peer"] == "acme");
    until_true("nothing is wrong any more", || two.globex.cli(&["status"]).code == 0);
}
