//! The agent as an operator sees it: configuration, store, tasks, listeners, identities; whether
//! it is ready, and everything about it that a person should look at.

use std::collections::BTreeMap;
use std::time::Duration;

use hamlet_core::expiry::Expiry;
use serde::{Deserialize, Serialize};

use super::age::human_age;
use super::peer::{PeerState, PeerStatus};

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigStatus {
    /// The file or folder it was read from.
    pub path: String,
    /// The files read.
    pub files: u64,
    /// Age of what is in force.
    pub loaded_ms: u64,
    /// Counts the loads that were swapped in, from 1.
    pub generation: u64,
    /// What is wrong with the files as they are now, one line each; the last good configuration
    /// stays in force meanwhile.
    pub errors: Vec<String>,
    /// Age of those errors.
    pub failed_ms: Option<u64>,
    /// Warnings about what is in force.
    pub warnings: Vec<String>,
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StoreStatus {
    /// The data folder.
    pub path: String,
    /// Whether commits succeed.
    pub healthy: bool,
    /// What is wrong, and what to do; also says when damage was set aside at start.
    pub message: Option<String>,
    /// Entries kept.
    pub entries: u64,
    /// Size of the file.
    pub size_bytes: u64,
}

/// A failed task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskFailure {
    /// Its name, for example `peer/acme`.
    pub name: String,
    /// How it ended.
    pub error: String,
}

/// The tasks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskStatus {
    /// How many run.
    pub running: u64,
    /// Those that failed.
    pub failed: Vec<TaskFailure>,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerStatus {
    /// What it is for: `agent`, `ingress`, `egress-http`, `dns`, `health`.
    pub name: String,
    /// Its address and port.
    pub address: String,
    /// Why it doesn't listen, and what to do; absent when it does.
    pub error: Option<String>,
}

/// One of our own identities.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentityStatus {
    /// `agent`, `gateway` or `ca`.
    pub role: String,
    /// The SPIFFE id.
    pub id: String,
    /// When its validity begins, in seconds since the Unix epoch.
    pub not_before_s: u64,
    /// When it expires, in seconds since the Unix epoch.
    pub not_after_s: u64,
    /// Seconds until it expires; negative when it has.
    pub expires_in_s: i64,
    /// Whether the agent's own authority renews it.
    pub renewed_by_us: bool,
    /// Whether a Workload API renews it.
    pub renewed_by_workload_api: bool,
    /// Why the files as they are now can't be used, or the last renewal failed; the last good pair
    /// stays in force.
    pub error: Option<String>,
}

/// The Workload API that gives identities and bundles.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadApiStatus {
    /// Where it is.
    pub socket: String,
    /// The ids that it gave last.
    pub ids: Vec<String>,
    /// How many bundles it gave last, that of our own trust domain among them.
    pub bundles: u64,
    /// How many revocation lists of their CAs are in force.
    pub lists: u64,
    /// Which revocation lists can't be used and why, and what to do; those before them stay in force.
    pub lists_error: Option<String>,
    /// Why nothing new comes, and what to do; what it gave last stays in force.
    pub error: Option<String>,
}

/// Our own authority.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorityStatus {
    /// Its folder.
    pub folder: String,
    /// Grows with each change of the set of roots.
    pub sequence: u64,
    /// Roots in the bundle.
    pub roots: u64,
    /// When the root that issues expires, in seconds since the Unix epoch.
    pub root_not_after_s: u64,
    /// When the intermediate that signs expires, in seconds since the Unix epoch.
    pub issuing_not_after_s: u64,
    /// Whether the wall clock is believed; while it isn't, nothing is renewed.
    pub clock_believed: bool,
    /// Steps that were done since the agent started: renewals and rotations.
    pub steps: u64,
    /// Looks that failed since the agent started.
    pub failures: u64,
    /// What the last look failed with, and what to do.
    pub error: Option<String>,
    /// What comes next, soonest first.
    pub planned: Vec<PlannedStatus>,
    /// While a new root waits: the peers that don't have it in force yet, and why. When there is none,
    /// it issues before the overlap ends.
    #[serde(default)]
    pub missing: Vec<MissingPeer>,
}

/// A peer for which a new root waits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MissingPeer {
    /// The peer.
    pub peer: String,
    /// What it said of our bundle, or that it said nothing.
    pub why: String,
}

/// One thing that the authority will do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlannedStatus {
    /// What.
    pub step: String,
    /// In how many seconds; 0 is now.
    pub in_s: i64,
    /// Why then.
    pub why: String,
}

/// The audit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditStatus {
    /// The folder of its files.
    pub folder: String,
    /// The last entry that is durable.
    pub sequence: u64,
    /// That entry and the SHA-256 of its line, as `hamlet audit verify --anchor` takes it.
    pub head: String,
    /// Entries that wait to be written.
    pub waiting: u64,
    /// Entries that had no place while nothing could be written, and are lost.
    pub lost: u64,
    /// Attempts to write that failed since the agent started.
    pub failures: u64,
    /// Why nothing can be written; the agent goes on.
    pub error: Option<String>,
}

/// The agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// The mesh's name.
    pub mesh: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// The version of the program.
    pub version: String,
    /// The process id.
    pub pid: u32,
    /// How long it has been running.
    pub uptime_ms: u64,
    /// Its configuration.
    pub config: ConfigStatus,
    /// Its store.
    pub store: StoreStatus,
    /// Its tasks.
    pub tasks: TaskStatus,
    /// Its listeners.
    pub listeners: Vec<ListenerStatus>,
    /// Its identities.
    pub identities: Vec<IdentityStatus>,
    /// The authority that issues them, if it is ours.
    #[serde(default)]
    pub authority: Option<AuthorityStatus>,
    /// The Workload API that gives them, if one does.
    #[serde(default)]
    pub workload_api: Option<WorkloadApiStatus>,
    /// Why the CA beside certificate files can't be used.
    #[serde(default)]
    pub ca_problem: Option<String>,
    /// The sources of its local services.
    #[serde(default)]
    pub sources: Vec<SourceStatus>,
    /// Invitations to peer that somebody may still use.
    #[serde(default, skip_serializing_if = "is_none_open")]
    pub invitations_open: u64,
    /// Its audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditStatus>,
}

fn is_none_open(count: &u64) -> bool {
    *count == 0
}

/// One thing that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// What it concerns: `config`, `store`, `audit`, `task/<name>`, `listener/<name>`, `identity/<role>`,
    /// `peer/<name>`, `ready/<check>`.
    pub about: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// The whole in one answer: the agent, its peers by state, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// Whether [`problems`](StatusReport::problems) is not empty.
    pub degraded: bool,
    /// What a person should look at.
    pub problems: Vec<Problem>,
    /// How many peers are in which state ([`PeerState::word`]).
    pub peers: BTreeMap<String, u64>,
    /// Services: local ones.
    pub local_services: u64,
    /// Services: imported ones in force.
    pub imported_services: u64,
    /// The agent.
    pub agent: AgentStatus,
}

impl StatusReport {
    /// Puts it together. Lost peers degrade, although they never make the agent unready.
    pub fn of(
        agent: AgentStatus,
        peers: &[PeerStatus],
        local_services: u64,
        imported_services: u64,
        readiness: &[ReadyCheck],
    ) -> StatusReport {
        let mut problems = agent.problems();
        for check in readiness.iter().filter(|c| !c.ok) {
            // `store` is both: once is enough.
            if !problems.iter().any(|p| p.about == check.name) {
                let about = format!("ready/{}", check.name);
                problems.push(Problem { about, message: check.message.clone() });
            }
        }
        let mut states = BTreeMap::new();
        for peer in peers {
            *states.entry(peer.state.word().to_owned()).or_insert(0) += 1;
            problems.extend(peer_problem(peer));
        }
        StatusReport {
            degraded: !problems.is_empty(),
            problems,
            peers: states,
            local_services,
            imported_services,
            agent,
        }
    }
}

fn peer_problem(peer: &PeerStatus) -> Option<Problem> {
    if !peer.state.is_trouble() {
        return None;
    }
    let mut message = peer.state.to_string();
    if let (Some(error), false) = (&peer.last_error, matches!(peer.state, PeerState::Refused { .. })) {
        message += &format!("; last error: {}", error.message);
    }
    Some(Problem { about: format!("peer/{}", peer.name), message })
}

impl AgentStatus {
    /// What a person should look at in the agent itself.
    pub fn problems(&self) -> Vec<Problem> {
        let mut out = Vec::new();
        let mut add = |about: String, message: String| out.push(Problem { about, message });
        for error in &self.config.errors {
            add("config".into(), format!("{error} (the last good configuration stays in force)"));
        }
        if !self.store.healthy {
            let message = self.store.message.clone();
            add("store".into(), message.unwrap_or_else(|| "commits fail; see the agent's log".into()));
        }
        for task in &self.tasks.failed {
            add(format!("task/{}", task.name), task.error.clone());
        }
        for listener in &self.listeners {
            if let Some(error) = &listener.error {
                add(format!("listener/{}", listener.name), format!("{}: {error}", listener.address));
            }
        }
        for source in &self.sources {
            if let Some(message) = source.problem() {
                add(format!("source/{}", source.name), message);
            }
        }
        if let Some(error) = self.audit.as_ref().and_then(|audit| audit.error.as_ref()) {
            let hint = "see to the disk and the folder's owner; changes go on unaudited until it is mended";
            add("audit".into(), format!("it can't be written: {error}; {hint}"));
        }
        if let Some(message) = &self.ca_problem {
            add("identity/ca".into(), message.clone());
        }
        if let Some(message) = self.authority.as_ref().and_then(AuthorityStatus::problem) {
            add("authority".into(), message);
        }
        if let Some(message) = self.workload_api.as_ref().and_then(|api| api.lists_error.clone()) {
            add("identity/workload-api".into(), message);
        }
        for identity in &self.identities {
            if let Some(message) = identity.problem() {
                add(format!("identity/{}", identity.role), message);
            }
        }
        out
    }
}

impl AuthorityStatus {
    /// What is wrong with it, if anything.
    pub fn problem(&self) -> Option<String> {
        let clock =
            || "the wall clock has stepped, so nothing is renewed until it keeps still; check it".to_owned();
        self.error.clone().or_else(|| (!self.clock_believed).then(clock))
    }
}

impl IdentityStatus {
    /// How near its end is, at the time of asking.
    fn expiry(&self) -> Expiry {
        let at = Duration::from_secs;
        let now = at(self.not_after_s.saturating_add_signed(self.expires_in_s.saturating_neg()));
        Expiry::at(now, at(self.not_before_s), at(self.not_after_s))
    }

    /// What is wrong with it, if anything: a file that can't be used, or an end that is less than a
    /// week away (of a life of days: when less than a sixth of it is left).
    pub fn problem(&self) -> Option<String> {
        let age = |s: i64| human_age(s.unsigned_abs().saturating_mul(1000));
        let renew = match (self.renewed_by_us, self.renewed_by_workload_api) {
            (true, _) => "our own authority should have renewed it; see `hamlet ca status`",
            (_, true) => "the Workload API should have renewed it; see the log of the SPIRE agent",
            _ => "issue a new one and put it in place; the files are watched",
        };
        match (&self.error, self.expires_in_s) {
            (Some(error), _) => Some(error.clone()),
            (None, s) if s <= 0 => Some(format!("{} expired {} ago: {renew}", self.id, age(s))),
            (None, s) if self.expiry() >= Expiry::Week => {
                Some(format!("{} expires in {}: {renew}", self.id, age(s)))
            }
            _ => None,
        }
    }
}

/// One check of readiness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadyCheck {
    /// A short name in kebab case: `store`, `config`, `identity`.
    pub name: String,
    /// Whether it passed.
    pub ok: bool,
    /// Why not, and what to do; empty when it passed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl ReadyCheck {
    /// A passed check.
    pub fn ok(name: impl Into<String>) -> ReadyCheck {
        ReadyCheck { name: name.into(), ok: true, message: String::new() }
    }

    /// A failed check.
    pub fn failed(name: impl Into<String>, message: impl Into<String>) -> ReadyCheck {
        ReadyCheck { name: name.into(), ok: false, message: message.into() }
    }
}

/// What a successful reload did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReloadReport {
    /// Which load this is, from 1; unchanged when nothing had changed.
    pub generation: u64,
    /// Whether anything had changed.
    pub changed: bool,
    /// What changed, one line each: `peer globex: added`.
    pub changes: Vec<String>,
    /// Changes that need a restart to take effect, one line each.
    pub needs_restart: Vec<String>,
    /// Warnings, one line each.
    pub warnings: Vec<String>,
}

/// What letting go of withheld withdrawals did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Confirmed {
    /// How many entries went.
    pub released: u64,
}

/// A source of local services, and what the brake on its withdrawals holds back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceStatus {
    /// Its name: `file`.
    pub name: String,
    /// Services of it.
    pub services: u64,
    /// Services that are gone from it and still served; may exceed the list below, which is cut.
    pub withheld_total: u64,
    /// Those, by name.
    pub withheld: Vec<String>,
    /// Time until the first of them goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_left_ms: Option<u64>,
}

impl SourceStatus {
    /// What a person should know of it, if anything.
    pub fn problem(&self) -> Option<String> {
        let wait = self.wait_left_ms.filter(|_| self.withheld_total > 0)?;
        Some(format!(
            "{} services are gone from the source at once and still served for {}: put them back, or let \
             them go with `hamlet reload --confirm-withdrawals`",
            self.withheld_total,
            human_age(wait)
        ))
    }
}

/// Why a reload changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReloadProblems {
    /// One line each: `file:line:col: path: message; fix: ...`.
    pub problems: Vec<String>,
    /// The same with the places shown, for people; without colour.
    pub rendered: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthy_agent_with_a_lost_peer_is_degraded() {
        let agent =
            AgentStatus { store: StoreStatus { healthy: true, ..Default::default() }, ..Default::default() };
        let calm = StatusReport::of(agent.clone(), &[], 1, 0, &[ReadyCheck::ok("store")]);
        assert!(!calm.degraded);
        let down = PeerState::Down { since_ms: 5000, next_attempt_ms: Some(1000), hold_left_ms: None };
        let peer = PeerStatus { name: "globex".into(), state: down, ..Default::default() };
        let report = StatusReport::of(agent, &[peer], 1, 0, &[]);
        assert!(report.degraded);
        assert_eq!(report.problems[0].about, "peer/globex");
        assert_eq!(report.peers["down"], 1);
        let sick = [ReadyCheck::failed("store", "full"), ReadyCheck::failed("config", "none yet")];
        let report = StatusReport::of(AgentStatus::default(), &[], 0, 0, &sick);
        let about: Vec<_> = report.problems.iter().map(|p| p.about.as_str()).collect();
        assert_eq!(about, ["store", "ready/config"]);
    }

    #[test]
    fn withheld_withdrawals_of_a_source_are_a_problem_and_their_absence_is_none() {
        let mut source = SourceStatus { name: "file".into(), services: 12, ..Default::default() };
        assert_eq!(source.problem(), None);
        (source.withheld_total, source.wait_left_ms) = (12, Some(240_000));
        let agent = AgentStatus { sources: vec![source], ..Default::default() };
        let problems = agent.problems();
        let problem = problems.iter().find(|p| p.about == "source/file").unwrap();
        assert!(problem.message.starts_with("12 services are gone"), "{}", problem.message);
        assert!(problem.message.contains("for 4m:"), "{}", problem.message);
    }

    #[test]
    fn an_identity_is_a_problem_before_it_expires() {
        let year = 365 * 86_400;
        let mut id =
            IdentityStatus { id: "spiffe://a/b".into(), not_after_s: 2 * year, ..Default::default() };
        id.not_before_s = year;
        id.expires_in_s = 86_400 * 30;
        assert_eq!(id.problem(), None);
        id.expires_in_s = 3600 * 5;
        assert!(id.problem().unwrap().contains("expires in 5h"));
        id.expires_in_s = -60;
        assert!(id.problem().unwrap().contains("expired 60s ago"));
        // Of a day, renewed when a third is left, five hours are enough.
        (id.not_before_s, id.expires_in_s) = (2 * year - 86_400, 3600 * 5);
        assert_eq!(id.problem(), None);
        id.expires_in_s = 3600 * 3;
        assert!(id.problem().unwrap().contains("expires in 3h"));
    }
}
