//! What an Import doesn't allow is refused, shown to both sides with its rule, and served nowhere.

use serde_json::Value;

use crate::mesh::{Mesh, Two};
use crate::probe::{connect, echo, resolve};
use crate::texts::{self, ServiceText};
use crate::wait::until;
use crate::workload::Workload;

/// The refusals of one direction, as `service: rule`, once there are `count`.
#[track_caller]
fn until_refused(mesh: &Mesh, peer: &Mesh, flow: &str, count: usize) -> Vec<Value> {
    until(&format!("{} shows {count} refusals ({flow})", mesh.name), || {
        let seen = mesh.peer(peer);
        let refused = seen[flow]["refused"].as_array().cloned().unwrap_or_default();
        let total = seen[flow]["refusedTotal"].as_u64();
        if refused.len() == count && total == Some(count as u64) {
            Ok(refused)
        } else {
            Err(seen.to_string())
        }
    })
}

/// Both sides show that the service was refused for that rule, with the field and what to do; the
/// consumer serves nothing of it.
#[track_caller]
fn assert_refused(two: &Two, service: &str, fqdn: &str, rule: &str, field: &str) {
    for (mesh, peer, flow) in [(&two.acme, &two.globex, "publish"), (&two.globex, &two.acme, "import")] {
        let refused = mesh.peer(peer)[flow]["refused"].clone();
        let one = refused.as_array().unwrap().iter().find(|r| r["service"] == service);
        let one = one.unwrap_or_else(|| panic!("{}: {service} is not among {refused}", mesh.name));
        assert_eq!((&one["rule"], &one["field"]), (&rule.into(), &field.into()), "{}: {one}", mesh.name);
        assert!(one["message"].as_str().unwrap().len() > 20, "{one}");
        let page = mesh.cli(&["describe", "peer", peer.name]);
        assert_eq!(page.code, 0, "{page:?}");
        let line = page.out.lines().find(|l| l.contains(&format!("- {service}: {rule}: {field}: ")));
        assert!(line.is_some(), "{}: no line for {service} in\n{}", mesh.name, page.out);
    }
    assert_eq!(two.globex.service(&format!("acme/{service}")), None);
    assert!(!two.globex.services().contains(&format!("acme/{service}")));
    let names = resolve(&two.globex, fqdn);
    assert!(names.code != 0 && names.addresses.is_empty(), "{fqdn}: {names:?}");
}

#[track_caller]
fn assert_called(two: &Two, service: &str) {
    two.globex.until_callable(&format!("acme/{service}"));
    let at = until("the name resolves", || two.egress(service));
    echo(&mut connect(at).unwrap(), "benign").unwrap();
}

#[test]
fn names_outside_the_suffixes_and_in_reserved_zones_are_refused_and_their_neighbour_is_called() {
    let workload = Workload::echo();
    let mut two = Two::new();
    let port = two.port;
    let services = [
        ("good", "good.acme.example"),
        ("outside", "outside.other.example"),
        ("lookalike", "lookalike.notacme.example"),
        ("local", "local.acme.local"),
        ("cluster", "kubernetes.default.svc.cluster.local"),
    ];
    for (name, fqdn) in services {
        let backends = &[workload.at];
        let text = ServiceText { name, fqdn, protocol: "TCP", port, backends, caller: "none" }.text();
        two.acme.write(&format!("service-{name}.yaml"), &text);
    }
    two.acme.publish("all", &services.map(|(name, _)| name), &two.globex);
    two.start();
    two.until_in_sync();
    assert_called(&two, "good");
    until_refused(&two.acme, &two.globex, "publish", 4);
    until_refused(&two.globex, &two.acme, "import", 4);
    assert_refused(&two, "outside", "outside.other.example", "name-outside-suffixes", "fqdn");
    assert_refused(&two, "lookalike", "lookalike.notacme.example", "name-outside-suffixes", "fqdn");
    assert_refused(&two, "local", "local.acme.local", "name-reserved", "fqdn");
    assert_refused(&two, "cluster", "kubernetes.default.svc.cluster.local", "name-reserved", "fqdn");
    let state = two.globex.peer(&two.acme)["state"].clone();
    assert_eq!((&state["kind"], &state["refused"]), (&"in-sync".into(), &4.into()));
    // The rename that the message asks for is all it takes.
    let backends = &[workload.at];
    let renamed = ServiceText {
        name: "outside",
        fqdn: "outside.acme.example",
        protocol: "TCP",
        port,
        backends,
        caller: "none",
    };
    two.acme.write("service-outside.yaml", &renamed.text());
    assert_called(&two, "outside");
    until_refused(&two.acme, &two.globex, "publish", 3);
}

#[test]
fn endpoints_and_identities_that_the_import_does_not_allow_are_refused_until_it_does() {
    let workload = Workload::echo();
    let mut two = Two::new();
    two.acme.declare("ledger", "TCP", two.port, workload.at, "none");
    two.acme.publish("ledger", &["ledger"], &two.globex);
    let port = two.acme.at.ingress.port();
    let import =
        |endpoints: &str, more: &str| texts::import_with(&two.acme, &["acme.example"], endpoints, more);
    let open = format!("{{ranges: [127.0.0.0/8], ports: [{port}]}}");
    let cases = [
        // No ranges: loopback is not public.
        (format!("{{ports: [{port}]}}"), "", "endpoint-address-denied", "endpoints[0].address"),
        (
            format!("{{ranges: [10.0.0.0/8], ports: [{port}]}}"),
            "",
            "endpoint-address-denied",
            "endpoints[0].address",
        ),
        ("{ranges: [127.0.0.0/8], ports: [443]}".to_owned(), "", "endpoint-port-denied", "endpoints[0].port"),
        (open.clone(), "  sans: [\"spiffe://acme.example/hamlet/other\"]\n", "san-not-accepted", "sans[0]"),
    ];
    let imports = cases.clone().map(|(endpoints, more, ..)| import(&endpoints, more));
    let good = import(&open, "");
    // A change of the service is a new offer, which is answered at once.
    let (fqdn, backends) = (two.acme.fqdn("ledger"), [workload.at]);
    let (acme, service_port) = (two.acme.folder.clone(), two.port);
    let describe = |words: &str| {
        let text = ServiceText {
            name: "ledger",
            fqdn: &fqdn,
            protocol: "TCP",
            port: service_port,
            backends: &backends,
            caller: "none",
        };
        let text = text.text() + &format!("  description: {words}\n");
        std::fs::write(acme.join(".next"), text).unwrap();
        std::fs::rename(acme.join(".next"), acme.join("service-ledger.yaml")).unwrap();
    };
    two.globex.meet_with(&two.acme, "", &imports[0]);
    two.start();
    for (text, (.., rule, field)) in imports.iter().zip(&cases) {
        two.globex.meet_with(&two.acme, "", text);
        assert_eq!(two.globex.cli(&["reload"]).code, 0);
        describe(rule);
        for (mesh, peer, flow) in [(&two.globex, &two.acme, "import"), (&two.acme, &two.globex, "publish")] {
            until(&format!("{} shows {rule}", mesh.name), || {
                let refused = mesh.peer(peer)[flow]["refused"].clone();
                if refused[0]["rule"] == *rule { Ok(()) } else { Err(refused.to_string()) }
            });
        }
        assert_refused(&two, "ledger", "ledger.acme.example", rule, field);
        // The neighbour: the same offer, once the Import allows it.
        two.globex.meet_with(&two.acme, "", &good);
        assert_eq!(two.globex.cli(&["reload"]).code, 0);
        assert_called(&two, "ledger");
        describe("allowed");
        until_refused(&two.acme, &two.globex, "publish", 0);
    }
}

#[test]
fn an_import_that_changes_is_told_to_the_owner_although_it_offers_nothing_new() {
    let workload = Workload::echo();
    let mut two = Two::new();
    two.acme.declare("ledger", "TCP", two.port, workload.at, "none");
    two.acme.publish("ledger", &["ledger"], &two.globex);
    two.start();
    assert_called(&two, "ledger");
    two.until_in_sync();
    let narrow = texts::import_with(&two.acme, &["other.example"], "{ranges: [127.0.0.0/8]}", "");
    two.globex.meet_with(&two.acme, "", &narrow);
    assert_eq!(two.globex.cli(&["reload"]).code, 0);
    // At once here, and soon there.
    assert_eq!(two.globex.service("acme/ledger"), None);
    until_refused(&two.acme, &two.globex, "publish", 1);
    assert_refused(&two, "ledger", "ledger.acme.example", "name-outside-suffixes", "fqdn");
    two.globex.meet(&two.acme);
    assert_eq!(two.globex.cli(&["reload"]).code, 0);
    assert_called(&two, "ledger");
    until_refused(&two.acme, &two.globex, "publish", 0);
}
