//! What peers are offered, in each dialect: the same services, keys and bytes of their own.
//!
//! Views of v1alpha1 exist only for peers that use it: between two Hamlet agents nothing is
//! encoded twice.

use std::sync::Arc;

use hamlet_core::PeerName;
use hamlet_core::offers::{Encoder, PublicationInputs, Publications};
use hamlet_core::service::ServiceName;
use hamlet_core::view::{VersionCounter, View};
use tokio::sync::watch;

use super::{Dialect, service, translate};

/// A service that is not offered to a peer, and why its dialect can't say it.
pub type Unsaid = (ServiceName, Arc<str>);

/// All views of both dialects.
#[derive(Debug)]
pub struct Offered {
    v1alpha1: Publications,
    v1alpha2: Publications,
}

impl Default for Offered {
    fn default() -> Offered {
        Offered::new()
    }
}

impl Offered {
    /// No views yet.
    pub fn new() -> Offered {
        Offered::encoded_by(Arc::new(service::encode))
    }

    /// The same with an encoder of one's own for v1alpha2, for owners that write more than we do.
    pub fn encoded_by(v1alpha2: Encoder) -> Offered {
        let versions = VersionCounter::default;
        Offered {
            v1alpha1: Publications::on_demand(translate::TYPE_URL, Arc::new(translate::down), versions()),
            v1alpha2: Publications::new(service::TYPE_URL, v1alpha2, versions()),
        }
    }

    /// Makes all views true.
    pub fn refresh(&self, inputs: PublicationInputs<'_>) {
        self.v1alpha2.refresh(inputs);
        self.v1alpha1.refresh(inputs);
    }

    /// The peer's view in a dialect, and its successors; made on the spot if it is the first of
    /// v1alpha1. `None` before the first [`refresh`](Self::refresh) or for a peer that isn't
    /// published to.
    pub fn view(&self, dialect: Dialect, peer: &PeerName) -> Option<watch::Receiver<Arc<View>>> {
        match dialect {
            Dialect::V1alpha1 => self.v1alpha1.demand(peer),
            Dialect::V1alpha2 => self.v1alpha2.view(peer),
        }
    }

    /// What a peer that uses v1alpha1 isn't offered although policy would have it, and why; empty
    /// for a peer without a view there.
    pub fn unsaid(&self, peer: &PeerName) -> Vec<Unsaid> {
        self.v1alpha1.unsaid(peer)
    }

    /// Number of distinct views, of both dialects.
    pub fn view_count(&self) -> usize {
        self.v1alpha1.view_count() + self.v1alpha2.view_count()
    }
}
