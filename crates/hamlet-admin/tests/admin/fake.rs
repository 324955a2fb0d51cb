//! A state source under the test's control, and what is needed to serve it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hamlet_admin::api::{
    AgentStatus, ApiError, BundleSet, BundleSetError, ConfigStatus, ErrorCode, ImportStatus, InstanceStatus,
    Origin, OwnBundle, PeerState, PeerStatus, PeeringAnswer, PeeringList, PeeringRequest, Programming,
    PublicationStatus, ReadyCheck, ReloadProblems, ReloadReport, ServiceStatus, StoreStatus, TranscriptLine,
    TranscriptPage,
};
use hamlet_admin::metrics::Scrape;
use hamlet_admin::{AdminSocket, BoxFuture, Caller, Client, MetricsText, StateSource};
use hamlet_runtime::{Shutdown, Supervisor};
use parking_lot::Mutex;
use tokio::sync::watch;

/// What the fake answers.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) peers: Vec<PeerStatus>,
    pub(crate) services: Vec<ServiceStatus>,
    pub(crate) ready: Vec<ReadyCheck>,
    pub(crate) reload: Option<ReloadProblems>,
}

/// The source.
pub(crate) struct Fake {
    pub(crate) state: Mutex<State>,
    pub(crate) changed: watch::Sender<u64>,
}

impl Fake {
    pub(crate) fn new(state: State) -> Arc<Fake> {
        Arc::new(Fake { state: Mutex::new(state), changed: watch::Sender::new(0) })
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.send_modify(|n| *n += 1);
    }
}

impl StateSource for Fake {
    fn agent(&self) -> AgentStatus {
        AgentStatus {
            mesh: "acme".into(),
            trust_domain: "acme.example".into(),
            version: "0.0.0".into(),
            store: StoreStatus { healthy: true, ..Default::default() },
            config: ConfigStatus { files: 1, generation: 1, ..Default::default() },
            ..Default::default()
        }
    }
    fn peers(&self) -> Vec<PeerStatus> {
        self.state.lock().peers.clone()
    }
    fn services(&self) -> Vec<ServiceStatus> {
        self.state.lock().services.clone()
    }
    fn publications(&self) -> Vec<PublicationStatus> {
        vec![PublicationStatus { name: "shared".into(), peers: vec!["globex".into()], ..Default::default() }]
    }
    fn imports(&self) -> Vec<ImportStatus> {
        vec![ImportStatus { name: "from-globex".into(), peer: "globex".into(), ..Default::default() }]
    }
    fn readiness(&self) -> Vec<ReadyCheck> {
        self.state.lock().ready.clone()
    }
    fn reload(&self, _caller: Caller) -> BoxFuture<'_, Result<ReloadReport, ReloadProblems>> {
        let problems = self.state.lock().reload.clone();
        Box::pin(async move {
            match problems {
                Some(problems) => Err(problems),
                None => Ok(ReloadReport { generation: 2, changed: true, ..Default::default() }),
            }
        })
    }
    fn confirm_withdrawals(&self, _caller: Caller) -> u64 {
        3
    }
    fn transcript(&self, peer: &str, after: u64) -> Option<TranscriptPage> {
        let known = self.state.lock().peers.iter().any(|p| p.name == peer);
        let line = |seq| TranscriptLine { seq, kind: "ack".into(), times: 1, ..Default::default() };
        let entries = (after + 1..=4).map(line).collect();
        known.then(|| TranscriptPage { peer: peer.to_owned(), gone: 0, entries })
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
        request: PeeringRequest,
    ) -> BoxFuture<'_, Result<PeeringAnswer, ApiError>> {
        let missing = || ApiError {
            code: ErrorCode::NotFound,
            message: "there is no such peer".to_owned(),
            candidates: vec![],
            problems: None,
        };
        let answer = match request {
            PeeringRequest::List => Ok(PeeringAnswer::List(PeeringList::default())),
            _ => Err(missing()),
        };
        Box::pin(std::future::ready(answer))
    }

    fn metrics_text(&self) -> String {
        let (agent, peers) = (self.agent(), self.peers());
        let scrape = Scrape { agent: &agent, peers: &peers, services: &[], readiness: &[] };
        MetricsText::new("0.0.0", "none").render(scrape)
    }
    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// A peer in a state.
pub(crate) fn peer(name: &str, state: PeerState) -> PeerStatus {
    PeerStatus { name: name.into(), trust_domain: format!("{name}.example"), state, ..Default::default() }
}

/// A service; imported when a peer is given.
pub(crate) fn service(name: &str, fqdn: &str, peer: Option<&str>) -> ServiceStatus {
    let full = peer.map_or_else(|| name.to_owned(), |p| format!("{p}/{name}"));
    let origin = peer.map_or(Origin::Local, |p| Origin::Imported { peer: p.to_owned() });
    let instance = InstanceStatus {
        id: "http".into(),
        fqdn: format!("http.{fqdn}"),
        protocol: "HTTP".into(),
        port: Some(80),
        egress: None,
        backends: vec![],
        endpoints: vec![],
        programming: Programming::Programmed,
    };
    ServiceStatus {
        name: full,
        fqdn: fqdn.into(),
        origin,
        standing: Default::default(),
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

/// A served fake in a folder of its own.
pub(crate) struct Served {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) supervisor: Supervisor,
    pub(crate) shutdown: Shutdown,
}

impl Served {
    pub(crate) fn folder() -> Served {
        let shutdown = Shutdown::new();
        let supervisor = Supervisor::new(shutdown.clone());
        Served { folder: tempfile::tempdir().unwrap(), supervisor, shutdown }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("run/admin.sock")
    }

    pub(crate) async fn serve(&self, fake: &Arc<Fake>) -> Result<AdminSocket, hamlet_admin::ServeError> {
        let spawner = self.supervisor.spawner();
        AdminSocket::start(&self.socket(), fake.clone(), &spawner, self.shutdown.clone()).await
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.socket(), Duration::from_secs(20))
    }

    pub(crate) async fn stop(&self) {
        let stuck = self.supervisor.stop(Duration::from_secs(10), Duration::from_secs(1)).await;
        assert!(stuck.is_empty(), "still running: {stuck:?}");
    }
}
