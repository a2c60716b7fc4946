//! mdBook: Debian's, unpacked and run with libraries of its own.
//!
//! The mdBook of Debian 13 makes books without their JavaScript. The next one looks for icons in
//! `/usr/share`, where an unpacked package has none. So we give it a template of the page that has
//! the icons in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{cache, debian::Apt, machine::Machine, tools};

const RELEASE: &str = "forky";

/// Our template of a page, below [`dir`].
const TEMPLATE: &str = "theme/index.hbs";

/// The icons, below [`dir`].
const ICONS: &str = "usr/share/nodejs/@fortawesome/fontawesome-free/svgs";

/// The directory that mdBook is unpacked into.
pub(crate) fn dir() -> PathBuf {
    cache::dir().join("tools").join(format!("mdbook-{RELEASE}"))
}

/// Downloads mdBook and makes the template.
pub(crate) fn fetch() -> Result<()> {
    let apt = Apt::open(RELEASE, Machine::host())?;
    cache::put(&dir(), |root| {
        apt.unpack_closure(&["mdbook"], root)?;
        let template = with_icons(&default_template(root)?, &root.join(ICONS))?;
        let path = root.join(TEMPLATE);
        fs::create_dir_all(path.parent().unwrap_or(root))?;
        fs::write(&path, template).with_context(|| format!("write {}", path.display()))
    })
}

/// `mdbook`, with our template.
pub(crate) fn command() -> Command {
    let mut command = program(&dir());
    command.env("MDBOOK_OUTPUT__HTML__THEME", dir().join("theme"));
    command
}

fn program(root: &Path) -> Command {
    tools::command(root, "bin/mdbook")
}

/// Returns the template that mdBook has built in. `mdbook init` writes it beside a new book.
fn default_template(root: &Path) -> Result<String> {
    let book = tempfile::tempdir()?;
    let output = program(root)
        .args(["init", "--force", "--theme"])
        .arg(book.path())
        .stdin(Stdio::null())
        .output()
        .context("run mdbook")?;
    ensure!(
        output.status.success(),
        "mdbook init ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let path = book.path().join(TEMPLATE);
    fs::read_to_string(&path).context("mdbook init has written no template of a page")
}

/// Replaces each icon's name (`{{fa "solid" "print" "id"}}`) by its picture, as mdBook would.
fn with_icons(template: &str, icons: &Path) -> Result<String> {
    let mut parts = template.split("{{fa \"");
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (names, rest) = part.split_once("\"}}").context("an icon has no end")?;
        let mut names = names.split("\" \"");
        let (style, name) = (names.next(), names.next());
        let (style, name) = style.zip(name).context("an icon has a style and a name")?;
        let path = icons.join(style).join(format!("{name}.svg"));
        let svg = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let id = names.next().map(|id| format!(" id=\"{id}\""));
        let id = id.unwrap_or_default();
        all += &format!("<span class=\"fa-svg\"{id}>{}</span>{rest}", svg.trim());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::with_icons;

    #[test]
    fn icons_take_the_place_of_their_names() {
        let icons = tempfile::tempdir().expect("a directory");
        fs::create_dir(icons.path().join("solid")).expect("a directory");
        fs::write(icons.path().join("solid/eye.svg"), "<svg/>\n").expect("a file");
        let template = "<a>{{fa \"solid\" \"eye\"}}</a>{{fa a b}}{{fa \"solid\" \"eye\" \"x\"}}";
        assert_eq!(
            with_icons(template, icons.path()).expect("the icons are there"),
            "<a><span class=\"fa-svg\"><svg/></span></a>{{fa a b}}\
             <span class=\"fa-svg\" id=\"x\"><svg/></span>"
        );
        assert!(with_icons("{{fa \"solid\" \"none\"}}", icons.path()).is_err());
    }
}
