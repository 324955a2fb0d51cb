//! An agent as a process that can be started, killed and asked. Dropping it kills it.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hamlet_admin::client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// An agent must be ready, or have stopped in order, within this.
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);
/// How much of a log is shown.
const LOG_LINES: usize = 30;

/// One agent and its folder.
pub(super) struct AgentProcess {
    name: &'static str,
    program: PathBuf,
    folder: PathBuf,
    /// Asks it.
    pub(super) client: Client,
    child: Option<Child>,
}

impl AgentProcess {
    /// Not started yet.
    pub(super) fn new(program: &Path, above: &Path, name: &'static str) -> AgentProcess {
        let folder = above.join(name);
        let client = Client::new(folder.join("data/admin.sock"), Duration::from_secs(10));
        AgentProcess { name, program: program.to_owned(), folder, client, child: None }
    }

    /// Its configuration folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The store's folder.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Everything that it said.
    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// Whether it runs.
    pub(super) fn is_up(&self) -> bool {
        self.child.is_some()
    }

    /// Starts it and waits until it is ready.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        let ready = self.folder.join("ready");
        let _ = std::fs::remove_file(&ready);
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&self.program);
        command.args(["agent", "--log-level", "info", "-f"]).arg(&self.folder);
        command.arg("--ready-file").arg(&ready).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child =
            Some(command.spawn().with_context(|| format!("can't start {}", self.program.display()))?);
        let is_ready = async {
            while !ready.exists() {
                self.must_run()?;
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        match tokio::time::timeout(DEADLINE, is_ready).await {
            Ok(outcome) => outcome,
            Err(_) => bail!("the {} isn't ready after {DEADLINE:?}:\n{}", self.name, self.tail()),
        }
    }

    /// Fails if it ended by itself.
    pub(super) fn must_run(&mut self) -> anyhow::Result<()> {
        let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
        match ended {
            Some(status) => bail!("the {} ended by itself ({status}):\n{}", self.name, self.tail()),
            None => Ok(()),
        }
    }

    /// kill -9; done when the system has cleared it away.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to stop in order and waits until it has.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
        let ended = async {
            loop {
                if let Some(status) = child.try_wait()? {
                    return anyhow::Ok(status);
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let Ok(status) = tokio::time::timeout(DEADLINE, ended).await else {
            bail!("the {} didn't stop within {DEADLINE:?}:\n{}", self.name, self.tail());
        };
        let status = status?;
        self.child = None;
        ensure!(status.success(), "the {} stopped with {status}:\n{}", self.name, self.tail());
        Ok(())
    }

    /// The end of its log.
    pub(super) fn tail(&self) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
