//! Who decides on an entry that a peer offers: a judge of services, or an embedder's own.
//!
//! Not the bookkeeping, which is [`crate::imported`]'s. What a judge admits holds what it claimed
//! until it is released.

use std::sync::Arc;
use std::time::Duration;

use crate::import::ImportRules;
use crate::lease::NameLeases;
use crate::rejection::{Rejection, RejectionCode};
use crate::service::{FederatedService, ImportedService};

/// Turns `Any.value` under a wire key into a checked service; one for each dialect.
pub type Decoder = Arc<dyn Fn(&str, &[u8]) -> Result<FederatedService, Rejection> + Send + Sync>;

/// Decides on one encoded entry of a peer. What it admits holds what it claimed until it is
/// released.
pub trait Judge: Send + 'static {
    /// What is served of an entry.
    type Value: Clone + PartialEq + std::fmt::Debug + Send + Sync + 'static;

    /// Decodes, admits and claims.
    ///
    /// # Errors
    /// The refusal that the owner is told.
    fn judge(&self, key: &str, value: &[u8], now: Duration) -> Result<Arc<Self::Value>, Rejection>;

    /// Claims again what is in force, after a later claim of the same entry was taken back.
    fn reclaim(&self, value: &Self::Value, now: Duration);

    /// Lets go of what was claimed.
    fn release(&self, value: &Self::Value, now: Duration);
}

/// The judge of services: a dialect's decoder, the import rules, and who holds which name.
pub struct ServiceJudge {
    pub(crate) rules: Option<Arc<ImportRules>>,
    pub(crate) decoder: Decoder,
    pub(crate) leases: NameLeases,
}

impl Judge for ServiceJudge {
    type Value = ImportedService;

    fn judge(&self, key: &str, value: &[u8], now: Duration) -> Result<Arc<ImportedService>, Rejection> {
        let Some(rules) = &self.rules else {
            let message = "the importing mesh has no Import for this peer; ask its operators for one";
            return Err(Rejection::new(RejectionCode::Policy, "no-import", "resource_id", message));
        };
        let service = rules.admit(&(self.decoder)(key, value)?)?;
        self.leases.claim(&service, now)?;
        Ok(Arc::new(service))
    }

    fn reclaim(&self, service: &ImportedService, now: Duration) {
        // Held by the same service, so it can't be refused.
        let _ = self.leases.claim(service, now);
    }

    fn release(&self, service: &ImportedService, now: Duration) {
        self.leases.release(&service.id, now);
    }
}
