//! Writes the corpus into a folder: `seeds FOLDER`, one folder below it for each target.

use std::path::Path;
use std::process::ExitCode;

// Built with coverage like the targets, so it needs the runtime that counts.
use libfuzzer_sys as _;

fn main() -> ExitCode {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: seeds FOLDER");
        return ExitCode::from(2);
    };
    for (target, name, bytes) in hamlet_fuzz::seeds::all() {
        let target = Path::new(&folder).join(target);
        let written =
            std::fs::create_dir_all(&target).and_then(|()| std::fs::write(target.join(&name), bytes));
        if let Err(error) = written {
            eprintln!("{}/{name}: {error}", target.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
