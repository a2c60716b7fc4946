//! The command lines of `freezer-guard` in Markdown files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Command, CommandFactory as _, Parser as _};
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

use super::root;
use crate::cli::{
    Cli, NAME,
    reference::commands::{COMMANDS, PROGRAM},
};

/// Stands for a value in a document: `PID`, `CRIU_PID`. One of these is such a value.
const VALUES: [&str; 5] = ["1", "5m", "enforce", "freeze", "fail"];

/// Code in a document, with the number of its first line.
struct Code {
    line: usize,
    /// The first word after the fence; `None`: it is within a line of text.
    language: Option<String>,
    text: String,
}

fn code_of(document: &str) -> Vec<Code> {
    let mut found = Vec::new();
    let mut block: Option<Code> = None;
    for (event, range) in Parser::new(document).into_offset_iter() {
        let line = document[..range.start].matches('\n').count() + 1;
        match event {
            Event::Start(Tag::CodeBlock(kind)) => {
                let language = match kind {
                    CodeBlockKind::Fenced(words) => {
                        let end = words.find([' ', ',']).unwrap_or(words.len());
                        words[..end].to_owned()
                    }
                    CodeBlockKind::Indented => String::new(),
                };
                block = Some(Code {
                    line,
                    language: Some(language),
                    text: String::new(),
                });
            }
            Event::Text(text) => {
                if let Some(block) = &mut block {
                    block.text += &text;
                }
            }
            Event::End(TagEnd::CodeBlock) => found.extend(block.take()),
            Event::Code(text) => found.push(Code {
                line,
                language: None,
                text: text.to_string(),
            }),
            _ => {}
        }
    }
    found
}

/// Returns the command lines of a block, continuation lines joined. In a block with prompts
/// (`console`) all other lines are output; in others a line is a command if it begins with a
/// program's name.
fn command_lines(code: &Code) -> Vec<String> {
    let is_console = match code.language.as_deref() {
        Some("" | "sh" | "bash" | "shell") => false,
        Some("console") => true,
        _ => return Vec::new(),
    };
    let joined = code.text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim_start).filter_map(|line| {
        let prompted = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
        prompted.or((!is_console).then_some(line))
    });
    lines.map(str::to_owned).collect()
}

/// Returns the arguments of each `freezer-guard` of a line, with its name. `Err`: the line is not
/// valid in a shell.
fn invocations(line: &str) -> Result<Vec<Vec<String>>, String> {
    // An abbreviated line is none.
    if !line.contains(NAME) || line.contains('…') || line.contains("...") {
        return Ok(Vec::new());
    }
    let words = shell_words::split(line).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for part in words.split(|word| matches!(&**word, "|" | "||" | "&&" | ";" | "&")) {
        let end = part
            .iter()
            .position(|word| word.starts_with(['#', '>', '<']) || word == "2>");
        let part = &part[..end.unwrap_or(part.len())];
        // `sudo`, or a variable.
        let is_before = |word: &&String| **word == "sudo" || is_assignment(word);
        let part = &part[part.iter().take_while(is_before).count()..];
        if part.first().is_some_and(|word| word == NAME) {
            found.push(part.to_vec());
        }
    }
    Ok(found)
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty()
            && name
                .chars()
                .all(|letter| letter == '_' || letter.is_ascii_uppercase())
    })
}

/// A variable or the output of a command stands for some value, too.
fn is_placeholder(word: &str) -> bool {
    let is_of_shell = word.starts_with('$');
    is_of_shell
        || word.len() > 1
            && word.starts_with(|letter: char| letter.is_ascii_uppercase())
            && word.chars().all(|letter| {
                letter == '_'
                    || letter == '-'
                    || letter.is_ascii_uppercase()
                    || letter.is_ascii_digit()
            })
}

/// Parses the words, with some value for each placeholder.
fn parse(words: &[String]) -> Result<(), String> {
    let index = words.iter().position(|word| {
        let value = word.split_once('=').map_or(&**word, |(_, value)| value);
        is_placeholder(value)
    });
    let as_it_is = Cli::try_parse_from(words);
    let Err(error) = as_it_is else { return Ok(()) };
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayVersion) {
        return Ok(());
    }
    let Some(index) = index else {
        return Err(error.to_string());
    };
    let mut words = words.to_vec();
    let option = match words[index].split_once('=') {
        Some((option, _)) => format!("{option}="),
        None => String::new(),
    };
    let mut last = String::new();
    for value in VALUES {
        words[index] = format!("{option}{value}");
        match parse(&words) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Checks the options of a command that a text names, such as `freezer-guard end --force`, which
/// need not be complete.
fn check_options(text: &str) -> Result<(), String> {
    let mut words = text.split_whitespace();
    if words.next() != Some(NAME) {
        return Ok(());
    }
    let mut command = Cli::command();
    command.build();
    let mut command = &command;
    for word in words.take_while(|word| *word != "--") {
        let word = word.trim_matches(['[', ']', '|', '…']);
        let known = |command: &Command| {
            let flag = word.split(['=', '[']).next().unwrap_or_default();
            let mut arguments = command.get_arguments();
            arguments.any(|one| match flag.strip_prefix("--") {
                Some(long) => one.get_long() == Some(long),
                None => one.get_short() == flag.chars().nth(1),
            })
        };
        match command.find_subcommand(word) {
            Some(inner) => command = inner,
            None if word.starts_with('-') && word.len() > 1 && !known(command) => {
                return Err(format!("{} has no {word}", command.get_name()));
            }
            None if !command.has_subcommands() || word.starts_with('-') => {}
            None => return Err(format!("there is no command {word:?}")),
        }
    }
    Ok(())
}

/// Returns the number of command lines of a document, and its errors.
fn check(name: &str, document: &str) -> (usize, Vec<String>) {
    let (mut count, mut wrong) = (0, Vec::new());
    for code in code_of(document) {
        let place = format!("{name}:{}", code.line);
        if code.language.is_none() {
            let checked = check_options(&code.text);
            wrong.extend(
                checked
                    .err()
                    .map(|error| format!("{place}: `{}`: {error}", code.text)),
            );
        }
        for line in command_lines(&code) {
            match invocations(&line) {
                Err(error) => wrong.push(format!("{place}: {line}: {error}")),
                Ok(found) => {
                    count += found.len();
                    let errors = found.iter().filter_map(|words| parse(words).err());
                    wrong.extend(errors.map(|error| format!("{place}: {line}\n{error}")));
                }
            }
        }
    }
    (count, wrong)
}

fn documents(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of ours can be read") {
        let path = entry.expect("and its entries").path();
        if path.is_dir() {
            documents(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn every_command_line_in_the_documents_is_valid() {
    let root = root();
    let mut paths = vec![root.join("README.md")];
    documents(&root.join("docs"), &mut paths);
    let (mut count, mut wrong) = (0, Vec::new());
    for path in paths {
        let name = path.strip_prefix(&root).unwrap_or(&path).display();
        let text = fs::read_to_string(&path).expect("a document of ours can be read");
        let (lines, complaints) = check(&name.to_string(), &text);
        count += lines;
        wrong.extend(complaints);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        count > 30,
        "{count} command lines: does the test find them?"
    );
}

#[test]
fn every_example_of_the_manual_is_valid() {
    for reference in COMMANDS.iter().chain([&PROGRAM]) {
        let mut count = 0;
        for (_, lines) in reference.examples {
            let (lines, wrong) = check(reference.command, &format!("```sh\n{lines}\n```\n"));
            assert!(wrong.is_empty(), "{wrong:?}");
            count += lines;
        }
        assert!(count > 0, "{:?} has no example", reference.command);
    }
}

/// Declares a test for each document: how many command lines it has, and how many are wrong.
macro_rules! documents {
    ($($name:ident: $lines:literal, $wrong:literal $text:literal,)+) => {
        $(
            #[test]
            fn $name() {
                let (lines, wrong) = check("x.md", $text);
                assert_eq!((lines, wrong.len()), ($lines, $wrong), "{wrong:?}");
            }
        )+
    };
}

documents! {
    a_plain_line_is_checked: 1, 0 "```\nfreezer-guard status --json\n```\n",
    a_wrong_option_is_found: 1, 1 "```\nfreezer-guard status --jsn\n```\n",
    a_wrong_command_is_found: 1, 1 "```sh\nsudo freezer-guard staus\n```\n",
    a_wrong_value_is_found: 1, 1 "```\nfreezer-guard run --cgroup /x --timeout 5 -- criu\n```\n",
    a_missing_option_is_found: 1, 1 "```\nfreezer-guard restore\n```\n",
    a_prompt_is_taken_off: 2, 1 "```console\n$ freezer-guard status\n# freezer-guard stats\n```\n",
    output_is_no_command: 1, 0 "```console\n$ freezer-guard status\nfreezer-guard is idle\n```\n",
    a_message_is_no_command: 0, 0 "```\nfreezer-guard: held /x for 3.2 s\n```\n",
    other_languages_are_not_checked: 0, 0 "```text\nfreezer-guard is\n```\n```toml\nx = 1\n```\n",
    continued_lines_are_joined: 1, 1 "```\nfreezer-guard run --cgroup /x --freze -- \\\n  criu dump\n```\n",
    comments_are_left_out: 1, 0 "```\nfreezer-guard status   # every guard's state\n```\n",
    both_sides_of_a_pipe_are_checked: 2, 1 "```\nfreezer-guard doctor && freezer-guard events -x | jq .\n```\n",
    capitals_stand_for_values: 1, 0 "```\nfreezer-guard run --pid PID --require LEVEL --timeout=DUR -- criu\n```\n",
    commands_stand_for_values: 1, 0 "```\nfreezer-guard verify --pid \"$(pidof foo | head)\"\n```\n",
    capitals_do_not_excuse_an_option: 1, 1 "```\nfreezer-guard run --pd PID -- criu\n```\n",
    help_is_no_error: 1, 0 "```\nfreezer-guard run --help\n```\n",
    an_abbreviation_is_not_checked: 0, 0 "```\nfreezer-guard run -- criu dump …\n```\n",
    text_may_name_a_part: 0, 0 "Use `freezer-guard end --force` or `freezer-guard run`.\n",
    text_names_no_wrong_option: 0, 1 "Use `freezer-guard end --forced`.\n",
    text_names_no_wrong_command: 0, 1 "Use `freezer-guard finish`.\n",
}
