//! Who we are: from files that somebody puts there, from our own authority, or from a Workload API.
//!
//! Nothing here fails the start. What can't be used isn't presented: the listener or the dialling
//! that needs it waits, says why, and goes on as soon as it is mended.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use hamlet_admin::api::{AuthorityStatus, IdentityStatus, PlannedStatus};
use hamlet_identity::authority::state::LeafRole;
use hamlet_identity::ca::LocalCa;
use hamlet_identity::{
    Authority, AuthorityKeeper, LocalIdentity, SniMinter, SvidChoice, Validity, WorkloadApi,
};
use hamlet_runtime::Clock;

use super::Agent;
use crate::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};
use crate::config::{
    AuthorityConfig, IdentityConfig, IdentityFiles, MeshConfig, PairFiles, WorkloadApiConfig,
};

/// Our identities and what keeps them.
pub(super) struct OwnIdentity {
    /// What the agent proves.
    pub(super) agent: Arc<LocalIdentity>,
    /// What the gateways prove.
    pub(super) gateway: Arc<LocalIdentity>,
    /// Mints ingress certificates, where there is a CA.
    pub(super) minter: Option<Arc<SniMinter>>,
    /// Renews both, where we have an authority.
    pub(super) keeper: Option<Arc<AuthorityKeeper>>,
    /// Why the CA beside certificate files can't be used.
    pub(super) ca_problem: Option<String>,
}

/// Loads what is configured (blocking). The error is that of a trust domain which leaves no room for
/// our ids.
pub(super) fn load(
    mesh: &MeshConfig,
    workload_api: Option<&Arc<WorkloadApi>>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<OwnIdentity> {
    match &mesh.identity {
        IdentityConfig::Files(files) => from_files(mesh, files, clock),
        IdentityConfig::Authority(authority) => from_authority(mesh, authority, clock),
        IdentityConfig::WorkloadApi(config) => {
            let api = workload_api.context("the Workload API was not opened; please report this")?;
            from_workload_api(mesh, config, api, clock)
        }
    }
}

/// What the Workload API gives, or will give: nothing is minted, the ingress presents what it gives.
fn from_workload_api(
    mesh: &MeshConfig,
    config: &WorkloadApiConfig,
    api: &Arc<WorkloadApi>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<OwnIdentity> {
    let one = |choice: &SvidChoice, usual: &str| {
        let expected = match choice {
            SvidChoice::Id(id) => id.clone(),
            // Until it has come, only the Workload API knows which id has that hint.
            SvidChoice::Hint(_) | SvidChoice::Default => mesh.trust_domain.id(usual).context(NO_ROOM)?,
        };
        let provider = api.provider(choice.clone());
        anyhow::Ok(LocalIdentity::from_provider_or_wait(provider, expected, clock.clone()))
    };
    let agent = one(&config.agent, AGENT_ID_PATH)?;
    let gateway = one(&config.gateway, GATEWAY_ID_PATH)?;
    Ok(OwnIdentity { agent, gateway, minter: None, keeper: None, ca_problem: None })
}

const NO_ROOM: &str = "spec.trustDomain can't carry our ids; choose a shorter one";

fn wait_for(
    mesh: &MeshConfig,
    pair: &PairFiles,
    path: &str,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Arc<LocalIdentity>> {
    let id = mesh.trust_domain.id(path).context(NO_ROOM)?;
    Ok(LocalIdentity::from_pem_files_or_wait(&pair.cert, &pair.key, id, clock.clone()))
}

fn from_files(
    mesh: &MeshConfig,
    files: &IdentityFiles,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<OwnIdentity> {
    let agent = wait_for(mesh, &files.agent, AGENT_ID_PATH, clock)?;
    let gateway = wait_for(mesh, &files.gateway, GATEWAY_ID_PATH, clock)?;
    let opened = files.ca.as_ref().map(|pair| {
        let ca = LocalCa::open_files(&pair.cert, &pair.key, Some(&mesh.trust_domain), clock.clone())?;
        SniMinter::new(Arc::new(ca), gateway.clone(), clock.clone())
    });
    let (minter, ca_problem) = match opened {
        None => (None, None),
        Some(Ok(minter)) => (Some(minter), None),
        Some(Err(error)) => {
            tracing::error!(%error, "the CA in spec.identity.ca can't be used; ingress presents the gateway's own certificate");
            (None, Some(error.to_string()))
        }
    };
    Ok(OwnIdentity { agent, gateway, minter, keeper: None, ca_problem })
}

fn from_authority(
    mesh: &MeshConfig,
    config: &AuthorityConfig,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<OwnIdentity> {
    let settings = config.settings(&mesh.trust_domain, clock.clone()).context(NO_ROOM)?;
    let authority = Arc::new(Authority::new(settings)?);
    // Its error is told by the keeper; what it made before may still be good.
    let _ = authority.look(true);
    let leaf = |role, path| {
        let (cert, key) = authority.leaf_files(role);
        wait_for(mesh, &PairFiles { cert, key }, path, clock)
    };
    let agent = leaf(LeafRole::Agent, AGENT_ID_PATH)?;
    let gateway = leaf(LeafRole::Gateway, GATEWAY_ID_PATH)?;
    let minter = SniMinter::following(authority.issuer(), gateway.clone(), clock.clone())?;
    let presented: BTreeMap<LeafRole, Arc<LocalIdentity>> =
        [(LeafRole::Agent, agent.clone()), (LeafRole::Gateway, gateway.clone())].into();
    let keeper = AuthorityKeeper::new(authority, presented);
    // Once more, so that an error is in the log and in the status from the start.
    let _ = keeper.look();
    Ok(OwnIdentity { agent, gateway, minter: Some(minter), keeper: Some(keeper), ca_problem: None })
}

impl Agent {
    /// Lets the authority renew from now on.
    pub(super) fn start_keeper(&self) {
        if let Some(keeper) = self.keeper.clone() {
            let running = keeper.run(self.spawner.clone(), self.spawner.shutdown());
            self.spawner.spawn("authority", running);
        }
    }

    /// Our identities as operators see them.
    pub(super) fn identities(&self) -> Vec<IdentityStatus> {
        let wall = self.clock.wall();
        let renewed_by_us = self.keeper.is_some();
        let renewed_by_workload_api = self.workload_api.is_some();
        let one = |(role, id): (&str, &Arc<LocalIdentity>)| {
            let not_after = id.not_after();
            let leaf = id.chain().first().and_then(|der| Validity::of(der));
            IdentityStatus {
                role: role.to_owned(),
                id: id.spiffe_id().to_string(),
                not_before_s: leaf.map(|leaf| leaf.not_before).unwrap_or_default().as_secs(),
                not_after_s: not_after.as_secs(),
                expires_in_s: signed(not_after.as_secs()) - signed(wall.as_secs()),
                renewed_by_us,
                renewed_by_workload_api,
                error: id.last_error(),
            }
        };
        [("agent", &self.agent_identity), ("gateway", &self.gateway_identity)].into_iter().map(one).collect()
    }

    /// The authority as operators see it.
    pub(super) fn authority(&self) -> Option<AuthorityStatus> {
        let keeper = self.keeper.as_ref()?;
        let (authority, kept) = (keeper.authority(), keeper.kept());
        let state = authority.seen();
        let wall = signed(self.clock.wall().as_secs());
        let planned = state.as_ref().map(|state| authority.schedule(state)).unwrap_or_default();
        let active = state.as_ref().and_then(|state| state.active());
        Some(AuthorityStatus {
            folder: authority.settings().folder.display().to_string(),
            sequence: state.as_ref().map_or(0, |state| state.sequence),
            roots: state.as_ref().map_or(0, |state| state.roots.len() as u64),
            root_not_after_s: active.map_or(0, |root| root.not_after_s),
            issuing_not_after_s: state.as_ref().and_then(|s| s.issuing.as_ref()).map_or(0, |i| i.not_after_s),
            clock_believed: kept.settled,
            steps: kept.steps,
            failures: kept.failures,
            error: kept.error,
            planned: planned
                .iter()
                .map(|planned| PlannedStatus {
                    step: planned.step.to_string(),
                    in_s: (signed(planned.at.as_secs()) - wall).max(0),
                    why: planned.why.to_owned(),
                })
                .collect(),
            missing: vec![],
        })
    }
}

fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
