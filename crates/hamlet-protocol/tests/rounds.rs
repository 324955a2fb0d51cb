//! Rounds as a story: how two ends find out what differs, what is repeated and what is swept, and
//! which of a peer's words on it can't be. Sessions are fed by hand; no sockets.

use std::sync::Arc;
use std::time::Duration;

use hamlet_protocol::dialect::Outgoing;
use hamlet_protocol::session::our_hello;
use hamlet_protocol::wire::hamlet::federation::v1 as ext;

mod common;
use common::ends::{End, heard, many, reconnect, said_by, slice_of, talk, tell, texts};

#[test]
fn a_delete_that_happened_while_the_consumer_was_away_is_swept_on_return() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["billing", "cart"]);
    talk(&mut shop, &mut bank);
    bank.publish(&["billing"]);
    let (view, versions) = (bank.view.clone(), bank.versions.clone());
    let mut bank = End::with_view("bank", "shop", false, true, slice_of("shop"), view, versions);
    let mut shop = End::new("shop", "bank", true, true, shop.slice);
    shop.publish(&[]);
    let log = talk(&mut shop, &mut bank);
    assert!(said_by(&log, "bank").contains(&"begin SCOPE"));
    assert_eq!(shop.in_force(), 1);
    assert!(bank.session.owner.as_ref().unwrap().proven());
}

#[test]
fn an_unchanged_set_costs_one_root_on_return() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["billing", "cart"]);
    talk(&mut shop, &mut bank);
    let (view, versions) = (bank.view.clone(), bank.versions.clone());
    let mut bank = End::with_view("bank", "shop", false, true, slice_of("shop"), view, versions);
    let mut shop = End::new("shop", "bank", true, true, shop.slice);
    let log = talk(&mut shop, &mut bank);
    assert_eq!(said_by(&log, "bank"), ["subscribe, hello", "begin EQUAL", "bookmark of 2"]);
}

#[test]
fn a_difference_found_by_a_bookmark_leads_to_one_whole_round() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["billing", "cart"]);
    talk(&mut shop, &mut bank);
    // Something is lost here that the owner knows nothing of.
    let lost = shop.slice.sweep(&[Arc::from("cart")].into(), None, shop.now);
    shop.slice.apply(lost, shop.now);
    assert_eq!(shop.in_force(), 1);
    (bank.now, shop.now) = (Duration::from_secs(61), Duration::from_secs(61));
    let log = talk(&mut shop, &mut bank);
    assert!(said_by(&log, "shop").contains(&"proof DIFFERENT"), "{log:#?}");
    (bank.now, shop.now) = (Duration::from_secs(72), Duration::from_secs(72));
    shop.session.consumer.tick(&mut shop.slice, shop.now);
    let log = talk(&mut shop, &mut bank);
    assert!(said_by(&log, "shop").contains(&"held, asks for a round"));
    assert!(said_by(&log, "shop").contains(&"proof EQUAL"), "{log:#?}");
    assert_eq!(shop.in_force(), 2);
}

/// A bank with so many services that the shop holds, of which one is gone and one new since, and
/// both ends of the next stream.
fn parted(services: usize) -> (End, End) {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    let mut names = many(services);
    bank.publish(&texts(&names));
    shop.publish(&[]);
    talk(&mut shop, &mut bank);
    names.remove(7);
    names.push("new".to_owned());
    bank.publish(&texts(&names));
    reconnect(bank, shop)
}

#[test]
fn after_a_break_both_go_down_to_what_differs_and_only_that_is_repeated() {
    for (services, steps) in [(100, 0), (600, 1), (5_000, 2)] {
        let (mut bank, mut shop) = parted(services);
        let log = talk(&mut shop, &mut bank);
        let begun: Vec<&str> = said_by(&log, "bank").into_iter().filter(|l| l.starts_with("begin")).collect();
        let mut wanted = vec!["begin WANT_BUCKETS"; steps];
        wanted.push("begin SCOPE");
        assert_eq!(begun, wanted, "{services}: {log:#?}");
        let hashes: Vec<&str> = said_by(&log, "shop").into_iter().filter(|l| l.contains("hashes")).collect();
        for (step, said) in hashes.iter().enumerate() {
            let (count, level) = said.split_once(" hashes of level ").unwrap();
            assert!(count == "32" || count == "64", "the children of what differs: {said}");
            assert_eq!(level, (step + 2).to_string());
        }
        assert_eq!(hashes.len(), steps);
        let repeated = said_by(&log, "bank").iter().filter(|l| l.starts_with("upsert")).count();
        assert!((1..=12).contains(&repeated), "{repeated} of {services}");
        assert!(said_by(&log, "shop").contains(&"proof EQUAL"), "{log:#?}");
        let held: Vec<&str> = shop.slice.heard_keys().map(|k| &**k).collect();
        assert!(held.contains(&"new") && !held.contains(&"s0007"));
        assert_eq!(bank.session.owner.as_ref().unwrap().stats().rounds, [0, 1, 0]);
    }
}

/// Passes what one end says to the other, and says what it was.
fn pass(from: &mut End, to: &mut End) -> Vec<String> {
    let said = from.speak();
    said.iter().for_each(|m| to.hear(m));
    said.iter().filter_map(|m| tell(from.name, m)).collect()
}

#[test]
fn what_changes_between_two_steps_down_is_not_lost() {
    let (mut bank, mut shop) = parted(5_000);
    let mut names = many(5_000);
    names.remove(7);
    names.push("new".to_owned());
    let mut log = vec![];
    for turn in 0..8 {
        pass(&mut shop, &mut bank);
        if turn < 4 {
            // Far from what is compared: one goes and one comes, between any two steps.
            names.remove(1_000 + 10 * turn);
            names.push(format!("later{turn}"));
            bank.publish(&texts(&names));
        }
        log.extend(pass(&mut bank, &mut shop));
        (bank.now, shop.now) = (bank.now + Duration::from_secs(1), shop.now + Duration::from_secs(1));
    }
    pass(&mut shop, &mut bank);
    let begun: Vec<&str> = said_by(&log, "bank").into_iter().filter(|l| l.starts_with("begin")).collect();
    assert_eq!(begun, ["begin WANT_BUCKETS", "begin WANT_BUCKETS", "begin SCOPE"]);
    let at = |what: &str| log.iter().position(|l| l.contains(what)).unwrap();
    assert!(at("upsert") > at("begin SCOPE") && at("delete") > at("begin SCOPE"), "{log:#?}");
    assert!(log.iter().filter(|l| l.contains("upsert")).count() < 20, "{log:#?}");
    assert!(bank.session.owner.as_ref().unwrap().proven(), "{log:#?}");
    assert!(["later0", "later3", "new"].iter().all(|key| shop.slice.hears(key)));
    assert_eq!(shop.slice.counts().heard, names.len() as u64);
    assert_eq!(bank.session.owner.as_ref().unwrap().stats().rounds, [0, 1, 0]);
}

#[test]
fn a_comparison_that_is_not_finished_in_time_ends_in_everything() {
    let (mut bank, mut shop) = parted(5_000);
    pass(&mut shop, &mut bank);
    assert!(pass(&mut bank, &mut shop).contains(&"bank: begin WANT_BUCKETS".to_owned()));
    let late = shop.speak();
    bank.now = Duration::from_secs(9);
    assert!(!bank.speak().iter().any(|m| matches!(m, Outgoing::Offer { .. })));
    assert_eq!(bank.session.wake_at().map(|at| at.as_secs()), Some(10), "and nobody is woken before");
    bank.now = Duration::from_secs(10);
    let said: Vec<String> = bank.speak().iter().filter_map(|m| tell("bank", m)).collect();
    assert!(said.contains(&"bank: begin ALL".to_owned()));
    assert!(said.iter().any(|l| l.starts_with("bank: upsert s0000")), "from the beginning");
    // What comes too late is dropped; what nobody asked for is a breach as ever.
    assert!(late.iter().any(|m| tell("shop", m).is_some_and(|l| l.contains("hashes of level 2"))));
    for (time, taken) in [(1, true), (2, false)] {
        let received = late.iter().try_for_each(|m| bank.session.receive(heard(m), bank.now));
        assert_eq!(received.is_ok(), taken, "time {time}");
    }
}

#[test]
fn a_round_by_buckets_that_did_not_help_is_followed_by_a_whole_one() {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
    bank.publish(&["billing"]);
    talk(&mut shop, &mut bank);
    let said = |shop: &mut End| shop.speak().iter().filter_map(|m| tell("shop", m)).collect::<Vec<_>>();
    let wrong = |seq, round| {
        let root = vec![9; 32].into();
        let bookmark = ext::Bookmark { seq, round, version: 9, root, count: 1, ..ext::Bookmark::default() };
        Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Bookmark(bookmark)) })
    };
    let begin = |round, mode: ext::begin::Mode| {
        let scope = vec![0; 4].into();
        let begin = ext::Begin { round, mode: mode as i32, level: 1, scope };
        Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Begin(begin)) })
    };
    let asks = |shop: &mut End, after: u64| {
        shop.now += Duration::from_secs(after);
        shop.session.consumer.tick(&mut shop.slice, shop.now);
        let out = shop.speak();
        out.iter().find_map(|m| match m {
            Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Held(h)) }) => {
                Some((h.round, h.full))
            }
            _ => None,
        })
    };
    shop.hear(&wrong(90, 0));
    assert_eq!(said(&mut shop), ["shop: proof DIFFERENT"]);
    assert_eq!(asks(&mut shop, 9), None);
    assert_eq!(asks(&mut shop, 1), Some((2, false)), "first by buckets");
    shop.hear(&begin(2, ext::begin::Mode::Scope));
    shop.hear(&wrong(91, 2));
    assert_eq!(said(&mut shop), ["shop: proof DIFFERENT"]);
    assert_eq!(asks(&mut shop, 10), Some((3, true)), "then whole");
    shop.hear(&begin(3, ext::begin::Mode::All));
    shop.hear(&wrong(92, 3));
    assert_eq!(said(&mut shop), ["shop: proof DIFFERENT"]);
    assert_eq!(asks(&mut shop, 59), None, "and then ever later");
    assert_eq!(asks(&mut shop, 1), Some((4, true)));
}

#[test]
fn what_the_owner_said_of_rounds_must_be_possible() {
    use ext::begin::Mode::{All, Scope, WantBuckets};
    let begin = |mode: ext::begin::Mode, scope: usize, level| {
        let scope = vec![1; scope].into();
        ext::control::Kind::Begin(ext::Begin { round: 1, mode: mode as i32, level, scope })
    };
    let nowhere = ext::Begin { round: 1, mode: WantBuckets as i32, level: 1, scope: vec![0; 4].into() };
    let cases = [
        (vec![begin(Scope, 4, 1)], true),
        (vec![begin(Scope, 5, 1)], false),
        (vec![begin(Scope, 4_096, 3)], true),
        (vec![begin(Scope, 4_096, 4)], false),
        (vec![begin(Scope, 0, 0)], false),
        (vec![begin(WantBuckets, 4, 1), begin(WantBuckets, 128, 2), begin(Scope, 4_096, 3)], true),
        (vec![begin(WantBuckets, 128, 2), begin(All, 0, 0)], true),
        (vec![begin(WantBuckets, 128, 1)], false),
        (vec![begin(WantBuckets, 0, 0)], false),
        (vec![ext::control::Kind::Begin(nowhere)], false),
        // Each level once, ever finer, and nothing is below the buckets.
        (vec![begin(WantBuckets, 4, 1), begin(WantBuckets, 4, 1)], false),
        (vec![begin(WantBuckets, 128, 2), begin(WantBuckets, 4, 1)], false),
        (vec![begin(WantBuckets, 128, 2), begin(WantBuckets, 128, 2)], false),
        (vec![begin(WantBuckets, 4_096, 3)], false),
        (vec![ext::control::Kind::Begin(ext::Begin { mode: 99, ..ext::Begin::default() })], false),
        (vec![ext::control::Kind::Buckets(ext::Buckets::default())], false),
    ];
    for (kinds, taken) in cases {
        let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
        let mut shop = End::new("shop", "bank", true, true, slice_of("bank"));
        talk(&mut shop, &mut bank);
        let received = kinds.iter().try_for_each(|kind| {
            let message = Outgoing::Control(ext::Control { kind: Some(kind.clone()) });
            shop.session.receive(heard(&message), shop.now)
        });
        assert_eq!(received.is_ok(), taken, "{kinds:?}");
    }
}

/// A session that a consumer has subscribed to, which says that it holds a thousand services.
fn asked_by(hashes: Vec<u8>) -> End {
    let mut bank = End::new("bank", "shop", false, true, slice_of("shop"));
    bank.publish(&["cart"]);
    let held = ext::Held {
        round: 1,
        digest_version: 1,
        root: vec![5; 32].into(),
        count: 1_000,
        hashes: hashes.into(),
        ..ext::Held::default()
    };
    let hello = our_hello("test", 1, [1; 16], 0, 65_536, Some(held));
    let kind = Some(ext::control::Kind::Hello(hello));
    bank.hear(&Outgoing::Subscribe { control: Some(ext::Control { kind }) });
    bank
}

#[test]
fn whoever_says_no_hashes_or_not_all_of_them_is_told_everything() {
    for (hashes, begin) in
        [(256, "begin WANT_BUCKETS"), (0, "begin ALL"), (248, "begin ALL"), (8_192, "begin ALL")]
    {
        let said: Vec<String> =
            asked_by(vec![1; hashes]).speak().iter().filter_map(|m| tell("bank", m)).collect();
        assert!(said.contains(&format!("bank: {begin}")), "{hashes}: {said:?}");
    }
}

#[test]
fn buckets_out_of_order_or_of_another_level_end_the_stream_and_right_ones_do_not() {
    let message = |round, level, first, hashes: usize, last| {
        let buckets = ext::Buckets { round, level, first, hashes: vec![1; hashes * 8].into(), last };
        Outgoing::Control(ext::Control { kind: Some(ext::control::Kind::Buckets(buckets)) })
    };
    // All nodes of level 1 differ, so all of level 2 are asked for; in the second half of the
    // table the last four of level 1 do not.
    let alike = {
        let mut hashes = vec![1; 28 * 8];
        hashes.resize(32 * 8, 0);
        hashes
    };
    let all = vec![1; 256];
    let cases: [(&Vec<u8>, &[Outgoing], bool); 15] = [
        (&all, &[message(1, 2, 0, 1_000, false), message(1, 2, 1_000, 24, true)], true),
        (&all, &[message(1, 2, 0, 1_000, false), message(1, 2, 999, 25, true)], false),
        (&all, &[message(1, 2, 0, 1_000, false), message(1, 3, 1_000, 24, true)], false),
        (&all, &[message(1, 2, 0, 1_000, false), message(1, 2, 1_000, 24, false)], false),
        (&all, &[message(1, 2, 0, 0, false), message(1, 2, 0, 1_024, true)], false),
        (&all, &[message(1, 2, 0, 1_024, true), message(1, 2, 0, 1_024, true)], false),
        (&all, &[message(1, 2, 0, 1_025, true)], false),
        (&all, &[message(1, 2, 0, 1_023, true)], false),
        (&all, &[message(2, 2, 0, 1_024, true)], false),
        (&all, &[message(1, 4, 0, 1_024, true)], false),
        (&all, &[message(1, 1, 0, 32, true)], false),
        (&all, &[message(1, 3, 0, 32_768, true)], false),
        (&alike, &[message(1, 2, 0, 28 * 32, true)], true),
        (&alike, &[message(1, 2, 0, 1_024, true)], false),
        (&alike, &[message(1, 2, 0, 28 * 31, true)], false),
    ];
    for (i, (hashes, messages, taken)) in cases.iter().enumerate() {
        let mut bank = asked_by((*hashes).clone());
        bank.speak();
        let received = messages.iter().try_for_each(|m| bank.session.receive(heard(m), bank.now));
        assert_eq!(received.is_ok(), *taken, "case {i}");
    }
}
