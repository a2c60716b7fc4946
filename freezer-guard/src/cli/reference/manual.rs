//! Parts of manual pages, for man(7).

use std::io;

use freezer_guard::VERSION;
use roff::{Inline, Roff, bold, roman};

/// A manual page. In its texts, words between backticks become bold.
pub(super) struct Manual {
    /// The parts that clap_mangen has made, and those before the last of these.
    text: String,
    /// The part of ours that is being made.
    roff: Roff,
    /// Whether a section has just begun.
    is_begin: bool,
}

impl Manual {
    /// Begins a page with its title line and its first section.
    pub(super) fn new(name: &str, section: &str, kind: &str, about: &str) -> Self {
        let mut roff = Roff::new();
        let source = format!("freezer-guard {}", env!("CARGO_PKG_VERSION"));
        // No date: a page is the same whenever it is made.
        roff.control("TH", [&*name.to_uppercase(), section, " ", &source, kind]);
        // A reader copies commands: no hyphens and no justified lines.
        roff.control("nh", []);
        roff.control("ad", ["l"]);
        roff.control("SH", ["NAME"]);
        roff.text([roman(format!("{name} - {about}"))]);
        let text = Roff::new().render();
        Self {
            text,
            roff,
            is_begin: false,
        }
    }

    /// Adds a section that clap_mangen renders.
    pub(super) fn rendered(
        &mut self,
        render: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        render(&mut bytes)?;
        let section = String::from_utf8(bytes).map_err(io::Error::other)?;
        self.text += &without_preamble(&std::mem::take(&mut self.roff).render());
        // man(1) warns of an empty line.
        self.text += &emphasized(&without_preamble(&section)).replace("\n\n", "\n.sp\n");
        Ok(())
    }

    /// Begins a section.
    pub(super) fn section(&mut self, title: &str) {
        self.roff.control("SH", [title]);
        self.is_begin = true;
    }

    /// Begins a subsection.
    pub(super) fn subsection(&mut self, title: &str) {
        self.roff.control("SS", [title]);
    }

    /// Adds paragraphs, with an empty line between two of them.
    pub(super) fn paragraphs(&mut self, text: &str) {
        for paragraph in text.split("\n\n") {
            if !std::mem::take(&mut self.is_begin) {
                self.roff.control("PP", []);
            }
            self.roff.text(inlines(paragraph));
        }
    }

    /// Adds a line without space before it.
    pub(super) fn line(&mut self, text: &str) {
        self.roff.text(inlines(text));
    }

    /// Adds an entry of a list: a bold tag, and paragraphs beside it.
    pub(super) fn entry(&mut self, tag: &str, text: &str) {
        self.roff.control("TP", []);
        self.roff.text([bold(tag)]);
        for (number, paragraph) in text.split("\n\n").enumerate() {
            if number > 0 {
                self.roff.control("IP", []);
            }
            self.roff.text(inlines(paragraph));
        }
    }

    /// Adds lines as they are, indented: commands, or a file.
    pub(super) fn example(&mut self, lines: &str) {
        for (name, arguments) in [("PP", &[][..]), ("RS", &["4"]), ("nf", &[])] {
            self.roff.control(name, arguments.iter().copied());
        }
        for line in lines.lines() {
            self.roff.text([roman(match line {
                // An empty line of text is a warning of mandoc and lintian.
                "" => " ",
                line => line,
            })]);
        }
        self.roff.control("fi", []);
        self.roff.control("RE", []);
    }

    /// Ends the page with its references to others.
    pub(super) fn see_also(&mut self, pages: &[&str]) {
        self.section("SEE ALSO");
        let mut line = Vec::new();
        for (number, page) in pages.iter().enumerate() {
            let (name, section) = page.split_once('(').unwrap_or((page, ""));
            let comma = if number + 1 < pages.len() { ", " } else { "" };
            line.extend([bold(name), roman(format!("({section}{comma}"))]);
        }
        self.roff.text(line);
    }

    /// Adds the version with the id of the BPF object.
    pub(super) fn version(&mut self) {
        self.section("VERSION");
        self.line(VERSION);
    }

    /// Returns the text that man(1) formats.
    pub(super) fn render(self) -> String {
        let text = self.text + &without_preamble(&self.roff.render());
        // The crate roff leaves out an empty argument.
        text.replacen("\" \"", "\"\"", 1)
    }
}

/// Each part that roff renders defines the apostrophe: one definition is enough.
fn without_preamble(rendered: &str) -> String {
    let preamble = Roff::new().render();
    rendered
        .strip_prefix(&preamble)
        .unwrap_or(rendered)
        .to_owned()
}

/// Makes the words between backticks bold in rendered text.
fn emphasized(rendered: &str) -> String {
    let lines = rendered.split_inclusive('\n').map(|line| {
        let pieces = line.split('`').enumerate();
        let pieces = pieces.map(|(number, piece)| match number % 2 {
            0 => piece.to_owned(),
            _ => format!("\\fB{piece}\\fR"),
        });
        pieces.collect::<String>()
    });
    lines.collect()
}

/// Returns text as pieces: those between backticks are bold.
fn inlines(text: &str) -> Vec<Inline> {
    let text = text.replace('\n', " ");
    let pieces = text.split('`').enumerate();
    pieces
        .filter(|(_, piece)| !piece.is_empty())
        .map(|(number, piece)| match number % 2 {
            0 => roman(piece),
            _ => bold(piece),
        })
        .collect()
}
