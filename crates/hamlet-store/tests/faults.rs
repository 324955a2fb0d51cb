//! Disks that fail, fill up and lose power: what was acknowledged survives, and of the rest all or
//! nothing is there.

mod common;

use std::io::ErrorKind;
use std::sync::Arc;

use common::{SimDisk, peer, put, record, small, wait, wait_all};
use futures::FutureExt;
use hamlet_core::durable::ImportStore;
use hamlet_store::{Disk, OpenError, Opened, Store, StoreOptions};

const COMMITS: u64 = 24;
const RECORDS: u64 = 3;

/// Commits `COMMITS` batches, each with records of its own and a version of one shared key; returns
/// which were acknowledged. The journal is full several times over it, and some batches are too
/// large for it.
fn work(disk: &SimDisk, open: OpenStore) -> Vec<bool> {
    let opened = open(Arc::new(disk.clone()), small());
    let Ok(Opened { store, .. }) = opened else { return vec![false; COMMITS as usize] };
    let commit = |n: u64| {
        let own = (0..RECORDS).map(|m| put("acme", format!("c{n}r{m}"), n * RECORDS + m));
        let large = is_large(&n).then(|| put("acme", "large", n)).into_iter().map(|mut change| {
            let record = change.record.as_mut().unwrap();
            record.in_force = Some(vec![1; 6000].into());
            change
        });
        store.commit(own.chain([put("acme", "shared", n)]).chain(large).collect())
    };
    let mut acknowledged: Vec<bool> = (0..COMMITS / 2).map(|n| wait(commit(n)).is_ok()).collect();
    let rest = wait_all((COMMITS / 2..COMMITS).map(commit).collect());
    acknowledged.extend(rest.iter().map(Result::is_ok));
    acknowledged
}

fn is_large(n: &u64) -> bool {
    n % 9 == 4
}

type OpenStore = fn(Arc<dyn Disk>, StoreOptions) -> Result<Opened, OpenError>;

const WAYS: [OpenStore; 2] = [Store::open_with_backend, Store::open_inline];

#[test]
fn after_a_loss_of_power_at_any_moment_all_that_was_acknowledged_is_there_and_nothing_is_there_by_half() {
    for open in WAYS {
        let whole = SimDisk::default();
        assert!(work(&whole, open).iter().all(|ok| *ok));
        let operations = whole.operations();
        let (mut acknowledged_total, mut cut_total) = (0, 0);
        for at in 1..=operations {
            let disk = SimDisk::default();
            disk.faults(|faults| faults.power_fails_at = Some(at));
            let acknowledged = work(&disk, open);
            acknowledged_total += acknowledged.iter().filter(|ok| **ok).count();
            cut_total += 1;
            for seed in [at * 5, at * 5 + 1, at * 5 + 2 + at % 3] {
                let what = format!("cut at {at}, seed {seed}");
                let after = disk.after_power_cut(seed);
                if seed == at * 5 + 1 {
                    // Power may fail again while what is left is being read.
                    let again = SimDisk::with_image(after.seen());
                    again.faults(|faults| faults.power_fails_at = Some(1 + at % 12));
                    let _ = again.try_open(small());
                    let what = format!("{what}, and again");
                    survived(&again.after_power_cut(at), &acknowledged, &what);
                }
                survived(&after, &acknowledged, &what);
            }
        }
        // The cuts really fell between the commits, not before or after all of them.
        assert!(acknowledged_total > cut_total && acknowledged_total < cut_total * COMMITS as usize);
    }
}

fn survived(disk: &SimDisk, acknowledged: &[bool], what: &str) {
    let opened = disk.open_store();
    assert_eq!(opened.damage, None, "{what}");
    let none = Default::default();
    let records = opened.peers.get(&peer("acme")).map_or(&none, |loaded| &loaded.records);
    let mut last = None;
    for (n, ok) in (0..COMMITS).zip(acknowledged) {
        let own = |m: &u64| records.get(&format!("c{n}r{m}")) == Some(&record(n * RECORDS + m));
        let present = (0..RECORDS).filter(own).count() as u64;
        let named = records.keys().filter(|key| key.starts_with(&format!("c{n}r"))).count() as u64;
        assert!(present == 0 || present == RECORDS, "{what}: commit {n} by half");
        assert_eq!(present, named, "{what}: commit {n} differs");
        assert!(present == RECORDS || !ok, "{what}: commit {n} was acknowledged and is lost");
        if present > 0 {
            last = Some(n);
        }
    }
    assert_eq!(records.get("shared"), last.map(record).as_ref(), "{what}: the shared key");
}

#[test]
fn after_one_passing_fault_at_any_moment_exactly_what_was_acknowledged_is_there() {
    for open in WAYS {
        let whole = SimDisk::default();
        assert!(work(&whole, open).iter().all(|ok| *ok));
        let mut failed_total = 0;
        for at in 1..=whole.operations() {
            let disk = SimDisk::default();
            disk.faults(|faults| faults.fails_at = Some(at));
            let acknowledged = work(&disk, open);
            failed_total += acknowledged.iter().filter(|ok| !**ok).count();
            // How many operations there are depends on how commits met in batches, so it may be ahead.
            disk.faults(|faults| faults.fails_at = None);
            // The store was closed, so nothing depends on what the disk kept of unsynced writes, unless
            // closing met the fault; what was answered is there in any case.
            for view in [disk.after_power_cut(0), disk.after_power_cut(1), disk.clone()] {
                survived(&view, &acknowledged, &format!("fault at {at}"));
                let records = view.open_store().peers.remove(&peer("acme")).unwrap_or_default().records;
                let of = |n: &u64| acknowledged[*n as usize];
                let commits = (0..COMMITS).filter(of).count() as u64;
                let shared =
                    u64::from(commits > 0) + u64::from((0..COMMITS).filter(is_large).any(|n| of(&n)));
                assert_eq!(
                    records.len() as u64,
                    commits * RECORDS + shared,
                    "fault at {at}: a failed commit shows"
                );
            }
        }
        assert!(failed_total > 0);
    }
}

#[test]
fn a_passing_fault_while_opening_costs_no_record() {
    let filled = SimDisk::default();
    assert!(work(&filled, Store::open_inline).iter().all(|ok| *ok));
    let acknowledged = [true; COMMITS as usize];
    // A file that was closed, and one as a crash leaves it.
    let crashed = SimDisk::default();
    let opened = crashed.open_store();
    wait(opened.store.commit(vec![put("acme", "k", 1)])).unwrap();
    for (image, closed) in [(filled.seen(), true), (crashed.seen(), false)] {
        let mut refused = 0;
        for at in 1.. {
            let disk = SimDisk::with_image(image.clone());
            disk.faults(|faults| faults.fails_at = Some(at));
            let opened = disk.try_open(small());
            refused += u64::from(opened.is_err());
            drop(opened);
            let untouched = disk.operations() < at;
            disk.faults(|faults| faults.fails_at = None);
            for view in [disk.after_power_cut(0), disk.after_power_cut(2), disk.clone()] {
                if closed {
                    survived(&view, &acknowledged, &format!("fault at {at}"));
                } else {
                    assert_eq!(
                        view.open_store().peers[&peer("acme")].records["k"],
                        record(1),
                        "fault at {at}"
                    );
                }
                assert_eq!(view.set_aside_count(), (0, 0), "fault at {at}");
            }
            if untouched {
                break;
            }
        }
        assert!(refused > 3, "{refused}");
    }
}

#[test]
fn a_page_that_a_failed_sync_of_a_checkpoint_dropped_is_written_again_and_no_commit_fails() {
    let disk = SimDisk::default();
    let options = StoreOptions { journal_segment_bytes: 1024 * 1024, ..StoreOptions::default() };
    let store = Store::open_inline(Arc::new(disk.clone()), options).unwrap().store;
    let all = || (0..500).map(|n| put("acme", format!("k{n:03}"), n)).collect::<Vec<_>>();
    let commit = |changes| store.commit(changes).now_or_never().unwrap();
    let turn = |rounds| (0..rounds).for_each(|_| commit(all()).unwrap());
    // Several times, so that the file needs not grow (and sync for it) when it matters.
    let rounds = 10;
    turn(5 * rounds);
    let before = store.health();
    assert!(before.checkpoints > 3, "{before:?}");
    disk.faults(|faults| (faults.sync, faults.spare_journal) = (Some(ErrorKind::Other), true));
    let mut made = 0;
    while store.health().error.is_none() {
        commit(all()).unwrap();
        made += 1;
        assert!(made < rounds, "no checkpoint was tried");
    }
    assert!(disk.lost_pages() > 10, "{}", disk.lost_pages());
    disk.faults(|faults| faults.sync = None);
    turn(rounds);
    assert_eq!(store.health().error, None);
    commit(vec![put("acme", "k000", 1000)]).unwrap();
    let after = disk.after_power_cut(0).open_store();
    assert_eq!(after.damage, None);
    let records = &after.peers[&peer("acme")].records;
    assert_eq!((records.len(), &records["k000"]), (500, &record(1000)));
    assert!((1..500).all(|n| records[&format!("k{n:03}")] == record(n)));
}

#[test]
fn while_checkpoints_fail_commits_go_on_until_the_journal_is_full_and_again_when_the_disk_heals() {
    for open in WAYS {
        let disk = SimDisk::default();
        let store = open(Arc::new(disk.clone()), small()).unwrap().store;
        disk.faults(|faults| (faults.write, faults.spare_journal) = (Some(ErrorKind::StorageFull), true));
        let commit = |n: u64| wait(store.commit(vec![put("acme", format!("k{n}"), n)]));
        let kept = (0..200).find(|n| commit(*n).is_err()).unwrap();
        // Both segments were used, and nothing more is taken.
        assert!(kept > 16, "{kept}");
        let error = commit(1000).unwrap_err().to_string();
        assert!(error.contains("free space"), "{error}");
        assert!(store.health().error.is_some() && store.health().pending >= kept as usize);
        // What was taken survives, now and later.
        let cut = disk.after_power_cut(0);
        disk.faults(|faults| faults.write = None);
        (kept..kept + 40).for_each(|n| commit(n).unwrap());
        assert_eq!(store.health().error, None);
        store.close().unwrap();
        for (view, count) in [(cut, kept), (disk, kept + 40)] {
            let opened = view.open_store();
            assert_eq!(opened.damage, None);
            let records = &opened.peers[&peer("acme")].records;
            assert_eq!(records.len() as u64, count);
            assert!((0..count).all(|n| records[&format!("k{n}")] == record(n)));
        }
    }
}

#[test]
fn what_could_not_be_written_down_at_the_end_is_there_at_the_next_start() {
    let disk = SimDisk::default();
    let store = disk.open_store().store;
    wait(store.commit(vec![put("acme", "k", 1)])).unwrap();
    wait(store.put_document("d", vec![1])).unwrap();
    disk.faults(|faults| (faults.write, faults.spare_journal) = (Some(ErrorKind::StorageFull), true));
    assert!(store.close().is_err());
    drop(store);
    // A start that can't write it down either changes nothing.
    assert!(matches!(disk.try_open(small()), Err(OpenError::Io { .. })));
    disk.faults(|faults| faults.write = None);
    let opened = disk.open_store();
    assert_eq!((&opened.peers[&peer("acme")].records["k"], opened.damage), (&record(1), None));
    assert_eq!(opened.store.get_document("d").unwrap(), Some(vec![1]));
}

#[test]
fn a_failing_disk_fails_the_batch_only_and_the_store_goes_on_when_it_heals() {
    for (name, on_write) in [("write", true), ("sync", false)] {
        let disk = SimDisk::default();
        let store = disk.open_store().store;
        wait(store.commit(vec![put("acme", "kept", 1), put("acme", "changed", 1)])).unwrap();
        wait(store.put_document("doc", vec![1])).unwrap();
        let fault = |kind| {
            move |faults: &mut common::Faults| {
                if on_write { faults.write = kind } else { faults.sync = kind }
            }
        };
        disk.faults(fault(Some(ErrorKind::StorageFull)));
        for round in 0..3 {
            let outcomes = wait_all(vec![
                store.commit(vec![put("acme", "changed", 2), put("acme", "lost", round)]),
                store.put_document("doc", vec![2]),
                store.forget_peer(&peer("acme")),
            ]);
            assert!(outcomes.iter().all(Result::is_err), "{name}: {outcomes:?}");
        }
        let health = store.health();
        assert!(health.error.is_some() && health.failed_commits == 9, "{name}: {health:?}");

        disk.faults(fault(None));
        wait(store.commit(vec![put("acme", "later", 3)])).unwrap();
        assert_eq!(store.get_document("doc").unwrap(), Some(vec![1]), "{name}");
        let health = store.health();
        assert!(health.error.is_none() && health.last_error.is_some(), "{name}: {health:?}");
        let seen = SimDisk::with_image(disk.seen());
        // Also true of the disk below, which dropped the pages of the failed syncs.
        let cut = disk.after_power_cut(0);
        drop(store);
        for (view, opened) in
            [("closed", disk.open_store()), ("seen", seen.open_store()), ("cut", cut.open_store())]
        {
            assert_eq!(opened.damage, None, "{name}, {view}");
            let expected = [("changed", 1), ("kept", 1), ("later", 3)];
            let expected = expected.into_iter().map(|(key, n)| (key.to_owned(), record(n))).collect();
            assert_eq!(opened.peers[&peer("acme")].records, expected, "{name}, {view}");
        }
    }
}

#[test]
fn nothing_of_a_batch_whose_sync_failed_is_left_when_the_disk_heals_at_once() {
    let disk = SimDisk::default();
    let store = disk.open_store().store;
    wait(store.commit(vec![put("acme", "k", 1)])).unwrap();
    disk.faults(|faults| faults.sync = Some(ErrorKind::Other));
    assert!(wait(store.commit(vec![put("acme", "k", 2), put("acme", "new", 2)])).is_err());
    disk.faults(|faults| faults.sync = None);
    // No further commit: closing alone must leave the file as it was before.
    store.close().unwrap();
    let records = &disk.open_store().peers[&peer("acme")].records;
    assert_eq!(records.len(), 1);
    assert_eq!(records["k"], record(1));
}

#[test]
fn a_record_that_was_answered_with_an_error_does_not_come_back_when_the_process_ends() {
    // The write fails, or the sync; and the zeros over the record may fail as well.
    for (fault, heals) in [(1, true), (2, true), (1, false), (2, false)] {
        let disk = SimDisk::default();
        let store = disk.open_inline().store;
        let commit = |changes| store.commit(changes).now_or_never().unwrap();
        commit(vec![put("acme", "k", 1)]).unwrap();
        let at = disk.operations();
        disk.faults(|faults| faults.fails_at = Some(at + fault));
        if !heals {
            disk.faults(|faults| faults.sync = Some(ErrorKind::Other));
        }
        assert!(commit((0..4).map(|n| put("acme", format!("lost{n}"), n)).collect()).is_err());
        disk.faults(|faults| faults.sync = None);
        let mut expected = vec![("k".to_owned(), record(1))];
        if !heals {
            // The next commit takes it back first; it is shorter than what was there.
            commit(vec![put("acme", "later", 2)]).unwrap();
            expected.push(("later".to_owned(), record(2)));
        }
        let ends = [SimDisk::with_image(disk.seen()), disk.after_power_cut(0), disk.after_power_cut(1)];
        for (n, end) in ends.iter().enumerate() {
            let opened = end.open_store();
            assert_eq!(opened.damage, None, "fault {fault}, {heals}, end {n}");
            let records = opened.peers[&peer("acme")].records.clone();
            assert_eq!(records.into_iter().collect::<Vec<_>>(), expected, "fault {fault}, {heals}, end {n}");
        }
    }
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_keeps_what_fits() {
    let disk = SimDisk::default();
    let store = disk.open_store().store;
    wait(store.commit(vec![put("acme", "k", 1)])).unwrap();
    let capacity = store.health().file_bytes.max(disk.seen().file.len() as u64);
    disk.faults(|faults| faults.capacity = Some(capacity));
    let error = wait(store.put_document("large", vec![1; 4 * 1024 * 1024])).unwrap_err();
    assert!(error.to_string().contains("free space"), "{error}");
    wait(store.commit(vec![put("acme", "small", 2)])).unwrap();
    assert_eq!(store.get_document("large").unwrap(), None);
    drop(store);
    assert_eq!(disk.open_store().peers[&peer("acme")].records.len(), 2);
}

#[test]
fn a_disk_that_fails_while_opening_is_an_error_and_the_file_stays() {
    let filled = SimDisk::default();
    wait(filled.open_store().store.commit(vec![put("acme", "k", 1)])).unwrap();
    for kind in [ErrorKind::StorageFull, ErrorKind::PermissionDenied, ErrorKind::Other] {
        let disk = SimDisk::with_image(filled.seen());
        disk.faults(|faults| faults.write = Some(kind));
        let error = disk.try_open(small()).err().unwrap();
        let denied = matches!(error, OpenError::Denied { .. });
        assert!(denied || matches!(error, OpenError::Io { .. }), "{error}");
        assert_eq!(denied, kind == ErrorKind::PermissionDenied, "{error}");
        assert_eq!((disk.set_aside_count(), disk.seen()), ((0, 0), filled.seen()), "{error}");
        disk.faults(|faults| faults.write = None);
        assert_eq!(disk.open_store().peers[&peer("acme")].records["k"], record(1));
    }
}

/// Every operation of a run fails once, a sync drops what it should have made durable, and there the
/// process ends: the next one reads what the system still shows, and only then the power fails.
#[test]
fn what_a_failed_sync_dropped_before_the_process_ended_is_durable_before_the_next_one_builds_on_it() {
    // With a thread of its own the store does the same, but not in the same order in every run.
    for (open, step, least) in [(WAYS[1], 1, 10), (WAYS[0], 7, 2)] {
        let whole = SimDisk::default();
        assert!(work(&whole, open).iter().all(|ok| *ok));
        let (mut lied, mut ended) = (0, 0);
        for at in (1..=whole.operations()).step_by(step) {
            let disk = SimDisk::default();
            disk.faults(|faults| (faults.fails_at, faults.process_ends_at) = (Some(at), Some(at + 1)));
            let acknowledged = work(&disk, open);
            ended += u64::from(acknowledged.iter().any(|ok| !*ok));
            let next = disk.restarted();
            lied += u64::from(next.lies());
            // The power may fail while it starts ...
            for cut in 1..4 {
                let starting = disk.restarted();
                starting.faults(|faults| faults.power_fails_at = Some(cut * 2 + at % 7));
                let _ = starting.try_open(small());
                survived(&starting.after_power_cut(at + cut), &acknowledged, &format!("{at}, starting"));
            }
            // ... as soon as it has started ...
            let opened = next.open_store();
            assert_eq!(opened.damage, None, "{at}");
            assert!(!next.lies(), "{at}: what is read is not what is durable");
            for seed in 0..3 {
                survived(&next.after_power_cut(seed), &acknowledged, &format!("{at}, started"));
            }
            // ... or after it has written down so much that the database has other pages.
            let commit = |n: u64| wait(opened.store.commit(vec![put("zoo", format!("k{}", n % 8), n)]));
            (0..40).for_each(|n| commit(n).unwrap());
            for seed in 0..3 {
                let after = next.after_power_cut(seed);
                survived(&after, &acknowledged, &format!("{at}, later"));
                let records = &after.open_store().peers[&peer("zoo")].records;
                assert!((32..40).all(|n| records[&format!("k{}", n % 8)] == record(n)), "{at}");
            }
        }
        assert!(lied > least && ended > 2 * least, "{lied} lies, {ended} runs that ended early");
    }
}

#[test]
fn a_store_that_was_closed_in_order_is_not_written_again_and_any_other_is() {
    let filled = || {
        let disk = SimDisk::default();
        let options = StoreOptions { journal_segment_bytes: 1024 * 1024, ..StoreOptions::default() };
        (disk.clone(), options.clone(), Store::open_inline(Arc::new(disk), options).unwrap().store)
    };
    let start = |disk: &SimDisk, options: &StoreOptions| {
        let disk = disk.restarted();
        let opened = Store::open_inline(Arc::new(disk.clone()), options.clone()).unwrap();
        assert_eq!((opened.damage, opened.peers[&peer("acme")].records.len()), (None, 500));
        disk.bytes_written()
    };
    let all = || (0..500).map(|n| put("acme", format!("k{n:03}"), n)).collect::<Vec<_>>();
    let (disk, options, store) = filled();
    store.commit(all()).now_or_never().unwrap().unwrap();
    let size = |disk: &SimDisk| (disk.seen().file.len() + disk.seen().journal.len()) as u64;
    let unclosed = start(&disk, &options);
    assert!(unclosed > size(&disk), "{unclosed}");
    store.close().unwrap();
    let closed = start(&disk, &options);
    assert!(closed < size(&disk) / 4, "{closed} of {}", size(&disk));
    // The note is for one start: if that one doesn't close, the next writes all again.
    let second = disk.restarted();
    std::mem::forget(Store::open_inline(Arc::new(second.clone()), options.clone()).unwrap());
    assert!(start(&second, &options) > size(&disk));
    // What could not be closed doesn't claim to be.
    let (disk, options, store) = filled();
    store.commit(all()).now_or_never().unwrap().unwrap();
    disk.faults(|faults| (faults.sync, faults.spare_journal) = (Some(ErrorKind::Other), true));
    assert!(store.close().is_err());
    assert!(start(&disk, &options) > size(&disk));
}
