//! `cargo xtask fuzz`: builds the targets of `fuzz/` with coverage instrumentation, on the stable
//! toolchain, and runs them. What it prints was counted by libFuzzer.
//!
//! Our own crates are instrumented and no others: what the release build compiled of third parties
//! is used as it is, so that the build takes a minute or two instead of a second full one.
//!
//! The repository's corpus is only read: what a run finds goes to `target/fuzz-corpus`, and inputs
//! that break a law to `target/fuzz-findings`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use clap::Args;
use hamlet_fuzz::{CHOICE, TARGETS};

use crate::report::{Table, Tally, say};
use crate::tree;

/// Stands between cargo and the compiler, for our own crates only, and adds the instrumentation.
const WRAPPER: &str = include_str!("fuzz-rustc.sh");
/// A target that takes longer for one input, in seconds, has a finding.
const INPUT_TIMEOUT: u32 = 20;
/// Memory beyond which a target has a finding, in MiB.
const MEMORY: u32 = 2_048;

/// Feed the parsers and the session machines with anything, guided by coverage
///
/// Each target takes any bytes and checks a law: that nothing panics, that what was accepted is
/// what it should be, that what is written can be read. An input that breaks one is kept, and
/// `--replay` runs it again. Needs a C++ compiler beside the usual tools; no nightly toolchain.
///
/// Examples:
///   cargo xtask fuzz all --seconds 5
///   cargo xtask fuzz session --seconds 3600 --jobs 2
///   cargo xtask fuzz dns --replay target/fuzz-findings/dns/crash-0123
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct FuzzOptions {
    /// Which target, or `all`; `list` says which there are
    #[arg(default_value = "all")]
    target: String,
    /// How long each runs
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    seconds: u32,
    /// Processes that fuzz the same target and share what they find
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
    /// The same choices as in another run, as far as time allows [default: random]
    #[arg(long)]
    seed: Option<u32>,
    /// Run one input, and print what it does
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Write the corpus of the repository anew, instead of fuzzing
    #[arg(long)]
    seeds: bool,
}

/// What libFuzzer counted in one run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    executions: u64,
    edges: u64,
    features: u64,
    peak_mib: u64,
}

impl Counted {
    /// Reads libFuzzer's own words; of several processes the executions add up.
    fn read(log: &str) -> Counted {
        let mut counted = Counted::default();
        let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
        for line in log.lines() {
            if let Some(n) = line.strip_prefix("stat::number_of_executed_units:") {
                counted.executions += number(n);
            } else if let Some(n) = line.strip_prefix("stat::peak_rss_mb:") {
                counted.peak_mib = counted.peak_mib.max(number(n));
            } else if line.starts_with('#') {
                let words: Vec<&str> = line.split_whitespace().collect();
                let after = |what: &str| words.iter().position(|w| *w == what).and_then(|i| words.get(i + 1));
                counted.edges = counted.edges.max(after("cov:").map_or(0, |n| number(n)));
                counted.features = counted.features.max(after("ft:").map_or(0, |n| number(n)));
            }
        }
        counted
    }
}

/// Runs it.
pub(crate) fn run(options: &FuzzOptions) -> anyhow::Result<bool> {
    let root = tree::root();
    let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    if options.seeds {
        return write_seeds(&root.join("fuzz/corpus"));
    }
    if options.target == "list" {
        known.iter().for_each(|target| say(target));
        return Ok(true);
    }
    let chosen: Vec<&str> =
        known.iter().copied().filter(|t| options.target == "all" || *t == options.target).collect();
    ensure!(!chosen.is_empty(), "no target `{}`; there are: {}", options.target, known.join(", "));
    let program = build(&root)?;
    if let Some(input) = &options.replay {
        ensure!(chosen.len() == 1, "name the target that is to run {}", input.display());
        let status = Command::new(program).env(CHOICE, chosen[0]).arg(input).status()?;
        return Ok(status.success());
    }
    let mut table =
        Table::new(&["target", "executions", "a second", "edges", "features", "peak MiB", "findings"]);
    let mut tally = Tally::default();
    for target in chosen {
        let (counted, finding) = fuzz(options, &root, &program, target)?;
        table.row(vec![
            target.to_owned(),
            counted.executions.to_string(),
            (counted.executions / u64::from(options.seconds)).to_string(),
            counted.edges.to_string(),
            counted.features.to_string(),
            counted.peak_mib.to_string(),
            u8::from(finding.is_some()).to_string(),
        ]);
        if let Some(log) = &finding {
            say(log);
        }
        tally.check(
            finding.is_none(),
            &format!("{target}: see above; the input is in target/fuzz-findings/{target}"),
        );
        // Without coverage it would be guessing, and say that all is well.
        tally.check(counted.edges > 0 && counted.executions > 0, &format!("{target} ran and was measured"));
    }
    table.print();
    Ok(tally.finish())
}

/// Writes the corpus of the repository, which needs no fuzzer.
fn write_seeds(corpus: &Path) -> anyhow::Result<bool> {
    for (target, name, bytes) in hamlet_fuzz::seeds::all() {
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        let file = folder.join(name);
        std::fs::write(&file, bytes).with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(true)
}

/// Builds the program of all targets; where it is.
fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let built = tree::workspace()?.target_directory;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--quiet", "--package", "hamlet-fuzz", "--features", "libfuzzer"]);
    cargo.env("RUSTC_WORKSPACE_WRAPPER", wrapper(&built)?).current_dir(root);
    let status = cargo.status().context("cargo doesn't start; is it in PATH?")?;
    ensure!(status.success(), "the targets don't build; they need a C++ compiler: install g++ or set CXX");
    Ok(built.join("release/hamlet-fuzz"))
}

/// The wrapper as a program. Cargo tells what it built with another one apart by its name, so the
/// name changes with the content.
fn wrapper(above: &Path) -> anyhow::Result<PathBuf> {
    let mut hash = DefaultHasher::new();
    WRAPPER.hash(&mut hash);
    let path = above.join(format!("fuzz-rustc-{:016x}", hash.finish()));
    let written = std::fs::write(&path, WRAPPER)
        .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)));
    written.with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

/// One target's run: what was counted, and the end of the log if a law was broken.
fn fuzz(
    options: &FuzzOptions,
    root: &Path,
    program: &Path,
    target: &str,
) -> anyhow::Result<(Counted, Option<String>)> {
    let above = tree::workspace()?.target_directory;
    let (grown, findings) =
        (above.join("fuzz-corpus").join(target), above.join("fuzz-findings").join(target));
    for folder in [&grown, &findings] {
        std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    }
    let mut program = Command::new(program);
    program.env(CHOICE, target);
    // New inputs go to the first folder.
    program.arg(&grown);
    let seeds = root.join("fuzz/corpus").join(target);
    if seeds.is_dir() {
        program.arg(&seeds);
    }
    program.arg(format!("-max_total_time={}", options.seconds));
    program.arg(format!("-timeout={INPUT_TIMEOUT}")).arg(format!("-rss_limit_mb={MEMORY}"));
    program.arg(format!("-artifact_prefix={}/", findings.display())).arg("-print_final_stats=1");
    if options.jobs > 1 {
        program.arg(format!("-fork={}", options.jobs));
    }
    if let Some(seed) = options.seed {
        program.arg(format!("-seed={seed}"));
    }
    let output = program.env("RUST_BACKTRACE", "1").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("the target {target} doesn't start"))?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let finding = (!output.status.success()).then(|| {
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    });
    Ok((Counted::read(&log), finding))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_read() {
        let log = "INFO: Seed: 1\n\
            #2\tINITED cov: 120 ft: 121 corp: 1/1b exec/s: 0 rss: 40Mb\n\
            #9000\tNEW    cov: 310 ft: 640 corp: 30/1Kb lim: 4 exec/s: 0 rss: 44Mb L: 3/8 MS: 1 CopyPart-\n\
            #20000\tDONE   cov: 310 ft: 640 corp: 30/1Kb lim: 17 exec/s: 10000 rss: 44Mb\n\
            stat::number_of_executed_units: 20000\n\
            stat::peak_rss_mb:              45\n";
        let counted = Counted { executions: 20_000, edges: 310, features: 640, peak_mib: 45 };
        assert_eq!(Counted::read(log), counted);
        assert_eq!(Counted::read("error: no such file"), Counted::default());
    }
}
