//! `hamlet agent`: the flags of the long-running program.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Run the agent: federation, gateways and DNS
///
/// Reads the configuration, takes up its data folder, serves what it imported last, then connects
/// to its peers. It stays in the foreground and logs to standard error.
///
/// Signals: SIGHUP loads the configuration again (as `hamlet reload` does, which also shows what is
/// wrong). SIGTERM or Ctrl-C stops it in order: peers keep what they imported, live connections
/// drain. A second one ends it at once.
///
/// Examples:
///   hamlet agent -f acme
///   hamlet agent -f /etc/hamlet --log-format json --log-level info,hamlet_protocol=debug
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct AgentOptions {
    /// The configuration: a YAML file, or a folder of them
    #[arg(short = 'f', long = "config", value_name = "PATH", env = "HAMLET_CONFIG")]
    pub config: PathBuf,
    /// Format of log lines [default: as configured, else text]
    #[arg(long, value_enum, value_name = "FORMAT", env = "HAMLET_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged: a level, or directives such as info,hamlet_protocol=debug [default: as configured]
    #[arg(long, value_name = "LEVEL", env = "HAMLET_LOG_LEVEL")]
    pub log_level: Option<String>,
    /// A file that is written once the agent is ready; its content is the address of each listener
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
}

/// Runs the agent until it is told to stop.
pub(super) fn run(options: AgentOptions) -> anyhow::Result<ExitCode> {
    crate::agent::run(&options)
}
