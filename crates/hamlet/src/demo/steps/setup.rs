//! Chapter one: two folders, two agents, one federation.

use std::fs;

use hamlet_core::{MeshName, TrustDomain};
use hamlet_runtime::SystemClock;

use super::{Outcome, World, both_in_sync, expect, or_failed, ready};
use crate::config::init::{InitOptions, init};
use crate::demo::documents::{self, ServiceText};
use crate::demo::site::Site;

/// The examples of `init`, in whose place the demo has real documents.
const EXAMPLES: [&str; 3] = ["service-example.yaml", "publication-example.yaml", "peer-example.yaml"];

/// A folder for each mesh, with a CA of its own, as `hamlet init` makes it.
pub(in crate::demo) async fn folders(world: &mut World) -> Outcome {
    for (site, peer) in [(&world.acme, &world.globex), (&world.globex, &world.acme)] {
        make(site, peer).map_err(or_failed("a folder made by `hamlet init`"))?;
    }
    Ok(format!("{}, {}", world.acme.domain, world.globex.domain))
}

fn make(site: &Site, peer: &Site) -> anyhow::Result<()> {
    let options = InitOptions {
        mesh: MeshName::parse(site.name)?,
        trust_domain: TrustDomain::parse(site.domain)?,
        hosts: Vec::new(),
        advertise: vec![site.ports.ingress],
        clock: SystemClock::shared(),
    };
    init(&site.folder, &options)?;
    for example in EXAMPLES {
        site.remove(example)?;
    }
    site.write("mesh.yaml", &documents::mesh(site, peer))?;
    Ok(())
}

/// Each gives the other its CA certificate, declares it as a peer and says what it accepts.
pub(in crate::demo) async fn peering(world: &mut World) -> Outcome {
    for (site, peer) in [(&world.acme, &world.globex), (&world.globex, &world.acme)] {
        let given = fs::read_to_string(peer.folder.join("identity/ca.pem"));
        let write = given.and_then(|bundle| {
            site.write(&documents::bundle_file(peer.name), &bundle)?;
            site.write(&format!("peer-{}.yaml", peer.name), &documents::peer(peer))
        });
        write.map_err(or_failed("the peer's CA certificate and documents in the folder"))?;
    }
    Ok("CA certificates exchanged".to_owned())
}

/// Workloads, and services for them; acme publishes `ledger` and keeps `payroll` to itself.
pub(in crate::demo) async fn workloads(world: &mut World) -> Outcome {
    let World { acme, globex, family, service_port, ledger, .. } = world;
    let family = family.as_ref().ok_or_else(|| super::failed("a running demo", "it was ended already"))?;
    let start = |site: &mut Site, service: &str, description: &str| {
        let backend = site.start_workload(family, service)?;
        let text = ServiceText {
            name: service,
            domain: site.domain,
            description,
            port: *service_port,
            instances: &[("http", backend)],
        };
        site.write(&format!("service-{service}.yaml"), &documents::service(&text))?;
        std::io::Result::Ok(backend)
    };
    let mut all = || {
        *ledger = Some(start(acme, "ledger", "The general ledger")?);
        start(acme, "payroll", "Nobody else's business")?;
        start(globex, "storefront", "Where the calls come from")?;
        acme.write("publication-ledger.yaml", &documents::publication("ledger", globex.name))?;
        globex.write("publication-storefront.yaml", &documents::publication("storefront", acme.name))
    };
    all().map_err(or_failed("workloads started and their services declared"))?;
    Ok("acme: ledger (published), payroll (not); globex: storefront (published)".to_owned())
}

/// `hamlet validate` takes both folders.
pub(in crate::demo) async fn validated(world: &mut World) -> Outcome {
    let mut summary = String::new();
    for site in [&world.acme, &world.globex] {
        let folder = site.folder.to_string_lossy();
        let output = world.family()?.run(&["validate", "-f", &folder]).await;
        let output = output.map_err(or_failed("`hamlet validate` to run"))?;
        let good = output.code == 0 && output.out.starts_with("ok: 1 mesh, 1 peer");
        let expected = format!("`hamlet validate -f {folder}` to end with ok");
        expect(good, expected, format!("exit code {}: {}{}", output.code, output.out, output.err))?;
        if summary.is_empty() {
            summary = output.out.trim().to_owned();
        }
    }
    Ok(summary)
}

/// Two processes, ready.
pub(in crate::demo) async fn agents(world: &mut World) -> Outcome {
    let World { acme, globex, family, .. } = &mut *world;
    for site in [acme, globex] {
        if let Some(family) = family {
            site.start_agent(family).map_err(or_failed("an agent started"))?;
        }
    }
    ready(world, &world.acme).await?;
    ready(world, &world.globex).await?;
    Ok(format!("processes {} and {}", world.acme.pid(), world.globex.pid()))
}

/// Both have proven to each other that they hold the same set.
pub(in crate::demo) async fn synced(world: &mut World) -> Outcome {
    both_in_sync(world).await?;
    Ok("equal digests, both ways".to_owned())
}
