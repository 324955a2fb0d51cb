//! Chapter five: processes die without a word, and come back.

use std::net::SocketAddr;

use tokio::sync::oneshot;

use super::{
    Outcome, World, answered, both_in_sync, expect, failed, gone, or_failed, peer_line, ready, until,
};
use crate::demo::family::Child;
use crate::demo::probe::http::{Call, broken_off};
use crate::demo::site::Site;
use crate::demo::world::{Failed, PATIENCE};

/// The agent of a site, to be ended.
fn take(site: &mut Site) -> Result<Child, Failed> {
    site.agent.take().ok_or_else(|| failed(format!("{}'s agent running", site.name), "it does not"))
}

async fn start(world: &mut World, owner: bool) -> Result<(), Failed> {
    let World { acme, globex, family, .. } = &mut *world;
    let site = if owner { acme } else { globex };
    let family = family.as_ref().ok_or_else(|| failed("a running demo", "it was ended already"))?;
    site.start_agent(family).map_err(or_failed("an agent started"))?;
    let site = if owner { &world.acme } else { &world.globex };
    ready(world, site).await
}

/// What globex serves of acme, seen from outside: `get` has it and DNS has an address. Returns the
/// address.
async fn held(world: &World, service: &str) -> Outcome {
    let seen = world.got(&world.globex, &["service", &format!("acme/{service}")]).await;
    let seen = seen.map_err(|e| failed(format!("globex to list {service}"), e))?;
    let address = world.resolve(&world.acme.fqdn(service)).await;
    let address = address.map_err(|e| failed("an address in globex's DNS", e))?;
    Ok(format!("standing {}, {address}", seen["standing"].as_str().unwrap_or_default()))
}

/// Waits until globex notices that acme's agent is not there.
async fn lost(world: &World) -> Result<(), Failed> {
    until("globex to see that acme's agent is gone", async || {
        let status = world.got(&world.globex, &["peer", "acme"]).await?;
        let kind = status["state"]["kind"].as_str().unwrap_or_default();
        if ["down", "connecting"].contains(&kind) { Ok(()) } else { Err(peer_line(&status)) }
    })
    .await
}

/// kill -9 of the owner: two endless calls, one by each way out, break off instead of hanging, and
/// a new one fails at once with a reason.
pub(in crate::demo) async fn in_flight(world: &mut World) -> Outcome {
    let name = world.acme.fqdn("ledger");
    let address = world.resolve(&name).await.map_err(|e| failed("an address", e))?;
    let by_address = SocketAddr::from((address, world.service_port));
    let to = [by_address, world.globex.ports.egress_http];
    let calls = to.map(|to| Call { to, host: name.clone(), path: "/stream", fields: &[] });
    let (begun, begins): (Vec<_>, Vec<_>) = calls.iter().map(|_| oneshot::channel()).unzip();
    let in_flight = calls.iter().zip(begun).map(|(call, begun)| broken_off(call, begun));
    let agent = take(&mut world.acme)?;
    let kill = async {
        // A call that fails before it begins drops its end, and the join tells why.
        for begins in begins {
            let _ = begins.await;
        }
        agent.kill();
    };
    let (ends, ()) = futures::join!(futures::future::join_all(in_flight), kill);
    for end in ends {
        end.map_err(|e| failed("each call to begin, and to break off when the owner is killed", e))?;
    }
    let refused = until("a new call to fail with the gateway's reason", async || {
        let answer = world.call_by_host(&name, "/hello").await?;
        let reason = answer.error.clone().filter(|_| (502..=504).contains(&answer.status));
        reason.ok_or_else(|| answer.shown())
    })
    .await?;
    Ok(format!("2 calls broke off; a new one: {refused}"))
}

/// The owner is gone; what it offered stays.
pub(in crate::demo) async fn stays(world: &mut World) -> Outcome {
    lost(world).await?;
    held(world, "orders").await?;
    held(world, "ledger").await
}

/// The owner returns: proof again, and calls.
pub(in crate::demo) async fn owner_returns(world: &mut World) -> Outcome {
    start(world, true).await?;
    both_in_sync(world).await?;
    answered(world, &world.acme.fqdn("ledger"), "ledger").await?;
    Ok("in sync, proven both ways; ledger answers".to_owned())
}

/// What is withdrawn while the consumer is down is swept when it is back, and nothing else.
pub(in crate::demo) async fn swept(world: &mut World) -> Outcome {
    let address = world.orders_address.ok_or_else(|| failed("an address of orders", "none"))?;
    let agent = take(&mut world.globex)?;
    let status = agent.stop(PATIENCE).await.ok_or_else(|| failed("globex's agent to stop", "it runs"))?;
    expect(status.success(), "globex's agent to stop with exit code 0", status)?;
    world.acme.remove("publication-orders.yaml").map_err(or_failed("the publication removed"))?;
    until("orders to be published to nobody at acme", async || {
        let seen = world.got(&world.acme, &["service", "orders"]).await?;
        let to = seen["publishedTo"].as_array().map_or(0, Vec::len);
        if to == 0 { Ok(()) } else { Err(seen["publishedTo"].to_string()) }
    })
    .await?;
    start(world, false).await?;
    gone(world, "orders", address).await?;
    both_in_sync(world).await?;
    answered(world, &world.acme.fqdn("ledger"), "ledger").await?;
    Ok("orders is gone, ledger answers".to_owned())
}

/// kill -9 of the consumer, which comes back while the owner is stopped: it serves what it had.
pub(in crate::demo) async fn alone(world: &mut World) -> Outcome {
    let name = world.acme.fqdn("ledger");
    let before = world.resolve(&name).await.map_err(|e| failed("an address", e))?;
    let owner = take(&mut world.acme)?.stop(PATIENCE).await;
    let owner = owner.ok_or_else(|| failed("acme's agent to stop", "it runs"))?;
    expect(owner.success(), "acme's agent to stop with exit code 0", owner)?;
    take(&mut world.globex)?.kill();
    start(world, false).await?;
    let note = held(world, "ledger").await?;
    let after = world.resolve(&name).await.map_err(|e| failed("an address", e))?;
    expect(after == before, format!("the address {before}"), after)?;
    let status = world.got(&world.globex, &["peer", "acme"]).await;
    let status = status.map_err(|e| failed("acme among globex's peers", e))?;
    expect(status["state"]["kind"] != "in-sync", "acme not reached", peer_line(&status))?;
    Ok(format!("ready without its peer: {note}"))
}

/// The owner returns to a consumer that started without it.
pub(in crate::demo) async fn together(world: &mut World) -> Outcome {
    owner_returns(world).await
}
