//! The chain under every change that somebody may make, and under crashes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use super::walk::{Break, Place, file_name};
use super::*;

const AT: Duration = Duration::from_millis(1_795_420_800_123);
const SMALL: Bounds = Bounds { file_bytes: 1_500, files: 3 };

fn draft(n: u64) -> Draft {
    let mut draft = Draft::new(AT, Actor::Operator { uid: Some(1000) }, Action::PeerPaused);
    draft.peer = Some(format!("peer-{n}"));
    draft
}

/// A folder with this many entries behind the one that begins the file.
fn written(entries: u64) -> (tempfile::TempDir, Head) {
    let folder = tempfile::tempdir().unwrap();
    let mut log = AuditLog::open(folder.path(), Bounds::default(), AT, None).unwrap();
    let drafts: Vec<Draft> = (0..entries).map(draft).collect();
    log.append(&drafts).unwrap();
    (folder, log.head())
}

fn report(folder: &Path, anchor: Option<Head>) -> Report {
    walk(folder, anchor, &mut |_| {}).unwrap()
}

fn lines(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join(file_name(1))).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn put(folder: &Path, lines: &[String]) {
    fs::write(folder.join(file_name(1)), lines.join("\n") + "\n").unwrap();
}

fn at(line: u64) -> Place {
    Place { file: file_name(1), line }
}

#[test]
fn entries_are_lines_of_json_that_name_the_line_before_and_are_the_owners_alone() {
    let (folder, head) = written(2);
    let mut seen = vec![];
    let report = walk(folder.path(), None, &mut |entry| seen.push(entry.clone())).unwrap();
    assert_eq!((report.entries, report.first, report.head, report.tail), (3, Some(1), head, Tail::Whole));
    assert!(report.breaks.is_empty() && report.torn.is_empty(), "{report:?}");
    assert_eq!(seen[2].peer.as_deref(), Some("peer-1"));
    assert_eq!((seen[2].time.as_str(), seen[2].at()), ("2026-11-23T08:00:00.123Z", Some(AT)));
    assert_eq!(seen[0].previous, "0".repeat(64));
    assert_eq!(
        lines(folder.path())[1],
        format!(
            "{{\"sequence\":2,\"time\":\"2026-11-23T08:00:00.123Z\",\"actor\":{{\"by\":\"operator\",\"uid\":1000}},\
             \"action\":\"peer-paused\",\"peer\":\"peer-0\",\"subject\":{{}},\"outcome\":\"done\",\"previous\":\"{}\"}}",
            seen[1].previous
        )
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join(file_name(1))), 0o600);
    let inner = folder.path().join("audit");
    AuditLog::open(&inner, SMALL, AT, None).unwrap();
    assert_eq!(mode(&inner), 0o700);
    assert_eq!(head.to_string().parse(), Ok(head));
    for bad in ["", "1", "1:ab", "x:00", &format!("1:{}", "é".repeat(32)), &format!("1:{}", "0".repeat(66))]
    {
        assert!(bad.parse::<Head>().is_err(), "{bad}");
    }
}

/// Changes the lines of a whole file.
type Tamper = fn(&mut Vec<String>);

#[test]
fn a_changed_removed_moved_or_foreign_line_is_found_and_its_place_said() {
    let cases: [(&str, Tamper, Break); 7] = [
        (
            "a changed line",
            |l| l[2] = l[2].replace("peer-1", "peer-7"),
            Break::Altered { at: at(3), sequence: 3, next: 4 },
        ),
        ("a blank more", |l| l[2] += " ", Break::Altered { at: at(3), sequence: 3, next: 4 }),
        ("a removed line", |l| drop(l.remove(3)), Break::Missing { at: at(4), from: 4, to: 4 }),
        ("several", |l| drop(l.drain(2..4)), Break::Missing { at: at(3), from: 3, to: 4 }),
        ("two swapped", |l| l.swap(2, 3), Break::Missing { at: at(3), from: 3, to: 3 }),
        ("one twice", |l| l.insert(3, l[2].clone()), Break::Moved { at: at(4), sequence: 3, after: 3 }),
        ("a line that is no entry", |l| l[2] = "{}".into(), Break::Unreadable { at: at(3) }),
    ];
    for (what, tamper, expected) in cases {
        let (folder, head) = written(5);
        let mut all = lines(folder.path());
        tamper(&mut all);
        put(folder.path(), &all);
        let report = report(folder.path(), Some(head));
        assert_eq!(report.breaks.first(), Some(&expected), "{what}: {report:?}");
        // The benign neighbour: one more entry by the log itself.
        let (folder, head) = written(5);
        let mut log = AuditLog::open(folder.path(), Bounds::default(), AT, Some(head)).unwrap();
        log.append(&[draft(9)]).unwrap();
        assert!(self::report(folder.path(), Some(head)).breaks.is_empty());
    }
}

#[test]
fn a_cut_end_and_a_chain_written_anew_are_only_found_by_a_head_kept_elsewhere() {
    let (folder, head) = written(5);
    let mut all = lines(folder.path());
    all.truncate(3);
    put(folder.path(), &all);
    // What a chain alone can't show.
    assert!(report(folder.path(), None).breaks.is_empty());
    let cut = report(folder.path(), Some(head));
    assert_eq!(cut.breaks, [Break::Cut { last: 3, noted: 6 }]);
    assert_eq!(cut.anchor, Some(AnchorSeen::Broken));
    // The same for somebody who writes everything anew, from another start.
    let (forged, _) = written(6);
    let shorter = Head { sequence: 5, ..head };
    assert!(report(forged.path(), None).breaks.is_empty());
    let anew = report(forged.path(), Some(shorter));
    assert_eq!((anew.breaks, anew.anchor), (vec![Break::Anchor(5)], Some(AnchorSeen::Broken)));
    let (same, head) = written(5);
    assert_eq!(report(same.path(), Some(head)).anchor, Some(AnchorSeen::Held));
}

#[test]
fn a_line_left_by_half_is_kept_and_marked_and_the_chain_goes_on() {
    let (folder, _) = written(3);
    let path = folder.path().join(file_name(1));
    let whole = fs::read(&path).unwrap();
    let last = lines(folder.path()).last().unwrap().len();
    for cut in 1..=last {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let before = report(folder.path(), None);
        assert!(before.breaks.is_empty(), "cut by {cut}: {before:?}");
        let unended = cut == 1;
        let torn = Tail::Torn { bytes: (last + 1 - cut) as u64 };
        assert_eq!(before.tail, if unended { Tail::Unended } else { torn }, "cut by {cut}");
        let mut log = AuditLog::open(folder.path(), Bounds::default(), AT, None).unwrap();
        log.append(&[draft(9)]).unwrap();
        let after = report(folder.path(), None);
        assert!(after.breaks.is_empty() && after.tail == Tail::Whole, "cut by {cut}: {after:?}");
        assert_eq!(after.torn, if unended { vec![] } else { vec![at(4)] }, "cut by {cut}");
        assert_eq!(after.head, log.head());
        // The bytes of the torn line are still there.
        assert!(fs::read(&path).unwrap().starts_with(&whole[..whole.len() - cut]));
    }
    // A marker of somebody else's hides no alteration.
    let mut all = lines(folder.path());
    all[1] = "gone".into();
    put(folder.path(), &all);
    assert_eq!(report(folder.path(), None).breaks.first(), Some(&Break::Unreadable { at: at(2) }));
}

#[test]
fn files_follow_each_other_by_the_chain_and_only_the_newest_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = AuditLog::open(folder.path(), SMALL, AT, None).unwrap();
    let mut heads = vec![];
    for n in 0..60 {
        log.append(&[draft(n)]).unwrap();
        heads.push(log.head());
        if n % 7 == 0 {
            let head = log.head();
            log = AuditLog::open(folder.path(), SMALL, AT, Some(head)).unwrap();
            assert_eq!(log.head(), head, "nothing to mark");
        }
    }
    let all = report(folder.path(), None);
    assert_eq!(all.files.len(), SMALL.files);
    assert!(all.files[0] > 1 && all.first > Some(1) && all.breaks.is_empty(), "{all:?}");
    assert_eq!(all.head, log.head());
    for file in &all.files {
        let bytes = fs::metadata(folder.path().join(file_name(*file))).unwrap().len();
        assert!(bytes <= SMALL.file_bytes + 400, "{bytes}");
        let text = fs::read_to_string(folder.path().join(file_name(*file))).unwrap();
        assert!(text.lines().next().unwrap().contains("\"action\":\"file-begun\""));
    }
    assert_eq!(report(folder.path(), Some(heads[0])).anchor, Some(AnchorSeen::Older));
    assert_eq!(report(folder.path(), Some(heads[58])).anchor, Some(AnchorSeen::Held));
    // A file in the middle, and the newest.
    let middle = folder.path().join(file_name(all.files[1]));
    let kept = fs::read(&middle).unwrap();
    fs::remove_file(&middle).unwrap();
    let without = report(folder.path(), None);
    assert_eq!(without.breaks[0], Break::File(file_name(all.files[1])));
    assert!(matches!(without.breaks[1], Break::Missing { .. }), "{without:?}");
    fs::write(&middle, kept).unwrap();
    fs::remove_file(folder.path().join(file_name(all.files[2]))).unwrap();
    assert!(matches!(report(folder.path(), Some(heads[59])).breaks[..], [Break::Cut { .. }]));
}

#[test]
fn whoever_changes_the_files_of_a_running_or_stopped_agent_is_told_of_in_the_audit() {
    for stopped in [false, true] {
        for all_gone in [false, true] {
            let (folder, head) = written(5);
            let mut log = AuditLog::open(folder.path(), Bounds::default(), AT, Some(head)).unwrap();
            if all_gone {
                fs::remove_file(folder.path().join(file_name(1))).unwrap();
            } else {
                let mut all = lines(folder.path());
                all.truncate(3);
                put(folder.path(), &all);
            }
            if !stopped {
                assert!(log.append(&[draft(6)]).is_err(), "the file isn't ours any more");
            }
            let mut log = AuditLog::open(folder.path(), Bounds::default(), AT, Some(head)).unwrap();
            log.append(&[draft(7)]).unwrap();
            let mut seen = vec![];
            walk(folder.path(), None, &mut |entry| seen.push(entry.clone())).unwrap();
            let found = seen.iter().find(|e| e.action == Action::ChainBroken.word()).unwrap();
            assert!(found.sequence > head.sequence, "no number is used twice");
            assert!(found.subject.note.as_ref().unwrap().contains("there was an entry 6"), "{found:?}");
        }
    }
}

#[test]
fn what_an_entry_holds_is_bounded_and_stays_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = AuditLog::open(folder.path(), Bounds::default(), AT, None).unwrap();
    let mut long = draft(0);
    long.peer = Some("x\n\u{1b}[2J".repeat(10_000));
    long.subject.note = Some("\u{202e}\"}\n".repeat(10_000));
    long.subject.changes = vec!["peer x: changed".repeat(1_000); 10_000];
    long.subject.added = vec!["ab".repeat(32); 10_000];
    log.append(&[long]).unwrap();
    let bytes = fs::metadata(folder.path().join(file_name(1))).unwrap().len();
    assert!(bytes < 64 * 1024, "{bytes}");
    let mut seen = vec![];
    let report = walk(folder.path(), None, &mut |entry| seen.push(entry.clone())).unwrap();
    assert!(report.breaks.is_empty() && seen.len() == 2);
    assert_eq!(seen[1].subject.changes.len(), AUDIT_LIST_MAX);
    assert_eq!(seen[1].subject.left_out, Some(2 * (10_000 - AUDIT_LIST_MAX as u64)));
    assert!(!seen[1].subject.text().contains(['\n', '\u{1b}', '\u{202e}']));
}

#[test]
fn an_entry_of_a_later_version_is_read_and_one_without_a_place_in_the_chain_is_not() {
    let text = r#"{"sequence":7,"time":"2030-01-01T00:00:00Z","actor":{"by":"moon","phase":3},"action":"howl",
        "subject":{"volume":11},"outcome":"done","previous":"00","more":true}"#;
    let entry: Entry = serde_json::from_str(text).unwrap();
    assert_eq!((entry.actor, entry.action.as_str()), (Actor::Other, "howl"));
    assert!(serde_json::from_str::<Entry>(&text.replace("\"previous\":\"00\",", "")).is_err());
}

#[test]
fn what_was_said_last_of_roots_reads_back_and_damage_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Known::read(folder.path()).unwrap(), Known::default());
    let mut known = Known { head: Some("1:00".into()), ..Known::default() };
    let roots = RootsKnown { roots: ["ab".to_owned()].into(), at_s: 7, ..RootsKnown::default() };
    known.peers.insert("globex".into(), roots);
    known.write(folder.path()).unwrap();
    assert_eq!(Known::read(folder.path()).unwrap(), known);
    fs::write(folder.path().join("known.json"), "{\"peers\":3}").unwrap();
    assert!(Known::read(folder.path()).is_err());
}
