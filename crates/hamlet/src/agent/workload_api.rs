//! The Workload API in the agent: opened before anything else, and followed for as long as the agent
//! runs.
//!
//! What it gives is used by [`super::identity`], [`super::bundles`] and [`super::peers`]. Invariants: nothing waits for
//! it longer than [`FIRST_WAIT`], and what it said last stays in force while it is away: certificates
//! until they expire, bundles until it says otherwise.

use std::sync::Arc;
use std::time::Duration;

use hamlet_admin::api::WorkloadApiStatus;
use hamlet_identity::WorkloadApi;
use hamlet_runtime::Spawner;

use super::Agent;
use crate::config::{IdentityConfig, MeshConfig};

/// How long the start waits for the Workload API's first word. Without it the listeners open later.
const FIRST_WAIT: Duration = Duration::from_secs(3);

/// The configured Workload API, followed from now on; it has said something, or isn't waited for.
pub(super) async fn open(mesh: &MeshConfig, spawner: &Spawner) -> anyhow::Result<Option<Arc<WorkloadApi>>> {
    let IdentityConfig::WorkloadApi(config) = &mesh.identity else { return Ok(None) };
    let api = WorkloadApi::new(&config.socket)?;
    spawner.spawn("workload-api", api.clone().run(spawner.shutdown()));
    api.heard(FIRST_WAIT).await;
    Ok(Some(api))
}

impl Agent {
    /// Takes over from now on what the Workload API says.
    pub(super) fn start_workload_api(self: &Arc<Agent>) {
        let Some(api) = self.workload_api.clone() else { return };
        let (agent, shutdown) = (self.clone(), self.spawner.shutdown());
        let mut changed = api.changed();
        // What it said while the parts were put together.
        changed.mark_changed();
        self.spawner.spawn("workload-api/followed", async move {
            while let Some(Ok(())) = shutdown.or_begun(changed.changed()).await {
                agent.take_workload_api(&api).await;
            }
        });
    }

    async fn take_workload_api(&self, api: &WorkloadApi) {
        // A Workload API that is away renews nothing, although what it gave still holds.
        let problem = api.problem();
        for identity in [&self.agent_identity, &self.gateway_identity] {
            identity.note_renewal(problem.clone());
            match identity.reload() {
                Ok(true) => tracing::info!(id = %identity.spiffe_id(), "certificate renewed"),
                Ok(false) => {}
                Err(error) => {
                    let id = identity.spiffe_id();
                    tracing::warn!(%id, %error, "no new certificate; the last good one stays");
                }
            }
        }
        self.believe();
        self.refresh_own_bundle().await;
        self.reconcile_links(&self.config()).await;
        self.bump();
    }

    /// The Workload API as operators see it.
    pub(super) fn workload_api(&self) -> Option<WorkloadApiStatus> {
        let api = self.workload_api.as_ref()?;
        Some(WorkloadApiStatus {
            socket: api.endpoint().to_owned(),
            ids: api.ids().iter().map(ToString::to_string).collect(),
            bundles: api.bundles() as u64,
            lists: api.lists_in_force() as u64,
            lists_error: api.lists_problem(),
            error: api.problem(),
        })
    }
}
