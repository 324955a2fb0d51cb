//! Identity, trust and everything that listens. A listener that can't be had fails the start with
//! its name and remedy; nothing falls back to less.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use hamlet_adapters::dns::DnsServer;
use hamlet_admin::server::{AdminSocket, start_health};
use hamlet_gateway::{Gateway, GatewayConfig, Limits};
use hamlet_identity::ca::LocalCa;
use hamlet_identity::{LocalIdentity, SniMinter, TrustTable};
use hamlet_protocol::server::{AgentServer, ServerContext};
use hamlet_runtime::{Clock, Spawner};
use tokio::runtime::Runtime;

use super::Agent;
use super::bundles::BundleServer;
use super::peering::PeeringAnnex;
use crate::config::{Config, PairFiles};

/// Who we are, whom we trust, and the gateway, which lives on a runtime of its own.
pub(super) struct Entered {
    pub(super) trust: Arc<TrustTable>,
    pub(super) agent_identity: Arc<LocalIdentity>,
    pub(super) gateway_identity: Arc<LocalIdentity>,
    pub(super) gateway: Gateway,
}

/// Loads our identity and starts the gateway with empty tables; nobody is trusted yet, since what
/// proves some peers is in the store.
pub(super) async fn gateway(
    config: &Config,
    clock: Arc<dyn Clock>,
    spawner: Spawner,
    traffic: &Runtime,
) -> anyhow::Result<Entered> {
    let mesh = &config.mesh;
    let identity = |pair: &PairFiles, what: &str| {
        LocalIdentity::from_pem_files(&pair.cert, &pair.key, clock.clone())
            .with_context(|| format!("the {what} identity (spec.identity.{what}) can't be used"))
    };
    let agent_identity = identity(&mesh.identity.agent, "agent")?;
    let gateway_identity = identity(&mesh.identity.gateway, "gateway")?;
    for (what, id) in [("agent", &agent_identity), ("gateway", &gateway_identity)] {
        let id = id.spiffe_id();
        anyhow::ensure!(
            *id.trust_domain() == mesh.trust_domain,
            "spec.identity.{what}: {id} is outside spec.trustDomain {}; issue a certificate of that domain",
            mesh.trust_domain
        );
    }
    let minter = match &mesh.identity.ca {
        Some(pair) => {
            let ca = LocalCa::open_files(&pair.cert, &pair.key, Some(&mesh.trust_domain), clock.clone())
                .context("the local CA (spec.identity.ca) can't be used")?;
            Some(SniMinter::new(Arc::new(ca), gateway_identity.clone(), clock.clone())?)
        }
        None => None,
    };
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
    let starting = Gateway::start(settings, gateway_identity.clone(), minter, trust.clone(), spawner, clock);
    let started = traffic.handle().spawn(starting).await;
    let gateway = started.context("starting the gateway was interrupted")??;
    Ok(Entered { trust, agent_identity, gateway_identity, gateway })
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
        let server = AgentServer::bind(address).await?.limited(agent.connection_limits.clone());
        let server = server.with_annex(Arc::new(PeeringAnnex(agent.clone())));
        note("agent", server.local_addr());
        let context = ServerContext {
            links: agent.links.clone(),
            trust: agent.trust.clone(),
            identity: agent.agent_identity.clone(),
            clock: agent.clock.clone(),
            spawner: agent.spawner.clone(),
        };
        agent.spawner.spawn("agent", server.run(context, agent.spawner.shutdown()));
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
    *agent.listening.lock() = listeners.clone();
    listeners.push(("socket".to_owned(), socket.path().display().to_string()));
    Ok(Bound { listeners })
}
