//! Bundles that are published and followed: a changed root, a revoked one, an operator's override, a
//! restart without the endpoint, and endpoints that prove themselves wrongly.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use hamlet::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};
use hamlet_testkit::pki::{LeafSpec, TestCa};
use serde_json::{Value, json};

use crate::mesh::{Mesh, Two};
use crate::texts;
use crate::wait::until;

/// Has the mesh take its certificates from files, of a CA outside of it, and publish what is in
/// `identity/roots.pem`; returns where.
fn publish_bundle(mesh: &Mesh, more: &str) -> SocketAddr {
    let at = mesh.block.listener();
    let (ca, identity) = (TestCa::new(mesh.domain), mesh.folder.join("identity"));
    for (stem, path) in [("agent", AGENT_ID_PATH), ("gateway", GATEWAY_ID_PATH)] {
        ca.leaf(LeafSpec::of(format!("spiffe://{}/{path}", mesh.domain))).write(&identity, stem);
    }
    mesh.write("identity/ca.pem", ca.pem());
    mesh.write("identity/roots.pem", ca.pem());
    let endpoint = format!("  bundleEndpoint: {{listen: \"{at}\", refreshHint: 1s{more}}}\n");
    let text = texts::mesh(mesh, &endpoint);
    let authority = "    authority: {folder: identity}\n";
    assert!(text.contains(authority), "{text}");
    let files = "    agent: {cert: identity/agent.pem, key: identity/agent.key}
    gateway: {cert: identity/gateway.pem, key: identity/gateway.key}
    bundle: identity/roots.pem\n";
    mesh.write("mesh.yaml", &text.replace(authority, files));
    at
}

/// Has the mesh follow the peer's bundle at that endpoint.
fn follow(mesh: &Mesh, peer: &Mesh, trust: &str) {
    let text = texts::peer(peer, "");
    let file = format!("trust: {{bundle: peers/{}-ca.pem}}", peer.name);
    assert!(text.contains(&file), "{text}");
    let text = text.replace(&file, &format!("trust: {{{trust}}}"));
    mesh.write(&format!("peers/{}-ca.pem", peer.name), &peer.bundle());
    mesh.write(&format!("peer-{}.yaml", peer.name), &format!("{text}---\n{}", texts::import(peer)));
}

/// `https_spiffe` with the agent's own id, looked at often.
fn by_id(at: SocketAddr, id: &str) -> String {
    format!(
        "bundle: peers/acme-ca.pem, endpoint: {{url: \"https://{at}/\", profile: https_spiffe, \
         endpointSpiffeId: \"{id}\", refresh: 100ms}}"
    )
}

const AGENT: &str = "spiffe://acme.example/hamlet/agent";

/// Waits for a state of the one peer's bundle.
#[track_caller]
fn until_bundle(mesh: &Mesh, expected: &str, fits: impl Fn(&Value) -> bool) -> Value {
    until(expected, || {
        let list = mesh.json(&["bundle", "list"]);
        if fits(&list[0]) { Ok(list[0].clone()) } else { Err(list.to_string()) }
    })
}

fn authorities(bundle: &Value) -> usize {
    bundle["authorities"].as_array().unwrap().len()
}

#[test]
fn a_followed_bundle_brings_roots_takes_them_and_outlives_a_restart_and_an_operator_has_the_last_word() {
    let mut two = Two::new();
    let at = publish_bundle(&two.acme, "");
    follow(&two.globex, &two.acme, &by_id(at, AGENT));
    two.start();
    let first = until_bundle(&two.globex, "the endpoint has answered", |b| b["ageMs"].is_u64());
    assert_eq!((authorities(&first), &first["problem"]), (1, &Value::Null), "{first}");
    two.until_in_sync();

    // A second root: both are in force, and nothing breaks.
    let (own, other) = (two.acme.bundle(), TestCa::new("acme.example"));
    two.acme.write("identity/roots.pem", &format!("{own}{}", other.pem()));
    let both = until_bundle(&two.globex, "two roots", |b| authorities(b) == 2);
    assert!(both["sequence"].as_u64() > first["sequence"].as_u64(), "{first} {both}");
    assert_eq!(both["source"], "endpoint");
    let endpoint = json!({"by": "peer", "name": "acme", "channel": "endpoint"});
    let count = |e: &Value, what: &str| e["subject"][what].as_array().map_or(0, Vec::len);
    two.globex.until_audited("peer-roots-changed", |e| e["actor"] == endpoint && count(e, "added") == 1);
    two.until_in_sync();
    let shown = two.acme.cli(&["bundle", "show", "--format", "jwks"]);
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(shown["spiffe_sequence"], both["sequence"]);
    assert_eq!(
        (shown["keys"].as_array().unwrap().len(), &shown["spiffe_refresh_hint"]),
        (2, &Value::from(1))
    );
    let metrics = two.globex.peer(&two.acme);
    assert_eq!(metrics["bundle"]["sequence"], both["sequence"]);

    // The first root goes: it is out at once, and so is whatever it proves, the endpoint included.
    two.acme.write("identity/roots.pem", other.pem());
    let one = until_bundle(&two.globex, "one root", |b| authorities(b) == 1);
    assert_ne!(one["authorities"], first["authorities"]);
    two.globex.until_audited("peer-roots-changed", |e| e["actor"] == endpoint && count(e, "removed") == 1);
    until("globex has cut acme", || match two.globex.peer(&two.acme)["state"]["kind"].as_str() {
        Some("in-sync") => Err("it is in sync".to_owned()),
        _ => Ok(()),
    });
    let failing = until_bundle(&two.globex, "the endpoint is refused", |b| b["failures"].as_u64() > Some(0));
    assert!(failing["problem"].as_str().unwrap().contains("was not signed by a CA"), "{failing}");

    // An operator takes it back by hand; that stays while the endpoint says nothing newer.
    let set =
        two.globex.cli(&["bundle", "set", "acme", &format!("{}/identity/ca.pem", two.acme.folder.display())]);
    assert_eq!((set.code, set.out.lines().count()), (0, 2), "{set:?}");
    two.until_in_sync();
    let set = until_bundle(&two.globex, "the endpoint is believed again", |b| b["failures"] == 0);
    assert_eq!((&set["source"], &set["authorities"]), (&Value::from("operator"), &first["authorities"]));
    let done = two.globex.until_audited("peer-bundle-set", |e| e["outcome"] == "done");
    assert_eq!((&done["actor"]["by"], count(&done, "added")), (&json!("operator"), 1), "{done}");

    // Without the endpoint a restart has what was in force.
    two.acme.kill();
    two.globex.kill();
    two.globex.start();
    let kept = until_bundle(&two.globex, "the endpoint is gone", |b| b["failures"].as_u64() > Some(0));
    assert_eq!((&kept["source"], &kept["authorities"]), (&Value::from("operator"), &first["authorities"]));
    assert_eq!(kept["sequence"], one["sequence"]);
    two.acme.start();
    two.until_in_sync();

    let refused = two.acme.cli(&[
        "bundle",
        "set",
        "globex",
        &format!("{}/identity/ca.pem", two.globex.folder.display()),
    ]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("comes from its file"), "{refused:?}");
    two.acme.until_audited("peer-bundle-set", |e| e["outcome"] == "refused" && e["peer"] == "globex");
    assert_eq!(two.globex.cli(&["bundle", "set", "nobody", "/dev/null"]).code, 5);
}

#[test]
fn an_authority_publishes_its_roots_and_the_next_one_as_soon_as_it_is_there() {
    let mut two = Two::new();
    let at = two.acme.block.listener();
    let endpoint = format!("  bundleEndpoint: {{listen: \"{at}\", refreshHint: 1s}}\n");
    two.acme.write("mesh.yaml", &texts::mesh(&two.acme, &endpoint));
    follow(&two.globex, &two.acme, &by_id(at, AGENT));
    two.start();
    let first = until_bundle(&two.globex, "the endpoint has answered", |b| b["ageMs"].is_u64());
    assert_eq!(authorities(&first), 1, "{first}");
    two.until_in_sync();
    two.acme.ca(&["rotate"]);
    let both = until_bundle(&two.globex, "the next root has come", |b| authorities(b) == 2);
    assert!(both["sequence"].as_u64() > first["sequence"].as_u64(), "{first} {both}");
    two.until_in_sync();
}

#[test]
fn a_web_endpoint_gives_the_first_bundle_and_one_that_proves_another_name_or_id_gives_none() {
    let mut two = Two::new();
    let web = TestCa::new("web.example");
    let leaf = web.leaf(LeafSpec { uris: vec![], dns: vec!["localhost".into()], ..LeafSpec::of("x") });
    two.acme.write("identity/web.pem", &leaf.cert_pem);
    two.acme.write("identity/web.key", &leaf.key_pem);
    let key = two.acme.folder.join("identity/web.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let pair = ", profile: https_web, cert: identity/web.pem, key: identity/web.key";
    let port = publish_bundle(&two.acme, pair).port();
    // Bound to an address of the test's block: the name has to lead there.
    let mesh = fs::read_to_string(two.acme.folder.join("mesh.yaml")).unwrap();
    let listen = mesh.lines().find(|l| l.contains("bundleEndpoint")).unwrap();
    let anywhere = listen.split('"').nth(1).unwrap();
    two.acme.write("mesh.yaml", &mesh.replace(anywhere, &format!("127.0.0.1:{port}")));
    two.globex.write("peers/web-ca.pem", web.pem());
    two.globex.write("peers/wrong-ca.pem", TestCa::new("web.example").pem());
    let by_name = |host: &str, ca: &str| {
        format!(
            "endpoint: {{url: \"https://{host}:{port}/\", profile: https_web, caFile: peers/{ca}.pem, refresh: 100ms}}"
        )
    };
    follow(&two.globex, &two.acme, &by_name("localhost", "wrong-ca"));
    two.start();
    let wrong =
        until_bundle(&two.globex, "another authority is refused", |b| b["failures"].as_u64() > Some(0));
    assert_eq!(authorities(&wrong), 0, "{wrong}");
    let state = two.globex.peer(&two.acme)["state"].clone();
    assert_eq!(state["kind"], "refused", "{state}");
    assert!(state["reason"].as_str().unwrap().contains("no bundle has come"), "{state}");

    follow(&two.globex, &two.acme, &by_name("localhost", "web-ca"));
    let good = until_bundle(&two.globex, "the bundle has come", |b| authorities(b) == 1);
    assert_eq!((&good["source"], &good["profile"]), (&Value::from("endpoint"), &Value::from("https_web")));
    two.until_in_sync();

    // What it has stays in force while the endpoint proves something else.
    for (what, trust) in [
        ("another host", by_name("127.0.0.1", "web-ca")),
        ("a name for an id", by_id(SocketAddr::from(([127, 0, 0, 1], port)), AGENT)),
    ] {
        follow(&two.globex, &two.acme, &trust);
        let refused = until_bundle(&two.globex, what, |b| b["failures"].as_u64() > Some(0));
        assert_eq!(refused["authorities"], good["authorities"], "{what}");
    }
    two.until_in_sync();
}

#[test]
fn a_peer_made_by_token_is_proven_by_what_its_mesh_publishes_and_not_by_the_derived_file() {
    let mut two = Two::strangers();
    publish_bundle(&two.acme, "");
    let next = TestCa::new("acme.example");
    two.acme.write("identity/roots.pem", &format!("{}{}", next.pem(), two.acme.bundle()));
    two.start();
    let invited = two.acme.cli(&["peer", "invite", "globex"]);
    assert_eq!(invited.code, 0, "{invited:?}");
    let accepted = two.globex.cli_fed(&["peer", "accept"], &invited.out);
    assert_eq!(accepted.code, 0, "{accepted:?}");

    // Its words are not confirmed yet, so nothing proves it.
    let waiting = until_bundle(&two.globex, "the peer is there", |b| b["peer"] == "acme");
    assert_eq!((&waiting["source"], authorities(&waiting)), (&Value::Null, 0), "{waiting}");
    for (mesh, peer) in [(&two.globex, "acme"), (&two.acme, "globex")] {
        assert_eq!(mesh.cli(&["peer", "confirm", peer, "--yes"]).code, 0);
    }
    two.until_in_sync();
    let made = until_bundle(&two.globex, "both roots", |b| authorities(b) == 2);
    let shown = two.acme.cli(&["bundle", "show", "--format", "jwks"]);
    let shown: Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!((&made["source"], &made["file"]), (&Value::from("token"), &Value::Null));
    assert!(shown["spiffe_sequence"].is_u64() && made["sequence"] == shown["spiffe_sequence"], "{made}");

    // What stands in the data folder only repeats it, also after a restart.
    let pem = two.root().join("globex-data/peers/acme.pem");
    fs::write(&pem, TestCa::new("acme.example").pem()).unwrap();
    assert_eq!(two.globex.cli(&["reload"]).code, 0);
    assert_eq!(two.globex.json(&["bundle", "list"])[0]["authorities"], made["authorities"]);
    two.globex.stop();
    let list = two.globex.cli(&["bundle", "list", "-f", two.globex.folder.to_str().unwrap()]);
    assert!(list.out.starts_with("acme  acme.example  from token\n"), "{list:?}");
    two.globex.start();
    two.until_in_sync();
    assert_eq!(two.globex.json(&["bundle", "list"])[0]["authorities"], made["authorities"]);
}

#[test]
fn without_an_agent_bundles_are_shown_from_the_files() {
    let two = Two::new();
    let folder = two.globex.folder.to_str().unwrap();
    let shown = two.globex.cli(&["bundle", "show", "-f", folder]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.err.contains("from the files") && shown.out.contains("BEGIN CERTIFICATE"), "{shown:?}");
    let bare = |pem: &str| pem.lines().filter(|l| !l.starts_with('#')).collect::<String>();
    assert_eq!(bare(&shown.out), bare(&two.globex.bundle()));
    let map = two.globex.cli(&["bundle", "show", "--format", "map", "-f", folder]);
    assert!(serde_json::from_str::<Value>(&map.out).unwrap()["trust_domains"]["globex.example"].is_object());
    let list = two.globex.cli(&["bundle", "list", "-f", folder]);
    assert_eq!(list.code, 0, "{list:?}");
    assert!(list.out.starts_with("acme  acme.example  from file\n"), "{list:?}");
    assert_eq!(two.globex.cli(&["bundle", "show", "-f", "/nowhere"]).code, 1);
}
