//! A peer is removed, distrusted, or disagrees about the secret; and each is mended.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use hamlet_core::TrustDomain;
use hamlet_identity::ca::{CA_LIFETIME, LocalCa};
use hamlet_runtime::SystemClock;

use crate::mesh::Two;
use crate::probe::{connect, echo, read_to_end};
use crate::texts;
use crate::wait::{until, until_true};
use crate::workload::Workload;

fn two_with_raw(raw: &Workload) -> Two {
    let mut two = Two::new();
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    two.start();
    two.globex.until_callable("acme/raw");
    two.until_in_sync();
    two
}

#[test]
fn a_removed_peer_takes_its_entries_and_connections_along_and_comes_back_whole() {
    let raw = Workload::echo();
    let two = two_with_raw(&raw);
    let at = two.egress("raw").unwrap();
    let mut live = connect(at).unwrap();
    echo(&mut live, "before").unwrap();
    let peer = fs::read_to_string(two.globex.folder.join("peer-acme.yaml")).unwrap();

    two.globex.remove("peer-acme.yaml");
    read_to_end(&mut live).unwrap();
    two.until_gone("raw", at);
    assert_eq!(two.globex.cli(&["get", "peer", "acme"]).code, 5);
    assert_eq!(two.globex.cli(&["get", "import", "acme"]).code, 5);
    until("acme sees that it is out", || {
        let state = two.acme.peer(&two.globex)["state"]["kind"].clone();
        if state == "in-sync" { Err(state.to_string()) } else { Ok(()) }
    });
    assert_eq!(two.globex.cli(&["status"]).code, 0, "nothing is wrong with globex");

    two.globex.write("peer-acme.yaml", &peer);
    two.globex.until_callable("acme/raw");
    two.until_in_sync();
    echo(&mut connect(two.egress("raw").unwrap()).unwrap(), "after").unwrap();

    // The owner's side: acme throws globex out.
    let mut live = connect(two.egress("raw").unwrap()).unwrap();
    echo(&mut live, "before").unwrap();
    let peer = fs::read_to_string(two.acme.folder.join("peer-globex.yaml")).unwrap();
    two.acme.write("peer-globex.yaml", "# nobody\n");
    two.acme.remove("publication-raw.yaml");
    read_to_end(&mut live).unwrap();
    let fails = connect(two.egress("raw").unwrap()).and_then(|mut s| echo(&mut s, "out"));
    assert!(fails.is_err(), "the ingress serves a stranger");
    two.acme.write("peer-globex.yaml", &peer);
    two.acme.publish("raw", &["raw"], &two.globex);
    two.until_in_sync();
    echo(&mut connect(two.egress("raw").unwrap()).unwrap(), "after").unwrap();
}

#[test]
fn a_peer_whose_bundle_is_exchanged_is_cut_and_shown_as_refused_until_it_is_put_back() {
    let raw = Workload::echo();
    let two = two_with_raw(&raw);
    let mut live = connect(two.egress("raw").unwrap()).unwrap();
    echo(&mut live, "before").unwrap();
    let domain = TrustDomain::parse("acme.example").unwrap();
    let other = two.root().join("other-ca");
    fs::create_dir(&other).unwrap();
    LocalCa::create(&other, &domain, CA_LIFETIME, SystemClock::shared()).unwrap();
    let bundle = two.acme.bundle();

    two.globex.write("peers/acme-ca.pem", &fs::read_to_string(other.join("ca.pem")).unwrap());
    read_to_end(&mut live).unwrap();
    let refused = two.globex.until_peer(&two.acme, "refused");
    let reason = refused["state"]["reason"].as_str().unwrap();
    assert!(reason.contains("acme.example"), "{refused}");
    assert!(two.globex.service("acme/raw").is_some(), "distrust alone withdraws nothing");
    let fails = connect(two.egress("raw").unwrap()).and_then(|mut s| echo(&mut s, "distrusted"));
    assert!(fails.is_err());
    let status = two.globex.cli(&["status"]);
    assert_eq!(status.code, 3);
    assert!(status.out.contains("acme: refused"), "{}", status.out);

    two.globex.write("peers/acme-ca.pem", "this is no certificate\n");
    until("the reason names the file", || {
        let state = two.globex.peer(&two.acme)["state"].clone();
        let named = state["reason"].as_str().is_some_and(|r| r.contains("acme-ca.pem"));
        if state["kind"] == "refused" && named { Ok(()) } else { Err(state.to_string()) }
    });

    two.globex.write("peers/acme-ca.pem", &bundle);
    two.until_in_sync();
    echo(&mut connect(two.egress("raw").unwrap()).unwrap(), "after").unwrap();
    until_true("nothing is wrong any more", || two.globex.cli(&["status"]).code == 0);
}

#[test]
fn an_owner_that_expects_another_id_is_shown_as_refused_at_the_consumer_and_its_log_says_which() {
    let raw = Workload::echo();
    let two = two_with_raw(&raw);
    let document = two.acme.folder.join("peer-globex.yaml");
    let good = fs::read_to_string(&document).unwrap();
    let other = good.replace("hamlet/agent\"]", "hamlet/another\"]");
    assert_ne!(good, other);

    two.acme.write("peer-globex.yaml", &other);
    let told = "refuses our certificate (TLS alert certificate_unknown): it has no Peer for us";
    let refused = two.globex.until_peer(&two.acme, "refused");
    let reason = refused["state"]["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with(&format!("{} {told}", two.acme.at.agent)), "{refused}");
    assert!(two.globex.service("acme/raw").is_some(), "a refusal withdraws nothing");
    let listed = two.globex.cli(&["get", "peers"]);
    assert!(listed.code == 0 && listed.out.contains("Refused"), "{listed:?}");
    let shown = two.globex.cli(&["describe", "peer", "acme"]);
    assert!(shown.code == 0 && shown.out.contains(told), "{shown:?}");
    let status = two.globex.cli(&["status"]);
    assert!(status.code == 3 && status.out.contains("peer/acme: refused"), "{status:?}");
    // Where it says to look.
    let there = two.acme.cli(&["describe", "peer", "globex"]);
    let named = "is not a configured agent of peer globex";
    assert!(there.out.contains("Refused logins") && there.out.contains(named), "{there:?}");
    assert!(two.acme.log().contains("refused a connection to the agent port"));

    two.acme.write("peer-globex.yaml", &good);
    two.until_in_sync();
    echo(&mut connect(two.egress("raw").unwrap()).unwrap(), "after").unwrap();
}

#[test]
fn a_context_value_works_when_both_have_it_and_is_named_as_the_reason_when_they_differ() {
    let raw = Workload::echo();
    let mut two = Two::new();
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    let more = "  context: {file: peers/token}\n";
    two.acme.meet_with(&two.globex, more, &texts::import(&two.globex));
    two.globex.meet_with(&two.acme, more, &texts::import(&two.acme));
    let put = |mesh: &crate::mesh::Mesh, text: &str| {
        let beside = mesh.folder.join(".token");
        fs::write(&beside, text).unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(beside, mesh.folder.join("peers/token")).unwrap();
    };
    put(&two.acme, "correct horse battery staple\n");
    put(&two.globex, "correct horse battery staple\n");
    two.start();
    two.globex.until_callable("acme/raw");
    two.until_in_sync();

    // The file is watched like the others; nobody reloads.
    put(&two.globex, "something else\n");
    for (mesh, peer) in [(&two.globex, &two.acme), (&two.acme, &two.globex)] {
        let seen = until(&format!("{} names the context", mesh.name), || {
            let seen = mesh.peer(peer);
            let named = seen["state"]["reason"].as_str().is_some_and(|r| r.contains("context"));
            if seen["state"]["kind"] == "refused" && named { Ok(seen) } else { Err(seen.to_string()) }
        });
        assert!(!seen.to_string().contains("horse"), "{seen}");
    }
    assert!(two.globex.service("acme/raw").is_some(), "it is held");

    put(&two.globex, "correct horse battery staple\n");
    two.until_in_sync();

    // A secret that isn't one any more is no reason to go on without.
    fs::set_permissions(two.acme.folder.join("peers/token"), fs::Permissions::from_mode(0o644)).unwrap();
    let refused = two.acme.until_peer(&two.globex, "refused");
    assert!(refused["state"]["reason"].as_str().unwrap().contains("chmod 600"), "{refused}");
    until_true("no stream without it", || two.globex.peer(&two.acme)["state"]["kind"] != "in-sync");
    echo(&mut connect(two.egress("raw").unwrap()).unwrap(), "calls are another matter").unwrap();
    fs::set_permissions(two.acme.folder.join("peers/token"), fs::Permissions::from_mode(0o600)).unwrap();
    two.until_in_sync();
    for mesh in [&two.acme, &two.globex] {
        assert!(!mesh.log().contains("horse") && !mesh.log().contains("something else"), "{}", mesh.log());
    }
}
