//! The links of the packed texts.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result};
use pulldown_cmark::{Event, Parser, Tag};

use super::tree;

/// Returns a sentence for each relative link of a Markdown file that leads to nothing. The files are
/// those of a package, below `top`.
pub(super) fn dead(top: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for file in tree::list(top)? {
        if file.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let path = top.join(&file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let dir = file.parent().unwrap_or(&file);
        for target in targets(&text) {
            let there = normal(&dir.join(&target));
            if !top.join(&there).exists() {
                complaints.push(format!("{}: nothing is at {target}", file.display()));
            }
        }
    }
    Ok(complaints)
}

/// The relative links and pictures of a text, without their anchors.
fn targets(text: &str) -> Vec<String> {
    let targets = Parser::new(text).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(vec![dest_url.into_string()])
        }
        // A picture for dark screens has a tag of HTML.
        Event::Html(html) | Event::InlineHtml(html) => Some(in_html(&html)),
        _ => None,
    });
    let relative = targets.flatten().filter(|target| !target.contains(':'));
    let files = relative.map(|target| target.split('#').next().unwrap_or_default().to_owned());
    files.filter(|file| !file.is_empty()).collect()
}

/// The values of the attributes that name a file.
fn in_html(html: &str) -> Vec<String> {
    let names = [" href=\"", " src=\"", " srcset=\""];
    let after = names.iter().flat_map(|name| html.split(name).skip(1));
    let values = after.filter_map(|rest| rest.split(['"', ' ', ',']).next());
    values.map(str::to_owned).collect()
}

/// Removes `.` and `..` as a browser does.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::dead;

    #[test]
    fn dead_links_are_found() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("docs")).expect("a directory");
        let readme = "[a](docs/a.md#here) [b](#there) [c](https://example.org/c.md) [d](docs/d.md)\n\
                      <img src=\"docs/e.svg\">\n";
        fs::write(dir.path().join("README.md"), readme).expect("a file");
        fs::write(
            dir.path().join("docs/a.md"),
            "[up](../README.md) [f](../f.md)",
        )
        .expect("a file");
        let complaints = dead(dir.path()).expect("the files can be read");
        assert_eq!(
            complaints,
            [
                "README.md: nothing is at docs/d.md",
                "README.md: nothing is at docs/e.svg",
                "docs/a.md: nothing is at ../f.md"
            ]
        );
    }
}
