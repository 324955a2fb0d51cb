//! The Hamlet wire, for the agent and for programs of your own: one side *offers* named resources,
//! the other *imports* them, answers each change, and both can prove that they hold the same set.
//!
//! The agent is built on this crate, and so can be anything that federates: embed an
//! [`Owner`](sdk::Owner) or a [`Consumer`](sdk::Consumer) in a few lines, with services of the
//! published protocol or with any protobuf message as resource.
//!
//! # The protocol in short
//!
//! Two programs of different trust domains keep one gRPC stream over mutual TLS
//! (`federation.resourcediscovery.v1alpha2.DiscoveryService/EstablishStream`; either may dial). The
//! owner sends changes, each with a nonce: *upsert* or *delete* of one key. The consumer answers each:
//! an **ACK** means that the change is durable in its store and visible to its readers, not merely
//! received; a **NACK** carries a rule, a field and what to do, and stops nothing else: the last good
//! version of that key stays in force for a while. An owner keeps no queue for anyone, only a place in
//! its view: a slow consumer gets the latest value of each key and holds up nobody.
//!
//! Between two Hamlet peers, extensions that others don't notice add a window of unanswered changes,
//! signs of life, and a digest: after a reconnect only what differs is sent, and *proven* means that
//! both hold the same set by its hash. Towards other implementations everything works one change at a
//! time, and nothing is ever proven.
//!
//! # An owner
//!
//! ```no_run
//! use hamlet_protocol::sdk::{Identity, Owner, OwnerEvent, Peer, ProtobufResource};
//!
//! #[derive(Clone, PartialEq, prost::Message)]
//! struct Price {
//!     #[prost(uint64, tag = "1")]
//!     cents: u64,
//! }
//!
//! impl ProtobufResource for Price {
//!     const TYPE_URL: &'static str = "type.googleapis.com/shop.v1.Price";
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let identity = Identity::from_files("bank.pem", "bank.key")?;
//! let shop = Peer::from_file("shop", "shop.example", "shop-ca.pem")?;
//! let owner: Owner<Price> = Owner::builder(identity).peer(shop).listen("0.0.0.0:7443").start().await?;
//! let mut events = owner.observe();
//! owner.put("coffee", &Price { cents: 250 })?;
//! owner.ready(); // Everything is put: from now on absence says something.
//! while let Some(event) = events.next().await {
//!     if let OwnerEvent::Refused { peer, key, reason, .. } = event {
//!         println!("{peer} refused {key}: {reason}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # A consumer
//!
//! ```no_run
//! # use hamlet_protocol::sdk::{Identity, Peer, ProtobufResource};
//! # #[derive(Clone, PartialEq, prost::Message)]
//! # struct Price {
//! #     #[prost(uint64, tag = "1")]
//! #     cents: u64,
//! # }
//! # impl ProtobufResource for Price {
//! #     const TYPE_URL: &'static str = "type.googleapis.com/shop.v1.Price";
//! # }
//! use hamlet_protocol::sdk::{Consumer, ConsumerEvent};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let identity = Identity::from_files("shop.pem", "shop.key")?;
//! let bank = Peer::from_file("bank", "bank.example", "bank-ca.pem")?.at("bank.example:7443");
//! let consumer: Consumer<Price> = Consumer::builder(identity).peer(bank).start().await?;
//! let mut events = consumer.watch();
//! for entry in consumer.entries() {
//!     println!("{} costs {}", entry.key, entry.value.cents);
//! }
//! while let Some(event) = events.next().await {
//!     if let ConsumerEvent::Upserted { key, value, .. } = event {
//!         println!("{key} costs {} now", value.cents);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A [judge](sdk::ConsumerBuilder::judge) refuses what the program doesn't want, and the owner is told
//! why. Without a type parameter both ends speak of [`FederatedService`](hamlet_core::FederatedService),
//! the resource of the published protocol: so they talk to Hamlet agents and to other implementations;
//! [`import_rules`](sdk::ConsumerBuilder::import_rules) is the agent's own policy.
//!
//! # Trust
//!
//! There is no way to start without certificates, and nobody is trusted by default. Both sides prove a
//! SPIFFE id, under a CA that belongs to that one peer; TLS 1.3 only. Certificates come
//! [from files](sdk::Identity::from_files), which are read again when they change, from memory, or
//! [from a provider](sdk::Identity::from_provider). A stranger ends at the handshake; a connection ends
//! when its certificate isn't trusted any more.
//!
//! # Running
//!
//! Start within a tokio runtime, with its time and IO drivers; several worker threads are better, one
//! is enough. All tasks have one parent and end when the last handle is dropped, or in order with
//! `stop().await`. A peer that can't be reached is dialled again with growing random delays, at most 4
//! s towards Hamlet and 60 s towards others; a consumer's entries stay meanwhile, for the
//! [hold time](sdk::ConsumerBuilder::hold). An owner has no store: it puts its state anew after each
//! start, says [`ready`](sdk::Owner::ready), and what is unchanged isn't sent again. A consumer's
//! [store](sdk::ConsumerBuilder::store) is memory unless it is given another.
//!
//! # Limits
//!
//! Whatever a peer sends has a bound: 20,000 entries and 64 MiB in force of each peer, 64 KiB a message
//! ([`ImportLimits`](hamlet_core::imported::ImportLimits)); 4 MiB a message at all; keys of
//! [253 bytes](sdk::KEY_BYTES_MAX); [4 connections](link::CONNECTIONS_MAX) of a peer, [16
//! streams](server::STREAMS_A_MINUTE) a minute. Mass withdrawals are
//! [braked](sdk::ConsumerBuilder::guard). Observers that are slower than events
//! [miss some](sdk::ConsumerEvent::Missed) and are told so.
//!
//! # Layers
//!
//! [`sdk`] is the facade. Below it, sessions ([`session`], [`owner`], [`consumer`]) are sans-IO:
//! messages in, messages out, time passed in; one small loop ([`stream`]) does the talking; [`link`],
//! [`dial`] and [`server`] hold it all together, generic over [what they carry](kind). The [`dialect`]s
//! know the published versions. Protobuf types of the protocol stop in this crate ([`wire`]).
//!
//! # Examples
//!
//! In the repository, each runs by itself in a second: `embed-owner`, `embed-consumer` (both ends in two
//! terminals: the crate's README), and `custom-resource`.
//!
//! # What is promised
//!
//! - **The wire.** The published versions v1alpha1 and v1alpha2 are spoken as they are, for as long as
//!   this crate exists. The extensions are negotiated by number; a peer of any older release is
//!   understood, and members that a later one adds are ignored by those who don't know them. Nothing
//!   ever changes its meaning under its number.
//! - **The API.** [`sdk`] follows semantic versioning: in 0.x a change that breaks programs raises the
//!   minor version, from 1.0 on the major one, and is in the changelog. Enums of events and errors are
//!   `non_exhaustive`: new ones are no break. The modules below `sdk` are public for the agent and for
//!   tests, and may change in any release.
//! - **The store.** What an older release kept in a store is read by every later one; see
//!   [`ImportStore`](hamlet_core::durable::ImportStore).
//! - **The compiler.** Rust 1.95 or later. Raising it is no break, and is in the changelog.

pub mod beat;
pub mod breach;
pub mod bundles;
pub mod consumer;
pub mod dial;
pub mod dialect;
pub mod frames;
pub mod gather;
pub mod importer;
pub mod kind;
pub mod limits;
pub mod link;
mod metered;
pub mod owner;
pub mod round;
pub mod sdk;
pub mod server;
pub mod session;
pub mod stream;
pub mod transcript;
pub mod transport;

/// Generated from `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/wire.rs"));
}
