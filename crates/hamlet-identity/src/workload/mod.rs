//! Identity, trust and revocation from the SPIFFE Workload API: a SPIRE agent, or anything else that
//! speaks it.
//!
//! Keeps what the last message said; each message is the full state, so that what is absent from it
//! is gone. It decides nothing: what comes from here passes the same checks as what comes from files
//! ([`LocalIdentity`](crate::LocalIdentity), [`TrustBundle`], [`crate::verify_peer_chain`]). Invariants: a lost connection takes
//! nothing away; a bundle is kept under its own trust domain and never joined with another; no key is
//! printed.

mod lists;
mod wire;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures::StreamExt;
use hamlet_core::causes::with_causes;
use hamlet_core::{SpiffeId, TrustDomain};
use hamlet_runtime::{Backoff, Shutdown};
use parking_lot::Mutex;
use spiffe::X509Svid;
use spiffe::transport::Endpoint;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;

use crate::bundle::TrustBundle;
use crate::ca::PemPair;
use crate::crl::Lenience;
use crate::local::{CertificateProvider, ProviderError};
use crate::peering::to_pem;
use lists::{AllLists, Bundles};
pub use lists::{GIVEN_CRLS_BYTES_MAX, GIVEN_CRLS_MAX, GivenLists};
pub(crate) use lists::{GivenRefusal, Link};
pub use wire::MESSAGE_BYTES_MAX;
use wire::{Caller, Told, WireError};

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
/// Most ids that an error names.
const IDS_SHOWN: usize = 4;
/// Shortest time between two warnings of revocation lists that can't be used, or are nobody's.
pub const LISTS_WARNED_EVERY: Duration = Duration::from_secs(60);
/// Longest hint that an identity is chosen by, in bytes.
pub const HINT_BYTES_MAX: usize = 256;

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

/// Which of the identities that the Workload API gives is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SvidChoice {
    /// The first one, which the SPIFFE Workload API calls the default identity (section 5.3).
    Default,
    /// The one with this id.
    Id(SpiffeId),
    /// The one that its registration entry gives this hint (section 5.2.1); hints are unique there.
    Hint(String),
}

impl fmt::Display for SvidChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SvidChoice::Default => f.write_str("an identity"),
            SvidChoice::Id(id) => write!(f, "{id}"),
            SvidChoice::Hint(hint) => write!(f, "an identity with the hint {hint:?}"),
        }
    }
}

/// One identity that the Workload API gave us.
#[derive(Clone)]
struct Given {
    id: SpiffeId,
    hint: Option<String>,
    pair: PemPair,
}

/// The last message.
#[derive(Default)]
struct State {
    given: Vec<Given>,
    bundles: Bundles,
    lists: AllLists,
}

/// A Workload API and what it said last.
pub struct WorkloadApi {
    endpoint: Endpoint,
    shown: String,
    state: ArcSwapOption<State>,
    last_error: Mutex<Option<Trouble>>,
    warned: Mutex<Option<(Instant, Warned)>>,
    generation: watch::Sender<u64>,
}

/// What was last said of revocation lists: what can't be used, and whose are nobody's.
type Warned = (Option<String>, Option<String>);

/// Why nothing new comes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trouble {
    text: String,
    /// What a person can do about it.
    remedy: &'static str,
}

/// Where it is said that nobody answers.
const START_IT: &str = "start the SPIRE agent, or correct the socket, and see that this user may open it";
/// Where somebody answers and gives nothing.
const REGISTER: &str =
    "register this process: an entry whose selectors fit it (`spire-server entry show` lists them)";
/// Where what comes is no Workload API's, or is broken.
const MEND_IT: &str = "see what listens at that socket, and its log";

/// Whether `endpoint` is a place of a Workload API that a private key may come from: a unix socket, or
/// TCP on this machine, since there is no TLS.
///
/// # Errors
/// Why it isn't.
pub fn check_endpoint(endpoint: &str) -> Result<(), EndpointError> {
    parse_endpoint(endpoint).map(drop)
}

/// The socket's path, if that is what `endpoint` names.
pub fn socket_path(endpoint: &str) -> Option<PathBuf> {
    match parse_endpoint(endpoint) {
        Ok(Endpoint::Unix(path)) => Some(path),
        _ => None,
    }
}

fn parse_endpoint(text: &str) -> Result<Endpoint, EndpointError> {
    let wrong = |reason: String| EndpointError { endpoint: text.to_owned(), reason };
    let endpoint = Endpoint::parse(text).map_err(|error| wrong(error.to_string()))?;
    match &endpoint {
        Endpoint::Tcp { host, .. } if !host.is_loopback() => {
            Err(wrong("private keys would cross the network in clear text".to_owned()))
        }
        _ => Ok(endpoint),
    }
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
        Ok(Arc::new(WorkloadApi {
            endpoint: parse_endpoint(endpoint)?,
            shown: endpoint.to_owned(),
            state: ArcSwapOption::empty(),
            last_error: Mutex::new(None),
            warned: Mutex::new(None),
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
                    self.failed(error.unwrap_or(Failed::Silent));
                    if useless { RETRY_MAX } else { backoff.next_delay() }
                }
            };
            if shutdown.or_begun(tokio::time::sleep(wait)).await.is_none() {
                break 'following;
            }
        }
    }

    async fn connect(&self) -> Result<Caller, Failed> {
        match tokio::time::timeout(CONNECT_TIMEOUT, Caller::connect(&self.endpoint)).await {
            Ok(caller) => Ok(caller?),
            Err(_) => Err(Failed::TimedOut),
        }
    }

    /// Asks once, for whoever doesn't follow: takes one message, or notes why there is none within
    /// `patience`.
    pub async fn ask(&self, patience: Duration) {
        let asking = async {
            let mut messages = self.connect().await?.messages().await?;
            self.take(messages.next().await.ok_or(Failed::Silent)??);
            Ok(())
        };
        match tokio::time::timeout(patience, asking).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.failed(error),
            Err(_) => self.failed(Failed::TimedOut),
        }
    }

    /// Waits until it has said something, or it is known why it doesn't; at most `patience`.
    pub async fn heard(&self, patience: Duration) {
        let mut changed = self.changed();
        // The error says no more than that nobody will ever answer.
        let _ = tokio::time::timeout(patience, changed.wait_for(|generation| *generation > 0)).await;
    }

    /// One connection, to its end.
    async fn follow(&self) -> Heard {
        let mut any = false;
        let result = async {
            let mut messages = self.connect().await?.messages().await?;
            while let Some(told) = messages.next().await {
                self.take(told?);
                any = true;
            }
            Ok(())
        };
        let error = result.await.err();
        Heard { any, error }
    }

    /// A message replaces everything. A list that can't be used is no reason to go without the rest of
    /// it: an identity that isn't renewed ends.
    fn take(&self, told: Told) {
        let given: Vec<Given> = told.svids.iter().take(SVIDS_MAX).filter_map(given).collect();
        let sets = told.bundles.iter().take(BUNDLES_MAX);
        let bundles = sets.filter_map(|(domain, bundle)| {
            let domain = TrustDomain::parse(domain.as_str()).ok()?;
            let ders: Vec<_> = bundle.authorities().iter().map(|c| c.as_bytes().into()).collect();
            let read = TrustBundle::from_pem(domain.clone(), to_pem(&ders).as_bytes());
            Some((domain, read.map(Arc::new).map_err(|error| error.to_string())))
        });
        let bundles: Bundles = bundles.collect();
        let last = self.state.load_full();
        let lists = match &last {
            Some(last) => AllLists::read(&told.crls, &bundles, &last.lists),
            None => AllLists::read(&told.crls, &bundles, &AllLists::default()),
        };
        let state = State { given, bundles, lists };
        tracing::info!(
            endpoint = %self.shown,
            identities = state.given.len(),
            bundles = state.bundles.len(),
            lists = state.lists.count(),
            "the Workload API gave identities and bundles"
        );
        self.warn_of(&state.lists);
        self.state.store(Some(Arc::new(state)));
        *self.last_error.lock() = None;
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Says what is wrong with revocation lists, if it is news, and not too often: each rotation of a
    /// certificate repeats them.
    fn warn_of(&self, lists: &AllLists) {
        let (now, found) = (Instant::now(), (lists.problem(), lists.strangers()));
        let mut warned = self.warned.lock();
        match warned.as_ref() {
            Some((at, said)) if *said == found || now < *at + LISTS_WARNED_EVERY => return,
            None if found == (None, None) => return,
            _ => {}
        }
        if let Some(error) = &found.0 {
            tracing::warn!(endpoint = %self.shown, %error, "the Workload API gave revocation lists that can't be used");
        }
        if let Some(issuers) = &found.1 {
            tracing::warn!(
                endpoint = %self.shown, %issuers,
                "revocation lists of CAs that are in none of the bundles: ignored, unless a chain shows such a CA"
            );
        }
        *warned = Some((now, found));
    }

    fn failed(&self, error: Failed) {
        let trouble = Trouble { text: error.to_string(), remedy: error.remedy() };
        let mut last = self.last_error.lock();
        // The same error again is no news.
        if last.as_ref() != Some(&trouble) {
            tracing::warn!(endpoint = %self.shown, error = %trouble.text, "the Workload API gives nothing; what it said last stays");
            *last = Some(trouble);
            drop(last);
            self.generation.send_modify(|generation| *generation += 1);
        }
    }

    /// Whether there ever was a message.
    pub fn has_spoken(&self) -> bool {
        self.state.load().is_some()
    }

    /// Where it is, as configured.
    pub fn endpoint(&self) -> &str {
        &self.shown
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

    /// How many bundles it gave us, our own among them.
    pub fn bundles(&self) -> usize {
        self.state.load().as_ref().map_or(0, |state| state.bundles.len())
    }

    /// The revocation lists of a trust domain's CAs, or of such as may stand below them, `None` if there
    /// are none; `stale` says what an outdated one means.
    pub fn lists(&self, domain: &TrustDomain, stale: Lenience) -> Option<Arc<GivenLists>> {
        self.state.load().as_ref()?.lists.of(domain, stale)
    }

    /// How many revocation lists of CAs in the bundles are in force.
    pub fn lists_in_force(&self) -> usize {
        self.state.load().as_ref().map_or(0, |state| state.lists.count())
    }

    /// Which revocation lists can't be used and why, what is done instead, and what to do.
    pub fn lists_problem(&self) -> Option<String> {
        self.state.load().as_ref()?.lists.problem()
    }

    /// What was last wrong; `None` while messages come.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().as_ref().map(|trouble| trouble.text.clone())
    }

    /// Why nothing new comes and what to do, in one sentence with its place; `None` while messages
    /// come.
    pub fn problem(&self) -> Option<String> {
        let last = self.last_error.lock();
        last.as_ref().map(|t| format!("the Workload API at {}: {}; {}", self.shown, t.text, t.remedy))
    }

    /// Whether the Workload API answered and gave nothing to whoever asked.
    pub fn is_refused(&self) -> bool {
        self.last_error.lock().as_ref().is_some_and(|trouble| trouble.remedy == REGISTER)
    }

    /// Bumped with each message and with each new error, after it is visible.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// A provider of one identity.
    pub fn provider(self: &Arc<WorkloadApi>, choice: SvidChoice) -> Arc<dyn CertificateProvider> {
        Arc::new(OneIdentity { api: self.clone(), choice })
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
    /// The stream ended before its first message.
    Silent,
    Wire(WireError),
}

impl From<WireError> for Failed {
    fn from(error: WireError) -> Failed {
        Failed::Wire(error)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::TimedOut => f.write_str("no answer in time"),
            Failed::Silent => f.write_str("it closed the stream without a message"),
            Failed::Wire(error) => f.write_str(&with_causes(error)),
        }
    }
}

impl Failed {
    /// What the Workload API itself said.
    fn code(&self) -> Option<Code> {
        match self {
            Failed::Wire(error) => error.code(),
            Failed::TimedOut | Failed::Silent => None,
        }
    }

    /// Answers that will be the same however often we ask (SPIFFE Workload API section 6.1).
    fn is_useless(&self) -> bool {
        matches!(self.code(), Some(Code::InvalidArgument | Code::Unimplemented))
    }

    fn remedy(&self) -> &'static str {
        match (self, self.code()) {
            (Failed::TimedOut | Failed::Wire(WireError::Unreachable(_)), _) => START_IT,
            (_, Some(Code::PermissionDenied)) => REGISTER,
            // Unknown is how the client calls a stream that broke off.
            (_, Some(Code::Unavailable | Code::Unknown)) => START_IT,
            _ => MEND_IT,
        }
    }
}

fn given(svid: &X509Svid) -> Option<Given> {
    let id = SpiffeId::parse(svid.spiffe_id().to_string().as_str()).ok()?;
    let ders: Vec<_> = svid.cert_chain().iter().map(|c| c.as_bytes().into()).collect();
    let key = pem::encode(&pem::Pem::new("PRIVATE KEY", svid.private_key().as_bytes()));
    let hint = svid.hint().map(ToOwned::to_owned);
    Some(Given { id, hint, pair: PemPair { cert: to_pem(&ders), key } })
}

struct OneIdentity {
    api: Arc<WorkloadApi>,
    choice: SvidChoice,
}

impl CertificateProvider for OneIdentity {
    fn current(&self) -> Result<PemPair, ProviderError> {
        let at = &self.api.shown;
        let state = self.api.state.load();
        let Some(state) = state.as_ref() else {
            let last = self.api.last_error.lock();
            let (text, remedy) = match last.as_ref() {
                Some(trouble) => (trouble.text.as_str(), trouble.remedy),
                None => ("it has said nothing yet", START_IT),
            };
            return Err(ProviderError::new(format!("the Workload API at {at}: {text}"), remedy));
        };
        let found = state.given.iter().find(|given| match &self.choice {
            SvidChoice::Default => true,
            SvidChoice::Id(id) => given.id == *id,
            SvidChoice::Hint(hint) => given.hint.as_ref() == Some(hint),
        });
        found.map(|given| given.pair.clone()).ok_or_else(|| {
            let ids: Vec<&str> = state.given.iter().map(|given| given.id.as_str()).take(IDS_SHOWN).collect();
            let given = if ids.is_empty() { "nothing".to_owned() } else { ids.join(" and ") };
            let text = format!(
                "{} is not registered for this process; the Workload API at {at} gives {given}",
                self.choice
            );
            ProviderError::new(text, REGISTER)
        })
    }
}
