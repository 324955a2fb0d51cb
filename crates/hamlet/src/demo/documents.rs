//! The YAML documents of the demo's two meshes, as a person would write them. Texts only.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::site::Site;
use crate::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};

/// `mesh.yaml`, in place of the one that `init` wrote: addresses of its own, on loopback.
pub(super) fn mesh(site: &Site, peer: &Site) -> String {
    let Site { name, domain, ports, block, .. } = site;
    format!(
        "\
# One of the two meshes of `hamlet demo`. Both run on this machine, so each has loopback addresses of
# its own. Made by `hamlet init`, which writes the same with comments for real use.
apiVersion: hamlet.dev/v1
kind: Mesh
metadata:
  name: {name}
spec:
  trustDomain: {domain}
  identity:
    authority: {{folder: identity}}
  listen:
    agent: {agent}
    ingress: {ingress}
    egressHttp: {egress_http}
    dns: {dns}
    admin: {admin}
  advertise:
    ingress: [\"{ingress}\"]
  data: data
  egress:
    pool: {pool}
  dns:
    # Nobody else answers for {theirs} here, so unknown names under it get NXDOMAIN.
    zones: [{{suffix: {theirs}, exclusive: true}}]
",
        agent = ports.agent,
        ingress = ports.ingress,
        egress_http = ports.egress_http,
        dns = ports.dns,
        admin = ports.admin,
        pool = block.pool(),
        theirs = peer.domain,
    )
}

/// `peer-NAME.yaml`: who the other mesh is, and what we accept from it.
pub(super) fn peer(peer: &Site) -> String {
    let Site { name, domain, ports, .. } = peer;
    format!(
        "\
apiVersion: hamlet.dev/v1
kind: Peer
metadata:
  name: {name}
spec:
  address: {agent}
  trustDomain: {domain}
  trust:
    bundle: {bundle}
  agentIds: [\"spiffe://{domain}/{AGENT_ID_PATH}\"]
  gatewayIds: [\"spiffe://{domain}/{GATEWAY_ID_PATH}\"]
---
apiVersion: hamlet.dev/v1
kind: Import
metadata:
  name: {name}
spec:
  peer: {name}
  names:
    suffixes: [{domain}]
  endpoints:
    # Only because the demo runs on loopback. Real peers have addresses of their own; loopback and
    # private ones are refused unless they are listed.
    ranges: [127.0.0.0/8]
    ports: [{ingress}]
",
        agent = ports.agent,
        ingress = ports.ingress.port(),
        bundle = bundle_file(name),
    )
}

/// Where a mesh keeps the CA certificate of its peer, from its folder.
pub(super) fn bundle_file(peer: &str) -> String {
    format!("peers/{peer}-ca.pem")
}

/// A service with one instance, or with further ones.
pub(super) struct ServiceText<'a> {
    pub(super) name: &'a str,
    pub(super) domain: &'a str,
    pub(super) description: &'a str,
    /// The port that consumers use.
    pub(super) port: u16,
    /// Instance ids, each with its backend.
    pub(super) instances: &'a [(&'a str, SocketAddr)],
}

/// `service-NAME.yaml`.
pub(super) fn service(service: &ServiceText<'_>) -> String {
    let ServiceText { name, domain, description, port, instances } = service;
    let mut text = format!(
        "\
# A service that runs here. Nobody sees it before a Publication says so.
apiVersion: hamlet.dev/v1
kind: Service
metadata:
  name: {name}
spec:
  fqdn: {name}.{domain}
  description: {description}
  instances:
"
    );
    for (id, backend) in *instances {
        let _ = write!(
            text,
            "    - id: {id}
      protocol: HTTP
      port: {port}                     # what consumers use
      backends: [\"{backend}\"]     # where it runs
      caller: http-header            # it is told the proven caller in x-hamlet-caller
"
        );
    }
    text
}

/// `publication-NAME.yaml`: one service, visible to one peer.
pub(super) fn publication(service: &str, peer: &str) -> String {
    format!(
        "\
# Without this file nobody sees {service}. Move it away, and it is withdrawn.
apiVersion: hamlet.dev/v1
kind: Publication
metadata:
  name: {service}-to-{peer}
spec:
  services:
    names: [{service}]
  peers: [{peer}]
"
    )
}
