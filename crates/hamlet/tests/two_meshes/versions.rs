//! The real program in v1alpha1: found out, shown, and good enough for calls.

use crate::mesh::{Mesh, Two};
use crate::texts;
use crate::wait::until;
use crate::workload::Workload;

/// Lines of an Import for an owner that names no port.
fn import(peer: &Mesh, port: u16) -> String {
    let endpoints = format!("{{ranges: [127.0.0.0/8], ports: [{}]}}", peer.at.ingress.port());
    texts::import_with(peer, &[peer.domain], &endpoints, &format!("  ports: {{\"*\": {port}}}\n"))
}

#[test]
fn a_call_passes_in_v1alpha1_and_what_it_cannot_say_is_shown() {
    let ledger = Workload::http("ledger");
    let mut two = Two::new();
    // One is told, the other finds out.
    two.acme.meet_with(&two.globex, "  version: v1alpha1\n", &import(&two.globex, two.port));
    two.globex.meet_with(&two.acme, "", &import(&two.acme, two.port));
    two.acme.declare("ledger", "HTTP", two.port, ledger.at, "http-header");
    let text = std::fs::read_to_string(two.acme.folder.join("service-ledger.yaml")).unwrap();
    let (head, spec) = text.split_once("spec:\n").unwrap();
    let fqdn = two.acme.fqdn("both");
    let backends = spec.lines().find(|l| l.contains("backends")).unwrap().trim();
    let instance =
        |id: &str, port: u16| format!("    - {{id: {id}, protocol: HTTP, port: {port}, {backends}}}\n");
    let (head, one, other) = (head.replace("ledger", "both"), instance("one", 80), instance("other", 81));
    two.acme.write("service-both.yaml", &format!("{head}spec:\n  fqdn: {fqdn}\n  instances:\n{one}{other}"));
    two.acme.publish("all", &["ledger", "both"], &two.globex);
    two.start();
    // Its key is its id, and that is the SNI by which the owner routes.
    two.globex.until_callable("acme/http.ledger.acme.example");
    let answer = two.until_answers("ledger");
    assert!(answer.text.contains("x-hamlet-caller: spiffe://globex.example/hamlet/gateway"), "{answer:?}");

    let seen = until("acme shows what can't be said", || {
        let seen = two.acme.peer(&two.globex);
        if seen["publish"]["acknowledged"] == 1 { Ok(seen) } else { Err(seen.to_string()) }
    });
    assert_eq!((&seen["version"], &seen["publish"]["offered"]), (&"v1alpha1".into(), &1.into()), "{seen}");
    assert_eq!(seen["publish"]["unsaid"][0]["service"], "both", "{seen}");
    let described = two.acme.cli(&["describe", "peer", "globex"]);
    assert!(
        described.out.contains("Can't be said:") && described.out.contains("different SNIs"),
        "{described:?}"
    );
    let globex = two.globex.until_peer(&two.acme, "quiet");
    assert_eq!(globex["version"], "v1alpha1");
    let wide = two.globex.cli(&["get", "peers", "-o", "wide"]);
    assert!(wide.out.contains("VERSION") && wide.out.contains("v1alpha1"), "{wide:?}");
}
