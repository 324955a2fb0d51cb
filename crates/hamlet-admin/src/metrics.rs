//! Metrics as OpenMetrics text: what is counted for the life of the process, and what is read off
//! the state at each scrape.
//!
//! The second kind is built anew every time, so that a removed peer leaves no series behind.
//! Labels are bounded by the configuration (peers, listeners, identities); a service's name is
//! never a label. Each field's documentation is the metric's help text.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::api::{
    AgentStatus, AuthorityStatus, Flow, Origin, PeerState, PeerStatus, Programming, Proof, ReadyCheck,
    ServiceStatus, StallKind,
};

type Number = Gauge<f64, AtomicU64>;
type By<L> = Family<L, Number>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    peer: String,
    state: &'static str,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SetLabels {
    peer: String,
    flow: FlowLabel,
    set: &'static str,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StallLabels {
    peer: String,
    stall: &'static str,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoundLabels {
    peer: String,
    round: &'static str,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabel {
    source: String,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SocketLabel {
    socket: String,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FlowLabels {
    peer: String,
    flow: FlowLabel,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types)]
enum FlowLabel {
    publish,
    import,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OriginLabel {
    origin: &'static str,
}
/// Our side of an exchange of peering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs)]
pub enum PeeringSide {
    inviter,
    accepter,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExchangeLabels {
    side: PeeringSide,
    outcome: &'static str,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: String,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: String,
}

impl From<Flow> for FlowLabel {
    fn from(flow: Flow) -> FlowLabel {
        match flow {
            Flow::Publish => FlowLabel::publish,
            Flow::Import => FlowLabel::import,
        }
    }
}

/// A struct of metrics that registers itself; each field's doc comment is its help text.
macro_rules! metrics {
    ($(#[$outer:meta])* struct $name:ident { $(#[doc = $help:literal] $field:ident: $kind:ty,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Default)]
        struct $name { $(#[doc = $help] $field: $kind,)* }
        impl $name {
            fn register(&self, registry: &mut Registry) {
                $(registry.register(
                    stringify!($field),
                    $help.trim().trim_end_matches('.'),
                    self.$field.clone(),
                );)*
            }
        }
    };
}

metrics! {
    /// Read off the state at each scrape.
    struct StateMetrics {
        /// Whether the agent is ready (1) or not (0).
        ready: Number,
        /// Seconds since the agent started.
        uptime_seconds: Number,
        /// Loads of the configuration that were swapped in.
        config_generation: Number,
        /// Problems in the configuration files as they are now; the last good one stays in force.
        config_problems: Number,
        /// Age of the configuration in force, in seconds.
        config_age_seconds: Number,
        /// Whether commits to the store succeed (1) or not (0).
        store_healthy: Number,
        /// Entries in the store.
        store_entries: Number,
        /// Size of the store's file in bytes.
        store_size_bytes: Number,
        /// Whether the audit can be written (1) or not (0); the agent goes on all the same.
        audit_writable: Number,
        /// The number of the audit's last entry.
        audit_sequence: Number,
        /// Attempts to write the audit that failed since the start.
        audit_failures: Number,
        /// Entries of the audit that are lost, because too many waited while nothing could be written.
        audit_lost: Number,
        /// Tasks that run.
        tasks_running: Number,
        /// Tasks that failed and are still listed.
        tasks_failed: Number,
        /// Whether a listener listens (1) or not (0).
        listener_up: By<ListenerLabel>,
        /// When an identity of ours expires, in seconds since the Unix epoch.
        identity_not_after_seconds: By<RoleLabel>,
        /// Whether an identity of ours is in order (1), or its renewal or its files failed (0).
        identity_good: By<RoleLabel>,
        /// Renewals and rotations that our own authority did since the start; absent series without one.
        authority_steps: By<KindLabel>,
        /// Whether the Workload API that gives our identities answers (1), or not (0); absent without one.
        workload_api_up: By<SocketLabel>,
        /// When our own authority's root (`root`) and intermediate (`issuing`) expire, in seconds since the Unix epoch.
        authority_not_after_seconds: By<KindLabel>,
        /// Services by origin: local, or imported and in force.
        services: By<OriginLabel>,
        /// Imported instances that can't be called; `hamlet describe service` says why.
        instances_not_programmed: Number,
        /// 1 for the state that a peer is in, 0 for the others.
        peer_state: By<StateLabels>,
        /// Age of a peer's state in seconds.
        peer_state_age_seconds: By<PeerLabel>,
        /// Services between us and a peer, by flow and set: offered, unsent, acknowledged, unusable, heard, in-force, refused, older-in-force, withheld.
        peer_services: By<SetLabels>,
        /// Age of the newest proof that both sides hold the same set, in seconds; absent without one.
        peer_proof_age_seconds: By<FlowLabels>,
        /// Age of the oldest change that a peer has not answered, in seconds; 0 when none waits.
        peer_oldest_unanswered_seconds: By<PeerLabel>,
        /// For how long something has made no progress although a stream is up, in seconds; 0 when nothing stalls.
        peer_stall_seconds: By<StallLabels>,
        /// Age of a peer's last sign of life inside the stream, in seconds; absent with peers that give none.
        peer_beat_age_seconds: By<PeerLabel>,
        /// Changes that a peer has not sent us yet, as it says; absent with peers that don't say.
        peer_beat_unsent: By<PeerLabel>,
        /// Rounds of comparison on the present stream, by how they went; absent with peers that offer none.
        peer_rounds: By<RoundLabels>,
        /// Services gone from a source that the brake on its withdrawals still serves.
        source_withheld: By<SourceLabel>,
        /// Failed attempts to reach a peer since the last proven health.
        peer_attempts: By<PeerLabel>,
        /// Connections with a peer that were closed because it sent too many streams or frames, or broke HTTP/2.
        peer_floods: By<PeerLabel>,
        /// Time since a peer's bundle endpoint last gave a good answer, in seconds; absent without one.
        peer_bundle_age_seconds: By<PeerLabel>,
        /// Looks at a peer's bundle endpoint that failed, and bundles of it that were refused, since the last good one.
        peer_bundle_failures: By<PeerLabel>,
        /// 1 while a peer's last bundle has the sequence of the one held and other content: an alarm.
        peer_bundle_fork: By<PeerLabel>,
        /// CAs that a peer has announced on the stream and that are not in force yet.
        peer_bundle_announced: By<PeerLabel>,
        /// 1 if our bundle is in force at a peer as the peer says, 0 if it says otherwise; absent while it says nothing.
        peer_bundle_ours: By<PeerLabel>,
        /// The sequence of a peer's bundle; absent without one.
        peer_bundle_sequence: By<PeerLabel>,
        /// When the first CA of a peer's bundle expires, in seconds since the Unix epoch; absent without one.
        peer_bundle_not_after_seconds: By<PeerLabel>,
        /// Invitations that somebody may still use.
        peering_invitations_open: Number,
        /// What is left of a lost peer's hold time, in seconds; absent while it doesn't run.
        peer_hold_left_seconds: By<PeerLabel>,
    }
}

/// Exchanges of peering by token, counted for the life of the process. Words, never a name.
#[derive(Debug, Clone, Default)]
pub struct PeeringMetrics {
    exchanges: Family<ExchangeLabels, Counter>,
}

impl PeeringMetrics {
    /// Registers itself, once.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Exchanges of peering by token that ended, by our side and outcome: agreed, or why not";
        registry.register("peering_exchanges", help, self.exchanges.clone());
    }

    /// One has ended; `outcome` is one of a bounded set of words.
    pub fn ended(&self, side: PeeringSide, outcome: &'static str) {
        self.exchanges.get_or_create(&ExchangeLabels { side, outcome }).inc();
    }
}

/// What one scrape reads.
#[derive(Debug, Clone, Copy)]
pub struct Scrape<'a> {
    /// The agent.
    pub agent: &'a AgentStatus,
    /// Its peers.
    pub peers: &'a [PeerStatus],
    /// Its services.
    pub services: &'a [ServiceStatus],
    /// Its readiness.
    pub readiness: &'a [ReadyCheck],
}

/// Renders everything: the registry that others count into, and the state.
#[derive(Debug)]
pub struct MetricsText {
    registry: Registry,
}

impl MetricsText {
    /// An empty registry with the prefix `hamlet_` and the build's description in it.
    pub fn new(version: &str, commit: &str) -> MetricsText {
        let mut registry = Registry::with_prefix("hamlet");
        let build =
            vec![("version".to_owned(), version.to_owned()), ("commit".to_owned(), commit.to_owned())];
        registry.register("build", "The build that runs", Info::new(build));
        MetricsText { registry }
    }

    /// Where others register what they count; names get the prefix `hamlet_`.
    pub fn registry_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// The text of one scrape, closed by `# EOF`.
    pub fn render(&self, scrape: Scrape<'_>) -> String {
        let mut fresh = Registry::with_prefix("hamlet");
        let state = StateMetrics::default();
        state.fill(scrape);
        state.register(&mut fresh);
        let mut out = String::new();
        let encoded = encode_registry(&mut out, &self.registry)
            .and_then(|()| encode_registry(&mut out, &fresh))
            .and_then(|()| encode_eof(&mut out));
        // Writing to a String can't fail; an encoder of somebody's metric may.
        if encoded.is_err() {
            tracing::error!("a metric could not be encoded");
            let _ = writeln!(out, "# EOF");
        }
        out
    }
}

#[allow(clippy::cast_precision_loss)] // counts and ages are far below 2^52
fn number(n: u64) -> f64 {
    n as f64
}
fn secs(ms: u64) -> f64 {
    number(ms) / 1000.0
}
fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

impl StateMetrics {
    fn fill(&self, scrape: Scrape<'_>) {
        self.ready.set(flag(scrape.readiness.iter().all(|c| c.ok)));
        self.fill_agent(scrape.agent);
        self.fill_services(scrape.services);
        for peer in scrape.peers {
            self.fill_peer(peer);
        }
    }

    fn fill_agent(&self, agent: &AgentStatus) {
        self.uptime_seconds.set(secs(agent.uptime_ms));
        self.config_generation.set(number(agent.config.generation));
        self.config_problems.set(number(agent.config.errors.len() as u64));
        self.config_age_seconds.set(secs(agent.config.loaded_ms));
        self.peering_invitations_open.set(number(agent.invitations_open));
        self.store_healthy.set(flag(agent.store.healthy));
        self.store_entries.set(number(agent.store.entries));
        self.store_size_bytes.set(number(agent.store.size_bytes));
        if let Some(audit) = &agent.audit {
            self.audit_writable.set(flag(audit.error.is_none()));
            self.audit_sequence.set(number(audit.sequence));
            self.audit_failures.set(number(audit.failures));
            self.audit_lost.set(number(audit.lost));
        }
        self.tasks_running.set(number(agent.tasks.running));
        self.tasks_failed.set(number(agent.tasks.failed.len() as u64));
        for listener in &agent.listeners {
            let label = ListenerLabel { listener: listener.name.clone() };
            self.listener_up.get_or_create(&label).set(flag(listener.error.is_none()));
        }
        for source in &agent.sources {
            let label = SourceLabel { source: source.name.clone() };
            self.source_withheld.get_or_create(&label).set(number(source.withheld_total));
        }
        for identity in &agent.identities {
            let label = RoleLabel { role: identity.role.clone() };
            self.identity_not_after_seconds.get_or_create(&label).set(number(identity.not_after_s));
            self.identity_good.get_or_create(&label).set(flag(identity.problem().is_none()));
        }
        if let Some(authority) = &agent.authority {
            self.fill_authority(authority);
        }
        if let Some(api) = &agent.workload_api {
            let label = SocketLabel { socket: api.socket.clone() };
            self.workload_api_up.get_or_create(&label).set(flag(api.error.is_none()));
        }
    }

    fn fill_authority(&self, authority: &AuthorityStatus) {
        for (kind, count) in [("done", authority.steps), ("failed", authority.failures)] {
            self.authority_steps.get_or_create(&KindLabel { kind }).set(number(count));
        }
        let ends = [("root", authority.root_not_after_s), ("issuing", authority.issuing_not_after_s)];
        for (kind, end) in ends {
            self.authority_not_after_seconds.get_or_create(&KindLabel { kind }).set(number(end));
        }
    }

    fn fill_services(&self, services: &[ServiceStatus]) {
        let local = services.iter().filter(|s| s.origin == Origin::Local).count() as u64;
        let imported = services.len() as u64 - local;
        for (origin, count) in [("local", local), ("imported", imported)] {
            self.services.get_or_create(&OriginLabel { origin }).set(number(count));
        }
        let imported = services.iter().filter(|s| s.origin != Origin::Local);
        let stuck = imported
            .flat_map(|s| &s.instances)
            .filter(|i| matches!(i.programming, Programming::NotProgrammed { .. }));
        self.instances_not_programmed.set(number(stuck.count() as u64));
    }

    fn fill_peer(&self, peer: &PeerStatus) {
        let name = || peer.name.clone();
        for state in PeerState::WORDS {
            let label = StateLabels { peer: name(), state };
            self.peer_state.get_or_create(&label).set(flag(peer.state.word() == state));
        }
        let label = PeerLabel { peer: name() };
        self.peer_state_age_seconds.get_or_create(&label).set(secs(peer.state_age_ms));
        self.peer_attempts.get_or_create(&label).set(number(peer.attempts));
        self.peer_floods.get_or_create(&label).set(number(peer.floods));
        if let Some(ms) = peer.hold_left_ms {
            self.peer_hold_left_seconds.get_or_create(&label).set(secs(ms));
        }
        self.fill_progress(peer);
        self.fill_bundle(peer);
        let sets = |flow: Flow, sets: &[(&'static str, u64)]| {
            for (set, count) in sets {
                let label = SetLabels { peer: name(), flow: flow.into(), set };
                self.peer_services.get_or_create(&label).set(number(*count));
            }
        };
        let proof = |flow: Flow, proof: &Proof| {
            if let Proof::Equal { age_ms } = proof {
                let label = FlowLabels { peer: name(), flow: flow.into() };
                self.peer_proof_age_seconds.get_or_create(&label).set(secs(*age_ms));
            }
        };
        if let Some(p) = &peer.publish {
            let counts = [
                ("offered", p.offered),
                ("unsent", p.unsent),
                ("acknowledged", p.acknowledged),
                ("refused", p.refused_total),
                ("unusable", p.unusable_total),
            ];
            sets(Flow::Publish, &counts);
            proof(Flow::Publish, &p.proof);
            let waits = secs(p.oldest_unanswered_ms.unwrap_or(0));
            self.peer_oldest_unanswered_seconds.get_or_create(&label).set(waits);
        }
        if let Some(i) = &peer.import {
            let counts = [
                ("heard", i.heard),
                ("in-force", i.in_force),
                ("refused", i.refused_total),
                ("older-in-force", i.older_in_force),
                ("withheld", i.withheld_total),
            ];
            sets(Flow::Import, &counts);
            proof(Flow::Import, &i.proof);
        }
    }

    /// What proves it.
    fn fill_bundle(&self, peer: &PeerStatus) {
        let Some(bundle) = &peer.bundle else { return };
        let label = PeerLabel { peer: peer.name.clone() };
        if bundle.url.is_some() || bundle.follow.is_some() {
            let fork = bundle.refused.as_deref() == Some("fork");
            self.peer_bundle_fork.get_or_create(&label).set(flag(fork));
            self.peer_bundle_failures.get_or_create(&label).set(number(bundle.failures));
        }
        if bundle.follow.is_some() {
            self.peer_bundle_announced.get_or_create(&label).set(bundle.announced.len() as f64);
        }
        if let Some(ours) = &bundle.ours {
            self.peer_bundle_ours.get_or_create(&label).set(flag(ours.in_force));
        }
        if let Some(age) = bundle.age_ms {
            self.peer_bundle_age_seconds.get_or_create(&label).set(secs(age));
        }
        if let Some(sequence) = bundle.sequence {
            self.peer_bundle_sequence.get_or_create(&label).set(number(sequence));
        }
        if let Some(end) = bundle.not_after_s() {
            self.peer_bundle_not_after_seconds.get_or_create(&label).set(number(end));
        }
    }

    /// Stalls, beats and rounds.
    fn fill_progress(&self, peer: &PeerStatus) {
        let label = PeerLabel { peer: peer.name.clone() };
        for kind in StallKind::ALL {
            let stall = peer.stalls.iter().find(|s| s.what == kind);
            let labels = StallLabels { peer: peer.name.clone(), stall: kind.word() };
            self.peer_stall_seconds.get_or_create(&labels).set(secs(stall.map_or(0, |s| s.age_ms)));
        }
        if let Some(beat) = &peer.beat {
            self.peer_beat_age_seconds.get_or_create(&label).set(secs(beat.age_ms));
            self.peer_beat_unsent.get_or_create(&label).set(number(beat.unsent));
        }
        if let Some(rounds) = peer.publish.as_ref().and_then(|p| p.rounds) {
            let counts = [("equal", rounds.equal), ("buckets", rounds.buckets), ("all", rounds.all)];
            for (round, count) in counts {
                let labels = RoundLabels { peer: peer.name.clone(), round };
                self.peer_rounds.get_or_create(&labels).set(number(count));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{BeatStatus, PublishProgress, RoundsStatus, StallStatus};
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn a_scrape_shows_counters_and_state_and_a_removed_peer_leaves_no_series() {
        let mut text = MetricsText::new("1.2.3", "abc");
        let counter: Counter = Counter::default();
        text.registry_mut().register("gateway_connections", "Accepted connections", counter.clone());
        counter.inc_by(3);
        let proof = Proof::Equal { age_ms: 2500 };
        let rounds = Some(RoundsStatus { buckets: 2, ..Default::default() });
        let publish = PublishProgress { offered: 7, proof, rounds, ..Default::default() };
        let peer = PeerStatus {
            name: "globex".into(),
            publish: Some(publish),
            stalls: vec![StallStatus { what: StallKind::Unproven, age_ms: 40_000 }],
            beat: Some(BeatStatus { age_ms: 3_000, ..Default::default() }),
            ..Default::default()
        };
        let agent = AgentStatus::default();
        let scrape = |peers| Scrape { agent: &agent, peers, services: &[], readiness: &[] };
        let with = text.render(scrape(std::slice::from_ref(&peer)));
        for line in [
            "hamlet_build_info{version=\"1.2.3\",commit=\"abc\"} 1",
            "hamlet_gateway_connections_total 3",
            "hamlet_ready 1.0",
            "hamlet_peer_state{peer=\"globex\",state=\"connecting\"} 1.0",
            "hamlet_peer_state{peer=\"globex\",state=\"down\"} 0.0",
            "hamlet_peer_services{peer=\"globex\",flow=\"publish\",set=\"offered\"} 7.0",
            "hamlet_peer_proof_age_seconds{peer=\"globex\",flow=\"publish\"} 2.5",
            "hamlet_peer_stall_seconds{peer=\"globex\",stall=\"unproven\"} 40.0",
            "hamlet_peer_stall_seconds{peer=\"globex\",stall=\"unanswered\"} 0.0",
            "hamlet_peer_beat_age_seconds{peer=\"globex\"} 3.0",
            "hamlet_peer_rounds{peer=\"globex\",round=\"buckets\"} 2.0",
            "# HELP hamlet_ready Whether the agent is ready (1) or not (0).",
        ] {
            assert!(with.lines().any(|l| l == line), "no line {line:?} in\n{with}");
        }
        assert!(with.ends_with("# EOF\n"));
        assert!(!text.render(scrape(&[])).contains("globex"));
    }
}
