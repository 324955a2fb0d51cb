//! A peer of another implementation as a process: commands on its input, events from its output,
//! one JSON object a line. Which habits it has is told in `interop/`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::wait::until;

/// Lines that a failed test shows of each peer.
const EVENTS_SHOWN: usize = 15;
/// Of a line; services are long.
const EVENT_SHOWN_BYTES: usize = 300;

/// What is run: a program, and the words in front of the role.
#[derive(Debug, Clone)]
pub(crate) struct Program(Vec<PathBuf>);

#[allow(clippy::disallowed_methods, reason = "how a test is run is told by the environment")]
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where `interop/build` puts the peers.
fn built() -> PathBuf {
    let target = setting("CARGO_TARGET_DIR").unwrap_or_else(|| "target".to_owned());
    repository().join(target).join("interop")
}

/// None if the peer isn't there, which is allowed only to people.
fn present(path: PathBuf, what: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let message = format!("{what} is missing ({}); run interop/build", path.display());
    assert!(setting("CI").is_none(), "{message}");
    eprintln!("\n*** NOT TESTED: {message}\n");
    None
}

/// The peer on Go's gRPC; `HAMLET_INTEROP_GO` names another program with the same commands.
pub(crate) fn go_peer() -> Option<Program> {
    let path = setting("HAMLET_INTEROP_GO").map_or_else(|| built().join("go-peer"), PathBuf::from);
    present(path, "the Go peer").map(|path| Program(vec![path]))
}

/// The peer on Python's gRPC.
pub(crate) fn python_peer() -> Option<Program> {
    let python = present(built().join("venv/bin/python"), "the Python peer's environment")?;
    Some(Program(vec![python, repository().join("interop/python/peer.py")]))
}

/// The folder with SPIRE's server and agent.
pub(crate) fn built_spire() -> Option<PathBuf> {
    let folder = built().join("spire");
    present(folder.join("built"), "SPIRE (`interop/build spire`)").map(|_| folder)
}

impl Program {
    /// Runs it to its end with that input; what it printed.
    pub(crate) fn run(&self, args: &[&str], input: &str) -> Vec<Value> {
        let foreign = Foreign::start(self, "run", args);
        foreign.stdin.as_ref().unwrap().write_all(input.as_bytes()).unwrap();
        foreign.finish()
    }
}

/// A running peer.
pub(crate) struct Foreign {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    events: Arc<Mutex<Vec<Value>>>,
    reader: Option<JoinHandle<()>>,
}

impl Foreign {
    /// Starts it; `name` is for messages.
    pub(crate) fn start(program: &Program, name: &str, args: &[&str]) -> Foreign {
        let mut command = Command::new(&program.0[0]);
        command.args(&program.0[1..]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let events = Arc::new(Mutex::new(Vec::new()));
        let into = events.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                into.lock().unwrap().push(event);
            }
        });
        let stdin = child.stdin.take();
        Foreign { name: name.to_owned(), child, stdin, events, reader: Some(reader) }
    }

    /// One line to its input.
    pub(crate) fn say(&self, command: &str) {
        writeln!(self.stdin.as_ref().unwrap(), "{command}").unwrap();
    }

    /// The events of these kinds, in order.
    pub(crate) fn events_of(&self, kinds: &[&str]) -> Vec<Value> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|e| kinds.iter().any(|kind| e["event"] == *kind)).cloned().collect()
    }

    /// The events of a kind.
    pub(crate) fn events(&self, kind: &str) -> Vec<Value> {
        self.events_of(&[kind])
    }

    /// Waits for an event of that kind that fits.
    #[track_caller]
    pub(crate) fn until_fits(&self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        until(&format!("{} prints a fitting {kind}", self.name), || {
            let found = self.events(kind).into_iter().find(|e| fits(e));
            found.ok_or_else(|| self.tail())
        })
    }

    /// Waits for any event of that kind.
    #[track_caller]
    pub(crate) fn until(&self, kind: &str) -> Value {
        self.until_fits(kind, |_| true)
    }

    /// Waits for an event of that kind about a key.
    #[track_caller]
    pub(crate) fn until_key(&self, kind: &str, key: &str) -> Value {
        self.until_fits(kind, |e| e["key"] == key)
    }

    /// Waits until so many events of a kind are there.
    #[track_caller]
    pub(crate) fn until_count(&self, kind: &str, count: usize) {
        until(&format!("{} prints {count} times {kind}", self.name), || {
            let seen = self.events(kind).len();
            if seen >= count { Ok(()) } else { Err(format!("{seen}; {}", self.tail())) }
        });
    }

    /// Closes its input, waits for its end, and returns all it printed.
    pub(crate) fn finish(mut self) -> Vec<Value> {
        self.stdin = None;
        let _ = until("the peer ends with its input", || {
            self.child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
        });
        self.reader.take().unwrap().join().unwrap();
        std::mem::take(&mut self.events.lock().unwrap())
    }

    /// The last events, cut.
    fn tail(&self) -> String {
        let events = self.events.lock().unwrap();
        let last = events[events.len().saturating_sub(EVENTS_SHOWN)..].iter();
        let line = |e: &Value| e.to_string().chars().take(EVENT_SHOWN_BYTES).collect::<String>();
        last.map(line).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the last events of {}:\n{}\n", self.name, self.tail());
        }
    }
}
