//! The page of metrics is read off a scrape in which everything has happened once.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use hamlet_admin::api::{
    AgentStatus, AnchorStatus, AuditStatus, AuthorityStatus, BeatStatus, BundleStatus, IdentityStatus,
    ImportProgress, ListenerStatus, OursThere, PeerState, PeerStatus, Proof, PublishProgress, RoundsStatus,
    SourceStatus, StallKind, WorkloadApiStatus,
};
use hamlet_admin::metrics::{MetricsText, PeeringMetrics, PeeringSide, Scrape};
use hamlet_gateway::metrics::{ConnectionLabels, ListenerLabels, ResponseLabels};
use hamlet_gateway::{GatewayMetrics, ListenerKind, Outcome};
use hamlet_peering::Refusal;
use hamlet_peering::channel::{AGREED, OUTCOMES};

use crate::source::committed;

/// A scrape of an agent that has one of everything.
fn scrape() -> String {
    let gateway = GatewayMetrics::default();
    for &listener in ListenerKind::ALL {
        let labels = ListenerLabels { listener };
        gateway.open.get_or_create(&labels).set(1);
        gateway.received_bytes.get_or_create(&labels).inc();
        gateway.sent_bytes.get_or_create(&labels).inc();
        gateway.responses.get_or_create(&ResponseLabels { listener, class: 2 }).inc();
        for &outcome in Outcome::ALL {
            gateway.connections.get_or_create(&ConnectionLabels { listener, outcome }).inc();
        }
    }
    let mut text = MetricsText::new("0.0.0", "none");
    gateway.register(text.registry_mut());
    let peering = PeeringMetrics::default();
    peering.ended(PeeringSide::inviter, AGREED);
    peering.register(text.registry_mut());
    let proof = Proof::Equal { age_ms: 1 };
    let peer = PeerStatus {
        name: "globex".into(),
        hold_left_ms: Some(1),
        beat: Some(BeatStatus::default()),
        publish: Some(PublishProgress {
            proof: proof.clone(),
            rounds: Some(RoundsStatus::default()),
            ..Default::default()
        }),
        bundle: Some(BundleStatus {
            url: Some("https://globex.example/".into()),
            follow: Some("stream".into()),
            sequence: Some(1),
            age_ms: Some(1),
            authorities: vec![AnchorStatus::default()],
            ours: Some(OursThere::default()),
            ..Default::default()
        }),
        import: Some(ImportProgress { proof, ..Default::default() }),
        ..Default::default()
    };
    let agent = AgentStatus {
        listeners: vec![ListenerStatus { name: "agent".into(), ..Default::default() }],
        identities: vec![IdentityStatus { role: "agent".into(), ..Default::default() }],
        sources: vec![SourceStatus { name: "file".into(), ..Default::default() }],
        authority: Some(AuthorityStatus::default()),
        workload_api: Some(WorkloadApiStatus::default()),
        audit: Some(AuditStatus::default()),
        ..Default::default()
    };
    text.render(Scrape { agent: &agent, peers: &[peer], services: &[], readiness: &[] })
}

struct Metric {
    name: String,
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

fn read(text: &str) -> Vec<Metric> {
    let mut metrics: Vec<Metric> = vec![];
    for line in text.lines() {
        let head = |mark: &str| line.strip_prefix(mark).and_then(|rest| rest.split_once(' '));
        if let Some((name, help)) = head("# HELP ") {
            let (name, help) = (name.to_owned(), help.to_owned());
            metrics.push(Metric { name, kind: String::new(), help, labels: BTreeSet::new() });
            continue;
        }
        let Some(metric) = metrics.last_mut() else { continue };
        if let Some((_, kind)) = head("# TYPE ") {
            kind.clone_into(&mut metric.kind);
        } else if let Some((series, _)) = line.split_once('}').filter(|_| !line.starts_with('#')) {
            let (_, labels) = series.split_once('{').unwrap_or_default();
            metric.labels.extend(labels.split("\",").filter_map(|l| Some(l.split_once('=')?.0.to_owned())));
        }
    }
    metrics
}

const HEAD: &str = "# Metrics

<!-- Generated from a scrape. Don't edit: HAMLET_BLESS=1 cargo test -p hamlet --test docs -->

`GET /metrics` on `listen.admin` and on the admin socket, in OpenMetrics text. Labels are bounded by the configuration
(peers, listeners, identities) or by the lists below; no name of a service is ever a label. What depends on a peer is
absent when the peer is gone.

| metric | type | labels | meaning |
|---|---|---|---|
";

#[test]
fn the_page_of_metrics_lists_what_a_scrape_gives() {
    let metrics = read(&scrape());
    assert!(metrics.len() > 25, "only {} metrics", metrics.len());
    let mut page = HEAD.to_owned();
    for m in &metrics {
        assert!(m.name.starts_with("hamlet_"), "{}", m.name);
        let suffix = match m.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let labels: Vec<String> = m.labels.iter().map(|l| format!("`{l}`")).collect();
        let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
        writeln!(page, "| `{}{suffix}` | {} | {labels} | {} |", m.name, m.kind, m.help).unwrap();
    }
    let list = |words: Vec<&str>| words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
    let listeners = list(ListenerKind::ALL.iter().map(|l| l.as_str()).collect());
    let outcomes = list(Outcome::ALL.iter().map(|o| o.as_str()).collect());
    let refusals = Refusal::ALL.iter().map(|refusal| refusal.word());
    let exchanges = list(OUTCOMES.into_iter().chain(refusals).collect());
    let states = list(PeerState::WORDS.to_vec());
    let stalls = list(StallKind::ALL.iter().map(|s| s.word()).collect());
    write!(
        page,
        "\n`listener` of the gateway's metrics: {listeners}.\n\n`outcome` of the gateway's metrics: {outcomes}.\n\n`state`: {states}.\n\n\
         `stall`: {stalls}.\n\n`round`: `equal`, `buckets`, `all`.\n\n\
         `side`: `inviter`, `accepter`. `outcome` of `hamlet_peering_exchanges_total`: {exchanges}.\n\n\
         `flow`: `publish`, `import`. `class`: the first digit of the HTTP status.\n"
    )
    .unwrap();
    committed("docs/reference/metrics.md", &page);
}
