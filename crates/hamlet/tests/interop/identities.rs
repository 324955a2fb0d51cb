//! Peers whose certificates hold no SPIFFE id, as the Go reference's: known by DNS name or by
//! fingerprint, and by nothing less.

use crate::foreign::{go_peer, python_peer};
use crate::meeting::{Meeting, THEIR_HOST, Terms, names};

/// A certificate as people issue it for a Go server: a DNS name, no URI, no key usage.
fn plain() -> Meeting {
    Meeting::with_leaf(|leaf| {
        leaf.uris.clear();
        leaf.key_usages.clear();
    })
}

fn by_name(name: &str) -> Terms {
    Terms { identity: Some(format!("{{dns: [{name}]}}")), ..Terms::default() }
}

#[test]
#[ignore = "needs Go: interop/build"]
fn a_go_consumer_without_a_spiffe_id_is_known_by_its_dns_name() {
    let Some(go) = go_peer() else { return };
    let mut meeting = plain();
    meeting.offer(&names(2));
    meeting.know(&by_name(THEIR_HOST));
    meeting.acme.start();
    let consumer = meeting.dialler(&go, "consumer", &[]);
    consumer.until_count("create", 2);
    let peer = meeting.until_peer("what proved it", |p| p["provenBy"].is_string());
    assert_eq!(peer["provenBy"], format!("dns:{THEIR_HOST}"), "{peer}");
}

#[test]
#[ignore = "needs Go: interop/build"]
fn a_go_consumer_of_another_name_is_refused_until_its_name_is_configured() {
    let Some(go) = go_peer() else { return };
    let mut meeting = plain();
    meeting.offer(&names(1));
    meeting.know(&by_name("another.foreign.example"));
    meeting.acme.start();
    let refused = meeting.dialler(&go, "consumer", &[]);
    let peer = meeting.until_peer("a refused login", |p| p["authFailures"][0]["message"].is_string());
    let message = peer["authFailures"][0]["message"].as_str().unwrap();
    assert!(message.contains(THEIR_HOST), "{message}");
    assert_eq!(refused.events("create").len(), 0);
    drop(refused);
    meeting.know(&by_name(THEIR_HOST));
    let reloaded = meeting.acme.cli(&["reload"]);
    assert_eq!(reloaded.code, 0, "{reloaded:?}");
    meeting.dialler(&go, "consumer", &[]).until_count("create", 1);
}

#[test]
#[ignore = "needs Python: interop/build"]
fn a_v1alpha2_peer_that_we_dial_is_known_by_its_fingerprint() {
    let Some(python) = python_peer() else { return };
    let mut meeting = plain();
    meeting.offer(&names(2));
    let (_peer, address) = meeting.listener(&python, "both", &["--services", "3"]);
    let identity = Some(format!("{{fingerprint: [\"{}\"]}}", meeting.fingerprint));
    meeting.know(&Terms { address: Some(address), identity, ..Terms::default() });
    meeting.acme.start();
    meeting.until_imported(3);
    meeting.until_acknowledged(2);
    assert_eq!(meeting.peer()["provenBy"], meeting.fingerprint);
}

#[test]
#[ignore = "needs Python: interop/build"]
fn a_revoked_peer_is_cut_off_when_the_list_is_replaced_and_let_in_when_it_no_longer_is() {
    let Some(python) = python_peer() else { return };
    let mut meeting = Meeting::new();
    meeting.offer(&names(1));
    meeting.revoke(false);
    let (_peer, address) = meeting.listener(&python, "both", &["--services", "2"]);
    let more = "  crl: {file: peers/foreign.crl}\n".to_owned();
    meeting.know(&Terms { address: Some(address), more, ..Terms::default() });
    meeting.acme.start();
    meeting.until_imported(2);
    let peer = meeting.until_peer("its lists", |p| p["crl"]["lists"] == 1);
    assert_eq!((&peer["crl"]["revoked"], &peer["crl"]["refuses"]), (&0.into(), &false.into()), "{peer}");

    meeting.revoke(true);
    let revoked = |p: &serde_json::Value| p["authFailures"].to_string().contains("is revoked");
    let peer = meeting.until_peer("its certificate revoked", |p| revoked(p) && p["provenBy"].is_null());
    assert_eq!(peer["crl"]["revoked"], 1, "{peer}");

    meeting.revoke(false);
    meeting.until_peer("a stream again", |p| p["provenBy"].is_string());
}
