//! Two folders: each made by `hamlet init`'s own code, then told of the other.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Context;
use hamlet::config::init::{InitOptions, init};
use hamlet_core::{MeshName, TrustDomain};
use hamlet_runtime::SystemClock;
use rand::Rng;
use rand::rngs::StdRng;

/// The mesh whose services change.
pub(super) const OWNER: &str = "owner";
/// The mesh that imports them.
pub(super) const CONSUMER: &str = "consumer";
/// Port of the ingress that the owner tells of; nobody calls it.
const INGRESS_PORT: u16 = 7444;

/// Makes both folders below `above`.
pub(super) fn folders(above: &Path) -> anyhow::Result<()> {
    let ports = [free_port()?, free_port()?];
    for (own, peer, own_port, peer_port) in
        [(OWNER, CONSUMER, ports[0], ports[1]), (CONSUMER, OWNER, ports[1], ports[0])]
    {
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
        std::fs::write(folder.join("mesh.yaml"), mesh(own, own_port))?;
        std::fs::write(folder.join("peer.yaml"), peer_document(own, peer, peer_port))?;
    }
    for (own, peer) in [(OWNER, CONSUMER), (CONSUMER, OWNER)] {
        let bundle = above.join(own).join(format!("{peer}-ca.pem"));
        std::fs::copy(above.join(peer).join("identity/ca.pem"), bundle)?;
    }
    Ok(())
}

/// A port that a restarted agent can bind again: below those that the system gives to
/// connections.
fn free_port() -> anyhow::Result<u16> {
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
    agent: {{cert: identity/agent.pem, key: identity/agent.key}}
    gateway: {{cert: identity/gateway.pem, key: identity/gateway.key}}
    ca: {{cert: identity/ca.pem, key: identity/ca.key}}
  listen: {{agent: \"127.0.0.1:{port}\", ingress: off, egressHttp: off, dns: off, admin: off}}
  advertise: {{ingress: [\"127.0.0.1:{INGRESS_PORT}\"]}}
  egress: {{listeners: 0}}
  brake: {{percent: 100}}
"
    )
}

/// The guard is off, and the brake at the source: deletions are part of the stream, and they would hold them back.
fn peer_document(own: &str, peer: &str, port: u16) -> String {
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
  address: 127.0.0.1:{port}
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
    use rand::SeedableRng;

    use super::super::model::Model;
    use super::*;

    #[test]
    fn both_folders_load_without_a_warning_also_with_services() {
        let above = tempfile::tempdir().unwrap();
        folders(above.path()).unwrap();
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
