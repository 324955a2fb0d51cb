//! The demo's child processes. Not the story: it starts, signals and ends what it is told to.
//!
//! Invariant: no child outlives the demo, however the demo ends. A [`Child`] is killed and reaped
//! when it is dropped. Against ends that drop nothing (`kill -9`) all children are in the process
//! group of a *warden*, a process that reads a pipe only the demo holds, and kills the group when
//! the pipe ends.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgrp, getpid};

/// How often an awaited end is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long one call of the program's own command line may take.
const COMMAND_TIME: Duration = Duration::from_secs(60);
/// Variables that would make children talk to another agent, or log otherwise.
const NOT_INHERITED: [&str; 5] =
    ["HAMLET_SOCKET", "HAMLET_CONFIG", "HAMLET_LOG_FORMAT", "HAMLET_LOG_LEVEL", "NO_COLOR"];

/// One running child. Dropping it kills and reaps it.
pub(super) struct Child {
    process: std::process::Child,
    reaped: bool,
}

impl Child {
    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.try_wait().ok().flatten();
        self.reaped |= status.is_some();
        status
    }

    /// Sends SIGTERM and waits; `None` if it still runs after `patience` (it is killed then).
    pub(super) async fn stop(mut self, patience: Duration) -> Option<ExitStatus> {
        if let Some(status) = self.ended() {
            return Some(status);
        }
        // Not reaped yet, so the id is still its own.
        let _ = kill(pid(self.pid()), Signal::SIGTERM);
        let end = async {
            loop {
                match self.ended() {
                    Some(status) => return status,
                    None => tokio::time::sleep(LOOK_EVERY).await,
                }
            }
        };
        tokio::time::timeout(patience, end).await.ok()
    }

    /// As `kill -9` does, and reaps it.
    pub(super) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if !self.reaped {
            let _ = self.process.kill();
            let _ = self.process.wait();
            self.reaped = true;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap_or(i32::MAX))
}

/// What a call of the command line gave.
pub(super) struct Output {
    /// The exit code; -1 after a signal.
    pub(super) code: i32,
    /// Standard output.
    pub(super) out: String,
    /// Standard error.
    pub(super) err: String,
}

/// Starts children of this very program, all in the warden's process group.
pub(super) struct Family {
    program: PathBuf,
    logs: PathBuf,
    warden: Child,
}

impl Family {
    /// Starts the warden. Children log into the folder `logs`, which must exist.
    pub(super) fn start(program: PathBuf, logs: PathBuf) -> io::Result<Family> {
        let mut command = Command::new(&program);
        command.arg("demo-warden").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.process_group(0).spawn()?;
        Ok(Family { program, logs, warden: Child { process, reaped: false } })
    }

    /// This program.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// The log file of the child that is called `name`.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// The id of the children's process group.
    pub(super) fn group(&self) -> u32 {
        self.warden.pid()
    }

    /// Starts a child; what it prints is added to [`Family::log`] of its name.
    pub(super) fn spawn<A: AsRef<OsStr>>(&self, name: &str, arguments: &[A]) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(self.log(name))?;
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Child { process: command.spawn()?, reaped: false })
    }

    /// Runs the program's command line to its end.
    pub(super) async fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> io::Result<Output> {
        let mut command = tokio::process::Command::from(self.command(arguments));
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND_TIME, command.output());
        let output = output.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn command<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(&self.program);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command.args(arguments).process_group(pid(self.group()).as_raw());
        command
    }

    /// Whether the group still had members, the warden aside; they are killed. Ends the warden.
    pub(super) fn dissolve(mut self) -> bool {
        let group = pid(self.group());
        // The warden is the group's leader. Killed before its pipe ends, it kills nobody.
        self.warden.end();
        let left = killpg(group, None).is_ok();
        if left {
            // A group that has members keeps its id.
            let _ = killpg(group, Signal::SIGKILL);
        }
        left
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // The group's id is the warden's own as long as the warden is not reaped.
        if !self.warden.reaped {
            let _ = killpg(pid(self.group()), Signal::SIGKILL);
        }
    }
}

/// The last `lines` lines of a log, for people.
pub(super) fn tail(path: &Path, lines: usize) -> String {
    /// Most that is read of a log's end, in bytes.
    const BYTES: u64 = 64 * 1024;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        io::Seek::seek(&mut file, io::SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = read().map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The warden: returns only if it must not act. Kills its own process group, itself included, once
/// standard input ends.
pub(super) fn warden() -> anyhow::Result<()> {
    // Started by hand within a script it would take the script with it.
    anyhow::ensure!(getpid() == getpgrp(), "only `hamlet demo` starts the warden");
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    killpg(getpgrp(), Signal::SIGKILL)?;
    Ok(())
}
