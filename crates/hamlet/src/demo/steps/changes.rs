//! Chapter three: what changes at the owner changes at the consumer. All edits are files; nobody
//! tells the agents.

use super::{Outcome, World, answered, both_in_sync, expect, failed, gone, or_failed, until};
use crate::demo::documents::{self, ServiceText};

/// A service that is declared and published while both run appears and answers.
pub(in crate::demo) async fn new_service(world: &mut World) -> Outcome {
    let World { acme, family, .. } = &mut *world;
    let family = family.as_ref().ok_or_else(|| failed("a running demo", "it was ended already"))?;
    let backend = acme.start_workload(family, "orders").map_err(or_failed("a workload"))?;
    let text = ServiceText {
        name: "orders",
        domain: acme.domain,
        description: "Orders",
        port: world.service_port,
        instances: &[("http", backend)],
    };
    let write = world.acme.write("service-orders.yaml", &documents::service(&text));
    write.and_then(|()| publish_orders(world)).map_err(or_failed("orders declared and published"))?;
    let note = answered(world, &world.acme.fqdn("orders"), "orders").await?;
    let address = world.resolve(&world.acme.fqdn("orders")).await.map_err(|e| failed("an address", e))?;
    world.orders_address = Some(address);
    world.orders = Some(backend);
    Ok(note)
}

fn publish_orders(world: &World) -> std::io::Result<()> {
    let text = documents::publication("orders", world.globex.name);
    world.acme.write("publication-orders.yaml", &text)
}

/// A changed description and a second instance arrive; calls reach both instances.
pub(in crate::demo) async fn update(world: &mut World) -> Outcome {
    let backend = |at: Option<_>| at.ok_or_else(|| failed("a running workload", "there is none"));
    let (first, second) = (backend(world.ledger)?, backend(world.orders)?);
    let text = ServiceText {
        name: "ledger",
        domain: world.acme.domain,
        description: "The general ledger, with reports",
        port: world.service_port,
        instances: &[("http", first), ("reports", second)],
    };
    let write = world.acme.write("service-ledger.yaml", &documents::service(&text));
    write.map_err(or_failed("the service changed"))?;
    until("the new description and two programmed instances", async || {
        let seen = world.got(&world.globex, &["service", "acme/ledger"]).await?;
        let instances = seen["instances"].as_array().cloned().unwrap_or_default();
        let programmed = instances.iter().filter(|i| i["programming"]["kind"] == "programmed").count();
        let good = seen["description"] == text.description && programmed == 2;
        if good { Ok(()) } else { Err(format!("{}, {programmed} programmed", seen["description"])) }
    })
    .await?;
    // The second instance runs where orders does.
    answered(world, &world.acme.fqdn("reports.ledger"), "orders").await?;
    answered(world, &world.acme.fqdn("ledger"), "ledger").await?;
    Ok("a description and a second instance".to_owned())
}

/// A bad edit is refused with its place; what was good goes on.
pub(in crate::demo) async fn bad_edit(world: &mut World) -> Outcome {
    let path = "publication-ledger.yaml";
    let good_text = documents::publication("ledger", world.globex.name);
    let bad_text = good_text.replace("peers: [globex]", "pears: [globex]");
    world.acme.write(path, &bad_text).map_err(or_failed("a bad edit"))?;
    let folder = world.acme.folder.to_string_lossy().into_owned();
    let output = world.family()?.run(&["reload", "-f", &folder]).await;
    let output = output.map_err(or_failed("`hamlet reload` to run"))?;
    let said = format!("{}{}", output.out, output.err);
    let good = output.code == 1 && said.contains(path) && said.contains("pears");
    let seen = format!("exit code {}: {said}", output.code);
    expect(good, format!("`hamlet reload` to end with exit code 1 and to name {path} and pears"), seen)?;
    answered(world, &world.acme.fqdn("ledger"), "ledger").await?;
    world.acme.write(path, &good_text).map_err(or_failed("the edit undone"))?;
    let output = world.family()?.run(&["reload", "-f", &folder]).await;
    let output = output.map_err(or_failed("`hamlet reload` to run"))?;
    expect(output.code == 0, "`hamlet reload` to succeed", format!("{}{}", output.out, output.err))?;
    answered(world, &world.acme.fqdn("ledger"), "ledger").await?;
    Ok("`hamlet reload` shows the place; the last good state serves".to_owned())
}

/// A publication moved away: the service is gone from `get`, DNS and egress.
pub(in crate::demo) async fn withdrawal(world: &mut World) -> Outcome {
    let address = world.orders_address.ok_or_else(|| failed("an address of orders", "none"))?;
    world.acme.remove("publication-orders.yaml").map_err(or_failed("the publication removed"))?;
    gone(world, "orders", address).await?;
    both_in_sync(world).await?;
    answered(world, &world.acme.fqdn("ledger"), "ledger").await?;
    Ok("not found, NXDOMAIN, connection refused; ledger answers".to_owned())
}

/// Published again it comes back, at the address that it had.
pub(in crate::demo) async fn again(world: &mut World) -> Outcome {
    publish_orders(world).map_err(or_failed("orders published again"))?;
    let name = world.acme.fqdn("orders");
    answered(world, &name, "orders").await?;
    let address = world.resolve(&name).await.map_err(|e| failed("an address", e))?;
    let before = world.orders_address.map(|a| a.to_string()).unwrap_or_default();
    expect(address.to_string() == before, format!("the address {before}"), address)?;
    Ok(format!("{address}, as before"))
}
