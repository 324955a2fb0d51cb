//! The laws of a view: whoever follows it ends with exactly what it holds, in passes, whatever
//! happens between two steps.

use super::*;
use crate::digest::Level;
use proptest::prelude::*;

fn wanted(entries: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<Offer>> {
    let offer = |k: &str, v: &str| Arc::new(Offer::new("t", k, Bytes::copy_from_slice(v.as_bytes())));
    entries.iter().map(|(k, v)| (Arc::from(*k), offer(k, v))).collect()
}

fn drain(sub: &mut Subscription) -> Vec<String> {
    let mut out = vec![];
    while let Next::Change(c) = sub.take_next() {
        let value = String::from_utf8_lossy(&c.offer.value).into_owned();
        out.push(if c.deleted { format!("-{}", c.offer.key) } else { format!("{}={value}", c.offer.key) });
    }
    out
}

#[test]
fn a_subscription_gets_the_state_in_key_order_then_changes_at_their_latest() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("b", "1"), ("a", "1"), ("c", "1")]), true, &v);
    let mut sub = view.subscribe("p");
    assert_eq!(drain(&mut sub), ["a=1", "b=1", "c=1"]);
    view.set(&wanted(&[("b", "2"), ("a", "1"), ("c", "1")]), true, &v);
    view.set(&wanted(&[("b", "3"), ("a", "1")]), true, &v);
    assert_eq!(drain(&mut sub), ["b=3", "-c"]);
    assert_eq!(sub.bookmark().unwrap().count, 2);
}

#[test]
fn who_watches_a_view_is_woken_at_every_change_until_it_lets_go() {
    #[derive(Default)]
    struct Count(AtomicU64);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (view, v) = (View::new("t"), VersionCounter::default());
    let counts = [Arc::new(Count::default()), Arc::new(Count::default())];
    let woken = || counts.each_ref().map(|c| c.0.load(Ordering::Relaxed));
    let [first, second] = counts.each_ref().map(|c| view.watched_by(c.clone().into()));
    view.set(&wanted(&[("a", "1")]), false, &v);
    assert_eq!(woken(), [1, 1]);
    view.set(&wanted(&[("a", "1")]), true, &v);
    assert_eq!(woken(), [2, 2], "that it is ready is a change as well");
    view.set(&wanted(&[("a", "1")]), true, &v);
    assert_eq!(woken(), [2, 2], "nothing changed");
    drop(first);
    view.put(Arc::new(Offer::new("t", "b", Bytes::from_static(b"1"))), &v);
    view.remove("b", &v);
    assert_eq!(woken(), [2, 4]);
    drop(second);
    assert_eq!(Arc::strong_count(&counts[1]), 1, "its waker is gone");
}

#[test]
fn with_its_last_change_a_pass_is_over() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("a", "1"), ("b", "1")]), true, &v);
    let mut sub = view.subscribe("p");
    assert!(matches!(sub.take_next(), Next::Change(_)));
    assert!(!sub.is_at_head() && sub.bookmark().is_none(), "one is left");
    assert!(matches!(sub.take_next(), Next::Change(_)));
    assert!(sub.is_at_head() && sub.bookmark().is_some());
    // What came during a pass is another pass.
    view.set(&wanted(&[("a", "2"), ("b", "2")]), true, &v);
    assert!(matches!(sub.take_next(), Next::Change(_)));
    view.set(&wanted(&[("a", "3"), ("b", "2")]), true, &v);
    assert!(matches!(sub.take_next(), Next::Change(_)));
    assert!(!sub.is_at_head());
    assert_eq!(drain(&mut sub), ["a=3"]);
}

#[test]
fn a_fresh_subscription_is_not_told_of_deletions_before_its_time() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("a", "1"), ("b", "1")]), true, &v);
    let _keeps_the_tombstone = view.subscribe("p");
    view.set(&wanted(&[("a", "1")]), true, &v);
    let mut sub = view.subscribe("p");
    assert_eq!(drain(&mut sub), ["a=1"]);
}

#[test]
fn a_change_is_fresh_until_its_key_was_handed_out() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    let told = |sub: &mut Subscription| {
        let mut out = vec![];
        while let Next::Change(c) = sub.take_next() {
            let kind = if c.deleted {
                '-'
            } else if c.fresh {
                '+'
            } else {
                '='
            };
            out.push(format!("{kind}{}", c.offer.key));
        }
        out
    };
    view.set(&wanted(&[("a", "1"), ("b", "1")]), true, &v);
    view.set(&wanted(&[("a", "2"), ("b", "1")]), true, &v);
    let mut sub = view.subscribe("p");
    assert_eq!(told(&mut sub), ["+a", "+b"], "the first pass is all new, updated before or not");
    view.set(&wanted(&[("a", "3"), ("b", "1"), ("c", "1")]), true, &v);
    view.set(&wanted(&[("a", "3"), ("c", "2")]), true, &v);
    assert_eq!(told(&mut sub), ["=a", "-b", "+c"]);
    view.set(&wanted(&[("b", "2"), ("c", "3")]), true, &v);
    assert_eq!(told(&mut sub), ["-a", "+b", "=c"]);
    // Handed out in a pass that began before it: an update afterwards is no news.
    view.set(&wanted(&[("b", "3"), ("c", "3")]), true, &v);
    assert!(matches!(sub.take_next(), Next::Change(c) if !c.fresh));
    view.set(&wanted(&[("b", "3"), ("c", "3"), ("d", "1")]), true, &v);
    assert_eq!(told(&mut sub), ["+d"]);
    view.set(&wanted(&[("b", "3"), ("c", "3"), ("d", "2")]), true, &v);
    assert_eq!(told(&mut sub), ["=d"]);
}

#[test]
fn an_equal_root_places_the_subscription_at_the_head() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("a", "1")]), true, &v);
    let root = view.summary().root;
    let mut sub = view.subscribe("p");
    assert!(!sub.resume(&[1; 32]));
    assert!(sub.resume(&root));
    assert_eq!(sub.take_next(), Next::AtHead);
    view.set(&wanted(&[]), true, &v);
    assert_eq!(drain(&mut sub), ["-a"]);
}

#[test]
fn an_unread_source_deletes_nothing_and_allows_no_bookmark() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("a", "1")]), true, &v);
    let mut sub = view.subscribe("p");
    drain(&mut sub);
    view.set(&wanted(&[]), false, &v);
    assert_eq!(drain(&mut sub), Vec::<String>::new());
    assert_eq!(sub.bookmark(), None);
    view.set(&wanted(&[]), true, &v);
    assert_eq!(drain(&mut sub), ["-a"]);
    assert!(sub.bookmark().is_some());
}

#[test]
fn forgotten_deletions_make_a_slow_subscription_start_over() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("x", "1")]), true, &v);
    let mut slow = view.subscribe("p");
    drain(&mut slow);
    let many: Vec<String> = (0..=TOMBSTONES_MAX).map(|i| format!("k{i:06}")).collect();
    let all: Vec<(&str, &str)> = many.iter().map(|k| (k.as_str(), "1")).collect();
    view.set(&wanted(&all), true, &v);
    view.set(&wanted(&[("y", "1")]), true, &v);
    assert_eq!(slow.take_next(), Next::Resync);
    slow.restart();
    assert_eq!(drain(&mut slow), ["y=1"]);
}

#[test]
fn a_repetition_hands_out_what_lives_and_the_deletions_that_were_still_to_come() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("a", "1"), ("b", "1"), ("c", "1")]), true, &v);
    let mut sub = view.subscribe("p");
    drain(&mut sub);
    view.set(&wanted(&[("b", "1"), ("c", "1")]), true, &v);
    drain(&mut sub);
    view.set(&wanted(&[("b", "1")]), true, &v);
    sub.repeat();
    assert_eq!(drain(&mut sub), ["b=1", "-c"], "a's deletion was handed out before");
    assert_eq!(sub.bookmark().unwrap().count, 1);
}

#[test]
fn a_subscription_keeps_its_place_when_its_view_is_split() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("a", "1"), ("b", "1")]), true, &v);
    let mut sub = view.subscribe("p");
    drain(&mut sub);
    let fork = view.fork(&["p".into()].into());
    fork.set(&wanted(&[("b", "1"), ("c", "1")]), true, &v);
    sub.move_to(&fork);
    assert_eq!(drain(&mut sub), ["-a", "c=1"]);
}

fn hashes(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut theirs = DigestTree::new("t");
    for (k, v) in entries {
        theirs.insert(k, leaf("t", k, v.as_bytes()));
    }
    theirs.cut_hashes(&Scope::whole(Level::Three))
}

/// Compares all buckets.
fn buckets() -> Scope {
    Scope::whole(Level::Three)
}

#[test]
fn a_resumed_subscription_repeats_what_differs_then_goes_on_with_changes() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("a", "1"), ("b", "2"), ("c", "3"), ("e", "5")]), true, &v);
    let mut sub = view.subscribe("p");
    let scope = sub.place_differing(&buckets(), &hashes(&[("a", "1"), ("b", "1"), ("d", "4")]));
    let scope = scope.unwrap();
    sub.repeat_scope(scope.clone());
    let inside = |key: &str| scope.contains(bucket_of(&key_hash(key)));
    assert_eq!(["a", "b", "c", "d", "e"].map(inside), [false, true, true, true, true]);
    view.set(&wanted(&[("a", "2"), ("b", "2"), ("c", "4")]), true, &v);
    assert_eq!(sub.bookmark(), None, "the walk is still to come");
    assert_eq!(drain(&mut sub), ["b=2", "c=4", "a=2", "-e"]);
    assert_eq!(sub.bookmark().unwrap().count, 3);
    assert!(sub.place_differing(&Scope::whole(Level::Two), &hashes(&[])).is_none());
}

/// Between the steps of a comparison the owner's services go on changing.
#[test]
fn what_changes_while_two_sides_go_down_the_tree_is_neither_lost_nor_repeated_in_vain() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    let all = [("a", "1"), ("b", "2"), ("c", "3"), ("e", "5")];
    view.set(&wanted(&all), true, &v);
    let mut theirs = DigestTree::new("t");
    for (k, value) in [("a", "1"), ("b", "1"), ("c", "3"), ("e", "5")] {
        theirs.insert(k, leaf("t", k, value.as_bytes()));
    }
    let mut sub = view.subscribe("p");
    let among = Scope::whole(Level::One);
    let coarse = sub.place_differing(&among, &theirs.cut_hashes(&among)).unwrap();
    let inside = |key: &str, scope: &Scope| scope.contains(bucket_of(&key_hash(key)));
    assert_eq!(["a", "b", "c", "e"].map(|k| inside(k, &coarse)), [false, true, false, false]);
    // Outside of what is compared further one changes and one goes; inside, one is made equal.
    view.set(&wanted(&[("a", "9"), ("b", "1"), ("e", "5")]), true, &v);
    let among = coarse.children().unwrap();
    let fine = sub.differing(&among, &theirs.cut_hashes(&among)).unwrap();
    assert_eq!(fine.count(), 0);
    sub.repeat_scope(fine);
    assert_eq!(drain(&mut sub), ["a=9", "b=1", "-c"], "the changes since the first step");
    assert_eq!(sub.bookmark().unwrap().count, 3);
}

#[test]
fn a_view_that_is_not_ours_any_more_makes_nothing_equal() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("a", "1")]), true, &v);
    let sub = view.subscribe("p");
    assert_eq!(sub.differing(&buckets(), &hashes(&[("a", "1")])), Some(Scope::empty(Level::Three)));
    view.admit_only(["other"].into_iter());
    assert_eq!(sub.differing(&buckets(), &hashes(&[("a", "1")])), Some(buckets()));
}

#[test]
fn a_round_on_a_live_subscription_loses_nothing_that_was_behind() {
    let (view, v) = (View::new("t"), VersionCounter::default());
    view.set(&wanted(&[("a", "1"), ("b", "1"), ("c", "1")]), true, &v);
    let mut sub = view.subscribe("p");
    drain(&mut sub);
    view.set(&wanted(&[("a", "2"), ("c", "1")]), true, &v);
    let scope = sub.differing(&buckets(), &hashes(&[("a", "2"), ("b", "1")])).unwrap();
    sub.repeat_scope(scope);
    assert_eq!(drain(&mut sub), ["c=1", "a=2", "-b"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever happens between the steps, a consumer that applies what it is handed ends
    /// with exactly the view, never sees a key go back, and a bookmark is never early.
    #[test]
    fn the_consumer_ends_with_exactly_the_view(
        steps in proptest::collection::vec((proptest::collection::btree_map(0u16..400, 0u8..3, 0..400), 0usize..300), 1..12)
    ) {
        let (view, versions) = (View::new("t"), VersionCounter::default());
        let mut sub = view.subscribe("p");
        let mut held: BTreeMap<Arc<str>, Bytes> = BTreeMap::new();
        let mut seen: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        let mut last = BTreeMap::new();
        let total = steps.len();
        for (i, (set, reads)) in steps.into_iter().enumerate() {
            last = set.iter().map(|(k, v)| {
                let key = format!("{k:03}");
                (Arc::from(key.as_str()), Arc::new(Offer::new("t", &key, Bytes::from(vec![*v]))))
            }).collect();
            view.set(&last, true, &versions);
            let reads = if i + 1 == total { usize::MAX } else { reads };
            for _ in 0..reads {
                match sub.take_next() {
                    Next::Change(c) => {
                        prop_assert!(seen.insert(c.offer.key.clone(), c.version).is_none_or(|old| old <= c.version));
                        if c.deleted { held.remove(&c.offer.key); } else { held.insert(c.offer.key.clone(), c.offer.value.clone()); }
                    }
                    Next::AtHead => break,
                    Next::Resync => { sub.restart(); held.clear(); }
                }
                if let Some(mark) = sub.bookmark() { prop_assert_eq!(mark.count as usize, held.len()); }
            }
        }
        let expected: BTreeMap<Arc<str>, Bytes> = last.iter().map(|(k, o)| (k.clone(), o.value.clone())).collect();
        prop_assert_eq!(held, expected);
        prop_assert!(sub.bookmark().is_some());
    }
}
