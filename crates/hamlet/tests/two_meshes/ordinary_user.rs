//! The agents need no privilege; what the kernel denies is a state with a remedy.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use crate::mesh::{Mesh, Two};
use crate::probe::{address, get};
use crate::wait::until;
use crate::workload::Workload;

/// `nobody`, on every distribution.
const NOBODY: u32 = 65534;

/// When the tests run as root: a program that nobody can read, run by nobody.
fn unprivileged(two: &mut Two) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let program = two.root().join("hamlet");
    fs::copy(env!("CARGO_BIN_EXE_hamlet"), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    give(two.root(), NOBODY);
    let words = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    for mesh in [&mut two.acme, &mut two.globex] {
        let front = std::iter::once("/usr/bin/setpriv").chain(words).map(PathBuf::from);
        mesh.program = front.chain([program.clone()]).collect();
    }
}

fn give(path: &Path, user: u32) {
    chown(path, Some(user), Some(user)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), user);
        }
    }
}

/// The lowest port that anybody may bind.
fn first_free_port() -> u16 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    text.trim().parse().unwrap()
}

fn user_of(mesh: &Mesh) -> u32 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(mesh.data().join("hamlet.redb")).unwrap().uid()
}

#[test]
fn an_ordinary_user_runs_both_agents_and_a_port_that_is_denied_is_a_state_with_a_remedy() {
    let web = Workload::http("web");
    let mut two = Two::new();
    two.acme.declare("web", "HTTP", 80, web.at, "http-header");
    two.acme.declare("high", "HTTP", two.port, web.at, "http-header");
    two.acme.publish("web", &["web", "high"], &two.globex);
    unprivileged(&mut two);
    two.start();
    two.until_answers("high");
    assert_ne!(user_of(&two.globex), 0);

    let web = until("its listener has been tried", || {
        let service = two.globex.service("acme/web").ok_or("it is not there")?;
        let tried = !service.to_string().contains("being set up");
        if tried { Ok(service) } else { Err(service.to_string()) }
    });
    let at = until("the name resolves all the same", || address(&two.globex, "web.acme.example"));
    let programming = &web["instances"][0]["programming"];
    if first_free_port() <= 80 {
        assert_eq!(programming["kind"], "programmed");
        assert_eq!(get((at, 80).into(), "web.acme.example", "/").unwrap().status, 200);
    } else {
        assert_eq!(programming["kind"], "shared", "{web}");
        let remedy = programming["remedy"].as_str().unwrap();
        for word in ["ip_unprivileged_port_start", "CAP_NET_BIND_SERVICE"] {
            assert!(remedy.contains(word), "{remedy}");
        }
        assert!(get((at, 80).into(), "web.acme.example", "/").is_err());
        let page = two.globex.cli(&["describe", "service", "acme/web"]);
        assert!(
            page.out.contains("through the shared listener only") && page.out.contains(remedy),
            "{}",
            page.out
        );
    }
    let by_host = get(two.globex.at.egress_http, "web.acme.example", "/").unwrap();
    assert!(by_host.text.contains("I am web"), "{by_host:?}");
}
