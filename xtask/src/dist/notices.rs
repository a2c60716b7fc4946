//! The notices that the licences of the linked software require.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    VERSION,
    linked::{Crate, Key, Linked},
};
use crate::build;

/// The beginnings of the names of files with a licence or a notice, in lower case.
const NAMES: [&str; 6] = [
    "licen",
    "copying",
    "notice",
    "unlicense",
    "copyright",
    "lesser",
];

/// The licences that crates may have. A person decides on each new one.
const ACCEPTED: [&str; 11] = [
    "0BSD",
    "Apache-2.0",
    "BSD-3-Clause",
    "BSL-1.0",
    "LGPL-2.1-or-later",
    "LLVM-exception",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "ISC",
];

/// The file with the notices of the Rust standard library, below the compiler's directory.
const STANDARD_LIBRARY: &str = "share/doc/rust/COPYRIGHT-library.html";

/// Debian's copyright file of glibc.
const GLIBC: &str = "/usr/share/doc/libc6-dev/copyright";

/// The notices of the Rust standard library, as its authors publish them.
pub(super) fn standard_library(linked: &Linked) -> Result<String> {
    let path = linked.sysroot.join(STANDARD_LIBRARY);
    fs::read_to_string(&path).with_context(|| {
        format!(
            "read {}: use a toolchain of rustup, which has this file",
            path.display()
        )
    })
}

/// The text of `THIRD-PARTY-NOTICES`. `commit`: of our sources.
pub(super) fn text(linked: &Linked, commit: &str) -> Result<String> {
    let crates: BTreeMap<&Key, &Crate> = linked
        .crates
        .iter()
        .filter(|(_, krate)| krate.checksum.is_some())
        .collect();
    for (key, krate) in &crates {
        accept(key, &krate.licence)?;
    }
    let mut text = head(linked, &crates, commit);
    let of_glibc = fs::read_to_string(GLIBC).with_context(|| format!("read {GLIBC}"))?;
    text += &section("glibc");
    text += &of_glibc;
    for (licence, owners) in texts(&crates)? {
        text += &section(&owners.join(", "));
        text += licence.trim_end();
        text.push('\n');
    }
    Ok(text)
}

fn section(title: &str) -> String {
    let line = "=".repeat(78);
    format!("\n{line}\n{title}\n{line}\n\n")
}

/// The list of everything, and the offer that the LGPL requires.
fn head(linked: &Linked, crates: &BTreeMap<&Key, &Crate>, commit: &str) -> String {
    let Linked { rustc, glibc, .. } = linked;
    let weak = crates
        .iter()
        .filter(|(_, krate)| krate.licence.starts_with("LGPL"));
    let weak: Vec<_> = weak
        .map(|((name, version), _)| format!("{name} {version}"))
        .collect();
    let weak = weak.join(", ");
    let mut text = format!(
        "Third-party notices of freezer-guard {VERSION}\n\
         \n\
         freezer-guard itself is licensed under MIT OR Apache-2.0, and the BPF programs inside it also\n\
         under GPL-2.0: see LICENSE-MIT, LICENSE-APACHE and LICENSE-GPL2. The binary is statically linked.\n\
         It contains the following software of others.\n\
         \n\
         GNU C Library (glibc), from Debian's source package glibc {glibc}: LGPL-2.1-or-later\n\
         Rust standard library {rustc}: MIT OR Apache-2.0, see rust-standard-library.html\n\
         GCC support library (libgcc): GPL-3.0-or-later WITH GCC-exception-3.1. The exception permits\n\
         the binary under the terms of its authors.\n"
    );
    for ((name, version), krate) in crates {
        let licence = &krate.licence;
        let repository = krate.repository.as_deref().unwrap_or_default();
        text += &format!("crate {name} {version}: {licence} {repository}\n");
    }
    text += &format!(
        "\n\
         This binary uses libraries under the GNU Lesser General Public License 2.1: glibc, {weak}.\n\
         The text of that licence is below. You may modify these libraries, link the binary with the\n\
         modified ones, and reverse engineer it to debug such modifications. The source code of\n\
         freezer-guard (commit {commit}) has all that you need for it: `cargo xtask dist` links the\n\
         glibc of the machine that it runs on, and a section `[patch.crates-io]` in Cargo.toml puts your\n\
         copy of a crate in the place of the original. The sources of glibc are in Debian's source package,\n\
         those of each crate in its archive: Cargo.lock has their checksums.\n"
    );
    text
}

/// Fails if an SPDX expression names a licence that is not [`ACCEPTED`].
fn accept((name, _): &Key, expression: &str) -> Result<()> {
    let words = expression
        .split([' ', '/', '(', ')'])
        .filter(|word| !word.is_empty());
    for word in words.filter(|word| !["AND", "OR", "WITH"].contains(word)) {
        ensure!(
            ACCEPTED.contains(&word),
            "the crate {name} is licensed under {expression}: find out whether we may link it, \
             and add {word} to xtask/src/dist/notices.rs"
        );
    }
    Ok(())
}

/// Each text of a licence once, with the crates that it is for.
fn texts(crates: &BTreeMap<&Key, &Crate>) -> Result<BTreeMap<String, Vec<String>>> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for ((name, version), krate) in crates {
        let mut found = in_directory(&krate.source)?;
        if found.is_empty() {
            // The archives of some crates lack the files that their repository has at its top.
            found = of_relatives(krate, crates)?;
        }
        if found.is_empty() && krate.licence.split(' ').any(|word| word == "Apache-2.0") {
            // Its authors leave us the choice, and the Apache licence names no author.
            found.insert(fs::read_to_string(
                build::workspace().join("LICENSE-APACHE"),
            )?);
        }
        ensure!(
            !found.is_empty(),
            "the crate {name} has no text of its licence, nor has one from its repository: add it to \
             xtask/src/dist/notices.rs"
        );
        for text in found {
            let owners = texts.entry(text).or_default();
            owners.push(format!("{name} {version}"));
        }
    }
    Ok(texts)
}

/// The texts of crates of the same repository.
fn of_relatives(krate: &Crate, crates: &BTreeMap<&Key, &Crate>) -> Result<BTreeSet<String>> {
    let relatives = crates.values().filter(|other| {
        let repository = |krate: &Crate| krate.repository.as_deref().map(top).map(str::to_owned);
        repository(other).is_some() && repository(other) == repository(krate)
    });
    let mut found = BTreeSet::new();
    for relative in relatives {
        found.extend(in_directory(&relative.source)?);
    }
    Ok(found)
}

/// A repository without the path of a directory in it.
fn top(repository: &str) -> &str {
    let top = repository.split("/tree/").next().unwrap_or(repository);
    top.trim_end_matches('/').trim_end_matches(".git")
}

/// The texts at the top of a crate's source.
fn in_directory(dir: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if entry.path().is_file() && NAMES.iter().any(|begin| name.starts_with(begin)) {
            let text = fs::read(entry.path())?;
            // Some have lines that end with \r\n.
            found.insert(String::from_utf8_lossy(&text).replace('\r', ""));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{accept, text};
    use crate::dist::linked::Linked;

    #[test]
    fn every_crate_and_glibc_have_their_licence() {
        let linked = Linked::find(crate::machine::Machine::host()).expect("cargo knows it");
        let text = text(&linked, "0123").expect("every text is found");
        for (name, version) in linked
            .crates
            .keys()
            .filter(|(name, _)| !name.starts_with("freezer-"))
        {
            // In the list, and above a text.
            let times = text.matches(&format!("{name} {version}")).count();
            assert!(times >= 2, "{name} {version}: {times}");
        }
        for part in [
            "GNU C Library",
            "GNU LESSER GENERAL PUBLIC LICENSE",
            "commit 0123",
            "btf-rs",
        ] {
            assert!(text.contains(part), "{part}");
        }
    }

    #[test]
    fn a_licence_that_nobody_has_looked_at_is_refused() {
        let key = ("name".to_owned(), "1.0.0".to_owned());
        accept(&key, "(MIT OR Apache-2.0) AND Unicode-3.0").expect("accepted");
        accept(&key, "MIT/Apache-2.0").expect("accepted");
        accept(&key, "MIT OR SSPL-1.0").expect_err("not accepted");
    }
}
