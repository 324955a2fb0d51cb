//! The commands on the operators' pages are commands: each parses as the program parses it.

use clap::CommandFactory;
use hamlet::cli::Cli;

use crate::source::pages;

/// What stands behind a command in a shell: it is not the program's.
const ENDS: [&str; 6] = ["|", ">", "<", "#", "2>", ";"];

/// The `hamlet` commands of a page's shell blocks, in words.
fn commands(text: &str) -> Vec<Vec<String>> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    let lines = blocks.flat_map(str::lines).flat_map(|line| line.split(" && "));
    let words = lines.filter(|line| line.trim_start().starts_with("hamlet ")).map(|line| {
        let words = line.split_whitespace().take_while(|word| !ENDS.contains(word));
        words.map(|word| word.trim_matches('"').to_owned()).collect()
    });
    words.collect()
}

#[test]
fn every_command_of_the_operators_pages_is_one() {
    let (mut looked_at, mut strange) = (0, vec![]);
    for page in pages().iter().filter(|page| page.path.starts_with("docs/operate/")) {
        for command in commands(&page.text) {
            looked_at += 1;
            if let Err(error) = Cli::command().try_get_matches_from(&command) {
                strange.push(format!("{}: {}: {error}", page.path, command.join(" ")));
            }
        }
    }
    assert!(strange.is_empty(), "{strange:#?}");
    assert!(looked_at > 30, "only {looked_at} commands");
}

#[test]
fn a_command_that_is_none_is_found() {
    let text =
        "```sh\nhamlet ca rotate -f acme --now --drop-old  # stolen\nhamlet ca undo && hamlet reload\n```";
    let found = commands(text);
    let good: Vec<bool> = found.iter().map(|c| Cli::command().try_get_matches_from(c).is_ok()).collect();
    assert_eq!(good, [true, false, true], "{found:?}");
}
