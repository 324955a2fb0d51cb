//! The agent: where the parts meet. This file is its life from start to exit.
//!
//! Order of starting: configuration, identity, trust, store, then gateway and names with what the
//! store kept, and only then the peers. Order of stopping: the reverse, admin last.

mod applied;
mod apply;
mod audit;
pub(crate) mod bundles;
mod expiry;
mod identity;
mod listeners;
mod liveness;
mod peering;
pub(crate) mod peers;
mod policy;
mod sinks;
mod state;
mod status;
mod workload_api;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hamlet_adapters::file::{FolderLimits, FolderSnapshot, read_folder};
use hamlet_runtime::{Clock, Shutdown, Supervisor, SystemClock};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::agent::{AgentOptions, LogFormat};
use crate::cli::exit::{Exit, Failure};
use crate::config::{self, Loaded};

use peering::Kept;
pub(crate) use state::Agent;

/// Longest time that streams and connections may take to end in order.
const DRAIN_MAX: Duration = Duration::from_secs(20);
/// What is left of them then has this long.
const FORCE: Duration = Duration::from_secs(2);

/// Runs the agent until it is told to stop.
pub fn run(options: &AgentOptions) -> anyhow::Result<ExitCode> {
    run_by(options, SystemClock::shared())
}

/// The same by any clock, for tests that can't wait.
pub fn run_by(options: &AgentOptions, clock: Arc<dyn Clock>) -> anyhow::Result<ExitCode> {
    let (snapshot, loaded, kept) = read(&options.config, &clock)?;
    start_logging(options, &loaded);
    for warning in &loaded.warnings {
        tracing::warn!(%warning, "configuration");
    }
    let control = runtime("control")?;
    // Of its own, so that a busy control plane can't slow traffic.
    let traffic = runtime("traffic")?;
    let outcome = control.block_on(live(options, clock, snapshot, (loaded, kept), &traffic));
    traffic.shutdown_timeout(FORCE);
    control.shutdown_timeout(FORCE);
    outcome
}

fn runtime(name: &'static str) -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name(name)
        .enable_all()
        .build()
        .context("the system gives no threads for the runtime")
}

/// Reads the files, and with them the peers that tokens made: those are in the store.
fn read(path: &Path, clock: &Arc<dyn Clock>) -> anyhow::Result<(FolderSnapshot, Loaded, Kept)> {
    let failed = |problems: config::Problems| -> anyhow::Error {
        eprint!("{}", problems.render(false));
        Failure::new(
            Exit::Failed,
            format!("the configuration in {} can't be used: {}", path.display(), problems.summary()),
            "mend the places shown; `hamlet validate -f PATH` checks without starting",
        )
        .into()
    };
    let snapshot = read_folder(path, &FolderLimits::default()).map_err(|e| failed(config::unreadable(&e)))?;
    if snapshot.files.is_empty() {
        return Err(failed(config::nothing_to_read(path)));
    }
    let mesh = config::mesh_in(&snapshot.files);
    let kept = mesh.as_ref().map(|mesh| Kept::open(&mesh.data, clock)).transpose()?.unwrap_or_default();
    let mut sources = snapshot.files.clone();
    if let Some(mesh) = &mesh {
        sources.extend(config::made::sources(&mesh.data, kept.ledger.peers.values()));
    }
    let loaded = config::load_sources(sources).map_err(failed)?;
    config::made::write(&loaded.config.mesh.data, kept.ledger.peers.values())
        .context("the peers made by token can't be written into the data folder; check its owner and mode")?;
    Ok((snapshot, loaded, kept))
}

fn start_logging(options: &AgentOptions, loaded: &Loaded) {
    use tracing_subscriber::EnvFilter;
    let configured = loaded.config.mesh.log;
    let level = options.log_level.clone().unwrap_or_else(|| configured.level.as_str().to_owned());
    let filter = EnvFilter::try_new(&level).unwrap_or_else(|error| {
        eprintln!("--log-level {level}: {error}; using info");
        EnvFilter::new("info")
    });
    let json = match options.log_format {
        Some(format) => format == LogFormat::Json,
        None => configured.format == config::LogFormat::Json,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first subscriber.
    let _ = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
        builder.with_target(false).with_ansi(colour).try_init()
    };
}

/// The supervisors, in order of stopping.
struct Supervisors {
    control: Supervisor,
    traffic: Supervisor,
    admin: Supervisor,
}

async fn live(
    options: &AgentOptions,
    clock: Arc<dyn Clock>,
    snapshot: FolderSnapshot,
    (loaded, kept): (Loaded, Kept),
    traffic: &Runtime,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let (control, admin) = (Shutdown::new(), Shutdown::new());
    let supervisors = Supervisors {
        control: Supervisor::new(control.clone()),
        traffic: Supervisor::new(Shutdown::new()),
        admin: Supervisor::new(admin.clone()),
    };
    let drain = loaded.config.mesh.egress.drain.min(DRAIN_MAX);
    let started = start(options, clock, snapshot, (loaded, kept), traffic, &supervisors).await;
    let agent = match started {
        Ok(agent) => agent,
        Err(error) => {
            stop(&supervisors, &control, &admin, Duration::ZERO).await;
            return Err(error);
        }
    };
    'running: loop {
        match signals.next().await {
            Told::Reload => {
                if let Err(problems) = agent.reload().await {
                    tracing::error!(
                        problems = problems.problems.len(),
                        "reload refused; the last good configuration stays"
                    );
                }
            }
            Told::Stop => break 'running,
        }
    }
    tracing::info!("stopping; a second signal ends at once");
    agent.set_stopping();
    tokio::select! {
        () = stop(&supervisors, &control, &admin, drain) => {}
        () = signals.stop_again() => {
            tracing::warn!("ended at once");
            return Ok(Exit::Failed.into());
        }
    }
    agent.close_audit().await;
    agent.close_store().await;
    tracing::info!("stopped");
    Ok(Exit::Good.into())
}

async fn stop(supervisors: &Supervisors, control: &Shutdown, admin: &Shutdown, drain: Duration) {
    control.begin();
    let (a, b) = tokio::join!(supervisors.control.stop(drain, FORCE), supervisors.traffic.stop(drain, FORCE));
    for task in a.into_iter().chain(b) {
        tracing::warn!(%task, "still running at the deadline; abandoned");
    }
    admin.begin();
    supervisors.admin.stop(FORCE, FORCE).await;
}

/// Starts everything, in order; returns when the agent is ready.
async fn start(
    options: &AgentOptions,
    clock: Arc<dyn Clock>,
    snapshot: FolderSnapshot,
    (loaded, kept): (Loaded, Kept),
    traffic: &Runtime,
    supervisors: &Supervisors,
) -> anyhow::Result<Arc<Agent>> {
    let gateway_spawner = supervisors.traffic.spawner();
    let workload_api = workload_api::open(&loaded.config.mesh, &supervisors.control.spawner()).await?;
    let config = &loaded.config;
    let entered = listeners::gateway(config, workload_api, clock.clone(), gateway_spawner, traffic).await?;
    let agent = Agent::open(options, clock, (loaded, kept), entered, supervisors.control.spawner()).await?;
    agent.start_audit(snapshot.fingerprint);
    // What the store kept is served before any peer is reached.
    agent.refresh_own_bundle().await;
    agent.start_peers().await;
    agent.start_sinks().await;
    agent.start_reports();
    agent.start_watching_expiry();
    agent.start_keeper();
    agent.start_workload_api();
    let bound = listeners::start(&agent, &supervisors.admin.spawner()).await?;
    agent.start_dialling();
    agent.finish_leaving().await;
    agent.start_bundles().await;
    agent.watch_files(snapshot);
    bound.log();
    tracing::info!(
        mesh = %agent.config().mesh.name,
        trust_domain = %agent.config().mesh.trust_domain,
        "ready"
    );
    if let Some(path) = &options.ready_file {
        bound.write(path)?;
    }
    Ok(agent)
}

enum Told {
    Reload,
    Stop,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Signals> {
        let on = |kind| signal(kind).context("signals can't be received");
        Ok(Signals {
            hangup: on(SignalKind::hangup())?,
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.hangup.recv() => Told::Reload,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
        }
    }

    async fn stop_again(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
