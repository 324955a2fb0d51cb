//! `hamlet demo`: the flags of the demonstration, of its workload and of its warden.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::exit::Exit;
use crate::demo;

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
    /// Where to put the two meshes' folders; they are kept [default: a fresh temporary folder]
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

/// The variables that tell curl to go through a proxy.
const PROXIES: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];

/// Runs the demo.
pub(super) fn run(options: DemoOptions, colour: bool) -> anyhow::Result<ExitCode> {
    let proxied = PROXIES.iter().any(|name| std::env::var_os(name).is_some_and(|v| !v.is_empty()));
    let good = demo::run(demo::Settings {
        check: options.check,
        keep: options.keep,
        dir: options.dir,
        colour,
        terminal: std::io::IsTerminal::is_terminal(&std::io::stdout()),
        proxied,
    })?;
    Ok(if good { Exit::Good } else { Exit::Failed }.into())
}

/// Runs the demo's workload until it is killed.
pub(super) fn run_workload(options: WorkloadOptions) -> anyhow::Result<ExitCode> {
    demo::run_workload(options.listen, &options.name)?;
    Ok(Exit::Good.into())
}

/// Runs the demo's warden until its parent is gone.
pub(super) fn run_warden() -> anyhow::Result<ExitCode> {
    demo::run_warden()?;
    Ok(Exit::Good.into())
}
