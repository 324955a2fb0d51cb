//! The demo as a user runs it: the whole check beside another demo, and ends that nobody announces.
//! What its steps assert is in `src/demo/steps`.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hamlet_testkit::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far more than an end takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn hamlet(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hamlet"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// A running demo. A test that fails takes it down; the warden does the rest.
struct Demo(Child);

impl Demo {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A demo left running in `dir`, once it shows what to try.
fn shown(dir: &Path) -> Demo {
    let mut demo = Demo(hamlet(&["demo", "--dir", dir.to_str().unwrap()]).spawn().unwrap());
    let lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    let text: Vec<String> =
        lines.map_while(Result::ok).take_while(|l| !l.starts_with("Logs are in")).collect();
    assert!(text.iter().any(|l| l.contains("curl")), "{}", text.join("\n"));
    demo
}

/// The agents' ports of the demo in `dir`.
fn agents(dir: &Path) -> Vec<SocketAddr> {
    let of = |mesh: &str| {
        let text = std::fs::read_to_string(dir.join(mesh).join("mesh.yaml")).unwrap();
        let line = text.lines().find_map(|l| l.trim().strip_prefix("agent: 127")).unwrap();
        format!("127{line}").parse().unwrap()
    };
    vec![of("acme"), of("globex")]
}

async fn nobody_listens(addresses: &[SocketAddr]) {
    let nobody = || addresses.iter().all(|a| TcpStream::connect(a).is_err());
    eventually("the agents' ports to be closed", PATIENCE, nobody).await;
}

#[tokio::test]
async fn the_whole_check_passes_beside_another_demo_which_ends_in_order() {
    let other = tempfile::tempdir().unwrap();
    let mut demo = shown(other.path());
    let agents = agents(other.path());
    assert!(agents.iter().all(|a| TcpStream::connect(a).is_ok()));
    let check = hamlet(&["demo", "--check"]).output().unwrap();
    let text = String::from_utf8_lossy(&check.stdout);
    let (passed, failed) = text.lines().last().unwrap().split_once(" passed, ").unwrap();
    assert!(check.status.success() && failed == "0 failed", "{text}");
    assert!(passed.parse::<usize>().unwrap() >= 16, "{text}");
    demo.signal(Signal::SIGTERM);
    assert!(demo.0.wait().unwrap().success());
    nobody_listens(&agents).await;
}

#[tokio::test]
async fn a_demo_that_is_killed_without_a_word_leaves_no_agent() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = shown(dir.path());
    let agents = agents(dir.path());
    assert!(agents.iter().all(|a| TcpStream::connect(a).is_ok()));
    demo.signal(Signal::SIGKILL);
    demo.0.wait().unwrap();
    nobody_listens(&agents).await;
}

#[test]
fn a_folder_with_something_in_it_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "precious").unwrap();
    let refused = hamlet(&["demo", "--check", "--dir", dir.path().to_str().unwrap()])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--dir"));
    assert_eq!(std::fs::read(dir.path().join("mine")).unwrap(), b"precious");
}
