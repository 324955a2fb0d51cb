//! An agent that isn't one: a state source with one of everything, on a real socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hamlet_admin::api::*;
use hamlet_admin::{AdminSocket, BoxFuture, Caller, StateSource};
use hamlet_runtime::{Shutdown, Supervisor};
use parking_lot::Mutex;
use tokio::sync::watch;

pub(crate) struct Fake {
    pub(crate) peers: Mutex<Vec<PeerStatus>>,
    pub(crate) broken: Mutex<Option<ReloadProblems>>,
    changed: watch::Sender<u64>,
}

impl Fake {
    pub(crate) fn change_peers(&self, change: impl FnOnce(&mut Vec<PeerStatus>)) {
        change(&mut self.peers.lock());
        self.changed.send_modify(|n| *n += 1);
    }
}

impl StateSource for Fake {
    fn agent(&self) -> AgentStatus {
        AgentStatus {
            invitations_open: 0,
            audit: None,
            mesh: "acme".into(),
            trust_domain: "acme.example".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: 4711,
            uptime_ms: 200_000,
            config: ConfigStatus { path: "acme".into(), files: 3, loaded_ms: 12_000, ..Default::default() },
            store: StoreStatus { path: "acme/data".into(), healthy: true, entries: 2, ..Default::default() },
            tasks: TaskStatus { running: 9, failed: vec![] },
            listeners: vec![ListenerStatus {
                name: "ingress".into(),
                address: "0.0.0.0:7444".into(),
                error: None,
            }],
            authority: None,
            workload_api: None,
            ca_problem: None,
            identities: vec![IdentityStatus {
                role: "agent".into(),
                id: "spiffe://acme.example/hamlet/agent".into(),
                not_before_s: 1_968_000_000,
                not_after_s: 2_000_000_000,
                expires_in_s: 360 * 86_400,
                renewed_by_us: false,
                renewed_by_workload_api: false,
                error: None,
            }],
            sources: vec![SourceStatus { name: "file".into(), services: 1, ..Default::default() }],
        }
    }
    fn peers(&self) -> Vec<PeerStatus> {
        self.peers.lock().clone()
    }
    fn services(&self) -> Vec<ServiceStatus> {
        services()
    }
    fn publications(&self) -> Vec<PublicationStatus> {
        vec![PublicationStatus {
            name: "shared".into(),
            names: vec!["web".into(), "gone".into()],
            peers: vec!["globex".into(), "initech".into()],
            services: vec!["web".into()],
            missing: vec!["gone".into()],
            ..Default::default()
        }]
    }
    fn imports(&self) -> Vec<ImportStatus> {
        vec![ImportStatus {
            name: "from-globex".into(),
            peer: "globex".into(),
            suffixes: vec!["globex.example".into()],
            ranges: vec!["127.0.0.0/8".into()],
            endpoint_ports: vec!["443".into(), "7444".into()],
            admitted: 2,
            refused_total: 1,
            refused: vec![refused()],
            ..Default::default()
        }]
    }
    fn readiness(&self) -> Vec<ReadyCheck> {
        vec![ReadyCheck::ok("store")]
    }
    fn reload(&self, _caller: Caller) -> BoxFuture<'_, Result<ReloadReport, ReloadProblems>> {
        let broken = self.broken.lock().clone();
        let report = ReloadReport {
            generation: 2,
            changed: true,
            changes: vec!["peer globex: changed".into()],
            ..Default::default()
        };
        Box::pin(async move { broken.map_or(Ok(report), Err) })
    }
    fn confirm_withdrawals(&self, _caller: Caller) -> u64 {
        3
    }
    fn transcript(&self, peer: &str, after: u64) -> Option<TranscriptPage> {
        let entries = transcript().into_iter().filter(|e| e.seq > after).collect();
        (peer == "globex").then(|| TranscriptPage { peer: peer.to_owned(), gone: 2, entries })
    }
    fn own_bundle(&self) -> Result<OwnBundle, String> {
        Ok(OwnBundle { trust_domain: "acme.example".into(), jwks: "{\"keys\": []}".into() })
    }
    fn set_bundle(
        &self,
        _caller: Caller,
        peer: &str,
        bytes: bytes::Bytes,
    ) -> BoxFuture<'_, Result<BundleSet, BundleSetError>> {
        let answer = match (peer, bytes.is_empty()) {
            ("globex", false) => {
                let (peer, added) = (peer.to_owned(), vec![format!("{} bytes", bytes.len())]);
                Ok(BundleSet { peer, added, ..Default::default() })
            }
            ("globex", true) => Err(BundleSetError::Refused("it is empty".into())),
            _ => Err(BundleSetError::NoPeer),
        };
        Box::pin(async move { answer })
    }
    fn peering(
        &self,
        _caller: Caller,
        _request: PeeringRequest,
    ) -> BoxFuture<'_, Result<PeeringAnswer, ApiError>> {
        Box::pin(std::future::ready(Ok(PeeringAnswer::List(PeeringList::default()))))
    }

    fn metrics_text(&self) -> String {
        "# EOF\n".into()
    }
    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// One of each kind of line; the last is hostile.
fn transcript() -> Vec<TranscriptLine> {
    let line = |seq: u64, way, kind: &str| TranscriptLine {
        seq,
        at_ms: 1_700_000_000_000 + seq * 1_111,
        stream: 7,
        way,
        kind: kind.to_owned(),
        times: 1,
        ..Default::default()
    };
    let some = |text: &str| Some(text.to_owned());
    vec![
        TranscriptLine { text: some("dialled"), ..line(3, Way::None, "opened") },
        TranscriptLine { text: some("no hello"), ..line(4, Way::Out, "subscribe") },
        TranscriptLine {
            key: some("ledger"),
            nonce: some("1"),
            version: Some(12),
            bytes: Some(213),
            ..line(5, Way::In, "upsert")
        },
        TranscriptLine {
            nonce: some("1"),
            code: some("PERMISSION_DENIED"),
            rule: some("name-outside-suffixes"),
            ..line(6, Way::Out, "nack")
        },
        TranscriptLine { text: some("9 echo 8, head 12"), times: 40, ..line(7, Way::In, "beat") },
        TranscriptLine { key: some("evil\u{1b}[2J\nname"), nonce: some("2"), ..line(8, Way::In, "delete") },
        TranscriptLine { text: some("gone"), code: some("UNAVAILABLE"), ..line(9, Way::None, "ended") },
    ]
}

fn refused() -> RefusedService {
    RefusedService {
        service: "evil\u{1b}[2J".into(),
        rule: "name-outside-suffixes".into(),
        field: "fqdn".into(),
        message: "bank.example is not below globex.example".into(),
        older_in_force: false,
        age_ms: Some(5000),
        code: Some("PERMISSION_DENIED".into()),
        version: Some(41),
    }
}

pub(crate) fn healthy() -> PeerStatus {
    let equal = Proof::Equal { age_ms: 3000 };
    PeerStatus {
        name: "globex".into(),
        trust_domain: "globex.example".into(),
        address: Some("agent.globex.example:7443".into()),
        direction: Direction::Dialled,
        state: PeerState::InSync { proven_ms: 3000, refused: 1, withheld: 0, older_in_force: 0 },
        state_age_ms: 200_000,
        version: Some("v1alpha2".into()),
        hello: Some(HelloStatus {
            agent: "hamlet 0.1.0".into(),
            version: "1".into(),
            capabilities: vec!["digest".into(), "bookmark".into()],
            window_messages: Some(2048),
            window_bytes: Some(1 << 20),
            max_message_bytes: Some(65_536),
            beat_every_ms: Some(5_000),
        }),
        beat: Some(BeatStatus { age_ms: 2_000, ..Default::default() }),
        publish: Some(PublishProgress {
            offered: 1,
            acknowledged: 1,
            unusable_total: 1,
            unusable: vec![RefusedService {
                service: "web".into(),
                rule: "port-unknown".into(),
                field: "instances.http".into(),
                message: "the owner names none; set spec.ports in the Import".into(),
                ..Default::default()
            }],
            window: Some(WindowStatus { messages: 2048, bytes: Some(1 << 20) }),
            rounds: Some(RoundsStatus { equal: 1, ..Default::default() }),
            proof: equal.clone(),
            last_change_ms: Some(60_000),
            ..Default::default()
        }),
        import: Some(ImportProgress {
            heard: 3,
            in_force: 2,
            refused_total: 1,
            refused: vec![refused()],
            proof: equal,
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn lost() -> PeerStatus {
    PeerStatus {
        name: "initech".into(),
        trust_domain: "initech.example".into(),
        state: PeerState::Down {
            since_ms: 60_000,
            next_attempt_ms: Some(4000),
            hold_left_ms: Some(3_540_000),
        },
        state_age_ms: 60_000,
        version: Some("v1alpha1".into()),
        version_note: Some("in v1alpha1 the importer dials: this peer has to dial us to be served".into()),
        publish: Some(PublishProgress {
            offered: 1,
            unsaid_total: 2,
            unsaid: vec![UnsaidService {
                service: "ledger".into(),
                reason: "its instances http and grpc need different SNIs".into(),
            }],
            ..Default::default()
        }),
        attempts: 5,
        next_attempt_ms: Some(4000),
        hold_left_ms: Some(3_540_000),
        last_error: Some(Event { message: "connection refused".into(), age_ms: 2000 }),
        ..Default::default()
    }
}

fn instance(fqdn: &str, programming: Programming) -> InstanceStatus {
    InstanceStatus {
        id: "http".into(),
        fqdn: format!("http.{fqdn}"),
        protocol: "HTTP".into(),
        port: Some(80),
        egress: None,
        backends: vec![],
        endpoints: vec![],
        programming,
    }
}

fn service(name: &str, fqdn: &str, origin: Origin, instance: InstanceStatus) -> ServiceStatus {
    ServiceStatus {
        name: name.into(),
        fqdn: fqdn.into(),
        origin,
        standing: Standing::Current,
        description: String::new(),
        tags: vec![],
        labels: Default::default(),
        egress: vec![],
        instances: vec![instance],
        published_to: vec![],
        sans: vec![],
        conflicts: vec![],
    }
}

fn services() -> Vec<ServiceStatus> {
    let globex = || Origin::Imported { peer: "globex".into() };
    let mut web = instance("web.acme.example", Programming::Programmed);
    web.backends = vec!["127.0.0.1:8080".into()];
    let mut ledger = instance("ledger.globex.example", Programming::Programmed);
    ledger.egress = Some("127.64.3.9:80".into());
    ledger.endpoints = vec!["203.0.113.10:7444".into()];
    let stuck = Programming::NotProgrammed {
        reason: "port unknown: the owner names none".into(),
        remedy: "set spec.ports in the Import".into(),
    };
    let mut raw = instance("raw.globex.example", stuck);
    (raw.id, raw.protocol, raw.port) = ("tcp".into(), "TCP".into(), None);
    let mut local = service("web", "web.acme.example", Origin::Local, web);
    local.published_to = vec!["globex".into(), "initech".into()];
    let mut held = service("globex/raw", "raw.globex.example", globex(), raw);
    held.standing = Standing::Held;
    let mut imported = service("globex/ledger", "ledger.globex.example", globex(), ledger);
    imported.egress = vec!["127.64.3.8:80".into()];
    vec![local, imported, held]
}

/// The fake, served until it is stopped.
pub(crate) struct Agent {
    pub(crate) fake: Arc<Fake>,
    folder: tempfile::TempDir,
    supervisor: Supervisor,
}

impl Agent {
    pub(crate) async fn start(peers: Vec<PeerStatus>) -> Agent {
        let changed = watch::Sender::new(0);
        let fake = Arc::new(Fake { peers: Mutex::new(peers), broken: Mutex::default(), changed });
        let (folder, shutdown) = (tempfile::tempdir().unwrap(), Shutdown::new());
        let supervisor = Supervisor::new(shutdown.clone());
        let agent = Agent { fake, folder, supervisor };
        let spawner = agent.supervisor.spawner();
        AdminSocket::start(&agent.socket(), agent.fake.clone(), &spawner, shutdown).await.unwrap();
        agent
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("data/admin.sock")
    }

    pub(crate) async fn stop(self) {
        let stuck = self.supervisor.stop(Duration::from_secs(10), Duration::from_secs(1)).await;
        assert!(stuck.is_empty(), "still running: {stuck:?}");
    }
}
