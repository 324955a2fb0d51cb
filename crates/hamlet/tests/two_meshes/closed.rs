//! Fail closed: a key, certificate or bundle that can't be used closes what needs it, says why and
//! what to do, and leaves the rest at work. Mended, it opens without a restart.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hamlet::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};
use hamlet_core::TrustDomain;
use hamlet_identity::LocalCa;
use hamlet_identity::ca::{CA_LIFETIME, LEAF_LIFETIME};
use hamlet_runtime::{Clock as _, ManualClock, SystemClock};
use serde_json::Value;

use crate::mesh::{Mesh, Two};
use crate::texts;
use crate::wait::until;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Certificate files of a mesh, made by a CA of its own; `folder` is theirs.
fn make(folder: &Path, domain: &str, at: Duration, life: Duration) {
    let domain = TrustDomain::parse(domain).unwrap();
    let ca = LocalCa::create(folder, &domain, CA_LIFETIME, ManualClock::at(at)).unwrap();
    let agent = ca.issue_agent(&domain.id(AGENT_ID_PATH).unwrap(), &[], life).unwrap();
    agent.write(folder, "agent").unwrap();
    let gateway = ca.issue_gateway(&domain.id(GATEWAY_ID_PATH).unwrap(), &[], life).unwrap();
    gateway.write(folder, "gateway").unwrap();
}

/// Globex with certificate files in `own/`, and others beside it to be put in their place.
struct Site {
    two: Two,
    spare: PathBuf,
}

impl Site {
    fn new() -> Site {
        let two = Two::new();
        let (globex, now) = (&two.globex, SystemClock::new().wall());
        let files = "    agent: {cert: own/agent.pem, key: own/agent.key}\n    gateway: {cert: own/gateway.pem, key: own/gateway.key}\n    ca: {cert: own/ca.pem, key: own/ca.key}\n";
        let text = texts::mesh(globex, "").replace("    authority: {folder: identity}\n", files);
        assert!(text.contains("own/agent.pem"));
        globex.write("mesh.yaml", &text);
        make(&globex.folder.join("own"), "globex.example", now, LEAF_LIFETIME);
        let spare = two.root().join("spare");
        make(&spare.join("another"), "globex.example", now, LEAF_LIFETIME);
        make(&spare.join("expired"), "globex.example", now - DAY, DAY / 24);
        make(&spare.join("foreign"), "initech.example", now, LEAF_LIFETIME);
        let bundle = fs::read_to_string(globex.folder.join("own/ca.pem")).unwrap();
        two.acme.write("peers/globex-ca.pem", &bundle);
        Site { two, spare }
    }

    fn own(&self, name: &str) -> PathBuf {
        self.two.globex.folder.join("own").join(name)
    }

    /// Puts another folder's file in the place of ours; private, as a key has to be.
    fn put(&self, from: &str, name: &str) {
        let text = fs::read(self.spare.join(from).join(name)).unwrap();
        fs::write(self.own(name), text).unwrap();
    }
}

/// What the status says of each listener: its name, and why it is closed if it is.
fn listeners(mesh: &Mesh) -> Vec<(String, Option<String>)> {
    let status = mesh.json(&["status"]);
    let list = status["agent"]["listeners"].as_array().unwrap().clone();
    let text = |v: &Value| v.as_str().map(ToOwned::to_owned);
    list.iter().map(|l| (text(&l["name"]).unwrap(), text(&l["error"]))).collect()
}

fn answers(at: SocketAddr) -> bool {
    TcpStream::connect_timeout(&at, Duration::from_secs(2)).is_ok()
}

/// Exactly this listener is closed (or none), on the wire and in the status; returns why.
#[track_caller]
fn assert_closed(mesh: &Mesh, case: &str, closed: Option<&str>) -> String {
    let all = [
        ("agent", mesh.at.agent),
        ("ingress", mesh.at.ingress),
        ("egress-http", mesh.at.egress_http),
        ("health", mesh.at.health),
    ];
    for (name, at) in all {
        assert_eq!(answers(at), closed != Some(name), "{case}: {name}");
    }
    let errors: Vec<_> = listeners(mesh).into_iter().filter_map(|(name, why)| Some((name, why?))).collect();
    match (closed, errors.as_slice()) {
        (None, []) => String::new(),
        (Some(closed), [(name, why)]) if name == closed => why.clone(),
        (_, other) => panic!("{case}: {other:?}"),
    }
}

/// A state of one role's files, how it comes to be, and what is said of it.
type State = (&'static str, fn(&Site, &str), &'static [&'static str]);

const STATES: [State; 7] = [
    ("no key", |s, role| fs::remove_file(s.own(&format!("{role}.key"))).unwrap(), &["can't read", ".key"]),
    (
        "no certificate",
        |s, role| fs::remove_file(s.own(&format!("{role}.pem"))).unwrap(),
        &["can't read", ".pem", "check the path"],
    ),
    (
        "a key that others can read",
        |s, role| {
            let open = fs::Permissions::from_mode(0o644);
            fs::set_permissions(s.own(&format!("{role}.key")), open).unwrap();
        },
        &["can be read by others", "chmod 600"],
    ),
    (
        "another's key",
        |s, role| s.put("another", &format!("{role}.key")),
        &["is not the key of the certificate", "replace both files together"],
    ),
    (
        "no PEM",
        |s, role| fs::write(s.own(&format!("{role}.pem")), "nothing\n").unwrap(),
        &["has no certificate", "put the leaf in it"],
    ),
    (
        "an expired certificate",
        |s, role| {
            s.put("expired", &format!("{role}.pem"));
            s.put("expired", &format!("{role}.key"));
        },
        &["expired at", "renew it"],
    ),
    (
        "a certificate of another domain",
        |s, role| {
            s.put("foreign", &format!("{role}.pem"));
            s.put("foreign", &format!("{role}.key"));
        },
        &["outside our trust domain", "issue a certificate of globex.example"],
    ),
];

#[test]
fn an_identity_that_cant_be_used_closes_its_own_listener_until_it_is_mended_and_nothing_else() {
    let mut site = Site::new();
    site.two.acme.start();
    for (role, listener) in [("agent", "agent"), ("gateway", "ingress")] {
        let files = ["pem", "key"].map(|end| site.own(&format!("{role}.{end}")));
        let good = files.clone().map(|file| fs::read(file).unwrap());
        for (state, damage, said) in STATES {
            let case = format!("{role}: {state}");
            damage(&site, role);
            site.two.globex.start();
            let why = assert_closed(&site.two.globex, &case, Some(listener));
            for words in said {
                assert!(why.contains(words), "{case}: {why}");
            }
            let status = site.two.globex.cli(&["status"]);
            assert_eq!(status.code, 3, "{case}: {status:?}");
            assert!(status.out.contains(said[0]), "{case}: {}", status.out);
            if role == "agent" {
                let peer = until("it is told why nobody is dialled", || {
                    let peer = site.two.globex.peer(&site.two.acme).to_string();
                    if peer.contains("our own certificate") { Ok(peer) } else { Err(peer) }
                });
                assert!(peer.contains("nobody is dialled"), "{case}: {peer}");
            } else {
                site.two.until_in_sync();
            }
            for (file, text) in files.iter().zip(&good) {
                fs::write(file, text).unwrap();
            }
            fs::set_permissions(&files[1], fs::Permissions::from_mode(0o600)).unwrap();
            until(&format!("{case}: the listener opens"), || {
                let closed = listeners(&site.two.globex).into_iter().find(|(_, why)| why.is_some());
                closed.map_or(Ok(()), |closed| Err(format!("{closed:?}")))
            });
            assert_closed(&site.two.globex, &case, None);
            site.two.until_in_sync();
            site.two.globex.stop();
        }
    }
}

#[test]
fn a_bundle_that_cant_be_used_closes_that_peer_and_nothing_else() {
    let mut site = Site::new();
    site.two.acme.start();
    let bundle = site.two.globex.folder.join("peers/acme-ca.pem");
    let good = fs::read(&bundle).unwrap();
    let foreign = fs::read(site.spare.join("foreign/ca.pem")).unwrap();
    let cases: [(&str, Option<&[u8]>, &str); 4] = [
        ("no bundle", None, "put the peer's CA certificates there"),
        ("an empty bundle", Some(b""), "the bundle has no CA certificate"),
        ("no PEM", Some(b"-----BEGIN CERTIFICATE-----\nMII"), "export it again"),
        ("the bundle of another", Some(&foreign), "check whose bundle it is"),
    ];
    for (case, text, said) in cases {
        match text {
            Some(text) => fs::write(&bundle, text).unwrap(),
            None => fs::remove_file(&bundle).unwrap(),
        }
        site.two.globex.start();
        assert_closed(&site.two.globex, case, None);
        let peer = site.two.globex.peer(&site.two.acme).to_string();
        assert!(peer.contains(said), "{case}: {peer}");
        fs::write(&bundle, &good).unwrap();
        site.two.until_in_sync();
        site.two.globex.stop();
    }
}

#[test]
fn a_ca_that_cant_be_used_mints_nothing_and_the_gateways_own_certificate_serves() {
    let mut site = Site::new();
    site.put("another", "ca.key");
    site.two.start();
    assert_closed(&site.two.globex, "another's CA key", None);
    let status = site.two.globex.cli(&["status"]);
    assert_eq!(status.code, 3);
    assert!(status.out.contains("identity/ca") && status.out.contains("ca.key"), "{}", status.out);
    site.two.until_in_sync();
}

#[test]
fn an_authority_that_cant_be_used_keeps_what_it_made_in_use_and_closes_only_what_has_nothing() {
    let mut two = Two::new();
    let folder = two.globex.folder.join("identity");
    let state = folder.join("authority/authority.json");
    let good = fs::read(&state).unwrap();
    fs::write(&state, "{").unwrap();
    two.start();
    assert_closed(&two.globex, "a broken authority", None);
    two.until_in_sync();
    let status = two.globex.cli(&["status"]);
    assert_eq!(status.code, 3);
    assert!(
        status.out.contains("authority.json") && status.out.contains("put back a copy"),
        "{}",
        status.out
    );
    two.globex.stop();

    fs::remove_file(folder.join("agent.key")).unwrap();
    two.globex.start();
    let why = assert_closed(&two.globex, "and no leaf", Some("agent"));
    assert!(why.contains("agent.key"), "{why}");
    fs::write(&state, good).unwrap();
    until("the authority has made a leaf and the listener opens", || {
        let closed = listeners(&two.globex).into_iter().find(|(_, why)| why.is_some());
        closed.map_or(Ok(()), |closed| Err(format!("{closed:?}")))
    });
    two.until_in_sync();
}

#[test]
fn a_root_that_is_rotated_while_both_run_breaks_nothing() {
    let mut two = Two::new();
    two.acme.declare("ledger", "TCP", two.port, two.acme.at.health, "none");
    two.acme.publish("all", &["ledger"], &two.globex);
    two.start();
    two.until_in_sync();
    let leaf = || fs::read(two.acme.folder.join("identity/agent.pem")).unwrap();
    let before = leaf();
    let ca = |args: &[&str]| two.acme.ca(args);
    assert!(ca(&["rotate"]).contains("begins to issue in"));
    assert!(ca(&["status"]).contains("waits"));
    assert!(ca(&["rotate", "--now"]).contains("issue from the new root"));
    assert_ne!(before, leaf());
    // Globex holds the old bundle only, and believes the new root through the old one.
    until("the agent has taken it over", || {
        let status = two.acme.json(&["status"])["agent"]["authority"].clone();
        if status["roots"] == 2 && status["sequence"] == 2 { Ok(()) } else { Err(status.to_string()) }
    });
    two.globex.stop();
    two.globex.start();
    two.until_in_sync();
    assert!(two.globex.service("acme/ledger").is_some());
    two.globex.meet(&two.acme);
    two.globex.stop();
    two.globex.start();
    two.until_in_sync();
}
