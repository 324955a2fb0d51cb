//! A link's part in the exchange of bundles: what was heard on its active stream, and the answers.
//!
//! It decides nothing (see [`crate::bundles`]). Invariant: an answer goes to the stream and the bundle
//! that it is about, or nowhere.

use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

use super::Link;
use crate::bundles::{BundleAnswer, HeardBundle, NotInForce};
use crate::kind::LinkJudge;
use crate::session::{StreamEnd, StreamSession};
use crate::stream::StreamCell;
use crate::wire::hamlet::federation::v1::goodbye::Reason;

impl<J: LinkJudge> Link<J> {
    /// Has the active stream say our bundle as it is now, unless it has.
    pub fn say_bundle(&self) {
        let ours = self.context().bundles.ours();
        if let Some(cell) = self.active() {
            cell.change(|s| s.bundles.set_ours(ours));
        }
    }

    /// The newest bundle that the peer said on the active stream.
    pub fn heard_bundle(&self) -> Option<HeardBundle> {
        let cell = self.active()?;
        let (number, bundle) = cell.look(|s| s.bundles.theirs())?;
        let proven = cell.proven()?;
        Some(HeardBundle { stream: cell.id, dialled: cell.dialled, number, bundle, proven })
    }

    /// Tells the peer what became of its bundle. May be said again when that changes.
    pub fn answer_bundle(&self, heard: &HeardBundle, outcome: &Result<(), NotInForce>) {
        if let Some(cell) = self.active().filter(|cell| cell.id == heard.stream) {
            cell.change(|s| s.bundles.answer(heard.number, outcome));
        }
    }

    /// What the peer said on the active stream of our bundle as it was told last.
    pub fn bundle_answer(&self) -> Option<BundleAnswer> {
        self.active()?.look(|s: &StreamSession| s.bundles.their_answer().cloned())
    }

    /// Ends the active stream, so that the next one shows our present certificate: the peer can't take
    /// our bundle over one that the bundle doesn't prove.
    pub fn show_certificate_anew(&self) {
        let text = "renewed, to show our present certificate";
        if let Some(cell) = self.active() {
            cell.change(|s| s.say_goodbye(Reason::Renew, Duration::ZERO));
            cell.end(StreamEnd::new(Code::Unavailable, text));
        }
    }

    pub(super) fn begin_bundles(&self, cell: &Arc<StreamCell>) {
        // Read when the stream has its place: what is published from now on finds it there.
        let ours = self.context().bundles.ours();
        cell.change(|s| s.bundles.set_ours(ours));
    }
}
