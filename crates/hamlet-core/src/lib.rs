//! What a federated service is, who may see it, and what we accept: the pure heart of Hamlet.
//!
//! Nothing here does IO, starts a task, reads a clock or the environment; time is passed in.
//! Everything that enters a type of this crate has been canonicalised and checked, and what is
//! checked is what is used (canonicalise, authorise, use only the canonical value).
//!
//! # Glossary
//!
//! One word an idea, in code, docs, logs and metrics alike.
//!
//! | word | meaning |
//! |---|---|
//! | **mesh** | one administrative domain with a trust domain of its own; we are one |
//! | **peer** | another mesh's agent that we know by name, address, trust and exact identity |
//! | **owner** | the role that publishes services over a stream |
//! | **consumer** | the role that imports them and answers each change |
//! | **source** | where local services come from (files today) |
//! | **sink** | where imported services go (DNS, gateway routes) |
//! | **slice** | the part of a catalogue with exactly one writer: a source's, or a peer's |
//! | **catalogue** | all slices of one side: the local one, or the imported one |
//! | **view** | what one peer should have of us: a snapshot and a compacted change feed |
//! | **digest** | the hash tree over what an owner said; equal roots prove equal sets |
//! | **publication** | the policy that makes services visible to peers; nothing else does |
//! | **import** | the policy that says what we accept from a peer |
//! | **offer** | one service as an owner puts it on the wire |
//! | **rejection** | a refusal as data: rule, field, what to do; becomes the NACK, status and metric |
//! | **heard** | the owner's last word for each key, admitted or refused |
//! | **in force** | what we really serve of it |
//! | **guard** | the brake on mass withdrawals |
//! | **hold time** | how long imports outlive a lost peer, counted while we run and try |
//! | **route** | where the gateway sends one name |

pub mod address;
pub mod brake;
pub mod catalogue;
pub mod causes;
pub mod digest;
pub mod durable;
pub mod expiry;
pub mod guard;
pub mod import;
pub mod imported;
pub mod judge;
pub mod lease;
pub mod name;
pub mod offers;
pub mod publication;
pub mod rejection;
pub mod seeded;
pub mod service;
pub mod settle;
pub mod spiffe;
pub mod view;

pub use address::{AddressRange, EndpointAddress, PortRange};
pub use name::{DnsLabel, Fqdn, MeshName, NameError, NameSuffix, PeerName};
pub use rejection::{Rejection, RejectionCode};
pub use service::{
    CallerForm, Endpoint, FederatedService, ImportedInstance, ImportedService, Instance, LocalInstance,
    LocalService, NotProgrammed, Protocol, ServiceId, ServiceName,
};
pub use spiffe::{SpiffeError, SpiffeId, TrustDomain};
