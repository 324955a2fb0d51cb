//! The last chapter: everything stops in order, and nothing is left. It runs whatever happened
//! before.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::TcpStream;

use super::{Outcome, World, expect, failed};
use crate::demo::site::Site;
use crate::demo::world::PATIENCE;

/// SIGTERM ends each agent that runs with exit code 0 and without its socket.
pub(in crate::demo) async fn stopped(world: &mut World) -> Outcome {
    let mut stopped = 0;
    let mut problem = None;
    for site in [&mut world.globex, &mut world.acme] {
        let Some(agent) = site.agent.take() else { continue };
        match agent.stop(PATIENCE).await {
            Some(status) if status.success() && !socket(site).exists() => stopped += 1,
            Some(status) if status.success() => problem = Some(format!("{}: left its socket", site.name)),
            Some(status) => problem = Some(format!("{}: {status}", site.name)),
            None => problem = Some(format!("{}: it still ran after {PATIENCE:?}", site.name)),
        }
        // Reaped here, killed if they have to be.
        site.workloads.clear();
    }
    match problem {
        None => Ok(format!("{stopped} agents ended with exit code 0")),
        Some(seen) => Err(failed("each agent to end in order, with exit code 0", seen)),
    }
}

/// No process, no listener.
pub(in crate::demo) async fn nothing_left(world: &mut World) -> Outcome {
    for site in [&mut world.globex, &mut world.acme] {
        site.agent = None;
        site.workloads.clear();
    }
    let running = world.family.take().is_some_and(|family| family.dissolve());
    expect(!running, "no process in the demo's group", "there was one; it was killed")?;
    for site in [&world.acme, &world.globex] {
        for address in listeners(site) {
            let connected = TcpStream::connect(address).await.is_ok();
            expect(!connected, format!("nobody to listen on {address}"), "a connection was accepted")?;
        }
    }
    Ok("no process, no listener".to_owned())
}

fn socket(site: &Site) -> PathBuf {
    site.folder.join("data/admin.sock")
}

fn listeners(site: &Site) -> [SocketAddr; 5] {
    let ports = site.ports;
    [ports.agent, ports.ingress, ports.egress_http, ports.dns, ports.admin]
}
