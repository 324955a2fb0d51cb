//! `hamlet check` beside real agents: silent about what works, and for each thing that is broken one
//! finding that names it and says what to do.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::mesh::{Mesh, Two};
use crate::workload::Workload;

/// The exit code, and the findings that are no passes.
fn check(mesh: &Mesh) -> (i32, Vec<Value>) {
    let folder = mesh.folder.to_str().unwrap();
    let outcome = mesh.cli(&["check", "-f", folder, "--patience", "2s", "-o", "json"]);
    let document: Value = serde_json::from_str(&outcome.out).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
    let findings = document["findings"].as_array().unwrap().clone();
    (outcome.code, findings.into_iter().filter(|f| f["outcome"] != "pass").collect())
}

/// Exactly one failure: about this, with these words in what was found, and in what to do.
#[track_caller]
fn assert_fails(mesh: &Mesh, case: &str, about: &str, found: &str, remedy: &str) {
    let (code, findings) = check(mesh);
    let failed: Vec<&Value> = findings.iter().filter(|f| f["outcome"] == "fail").collect();
    let [one] = failed.as_slice() else { panic!("{case}: {findings:#?}") };
    let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
    assert_eq!((code, text("about").as_str()), (1, about), "{case}: {one}");
    assert!(text("found").contains(found), "{case}: {one}");
    assert!(text("remedy").contains(remedy), "{case}: {one}");
}

/// Two meshes, of which only acme's agent runs: what is broken at globex is then told by the check
/// alone.
fn acme_alone() -> Two {
    let mut two = Two::new();
    two.acme.start();
    two
}

#[test]
fn two_healthy_meshes_pass_and_only_the_resolver_of_the_machine_is_warned_of() {
    let workload = Workload::echo();
    let mut two = Two::new();
    two.acme.declare("ledger", "TCP", two.port, workload.at, "none");
    two.acme.publish("all", &["ledger"], &two.globex);
    two.start();
    two.until_in_sync();
    two.globex.until_callable("acme/ledger");
    assert_eq!(check(&two.acme), (0, vec![]));
    let (code, findings) = check(&two.globex);
    // The names of this test are known to no resolver of the machine.
    let about: Vec<&Value> = findings.iter().map(|f| &f["about"]).collect();
    assert_eq!((code, about), (3, vec![&Value::from("dns/resolver")]), "{findings:#?}");
    assert!(findings[0]["remedy"].as_str().unwrap().contains("acme.example"), "{findings:#?}");
    let folder = two.globex.folder.to_str().unwrap();
    let page = two.globex.cli(&["check", "-f", folder, "--all"]);
    for line in [
        "pass  identity/agent: spiffe://globex.example/hamlet/agent, expires in",
        "pass  bundle/acme: 1 CA of acme.example",
        "pass  peer/acme: both sides proven in",
        "pass  gateway/acme: 1 reachable",
        "pass  dns: ",
    ] {
        assert!(page.out.contains(line), "no {line:?} in\n{}", page.out);
    }
}

#[test]
fn without_an_agent_there_is_a_warning_and_the_rest_is_still_looked_at() {
    let two = acme_alone();
    let (code, findings) = check(&two.globex);
    let about: Vec<&Value> = findings.iter().map(|f| &f["about"]).collect();
    assert_eq!((code, about), (3, vec![&Value::from("agent")]), "{findings:#?}");
}

#[test]
fn what_is_broken_in_our_own_certificates_is_named_with_the_command_that_mends_it() {
    let two = acme_alone();
    let globex = &two.globex;
    let at = |name: &str| globex.folder.join("identity").join(name);
    let mode = |mode| fs::set_permissions(at("agent.key"), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    assert_fails(globex, "open key", "identity/agent", "can be read by others", "chmod 600");
    mode(0o600);
    let own = fs::read(at("gateway.key")).unwrap();
    fs::write(at("gateway.key"), fs::read(at("agent.key")).unwrap()).unwrap();
    assert_fails(
        globex,
        "foreign key",
        "identity/gateway",
        "is not the key of",
        "replace both files together",
    );
    fs::write(at("gateway.key"), own).unwrap();
    let state = "authority/authority.json";
    let own = fs::read(at(state)).unwrap();
    fs::write(at(state), fs::read(two.acme.folder.join("identity").join(state)).unwrap()).unwrap();
    assert_fails(globex, "foreign authority", "identity/authority", "acme.example", "spec.trustDomain");
    fs::write(at(state), own).unwrap();
    let (code, _) = check(globex);
    assert_eq!(code, 3, "mended, it is well again");
}

#[test]
fn what_is_broken_towards_a_peer_is_told_apart_and_named() {
    let two = acme_alone();
    let globex = &two.globex;
    let bundle = "peers/acme-ca.pem";
    let peer = fs::read_to_string(globex.folder.join("peer-acme.yaml")).unwrap();

    globex.write(bundle, "nothing");
    assert_fails(globex, "empty bundle", "bundle/acme", "no CA certificate", "put the peer's CA");
    globex.write(bundle, &globex.bundle());
    assert_fails(
        globex,
        "bundle of another",
        "bundle/acme",
        "belongs to spiffe://globex.example",
        "check whose bundle",
    );
    globex.write(bundle, &two.acme.bundle());

    globex.write("peer-acme.yaml", &peer.replace("acme.example/hamlet/agent", "acme.example/hamlet/other"));
    assert_fails(
        globex,
        "other id",
        "peer/acme",
        "is not a configured agent",
        "correct the peer's agent ids",
    );

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = nobody.local_addr().unwrap();
    let moved =
        |at: String| globex.write("peer-acme.yaml", &peer.replace(&two.acme.at.agent.to_string(), &at));
    moved(silent.to_string());
    assert_fails(globex, "silent", "peer/acme", "was not over in 2s", "see what listens there");
    drop(nobody);
    moved(silent.to_string());
    assert_fails(globex, "closed", "peer/acme", "can't be reached", "firewall");
    moved("no-such-host.invalid:7443".to_owned());
    assert_fails(globex, "no name", "peer/acme", "can't be resolved", "spec.address");

    globex.write("peer-acme.yaml", &peer);
    let (code, _) = check(globex);
    assert_eq!(code, 3, "mended, it is well again");
    two.acme.remove("peer-globex.yaml");
    crate::wait::until("acme has forgotten globex", || {
        let seen = two.acme.json(&["get", "peers"]);
        if seen["items"].as_array().unwrap().is_empty() { Ok(()) } else { Err(seen.to_string()) }
    });
    assert_fails(globex, "not known", "peer/acme", "does not take our certificate", "needs our bundle");
}

#[test]
fn a_port_that_is_taken_and_a_broken_file_are_named_with_their_place() {
    let two = acme_alone();
    let globex = &two.globex;
    let taken = TcpListener::bind(globex.at.ingress).unwrap();
    assert_fails(globex, "taken", "listeners/ingress", &globex.at.ingress.to_string(), "ss -ltnp");
    drop(taken);
    globex.write(
        "service-bad.yaml",
        "apiVersion: hamlet.dev/v1\nkind: Service\nmetadata: {name: bad}\nspec: {}\n",
    );
    let (code, findings) = check(globex);
    assert_eq!(code, 1);
    assert!(!findings.is_empty() && findings.iter().all(|f| f["about"] == "configuration"), "{findings:#?}");
    assert!(findings[0]["found"].as_str().unwrap().contains("service-bad.yaml:"), "{findings:#?}");
}
