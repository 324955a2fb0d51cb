//! The page of commands is what the commands say of themselves.

use std::fmt::Write as _;

use clap::{Command, CommandFactory};
use hamlet::cli::Cli;

use crate::source::committed;

/// Columns of the help texts, whatever the terminal.
const WIDTH: usize = 100;

fn written(command: &mut Command, name: &str, page: &mut String) {
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    write!(page, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim()).unwrap();
}

#[test]
fn the_page_of_commands_is_what_they_say() {
    // Values of the environment are no part of the documentation.
    let quiet = |c: Command| c.mut_args(|a| a.hide_env_values(true));
    let mut cli = quiet(Cli::command()).term_width(WIDTH).bin_name("hamlet");
    for name in cli.get_subcommands().map(|c| c.get_name().to_owned()).collect::<Vec<_>>() {
        cli = cli.mut_subcommand(name, quiet);
    }
    cli.build();
    let mut page = "# Commands\n\n<!-- Generated from the program. Don't edit: HAMLET_BLESS=1 cargo test -p hamlet --test docs -->\n\n\
        `hamlet help COMMAND` shows the same.\n"
        .to_owned();
    written(&mut cli.clone(), "hamlet", &mut page);
    for command in cli.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        let name = format!("hamlet {}", command.get_name());
        written(&mut command.clone().term_width(WIDTH), &name, &mut page);
    }
    committed("docs/reference/cli.md", &page);
}
