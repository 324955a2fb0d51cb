//! The real binary as a person or a script meets it: texts, formats and exit codes.

mod fixture;
mod outcomes;
mod outputs;

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The binary with these arguments and a clean environment.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hamlet"));
    command.args(args).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs it to its end.
pub(crate) async fn hamlet(args: &[&str]) -> Outcome {
    outcome(&mut command(args)).await
}

/// Runs it to its end.
pub(crate) async fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Outcome {
        code: output.status.code().expect("it was killed by a signal"),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
