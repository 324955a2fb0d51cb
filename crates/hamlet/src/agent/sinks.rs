//! From imports to addresses, egress routes and names. Woken by any change, told of none: it
//! looks at what is in force and makes the sinks agree with it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hamlet_adapters::dns::{Zone, ZoneSuffix};
use hamlet_core::Fqdn;
use hamlet_gateway::{AddressName, EgressTable};
use hamlet_runtime::Shutdown;

use super::Agent;
use super::state::POOL_DOCUMENT;

/// At most 50 updates a second, whatever a peer does (threat T8).
const COALESCE: Duration = Duration::from_millis(20);
/// A heavy catalogue is computed less often: the pause is this many times the last computation.
const PAUSE_FACTOR: u32 = 4;

impl Agent {
    /// Makes the sinks agree once, then keeps them so.
    pub(super) async fn start_sinks(self: &Arc<Agent>) {
        self.reconcile_sinks().await;
        let agent = self.clone();
        let shutdown = self.spawner.shutdown();
        self.spawner.spawn("sinks", async move { agent.keep_sinks(shutdown).await });
    }

    async fn keep_sinks(self: Arc<Agent>, shutdown: Shutdown) {
        let mut changed = self.imported.changed();
        let mut due = self.sinks_due.subscribe();
        'reconciling: loop {
            tokio::select! {
                Ok(()) = changed.changed() => {}
                Ok(()) = due.changed() => {}
                () = shutdown.begun() => break 'reconciling,
            }
            let began = self.clock.now();
            self.reconcile_sinks().await;
            let took = self.clock.now().saturating_sub(began);
            let pause = COALESCE.max(took * PAUSE_FACTOR);
            if shutdown.or_begun(tokio::time::sleep(pause)).await.is_none() {
                break 'reconciling;
            }
        }
    }

    async fn reconcile_sinks(&self) {
        let config = self.config();
        let imports = self.imported.snapshot();
        let wanted = AddressName::wanted(imports.iter().map(AsRef::as_ref));
        let (table, saved) = {
            let mut pool = self.pool.lock();
            let changed = pool.assign(&wanted, self.clock.wall());
            (EgressTable::build(&imports, &pool), changed.then(|| pool.to_bytes()))
        };
        // Durable before it is used: a name keeps its address over a crash.
        if let Some(bytes) = saved
            && let Err(error) = self.store.put_document(POOL_DOCUMENT, bytes).await
        {
            tracing::error!(%error, "egress addresses could not be saved; they may change at a restart");
        }
        let addresses: BTreeMap<Fqdn, IpAddr> =
            table.routes().iter().filter_map(|r| Some((r.name.clone(), r.listen?.ip()))).collect();
        let zones = config.mesh.dns.zones.iter();
        let suffixes = zones.map(|z| ZoneSuffix { suffix: z.suffix.clone(), exclusive: z.exclusive });
        let ttl = u32::try_from(config.mesh.dns.ttl.as_secs()).unwrap_or(u32::MAX);
        let serial = self.zone_serial.fetch_add(1, Ordering::Relaxed) as u32;
        let zone = Zone::of_imports(&imports, |name| addresses.get(name).copied(), suffixes, ttl, serial);
        self.gateway.set_egress(table);
        self.zone.store(Arc::new(zone));
        self.bump();
    }
}
