//! Chapter two: names and calls.

use std::net::SocketAddr;

use super::{Outcome, World, answered, expect, failed, until};
use crate::config::init::GATEWAY_ID_PATH;
use crate::demo::probe::dns::{self, Code};
use crate::demo::probe::http::{self, Call};
use crate::demo::site::workload_name;

/// globex's DNS has addresses for the service and for its instance, and none for other names.
pub(in crate::demo) async fn names(world: &mut World) -> Outcome {
    let (service, instance) = (world.acme.fqdn("ledger"), world.acme.fqdn("http.ledger"));
    let look = async |name: &str| until("one egress address", async || world.resolve(name).await).await;
    let address = look(&service).await?;
    let second = look(&instance).await?;
    expect(address != second, "an address of its own for the instance", address)?;
    for (name, code) in [("nothing.acme.example", Code::NxDomain), ("elsewhere.example", Code::Refused)] {
        let answer = dns::ask(world.globex.ports.dns, name).await;
        let answer = answer.map_err(|e| failed("an answer", e))?;
        expect(answer.code == code, format!("{code:?} for {name}"), format!("{answer:?}"))?;
    }
    Ok(format!("{service} is {address}"))
}

/// Workload, egress, ingress, workload; the answer says who answers and who was proven to call.
pub(in crate::demo) async fn first_call(world: &mut World) -> Outcome {
    let name = world.acme.fqdn("ledger");
    let workload = workload_name("ledger", world.acme.domain);
    let caller = format!("spiffe://{}/{GATEWAY_ID_PATH}", world.globex.domain);
    let answer = until("an answer by way of the egress address", async || {
        let answer = world.call(&name, "/hello").await?;
        if answer.status == 200 { Ok(answer) } else { Err(answer.shown()) }
    })
    .await?;
    for (key, expected) in [
        ("workload", workload.as_str()),
        ("request", "GET /hello"),
        ("callerMesh", world.globex.domain),
        ("caller", &caller),
    ] {
        expect(answer.text(key) == expected, format!("{key} to be {expected}"), answer.shown())?;
    }
    Ok(format!("`{workload}` was called by {caller}"))
}

/// The same through the one HTTP listener for all services.
pub(in crate::demo) async fn by_host(world: &mut World) -> Outcome {
    let name = world.acme.fqdn("ledger");
    let answer = world.call_by_host(&name, "/by-host").await;
    let answer = answer.map_err(|e| failed("an answer by Host", e))?;
    let good = answer.status == 200
        && answer.text("workload") == workload_name("ledger", world.acme.domain)
        && answer.text("host") == name
        && answer.text("callerMesh") == world.globex.domain;
    expect(good, format!("an answer of ledger to Host: {name}"), answer.shown())?;
    Ok(format!("Host: {name} at {}", world.globex.ports.egress_http))
}

/// Whatever a caller writes into our fields is replaced by what was proven, on both ways out.
pub(in crate::demo) async fn forged(world: &mut World) -> Outcome {
    let name = world.acme.fqdn("ledger");
    let address = world.resolve(&name).await.map_err(|e| failed("an address", e))?;
    let caller = format!("spiffe://{}/{GATEWAY_ID_PATH}", world.globex.domain);
    let fields = [
        ("x-hamlet-caller", "spiffe://bank.example/admin"),
        ("x-hamlet-caller-mesh", "bank.example"),
        ("x_hamlet_caller", "spiffe://bank.example/admin"),
        ("x-hamlet-invented", "yes"),
    ];
    for to in [SocketAddr::from((address, world.service_port)), world.globex.ports.egress_http] {
        let answer = http::call(&Call { to, host: name.clone(), path: "/forged", fields: &fields }).await;
        let answer = answer.map_err(|e| failed("an answer", e))?;
        let mut ours: Vec<String> = answer.text("fields").split(' ').map(str::to_owned).collect();
        ours.sort_unstable();
        let good = answer.text("caller") == caller
            && answer.text("callerMesh") == world.globex.domain
            && ours == ["x-hamlet-caller", "x-hamlet-caller-mesh"];
        expect(good, format!("nothing but {caller}"), answer.shown())?;
    }
    Ok("four forged fields were dropped".to_owned())
}

/// Federation goes both ways: acme calls globex.
pub(in crate::demo) async fn other_way(world: &mut World) -> Outcome {
    let name = world.globex.fqdn("storefront");
    let workload = workload_name("storefront", world.globex.domain);
    let host = name.clone();
    let call = Call { to: world.acme.ports.egress_http, host, path: "/back", fields: &[] };
    let expected = format!("an answer of `{workload}` that names the caller {}", world.acme.domain);
    until(&expected, async || {
        let answer = http::call(&call).await?;
        let good = answer.text("workload") == workload && answer.text("callerMesh") == world.acme.domain;
        if good { Ok(()) } else { Err(answer.shown()) }
    })
    .await?;
    answered(world, &world.acme.fqdn("ledger"), "ledger").await?;
    Ok(format!("`{workload}` was called by {}", world.acme.domain))
}
