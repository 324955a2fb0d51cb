//! The crate's README is run as a newcomer would: its commands, in its order, as written. Only
//! `cargo run` itself is left out: the examples are built with the tests.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const README: &str = include_str!("../README.md");

/// A command as the README has it: the example's name and its arguments.
#[derive(Debug, PartialEq)]
struct Typed {
    example: String,
    arguments: Vec<String>,
}

/// All commands of the README. Panics for one that isn't an example of this crate.
fn commands() -> Vec<Typed> {
    let typed = README.lines().filter_map(|line| line.strip_prefix("$ "));
    let parse = |line: &str| {
        let rest = line.strip_prefix("cargo run -p hamlet-protocol --example ").expect(line);
        let mut words = rest.split_whitespace().map(str::to_owned);
        let example = words.next().expect("the name of an example");
        let arguments = words.skip_while(|word| word == "--").collect();
        Typed { example, arguments }
    };
    typed.map(parse).collect()
}

/// What cargo would run.
fn built(example: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.parent().and_then(Path::parent).unwrap();
    let program = target.join("examples").join(example);
    if !program.exists() {
        // The tests were built without the examples.
        let build =
            Command::new(env!("CARGO")).args(["build", "-p", "hamlet-protocol", "--examples"]).status();
        assert!(build.unwrap().success(), "the examples build");
    }
    program
}

fn start(typed: &Typed, folder: &Path) -> Child {
    let mut command = Command::new(built(&typed.example));
    command.args(&typed.arguments).current_dir(folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}", typed.example))
}

/// Runs a command to its end and returns what it says.
fn run(typed: &Typed, folder: &Path) -> String {
    let output = start(typed, folder).wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{typed:?} failed: {text}{errors}");
    text
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    let commands = commands();
    let names: Vec<&str> = commands.iter().map(|c| c.example.as_str()).collect();
    assert_eq!(names, ["embed-owner", "embed-consumer", "custom-resource"]);
    let folder = tempfile::tempdir().unwrap();

    let mut owner = start(&commands[0], folder.path());
    let mut said = BufReader::new(owner.stdout.take().unwrap());
    let mut first = String::new();
    said.read_line(&mut first).unwrap();
    assert!(first.starts_with("offering 3 services"), "{first}");
    assert!(README.contains("`offering 3 services`"));

    let text = run(&commands[1], folder.path());
    assert_eq!(text.lines().last(), Some("in force: rates from bank"));
    assert!(README.contains("`in force: rates from bank`"));

    let interrupted = Command::new("kill").args(["-INT", &owner.id().to_string()]).status().unwrap();
    assert!(interrupted.success() && owner.wait().unwrap().success(), "Ctrl-C ends the owner in order");
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("shop: holds all that we offer"), "{rest}");
    assert!(README.contains("`shop: holds all that we offer`"));

    let text = run(&commands[2], folder.path());
    assert!(text.lines().last().is_some_and(|line| line.starts_with("coffee: withdrawn")), "{text}");
    assert!(text.contains("tea: refused: currency"), "{text}");
}

#[test]
fn each_end_runs_alone_without_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let alone = |example: &str| run(&Typed { example: example.into(), arguments: vec![] }, folder.path());
    assert!(alone("embed-owner").contains("shop: holds all that we offer"));
    assert!(alone("embed-consumer").contains("in force: accounts from bank"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "and leaves nothing behind");
}
