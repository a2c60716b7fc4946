//! `cargo xtask docs`: builds `docs/` as a book, and checks it.

mod check;
mod markdown;

use std::{fs, path::PathBuf, process::Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::{build, mdbook, pictures, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also check links, anchors, pictures, the table of contents and code blocks
    #[arg(long)]
    check: bool,
    /// Draw the pictures in docs/pictures instead
    #[arg(long, conflicts_with = "check")]
    pictures: bool,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    if args.pictures {
        return pictures::draw();
    }
    setup::book()?;
    let book = match args.check {
        true => check()?,
        false => build()?,
    };
    println!("the book is in {}", book.join("index.html").display());
    Ok(())
}

/// Checks the Markdown files and builds the book. Returns its directory.
pub(crate) fn check() -> Result<PathBuf> {
    let complaints = check::complaints(build::workspace())?;
    ensure!(
        complaints.is_empty(),
        "the docs have {} faults:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
    build()
}

/// Builds the book. Returns its directory.
fn build() -> Result<PathBuf> {
    let book = build::target_dir().join("docs/book");
    fs::create_dir_all(&book).with_context(|| format!("create {}", book.display()))?;
    let output = mdbook::command()
        .arg("build")
        .arg(build::workspace().join(check::BOOK))
        .arg("--dest-dir")
        .arg(&book)
        .stdin(Stdio::null())
        .output()
        .context("run mdbook")?;
    let log = String::from_utf8_lossy(&output.stderr);
    // mdBook builds a book without the files that it cannot include.
    let complains = ["WARN", "ERROR"].iter().any(|level| log.contains(level));
    ensure!(
        output.status.success() && !complains,
        "mdbook ended with {}:\n{log}",
        output.status
    );
    Ok(book)
}
