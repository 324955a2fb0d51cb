//! What must outlive the process, as values, and the trait a store offers for it.
//!
//! The session decides, the store only keeps. A record is whole: writing it again is harmless.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::name::PeerName;
use crate::rejection::Rejection;

/// A 32-byte SHA-256 value.
pub type Hash32 = [u8; 32];

/// What became of an offer that was heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// In force.
    Admitted,
    /// Refused; an older version may still be in force.
    Refused(Rejection),
}

/// All we keep of one key of one owner. At least one of the parts is present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportRecord {
    /// The owner's last word, unless it is withheld or was deleted.
    pub heard: Option<HeardRecord>,
    /// Raw value of the version in force when it isn't `heard`'s own: an older version beside a
    /// refusal, or a withheld withdrawal.
    pub in_force: Option<Bytes>,
    /// The owner withdrew it but the guard holds it; the value is the running time still to
    /// wait, in milliseconds.
    pub withheld_ms: Option<u64>,
}

/// The owner's last word on one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardRecord {
    /// `Any.value` exactly as it came.
    pub value: Bytes,
    /// Digest leaf over type, key and value ([`crate::digest::leaf`]).
    pub leaf: Hash32,
    /// What became of it.
    pub verdict: Verdict,
    /// How long it has been refused, running time in milliseconds (0 when admitted).
    pub refused_ms: u64,
}

/// One change of the durable state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportChange {
    /// Whose.
    pub peer: PeerName,
    /// Wire key.
    pub key: String,
    /// The new record, or `None` to remove it.
    pub record: Option<ImportRecord>,
}

/// State of one peer that is not per key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerState {
    /// Running time in milliseconds spent without the peer, counted against the hold time.
    pub down_ms: u64,
    /// The owner's log id of the last proof, empty if none.
    pub log_id: Vec<u8>,
    /// The owner's revision at the last proof.
    pub revision: u64,
}

/// Everything the store held of one peer when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadedPeer {
    /// Records by wire key; damaged ones are left out and were reported.
    pub records: BTreeMap<String, ImportRecord>,
    /// The rest.
    pub state: PeerState,
}

/// The store could not make a batch durable. The session answers UNAVAILABLE; nothing was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store could not commit: {message}; check free space and permissions of the data folder")]
pub struct CommitError {
    /// What the store said.
    pub message: String,
}

/// The future of a commit.
pub type CommitFuture = Pin<Box<dyn Future<Output = Result<(), CommitError>> + Send>>;

/// A place that keeps import records: all of a batch or nothing, durable when the future is done.
/// Batches of several callers may share one fsync (group commit). Order is kept per caller.
pub trait ImportStore: Send + Sync + 'static {
    /// Makes `changes` durable.
    fn commit(&self, changes: Vec<ImportChange>) -> CommitFuture;
    /// Makes the peer's state durable.
    fn put_peer_state(&self, peer: &PeerName, state: PeerState) -> CommitFuture;
    /// Makes changes and the state of their peer durable; a store does it in one step if it can.
    /// Where it can't, the state comes first: it may then say that more was heard than was kept,
    /// never less.
    fn commit_with_state(
        &self,
        changes: Vec<ImportChange>,
        peer: &PeerName,
        state: PeerState,
    ) -> CommitFuture {
        let (state, changes) = (self.put_peer_state(peer, state), self.commit(changes));
        Box::pin(async move {
            state.await?;
            changes.await
        })
    }
    /// Removes all that is kept of a peer.
    fn forget_peer(&self, peer: &PeerName) -> CommitFuture;
}
