//! `hamlet demo`: the flags of the demonstration and of its workload.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

/// Start two meshes on this machine and watch them federate
///
/// Two meshes, acme.example and globex.example, run as separate processes of this program, each
/// with its own folder, certificate authority and data, and a small HTTP workload. They peer, one
/// publishes a service, the other calls it through both gateways. They stay up, with the commands
/// to try, until Ctrl-C.
///
/// Examples:
///   hamlet demo
///   hamlet demo --check      # the whole story as a script with assertions; then nothing is left
///   hamlet demo --dir /tmp/d --keep
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct DemoOptions {
    /// Run the story as a script with assertions and exit: 0 when every step passed
    #[arg(long)]
    pub check: bool,
    /// Keep the folders afterwards
    #[arg(long)]
    pub keep: bool,
    /// Where to put the two meshes' folders [default: a fresh temporary folder]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// The small HTTP service that the demo starts in each mesh.
#[derive(Debug, Clone, Args)]
pub struct WorkloadOptions {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// The name it answers with
    #[arg(long, value_name = "NAME")]
    pub name: String,
}

/// Runs the demo.
pub(super) fn run(options: DemoOptions) -> anyhow::Result<ExitCode> {
    let _ = options;
    anyhow::bail!("this build has no demo")
}

/// Runs the demo's workload.
pub(super) fn run_workload(options: WorkloadOptions) -> anyhow::Result<ExitCode> {
    let _ = options;
    anyhow::bail!("this build has no demo")
}
