//! The demo's own clients: what a workload, a resolver and a stranger would send, and what they
//! see. They assert nothing; errors are texts for a failed step.

pub(super) mod dns;
pub(super) mod http;
pub(super) mod tls;

use std::time::Duration;

/// How long one probe may take.
pub(super) const PROBE_TIME: Duration = Duration::from_secs(15);

/// Gives `work` its time.
async fn in_time<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let out = tokio::time::timeout(PROBE_TIME, work).await;
    out.unwrap_or_else(|_| Err(format!("no answer within {PROBE_TIME:?}")))
}
