//! `hamlet demo`: two meshes on one machine that federate a service, to watch or to check.
//!
//! The meshes are real: two agents as processes of this program, two folders made by
//! [`init`](crate::config::init), workloads that know nothing of it. The demo stands outside and
//! uses what a user has: files, the command line, HTTP, DNS, signals. Invariants: whatever it does,
//! it leaves nothing running (`family`), and two demos never meet (`block`).

mod block;
mod documents;
mod family;
mod page;
mod probe;
mod site;
mod steps;
mod story;
mod workload;
mod world;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use page::Page;
use world::World;

/// How long an agent may take to stop after Ctrl-C.
const STOP_TIME: Duration = Duration::from_secs(10);
/// How often the agents are looked after while a person tries things.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What the command line asks for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The whole story with assertions, instead of leaving the meshes running.
    pub check: bool,
    /// Keep the folders.
    pub keep: bool,
    /// Where they are; a given one is kept.
    pub dir: Option<PathBuf>,
    /// Whether to use colour.
    pub colour: bool,
    /// Whether standard output is a terminal.
    pub terminal: bool,
    /// Whether the environment sends curl to a proxy.
    pub proxied: bool,
}

/// Runs the demo to its end, or until Ctrl-C. Returns whether everything went well; an error is
/// one of the machine, not of the story.
pub fn run(settings: Settings) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupted = Interrupted::new()?;
        let page = Page::new(settings.colour, settings.terminal);
        let world = World::new(settings.dir.as_deref(), settings.keep)?;
        if settings.check {
            check(world, page, &mut interrupted).await
        } else {
            show(world, page, &mut interrupted, &settings).await
        }
    })
}

/// The workload of the demo, until the process is killed.
pub fn run_workload(listen: SocketAddr, name: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(workload::serve(listen, name));
    served.with_context(|| format!("can't serve on {listen}; choose another address"))
}

/// Ends the demo's processes once standard input ends.
pub fn run_warden() -> anyhow::Result<()> {
    family::warden()
}

/// The signals that end a demo.
struct Interrupted {
    signals: Vec<Signal>,
}

impl Interrupted {
    fn new() -> anyhow::Result<Interrupted> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let signals = kinds.into_iter().map(signal).collect::<Result<_, _>>()?;
        Ok(Interrupted { signals })
    }

    /// Completes at the next of them.
    async fn next(&mut self) {
        let each = self.signals.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures::future::select_all(each).await;
    }

    /// `work`, unless a signal comes first.
    async fn or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.next() => None,
            out = work => Some(out),
        }
    }
}

/// The whole story. The world is dropped at the end, however that comes: nothing stays behind.
async fn check(mut world: World, mut page: Page, interrupted: &mut Interrupted) -> anyhow::Result<bool> {
    if world.kept() {
        page.line(format!("The folders are kept in {}.\n", world.folder().display()));
    }
    let told = interrupted.or(story::check(&mut world, &mut page)).await;
    told.ok_or_else(|| broken_off(&page))
}

fn broken_off(page: &Page) -> anyhow::Error {
    // The row of the step that was under way has no end yet.
    page.line("");
    anyhow::anyhow!("interrupted; everything was ended")
}

/// The beginning of the story, then whatever the person tries, until Ctrl-C.
async fn show(
    mut world: World,
    mut page: Page,
    interrupted: &mut Interrupted,
    settings: &Settings,
) -> anyhow::Result<bool> {
    page.line("Two organisations that don't trust each other federate a service.\n");
    match interrupted.or(story::begin(&mut world, &mut page)).await {
        None => return Err(broken_off(&page)),
        Some(false) => return Ok(false),
        Some(true) => {}
    }
    let ledger = world.resolve(&world.acme.fqdn("ledger")).await.map_err(anyhow::Error::msg)?;
    let program = world.family.as_ref().map(|f| f.program().to_owned()).unwrap_or_default();
    page.commands(&world, &program, ledger, settings.proxied);
    interrupted.or(watch(&mut world, &page)).await;
    page.line("\nStopping both ...");
    let stopping = async {
        for site in [&mut world.globex, &mut world.acme] {
            if let Some(agent) = site.agent.take() {
                agent.stop(STOP_TIME).await;
            }
        }
    };
    // A second Ctrl-C: they are killed.
    interrupted.or(stopping).await;
    drop(world);
    page.line("Nothing is left running.");
    Ok(true)
}

/// Says when an agent ends: it was killed to see what happens, or something is wrong.
async fn watch(world: &mut World, page: &Page) {
    loop {
        for site in [&mut world.acme, &mut world.globex] {
            if let Some(status) = site.agent.as_mut().and_then(family::Child::ended) {
                site.agent = None;
                page.line(format!("{}'s agent ended: {status}", site.name));
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
