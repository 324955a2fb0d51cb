//! What passes on the streams, as the model judges it: offers, answers, bookmarks and proofs, when
//! they are written and when they are read.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Model, Read, Stream, WayId};
use crate::truth::{Key, mark};

impl Model {
    /// The owner wrote an offer; `set` is what it knew to offer at that instant.
    pub(crate) fn offer_written(
        &mut self,
        id: WayId,
        stream: &mut Stream,
        key: &str,
        value: Option<&[u8]>,
        set: Option<u128>,
    ) {
        let now = self.now();
        let key: Key = key.into();
        let (deleted, value) = (value.is_none(), value.unwrap_or_default());
        self.tally.count("offers written");
        stream.sent += 1;
        stream.written.insert((key.clone(), mark(&key, value)), now);
        stream.last.insert(key.clone(), (!deleted).then(|| value.to_vec().into()));
        stream.dirty.remove(&key);
        let Some(way) = self.ways.get(&id) else { return };
        if set != Some(way.offered.mark()) {
            // What it doesn't know it can't send.
            stream.dirty.values_mut().for_each(|since| *since = stream.sent);
        }
        let mut complaint = None;
        if !deleted && way.offered.revision_of(&key, value).is_none() {
            complaint = Some((
                "I4",
                format!("{id:?}: {key} is sent in a version that this consumer was never to see"),
            ));
        }
        let pass = 2 * (way.offered.ever_offered() as u64 + 8);
        let owed = |key: &Key| match (way.offered.now().get(key), stream.last.get(key)) {
            (Some(meant), Some(Some(said))) => meant.value != *said,
            (None, None | Some(None)) => false,
            _ => true,
        };
        let starved = stream.dirty.iter().find(|(key, since)| stream.sent - **since > pass && owed(key));
        if let Some((starved, since)) = starved.filter(|_| !way.foreign_owner) {
            let what = format!("{id:?}: {starved} waits while {} others are sent", stream.sent - since);
            complaint = Some(("P2", what));
        }
        self.log(&[4, id.0 as u64, id.1 as u64, u64::from(deleted)], || {
            format!("{id:?}#{} offers {}{key}", stream.number, if deleted { "-" } else { "+" })
        });
        if let Some((invariant, what)) = complaint {
            self.complain(invariant, what);
        }
    }

    /// The owner wrote a bookmark; `set` is what it knew to offer at that instant.
    pub(crate) fn bookmark_written(
        &mut self,
        id: WayId,
        stream: &mut Stream,
        seq: u64,
        round: u32,
        set: Option<u128>,
    ) {
        self.tally.count("bookmarks");
        if round != 0 {
            self.tally.count("rounds ended");
        }
        stream.bookmarks.insert(seq, (set, round));
        self.log(&[5, id.0 as u64, id.1 as u64, seq], || {
            format!("{id:?}#{} bookmark {seq} of round {round}", stream.number)
        });
    }

    /// The consumer's end read an offer.
    pub(crate) fn offer_read(&mut self, id: WayId, stream: &mut Stream, read: Read) {
        let now = self.now();
        let Some(way) = self.ways.get_mut(&id) else { return };
        if way.stream == stream.number {
            match &read.value {
                Some(value) => {
                    way.withdrawn.remove(&read.key);
                    way.deleted.remove(&read.key);
                    let number = mark(&read.key, value);
                    let at = stream.written.get(&(read.key.clone(), number)).copied().unwrap_or(now);
                    way.written.entry((read.key.clone(), number)).or_insert(at);
                    way.current.insert((read.key.clone(), number));
                }
                None => {
                    way.deleted.insert(read.key.clone());
                    way.told_gone.entry(read.key.clone()).or_insert(now);
                }
            }
        }
        stream.keys_read.insert(read.key.clone());
        self.log(&[6, id.0 as u64, id.1 as u64], || {
            let sign = if read.value.is_some() { "+" } else { "-" };
            format!("{id:?}#{} read {sign}{} ({})", stream.number, read.key, read.nonce)
        });
        stream.read.push(read);
    }

    /// The consumer's end read a bookmark.
    pub(crate) fn bookmark_read(&mut self, id: WayId, stream: &mut Stream, seq: u64) {
        let now = self.now();
        stream.bookmark_read.insert(seq, now);
        let Some(way) = self.ways.get_mut(&id) else { return };
        let Some((_, round)) = stream.bookmarks.get(&seq) else { return };
        if *round != 0 && way.stream == stream.number {
            way.round_read = now;
            let gone: Vec<Key> =
                way.durable.keys().filter(|k| !way.offered.now().contains_key(*k)).cloned().collect();
            for key in gone {
                way.told_gone.entry(key).or_insert(now);
            }
        }
    }

    /// The consumer wrote an answer: `refusal` is the gRPC code, if it is one.
    pub(crate) fn answered(&mut self, id: WayId, stream: &mut Stream, nonce: &str, refusal: Option<i32>) {
        let at = stream.read[stream.answered.min(stream.read.len())..].iter().position(|r| r.nonce == nonce);
        let Some(at) = at.map(|at| at + stream.answered) else { return };
        stream.answered = at + 1;
        let key = stream.read[at].key.clone();
        match refusal {
            Some(14) => {
                self.tally.count("refusals, not persisted");
                stream.excuse();
            }
            Some(8) => {
                self.tally.count("refusals, quota");
                stream.excuse();
            }
            Some(_) => self.tally.count("refusals, policy"),
            None => self.tally.count("acknowledgements"),
        }
        self.log(&[7, id.0 as u64, id.1 as u64, refusal.unwrap_or(0) as u64], || {
            format!("{id:?}#{} answers {key} ({nonce}): {refusal:?}", stream.number)
        });
        let Some(way) = self.ways.get(&id) else { return };
        if way.stream != stream.number {
            return;
        }
        if refusal == Some(14) && way.foreign_owner {
            let what =
                format!("{id:?}: a foreign owner is refused {key} as UNAVAILABLE; it won't say it again");
            self.complain("I8", what);
            return;
        }
        if refusal.is_some()
            || way.configuring > 0
            || way.policy_changed + Duration::from_secs(1) > self.now()
        {
            return;
        }
        // Whatever came later for the key may be what is durable by now.
        let later = stream.read[at..].iter().filter(|r| r.key == key);
        let kept = way.durable.get(&key).and_then(|r| r.heard.as_ref()).map(|h| &h.value);
        let fits = later.clone().any(|r| r.value.as_ref() == kept);
        if !fits {
            let what = format!("{id:?}: {key} is acknowledged, and the disk doesn't have it");
            self.complain("I2", what);
            return;
        }
        let wanted = stream.read[at].value.as_ref().and_then(|v| way.offered.revision_of(&key, v));
        let deleted_later = later.clone().any(|r| r.value.is_none());
        let seen = way.visible.get(&key).copied();
        if let Some(wanted) = wanted
            && !deleted_later
            && (way.policy.takes_aliens || !way.was_alien(&key, wanted))
            && seen.is_none_or(|seen| seen < wanted)
        {
            let what = format!("{id:?}: {key} revision {wanted} is acknowledged, readers see {seen:?}");
            self.complain("I2", what);
        }
    }

    /// The consumer wrote a proof.
    pub(crate) fn proved(&mut self, id: WayId, stream: &mut Stream, seq: u64, equal: bool) {
        let Some(way) = self.ways.get(&id) else { return };
        if way.stream != stream.number {
            return;
        }
        let Some(&(said, round)) = stream.bookmarks.get(&seq) else { return };
        let since = stream.bookmark_read.get(&seq).copied().unwrap_or_default();
        let changed_since = way.heard_log.iter().filter(|(at, _)| *at >= since).map(|(_, m)| *m);
        let before = way.heard_log.iter().rev().find(|(at, _)| *at < since).map(|(_, m)| *m);
        let held: BTreeSet<u128> = changed_since.chain(before).chain([way.heard_mark]).collect();
        self.tally.count(if equal { "proofs, equal" } else { "proofs, different" });
        self.log(&[8, id.0 as u64, id.1 as u64, u64::from(equal)], || {
            format!("{id:?}#{} proof of {seq}: {}", stream.number, if equal { "equal" } else { "different" })
        });
        match said {
            None => {
                let what = format!("{id:?}: bookmark {seq} while a source of the owner is unread");
                self.complain("I5", what);
            }
            Some(said) if equal && !held.contains(&said) => {
                let what = format!("{id:?}: in sync is said of bookmark {seq}, and the sets differ");
                self.complain("P1", what);
            }
            Some(said) if !equal && held == BTreeSet::from([said]) => {
                let what = format!("{id:?}: different is said of bookmark {seq}, and the sets are equal");
                self.complain("P1", what);
            }
            Some(_) if equal => {}
            // A round mends whatever was wrong before it.
            Some(_) if !stream.excused || round != 0 && !stream.excused_in_round => {
                let what = format!(
                    "{id:?}: all before bookmark {seq} (round {round}) came and was kept, and the sets differ: something was lost"
                );
                self.complain("I8", what);
            }
            Some(_) => {}
        }
    }
}
