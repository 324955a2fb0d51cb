//! What operators see of a peer at both ends: states, refusals, what can't be used, what was said;
//! and the brake on withdrawals of a source.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::mesh::{Mesh, Two};
use crate::probe::get;
use crate::texts;
use crate::wait::{until, until_true};
use crate::workload::Workload;

/// Two meshes that share a context value; acme publishes `services` to globex.
fn with_context(secret: &str, services: &[String]) -> (Two, Workload) {
    let raw = Workload::echo();
    let two = Two::new();
    let more = "  context: {file: peers/token}\n";
    for (mesh, peer) in [(&two.acme, &two.globex), (&two.globex, &two.acme)] {
        mesh.meet_with(peer, more, &texts::import(peer));
        let token = mesh.folder.join("peers/token");
        fs::write(&token, secret).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    }
    for name in services {
        two.acme.declare(name, "TCP", two.port, raw.at, "none");
    }
    let names: Vec<&str> = services.iter().map(String::as_str).collect();
    two.acme.publish("all", &names, &two.globex);
    (two, raw)
}

fn kinds(transcript: &str) -> Vec<String> {
    let kind = |line: &str| serde_json::from_str::<Value>(line).unwrap()["kind"].as_str().unwrap().to_owned();
    transcript.lines().map(kind).collect()
}

#[test]
fn both_ends_show_the_state_the_refusals_and_what_was_said_but_no_secret() {
    let secret = "correct horse battery staple";
    let (mut two, raw) = with_context(secret, &["raw".to_owned()]);
    let fqdn = "raw.elsewhere.example";
    let outside = texts::ServiceText {
        name: "outside",
        fqdn,
        protocol: "TCP",
        port: two.port,
        backends: &[raw.at],
        caller: "none",
    };
    two.acme.write("service-outside.yaml", &outside.text());
    two.acme.publish("outside", &["outside"], &two.globex);
    two.start();
    two.globex.until_callable("acme/raw");
    let seen = until("the owner knows the refusal and its reports", || {
        let seen = two.acme.peer(&two.globex);
        let publish = &seen["publish"];
        let told = publish["usableReports"].as_u64() >= Some(1) && seen["state"]["kind"] == "in-sync";
        if told && publish["refused"][0]["service"] == "outside" { Ok(seen) } else { Err(seen.to_string()) }
    });
    let refused = &seen["publish"]["refused"][0];
    assert_eq!(refused["rule"], "name-outside-suffixes");
    assert_eq!(refused["code"], "PERMISSION_DENIED");
    assert!(refused["version"].as_u64() > Some(0), "{refused}");
    assert_eq!(seen["state"]["refused"], 1);
    assert_eq!(seen["hello"]["beatEveryMs"], 5_000, "{seen}");
    assert!(seen["publish"]["window"]["messages"].as_u64() > Some(1), "{seen}");
    assert!(seen.get("stalls").is_none(), "{seen}");
    let page = two.acme.cli(&["describe", "peer", "globex"]).out;
    assert!(page.contains("in sync, proven") && page.contains("name-outside-suffixes"), "{page}");

    let (owner, consumer) = (
        two.acme.cli(&["transcript", "globex", "-o", "json"]).out,
        two.globex.cli(&["transcript", "acme", "-o", "json"]).out,
    );
    for said in [&owner, &consumer] {
        let kinds = kinds(said);
        for kind in ["opened", "subscribe", "upsert", "ack", "nack", "bookmark", "proof"] {
            assert!(kinds.iter().any(|k| k == kind), "no {kind} in {kinds:?}");
        }
        assert!(!said.contains("horse") && !said.contains("elsewhere"), "{said}");
    }
    let text = two.acme.cli(&["transcript", "globex", "-n", "1"]).out;
    assert!(text.starts_with('('), "what is left out is counted: {text}");

    // A peer that was lost is down at once, with the time to the next attempt and the hold time.
    two.acme.kill();
    let down = two.globex.until_peer(&two.acme, "down");
    assert!(down["state"]["holdLeftMs"].as_u64() > Some(0), "{down}");
    let said = two.globex.cli(&["transcript", "acme", "-o", "json"]).out;
    assert_eq!(kinds(&said).iter().filter(|k| *k == "ended").count(), 1, "{said}");
    assert_eq!(two.globex.cli(&["status"]).code, 3);
}

fn standing(mesh: &Mesh, name: &str) -> Option<String> {
    Some(mesh.service(name)?["standing"].as_str()?.to_owned())
}

#[test]
fn services_that_are_gone_from_the_files_at_once_are_served_on_until_they_come_back_or_it_is_confirmed() {
    let names: Vec<String> = (0..12).map(|i| format!("raw-{i:02}")).collect();
    let (mut two, raw) = with_context("x", &names);
    two.start();
    until_true("all are imported", || {
        two.globex.services().iter().filter(|s| s.starts_with("acme/")).count() == 12
    });
    let text = |name: &str| fs::read_to_string(two.acme.folder.join(format!("service-{name}.yaml"))).unwrap();
    let texts: Vec<String> = names.iter().map(|name| text(name)).collect();

    // One may always go, and a new one comes at once; all of them may not.
    two.acme.remove("service-raw-00.yaml");
    assert_eq!(two.acme.cli(&["reload"]).code, 0);
    until_true("one is gone", || two.globex.service("acme/raw-00").is_none());
    assert_eq!(two.acme.cli(&["status"]).code, 0);
    for name in &names[1..] {
        two.acme.remove(&format!("service-{name}.yaml"));
    }
    two.acme.declare("new", "TCP", two.port, raw.at, "none");
    two.acme.publish("new", &["new"], &two.globex);
    let reload = two.acme.cli(&["reload"]);
    assert!(reload.err.contains("11 services are gone"), "{reload:?}");
    two.globex.until_callable("acme/new");
    assert_eq!(standing(&two.acme, "raw-01").as_deref(), Some("withheld"));
    assert_eq!(standing(&two.acme, "new").as_deref(), Some("current"));
    assert!(two.globex.service("acme/raw-11").is_some());
    let status = two.acme.cli(&["status"]);
    assert!(status.code == 3 && status.out.contains("source/file: 11 services"), "{status:?}");
    let scrape = get(two.acme.at.health, "localhost", "/metrics").unwrap().text;
    assert!(scrape.contains("hamlet_source_withheld{source=\"file\"} 11.0"), "{scrape}");

    // Five come back; the rest is confirmed.
    for (name, text) in names.iter().zip(&texts).skip(1).take(5) {
        two.acme.write(&format!("service-{name}.yaml"), text);
    }
    assert_eq!(two.acme.cli(&["reload"]).code, 0);
    assert_eq!(standing(&two.acme, "raw-01").as_deref(), Some("current"));
    let confirmed = two.acme.cli(&["reload", "--confirm-withdrawals"]);
    assert!(confirmed.out.contains("6 withheld services withdrawn"), "{confirmed:?}");
    assert_eq!(two.acme.service("raw-11"), None);
    until_true("they are gone at the consumer", || two.globex.service("acme/raw-11").is_none());
    assert!(two.globex.service("acme/raw-01").is_some());
    assert_eq!(two.acme.cli(&["status"]).code, 0);
}

#[test]
fn not_even_at_trace_level_does_a_log_show_a_key_or_a_context_value() {
    let (mut two, raw) = with_context("correct horse battery staple", &["raw".to_owned()]);
    for mesh in [&mut two.acme, &mut two.globex] {
        mesh.log_level = "trace";
    }
    two.start();
    two.until_in_sync();
    two.globex.until_callable("acme/raw");
    // The search itself is in every mesh's end; here is what makes it one that can find something.
    let log = two.acme.log();
    assert!(log.contains(" TRACE ") && log.contains("context: ***"), "{log}");
    drop(raw);
}
