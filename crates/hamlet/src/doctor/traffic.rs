//! Looks at the way that calls take: our listeners, the far gateways, and the names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use futures::StreamExt;
use hamlet_adapters::dns::ask;
use hamlet_admin::api::{Origin, ServiceStatus};
use hamlet_core::Fqdn;
use tokio::net::{TcpListener, TcpStream};

use super::house::Asked;
use super::{AT_ONCE, Examination, Finding, age};

/// Most gateways of one peer that are knocked at.
const GATEWAYS_MAX: usize = 32;

/// The ports of our own: free if no agent runs, taken by it if one does (its own report says so).
pub(super) async fn listeners(look: &Examination<'_>, agent: Option<&Asked>) -> Vec<Finding> {
    if let Some(agent) = agent {
        let bound = agent.report.agent.listeners.iter().filter(|l| l.error.is_none());
        let list: Vec<String> = bound.map(|l| format!("{} {}", l.name, l.address)).collect();
        return vec![Finding::pass("listeners", list.join(", "))];
    }
    let listen = &look.config.mesh.listen;
    let wanted = [
        ("agent", listen.agent),
        ("ingress", listen.ingress),
        ("egressHttp", listen.egress_http),
        ("dns", listen.dns),
        ("admin", listen.admin),
    ];
    let mut findings = vec![];
    for (name, address) in wanted.into_iter().filter_map(|(name, at)| at.map(|at| (name, at))) {
        let about = format!("listeners/{name}");
        // Dropped at once, before anybody could connect.
        findings.push(match TcpListener::bind(address).await {
            Ok(_) => Finding::pass(about, format!("{address} is free")),
            Err(error) => {
                let remedy = format!("end what listens there (`ss -ltnp`), or change spec.listen.{name}");
                Finding::fail(about, format!("{address}: {error}"), remedy)
            }
        });
    }
    findings
}

fn imported(agent: &Asked) -> impl Iterator<Item = (&str, &ServiceStatus)> {
    agent.services.iter().filter_map(|service| match &service.origin {
        Origin::Imported { peer } => Some((peer.as_str(), service)),
        Origin::Local => None,
    })
}

/// The gateways of the peers: whether their ports take a connection from here.
pub(super) async fn gateways(look: &Examination<'_>, agent: &Asked) -> Vec<Finding> {
    let mut points: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (peer, service) in imported(agent) {
        let endpoints = service.instances.iter().flat_map(|i| i.endpoints.iter().map(String::as_str));
        points.entry(peer).or_default().extend(endpoints);
    }
    let mut findings = vec![];
    for (peer, points) in points {
        let about = format!("gateway/{peer}");
        let knocks = points.iter().take(GATEWAYS_MAX).map(|point| async move {
            match tokio::time::timeout(look.patience, TcpStream::connect(point)).await {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(format!("{point}: {error}")),
                Err(_) => Some(format!("{point}: no answer in {}", age(look.patience))),
            }
        });
        let knocked: Vec<_> = futures::stream::iter(knocks).buffered(AT_ONCE).collect().await;
        let all = knocked.len();
        let closed: Vec<String> = knocked.into_iter().flatten().collect();
        let shown = closed.join("; ");
        let remedy = format!(
            "see whether the gateway of {peer} runs, and whether a firewall on the way lets its port through"
        );
        findings.push(match closed.len() {
            0 => Finding::pass(about, format!("{all} reachable")),
            n if n == all => Finding::fail(about, format!("none of {all} can be reached: {shown}"), remedy),
            n => Finding::warn(about, format!("{n} of {all} can't be reached: {shown}"), remedy),
        });
    }
    findings
}

/// One imported name of each peer, asked from our DNS listener and then the way that workloads ask.
pub(super) async fn names(look: &Examination<'_>, agent: &Asked) -> Vec<Finding> {
    let mut findings = vec![];
    let mut seen = BTreeSet::new();
    let listener = agent.report.agent.listeners.iter().find(|l| l.name == "dns" && l.error.is_none());
    for (peer, service) in imported(agent) {
        let Some(wanted) = egress_of(service) else { continue };
        if !seen.insert(peer) {
            continue;
        }
        let Ok(name) = Fqdn::parse(&service.fqdn) else { continue };
        if let Some(server) = listener.and_then(|l| l.address.parse::<SocketAddr>().ok()) {
            findings.push(at_ours(look, reachable(server), &name, wanted).await);
        }
        findings.push(at_the_system(look, &name, wanted, listener.map(|l| l.address.as_str())).await);
    }
    findings
}

/// The address behind the service's own name.
fn egress_of(service: &ServiceStatus) -> Option<IpAddr> {
    Some(service.egress.first()?.parse::<SocketAddr>().ok()?.ip())
}

/// A listener on all addresses is asked on loopback.
fn reachable(server: SocketAddr) -> SocketAddr {
    match server.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => ([127, 0, 0, 1], server.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, server.port()).into(),
        _ => server,
    }
}

async fn at_ours(look: &Examination<'_>, server: SocketAddr, name: &Fqdn, wanted: IpAddr) -> Finding {
    match tokio::time::timeout(look.patience, ask(server, name)).await {
        Ok(Ok(got)) if got.contains(&wanted) => {
            Finding::pass("dns", format!("{server} answers {name} with {wanted}"))
        }
        Ok(Ok(got)) => {
            let text = format!("{server} answers {name} with {got:?}, not with {wanted}");
            Finding::fail("dns", text, "look again in a moment; if it stays, see the agent's log")
        }
        Ok(Err(error)) => Finding::of_error("dns", error),
        Err(_) => {
            let text = format!("{server} gave no answer in {}", age(look.patience));
            Finding::fail("dns", text, "see whether something on this machine blocks UDP to that port")
        }
    }
}

async fn at_the_system(
    look: &Examination<'_>,
    name: &Fqdn,
    wanted: IpAddr,
    listener: Option<&str>,
) -> Finding {
    let about = "dns/resolver";
    let asked = tokio::net::lookup_host((name.as_str(), 0));
    let got = match tokio::time::timeout(look.patience, asked).await {
        Ok(Ok(got)) => got.map(|at| at.ip()).collect::<BTreeSet<_>>(),
        Ok(Err(_)) | Err(_) => BTreeSet::new(),
    };
    if got.contains(&wanted) {
        return Finding::pass(about, format!("this machine's resolver leads {name} to {wanted}"));
    }
    let suffix = name.as_str().split_once('.').map_or(name.as_str(), |(_, suffix)| suffix);
    let remedy = match listener {
        Some(at) => format!(
            "forward {suffix} to {at} in the resolver that your workloads use (see docs/operate/names-and-addresses.md)"
        ),
        None => {
            "switch on spec.listen.dns and forward the imported names to it, or name the addresses yourself"
                .to_owned()
        }
    };
    let found = match got.first() {
        Some(other) => format!("this machine's resolver leads {name} to {other}, not to {wanted}"),
        None => format!("this machine's resolver doesn't know {name}"),
    };
    // Workloads may use another resolver than this machine.
    Finding::warn(about, found, remedy)
}
