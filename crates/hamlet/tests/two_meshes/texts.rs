//! Configuration documents as a person writes them. Texts only.

use std::fmt::Write as _;
use std::net::SocketAddr;

use hamlet::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};
use hamlet_core::Fqdn;

use crate::mesh::Mesh;

/// `mesh.yaml`; `more` are further lines of its spec.
pub(crate) fn mesh(mesh: &Mesh, more: &str) -> String {
    let Mesh { name, domain, at, block, .. } = mesh;
    let hosts: Vec<&str> = mesh.hosts.iter().map(Fqdn::as_str).collect();
    let hosts = if hosts.is_empty() { String::new() } else { format!(", hosts: [{}]", hosts.join(", ")) };
    format!(
        "\
apiVersion: hamlet.dev/v1
kind: Mesh
metadata: {{name: {name}}}
spec:
  trustDomain: {domain}
  identity:
    authority: {{folder: identity{hosts}}}
  listen: {{agent: {}, ingress: {}, egressHttp: {}, dns: {}, admin: {}}}
  advertise: {{ingress: [\"{}\"]}}
  data: ../{name}-data
  socket: ../{name}.sock
  egress: {{pool: {}}}
{more}",
        at.agent,
        at.ingress,
        at.egress_http,
        at.dns,
        at.health,
        at.ingress,
        block.pool()
    )
}

/// A Peer document; `more` are further lines of its spec.
pub(crate) fn peer(peer: &Mesh, more: &str) -> String {
    let Mesh { name, domain, at, .. } = peer;
    format!(
        "\
apiVersion: hamlet.dev/v1
kind: Peer
metadata: {{name: {name}}}
spec:
  address: {}
  trustDomain: {domain}
  trust: {{bundle: peers/{name}-ca.pem}}
  agentIds: [\"spiffe://{domain}/{AGENT_ID_PATH}\"]
  gatewayIds: [\"spiffe://{domain}/{GATEWAY_ID_PATH}\"]
{more}",
        at.agent
    )
}

/// An Import document that accepts what the peer has, loopback included because the test runs there.
pub(crate) fn import(peer: &Mesh) -> String {
    let ports = peer.at.ingress.port();
    import_with(peer, &[peer.domain], &format!("{{ranges: [127.0.0.0/8], ports: [{ports}]}}"), "")
}

/// An Import document; `more` are further lines of its spec.
pub(crate) fn import_with(peer: &Mesh, suffixes: &[&str], endpoints: &str, more: &str) -> String {
    format!(
        "\
apiVersion: hamlet.dev/v1
kind: Import
metadata: {{name: {name}}}
spec:
  peer: {name}
  names: {{suffixes: [{}]}}
  endpoints: {endpoints}
{more}",
        suffixes.join(", "),
        name = peer.name
    )
}

/// A Service.
pub(crate) struct ServiceText<'a> {
    pub(crate) name: &'a str,
    pub(crate) fqdn: &'a str,
    pub(crate) protocol: &'a str,
    /// The port that consumers use.
    pub(crate) port: u16,
    pub(crate) backends: &'a [SocketAddr],
    pub(crate) caller: &'a str,
}

impl ServiceText<'_> {
    /// Its document.
    pub(crate) fn text(&self) -> String {
        let ServiceText { name, fqdn, protocol, port, caller, .. } = self;
        let backends: Vec<String> = self.backends.iter().map(|b| format!("\"{b}\"")).collect();
        let mut text = String::new();
        let _ = write!(
            text,
            "\
apiVersion: hamlet.dev/v1
kind: Service
metadata: {{name: {name}}}
spec:
  fqdn: {fqdn}
  protocol: {protocol}
  port: {port}
  backends: [{}]
  caller: {caller}
",
            backends.join(", ")
        );
        text
    }
}

/// A Publication of services, by name, to one peer.
pub(crate) fn publication(name: &str, services: &[&str], peer: &str) -> String {
    format!(
        "\
apiVersion: hamlet.dev/v1
kind: Publication
metadata: {{name: {name}}}
spec:
  services: {{names: [{}]}}
  peers: [{peer}]
",
        services.join(", ")
    )
}
