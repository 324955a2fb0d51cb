//! Where the API takes its answers from: the agent implements this, tests do so as well.

use crate::api::{
    AgentStatus, ApiError, BundleSet, BundleSetError, ImportStatus, OwnBundle, PeerStatus, PeeringAnswer,
    PeeringRequest, PublicationStatus, ReadyCheck, ReloadProblems, ReloadReport, ServiceStatus,
    TranscriptPage,
};

/// A boxed future, as an object-safe trait needs it.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who sent a request, as far as the kernel says: for the audit, not for access control, which is the
/// permission of the socket's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    /// The user id of the process that connected; absent where the system doesn't say.
    pub uid: Option<u32>,
}

/// A view of the running agent. Each call is a snapshot made now; none may block.
pub trait StateSource: Send + Sync + 'static {
    /// The agent itself.
    fn agent(&self) -> AgentStatus;
    /// All peers, in any order.
    fn peers(&self) -> Vec<PeerStatus>;
    /// All services: local and imported, in any order.
    fn services(&self) -> Vec<ServiceStatus>;
    /// All publications, in any order.
    fn publications(&self) -> Vec<PublicationStatus>;
    /// All imports, in any order.
    fn imports(&self) -> Vec<ImportStatus>;
    /// Whether this agent can do its work. A lost peer is no reason to be unready.
    fn readiness(&self) -> Vec<ReadyCheck>;
    /// Reads the configuration again and swaps it in, or says why not; done when it returns.
    fn reload(&self, caller: Caller) -> BoxFuture<'_, Result<ReloadReport, ReloadProblems>>;
    /// Lets go what the brake on a source's withdrawals holds back; returns how many entries.
    fn confirm_withdrawals(&self, caller: Caller) -> u64;
    /// What was said on a peer's streams after entry number `after`; `None` if there is no such peer.
    fn transcript(&self, peer: &str, after: u64) -> Option<TranscriptPage>;
    /// Our own bundle, or why there is none.
    fn own_bundle(&self) -> Result<OwnBundle, String>;
    /// Puts a bundle (PEM, JWK set or map) of a peer in force by hand and keeps it; done when it
    /// returns.
    fn set_bundle(
        &self,
        caller: Caller,
        peer: &str,
        bytes: bytes::Bytes,
    ) -> BoxFuture<'_, Result<BundleSet, BundleSetError>>;
    /// Does what is asked about peering by token; done when it returns.
    fn peering(
        &self,
        caller: Caller,
        request: PeeringRequest,
    ) -> BoxFuture<'_, Result<PeeringAnswer, ApiError>>;
    /// All metrics in OpenMetrics text, closed by `# EOF`.
    fn metrics_text(&self) -> String;
    /// A counter that moves whenever any list may have changed; watches wait on it.
    fn changed(&self) -> tokio::sync::watch::Receiver<u64>;
}
