//! How a command ends: the exit codes that scripts branch on, and errors as people read them.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use hamlet_admin::ClientError;
use hamlet_core::rejection::one_line;
use owo_colors::OwoColorize as _;

use super::output;

/// The exit codes (decision 27). A broken pipe is [`Exit::Good`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It worked.
    Good = 0,
    /// It failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// It worked, but something needs a person's eye.
    Degraded = 3,
    /// It did not happen in time.
    TimedOut = 4,
    /// Nothing of that name exists.
    NotFound = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// An error with an exit code of its own and hints, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// What is wrong, one line.
    pub message: String,
    /// What to do.
    pub hints: Vec<String>,
}

impl Failure {
    /// A failure with one hint.
    pub fn new(exit: Exit, message: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), hints: vec![hint.into()] }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let message = error.to_string();
        let (exit, hint) = match &error {
            ClientError::NoAgent { .. } => (
                Exit::Failed,
                "is `hamlet agent` running? Say where it listens: --socket PATH, or -f DIR with its configuration",
            ),
            ClientError::Denied { .. } => {
                (Exit::Failed, "the socket's file permissions are the access control")
            }
            ClientError::TimedOut { .. } => {
                (Exit::TimedOut, "give it longer with --timeout, or look at the agent's log")
            }
            ClientError::NotFound(_) => return Failure { exit: Exit::NotFound, message, hints: vec![] },
            ClientError::Ambiguous { .. } => return Failure { exit: Exit::Usage, message, hints: vec![] },
            ClientError::Configuration(_) => (
                Exit::Failed,
                "correct the files and run `hamlet reload` again; `hamlet validate` checks them",
            ),
            ClientError::Closed => (Exit::Failed, "look at the agent's log"),
            ClientError::NotAnAgent { .. } => {
                (Exit::Failed, "compare `hamlet version` with the version of the running agent")
            }
            ClientError::Refused { .. } => return Failure { exit: Exit::Failed, message, hints: vec![] },
        };
        Failure::new(exit, message, hint)
    }
}

/// Prints an error with its hints to standard error, and says how the program ends.
pub(super) fn report(error: &anyhow::Error, no_color: bool) -> ExitCode {
    if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) {
        return Exit::Good.into();
    }
    let mut text = String::new();
    let (exit, hints) = match error.downcast_ref::<Failure>() {
        Some(failure) => (failure.exit, failure.hints.as_slice()),
        None => (Exit::Failed, [].as_slice()),
    };
    let colour = output::colour(&std::io::stderr(), no_color);
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many errors tell their cause already.
        if !message.contains(&cause) {
            message += &format!(": {cause}");
        }
    }
    for (i, line) in message.lines().enumerate() {
        let label = if colour { "error:".red().bold().to_string() } else { "error:".to_owned() };
        let line = one_line(line, LINE_BYTES);
        text += &if i == 0 { format!("{label} {line}\n") } else { format!("  {line}\n") };
    }
    for hint in hints {
        let label = if colour { "hint:".cyan().bold().to_string() } else { "hint:".to_owned() };
        text += &format!("{label} {}\n", one_line(hint, LINE_BYTES));
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
    exit.into()
}

/// Longest line of an error, in bytes.
const LINE_BYTES: usize = 4096;
