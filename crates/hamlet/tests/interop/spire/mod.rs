//! Real SPIRE: meshes whose identities come from its Workload API, and federation through its bundle
//! endpoint and through ours.

mod site;

use std::fs;
use std::net::SocketAddr;

use hamlet_testkit::pki::{LeafSpec, TestCa};
use serde_json::Value;

use crate::mesh::{Mesh, Two};
use crate::probe::{connect, echo};
use crate::wait::{until, until_true};
use crate::workload::Workload;
use site::{Programs, Site, believe};

/// How many CAs of its peer a mesh believes.
fn authorities(mesh: &Mesh) -> Option<usize> {
    mesh.json(&["bundle", "list"])[0]["authorities"].as_array().map(Vec::len)
}

/// Fingerprint of the one CA of the peer.
fn only_authority(mesh: &Mesh) -> Value {
    mesh.json(&["bundle", "list"])[0]["authorities"][0]["fingerprint"].clone()
}

fn agent_begins(mesh: &Mesh) -> u64 {
    mesh.json(&["status"])["agent"]["identities"][0]["notBeforeS"].as_u64().unwrap()
}

#[track_caller]
fn until_echo(two: &Two, text: &str) {
    until(&format!("an echo of {text:?} through both gateways"), || {
        let mut stream = connect(two.egress("raw")?).map_err(|e| e.to_string())?;
        echo(&mut stream, text).map_err(|e| e.to_string())
    });
}

/// acme, which has its trust from SPIRE, starts beside globex and publishes an echo that globex calls.
fn join_with_spire(two: &mut Two, raw: &Workload) {
    believe(&two.acme, &two.globex, "workloadApi: true");
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    two.acme.start();
    two.until_in_sync();
    two.globex.until_callable("acme/raw");
    until_echo(two, "hello");
}

/// Replaces the CA of a site as SPIRE's documentation has it, and checks what acme's peer sees on the
/// way; `spread` makes the peer's side look.
fn rotate_ca(two: &Two, site: &Site, spread: impl Fn() -> Result<String, String>) {
    let old = site.authority(&["show"])["active"]["authority_id"].as_str().unwrap().to_owned();
    let prepared = site.authority(&["prepare"]);
    let new = prepared["prepared_authority"]["authority_id"].as_str().unwrap().to_owned();
    until("globex knows both CAs of acme", || {
        spread()?;
        let n = authorities(&two.globex);
        if n == Some(2) { Ok(()) } else { Err(format!("{n:?}")) }
    });
    two.until_in_sync();
    let before = agent_begins(&two.acme);
    site.authority(&["activate", "-authorityID", &new]);
    // Its agents renew everything that the old one signed.
    site.authority(&["taint", "-authorityID", &old]);
    until_true("acme proves itself by the new CA", || agent_begins(&two.acme) > before);
    two.until_in_sync();
    until_echo(two, "by the new CA");
    site.authority(&["revoke", "-authorityID", &old]);
    until("globex knows the new CA alone", || {
        spread()?;
        let n = authorities(&two.globex);
        if n == Some(1) { Ok(()) } else { Err(format!("{n:?}")) }
    });
    two.until_in_sync();
    until_echo(two, "by the new CA alone");
}

#[test]
#[ignore = "needs SPIRE: interop/build spire"]
fn two_meshes_live_on_spire_alone_and_a_new_ca_and_a_lost_spire_agent_break_nothing() {
    let Some(programs) = Programs::find() else { return };
    let raw = Workload::echo();
    let mut two = Two::new();
    let root = two.root().to_owned();
    let mut acme = Site::new(&programs, &root, "acme.example");
    let mut globex = Site::new(&programs, &root, "globex.example");
    acme.start_server(&Site::federation(globex.domain, globex.endpoint, &globex.endpoint_id()));
    globex.start_server(&Site::federation(acme.domain, acme.endpoint, &acme.endpoint_id()));
    acme.take_bundle(globex.domain, &globex.bundle("spiffe"));
    globex.take_bundle(acme.domain, &acme.bundle("spiffe"));
    acme.start_agent(&[globex.domain]);
    globex.start_agent(&[acme.domain]);
    acme.identify(&two.acme, "");
    globex.identify(&two.globex, ", agent: {hint: hamlet-agent}, gateway: {hint: hamlet-gateway}");
    believe(&two.acme, &two.globex, "workloadApi: true");
    believe(&two.globex, &two.acme, "workloadApi: true");
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    two.start();
    two.until_in_sync();
    two.globex.until_callable("acme/raw");
    until_echo(&two, "hello");
    let mut live = connect(two.egress("raw").unwrap()).unwrap();
    echo(&mut live, "before").unwrap();
    let first = only_authority(&two.globex);

    // Whoever holds a good certificate needs no SPIRE agent until it ends.
    acme.kill_agent();
    until("acme says that its SPIRE agent is gone", || {
        let problems = two.acme.json(&["status"])["problems"].to_string();
        if problems.contains("start the SPIRE agent") { Ok(()) } else { Err(problems) }
    });
    until_echo(&two, "without the SPIRE agent");
    two.until_in_sync();
    acme.restart_agent();
    until("acme has its SPIRE agent back", || {
        let status = two.acme.json(&["status"]);
        if status["degraded"] == false { Ok(()) } else { Err(status["problems"].to_string()) }
    });
    two.until_in_sync();

    // Last: a SPIRE agent that is killed before it has renewed itself can't come back after the revocation.
    rotate_ca(&two, &acme, || globex.refresh(acme.domain));
    assert_ne!(only_authority(&two.globex), first);
}

#[test]
#[ignore = "needs SPIRE: interop/build spire"]
fn a_mesh_moves_from_its_authority_to_spire_under_the_same_root_and_its_peer_changes_nothing() {
    let Some(programs) = Programs::find() else { return };
    let raw = Workload::echo();
    let mut two = Two::new();
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    two.start();
    two.until_in_sync();
    two.globex.until_callable("acme/raw");
    until_echo(&two, "by the authority");
    let root = two.root().to_owned();
    let mut acme = Site::new(&programs, &root, "acme.example");
    let authority = two.acme.folder.join("identity/authority");
    acme.upstream = Some([authority.join("root-1.pem"), authority.join("root-1.key")]);
    acme.start_server("");
    acme.start_agent(&[]);
    acme.identify(&two.acme, "");
    let before = only_authority(&two.globex);
    // The doctor asks SPIRE as the agent will: the change is safe when it says so.
    let folder = two.acme.folder.to_str().unwrap().to_owned();
    until("the doctor finds both identities", || {
        let check = two.acme.cli(&["check", "--all", "-f", &folder]);
        let found = |path: &str| check.out.contains(&format!("spiffe://acme.example/{path}, expires in"));
        if found("hamlet/agent") && found("hamlet/gateway") { Ok(()) } else { Err(check.out) }
    });
    two.acme.stop();
    two.acme.start();
    two.until_in_sync();
    until_echo(&two, "by SPIRE");
    let status = two.acme.json(&["status"]);
    assert_eq!(status["agent"]["workloadApi"]["error"], Value::Null, "{status}");
    assert_eq!(status["agent"]["workloadApi"]["ids"].as_array().unwrap().len(), 2, "{status}");
    assert_eq!(only_authority(&two.globex), before);
}

#[test]
#[ignore = "needs SPIRE: interop/build spire"]
fn a_mesh_on_spire_and_one_with_an_authority_follow_each_others_bundle_endpoints() {
    let Some(programs) = Programs::find() else { return };
    let raw = Workload::echo();
    let mut two = Two::new();
    let root = two.root().to_owned();
    // Globex has its own authority, and publishes its bundle to SPIRE.
    let ours = two.globex.block.listener();
    let endpoint = format!("  bundleEndpoint: {{listen: \"{ours}\"}}\n");
    two.globex.write("mesh.yaml", &crate::texts::mesh(&two.globex, &endpoint));
    let mut acme = Site::new(&programs, &root, "acme.example");
    acme.start_server(&Site::federation("globex.example", ours, "spiffe://globex.example/hamlet/agent"));
    two.globex.write("peers/acme-ca.pem", &acme.bundle("pem"));
    let trust = format!(
        "bundle: peers/acme-ca.pem, endpoint: {{url: \"https://{}/\", profile: https_spiffe, endpointSpiffeId: \
         \"{}\", refresh: 200ms}}",
        acme.endpoint,
        acme.endpoint_id()
    );
    believe(&two.globex, &two.acme, &trust);
    two.globex.start();
    let shown = two.globex.cli(&["bundle", "show", "--format", "jwks"]);
    acme.take_bundle("globex.example", &shown.out);
    acme.start_agent(&["globex.example"]);
    acme.identify(&two.acme, "");
    join_with_spire(&mut two, &raw);
    let followed = two.globex.json(&["bundle", "list"])[0].clone();
    assert!(followed["sequence"].is_u64() && followed["failures"] == 0, "{followed}");

    // The authority's next root reaches acme by way of SPIRE.
    assert_eq!(authorities(&two.acme), Some(1));
    two.globex.ca(&["rotate"]);
    until("acme knows both roots of globex", || {
        acme.refresh("globex.example")?;
        let n = authorities(&two.acme);
        if n == Some(2) { Ok(()) } else { Err(format!("{n:?}")) }
    });
    two.until_in_sync();

    // And SPIRE's next CA reaches globex, which looks by itself.
    rotate_ca(&two, &acme, || Ok(String::new()));
}

#[test]
#[ignore = "needs SPIRE: interop/build spire"]
fn a_mesh_on_spire_and_one_with_an_authority_follow_each_other_s_web_endpoints_from_the_first_bundle_on() {
    let Some(programs) = Programs::find() else { return };
    let raw = Workload::echo();
    let mut two = Two::new();
    let root = two.root().to_owned();
    // Both endpoints prove the name localhost, by an authority that no system knows.
    let (web, other) = (TestCa::new("web.example"), TestCa::new("web.example"));
    let leaf = web.leaf(LeafSpec { uris: vec![], dns: vec!["localhost".into()], ..LeafSpec::of("x") });
    let pair = leaf.write(&two.globex.folder, "web");
    fs::write(root.join("web-ca.pem"), web.pem()).unwrap();
    let local = |at: SocketAddr| SocketAddr::from(([127, 0, 0, 1], at.port()));
    let url = |at: SocketAddr| format!("https://localhost:{}/", at.port());

    let ours = local(two.globex.block.listener());
    let endpoint = format!(
        "  bundleEndpoint: {{listen: \"{ours}\", profile: https_web, cert: web.pem, key: web.key}}\n"
    );
    two.globex.write("mesh.yaml", &crate::texts::mesh(&two.globex, &endpoint));
    let mut acme = Site::new(&programs, &root, "acme.example");
    acme.endpoint = local(acme.endpoint);
    acme.web = Some([pair.0, pair.1]);
    acme.web_roots = Some(root.join("web-ca.pem"));
    acme.start_server(&Site::federation_by_web("globex.example", &url(ours)));
    two.globex.write("peers/web-ca.pem", other.pem());
    let trust = format!(
        "endpoint: {{url: \"{}\", profile: https_web, caFile: peers/web-ca.pem, refresh: 200ms}}",
        url(acme.endpoint)
    );
    believe(&two.globex, &two.acme, &trust);
    two.globex.start();
    until("another authority proves nothing", || {
        let list = two.globex.json(&["bundle", "list"])[0].clone();
        let refused = list["failures"].as_u64() > Some(0) && list["authorities"] == serde_json::json!([]);
        if refused { Ok(()) } else { Err(list.to_string()) }
    });
    two.globex.write("peers/web-ca.pem", web.pem());
    until_true("globex has acme's first bundle", || authorities(&two.globex) == Some(1));
    until("acme's server has globex's first bundle", || acme.refresh("globex.example"));

    acme.start_agent(&["globex.example"]);
    acme.identify(&two.acme, "");
    join_with_spire(&mut two, &raw);

    two.globex.ca(&["rotate"]);
    until("acme knows both roots of globex", || {
        acme.refresh("globex.example")?;
        let n = authorities(&two.acme);
        if n == Some(2) { Ok(()) } else { Err(format!("{n:?}")) }
    });
    two.until_in_sync();
    rotate_ca(&two, &acme, || Ok(String::new()));
}
