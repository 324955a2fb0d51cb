//! Trust and everything that listens. A port that can't be had fails the start with its name and
//! remedy. A listener whose identity can't be used isn't bound until it can; nothing falls back to
//! less, and the rest goes on.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hamlet_adapters::dns::DnsServer;
use hamlet_admin::api::ListenerStatus;
use hamlet_admin::server::{AdminSocket, start_health};
use hamlet_gateway::{Gateway, GatewayConfig, Limits};
use hamlet_identity::{TrustTable, WorkloadApi};
use hamlet_protocol::server::{AgentServer, ServerContext};
use hamlet_runtime::{Clock, Spawner};
use tokio::runtime::Runtime;

use super::Agent;
use super::bundles::BundleServer;
use super::identity::{self, OwnIdentity};
use super::peering::PeeringAnnex;
use crate::config::Config;

/// How long a listener that came late waits before it tries its port again.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// Who we are, whom we trust, and the gateway, which lives on a runtime of its own.
pub(super) struct Entered {
    pub(super) trust: Arc<TrustTable>,
    pub(super) own: OwnIdentity,
    /// Where our identity and bundles come from, if it is a Workload API.
    pub(super) workload_api: Option<Arc<WorkloadApi>>,
    pub(super) gateway: Gateway,
}

/// Loads our identity and starts the gateway with empty tables; nobody is trusted yet, since what
/// proves some peers is in the store.
pub(super) async fn gateway(
    config: &Config,
    workload_api: Option<Arc<WorkloadApi>>,
    clock: Arc<dyn Clock>,
    spawner: Spawner,
    traffic: &Runtime,
) -> anyhow::Result<Entered> {
    let mesh = &config.mesh;
    let own = identity::load(mesh, workload_api.as_ref(), &clock)?;
    let trust = TrustTable::new(clock.clone());
    trust.set_own_trust_domain(mesh.trust_domain.clone());
    let settings = GatewayConfig {
        ingress: mesh.listen.ingress,
        egress_http: mesh.listen.egress_http,
        connect_timeout: mesh.egress.connect_timeout,
        idle_timeout: mesh.egress.idle_timeout,
        drain: mesh.egress.drain,
        limits: Limits {
            egress_listeners: mesh.egress.listeners,
            silent_per_prefix: Some(mesh.limits.silent_per_prefix),
            ..Limits::default()
        },
    };
    // Started on its own runtime, so that its tasks live there.
    let (gateway, minter) = (own.gateway.clone(), own.minter.clone());
    let starting = Gateway::start(settings, gateway, minter, trust.clone(), spawner, clock);
    let started = traffic.handle().spawn(starting).await;
    let gateway = started.context("starting the gateway was interrupted")??;
    Ok(Entered { trust, own, workload_api, gateway })
}

/// Where everything listens, once it does.
pub(super) struct Bound {
    listeners: Vec<(String, String)>,
}

impl Bound {
    /// Says where everything listens.
    pub(super) fn log(&self) {
        for (listener, address) in &self.listeners {
            tracing::info!(listener, address, "listening");
        }
    }

    /// Writes the addresses as one JSON object, whole or not at all.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let object: serde_json::Map<String, serde_json::Value> =
            self.listeners.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        let text = serde_json::to_string_pretty(&object)?;
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, text + "\n")
            .and_then(|()| std::fs::rename(&temporary, path))
            .with_context(|| format!("{}: can't be written; check --ready-file", path.display()))
    }
}

/// Binds what peers, resolvers and operators talk to.
pub(super) async fn start(agent: &Arc<Agent>, admin: &Spawner) -> anyhow::Result<Bound> {
    let config = agent.config();
    let mut listeners = vec![];
    let mut note = |name: &str, address: SocketAddr| listeners.push((name.to_owned(), address.to_string()));
    if let Some(address) = config.mesh.listen.agent {
        if agent.agent_identity.unusable().is_none() {
            let server = AgentServer::bind(address).await?;
            note("agent", server.local_addr());
            listen_for_agents(agent, server);
        } else {
            let waiting = wait_for_identity(agent.clone(), address);
            agent.spawner.spawn("agent", waiting);
        }
    }
    if let Some(address) = agent.gateway.ingress_addr() {
        note("ingress", address);
    }
    if let Some(address) = agent.gateway.egress_http_addr() {
        note("egress-http", address);
    }
    if let Some(address) = config.mesh.listen.dns {
        let server = DnsServer::bind(address).await?;
        note("dns", server.local_addr());
        *agent.dns.lock() = Some(server.counters());
        let run = server.run(agent.zone.clone(), agent.spawner.clone(), agent.spawner.shutdown());
        agent.spawner.spawn("dns", run);
    }
    if let Some(settings) = &config.mesh.bundle_endpoint
        && let Some(address) = settings.listen
    {
        let server = BundleServer::bind(agent, address, settings).await?;
        note("bundle", server.local_addr());
        agent.spawner.spawn("bundle", server.run(agent.clone(), agent.spawner.shutdown()));
    }
    if let Some(address) = config.mesh.listen.admin {
        note("health", start_health(address, agent.clone(), admin, admin.shutdown()).await?);
    }
    let socket = AdminSocket::start(&config.mesh.socket, agent.clone(), admin, admin.shutdown()).await?;
    let waits = |(name, _): &(String, String)| name != "agent" && name != "ingress";
    *agent.listening.lock() = listeners.iter().filter(|l| waits(l)).cloned().collect();
    listeners.push(("socket".to_owned(), socket.path().display().to_string()));
    Ok(Bound { listeners })
}

fn listen_for_agents(agent: &Arc<Agent>, server: AgentServer) {
    *agent.agent_listener.lock() = Some(Ok(server.local_addr()));
    let context = ServerContext {
        links: agent.links.clone(),
        trust: agent.trust.clone(),
        identity: agent.agent_identity.clone(),
        clock: agent.clock.clone(),
        spawner: agent.spawner.clone(),
    };
    let server = server.limited(agent.connection_limits.clone());
    let server = server.with_annex(Arc::new(PeeringAnnex(agent.clone())));
    agent.spawner.spawn("agent", server.run(context, agent.spawner.shutdown()));
    agent.bump();
}

/// Binds the agent's listener as soon as there is something to prove; until then nobody is answered
/// there.
async fn wait_for_identity(agent: Arc<Agent>, address: SocketAddr) {
    let shutdown = agent.spawner.shutdown();
    let mut changed = agent.agent_identity.changed();
    while agent.agent_identity.unusable().is_some() {
        if !matches!(shutdown.or_begun(changed.changed()).await, Some(Ok(()))) {
            return;
        }
    }
    loop {
        match AgentServer::bind(address).await {
            Ok(server) => {
                tracing::info!(listener = "agent", address = %server.local_addr(), "listening");
                return listen_for_agents(&agent, server);
            }
            Err(error) => {
                let text = error.to_string();
                let before = agent.agent_listener.lock().replace(Err(text.clone()));
                if before != Some(Err(text)) {
                    tracing::error!(%error, "the agent's port does not listen; tried again");
                }
            }
        }
        if shutdown.or_begun(tokio::time::sleep(BIND_AGAIN)).await.is_none() {
            return;
        }
    }
}

impl Agent {
    /// Every listener that is configured: where it is, or why it isn't.
    pub(super) fn listeners(&self) -> Vec<ListenerStatus> {
        let listen = self.config().mesh.listen.clone();
        let mut out = vec![];
        let mut add = |name: &str, at: Option<SocketAddr>, address: SocketAddr, why: Option<String>| {
            let error = at.is_none().then(|| why.unwrap_or_else(|| "it starts at this moment".to_owned()));
            let address = at.unwrap_or(address).to_string();
            out.push(ListenerStatus { name: name.to_owned(), address, error });
        };
        if let Some(address) = listen.agent {
            let bound = self.agent_listener.lock().clone();
            let why = self.agent_identity.unusable().or_else(|| bound.clone().and_then(Result::err));
            add("agent", bound.and_then(Result::ok), address, why);
        }
        if let Some(address) = listen.ingress {
            add("ingress", self.gateway.ingress_addr(), address, self.gateway.ingress_problem());
        }
        let others = self.listening.lock().clone();
        let listening = |(name, address)| ListenerStatus { name, address, error: None };
        out.extend(others.into_iter().map(listening));
        out
    }
}
