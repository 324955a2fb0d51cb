//! Owners and consumers for programs that embed the protocol: see the [crate's page](crate).
//!
//! A facade: each part is the agent's own ([`crate::link`], [`crate::dial`], [`crate::server`]),
//! with defaults where the agent has configuration. It has no resource types of its own.

mod bundles;
mod consumer;
mod events;
mod identity;
mod judge;
mod node;
mod owner;
mod resource;
mod store;

pub use bundles::BundleHandler;
pub use consumer::{Consumer, ConsumerBuilder, Entry, HOLD};
pub use events::{ConsumerEvent, EVENTS_MAX, Events, Missable, OwnerEvent};
pub use identity::{AGENT_ID_PATH, Identity, Peer, PeerError};
pub use judge::{JudgeFn, Observed, OneView, ResourceJudge};
pub use node::StartError;
pub use owner::{KEY_BYTES_MAX, Owner, OwnerBuilder, PutError, VALUE_BYTES_MAX};
pub use resource::{ProtobufResource, Resource};
pub use store::MemoryStore;

pub use crate::bundles::{BundleAnswer, BundleProblem, HeardBundle, NotInForce, StreamBundle};
pub use hamlet_core::durable::{ImportStore, LoadedPeer};
pub use hamlet_core::guard::GuardSettings;
pub use hamlet_core::import::ImportRules;
pub use hamlet_core::imported::ImportLimits;
pub use hamlet_core::{FederatedService, PeerName, Rejection, RejectionCode};
pub use hamlet_identity::{CertificateProvider, IdentityError, PemPair, ProviderError};
