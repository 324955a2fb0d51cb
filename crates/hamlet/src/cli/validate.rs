//! `hamlet validate`: the configuration checked as the agent would, without an agent.

use std::path::PathBuf;

use clap::Args;

use super::exit::Exit;
use super::output::Out;
use crate::config;

/// Check configuration; shows every problem with its place and fix
///
/// Reads a file or a folder just as the agent does, and reports all problems at once. Exit code 0
/// when the agent would take it, 1 when not. It connects to nobody and changes nothing.
///
/// Examples:
///   hamlet validate -f acme
///   hamlet validate -f acme/mesh.yaml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct ValidateArgs {
    /// The configuration: a YAML file, or a folder of them
    #[arg(short = 'f', long = "config", value_name = "PATH", env = "HAMLET_CONFIG")]
    config: PathBuf,
}

/// Does it.
pub(super) fn run(args: &ValidateArgs, out: &mut Out) -> anyhow::Result<Exit> {
    let good = config::validate_command(&args.config, out.colour, out)?;
    Ok(if good { Exit::Good } else { Exit::Failed })
}
