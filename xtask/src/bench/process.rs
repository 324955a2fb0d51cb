//! The ends of a bench as processes of their own, so that each has its own memory and cost.
//!
//! An end says one line when it can be used, and one when it is done; both are JSON. It ends when
//! its standard input closes, so none outlives the bench.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

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
        let mut command = Command::new(std::env::current_exe().context("who am I?")?);
        command.args(["bench-end", role, "--folder"]).arg(folder).args(arguments);
        if let Some(cpu) = cpu {
            command.args(["--cpu", &cpu.to_string()]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
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
