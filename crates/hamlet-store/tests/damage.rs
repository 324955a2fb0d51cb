//! Whatever became of the file: the store opens, nothing panics, and what is read is exactly what
//! was written, or it is missing.

mod common;

use std::sync::OnceLock;

use common::{Draw, SimDisk, peer, put, record, wait};
use hamlet_core::durable::{ImportStore, PeerState};
use hamlet_store::{CheckState, FILE_NAME, Opened, Store, StoreOptions};

const RECORDS: u64 = 120;
const SEED: u64 = 20_261_123;

fn fill(disk: &SimDisk) -> std::sync::Arc<Store> {
    let store = disk.open_store().store;
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
fn images() -> &'static [Vec<u8>; 2] {
    static IMAGES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let disk = SimDisk::default();
        let store = fill(&disk);
        let open = disk.seen();
        drop(store);
        [disk.seen(), open]
    })
}

/// Opens damaged bytes; returns how many records are there. Each must be as it was written.
fn survive(bytes: Vec<u8>, what: &str) -> usize {
    let disk = SimDisk::with_bytes(bytes);
    let options = StoreOptions::default();
    let opened = Store::open_with_backend(std::sync::Arc::new(disk.clone()), options);
    let opened = opened.unwrap_or_else(|e| panic!("{what}: {e}"));
    let count = exact(&opened, what);
    let Opened { store, damage, .. } = opened;
    if let Some(document) = store.get_document("doc").unwrap_or_else(|e| panic!("{what}: {e}")) {
        assert_eq!(document, vec![7; 300], "{what}");
    }
    let aside = damage.as_ref().is_some_and(|damage| damage.file.is_some());
    assert_eq!(disk.set_aside_count(), u64::from(aside), "{what}");
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
        let anywhere: Vec<_> = (0..200).map(|_| (draw.below(image.len() as u64), draw.below(8))).collect();
        for (offset, bit) in flips.into_iter().chain(anywhere) {
            let mut bytes = image.clone();
            bytes[offset as usize] ^= 1 << bit;
            match survive(bytes, &format!("image {which}, bit {bit} at {offset}")) as u64 {
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
        let len = image.len() as u64;
        let mut lengths =
            vec![0, 1, 8, 9, 63, 64, 319, 320, 511, 512, 4095, 4096, 4097, len - 4096, len - 1, len + 1];
        lengths.extend((0..40).map(|_| draw.below(len)));
        lengths.extend([len + 4096, 2 * len]);
        for length in lengths {
            let mut bytes = image.clone();
            bytes.resize(length as usize, 0);
            survive(bytes, &format!("image {which}, length {length}"));
        }
    }
}

#[test]
fn garbage_and_lost_pages_are_read_or_set_aside() {
    let mut draw = Draw(SEED);
    for round in 0..40 {
        let image = &images()[round % 2];
        let mut bytes = image.clone();
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
        survive(bytes, &format!("round {round}"));
    }
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
