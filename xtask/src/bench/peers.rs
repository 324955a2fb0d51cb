//! The systems that a bench compares: ours, the Go peer and etcd, each as a server that is told to
//! make the same changes. A peer that isn't to be had is said so, never left out silently.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::agent::{CONSUMER, OWNER_BY_NAME};
use super::ends::{Behaviour, Changed, Joined, Ready, System};
use super::ground::Ground;
use super::machine::{Cost, started_on};
use super::process::End;
use crate::scratch::Scratch;
use crate::tree;

/// How the Go peer is called in figures: it is built like the reference, on the current gRPC.
pub(super) const GO: &str = "Go peer";
/// How etcd is called in figures.
pub(super) const ETCD: &str = "etcd watch";
/// How long an end may live: longer than any bench.
pub(super) const LIFETIME: &str = "--deadline=900";
/// How often etcd is tried until it answers.
const ETCD_TRIES: usize = 200;

/// The peers that are there.
#[derive(Debug, Default)]
pub(super) struct Peers {
    go: Option<PathBuf>,
    etcd: bool,
}

impl Peers {
    /// Builds the Go peer and looks for etcd; what is missing is a failed check of the bench.
    pub(super) fn find(ground: &mut Ground, with_etcd: bool) -> anyhow::Result<Peers> {
        let mut peers = Peers::default();
        if !ground.options.without_go {
            match build_go() {
                Ok(go) => {
                    let version = version_of(Command::new("go").arg("version"));
                    ground.peers.push(format!("Go peer (interop/go), {version}"));
                    peers.go = Some(go);
                }
                Err(why) => ground.check(false, || format!("no Go peer to compare with: {why:#}")),
            }
        }
        if with_etcd {
            let version = version_of(Command::new("etcd").arg("--version"));
            peers.etcd = !version.is_empty();
            if peers.etcd {
                ground.peers.push(version);
            } else {
                ground.check(false, || {
                    "no etcd to compare with; on Debian: apt-get install etcd-server".to_owned()
                });
            }
        }
        Ok(peers)
    }

    /// Ours first, then those that are there.
    pub(super) fn systems(&self) -> Vec<System> {
        let mut systems = vec![System::Hamlet];
        systems.extend(self.go.as_ref().map(|_| System::Go));
        systems.extend(self.etcd.then_some(System::Etcd));
        systems
    }

    /// Whether there is a Go peer.
    pub(super) fn has_go(&self) -> bool {
        self.go.is_some()
    }

    /// An end of the Go peer.
    pub(super) fn go_end(
        &self,
        role: &str,
        folder: &Path,
        cpu: Option<usize>,
        arguments: &[String],
    ) -> anyhow::Result<End> {
        let go = self.go.as_ref().context("there is no Go peer")?;
        let mut command = Command::new(go);
        command.arg(format!("bench-{role}")).arg("--folder").arg(folder).args(arguments);
        End::spawn(&format!("Go {role}"), command, cpu)
    }
}

fn version_of(command: &mut Command) -> String {
    let output = command.output().map(|o| o.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or_default().trim().to_owned()
}

fn build_go() -> anyhow::Result<PathBuf> {
    let peer = tree::workspace()?.target_directory.join("bench-go-peer");
    let mut command = Command::new("go");
    command.args(["build", "-trimpath", "-o"]).arg(&peer).arg(".");
    let output = command.current_dir(tree::root().join("interop/go")).output();
    let output = output.context("`go` doesn't start; install Go, or say --without-go")?;
    if !output.status.success() {
        bail!("go build in interop/go failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(peer)
}

/// A running server and the one who makes the changes.
pub(super) struct Serving {
    /// Whose it is.
    pub(super) system: System,
    /// Where its consumers connect.
    pub(super) address: SocketAddr,
    services: usize,
    owner: End,
    etcd: Option<Etcd>,
}

impl Serving {
    /// Starts the server on the measured processor, offering `services` services to at most
    /// `members` consumers.
    pub(super) fn start(
        ground: &Ground,
        peers: &Peers,
        system: System,
        services: usize,
        members: usize,
    ) -> anyhow::Result<Serving> {
        let (folder, cpu) = (ground.folder(), Some(ground.cpus.measured));
        let count = format!("--services={services}");
        let (mut owner, etcd) = match system {
            System::Hamlet => {
                let arguments = [count, format!("--members={members}"), LIFETIME.to_owned()];
                (End::start("owner", folder, cpu, &arguments)?, None)
            }
            System::Go => (peers.go_end("owner", folder, cpu, &[count])?, None),
            System::Etcd => {
                let etcd = Etcd::start(folder, ground.cpus.measured)?;
                let arguments = [count, format!("--address={}", etcd.address), LIFETIME.to_owned()];
                (End::start("etcd-writer", folder, Some(ground.cpus.load), &arguments)?, Some(etcd))
            }
        };
        let Ready { address, .. } = owner.line()?;
        Ok(Serving { system, address, services, owner, etcd })
    }

    /// So many consumers in a process of their own, on the other processor.
    pub(super) fn swarm(
        &self,
        ground: &Ground,
        first: usize,
        members: usize,
        behave: Behaviour,
    ) -> anyhow::Result<(End, Joined)> {
        let system = match self.system {
            System::Hamlet => "hamlet",
            System::Go => "go",
            System::Etcd => "etcd",
        };
        // Who misbehaves is behind those who are measured on their processor.
        let start = if behave == Behaviour::Good { End::start } else { End::start_behind };
        let behave = match behave {
            Behaviour::Good => "good",
            Behaviour::Stalled => "stalled",
            Behaviour::Hostile => "hostile",
        };
        let arguments = [
            format!("--services={}", self.services),
            format!("--address={}", self.address),
            format!("--first={first}"),
            format!("--members={members}"),
            format!("--system={system}"),
            format!("--behave={behave}"),
            LIFETIME.to_owned(),
        ];
        let mut swarm = start("swarm", ground.folder(), Some(ground.cpus.load), &arguments)?;
        let joined = swarm.line()?;
        Ok((swarm, joined))
    }

    /// Changes `count` services from `first` on.
    pub(super) fn set(&mut self, first: usize, count: usize, version: u64) -> anyhow::Result<Changed> {
        self.owner.ask(&format!("set {first} {count} {version}"))
    }

    /// Begins to change one service after the other; [`changed`](Self::changed) has the result.
    pub(super) fn rate(&mut self, a_second: u64, millis: u64, version: u64) -> anyhow::Result<()> {
        self.owner.tell(&format!("rate {a_second} {millis} {version}"))
    }

    /// What [`rate`](Self::rate) has changed.
    pub(super) fn changed(&mut self) -> anyhow::Result<Changed> {
        self.owner.line()
    }

    /// What the server has cost so far.
    pub(super) fn cost(&self) -> Cost {
        Cost::of(self.etcd.as_ref().map_or(self.owner.pid(), |etcd| etcd.child.id()))
    }

    /// The same with the heap, as the server itself says; Go collects its garbage first. etcd
    /// doesn't say.
    pub(super) fn own_cost(&mut self) -> anyhow::Result<Cost> {
        let heap = match self.system {
            System::Etcd => 0,
            System::Hamlet | System::Go => self.owner.ask::<Cost>("cost")?.heap,
        };
        Ok(Cost { heap, ..self.cost() })
    }

    /// Ends it.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.owner.stop()
    }
}

/// Debian's etcd, one member, TLS with client certificates, its data in memory.
struct Etcd {
    address: SocketAddr,
    child: Child,
    // Removed with it.
    _data: Scratch,
}

impl Etcd {
    fn start(folder: &Path, cpu: usize) -> anyhow::Result<Etcd> {
        let memory = Path::new("/dev/shm");
        let above = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let data = Scratch::new(&above, "bench-etcd-")?;
        let (clients, members) = (free_address()?, free_address()?);
        let file = |name: String| folder.join(name).display().to_string();
        let mut command = Command::new("etcd");
        command
            .args(["--name=bench", "--logger=zap", "--log-level=error", "--log-outputs=stderr"])
            .arg(format!("--data-dir={}", data.path().join("data").display()))
            .arg(format!("--listen-client-urls=https://{clients}"))
            .arg(format!("--advertise-client-urls=https://{clients}"))
            .arg(format!("--listen-peer-urls=http://{members}"))
            .arg(format!("--initial-advertise-peer-urls=http://{members}"))
            .arg(format!("--initial-cluster=bench=http://{members}"))
            .arg(format!("--cert-file={}", file(format!("{OWNER_BY_NAME}.pem"))))
            .arg(format!("--key-file={}", file(format!("{OWNER_BY_NAME}.key"))))
            .args(["--client-cert-auth", "--snapshot-count=10000000"])
            .arg(format!("--trusted-ca-file={}", file(format!("{CONSUMER}-ca.pem"))))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = started_on(Some(cpu), || command.spawn())?.context("etcd doesn't start")?;
        let mut etcd = Etcd { address: clients, child, _data: data };
        etcd.wait()?;
        Ok(etcd)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        for _ in 0..ETCD_TRIES {
            if let Some(status) = self.child.try_wait()? {
                bail!("etcd ended at once: {status}");
            }
            if std::net::TcpStream::connect(self.address).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("etcd doesn't listen on {}", self.address)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of loopback that was free a moment ago: etcd can't be asked which one it took.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
