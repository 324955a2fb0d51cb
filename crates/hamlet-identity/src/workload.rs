//! Identity and trust from the SPIFFE Workload API: a SPIRE agent, or anything else that speaks it.
//!
//! Keeps what the last message said; each message is the full state, so that what is absent from it
//! is gone. It decides nothing: what comes from here passes the same checks as what comes from files
//! ([`LocalIdentity`](crate::LocalIdentity), [`TrustBundle`]). Invariants: a lost connection takes
//! nothing away; a bundle is kept under its own trust domain and never joined with another; no key is
//! printed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::StreamExt;
use hamlet_core::causes::with_causes;
use hamlet_core::{SpiffeId, TrustDomain};
use hamlet_runtime::{Backoff, Shutdown};
use parking_lot::Mutex;
use spiffe::transport::{Endpoint, GrpcStatusCode, TransportError};
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Context, X509Svid};
use tokio::sync::watch;

use crate::bundle::TrustBundle;
use crate::ca::PemPair;
use crate::local::CertificateProvider;
use crate::peering::to_pem;

/// First and longest time between two attempts to reach the Workload API.
pub const RETRY_FIRST: Duration = Duration::from_millis(500);
/// See [`RETRY_FIRST`]. Also the wait after an answer that says that asking again is of no use.
pub const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long connecting may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most identities that are kept of one message.
pub const SVIDS_MAX: usize = 64;
/// Most trust bundles that are kept of one message.
pub const BUNDLES_MAX: usize = 4096;

/// Why the place of the Workload API can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{endpoint} is no place of a Workload API: {reason}; write `unix:///run/spire/agent.sock` or `tcp://127.0.0.1:8081`"
)]
pub struct EndpointError {
    /// What was given.
    pub endpoint: String,
    /// What is wrong with it.
    pub reason: String,
}

/// One identity that the Workload API gave us.
#[derive(Clone)]
struct Given {
    id: SpiffeId,
    pair: PemPair,
}

/// The last message.
#[derive(Default)]
struct State {
    given: Vec<Given>,
    bundles: BTreeMap<TrustDomain, Result<Arc<TrustBundle>, String>>,
}

/// A Workload API and what it said last.
pub struct WorkloadApi {
    endpoint: Endpoint,
    shown: String,
    state: ArcSwapOption<State>,
    last_error: Mutex<Option<String>>,
    generation: watch::Sender<u64>,
}

impl fmt::Debug for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApi").field("endpoint", &self.shown).field("ids", &self.ids()).finish()
    }
}

impl WorkloadApi {
    /// One at `endpoint` (`unix:///path` or `tcp://ip:port`, SPIFFE Workload Endpoint section 4), which
    /// nobody asks before [`Self::run`].
    ///
    /// # Errors
    /// When that is no place of a Workload API.
    pub fn new(endpoint: &str) -> Result<Arc<WorkloadApi>, EndpointError> {
        let wrong = |reason: String| EndpointError { endpoint: endpoint.to_owned(), reason };
        Ok(Arc::new(WorkloadApi {
            endpoint: Endpoint::parse(endpoint).map_err(|error| wrong(error.to_string()))?,
            shown: endpoint.to_owned(),
            state: ArcSwapOption::empty(),
            last_error: Mutex::new(None),
            generation: watch::Sender::new(0),
        }))
    }

    /// Follows the Workload API until `shutdown` begins. A closed stream is opened again at once, a
    /// refused one after a while; what was last said stays meanwhile.
    pub async fn run(self: Arc<WorkloadApi>, shutdown: Shutdown) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        'following: loop {
            let heard = tokio::select! {
                () = shutdown.begun() => break 'following,
                heard = self.follow() => heard,
            };
            let wait = match heard {
                // Whoever closes a stream in order is there: the next one may begin at once, but not
                // in a loop without end.
                Heard { any: true, error: None } => {
                    backoff.reset();
                    Duration::ZERO
                }
                Heard { any, error } => {
                    if any {
                        backoff.reset();
                    }
                    let useless = error.as_ref().is_some_and(Failed::is_useless);
                    self.failed(error.map_or_else(
                        || "it closed the stream without a message".to_owned(),
                        |e| e.to_string(),
                    ));
                    if useless { RETRY_MAX } else { backoff.next_delay() }
                }
            };
            if shutdown.or_begun(tokio::time::sleep(wait)).await.is_none() {
                break 'following;
            }
        }
    }

    /// One connection, to its end.
    async fn follow(&self) -> Heard {
        let mut any = false;
        let result = async {
            let connecting = WorkloadApiClient::connect(self.endpoint.clone());
            let client = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(client) => client?,
                Err(_) => return Err(Failed::TimedOut),
            };
            let mut messages = client.stream_x509_contexts().await?;
            while let Some(context) = messages.next().await {
                self.take(&context?);
                any = true;
            }
            Ok(())
        };
        let error = result.await.err();
        Heard { any, error }
    }

    /// A message replaces everything.
    fn take(&self, context: &X509Context) {
        let given: Vec<Given> =
            context.svids().iter().take(SVIDS_MAX).filter_map(|svid| given(svid)).collect();
        let sets = context.bundle_set().iter().take(BUNDLES_MAX);
        let bundles = sets.filter_map(|(domain, bundle)| {
            let domain = TrustDomain::parse(domain.as_str()).ok()?;
            let ders: Vec<_> = bundle.authorities().iter().map(|c| c.as_bytes().into()).collect();
            let read = TrustBundle::from_pem(domain.clone(), to_pem(&ders).as_bytes());
            Some((domain, read.map(Arc::new).map_err(|error| error.to_string())))
        });
        let state = State { given, bundles: bundles.collect() };
        tracing::info!(
            endpoint = %self.shown,
            identities = state.given.len(),
            bundles = state.bundles.len(),
            "the Workload API gave identities and bundles"
        );
        self.state.store(Some(Arc::new(state)));
        *self.last_error.lock() = None;
        self.generation.send_modify(|generation| *generation += 1);
    }

    fn failed(&self, error: String) {
        let mut last = self.last_error.lock();
        // The same error again is no news.
        if last.as_deref() != Some(error.as_str()) {
            tracing::warn!(endpoint = %self.shown, %error, "the Workload API gives nothing; what it said last stays");
            *last = Some(error);
        }
    }

    /// The ids it gave us, the default one first.
    pub fn ids(&self) -> Vec<SpiffeId> {
        let state = self.state.load();
        state.as_ref().map(|s| s.given.iter().map(|g| g.id.clone()).collect()).unwrap_or_default()
    }

    /// The bundle of a trust domain, our own or a federated one; `None` if it gave none.
    ///
    /// # Errors
    /// Why the one it gave can't be used.
    pub fn bundle(&self, domain: &TrustDomain) -> Option<Result<Arc<TrustBundle>, String>> {
        self.state.load().as_ref()?.bundles.get(domain).cloned()
    }

    /// What was last wrong; `None` while messages come.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// Bumped with each message, after it is visible.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// A provider of one identity: that of `id`, or the default one.
    pub fn provider(self: &Arc<WorkloadApi>, id: Option<SpiffeId>) -> Arc<dyn CertificateProvider> {
        Arc::new(OneIdentity { api: self.clone(), id })
    }
}

/// What one connection brought.
struct Heard {
    /// Whether there was a message.
    any: bool,
    error: Option<Failed>,
}

/// Why a connection ended.
enum Failed {
    TimedOut,
    Api(WorkloadApiError),
}

impl From<WorkloadApiError> for Failed {
    fn from(error: WorkloadApiError) -> Failed {
        Failed::Api(error)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::TimedOut => write!(f, "no connection within {CONNECT_TIMEOUT:?}"),
            Failed::Api(error) => f.write_str(&with_causes(error)),
        }
    }
}

impl Failed {
    /// Answers that will be the same however often we ask (SPIFFE Workload API section 6.1).
    fn is_useless(&self) -> bool {
        match self {
            Failed::Api(WorkloadApiError::Transport(TransportError::Status(status))) => {
                matches!(status.code(), GrpcStatusCode::InvalidArgument | GrpcStatusCode::Unimplemented)
            }
            _ => false,
        }
    }
}

fn given(svid: &X509Svid) -> Option<Given> {
    let id = SpiffeId::parse(svid.spiffe_id().to_string().as_str()).ok()?;
    let ders: Vec<_> = svid.cert_chain().iter().map(|c| c.as_bytes().into()).collect();
    let key = pem::encode(&pem::Pem::new("PRIVATE KEY", svid.private_key().as_bytes()));
    Some(Given { id, pair: PemPair { cert: to_pem(&ders), key } })
}

struct OneIdentity {
    api: Arc<WorkloadApi>,
    id: Option<SpiffeId>,
}

impl CertificateProvider for OneIdentity {
    fn current(&self) -> Result<PemPair, String> {
        let state = self.api.state.load();
        let Some(state) = state.as_ref() else {
            let why = self.api.last_error().unwrap_or_else(|| "it has said nothing yet".to_owned());
            return Err(format!("{}: {why}", self.api.shown));
        };
        let found = match &self.id {
            Some(id) => state.given.iter().find(|g| g.id == *id),
            None => state.given.first(),
        };
        found.map(|g| g.pair.clone()).ok_or_else(|| {
            let ids: Vec<&str> = state.given.iter().map(|g| g.id.as_str()).collect();
            let wanted = self.id.as_ref().map_or("an identity", SpiffeId::as_str);
            let given = if ids.is_empty() { "nothing".to_owned() } else { ids.join(" and ") };
            format!("{}: {wanted} is not registered for this process; it gives {given}", self.api.shown)
        })
    }
}
