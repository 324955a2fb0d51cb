//! A damaged store is set aside, reported, and asked for again.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use crate::mesh::Two;
use crate::probe::resolve;
use crate::wait::until;
use crate::workload::Workload;

/// Runs a consumer with a store that `damage` has been at, and expects it whole again.
fn recovers_from(what: &str, damage: impl Fn(&File, u64)) {
    let ledger = Workload::http("ledger");
    let mut two = Two::new();
    two.acme.declare("ledger", "HTTP", two.port, ledger.at, "none");
    two.acme.publish("ledger", &["ledger"], &two.globex);
    two.start();
    two.until_answers("ledger");
    two.until_in_sync();
    two.globex.stop();
    let path = two.globex.data().join("hamlet.redb");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    damage(&file, file.metadata().unwrap().len());
    drop(file);

    two.globex.start();
    two.until_in_sync();
    two.until_answers("ledger");
    assert_eq!(resolve(&two.globex, "nobody.acme.example").code, 5);
    let aside = fs::read_dir(two.globex.data())
        .unwrap()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("hamlet.redb.damaged-"));
    assert!(aside, "{what}: nothing was set aside");
    assert!(two.globex.log().contains("the store was damaged"), "{what}: {}", two.globex.log());
    let status = two.globex.json(&["status"]);
    let told = status["agent"]["store"]["message"].as_str().is_some_and(|m| m.contains("damaged-"));
    assert!(told, "{what}: {status}");
    // What it asked for again is durable again.
    two.acme.stop();
    two.globex.kill();
    two.globex.start();
    until(&format!("{what}: it is kept"), || {
        two.globex.service("acme/ledger").ok_or_else(|| "gone".to_owned())
    });
    assert!(!two.globex.log().contains("panicked"), "{what}: {}", two.globex.log());
}

#[test]
fn a_truncated_store_is_set_aside_and_resynchronised() {
    recovers_from("half of it", |file, length| file.set_len(length / 2).unwrap());
}

#[test]
fn a_store_of_garbage_is_set_aside_and_resynchronised() {
    let garbage = |file: &File, length: u64| {
        for at in (0..length).step_by(509) {
            file.write_all_at(b"not what was written", at).unwrap();
        }
    };
    recovers_from("garbage", garbage);
}

#[test]
fn a_store_with_flipped_bytes_is_set_aside_and_resynchronised() {
    let flip = |file: &File, length: u64| {
        for at in (0..length).step_by(1013) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        }
    };
    recovers_from("flipped bytes", flip);
}

#[test]
fn an_emptied_store_is_set_aside_and_resynchronised() {
    recovers_from("nothing left", |file, _| file.set_len(0).unwrap());
}
