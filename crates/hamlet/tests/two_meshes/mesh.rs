//! A mesh: its folder, its addresses, and its agent as a process that dies with the test.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use hamlet::config::init::{InitOptions, init};
use hamlet_core::{Fqdn, MeshName, TrustDomain};
use hamlet_runtime::SystemClock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::addresses::Block;
use crate::canaries::Canaries;
use crate::texts::{self, ServiceText};
use crate::wait::{timed, until};

/// The agent's longest drain.
pub(crate) const DRAIN: Duration = Duration::from_secs(20);
/// Lines of each log that a failed test shows.
const LOG_LINES: usize = 40;

/// Where a mesh listens.
pub(crate) struct Listeners {
    pub(crate) agent: SocketAddr,
    pub(crate) ingress: SocketAddr,
    pub(crate) egress_http: SocketAddr,
    pub(crate) dns: SocketAddr,
    pub(crate) health: SocketAddr,
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// One mesh.
pub(crate) struct Mesh {
    pub(crate) name: &'static str,
    pub(crate) domain: &'static str,
    pub(crate) folder: PathBuf,
    pub(crate) at: Listeners,
    pub(crate) block: Block,
    /// What is run as `hamlet`: the program, and the words in front of it.
    pub(crate) program: Vec<PathBuf>,
    /// DNS names in its certificates.
    pub(crate) hosts: Vec<Fqdn>,
    /// How much the agent logs.
    pub(crate) log_level: &'static str,
    root: PathBuf,
    agent: Option<Child>,
    /// The secrets that were in the folder when an agent started: later ones may replace them.
    canaries: RefCell<Canaries>,
}

impl Mesh {
    fn new(root: &Path, name: &'static str, domain: &'static str) -> Mesh {
        Mesh::with_hosts(root, name, domain, vec![])
    }

    /// A mesh whose certificates have these DNS names too, for peers that check one.
    pub(crate) fn with_hosts(
        root: &Path,
        name: &'static str,
        domain: &'static str,
        hosts: Vec<Fqdn>,
    ) -> Mesh {
        let block = Block::claim();
        let at = Listeners {
            agent: block.listener(),
            ingress: block.listener(),
            egress_http: block.listener(),
            dns: block.listener(),
            health: block.listener(),
        };
        let folder = root.join(name);
        let options = InitOptions {
            mesh: MeshName::parse(name).unwrap(),
            trust_domain: TrustDomain::parse(domain).unwrap(),
            hosts: hosts.clone(),
            advertise: vec![],
            clock: SystemClock::shared(),
        };
        init(&folder, &options).unwrap();
        let program = vec![PathBuf::from(env!("CARGO_BIN_EXE_hamlet"))];
        let mesh = Mesh {
            name,
            domain,
            folder,
            at,
            block,
            program,
            hosts,
            log_level: "debug",
            root: root.to_owned(),
            agent: None,
            canaries: RefCell::default(),
        };
        mesh.remove("service-example.yaml");
        mesh.write("mesh.yaml", &texts::mesh(&mesh, ""));
        mesh
    }

    /// The name of a service of this mesh.
    pub(crate) fn fqdn(&self, service: &str) -> String {
        format!("{service}.{}", self.domain)
    }

    /// The store's folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.root.join(format!("{}-data", self.name))
    }

    /// The admin socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join(format!("{}.sock", self.name))
    }

    /// Writes a file of the folder whole: the agent watches, and must not see half of it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let (path, beside) = (self.folder.join(name), self.folder.join(".new"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&beside, text).unwrap();
        fs::rename(beside, path).unwrap();
    }

    /// Removes a file of the folder.
    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.folder.join(name)).unwrap();
    }

    /// Declares a service with one backend, which is told its caller as `caller` says.
    pub(crate) fn declare(&self, name: &str, protocol: &str, port: u16, backend: SocketAddr, caller: &str) {
        let fqdn = self.fqdn(name);
        let service = ServiceText { name, fqdn: &fqdn, protocol, port, backends: &[backend], caller };
        self.write(&format!("service-{name}.yaml"), &service.text());
    }

    /// Makes services visible to a peer, as the file `publication-NAME.yaml`.
    pub(crate) fn publish(&self, name: &str, services: &[&str], peer: &Mesh) {
        self.write(&format!("publication-{name}.yaml"), &texts::publication(name, services, peer.name));
    }

    /// Declares a peer, and an import of what it has, in `peer-NAME.yaml`.
    pub(crate) fn meet(&self, peer: &Mesh) {
        self.meet_with(peer, "", &texts::import(peer));
    }

    /// The same with further lines of the peer's spec, and an Import document.
    pub(crate) fn meet_with(&self, peer: &Mesh, more: &str, import: &str) {
        self.write(&format!("peers/{}-ca.pem", peer.name), &peer.bundle());
        let text = format!("{}---\n{import}", texts::peer(peer, more));
        self.write(&format!("peer-{}.yaml", peer.name), &text);
    }

    /// Our CA certificate as PEM.
    pub(crate) fn bundle(&self) -> String {
        fs::read_to_string(self.folder.join("identity/ca.pem")).unwrap()
    }

    fn log_file(&self) -> PathBuf {
        self.root.join(format!("{}.log", self.name))
    }

    /// All that the agents of this mesh logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// All that the audit's folder holds, as text.
    pub(crate) fn audit_files(&self) -> String {
        let files = fs::read_dir(self.data().join("audit")).into_iter().flatten().flatten();
        files.map(|file| String::from_utf8_lossy(&fs::read(file.path()).unwrap()).into_owned()).collect()
    }

    /// `hamlet audit ARGS -o json`: the entries.
    pub(crate) fn audit(&self, args: &[&str]) -> Vec<Value> {
        let outcome = self.cli(&[&["audit"], args, &["-o", "json"]].concat());
        assert!(matches!(outcome.code, 0 | 3), "hamlet audit {args:?}: {outcome:?}");
        outcome.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for an entry of that action that fits, and returns the first.
    #[track_caller]
    pub(crate) fn until_audited(&self, action: &str, fits: impl Fn(&Value) -> bool) -> Value {
        until(&format!("{} audits {action}", self.name), || {
            let entries = self.audit(&["--action", action]);
            let found = entries.iter().find(|entry| fits(entry)).cloned();
            found.ok_or_else(|| serde_json::to_string_pretty(&entries).unwrap())
        })
    }

    fn ready_file(&self) -> PathBuf {
        self.root.join(format!("{}.ready", self.name))
    }

    /// The addresses in the ready file.
    pub(crate) fn ready(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.ready_file()).unwrap()).unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).env_clear().stdin(Stdio::null());
        command
    }

    /// Starts the agent without waiting for it.
    pub(crate) fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = self.command();
        command.arg("agent").arg("-f").arg(&self.folder).arg("--ready-file").arg(self.ready_file());
        // What is said at debug level is searched for secrets when the mesh is dropped.
        command.args(["--log-level", self.log_level]);
        command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Starts the agent and waits until it is ready.
    pub(crate) fn start(&mut self) {
        assert!(self.agent.is_none(), "{} runs already", self.name);
        let _ = fs::remove_file(self.ready_file());
        self.canaries.borrow_mut().extend(Canaries::of(&self.folder));
        let agent = self.spawn();
        let agent = self.agent.insert(agent);
        let (ready, name) = (self.root.join(format!("{}.ready", self.name)), self.name);
        until(&format!("{name}'s agent is ready"), || match agent.try_wait().unwrap() {
            Some(status) => panic!("{name}'s agent ended instead of becoming ready: {status}"),
            None if ready.exists() => Ok(()),
            None => Err("no ready file".to_owned()),
        });
    }

    /// Sends the agent a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.agent.as_ref().expect("it runs").id();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    /// Waits for the agent's end.
    pub(crate) fn wait_end(&mut self) -> ExitStatus {
        let mut agent = self.agent.take().expect("it runs");
        let ended = until("the agent ends", || agent.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()));
        let _ = agent.wait();
        ended
    }

    /// Ends the agent as a crash does.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.wait_end().signal(), Some(Signal::SIGKILL as i32));
    }

    /// Stops the agent in order. Nothing is held open, so there is nothing to drain.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let (ended, took) = timed(|| self.wait_end());
        assert_eq!(ended.code(), Some(0));
        assert!(took < DRAIN / 2, "{}'s agent took {took:?} to stop", self.name);
    }

    /// `hamlet ARGS --socket OURS`.
    pub(crate) fn cli(&self, args: &[&str]) -> Outcome {
        let output = self.command().args(args).arg("--socket").arg(self.socket()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let code = output.status.code().expect("it was killed by a signal");
        let outcome = Outcome { code, out: text(output.stdout), err: text(output.stderr) };
        if let Some(at) = args.iter().position(|arg| *arg == "--file") {
            self.plant_token(&fs::read_to_string(args[at + 1]).unwrap_or_default());
        }
        let invites = args.starts_with(&["peer", "invite"]);
        if invites {
            self.plant_token(&outcome.out);
        } else {
            self.assert_clean(&format!("hamlet {args:?}"), &outcome.out);
        }
        self.assert_clean(&format!("what hamlet {args:?} says beside"), &outcome.err);
        outcome
    }

    /// The same with something on standard input, which stays open for a while as a pipe does.
    pub(crate) fn cli_fed(&self, args: &[&str], input: &str) -> Outcome {
        let mut command = self.command();
        command.args(args).arg("--socket").arg(self.socket());
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        let ended = child.wait().unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let code = ended.code().expect("it was killed by a signal");
        let outcome = Outcome { code, out: text(output.stdout), err: text(output.stderr) };
        self.plant_token(input);
        for shown in [&outcome.out, &outcome.err] {
            self.assert_clean(&format!("hamlet {args:?}"), shown);
        }
        outcome
    }

    /// `hamlet ca ARGS`, which works on the folder and knows no socket, and must succeed.
    pub(crate) fn ca(&self, args: &[&str]) -> String {
        let output = self.command().arg("ca").args(args).arg("-f").arg(&self.folder).output().unwrap();
        assert!(output.status.success(), "hamlet ca {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// `hamlet ARGS --watch`, as it goes on.
    pub(crate) fn watch(&self, args: &[&str]) -> Watch {
        let mut command = self.command();
        command.args(args).arg("--watch").arg("--socket").arg(self.socket()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Watch { child, lines }
    }

    /// `hamlet ARGS -o json`, which must succeed (or find something degraded).
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let outcome = self.cli(&[args, &["-o", "json"]].concat());
        assert!(matches!(outcome.code, 0 | 3), "hamlet {args:?}: {outcome:?}");
        serde_json::from_str(&outcome.out).unwrap()
    }

    /// The state of a peer: all of it.
    pub(crate) fn peer(&self, peer: &Mesh) -> Value {
        self.json(&["get", "peer", peer.name])
    }

    /// Waits until the peer's state is of that kind, and returns the peer.
    #[track_caller]
    pub(crate) fn until_peer(&self, peer: &Mesh, kind: &str) -> Value {
        until(&format!("{} sees {} as {kind}", self.name, peer.name), || {
            let seen = self.peer(peer);
            if seen["state"]["kind"] == kind { Ok(seen) } else { Err(seen.to_string()) }
        })
    }

    /// An imported or local service, if it is there.
    pub(crate) fn service(&self, name: &str) -> Option<Value> {
        let outcome = self.cli(&["get", "service", name, "-o", "json"]);
        match outcome.code {
            0 => Some(serde_json::from_str(&outcome.out).unwrap()),
            5 => None,
            _ => panic!("hamlet get service {name}: {outcome:?}"),
        }
    }

    /// Waits until the service is there and all of its instances can be called.
    #[track_caller]
    pub(crate) fn until_callable(&self, name: &str) -> Value {
        until(&format!("{} can call {name}", self.name), || {
            let service = self.service(name).ok_or("it is not there")?;
            let instances = service["instances"].as_array().unwrap();
            let callable = instances.iter().all(|i| i["programming"]["kind"] == "programmed");
            if callable { Ok(service) } else { Err(service.to_string()) }
        })
    }

    /// Names of all services, local and imported.
    pub(crate) fn services(&self) -> Vec<String> {
        let list = self.json(&["get", "services"]);
        list["items"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
    }

    /// From now on this token is looked for, if it is one.
    fn plant_token(&self, text: &str) {
        self.canaries.borrow_mut().add_token(text);
    }

    /// Panics if `shown` gives a secret of this mesh away.
    fn assert_clean(&self, what: &str, shown: &str) {
        let mut canaries = self.canaries.borrow_mut();
        canaries.extend(Canaries::of(&self.folder));
        if let Some(secret) = canaries.found_in(shown) {
            panic!("{what} of {} shows a secret: {secret}", self.name);
        }
    }

    /// The metrics, if the agent still gives them.
    fn metrics(&self) -> Option<String> {
        let mut stream = TcpStream::connect(self.at.health).ok()?;
        stream.set_read_timeout(Some(DRAIN)).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok().map(|_| text)
    }

    /// The last lines of the log.
    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let metrics = self.agent.as_ref().filter(|_| !std::thread::panicking()).and_then(|_| self.metrics());
        // Before anything can fail here: no agent outlives its test.
        if let Some(agent) = &mut self.agent {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        if !std::thread::panicking() {
            self.assert_clean("a metric", &metrics.unwrap_or_default());
            self.assert_clean("the log", &self.log());
            self.assert_clean("the audit", &self.audit_files());
        }
        if std::thread::panicking() {
            eprintln!("the end of {}'s log:\n{}\n", self.name, self.log_tail());
        }
    }
}

/// A command that goes on writing; ended when it is dropped.
pub(crate) struct Watch {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watch {
    /// Reads on to the first line that fits. A line that never comes ends with the command: it
    /// gives up when the agent is gone.
    pub(crate) fn until_line(&mut self, fits: impl Fn(&str) -> bool) -> String {
        let lines = self.lines.by_ref().lines().map(Result::unwrap);
        let found = lines.into_iter().find(|line| fits(line));
        found.expect("the watch ended without that line")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two meshes that know each other: acme owns, globex calls.
pub(crate) struct Two {
    pub(crate) acme: Mesh,
    pub(crate) globex: Mesh,
    /// The port that acme's services have for consumers; free on globex's egress.
    pub(crate) port: u16,
    root: TempDir,
}

impl Two {
    /// Folders and addresses; nothing runs.
    pub(crate) fn new() -> Two {
        let root = tempfile::Builder::new().prefix("hamlet-two-").tempdir().unwrap();
        let acme = Mesh::new(root.path(), "acme", "acme.example");
        let globex = Mesh::new(root.path(), "globex", "globex.example");
        acme.meet(&globex);
        globex.meet(&acme);
        let port = globex.block.service_port();
        Two { acme, globex, port, root }
    }

    /// The same two, who have never heard of each other.
    pub(crate) fn strangers() -> Two {
        let two = Two::new();
        two.acme.remove("peer-globex.yaml");
        two.globex.remove("peer-acme.yaml");
        two
    }

    /// A third mesh, a stranger to both.
    pub(crate) fn third(&self) -> Mesh {
        Mesh::new(self.root.path(), "initech", "initech.example")
    }

    /// The folder that holds everything of both.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Starts both agents.
    pub(crate) fn start(&mut self) {
        self.acme.start();
        self.globex.start();
    }

    /// Waits until both have proven that they hold the same set.
    #[track_caller]
    pub(crate) fn until_in_sync(&self) {
        self.globex.until_peer(&self.acme, "in-sync");
        self.acme.until_peer(&self.globex, "in-sync");
    }
}
