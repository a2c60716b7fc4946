//! Checks the Markdown files of the repository, without mdBook.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::markdown::{At, Block, Page};

/// The book's directory.
pub(super) const BOOK: &str = "docs";
const SUMMARY: &str = "docs/SUMMARY.md";

/// The Markdown files, by their paths below the top.
struct Repository<'a> {
    top: &'a Path,
    pages: BTreeMap<PathBuf, Page>,
}

/// Returns a sentence for each dead link or anchor, missing picture, chapter that the summary
/// lacks, and code block that does not parse.
pub(crate) fn complaints(top: &Path) -> Result<Vec<String>> {
    let repository = Repository::read(top)?;
    let mut complaints = repository.summary();
    for (file, page) in &repository.pages {
        let mut add = |line: usize, complaint: String| {
            complaints.push(format!("{}:{line}: {complaint}", file.display()));
        };
        for At { line, what } in &page.broken_includes {
            add(*line, format!("cannot include {what}"));
        }
        for At { line, what } in &page.undefined {
            let hint = format!("write \\[{what}\\] if it is no link");
            add(*line, format!("[{what}] is not defined: {hint}"));
        }
        for At { line, what } in &page.links {
            if let Some(complaint) = repository.link(file, page, what) {
                add(*line, complaint);
            }
        }
        for At { line, what } in &page.blocks {
            if let Some(complaint) = block(what) {
                add(*line, complaint);
            }
        }
    }
    Ok(complaints)
}

impl<'a> Repository<'a> {
    fn read(top: &'a Path) -> Result<Self> {
        let mut files = Vec::new();
        list(top, top, &mut files)?;
        let pages = files.into_iter().map(|file| {
            let path = top.join(&file);
            let text = fs::read_to_string(&path).with_context(|| format!("read {file:?}"))?;
            let page = Page::parse(&text, path.parent().unwrap_or(top));
            Ok((file, page))
        });
        Ok(Self {
            top,
            pages: pages.collect::<Result<_>>()?,
        })
    }

    /// Compares the chapters in the summary with the files of the book.
    fn summary(&self) -> Vec<String> {
        let chapters = self.pages.keys().filter(|file| file.starts_with(BOOK));
        let mut missing: BTreeSet<_> = chapters.cloned().collect();
        let Some(summary) = self.pages.get(Path::new(SUMMARY)) else {
            return vec![format!("{SUMMARY} is missing")];
        };
        missing.remove(Path::new(SUMMARY));
        let mut complaints = Vec::new();
        for At { line, what } in &summary.links {
            let chapter = normal(&Path::new(BOOK).join(what));
            // A chapter without a file is a dead link, which the caller finds.
            if !missing.remove(&chapter) && self.pages.contains_key(&chapter) {
                complaints.push(format!("{SUMMARY}:{line}: lists {what} twice"));
            }
        }
        let missing = missing.iter().map(|file| file.display());
        complaints.extend(missing.map(|file| format!("{SUMMARY} does not list {file}")));
        complaints
    }

    /// Returns the fault of a link, if it has one.
    fn link(&self, file: &Path, page: &Page, target: &str) -> Option<String> {
        if ["https:", "http:", "mailto:"]
            .iter()
            .any(|scheme| target.starts_with(scheme))
        {
            return None;
        }
        let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
        let is_dead = |page: &Page| !anchor.is_empty() && !page.ids.contains(anchor);
        if path.is_empty() {
            let fault = match anchor {
                "" => "a link leads nowhere".to_owned(),
                _ => format!("there is no heading for #{anchor} here"),
            };
            return (anchor.is_empty() || is_dead(page)).then_some(fault);
        }
        let there = normal(&file.parent().unwrap_or(file).join(path));
        if !self.top.join(&there).exists() {
            return Some(format!("there is no {}", there.display()));
        }
        let in_book = |file: &Path| file.starts_with(BOOK);
        if in_book(file) && !(in_book(&there) && self.top.join(&there).is_file()) {
            return Some(format!("the book does not contain {}", there.display()));
        }
        let heading_is_missing = self.pages.get(&there).is_some_and(is_dead);
        heading_is_missing.then(|| format!("{} has no heading for #{anchor}", there.display()))
    }
}

/// Lists Markdown files, but not those that are built or hidden.
fn list(top: &Path, dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        let below = path.strip_prefix(top)?;
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            let is_ours = !name.as_encoded_bytes().starts_with(b".") && below != "target";
            if is_ours {
                list(top, &path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(below.to_owned());
        }
    }
    Ok(())
}

/// Removes `.` and `..` without a look at the disk.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if normal.pop() => {}
            _ => normal.push(component),
        }
    }
    normal
}

/// Returns the fault of a code block, if its language has a parser and that fails.
fn block(block: &Block) -> Option<String> {
    let text = &block.text;
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).err();
    let error = match &*block.language {
        "toml" => toml::from_str::<toml::Table>(text).err()?.to_string(),
        "json" => json(text)?.to_string(),
        "jsonl" => text.lines().find_map(json)?.to_string(),
        _ => return None,
    };
    Some(format!("this is no {}: {}", block.language, error.trim()))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::complaints;
    use crate::build::workspace;

    /// The repository itself.
    #[test]
    fn the_docs_are_whole() {
        let complaints = complaints(workspace()).expect("the files can be read");
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    /// A small book without a fault.
    const GOOD: [(&str, &str); 6] = [
        (
            "README.md",
            "[the book](docs/a.md#two-words), [a folder](docs)\n",
        ),
        (
            "docs/SUMMARY.md",
            "# Summary\n\n- [A](a.md)\n- [B](below/b.md)\n",
        ),
        (
            "docs/a.md",
            "# A\n\n## Two words\n\n[B](below/b.md), [here](#a), [there](https://example.org)\n\n\
             ![a picture](p.svg)\n",
        ),
        (
            "docs/below/b.md",
            "# B\n\n[A](../a.md#a)\n\n```json\n{\"a\": 1}\n```\n",
        ),
        ("docs/p.svg", "<svg/>"),
        ("docs/.hidden/c.md", "[no](nowhere.md)\n"),
    ];

    /// Returns the complaints about the good book with this file added, replaced or removed.
    fn faults(file: &str, text: Option<&str>) -> Vec<String> {
        let top = tempfile::tempdir().expect("a directory");
        let put = |file: &str, text: &str| {
            let path = top.path().join(file);
            let dir = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(dir).expect("a directory");
            fs::write(path, text).expect("a file");
        };
        for (good, text) in GOOD {
            put(good, text);
        }
        match text {
            Some(text) => put(file, text),
            None => fs::remove_file(top.path().join(file)).expect("it is there"),
        }
        complaints(top.path()).expect("the files can be read")
    }

    #[test]
    fn a_good_book_has_no_fault() {
        assert!(faults("LICENSE", Some("")).is_empty());
    }

    /// A file to put into the good book, its text, and the begin of the complaint.
    const FAULTS: [(&str, &str, &str); 17] = [
        (
            "README.md",
            "[x](docs/none.md)",
            "README.md:1: there is no docs/none.md",
        ),
        (
            "README.md",
            "\n[x](docs/a.md#none)",
            "README.md:2: docs/a.md has no heading for #none",
        ),
        (
            "docs/below/b.md",
            "[x](a.md)",
            "docs/below/b.md:1: there is no docs/below/a.md",
        ),
        (
            "docs/below/b.md",
            "[x](#none)",
            "docs/below/b.md:1: there is no heading for #none here",
        ),
        (
            "docs/below/b.md",
            "[x]()",
            "docs/below/b.md:1: a link leads nowhere",
        ),
        (
            "docs/below/b.md",
            "![x](../none.svg)",
            "docs/below/b.md:1: there is no docs/none.svg",
        ),
        (
            "docs/below/b.md",
            "<img src=\"q.svg\">",
            "docs/below/b.md:1: there is no docs/below/q.svg",
        ),
        (
            "docs/below/b.md",
            "[x](../../README.md)",
            "docs/below/b.md:1: the book does not contain README.md",
        ),
        (
            "docs/below/b.md",
            "[x](..)",
            "docs/below/b.md:1: the book does not contain docs",
        ),
        (
            "docs/below/b.md",
            "[x][y]",
            "docs/below/b.md:1: [y] is not defined",
        ),
        (
            "docs/below/b.md",
            "{{#include none.md}}",
            "docs/below/b.md:1: cannot include none.md",
        ),
        (
            "docs/below/b.md",
            "```json\n{a: 1}\n```",
            "docs/below/b.md:1: this is no json: ",
        ),
        (
            "docs/below/b.md",
            "```jsonl\n{}\n{\n```",
            "docs/below/b.md:1: this is no jsonl: ",
        ),
        (
            "docs/below/b.md",
            "```toml\na = b\n```",
            "docs/below/b.md:1: this is no toml: ",
        ),
        (
            "docs/c.md",
            "# C",
            "docs/SUMMARY.md does not list docs/c.md",
        ),
        (
            "docs/SUMMARY.md",
            "- [A](a.md)\n- [B](below/b.md)\n- [A](a.md)",
            "docs/SUMMARY.md:3: lists a.md twice",
        ),
        (
            "docs/SUMMARY.md",
            "- [A](a.md)\n- [B](below/b.md)\n- [C](c.md)",
            "docs/SUMMARY.md:3: there is no docs/c.md",
        ),
    ];

    #[test]
    fn each_fault_is_found() {
        for (file, text, complaint) in FAULTS {
            let found = faults(file, Some(text));
            assert!(
                found.len() == 1 && found[0].starts_with(complaint),
                "{complaint}: {found:?}"
            );
        }
        let found = faults("docs/p.svg", None);
        assert_eq!(found, ["docs/a.md:7: there is no docs/p.svg"]);
    }
}
