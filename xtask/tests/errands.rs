//! The errands as they are called: what they print last, and what they write.

use std::process::Command;

use serde_json::Value;

#[test]
fn a_quick_bench_ends_with_its_line_writes_raw_samples_and_claims_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("sync.json");
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.args(["bench", "sync", "--services", "50", "--quick", "--json"]).arg(&json);
    let output = xtask.arg("--folder").arg(folder.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().last(), Some("3 passed, 0 failed"), "{text}");

    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["bench"], "sync");
    for key in ["cpu", "idle", "steal", "versions"] {
        assert!(!report["machine"][key].is_null(), "machine.{key}");
    }
    let size = report["settings"]["service_bytes"].as_u64().unwrap();
    assert!((450..=500).contains(&size), "{size}");
    let figures = report["figures"].as_array().unwrap();
    assert!(figures.len() >= 5);
    for figure in figures {
        assert!(figure["met"].is_null(), "{figure}");
        assert!(figure["name"].is_string() && figure["unit"].is_string() && figure["value"].is_number());
        assert!(!figure["samples"]["ours"].as_array().unwrap().is_empty(), "{figure}");
        assert_eq!(figure["peer"].is_null(), figure["samples"]["peer"].as_array().unwrap().is_empty());
        assert_eq!(figure["peer"].is_null(), figure["ratio_low"].is_null());
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["sync.json"], "nothing but the report is left");
}

#[test]
fn the_generated_pages_are_up_to_date() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(["docs", "--check"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.lines().last().is_some_and(|l| l.ends_with(" passed, 0 failed")), "{text}");
}
