//! Two folders, each made by `hamlet init`'s own code, then told of the other; and a line to each
//! that is as long as one between two sites.

use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hamlet::config::init::{InitOptions, init};
use hamlet_core::{MeshName, TrustDomain};
use hamlet_runtime::{Spawner, SystemClock};
use hamlet_testkit::chaos::{ChaosProxy, Flow, Weather};
use rand::Rng;
use rand::rngs::StdRng;

/// The mesh whose services change.
pub(super) const OWNER: &str = "owner";
/// The mesh that imports them.
pub(super) const CONSUMER: &str = "consumer";
/// Port of the ingress that the owner tells of; nobody calls it.
const INGRESS_PORT: u16 = 7444;

/// The line between the two. Over plain loopback a burst is answered before a kill can hit it:
/// with a round trip of 40 ms and 8 Mbit/s, messages are under way for as long as between sites.
pub(super) const LINE: Weather = Weather {
    delay: Duration::from_millis(20),
    jitter: Duration::from_millis(5),
    bytes_a_second: NonZeroU64::new(1_000_000),
    piece: None,
    up: Flow::Open,
    down: Flow::Open,
};

/// Where an agent listens, and the line that leads there.
pub(super) struct Way {
    port: u16,
    /// Carries the other's connections.
    pub(super) line: ChaosProxy,
}

impl Way {
    /// To an agent that isn't there yet.
    pub(super) async fn new(spawner: &Spawner) -> anyhow::Result<Way> {
        let port = free_port()?;
        let line = ChaosProxy::start(SocketAddr::from(([127, 0, 0, 1], port)), LINE, spawner).await?;
        Ok(Way { port, line })
    }
}

/// Makes both folders below `above`.
pub(super) fn folders(above: &Path, owner: &Way, consumer: &Way) -> anyhow::Result<()> {
    for (own, peer, way, away) in [(OWNER, CONSUMER, owner, consumer), (CONSUMER, OWNER, consumer, owner)] {
        let folder = above.join(own);
        let options = InitOptions {
            mesh: MeshName::parse(own)?,
            trust_domain: TrustDomain::parse(&format!("{own}.example"))?,
            hosts: vec![],
            advertise: vec![],
            clock: SystemClock::shared(),
        };
        init(&folder, &options)?;
        std::fs::remove_file(folder.join("service-example.yaml"))?;
        std::fs::write(folder.join("mesh.yaml"), mesh(own, way.port))?;
        std::fs::write(folder.join("peer.yaml"), peer_document(own, peer, away.line.address()))?;
    }
    for (own, peer) in [(OWNER, CONSUMER), (CONSUMER, OWNER)] {
        let bundle = above.join(own).join(format!("{peer}-ca.pem"));
        std::fs::copy(above.join(peer).join("identity/ca.pem"), bundle)?;
    }
    Ok(())
}

/// A port that a restarted agent can bind again: below those that the system gives to
/// connections.
pub(super) fn free_port() -> anyhow::Result<u16> {
    let free = |port: &u16| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], *port))).is_ok();
    let mut rng = rand::rng();
    (0..100).map(|_| rng.random_range(20_000..30_000)).find(free).context("no free port on loopback")
}

fn mesh(own: &str, port: u16) -> String {
    format!(
        "\
apiVersion: hamlet.dev/v1
kind: Mesh
metadata: {{name: {own}}}
spec:
  trustDomain: {own}.example
  identity:
    authority: {{folder: identity}}
  listen: {{agent: \"127.0.0.1:{port}\", ingress: off, egressHttp: off, dns: off, admin: off}}
  advertise: {{ingress: [\"127.0.0.1:{INGRESS_PORT}\"]}}
  egress: {{listeners: 0}}
  brake: {{percent: 100}}
"
    )
}

/// The guard is off, and the brake at the source: deletions are part of the stream, and they would hold them back.
fn peer_document(own: &str, peer: &str, address: SocketAddr) -> String {
    let (extra, policy) = if own == OWNER {
        let publication = format!(
            "\
kind: Publication
metadata: {{name: all}}
spec: {{services: {{all: true}}, peers: [{peer}]}}
"
        );
        ("import: false", publication)
    } else {
        let import = format!(
            "\
kind: Import
metadata: {{name: {peer}}}
spec:
  peer: {peer}
  names: {{suffixes: [{peer}.example]}}
  endpoints: {{ranges: [127.0.0.1/32], ports: [{INGRESS_PORT}]}}
"
        );
        ("guard: {percent: 100}", import)
    };
    format!(
        "\
apiVersion: hamlet.dev/v1
kind: Peer
metadata: {{name: {peer}}}
spec:
  address: {address}
  trustDomain: {peer}.example
  trust: {{bundle: {peer}-ca.pem}}
  agentIds: [\"spiffe://{peer}.example/hamlet/agent\"]
  gatewayIds: [\"spiffe://{peer}.example/hamlet/gateway\"]
  {extra}
---
apiVersion: hamlet.dev/v1
{policy}"
    )
}

/// A number of milliseconds below `max`, as the seed has it.
pub(super) fn moment(rng: &mut StdRng, max: u64) -> std::time::Duration {
    std::time::Duration::from_micros(rng.random_range(0..max * 1000))
}

#[cfg(test)]
mod tests {
    use hamlet_runtime::{Shutdown, Supervisor};
    use rand::SeedableRng;

    use super::super::model::Model;
    use super::*;

    #[tokio::test]
    async fn both_folders_load_without_a_warning_also_with_services() {
        let above = tempfile::tempdir().unwrap();
        let tasks = Supervisor::new(Shutdown::new());
        let spawner = tasks.spawner();
        let (owner, consumer) = (Way::new(&spawner).await.unwrap(), Way::new(&spawner).await.unwrap());
        folders(above.path(), &owner, &consumer).unwrap();
        let mut model = Model::new(above.path().join(OWNER));
        model.change(300, &mut StdRng::seed_from_u64(3));
        model.write().unwrap();
        for own in [OWNER, CONSUMER] {
            let loaded = hamlet::config::load(&above.path().join(own)).unwrap_or_else(|p| panic!("{p}"));
            assert_eq!(loaded.warnings, []);
            assert_eq!(loaded.config.peers.len(), 1);
            assert_eq!(loaded.config.services.len(), if own == OWNER { model.len() } else { 0 });
        }
    }
}
