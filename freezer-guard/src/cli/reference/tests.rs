//! The committed reference equals the generated one, and every command line in the documents is valid.

mod documents;

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;
use freezer_guard::{
    Kind,
    doctor::{Report, Verdict},
    guard::{Event, Status},
    json::Versioned,
};
use serde::Serialize;
use serde_json::Value;

use super::{commands::COMMANDS, for_packages, of_repository, schemas::OBJECTS};
use crate::{
    cli::{
        Cli,
        exit::{Code, MEANINGS},
    },
    daemon::reply::Guards,
};

/// The root of the repository.
fn root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.parent().unwrap_or(crate_dir).to_owned()
}

#[test]
fn the_committed_reference_is_current() {
    let files = of_repository(&Cli::command(), &root()).expect("it is generated");
    assert!(files.len() > 10, "{} files", files.len());
    let stale: Vec<_> = files
        .iter()
        .filter(|(path, text)| fs::read_to_string(root().join(path)).ok().as_ref() != Some(text))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(
        stale.is_empty(),
        "these files differ from what the code generates: {}\n\
         update them with: cargo run -- generate --reference .",
        stale.join(", ")
    );
}

/// A schema of an object that is no more would stay.
#[test]
fn no_schema_is_left_over() {
    let files = of_repository(&Cli::command(), &root()).expect("it is generated");
    let dir = Path::new("docs/reference/schemas");
    for entry in fs::read_dir(root().join(dir)).expect("it is there") {
        let path = dir.join(entry.expect("it can be read").file_name());
        let is_made = files.iter().any(|(made, _)| *made == path);
        assert!(is_made, "nothing generates {}: remove it", path.display());
    }
}

#[test]
fn every_page_has_its_sections() {
    let files = for_packages(&Cli::command()).expect("they are generated");
    let mut pages = 0;
    for (path, text) in &files {
        let sections: &[&str] = match path.extension().and_then(|section| section.to_str()) {
            Some("1") => &["SYNOPSIS", "OPTIONS", "EXIT STATUS"],
            Some("5") => &["SYNOPSIS", "KEYS", "FILES"],
            Some("7") => &["SYNOPSIS", "ACCESS", "FILES"],
            _ => continue,
        };
        pages += 1;
        let common = ["NAME", "DESCRIPTION", "EXAMPLES", "SEE ALSO"];
        for section in common.iter().chain(sections) {
            let line = match section.contains(' ') {
                true => format!(".SH \"{section}\""),
                false => format!(".SH {section}"),
            };
            let count = text.lines().filter(|found| *found == line).count();
            assert_eq!(count, 1, "{section} in {}", path.display());
        }
        // man(1) and lintian warn of empty lines; a backtick is markup of ours.
        let mut is_as_it_is = false;
        for (number, line) in text.lines().enumerate().skip(3) {
            is_as_it_is = line == ".nf" || is_as_it_is && line != ".fi";
            let is_fine = !line.is_empty() && (is_as_it_is || !line.contains('`'));
            assert!(is_fine, "{}:{}: {line:?}", path.display(), number + 1);
        }
    }
    // The program, each command, and those of sections 5 and 7.
    assert_eq!(pages, 1 + COMMANDS.len() + 2);
}

#[test]
fn pages_refer_to_pages_that_there_are() {
    let files = for_packages(&Cli::command()).expect("they are generated");
    let known = |page: &str| {
        let name = page.trim_end_matches(')').replace('(', ".");
        files.iter().any(|(path, _)| *path == Path::new(&name))
    };
    for reference in COMMANDS {
        for page in reference.see_also {
            let is_ours = page.contains("freezer");
            assert!(!is_ours || known(page), "{page}");
        }
    }
}

/// A printed object has all fields that its schema requires, and no field that the schema lacks.
#[test]
fn a_schema_describes_what_is_printed() {
    let status = r#"{
        "id": 7, "state": "ENDED", "automatic": true, "cgroups": [], "holder_pids": [],
        "begun": "", "checkpointing": null, "held_seconds": 1.5, "level": "", "levels": {},
        "allowed": [], "denials": {}, "violations": {}, "repaired": {}, "missed": 0,
        "froze": false, "intruders": [], "violators": []
    }"#;
    let guard: Status = serde_json::from_str(status).expect("a guard");
    let printed = [
        (
            "status",
            json(Guards {
                guards: vec![guard],
            }),
        ),
        ("event", json(Event::lost(3))),
        ("doctor", json(doctor())),
    ];
    for (name, printed) in printed {
        let object = OBJECTS.iter().find(|object| object.name == name);
        let schema = object.expect("it is there").schema();
        assert_eq!(printed["version"], 1);
        expect_described(schema.as_value(), &printed);
        if name == "status" {
            expect_described(&schema.as_value()["$defs"]["Guard"], &printed["guards"][0]);
        }
    }
}

fn json(object: impl Serialize) -> Value {
    serde_json::to_value(Versioned::new(object)).expect("it is JSON")
}

fn doctor() -> Report {
    Report {
        verdict: Verdict::Good,
        kernel: String::new(),
        levels: None,
        checks: Vec::new(),
        programs: Vec::new(),
        trials: Vec::new(),
    }
}

fn expect_described(schema: &Value, printed: &Value) {
    let (properties, required) = (&schema["properties"], &schema["required"]);
    for field in printed.as_object().expect("an object").keys() {
        assert!(properties[field].is_object(), "{field} is not described");
    }
    let required = required.as_array().expect("a list");
    assert!(!required.is_empty());
    for field in required {
        let field = field.as_str().expect("a name");
        assert!(printed.get(field).is_some(), "{field} is not printed");
    }
}

#[test]
fn every_exit_code_has_a_meaning() {
    for kind in Kind::ALL {
        let code = Code(kind.exit_code());
        let count = MEANINGS.iter().filter(|meaning| meaning.code == code);
        assert_eq!(count.count(), 1, "{kind:?}");
    }
    let codes: Vec<_> = MEANINGS.iter().map(|meaning| meaning.code.0).collect();
    assert!(codes.is_sorted(), "{codes:?}");
}
