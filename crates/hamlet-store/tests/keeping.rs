//! A store in a real folder keeps what it was given, shares transactions among callers, and lets
//! nobody else in.

mod common;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use common::{SimDisk, peer, put, record, wait, wait_all};
use futures::FutureExt;
use hamlet_core::durable::{ImportChange, ImportStore, LoadedPeer, PeerState};
use hamlet_store::{
    CheckState, FILE_NAME, JOURNAL_NAME, KEY_MAX, LOCK_NAME, OpenError, Opened, SCHEMA, Store, StoreOptions,
    VALUE_MAX,
};
use redb::{Database, TableDefinition};
use sha2::{Digest, Sha256};

fn open(folder: &Path) -> Opened {
    let opened = Store::open(folder, StoreOptions::default()).unwrap();
    assert_eq!(opened.damage, None);
    opened
}

/// The documented frame, written down a second time.
fn sealed(table: &str, key: &[u8], content: &[u8]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [table.as_bytes(), key] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update([1]);
    hash.update(content);
    [&[1], &hash.finalize()[..8], content].concat()
}

fn insert(file: &Path, table: &str, key: &[u8], value: &[u8]) {
    let database = Database::create(file).unwrap();
    let txn = database.begin_write().unwrap();
    let definition: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(table);
    txn.open_table(definition).unwrap().insert(key, value).unwrap();
    txn.commit().unwrap();
}

#[test]
fn records_states_and_documents_are_read_back_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("a/data");
    let first = open(&data);
    assert!(first.peers.is_empty());
    let store = first.store;
    let state = PeerState { down_ms: 7, log_id: vec![9; 16], revision: 3 };
    let forgotten = peer("gone");
    wait_all(vec![
        store.commit((0..50).map(|n| put("acme", format!("k{n}"), n)).collect()),
        store.commit(vec![put("acme-two", "k1", 100), put("gone", "k1", 101)]),
        store.put_peer_state(&peer("acme"), state.clone()),
        store.put_peer_state(&forgotten, state.clone()),
        store.commit(vec![ImportChange { peer: peer("acme"), key: "k7".into(), record: None }]),
        store.commit(vec![put("acme", "k8", 200)]),
        store.put_document("egress", vec![1, 2, 3]),
        store.put_document("egress", vec![4]),
        store.forget_peer(&forgotten),
        store.commit(Vec::new()),
    ])
    .into_iter()
    .for_each(|outcome| outcome.unwrap());
    assert_eq!(store.get_document("egress").unwrap(), Some(vec![4]));
    assert_eq!(store.get_document("other").unwrap(), None);
    store.close().unwrap();
    drop(store);

    let second = open(&data);
    let mut records: BTreeMap<String, _> = (0..50).map(|n| (format!("k{n}"), record(n))).collect();
    records.remove("k7");
    records.insert("k8".into(), record(200));
    let two = LoadedPeer { records: [("k1".to_owned(), record(100))].into(), state: PeerState::default() };
    let expected = BTreeMap::from([(peer("acme"), LoadedPeer { records, state }), (peer("acme-two"), two)]);
    assert_eq!(second.peers, expected);
    assert_eq!(second.store.get_document("egress").unwrap(), Some(vec![4]));
}

#[test]
fn folder_and_files_are_for_the_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let _opened = open(&data);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join(FILE_NAME)), 0o600);
    assert_eq!(mode(&data.join(JOURNAL_NAME)), 0o600);
    assert_eq!(mode(&data.join(LOCK_NAME)), 0o600);
}

#[test]
fn a_second_agent_is_refused_with_the_folder_and_a_remedy_until_the_first_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let error = Store::open(folder.path(), StoreOptions::default()).err().unwrap();
    assert!(matches!(error, OpenError::Locked { holder: Some(pid), .. } if pid == std::process::id()));
    let message = error.to_string();
    assert!(message.contains(folder.path().to_str().unwrap()), "{message}");
    assert!(message.contains("data folder of its own"), "{message}");
    assert!(matches!(Store::check(folder.path()), Err(OpenError::Locked { .. })));
    first.store.close().unwrap();
    open(folder.path());
}

#[test]
fn a_file_that_another_program_has_open_is_locked_and_not_damaged() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path());
    let other = Database::open(folder.path().join(FILE_NAME)).unwrap();
    let error = Store::open(folder.path(), StoreOptions::default()).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    drop(other);
    open(folder.path());
}

#[test]
fn a_newer_schema_is_refused_and_its_file_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(FILE_NAME);
    wait(open(folder.path()).store.commit(vec![put("acme", "k", 1)])).unwrap();
    insert(&file, "meta", b"schema", &sealed("meta", b"schema", &(SCHEMA + 1).to_le_bytes()));
    let (before, inode) = (std::fs::read(&file).unwrap(), std::fs::metadata(&file).unwrap().ino());
    let error = Store::open(folder.path(), StoreOptions::default()).err().unwrap();
    assert!(matches!(error, OpenError::SchemaTooNew { found, .. } if found == SCHEMA + 1), "{error}");
    assert!(error.to_string().contains("run that version"), "{error}");
    assert_eq!(Store::check(folder.path()).unwrap().state, CheckState::TooNew { found: SCHEMA + 1 });
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(std::fs::metadata(&file).unwrap().ino(), inode);

    insert(&file, "meta", b"schema", &sealed("meta", b"schema", &SCHEMA.to_le_bytes()));
    assert_eq!(open(folder.path()).peers[&peer("acme")].records["k"], record(1));
}

#[test]
fn a_newer_schema_left_by_a_crash_is_refused_and_its_file_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let crashed = folder.path().join("crashed");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let database = Database::create(&crashed).unwrap();
    let txn = database.begin_write().unwrap();
    let meta: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("meta");
    let schema = sealed("meta", b"schema", &(SCHEMA + 7).to_le_bytes());
    txn.open_table(meta).unwrap().insert(&b"schema"[..], &schema[..]).unwrap();
    txn.commit().unwrap();
    let before = std::fs::read(&crashed).unwrap();
    std::fs::write(data.join(FILE_NAME), &before).unwrap();
    let error = Store::open(&data, StoreOptions::default()).err().unwrap();
    assert!(matches!(error, OpenError::SchemaTooNew { .. }), "{error}");
    assert_eq!(std::fs::read(data.join(FILE_NAME)).unwrap(), before);
}

#[test]
fn a_thousand_commits_share_a_few_transactions_and_all_are_kept() {
    let disk = SimDisk::default();
    let store = disk.open_store().store;
    disk.faults(|faults| faults.stalled = true);
    let commits = (0..1000).map(|n| store.commit(vec![put("acme", format!("k{n}"), n)])).collect();
    disk.faults(|faults| faults.stalled = false);
    assert!(wait_all(commits).iter().all(Result::is_ok));
    let health = store.health();
    assert_eq!((health.commits, health.records, health.failed_commits), (1000, 1000, 0));
    // While the first transaction waits for the disk, all the others queue up.
    assert!(health.batches <= 3, "{health:?}");
    drop(store);
    let records = &disk.open_store().peers[&peer("acme")].records;
    assert_eq!(records.len(), 1000);
    assert!((0..1000).all(|n| records[&format!("k{n}")] == record(n)));
}

#[test]
fn the_last_of_several_waiting_changes_of_a_key_wins() {
    let disk = SimDisk::default();
    let store = disk.open_store().store;
    let commits = (0..100).map(|n| store.commit(vec![put("acme", "k", n)])).collect();
    assert!(wait_all(commits).iter().all(Result::is_ok));
    drop(store);
    assert_eq!(disk.open_store().peers[&peer("acme")].records["k"], record(99));
}

#[test]
fn a_commit_whose_caller_left_is_still_made_and_closing_waits_for_it() {
    let disk = SimDisk::default();
    let store = disk.open_store().store;
    drop(store.commit(vec![put("acme", "k", 1)]));
    store.close().unwrap();
    assert!(wait(store.commit(vec![put("acme", "k", 2)])).unwrap_err().message.contains("closed"));
    assert!(store.get_document("x").is_err());
    assert_eq!(disk.open_store().peers[&peer("acme")].records["k"], record(1));
}

#[test]
fn a_store_without_a_thread_has_done_it_when_the_call_returns() {
    let disk = SimDisk::default();
    let store = disk.open_inline().store;
    let first = store.commit(vec![put("acme", "k", 1)]);
    // Before anybody polls, and with the power gone.
    let after = disk.after_power_cut(0).open_store();
    assert_eq!(after.peers[&peer("acme")].records["k"], record(1));
    disk.faults(|faults| faults.sync = Some(ErrorKind::Other));
    let refused = store.commit(vec![put("acme", "k", 2)]);
    disk.faults(|faults| faults.sync = None);
    let later = store.put_document("d", vec![3]);
    assert_eq!(first.now_or_never(), Some(Ok(())));
    assert!(refused.now_or_never().unwrap().is_err());
    assert_eq!(later.now_or_never(), Some(Ok(())));
    assert_eq!(store.get_document("d").unwrap(), Some(vec![3]));
    store.close().unwrap();
    let error = store.put_document("d", vec![4]).now_or_never().unwrap().unwrap_err();
    assert!(error.message.contains("closed"));
    assert_eq!(disk.open_store().peers[&peer("acme")].records["k"], record(1));
}

#[test]
fn what_is_too_large_is_refused_and_the_largest_is_kept() {
    let disk = SimDisk::default();
    let store = disk.open_store().store;
    let long = "n".repeat(KEY_MAX + 1);
    assert!(wait(store.put_document(&long, vec![1])).unwrap_err().message.contains("too large"));
    assert!(wait(store.put_document("n", vec![1; VALUE_MAX])).unwrap_err().message.contains("too large"));
    let large = vec![1; VALUE_MAX - 64];
    wait(store.put_document(&long[1..], large.clone())).unwrap();
    assert_eq!(store.get_document(&long[1..]).unwrap(), Some(large));
    assert_eq!(store.health().failed_batches, 0);
}

#[test]
fn health_counts_what_was_done() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).store;
    let before = store.health();
    wait(store.commit(vec![put("acme", "a", 1), put("acme", "b", 2)])).unwrap();
    let health = store.health();
    assert_eq!((health.commits, health.batches, health.records), (1, 1, 2));
    assert_eq!((health.error, health.last_error, health.queued), (None, None, 0));
    assert!(health.bytes > 0 && health.syncs > before.syncs);
    assert!(health.sync_last > std::time::Duration::ZERO && health.sync_mean > std::time::Duration::ZERO);
    assert_eq!(health.file_bytes, std::fs::metadata(folder.path().join(FILE_NAME)).unwrap().len());
}

#[test]
fn a_check_counts_what_is_kept_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Store::check(folder.path()).unwrap();
    assert_eq!(missing.state, CheckState::Missing);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let store = open(folder.path()).store;
    wait(store.commit(vec![put("acme", "a", 1), put("globex", "a", 2), put("globex", "b", 3)])).unwrap();
    wait(store.put_document("d", vec![1])).unwrap();
    drop(store);
    let file = folder.path().join(FILE_NAME);
    let before = std::fs::read(&file).unwrap();
    let report = Store::check(folder.path()).unwrap();
    let records = BTreeMap::from([(peer("acme"), 1), (peer("globex"), 2)]);
    let (journaled, journal_damage, damage) = (0, None, None);
    let sound =
        CheckState::Sound { schema: SCHEMA, records, documents: 1, journaled, journal_damage, damage };
    assert_eq!(report.state, sound);
    assert_eq!(report.bytes, before.len() as u64);
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn a_single_damaged_value_is_left_out_reported_once_and_the_rest_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(FILE_NAME);
    let store = open(folder.path()).store;
    wait(store.commit(vec![put("acme", "good", 1), put("acme", "bad", 2)])).unwrap();
    wait(store.put_peer_state(&peer("acme"), PeerState { revision: 5, ..PeerState::default() })).unwrap();
    drop(store);
    insert(&file, "imports", b"acme\0bad", &sealed("imports", b"acme\0good", b"strayed"));
    insert(&file, "imports", b"ACME\0k", &sealed("imports", b"ACME\0k", b""));
    insert(&file, "imports", b"no separator\xff", b"x");
    insert(&file, "peers", b"acme", &sealed("peers", b"acme", &[0xff; 3]));
    insert(&file, "documents", b"doc", b"short");

    let opened = Store::open(folder.path(), StoreOptions::default()).unwrap();
    let kept = &opened.peers[&peer("acme")];
    assert_eq!(kept.records, BTreeMap::from([("good".to_owned(), record(1))]));
    assert_eq!(kept.state, PeerState::default());
    assert_eq!(opened.peers.len(), 1);
    let damage = opened.damage.unwrap();
    assert_eq!((damage.values_total, damage.values.len(), &damage.file), (5, 5, &None));
    let bad = damage.values.iter().find(|v| v.key == "bad").unwrap();
    assert_eq!((bad.table, bad.peer.as_deref()), ("imports", Some("acme")));
    assert!(damage.to_string().contains("5 damaged values were left out"), "{damage}");
    assert!(!damage.to_string().contains(|c: char| c.is_control()), "{damage}");
    assert_eq!(opened.store.get_document("doc").unwrap(), None);
    opened.store.close().unwrap();
    assert_eq!(open(folder.path()).peers[&peer("acme")].records.len(), 1);
}

#[test]
fn a_path_that_can_not_be_a_folder_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("taken");
    std::fs::write(&file, b"").unwrap();
    let error = Store::open(&file, StoreOptions::default()).err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }) && error.to_string().contains("taken"), "{error}");
    std::fs::create_dir_all(folder.path().join("data").join(FILE_NAME)).unwrap();
    let error = Store::open(&folder.path().join("data"), StoreOptions::default()).err().unwrap();
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
}
