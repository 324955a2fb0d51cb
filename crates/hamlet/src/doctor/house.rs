//! Looks at what is ours and no certificate: the clock, the data folder, the agent.

use std::time::Duration;

use hamlet_admin::api::StatusReport;
use hamlet_admin::{Client, ClientError};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::{Examination, Finding, age};
use crate::cli::exit::Failure;

/// No machine that runs this has a clock before this time: 2026-01-01, since the epoch.
const CLOCK_MIN: Duration = Duration::from_secs(1_767_225_600);
/// Less free space than this fails: the store can't write.
const FREE_MIN: u64 = 64 * 1024 * 1024;
/// Less free space than this is warned of.
const FREE_LOW: u64 = 512 * 1024 * 1024;

/// A clock that stands wrong refuses every certificate. What the peers' clocks say is seen at their
/// certificates.
pub(super) fn clock(look: &Examination<'_>) -> Vec<Finding> {
    let wall = look.clock.wall();
    if wall >= CLOCK_MIN {
        return vec![];
    }
    let since = format!("the clock of this machine says {} s after 1970-01-01", wall.as_secs());
    vec![Finding::fail("clock", since, "set the clock and keep it right with NTP")]
}

/// The data folder can be written and has room.
pub(super) fn data(look: &Examination<'_>) -> Vec<Finding> {
    let folder = &look.config.mesh.data;
    let shown = folder.display();
    let about = "data";
    if !folder.is_dir() {
        let found = format!("{shown} is not there yet");
        return vec![Finding::pass(about, format!("{found}; the agent makes it at its first start"))];
    }
    if access(folder, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let remedy = format!("run as the agent's user, or `chown` {shown} to that user");
        return vec![Finding::fail(about, format!("{shown} can't be written by this user"), remedy)];
    }
    let free = match statvfs(folder) {
        Ok(stat) => stat.blocks_available().saturating_mul(stat.fragment_size()),
        Err(error) => {
            let remedy = "see whether its file system is mounted and healthy";
            return vec![Finding::fail(about, format!("{shown}: {error}"), remedy)];
        }
    };
    let found = format!("{shown}, {} MiB free", free >> 20);
    let remedy = "free some space: without it no change of a peer can be kept, and none is taken";
    vec![match free {
        0..FREE_MIN => Finding::fail(about, found, remedy),
        FREE_MIN..FREE_LOW => Finding::warn(about, found, remedy),
        _ => Finding::pass(about, found),
    }]
}

/// What the agent itself says, if it runs. Its problems become findings.
pub(super) async fn agent(
    look: &Examination<'_>,
    client: &Client,
    findings: &mut Vec<Finding>,
) -> Option<Asked> {
    let report = match client.status().await {
        Ok(report) => report,
        Err(ClientError::NoAgent { .. }) => {
            let found = format!("none answers at {}", client.socket().display());
            let remedy =
                "start it with `hamlet agent -f PATH`; names, gateways and streams can't be looked at before";
            findings.push(Finding::warn("agent", found, remedy));
            return None;
        }
        Err(error) => {
            let failure = Failure::from(error);
            let remedy = failure.hints.first().map_or("look at the agent's log", String::as_str);
            findings.push(Finding::fail("agent", &failure.message, remedy));
            return None;
        }
    };
    findings.extend(said(&report, look));
    let services = match client.list().await {
        Ok(list) => list.items,
        Err(error) => {
            findings.push(Finding::fail("agent", error.to_string(), "look at the agent's log"));
            return None;
        }
    };
    Some(Asked { report, services })
}

/// What a running agent was asked.
pub(super) struct Asked {
    pub(super) report: StatusReport,
    pub(super) services: Vec<hamlet_admin::api::ServiceStatus>,
}

fn said(report: &StatusReport, look: &Examination<'_>) -> Vec<Finding> {
    let agent = &report.agent;
    let mut findings = vec![];
    if agent.mesh != look.config.mesh.name.as_str() {
        let found =
            format!("the one at that socket is of mesh {}, not {}", agent.mesh, look.config.mesh.name);
        findings.push(Finding::fail(
            "agent",
            found,
            "name its configuration with -f, or its socket with --socket",
        ));
    }
    for problem in &report.problems {
        let about =
            if problem.about.contains('/') { &problem.about } else { &format!("agent/{}", problem.about) };
        // Its text says what to do as well; peers and identities are looked at here too.
        findings.push(Finding::fail(about, &problem.message, "see `hamlet status` and `hamlet describe`"));
    }
    if findings.is_empty() {
        let up = age(Duration::from_millis(agent.uptime_ms));
        let text = format!(
            "hamlet {}, up {up}, store healthy, {} imported services",
            agent.version, report.imported_services
        );
        findings.push(Finding::pass("agent", text));
    }
    if agent.version != env!("CARGO_PKG_VERSION") {
        let found =
            format!("the agent is version {}, this command is {}", agent.version, env!("CARGO_PKG_VERSION"));
        findings.push(Finding::warn("agent", found, "restart the agent, or use its own command"));
    }
    findings
}
