//! The README's first steps, as they stand there: the folders that it makes are valid.

use std::path::Path;
use std::process::Command;

use crate::source::page;

/// The shell blocks below a heading.
fn blocks(text: &str, heading: &str) -> Vec<String> {
    let part = text.split(&format!("\n## {heading}")).nth(1).expect("the heading is there");
    let part = part.split("\n## ").next().unwrap_or_default();
    part.split("```sh\n").skip(1).filter_map(|b| b.split("```").next()).map(str::to_owned).collect()
}

#[test]
fn the_two_folders_of_the_readme_are_made_and_valid() {
    let text = page("README.md");
    assert!(text.lines().count() <= 200, "the README is a front door: at most 200 lines");
    let blocks = blocks(&text, "By hand");
    let upto = blocks.iter().position(|b| b.contains("hamlet validate")).expect("a block validates");
    let program = Path::new(env!("CARGO_BIN_EXE_hamlet")).parent().expect("it is in a folder");
    let script =
        blocks[..=upto].iter().filter(|b| !b.contains("cargo ")).fold(String::new(), |all, b| all + b);
    let folder = tempfile::tempdir().unwrap();
    let path = format!("PATH='{}':\"$PATH\"\n", program.display());
    let ran =
        Command::new("bash").args(["-euc", &(path + &script)]).current_dir(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert_eq!(said.matches("ok: 1 mesh, 1 peer").count(), 2, "{said}");
}
