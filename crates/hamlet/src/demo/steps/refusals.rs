//! Chapter four: what must not work, each beside what must.

use std::path::Path;

use hamlet_core::TrustDomain;
use hamlet_identity::LocalCa;
use hamlet_identity::ca::{CA_LIFETIME, LEAF_LIFETIME};
use hamlet_runtime::SystemClock;

use super::{NOT_FOUND, Outcome, World, answered, expect, failed, or_failed};
use crate::config::init::{AGENT_ID_PATH, GATEWAY_ID_PATH};
use crate::demo::probe::dns::{self, Code};
use crate::demo::probe::tls::{Heard, Knocker};
use crate::demo::world::Failed;

/// globex at acme's doors, with its real identities.
fn neighbour(world: &World) -> Result<Knocker, Failed> {
    let (identity, bundle) =
        (world.globex.folder.join("identity"), world.acme.folder.join("identity/ca.pem"));
    Knocker::new(&identity, world.acme.name, world.acme.domain, &bundle).map_err(or_failed("a client"))
}

/// A stranger at acme's doors: a CA of its own that gives itself ids of `domain`.
fn stranger(world: &World, domain: &str) -> Result<Knocker, Failed> {
    let folder = world.folder().join(format!("stranger-{domain}"));
    let make = |folder: &Path| -> anyhow::Result<()> {
        let domain = TrustDomain::parse(domain)?;
        let ca = LocalCa::create(folder, &domain, CA_LIFETIME, SystemClock::shared())?;
        ca.issue_agent(&domain.id(AGENT_ID_PATH)?, &[], LEAF_LIFETIME)?.write(folder, "agent")?;
        ca.issue_gateway(&domain.id(GATEWAY_ID_PATH)?, &[], LEAF_LIFETIME)?.write(folder, "gateway")?;
        Ok(())
    };
    make(&folder).map_err(or_failed("certificates of a stranger"))?;
    let bundle = world.acme.folder.join("identity/ca.pem");
    Knocker::new(&folder, world.acme.name, world.acme.domain, &bundle).map_err(or_failed("a client"))
}

fn answer(heard: Result<Heard, String>, who: &str, begins: &[u8]) -> Result<(), Failed> {
    let good = matches!(&heard, Ok(Heard::Answer(bytes)) if bytes.starts_with(begins));
    expect(good, format!("{who} to be let in and answered"), seen(&heard))
}

fn closed(heard: Result<Heard, String>, who: &str) -> Result<String, Failed> {
    match heard {
        Ok(Heard::Closed(how)) => Ok(how),
        other => Err(failed(format!("{who} to be closed without a byte of an answer"), seen(&other))),
    }
}

fn seen(heard: &Result<Heard, String>) -> String {
    heard.as_ref().map_or_else(Clone::clone, |heard| format!("{heard:?}"))
}

/// What was not published is nowhere to be seen, and can't be called although it is there.
pub(in crate::demo) async fn unpublished(world: &mut World) -> Outcome {
    let name = world.acme.fqdn("payroll");
    let (code, _) =
        world.get(&world.acme, &["service", "payroll"]).await.map_err(|e| failed("an answer", e))?;
    expect(code == 0, "payroll to be there at acme", format!("exit code {code}"))?;
    let (code, _) =
        world.get(&world.globex, &["service", "acme/payroll"]).await.map_err(|e| failed("an answer", e))?;
    expect(code == NOT_FOUND, "globex not to see payroll", format!("exit code {code}"))?;
    let resolved = dns::ask(world.globex.ports.dns, &name).await.map_err(|e| failed("an answer", e))?;
    expect(resolved.code == Code::NxDomain, "NXDOMAIN", format!("{resolved:?}"))?;
    let by_host = world.call_by_host(&name, "/hello").await.map_err(|e| failed("an answer", e))?;
    expect(by_host.status == 404, "404 at the egress", by_host.shown())?;
    // Past its own egress, straight to acme's ingress, with globex's gateway identity.
    let (globex, ingress) = (neighbour(world)?, world.acme.ports.ingress);
    closed(globex.ingress(ingress, Some(&name)).await, "a call of payroll")?;
    closed(globex.ingress(ingress, Some("nothing.acme.example")).await, "an unknown SNI")?;
    closed(globex.ingress(ingress, None).await, "a call without SNI")?;
    answer(globex.ingress(ingress, Some(&world.acme.fqdn("ledger"))).await, "ledger", b"HTTP/1.1 200")?;
    Ok("not in get, DNS, egress; ingress closes; ledger answers".to_owned())
}

/// A certificate of another CA gets nobody into the ingress, whatever ids it names.
pub(in crate::demo) async fn at_ingress(world: &mut World) -> Outcome {
    let (ingress, sni) = (world.acme.ports.ingress, world.acme.fqdn("ledger"));
    let mut how = String::new();
    for domain in [world.globex.domain, "stranger.example"] {
        let stranger = stranger(world, domain)?;
        how = closed(stranger.ingress(ingress, Some(&sni)).await, "a stranger")?;
    }
    answer(neighbour(world)?.ingress(ingress, Some(&sni)).await, "globex", b"HTTP/1.1 200")?;
    Ok(format!("stranger: {how}; globex: answered"))
}

/// The same at the agent's port.
pub(in crate::demo) async fn at_agent(world: &mut World) -> Outcome {
    let port = world.acme.ports.agent;
    let mut how = String::new();
    for domain in [world.globex.domain, "stranger.example"] {
        let folder = world.folder().join(format!("stranger-{domain}"));
        let bundle = world.acme.folder.join("identity/ca.pem");
        let stranger = Knocker::new(&folder, world.acme.name, world.acme.domain, &bundle);
        let stranger = stranger.map_err(or_failed("a client"))?;
        how = closed(stranger.agent(port).await, "a stranger")?;
    }
    // The settings that a server begins with: a frame of type 4.
    let heard = neighbour(world)?.agent(port).await;
    let settings = matches!(&heard, Ok(Heard::Answer(bytes)) if bytes.get(3) == Some(&4));
    expect(settings, "globex's agent to be let in and answered", seen(&heard))?;
    answered(world, &world.acme.fqdn("ledger"), "ledger").await?;
    Ok(format!("stranger: {how}; globex: answered"))
}
