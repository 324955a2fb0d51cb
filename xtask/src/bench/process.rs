//! The ends of a bench as processes of their own, so that each has its own memory and cost.
//!
//! An end says one line of JSON when it can be used, and one for each command that it is told, on
//! its standard input. It ends when that closes, so none outlives the bench.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use super::machine::started_on;

/// A running end.
pub(super) struct End {
    what: String,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl End {
    /// Starts this program as an end with `arguments`, on one processor if `cpu` says so.
    pub(super) fn start(
        role: &str,
        folder: &Path,
        cpu: Option<usize>,
        arguments: &[String],
    ) -> anyhow::Result<End> {
        let program = Command::new(std::env::current_exe().context("who am I?")?);
        End::start_as(program, role, folder, cpu, arguments)
    }

    /// The same behind all others on its processor: it gets what they leave.
    pub(super) fn start_behind(
        role: &str,
        folder: &Path,
        cpu: Option<usize>,
        arguments: &[String],
    ) -> anyhow::Result<End> {
        let mut program = Command::new("nice");
        program.args(["-n", "19"]).arg(std::env::current_exe().context("who am I?")?);
        End::start_as(program, role, folder, cpu, arguments)
    }

    fn start_as(
        mut command: Command,
        role: &str,
        folder: &Path,
        cpu: Option<usize>,
        arguments: &[String],
    ) -> anyhow::Result<End> {
        command.args(["bench-end", role, "--folder"]).arg(folder).args(arguments);
        if let Some(cpu) = cpu {
            command.args(["--cpu", &cpu.to_string()]);
        }
        End::spawn(role, command, None)
    }

    /// Starts any program that speaks like an end; `cpu` is where it is kept.
    pub(super) fn spawn(role: &str, mut command: Command, cpu: Option<usize>) -> anyhow::Result<End> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = started_on(cpu, || command.spawn())?
            .with_context(|| format!("can't start the bench's {role}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("a process without output")?;
        Ok(End { what: role.to_owned(), child, input, output: BufReader::new(output) })
    }

    /// Reads its next line.
    pub(super) fn line<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        self.output.read_line(&mut line).with_context(|| format!("the bench's {} fell silent", self.what))?;
        if line.is_empty() {
            bail!("the bench's {} ended without a result; what it said is above", self.what);
        }
        serde_json::from_str(&line).with_context(|| format!("the bench's {} said: {line}", self.what))
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it something.
    pub(super) fn tell(&mut self, command: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("an end that was told to end")?;
        writeln!(input, "{command}").with_context(|| format!("the bench's {} is gone", self.what))
    }

    /// Asks it something and reads the answer.
    pub(super) fn ask<T: DeserializeOwned>(&mut self, command: &str) -> anyhow::Result<T> {
        self.tell(command)?;
        self.line().with_context(|| format!("asked: {command}"))
    }

    /// Tells it to end and waits until it has.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.input = None;
        self.child.wait().map(drop).with_context(|| format!("the bench's {} doesn't end", self.what))
    }

    /// Tells it to end and reads its last line.
    pub(super) fn finish<T: DeserializeOwned>(mut self) -> anyhow::Result<T> {
        self.input = None;
        self.line()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
