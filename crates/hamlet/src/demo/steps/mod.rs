//! The steps of the story, by chapter. Each expects something of two running meshes, from outside,
//! with the tools that a user has; none looks into an agent's memory.

pub(super) mod calls;
pub(super) mod changes;
pub(super) mod crashes;
pub(super) mod ending;
pub(super) mod refusals;
pub(super) mod setup;

use serde_json::Value;

use super::probe::dns::{self, Code};
use super::site::{Site, workload_name};
use super::world::{Failed, Outcome, World, expect, failed, or_failed, until};

/// Exit code of `hamlet get` when there is nothing of that name.
const NOT_FOUND: i32 = 5;

/// Waits until `site` shows its peer in sync, with equal proofs both ways.
async fn in_sync(world: &World, site: &Site, peer: &Site) -> Result<(), Failed> {
    let expected = format!("{} in sync with {}, proven both ways", site.name, peer.name);
    until(&expected, async || {
        let status = world.got(site, &["peer", peer.name]).await?;
        let state = status["state"]["kind"].as_str().unwrap_or_default();
        let proofs = [&status["publish"]["proof"]["kind"], &status["import"]["proof"]["kind"]];
        let equal = proofs.iter().all(|proof| *proof == "equal");
        if state == "in-sync" && equal { Ok(()) } else { Err(peer_line(&status)) }
    })
    .await
}

/// Both agents in sync with each other.
async fn both_in_sync(world: &World) -> Result<(), Failed> {
    in_sync(world, &world.globex, &world.acme).await?;
    in_sync(world, &world.acme, &world.globex).await
}

/// A peer's state in a line.
fn peer_line(status: &Value) -> String {
    let proof = |way: &str| status[way]["proof"]["kind"].as_str().unwrap_or("-").to_owned();
    format!(
        "state {}, proofs {}/{}, last error {}",
        status["state"],
        proof("publish"),
        proof("import"),
        status["lastError"]["message"]
    )
}

/// Waits until an agent is ready.
async fn ready(world: &World, site: &Site) -> Result<(), Failed> {
    let file = site.ready_file(world.family()?);
    until(&format!("{}'s agent to be ready", site.name), async || {
        if file.exists() { Ok(()) } else { Err("it is not ready yet".to_owned()) }
    })
    .await
}

/// A call by name from globex, answered by the workload of acme's `service` which was told who
/// calls. Returns the answer in a line.
async fn answered(world: &World, name: &str, service: &str) -> Outcome {
    let workload = workload_name(service, world.acme.domain);
    let expected = format!("an answer of `{workload}` that names the caller {}", world.globex.domain);
    until(&expected, async || {
        let answer = world.call(name, "/hello").await?;
        let right = answer.text("workload") == workload && answer.text("callerMesh") == world.globex.domain;
        if right { Ok(format!("answer of `{workload}`")) } else { Err(answer.shown()) }
    })
    .await
}

/// Waits until globex knows no such service of acme any more: not in `get`, not in DNS, nobody at
/// its egress address, unknown to the shared HTTP listener.
async fn gone(world: &World, service: &str, address: std::net::Ipv4Addr) -> Result<(), Failed> {
    let name = world.acme.fqdn(service);
    let listed = format!("{}/{service}", world.acme.name);
    until(&format!("`hamlet get service {listed}` to end with exit code {NOT_FOUND}"), async || {
        let (code, seen) = world.get(&world.globex, &["service", &listed]).await?;
        if code == NOT_FOUND { Ok(()) } else { Err(format!("exit code {code}: {}", seen["standing"])) }
    })
    .await?;
    until(&format!("no such name as {name} in globex's DNS"), async || {
        let answer = dns::ask(world.globex.ports.dns, &name).await?;
        if answer.code == Code::NxDomain { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await?;
    let to = std::net::SocketAddr::from((address, world.service_port));
    until(&format!("nobody to listen on {to}"), async || match tokio::net::TcpStream::connect(to).await {
        Ok(_) => Err("a connection was accepted".to_owned()),
        Err(_) => Ok(()),
    })
    .await?;
    until(&format!("the shared HTTP listener not to know {name}"), async || {
        let answer = world.call_by_host(&name, "/hello").await?;
        let unknown = answer.status == 404 && answer.error.as_deref() == Some("unknown-host");
        if unknown { Ok(()) } else { Err(answer.shown()) }
    })
    .await
}
