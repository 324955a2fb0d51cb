//! What is withdrawn is gone everywhere, what lives drains, and changes drop nobody.

use crate::mesh::Two;
use crate::probe::{connect, echo, line, read_to_end};
use crate::texts;
use crate::texts::ServiceText;
use crate::wait::until;
use crate::workload::Workload;

#[test]
fn a_withdrawn_service_is_gone_from_names_egress_and_state_while_a_live_connection_drains() {
    let (raw, other) = (Workload::echo(), Workload::echo());
    let mut two = Two::new();
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.declare("other", "TCP", two.port, other.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    two.acme.publish("other", &["other"], &two.globex);
    two.start();
    two.globex.until_callable("acme/raw");
    two.globex.until_callable("acme/other");
    let at = until("the name resolves", || two.egress("raw"));
    let seen = two.globex.service("acme/raw").unwrap();
    assert_eq!(seen["egress"], serde_json::json!([at.to_string()]), "the state and DNS say the same");
    let mut watch = two.globex.watch(&["get", "services"]);
    let (mut live, mut neighbour) = (connect(at).unwrap(), connect(two.egress("other").unwrap()).unwrap());
    echo(&mut live, "before").unwrap();
    echo(&mut neighbour, "before").unwrap();

    two.acme.remove("publication-raw.yaml");
    two.until_gone("raw", at);
    assert_eq!(two.globex.cli(&["get", "service", "acme/raw"]).code, 5);
    assert_eq!(two.globex.cli(&["describe", "service", "acme/raw"]).code, 5);
    for line in ["data still flows", "in both directions"] {
        echo(&mut live, line).unwrap();
    }
    echo(&mut neighbour, "untouched").unwrap();
    assert!(two.acme.service("raw").is_some(), "it is still a service of acme's");
    // A watch says so in one line below the others.
    watch.until_line(|line| line.starts_with("NAME "));
    let shown = watch.until_line(|line| line.starts_with("acme/raw "));
    let removed = watch.until_line(|line| line.starts_with("acme/raw ") && line.contains("(removed)"));
    assert_eq!(removed.find("(removed)"), shown.find("acme  "), "{shown}\n{removed}");

    // Published again, it has the address that it had.
    two.acme.publish("raw", &["raw"], &two.globex);
    two.globex.until_callable("acme/raw");
    assert_eq!(until("the name resolves", || two.egress("raw")), at);
    echo(&mut connect(at).unwrap(), "back").unwrap();
    echo(&mut live, "and the old connection stays").unwrap();
}

#[test]
fn the_drain_ends_when_its_time_is_over() {
    let raw = Workload::echo();
    let mut two = Two::new();
    let mesh = texts::mesh(&two.acme, "").replace("egress: {", "egress: {drain: 1s, ");
    two.acme.write("mesh.yaml", &mesh);
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    two.start();
    two.globex.until_callable("acme/raw");
    let at = until("the name resolves", || two.egress("raw"));
    let mut live = connect(at).unwrap();
    echo(&mut live, "before").unwrap();
    two.acme.remove("publication-raw.yaml");
    read_to_end(&mut live).unwrap();
    two.until_gone("raw", at);
}

#[test]
fn new_backends_serve_new_connections_and_drop_no_live_one() {
    let (first, second) = (Workload::named_echo("first"), Workload::named_echo("second"));
    let mut two = Two::new();
    two.acme.declare("raw", "TCP", two.port, first.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    two.start();
    two.globex.until_callable("acme/raw");
    let at = until("the name resolves", || two.egress("raw"));
    let mut live = connect(at).unwrap();
    assert_eq!(line(&mut live).unwrap(), "first");

    two.acme.declare("raw", "TCP", two.port, second.at, "none");
    assert_eq!(two.acme.cli(&["reload"]).code, 0);
    assert_eq!(line(&mut connect(at).unwrap()).unwrap(), "second");
    echo(&mut live, "still here").unwrap();

    // One of two is dead: every call finds the other.
    let dead = Workload::named_echo("dead").at;
    let backends = &[dead, first.at];
    let fqdn = &two.acme.fqdn("raw");
    let both = ServiceText { name: "raw", fqdn, protocol: "TCP", port: two.port, backends, caller: "none" };
    two.acme.write("service-raw.yaml", &both.text());
    assert_eq!(two.acme.cli(&["reload"]).code, 0);
    for _ in 0..4 {
        assert_eq!(line(&mut connect(at).unwrap()).unwrap(), "first");
    }
    echo(&mut live, "still here").unwrap();

    // A change that the peer sees, too.
    let described = both.text().replace("  port:", "  description: Now with words\n  port:");
    two.acme.write("service-raw.yaml", &described);
    until("the update arrives", || {
        let seen = two.globex.service("acme/raw").ok_or("it is gone")?;
        if seen["description"] == "Now with words" { Ok(()) } else { Err(seen.to_string()) }
    });
    echo(&mut live, "still here").unwrap();
}
