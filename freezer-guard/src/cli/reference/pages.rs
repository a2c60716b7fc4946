//! The manual pages: one for each command, `freezer-guard.toml`(5) and `io.freezerguard`(7).

use std::io;

use clap::Command;
use clap_mangen::Man;

use super::{
    File,
    commands::{self, Reference},
    manual::Manual,
};
use crate::{
    cli::{
        NAME,
        error::{Error, Result},
        exit::MEANINGS,
    },
    daemon::{
        config::{PATH, keys},
        varlink,
    },
};

/// Returns every page.
pub(super) fn all(command: &Command) -> Result<Vec<File>> {
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let mut files = Vec::new();
    add(&command, "", &mut files)?;
    files.push(("freezer-guard.toml.5".into(), configuration()));
    files.push(("io.freezerguard.7".into(), interface()));
    Ok(files)
}

/// Adds the pages of a command and of those below it. `name`: without `freezer-guard`.
fn add(command: &Command, name: &str, files: &mut Vec<File>) -> Result<()> {
    let reference = commands::of(name).ok_or_else(|| missing(name))?;
    let page = page(command, reference).map_err(Error::io(format!("make the page of {name}")))?;
    let file = command.get_display_name().unwrap_or(NAME);
    files.push((format!("{file}.1").into(), page));
    for inner in command
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set())
    {
        let name = format!("{name} {}", inner.get_name());
        add(inner, name.trim_start(), files)?;
    }
    Ok(())
}

/// A command has no examples.
pub(super) fn missing(name: &str) -> Error {
    Error::Unexpected(format!(
        "the command {name:?} has no entry in freezer-guard/src/cli/reference/commands.rs: add one"
    ))
}

/// Returns the text about a command: its long help, or the short one.
pub(super) fn description(command: &Command) -> String {
    let text = command.get_long_about().or_else(|| command.get_about());
    let text = text.map(ToString::to_string).unwrap_or_default();
    // The first paragraph is the summary, without a full stop.
    match text.split_once("\n\n") {
        Some((_, rest)) => rest.to_owned(),
        None => text + ".",
    }
}

/// Returns the usage of a command in one line.
pub(super) fn usage(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    usage.trim_start_matches("Usage: ").to_owned()
}

/// Returns the summary of a command.
pub(super) fn summary(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string);
    about.unwrap_or_default()
}

fn page(command: &Command, reference: &Reference) -> io::Result<String> {
    let name = command.get_display_name().unwrap_or(NAME);
    let about = summary(command).replace('`', "");
    let mut page = Manual::new(name, "1", "freezer-guard Manual", &about);
    let man = Man::new(command.clone());
    page.section("SYNOPSIS");
    page.line(&usage(command));
    page.section("DESCRIPTION");
    page.paragraphs(&description(command));
    page.rendered(|bytes| man.render_options_section(bytes))?;
    if command.has_subcommands() {
        page.section("COMMANDS");
        for inner in command.get_subcommands() {
            let name = inner.get_display_name().unwrap_or_default();
            page.entry(&format!("{name}(1)"), &(summary(inner) + "."));
        }
    }
    page.section("EXAMPLES");
    for (text, lines) in reference.examples {
        page.paragraphs(text);
        page.example(lines);
    }
    page.section("EXIT STATUS");
    for (code, meaning) in codes(reference) {
        page.entry(&code, &meaning);
    }
    for (title, entries) in [
        ("ENVIRONMENT", reference.environment),
        ("FILES", reference.files),
    ] {
        if !entries.is_empty() {
            page.section(title);
            entries.iter().for_each(|(tag, text)| page.entry(tag, text));
        }
    }
    page.version();
    let program = (!reference.command.is_empty()).then_some("freezer-guard(1)");
    let others = reference.see_also.iter().copied();
    let others = others.filter(|other| Some(*other) != program);
    page.see_also(&program.into_iter().chain(others).collect::<Vec<_>>());
    Ok(page.render())
}

/// Returns the exit codes of a command with their meanings, as sentences.
pub(super) fn codes(reference: &Reference) -> Vec<(String, String)> {
    let own = reference.own_codes.iter();
    let mut codes: Vec<_> = own
        .map(|(code, meaning)| ((*code).to_owned(), capitalized(meaning)))
        .collect();
    for meaning in &MEANINGS {
        let code = meaning.code.0.to_string();
        let is_known = codes.iter().any(|(known, _)| *known == code);
        if !is_known && reference.codes.contains(&meaning.code) {
            codes.push((code, capitalized(meaning.cause)));
        }
    }
    codes.sort_by_key(|(code, _)| code.parse().unwrap_or(0_u8));
    codes
}

/// Makes a sentence of a meaning.
pub(super) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), letters.as_str())
}

/// Returns `freezer-guard.toml`(5).
fn configuration() -> String {
    let about = "the configuration of freezer-guard.service";
    let mut page = Manual::new("freezer-guard.toml", "5", "freezer-guard Manual", about);
    page.section("SYNOPSIS");
    page.line(&format!("`{PATH}`"));
    page.section("DESCRIPTION");
    page.paragraphs(
        "The service reads this file when it starts and when systemd reloads it. The file is in TOML. \
         Each key has a default, and the file need not exist. An unknown key, a wrong type or a wrong \
         value is an error: then the service does not start, and a reload changes nothing.\n\n\
         A time is a number with a unit, such as `30s`, `5m` or `1h 30m`, of at most one year.\n\n\
         After a change, check the file and reload the service:",
    );
    page.example("freezer-guard config check\nsystemctl reload freezer-guard");
    page.section("KEYS");
    let mut table = String::new();
    for key in keys::keys() {
        if key.table != table {
            table.clone_from(&key.table);
            page.subsection(&format!("[{table}]"));
        }
        page.entry(
            &key.name,
            &format!(
                "{}\n\nType: {}. Default: `{}`. Example: `{} = {}`",
                key.text, key.kind, key.default, key.name, key.example
            ),
        );
    }
    page.section("EXAMPLES");
    page.paragraphs("Guard the checkpoints of users too, and end dumps that hang:");
    page.example(EXAMPLE);
    page.section("FILES");
    page.entry(
        PATH,
        "The configuration. The package installs it with each key as a comment.",
    );
    page.see_also(&[
        "freezer-guard(1)",
        "freezer-guard-config-check(1)",
        "freezer-guard-daemon(1)",
        "io.freezerguard(7)",
    ]);
    page.render()
}

/// A configuration.
pub(super) const EXAMPLE: &str = "\
[automatic]
users = true
warn_after = \"2m\"
timeout = \"30m\"

[metrics]
textfile = \"/var/lib/prometheus/node-exporter/freezer-guard.prom\"";

/// Returns `io.freezerguard`(7).
fn interface() -> String {
    let about = "the Varlink interface of freezer-guard.service";
    let mut page = Manual::new("io.freezerguard", "7", "freezer-guard Manual", about);
    page.section("SYNOPSIS");
    page.line(&format!("`{}`", varlink::SOCKET));
    page.section("DESCRIPTION");
    page.paragraphs(
        "Engines and scripts begin and end guards over this interface, and ask for their state. It is \
         Varlink (https://varlink.org): a call is one JSON object that ends with a zero byte, and so is \
         each reply. `varlinkctl`(1) of systemd 255 and later makes calls on the command line.\n\n\
         The holder of a guard is the calling process, or the process whose pidfd comes with the call; \
         its descendants belong to the holder. The guard ends with `End`, or with the last process of \
         the holder. So a client that crashes leaves no guard behind. The service then thaws the \
         cgroups that it has frozen for that guard.\n\n\
         A path that is not valid UTF-8 has U+FFFD in replies, and beside it its bytes in Base64 \
         (`cgroups_base64`, `path_base64`). To name such a cgroup in a call, send `/proc/PID/fd/N` of \
         an open descriptor.",
    );
    page.section("METHODS AND ERRORS");
    page.paragraphs("The description of the interface is installed as a file; `varlinkctl introspect` prints it too:");
    page.example(&varlink::description());
    page.section("ACCESS");
    page.paragraphs(
        "Root and the members of the group `freezer-guard` may connect and call every method. (The keys \
         `SocketGroup=` of freezer-guard.socket and `group` of `freezer-guard.toml`(5) name the group.) \
         To let every user connect:",
    );
    page.example("systemctl edit freezer-guard.socket\n\n[Socket]\nSocketMode=0666");
    page.paragraphs(
        "Any other user may call `Begin` if descriptors of the cgroups' freezer files, open for \
         writing, come with the call: a process that can freeze a cgroup may guard it. The holder has to \
         be a process of that user. The holder of a guard may call `End` and `Status` for it. The guard \
         of a user refuses nothing to root, and the service ends it after `users.longest_hold`.\n\n\
         A user who is not root has at most 32 connections, and without permission 8 guards. A message \
         has at most 64 KiB and 16 descriptors, and has to arrive within 10 seconds.",
    );
    page.section("EXAMPLES");
    for (text, lines) in CALLS {
        page.paragraphs(text);
        page.example(lines);
    }
    page.section("FILES");
    page.entry(varlink::SOCKET, "The socket of the service.");
    page.entry(
        "/usr/share/varlink/interfaces/io.freezerguard.varlink",
        "The description of the interface.",
    );
    page.see_also(&[
        "freezer-guard(1)",
        "freezer-guard-daemon(1)",
        "freezer-guard.toml(5)",
        "varlinkctl(1)",
    ]);
    page.render()
}

/// Calls of the interface.
pub(super) const CALLS: &[(&str, &str)] = &[
    (
        "Print the description of the interface:",
        "varlinkctl introspect /run/freezer-guard/io.freezerguard io.freezerguard",
    ),
    (
        "List the guards in force:",
        "varlinkctl call /run/freezer-guard/io.freezerguard io.freezerguard.List '{}'",
    ),
    (
        "Follow the events of all guards:",
        "varlinkctl call --more /run/freezer-guard/io.freezerguard io.freezerguard.Monitor '{}'",
    ),
    (
        "End a guard by force:",
        "varlinkctl call /run/freezer-guard/io.freezerguard io.freezerguard.End \\\n    \
         '{\"cgroup\":\"/sys/fs/cgroup/foo\",\"force\":true}'",
    ),
];
