//! Parses the parts of a Markdown file that can be wrong: links, anchors, code blocks, includes.

use std::{collections::BTreeSet, fs, ops::Range, path::Path};

use pulldown_cmark::{
    BrokenLink, CodeBlockKind, CowStr, Event, LinkType, Options, Parser, Tag, TagEnd,
};

/// A place in a file's text.
pub(super) struct At<T> {
    /// The line, from 1. In a file with includes it counts the included lines too.
    pub(super) line: usize,
    pub(super) what: T,
}

/// A fenced code block.
pub(super) struct Block {
    /// The first word of the info string.
    pub(super) language: String,
    pub(super) text: String,
}

/// A parsed Markdown file.
#[derive(Default)]
pub(super) struct Page {
    /// Targets of links, pictures and HTML attributes, as written.
    pub(super) links: Vec<At<String>>,
    /// The names of reference links (`[text][name]`) that have no definition.
    pub(super) undefined: Vec<At<String>>,
    /// Anchors: of headings, and of HTML elements.
    pub(super) ids: BTreeSet<String>,
    pub(super) blocks: Vec<At<Block>>,
    /// Includes that mdBook cannot resolve. It prints an error for them and builds the book.
    pub(super) broken_includes: Vec<At<String>>,
}

impl Page {
    /// Parses a file that lies in this directory.
    pub(super) fn parse(text: &str, dir: &Path) -> Self {
        let mut page = Self::default();
        let text = page.with_includes(text, dir);
        let line_of = |range: &Range<usize>| 1 + text[..range.start].matches('\n').count();
        let mut undefined = Vec::new();
        let on_broken = |link: BrokenLink<'_>| -> Option<(CowStr<'_>, CowStr<'_>)> {
            undefined.push(At {
                line: line_of(&link.span),
                what: link.reference.into_string(),
            });
            None
        };
        let parser = Parser::new_with_broken_link_callback(&text, options(), Some(on_broken));
        let mut reader = Reader::default();
        for (event, range) in parser.into_offset_iter() {
            page.add(event, line_of(&range), &mut reader);
        }
        page.undefined = undefined;
        page
    }

    fn add(&mut self, event: Event<'_>, line: usize, reader: &mut Reader) {
        match event {
            Event::Start(Tag::Heading { id, .. }) => {
                reader.heading = Some(Heading {
                    id: id.map(CowStr::into_string),
                    text: String::new(),
                });
            }
            Event::End(TagEnd::Heading(_)) => {
                self.add_heading(reader.heading.take().unwrap_or_default());
            }
            // An address such as `<name@example.org>`.
            Event::Start(Tag::Link {
                link_type: LinkType::Email,
                ..
            }) => {}
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                let what = dest_url.into_string();
                self.links.push(At { line, what });
            }
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                let language = info.split([' ', ',', '\t']).take(1).collect();
                let text = String::new();
                let what = Block { language, text };
                reader.block = Some(At { line, what });
            }
            Event::End(TagEnd::CodeBlock) => self.blocks.extend(reader.block.take()),
            Event::Text(text) => {
                if let Some(block) = &mut reader.block {
                    block.what.text += &text;
                }
                reader.add_to_heading(&text);
            }
            Event::Code(code) => reader.add_to_heading(&code),
            Event::Html(html) | Event::InlineHtml(html) => self.add_html(&html, line),
            _ => {}
        }
    }

    /// Puts files in the place of `{{#include …}}`, as mdBook's preprocessor does.
    fn with_includes(&mut self, text: &str, dir: &Path) -> String {
        let mut all = String::new();
        for (number, line) in text.lines().enumerate() {
            match included(line) {
                Some(what) => match include(what, dir) {
                    Some(text) => all += &text,
                    None => self.broken_includes.push(At {
                        line: number + 1,
                        what: what.to_owned(),
                    }),
                },
                None => all += line,
            }
            all.push('\n');
        }
        all
    }

    /// Adds the anchor that mdBook and GitHub make of a heading.
    fn add_heading(&mut self, heading: Heading) {
        let id = heading.id.unwrap_or_else(|| id_of(&heading.text));
        let numbered = (1..).map(|number| format!("{id}-{number}"));
        let mut names = std::iter::once(id.clone()).chain(numbered);
        self.ids.extend(names.find(|name| !self.ids.contains(name)));
    }

    fn add_html(&mut self, html: &str, line: usize) {
        let mut add = |target: &str| {
            let what = target.to_owned();
            self.links.push(At { line, what });
        };
        for name in ["href", "src"] {
            attributes(html, name).for_each(&mut add);
        }
        for list in attributes(html, "srcset") {
            let targets = list
                .split(',')
                .filter_map(|one| one.split_whitespace().next());
            targets.for_each(&mut add);
        }
        for name in ["id", "name"] {
            self.ids.extend(attributes(html, name).map(str::to_owned));
        }
    }
}

/// The parts of a page that have begun and not ended.
#[derive(Default)]
struct Reader {
    heading: Option<Heading>,
    block: Option<At<Block>>,
}

impl Reader {
    fn add_to_heading(&mut self, text: &str) {
        if let Some(heading) = &mut self.heading {
            heading.text += text;
        }
    }
}

#[derive(Default)]
struct Heading {
    id: Option<String>,
    text: String,
}

/// The extensions that mdBook turns on.
fn options() -> Options {
    Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_HEADING_ATTRIBUTES
}

fn id_of(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ => c.is_alphanumeric().then_some(c),
    });
    kept.flat_map(char::to_lowercase).collect()
}

/// The values of the attribute in `name="value"`.
fn attributes<'a>(html: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let begin = format!(" {name}=\"");
    let mut rest = html;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&begin)?;
        let (value, after) = after.split_once('"')?;
        rest = after;
        Some(value)
    })
}

/// The file, and perhaps the part of it, that a line includes.
fn included(line: &str) -> Option<&str> {
    let rest = line.trim().strip_prefix("{{#include ")?;
    rest.strip_suffix("}}").map(str::trim)
}

/// The text of `file`, or of `file:part`. Comments in the file enclose the part.
fn include(what: &str, dir: &Path) -> Option<String> {
    let Some((file, part)) = what.split_once(':') else {
        return fs::read_to_string(dir.join(what)).ok();
    };
    let text = fs::read_to_string(dir.join(file)).ok()?;
    let (_, rest) = text.split_once(&format!("ANCHOR: {part} "))?;
    let (inside, _) = rest.split_once(&format!("ANCHOR_END: {part} "))?;
    let lines: Vec<_> = inside.lines().skip(1).collect();
    let (_comment, lines) = lines.split_last()?;
    Some(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{Page, id_of};

    #[test]
    fn a_heading_has_the_anchor_of_mdbook_and_github() {
        assert_eq!(id_of("What `run` prevents"), "what-run-prevents");
        assert_eq!(id_of("64: wrong usage, e.g. a/b"), "64-wrong-usage-eg-ab");
        let page = Page::parse("# One `a`\n# One a\n<a id=\"x\"></a>\n", Path::new("."));
        let ids: Vec<_> = page.ids.iter().map(String::as_str).collect();
        assert_eq!(ids, ["one-a", "one-a-1", "x"]);
    }

    #[test]
    fn links_are_found_wherever_they_are() {
        let text = "[a](a.md) ![b](b.svg) [c]\n\n\
                    <picture><source srcset=\"d.svg 1x, e.svg 2x\"><img src=\"f.svg\"></picture>\n\n\
                    `[no](no.md)` <a@b.c> [g][h]\n\n[c]: c.md\n";
        let page = Page::parse(text, Path::new("."));
        let links: Vec<_> = page.links.iter().map(|link| &*link.what).collect();
        assert_eq!(links, ["a.md", "b.svg", "c.md", "d.svg", "e.svg", "f.svg"]);
        let undefined: Vec<_> = page
            .undefined
            .iter()
            .map(|at| (at.line, &*at.what))
            .collect();
        assert_eq!(undefined, [(5, "h")]);
    }

    #[test]
    fn a_part_of_a_file_is_included() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = "# No\n<!-- ANCHOR: part -->\n## Yes\n<!-- ANCHOR_END: part -->\n[no](no.md)\n";
        fs::write(dir.path().join("file.md"), file).expect("a file");
        let page = Page::parse("{{#include file.md:part}}\n", dir.path());
        assert_eq!(page.ids.iter().collect::<Vec<_>>(), ["yes"]);
        assert!(page.links.is_empty() && page.broken_includes.is_empty());
        for missing in ["none.md", "file.md:other"] {
            let page = Page::parse(&format!("{{{{#include {missing}}}}}\n"), dir.path());
            assert_eq!(page.broken_includes[0].what, missing);
        }
    }
}
