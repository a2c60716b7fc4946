//! The commands as a chapter of the book.
//!
//! (The crate clap-markdown makes the same of the options, but takes no examples and no exit codes.)

use clap::{Arg, ArgAction, Command};

use super::{
    commands::{self, Reference},
    pages::{codes, description, missing, summary, usage},
};
use crate::cli::{NAME, error::Result};

/// Returns the chapter.
pub(super) fn commands(command: &Command) -> Result<String> {
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let mut text = "# Commands\n\n\
        <!-- Made by `cargo run -- generate --reference .`: do not edit. -->\n\n"
        .to_owned();
    add(&command, "", &mut text)?;
    Ok(text.trim_end().to_owned() + "\n")
}

/// Adds a command and those below it. `name`: without `freezer-guard`.
fn add(command: &Command, name: &str, text: &mut String) -> Result<()> {
    let reference = commands::of(name).ok_or_else(|| missing(name))?;
    let title = format!("{NAME} {name}");
    *text += &format!(
        "## {}\n\n{}.\n\n```text\n{}\n```\n\n",
        title.trim_end(),
        summary(command),
        usage(command)
    );
    if command.get_long_about().is_some() {
        *text += &(description(command) + "\n\n");
    }
    if command.has_subcommands() {
        *text += "| command | purpose |\n|---|---|\n";
        for inner in command.get_subcommands() {
            let title = format!("{title} {}", inner.get_name()).replace("  ", " ");
            let anchor = title.replace(' ', "-");
            *text += &format!("| [{title}](#{anchor}) | {} |\n", summary(inner));
        }
        text.push('\n');
    }
    *text += "**Options**\n\n";
    let arguments = command.get_arguments().filter(|one| !one.is_hide_set());
    for argument in arguments {
        *text += &option(argument);
    }
    text.push('\n');
    *text += &end(reference);
    for inner in command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set())
    {
        let name = format!("{name} {}", inner.get_name());
        add(inner, name.trim_start(), text)?;
    }
    Ok(())
}

/// Returns an option as an entry of a list.
fn option(argument: &Arg) -> String {
    let names: Vec<_> = argument
        .get_value_names()
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    let value = names.join(" ");
    let short = argument.get_short().map(|short| format!("-{short}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    let flags: Vec<_> = short.into_iter().chain(long).collect();
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let head = match (flags.is_empty(), takes_value) {
        (true, _) => value,
        (false, true) => format!("{}{}", flags.join(", "), written(argument, &value)),
        (false, false) => flags.join(", "),
    };
    let help = argument.get_long_help().or_else(|| argument.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let mut paragraphs: Vec<_> = help.split("\n\n").map(sentence).collect();
    let values = argument.get_possible_values();
    if takes_value && !values.is_empty() {
        let values: Vec<_> = values
            .iter()
            .map(|value| match value.get_help() {
                Some(help) => format!("`{}` ({help})", value.get_name()),
                None => format!("`{}`", value.get_name()),
            })
            .collect();
        paragraphs.push(format!("Values: {}.", values.join(", ")));
    }
    if let [default] = argument.get_default_values()
        && takes_value
    {
        paragraphs.push(format!("Default: `{}`.", default.display()));
    }
    format!("- `{head}`: {}\n", paragraphs.join("\n\n  "))
}

/// Returns the value of an option as a user writes it behind the option's name.
fn written(argument: &Arg, value: &str) -> String {
    let numbers = argument.get_num_args();
    let is_optional = numbers.is_some_and(|numbers| numbers.min_values() == 0);
    match (argument.is_require_equals_set(), is_optional) {
        (true, true) => format!("[={value}]"),
        (true, false) => format!("={value}"),
        (false, true) => format!(" [{value}]"),
        (false, false) => format!(" {value}"),
    }
}

/// Ends a paragraph with a full stop.
fn sentence(text: &str) -> String {
    match text.ends_with(['.', ':']) {
        true => text.to_owned(),
        false => format!("{text}."),
    }
}

/// Returns the parts that the command line does not have.
fn end(reference: &Reference) -> String {
    let mut text = "**Examples**\n\n".to_owned();
    for (about, lines) in reference.examples {
        text += &format!("{about}\n\n```sh\n{lines}\n```\n\n");
    }
    text += "**Exit codes**\n\n| code | meaning |\n|---|---|\n";
    for (code, meaning) in codes(reference) {
        text += &format!("| {code} | {meaning} |\n");
    }
    text.push('\n');
    text
}
