//! A mesh whose identity and bundles come from a Workload API: from the start or later, through
//! rotations, without the socket for a while, and with a peer's bundle that changes and goes.

use std::collections::HashMap;
use std::path::PathBuf;

use hamlet::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};
use hamlet_testkit::pki::{DAY, LeafSpec, TestCa, TestLeaf};
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::Status;

use crate::api::{Server, Svid, SvidResponse};
use crate::mesh::{Mesh, Two};
use crate::probe::{connect, echo, get};
use crate::texts;
use crate::wait::{until, until_true};
use crate::workload::Workload;

/// A Workload API beside a mesh.
pub(crate) struct Spire {
    runtime: Runtime,
    socket: PathBuf,
    domain: &'static str,
    pub(crate) ca: TestCa,
}

impl Spire {
    pub(crate) fn beside(mesh: &Mesh) -> Spire {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Spire {
            runtime: runtime.unwrap(),
            socket: mesh.folder.with_file_name(format!("{}-workload.sock", mesh.name)),
            domain: mesh.domain,
            ca: TestCa::new(mesh.domain),
        }
    }

    /// Has the mesh take everything from here; `choice` says which identities.
    pub(crate) fn identify(&self, mesh: &Mesh, choice: &str, more: &str) {
        let text = texts::mesh(mesh, more);
        let authority = "    authority: {folder: identity}\n";
        assert!(text.contains(authority), "{text}");
        let api = format!("    workloadApi: {{socket: \"unix://{}\"{choice}}}\n", self.socket.display());
        mesh.write("mesh.yaml", &text.replace(authority, &api));
    }

    pub(crate) fn serve(&self, word: Result<SvidResponse, Status>) -> Server {
        let _inside = self.runtime.enter();
        Server::start(&self.socket, word)
    }

    /// One identity that `ca` issues, for so many days. Its key is put where canaries are found.
    fn svid(&self, mesh: &Mesh, ca: &TestCa, path: &str, days: i64) -> Svid {
        let (leaf, id) = self.leaf(mesh, ca, path, days);
        Svid { bundle: self.ca.root().to_vec(), ..Svid::of(&id, &leaf, ca) }
    }

    /// Its certificate and id.
    pub(crate) fn leaf(&self, mesh: &Mesh, ca: &TestCa, path: &str, days: i64) -> (TestLeaf, String) {
        let id = format!("spiffe://{}/{path}", self.domain);
        let leaf = ca.leaf(LeafSpec { not_after: days * DAY, ..LeafSpec::of(&id) });
        mesh.write(&format!("canaries/{}-{days}.key", path.replace('/', "-")), &leaf.key_pem);
        (leaf, id)
    }

    /// The agent's and the gateway's identity, and the bundle of `peer`.
    pub(crate) fn both(&self, mesh: &Mesh, days: i64, peer: Option<&Mesh>) -> SvidResponse {
        let paths = [AGENT_ID_PATH, GATEWAY_ID_PATH];
        let federated = peer.map(|p| (format!("spiffe://{}", p.domain), der_of(&p.bundle())));
        SvidResponse {
            svids: paths.map(|path| self.svid(mesh, &self.ca, path, days)).to_vec(),
            crl: vec![],
            federated_bundles: federated.into_iter().collect(),
        }
    }
}

/// Certificates one after the other, as the Workload API has them.
fn der_of(pem: &str) -> Vec<u8> {
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    let all = CertificateDer::pem_slice_iter(pem.as_bytes());
    all.flat_map(|der| der.unwrap().to_vec()).collect()
}

/// Acme with a Workload API, which gives globex's bundle too; globex with its authority.
fn scene(more: &str) -> (Two, Spire) {
    let two = Two::new();
    let spire = Spire::beside(&two.acme);
    spire.identify(&two.acme, "", more);
    federate(&two.acme, &two.globex);
    two.globex.write("peers/acme-ca.pem", spire.ca.pem());
    (two, spire)
}

/// Has the mesh believe the peer by what its Workload API says.
pub(crate) fn federate(mesh: &Mesh, peer: &Mesh) {
    let file = format!("trust: {{bundle: peers/{}-ca.pem}}", peer.name);
    let text = texts::peer(peer, "");
    assert!(text.contains(&file), "{text}");
    let text = text.replace(&file, "trust: {workloadApi: true}");
    mesh.write(&format!("peer-{}.yaml", peer.name), &format!("{text}---\n{}", texts::import(peer)));
}

fn agent_ends(mesh: &Mesh) -> u64 {
    mesh.json(&["status"])["agent"]["identities"][0]["notAfterS"].as_u64().unwrap()
}

fn metric(mesh: &Mesh, name: &str) -> Option<String> {
    let text = get(mesh.at.health, "localhost", "/metrics").unwrap().text;
    let line = text.lines().find(|l| l.starts_with(name) && !l.starts_with('#'))?;
    line.rsplit(' ').next().map(|v| v.trim_end_matches(".0").to_owned())
}

pub(crate) fn problems(mesh: &Mesh) -> String {
    mesh.json(&["status"])["problems"].to_string()
}

#[test]
fn rotations_of_certificates_and_of_the_ca_pass_under_a_live_call_and_the_peers_stay_in_sync() {
    let (raw, listen) = (Workload::echo(), crate::addresses::Block::claim());
    let at = listen.listener();
    let (mut two, spire) = scene(&format!("  bundleEndpoint: {{listen: \"{at}\", refreshHint: 1s}}\n"));
    // Globex follows what acme publishes, which is what the Workload API says.
    let trust = format!(
        "trust: {{bundle: peers/acme-ca.pem, endpoint: {{url: \"https://{at}/\", profile: https_spiffe, \
         endpointSpiffeId: \"spiffe://acme.example/hamlet/agent\", refresh: 100ms}}}}"
    );
    let text = texts::peer(&two.acme, "").replace("trust: {bundle: peers/acme-ca.pem}", &trust);
    two.globex.write("peer-acme.yaml", &format!("{text}---\n{}", texts::import(&two.acme)));
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    let server = spire.serve(Ok(spire.both(&two.acme, 1, Some(&two.globex))));
    two.start();
    two.until_in_sync();
    two.globex.until_callable("acme/raw");
    let egress = until("the name resolves", || two.egress("raw"));
    let mut live = connect(egress).unwrap();
    echo(&mut live, "before").unwrap();
    let (first, opened) = (agent_ends(&two.acme), two.globex.peer(&two.acme)["stateAgeMs"].as_u64());
    assert!(opened.is_some());

    server.say(Ok(spire.both(&two.acme, 2, Some(&two.globex))));
    until_true("acme proves itself with the next certificate", || agent_ends(&two.acme) > first);
    echo(&mut live, "after a rotation").unwrap();
    echo(&mut connect(egress).unwrap(), "a new call").unwrap();
    two.until_in_sync();

    // The next CA is in the bundle before it issues, and the first one goes when nothing is left of it.
    let next = TestCa::new("acme.example");
    let mut message = spire.both(&two.acme, 3, Some(&two.globex));
    let roots = [spire.ca.root().to_vec(), next.root().to_vec()].concat();
    message.svids.iter_mut().for_each(|svid| svid.bundle = roots.clone());
    server.say(Ok(message.clone()));
    let authorities = |n: usize| {
        until(&format!("globex knows {n} roots of acme"), || {
            let list = two.globex.json(&["bundle", "list"]);
            let n_now = list[0]["authorities"].as_array().map(Vec::len);
            if n_now == Some(n) { Ok(list[0].clone()) } else { Err(list.to_string()) }
        })
    };
    let both = authorities(2);
    for (svid, path) in message.svids.iter_mut().zip([AGENT_ID_PATH, GATEWAY_ID_PATH]) {
        *svid = Svid { bundle: roots.clone(), ..spire.svid(&two.acme, &next, path, 4) };
    }
    let before = agent_ends(&two.acme);
    server.say(Ok(message.clone()));
    until_true("acme proves itself by the next CA", || agent_ends(&two.acme) > before);
    two.until_in_sync();
    echo(&mut connect(egress).unwrap(), "by the next CA").unwrap();
    echo(&mut live, "which began by the first").unwrap();
    message.svids.iter_mut().for_each(|svid| svid.bundle = next.root().to_vec());
    server.say(Ok(message));
    let one = authorities(1);
    assert!(one["sequence"].as_u64() > both["sequence"].as_u64(), "{both} {one}");
    until("a call by the next CA alone", || {
        let mut stream = connect(egress).map_err(|e| e.to_string())?;
        echo(&mut stream, "alone").map_err(|e| e.to_string())
    });
    two.until_in_sync();
    let shown = two.acme.cli(&["bundle", "show"]);
    assert_eq!(der_of(&shown.out), next.root().to_vec(), "{shown:?}");
}

#[test]
fn the_last_identity_serves_while_the_socket_is_gone_and_an_agent_that_starts_without_it_waits() {
    let raw = Workload::echo();
    let (mut two, spire) = scene("");
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.acme.publish("raw", &["raw"], &two.globex);
    let server = spire.serve(Ok(spire.both(&two.acme, 1, Some(&two.globex))));
    two.start();
    two.until_in_sync();
    two.globex.until_callable("acme/raw");
    let folder = two.acme.folder.to_str().unwrap().to_owned();
    assert_eq!(metric(&two.acme, "hamlet_workload_api_up").as_deref(), Some("1"));
    let check = two.acme.json(&["check", "-f", &folder]);
    for about in ["identity/workload-api", "identity/agent", "bundle/globex", "peer/globex"] {
        let findings = check["findings"].as_array().unwrap().iter();
        let outcomes: Vec<_> = findings.filter(|f| f["about"] == about).map(|f| &f["outcome"]).collect();
        assert_eq!(outcomes, ["pass"], "{about}: {check}");
    }

    drop(server);
    std::fs::remove_file(&spire.socket).unwrap();
    let told = until("acme says that the socket is gone", || {
        let problems = problems(&two.acme);
        if problems.contains("identity/agent") { Ok(problems) } else { Err(problems) }
    });
    assert!(told.contains("Workload API at unix://") && told.contains("start the SPIRE agent"), "{told}");
    assert_eq!(metric(&two.acme, "hamlet_workload_api_up").as_deref(), Some("0"));
    assert_eq!(metric(&two.acme, "hamlet_identity_good{role=\"agent\"}").as_deref(), Some("0"));
    let egress = until("the name resolves", || two.egress("raw"));
    echo(&mut connect(egress).unwrap(), "without the socket").unwrap();
    two.until_in_sync();
    let check = two.acme.cli(&["check", "-f", &folder]);
    assert_eq!(check.code, 1, "{check:?}");
    assert!(check.out.contains("start the SPIRE agent"), "{check:?}");

    // A new process has nothing to prove: it listens to nobody, says why, and goes on by itself.
    two.acme.kill();
    two.acme.start();
    let status = two.acme.json(&["status"]);
    let agent = &status["agent"]["listeners"][0];
    assert!(agent["error"].as_str().unwrap().contains("start the SPIRE agent"), "{status}");
    assert!(connect(two.acme.at.agent).is_err() && connect(two.acme.at.ingress).is_err());
    let shown = two.acme.cli(&["bundle", "show"]);
    assert!(shown.code != 0 && shown.err.contains("Workload API"), "{shown:?}");
    let peer = two.acme.peer(&two.globex)["state"].to_string();
    assert!(peer.contains("Workload API"), "{peer}");

    // Refused at first, as by a SPIRE agent that doesn't know the entry yet.
    let server = spire.serve(Err(Status::permission_denied("no identity issued")));
    until("acme says that it is not registered", || {
        let problems = problems(&two.acme);
        if problems.contains("register this process") { Ok(()) } else { Err(problems) }
    });
    server.say(Ok(spire.both(&two.acme, 1, Some(&two.globex))));
    two.until_in_sync();
    until("globex reaches acme again", || echo_by(&two, "back"));
    until_true("nothing is wrong", || {
        metric(&two.acme, "hamlet_identity_good{role=\"agent\"}").as_deref() == Some("1")
    });
}

fn echo_by(two: &Two, text: &str) -> Result<(), String> {
    let mut stream = connect(two.egress("raw")?).map_err(|e| e.to_string())?;
    echo(&mut stream, text).map_err(|e| e.to_string())
}

/// The one bundle that acme holds.
fn bundle(mesh: &Mesh) -> Value {
    mesh.json(&["bundle", "list"])[0].clone()
}

#[test]
fn a_federated_bundle_is_followed_and_its_removal_puts_the_peer_out_at_once() {
    let (mut two, spire) = scene("");
    let server = spire.serve(Ok(spire.both(&two.acme, 1, None)));
    two.start();
    let state = two.acme.until_peer(&two.globex, "refused")["state"].to_string();
    assert!(state.contains("no bundle of globex.example") && state.contains("federatesWith"), "{state}");

    let good = spire.both(&two.acme, 1, Some(&two.globex));
    server.say(Ok(good.clone()));
    two.until_in_sync();
    let held = bundle(&two.acme);
    assert_eq!((&held["source"], held["authorities"].as_array().unwrap().len()), (&"workload-api".into(), 1));
    let pem = two.globex.folder.join("identity/ca.pem");
    let refused = two.acme.cli(&["bundle", "set", "globex", pem.to_str().unwrap()]);
    assert!(refused.code == 1 && refused.err.contains("Workload API"), "{refused:?}");

    // Another root beside the right one changes nothing for the stream, the other one alone all of it.
    let other = TestCa::new("globex.example");
    let with = |roots: Vec<u8>| SvidResponse {
        federated_bundles: HashMap::from([("spiffe://globex.example".to_owned(), roots)]),
        ..good.clone()
    };
    server.say(Ok(with([der_of(&two.globex.bundle()), other.root().to_vec()].concat())));
    until_true("both roots", || bundle(&two.acme)["authorities"].as_array().is_some_and(|a| a.len() == 2));
    two.acme.until_audited("peer-roots-changed", |e| {
        e["actor"]["by"] == "workload-api" && e["subject"]["added"].as_array().is_some_and(|a| a.len() == 1)
    });
    two.until_in_sync();
    for (what, message) in
        [("another root", with(other.root().to_vec())), ("no federation", spire.both(&two.acme, 1, None))]
    {
        server.say(Ok(message));
        until(what, || match two.acme.peer(&two.globex)["state"]["kind"].as_str() {
            Some("in-sync") => Err("it is in sync".to_owned()),
            _ => Ok(()),
        });
        server.say(Ok(good.clone()));
        two.until_in_sync();
    }
}

#[test]
fn one_identity_by_hint_can_be_agent_and_gateway_and_a_token_makes_the_peer() {
    let raw = Workload::echo();
    let mut two = Two::strangers();
    let spire = Spire::beside(&two.acme);
    spire.identify(&two.acme, ", agent: {hint: both}, gateway: {hint: both}", "");
    let folder = two.acme.folder.to_str().unwrap().to_owned();
    let valid = two.acme.cli(&["check", "-f", &folder]);
    assert!(valid.out.contains("could speak for the mesh"), "{valid:?}");
    let mut message = spire.both(&two.acme, 1, None);
    let other = message.svids.remove(0);
    message.svids[0] = Svid { hint: "both".to_owned(), ..spire.svid(&two.acme, &spire.ca, "mesh/edge", 1) };
    message.svids.insert(0, other);
    let _server = spire.serve(Ok(message));
    two.acme.declare("raw", "TCP", two.port, raw.at, "none");
    two.start();
    let status = two.acme.json(&["status"]);
    for role in 0..2 {
        assert_eq!(status["agent"]["identities"][role]["id"], "spiffe://acme.example/mesh/edge", "{status}");
    }
    let invited = two.acme.cli(&["peer", "invite", "globex"]);
    assert_eq!(invited.code, 0, "{invited:?}");
    let accepted = two.globex.cli_fed(&["peer", "accept"], &invited.out);
    assert_eq!(accepted.code, 0, "{accepted:?}");
    for (mesh, peer) in [(&two.globex, "acme"), (&two.acme, "globex")] {
        assert_eq!(mesh.cli(&["peer", "confirm", peer, "--yes"]).code, 0);
    }
    two.acme.publish("raw", &["raw"], &two.globex);
    two.globex.write("import-acme.yaml", &texts::import(&two.acme));
    two.until_in_sync();
    two.globex.until_callable("acme/raw");
    until("a call", || echo_by(&two, "by one identity"));
}
