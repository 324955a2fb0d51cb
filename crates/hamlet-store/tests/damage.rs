//! Whatever became of the file: the store opens, nothing panics, and what is read is exactly what
//! was written, or it is missing.

mod common;

use std::sync::OnceLock;

use common::{Draw, Image, SimDisk, peer, put, record, wait};
use hamlet_core::durable::{ImportStore, PeerState};
use hamlet_store::{CheckState, DamageReport, FILE_NAME, Opened, Store, StoreOptions};

const RECORDS: u64 = 120;
const SEED: u64 = 20_261_123;

/// Each of the commits below fits into the journal, three of them into a segment.
fn options() -> StoreOptions {
    StoreOptions { journal_segment_bytes: 40 * 1024, ..StoreOptions::default() }
}

fn fill(disk: &SimDisk) -> std::sync::Arc<Store> {
    let store = disk.try_open(options()).unwrap().store;
    for part in 0..4 {
        let from = part * RECORDS / 4;
        let changes = (from..from + RECORDS / 4).map(|n| put("acme", format!("k{n}"), n)).collect();
        wait(store.commit(changes)).unwrap();
    }
    wait(store.put_peer_state(&peer("acme"), PeerState { revision: 5, ..PeerState::default() })).unwrap();
    wait(store.put_document("doc", vec![7; 300])).unwrap();
    store
}

/// The bytes of a store that was closed, and of one that was not.
fn images() -> &'static [Image; 2] {
    static IMAGES: OnceLock<[Image; 2]> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let disk = SimDisk::default();
        let store = fill(&disk);
        let open = disk.seen();
        drop(store);
        [disk.seen(), open]
    })
}

/// Opens damaged bytes; returns how many records are there. Each must be as it was written.
fn survive(image: Image, what: &str) -> usize {
    let disk = SimDisk::with_image(image);
    let opened = disk.try_open(options());
    let opened = opened.unwrap_or_else(|e| panic!("{what}: {e}"));
    let count = exact(&opened, what);
    let Opened { store, damage, .. } = opened;
    if let Some(document) = store.get_document("doc").unwrap_or_else(|e| panic!("{what}: {e}")) {
        assert_eq!(document, vec![7; 300], "{what}");
    }
    let aside = |of: fn(&DamageReport) -> bool| u64::from(damage.as_ref().is_some_and(of));
    let aside = (aside(|damage| damage.file.is_some()), aside(|damage| damage.journal.is_some()));
    assert_eq!(disk.set_aside_count(), aside, "{what}");
    // Whatever was found, the store works now.
    wait(store.commit(vec![put("acme", "k0", 0)])).unwrap_or_else(|e| panic!("{what}: {e}"));
    drop(store);
    let again = disk.open_store();
    assert_eq!(again.damage, None, "{what}");
    assert_eq!(again.peers[&peer("acme")].records["k0"], record(0), "{what}");
    count
}

fn exact(opened: &Opened, what: &str) -> usize {
    let mut count = 0;
    for (name, loaded) in &opened.peers {
        assert_eq!(name.as_str(), "acme", "{what}");
        for (key, found) in &loaded.records {
            let n =
                key.strip_prefix('k').and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{what}: {key}"));
            assert_eq!(*found, record(n), "{what}");
            count += 1;
        }
        assert!([0, 5].contains(&loaded.state.revision), "{what}");
    }
    count
}

#[test]
fn undamaged_files_are_read_whole_closed_or_not() {
    for image in images() {
        assert_eq!(survive(image.clone(), "undamaged"), RECORDS as usize);
    }
}

#[test]
fn a_flipped_bit_anywhere_is_harmless_or_found() {
    let mut draw = Draw(SEED);
    let (mut whole, mut empty) = (0, 0);
    for (which, image) in images().iter().enumerate() {
        // The header decides most, so it gets more than its share.
        let in_header = (0..60).map(|_| (draw.below(512), draw.below(8)));
        let flips: Vec<_> = in_header.collect();
        let anywhere: Vec<_> =
            (0..200).map(|_| (draw.below(image.file.len() as u64), draw.below(8))).collect();
        for (offset, bit) in flips.into_iter().chain(anywhere) {
            let mut image = image.clone();
            image.file[offset as usize] ^= 1 << bit;
            match survive(image, &format!("image {which}, bit {bit} at {offset}")) as u64 {
                0 => empty += 1,
                RECORDS => whole += 1,
                _ => {}
            }
        }
    }
    // Some flips hit unused bytes and some hit what matters: both were seen.
    assert!(whole > 20 && empty > 20, "{whole} files read whole, {empty} set aside");
}

#[test]
fn a_file_cut_or_extended_at_any_length_is_read_or_set_aside() {
    let mut draw = Draw(SEED);
    for (which, image) in images().iter().enumerate() {
        let len = image.file.len() as u64;
        let mut lengths =
            vec![0, 1, 8, 9, 63, 64, 319, 320, 511, 512, 4095, 4096, 4097, len - 4096, len - 1, len + 1];
        lengths.extend((0..40).map(|_| draw.below(len)));
        lengths.extend([len + 4096, 2 * len]);
        for length in lengths {
            let mut image = image.clone();
            image.file.resize(length as usize, 0);
            survive(image, &format!("image {which}, length {length}"));
        }
    }
}

#[test]
fn garbage_and_lost_pages_are_read_or_set_aside() {
    let mut draw = Draw(SEED);
    for round in 0..40 {
        let mut image = images()[round % 2].clone();
        let bytes = &mut image.file;
        let page = draw.below(bytes.len() as u64 / 4096) as usize * 4096;
        match round % 4 {
            0 => bytes[page..page + 4096].fill(0),
            1 => bytes[page..page + 4096].iter_mut().for_each(|b| *b = draw.next() as u8),
            2 => {
                let other = draw.below(bytes.len() as u64 / 4096) as usize * 4096;
                bytes.copy_within(other..other + 4096, page);
            }
            // Garbage behind a right magic number.
            _ => bytes[16..].iter_mut().for_each(|b| *b = draw.next() as u8),
        }
        survive(image, &format!("round {round}"));
    }
}

/// Opens a store that was not closed with a journal made from its own; returns how many records
/// are there, and whether the journal was found damaged. They are those of the first commits.
fn survive_journal(journal: Vec<u8>, what: &str) -> (u64, bool) {
    let image = Image { journal, ..images()[1].clone() };
    let disk = SimDisk::with_image(image.clone());
    let opened = disk.try_open(options()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let damage = opened.damage.as_ref();
    assert!(damage.is_none_or(|damage| damage.file.is_none() && damage.values_total == 0), "{what}");
    let damaged = damage.is_some_and(|damage| damage.journal.is_some());
    let none = Default::default();
    let records = opened.peers.get(&peer("acme")).map_or(&none, |loaded| &loaded.records);
    let count = records.len() as u64;
    assert!(count.is_multiple_of(RECORDS / 4), "{what}: {count}");
    assert!((0..count).all(|n| records.contains_key(&format!("k{n}"))), "{what}: {count}");
    drop(opened);
    assert_eq!(survive(image, what) as u64, count, "{what}");
    (count, damaged)
}

#[test]
fn a_flipped_bit_in_the_journal_is_harmless_or_what_came_before_it_is_kept() {
    let mut draw = Draw(SEED);
    let journal = &images()[1].journal;
    let (mut whole, mut reported, mut torn) = (0, 0, 0);
    // Heads of records are at the starts of sectors; they get more than their share.
    let heads = (0..journal.len() as u64 / 512).map(|sector| sector * 512 + draw.below(40));
    let heads: Vec<_> = heads.filter(|at| journal[*at as usize - (at % 512) as usize] == b'H').collect();
    let anywhere: Vec<_> = (0..200).map(|_| draw.below(journal.len() as u64)).collect();
    for offset in [heads.clone(), heads, anywhere].concat() {
        let mut journal = journal.clone();
        let bit = draw.below(8);
        journal[offset as usize] ^= 1 << bit;
        match survive_journal(journal, &format!("bit {bit} at {offset}")) {
            (RECORDS, false) => whole += 1,
            (_, true) => reported += 1,
            // The last record is like one that was torn before it was acknowledged.
            (..) => torn += 1,
        }
    }
    assert!(whole > 20 && reported > 20, "{whole} whole, {reported} reported, {torn} taken as torn");
}

#[test]
fn a_journal_cut_lost_or_full_of_garbage_is_reported_and_what_came_before_is_kept() {
    let mut draw = Draw(SEED);
    let journal = &images()[1].journal;
    let len = journal.len() as u64;
    for length in
        [0, 1, 39, 40, 511, 512, 513, len / 2, len - 1].into_iter().chain((0..20).map(|_| draw.below(len)))
    {
        let cut = journal[..length as usize].to_vec();
        let (_, damaged) = survive_journal(cut, &format!("length {length}"));
        assert!(damaged, "length {length}");
    }
    // Its neighbour: longer is not damaged.
    let longer = [&journal[..], &[0; 4096]].concat();
    assert_eq!(survive_journal(longer, "longer"), (RECORDS, false));
    for round in 0..40 {
        let mut journal = journal.clone();
        let sector = draw.below(len / 512) as usize * 512;
        match round % 3 {
            0 => journal[sector..sector + 512].fill(0),
            1 => journal[sector..sector + 512].iter_mut().for_each(|b| *b = draw.next() as u8),
            _ => {
                let other = draw.below(len / 512) as usize * 512;
                journal.copy_within(other..other + 512, sector);
            }
        }
        survive_journal(journal, &format!("round {round}"));
    }
    let garbage: Vec<u8> = (0..len).map(|_| draw.next() as u8).collect();
    survive_journal(garbage, "garbage");
}

#[test]
fn the_journal_of_another_store_or_of_an_earlier_time_is_never_read() {
    let [closed, open] = images();
    let stale = Image { file: closed.file.clone(), journal: open.journal.clone() };
    assert_eq!(survive(stale, "closed, with its journal as it was before"), RECORDS as usize);
    let other = SimDisk::default();
    let store = other.try_open(options()).unwrap().store;
    wait(store.commit(vec![put("acme", "foreign", 1)])).unwrap();
    // Its records have the same numbers, but not the same epoch.
    let mixed = SimDisk::with_image(Image { file: open.file.clone(), journal: other.seen().journal });
    let opened = mixed.try_open(options()).unwrap();
    let records = opened.peers.get(&peer("acme")).map(|loaded| loaded.records.clone()).unwrap_or_default();
    assert!(!records.contains_key("foreign"));
}

#[test]
fn a_garbage_file_in_a_folder_is_set_aside_unchanged_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = b"this is not a store\n".repeat(500);
    std::fs::write(folder.path().join(FILE_NAME), &garbage).unwrap();
    let checked = Store::check(folder.path()).unwrap().state;
    assert!(matches!(checked, CheckState::Damaged { .. }), "{checked:?}");
    let opened = Store::open(folder.path(), StoreOptions::default()).unwrap();
    let damage = opened.damage.unwrap();
    let aside = damage.file.as_ref().unwrap();
    assert_eq!(aside.name, "hamlet.redb.damaged-1");
    assert!(damage.to_string().contains("set aside as hamlet.redb.damaged-1"), "{damage}");
    assert_eq!(std::fs::read(folder.path().join(&aside.name)).unwrap(), garbage);
    wait(opened.store.commit(vec![put("acme", "k1", 1)])).unwrap();
    opened.store.close().unwrap();
    let again = Store::open(folder.path(), StoreOptions::default()).unwrap();
    assert_eq!((again.damage, again.peers[&peer("acme")].records.len()), (None, 1));
}

#[test]
fn what_a_crash_left_of_a_new_file_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(format!("{FILE_NAME}.new")), b"half a header").unwrap();
    let opened = Store::open(folder.path(), StoreOptions::default()).unwrap();
    assert_eq!(opened.damage, None);
}
