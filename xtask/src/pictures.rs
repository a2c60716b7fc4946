//! `cargo xtask docs --pictures`: the pictures of `docs/pictures/`.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    bench, build,
    terminal::Recording,
    timeline::{self, Theme},
};

/// What `cargo xtask demo --record` has recorded.
pub(crate) const RECORDING: &str = "docs/pictures/demo.cast";

/// Draws all pictures into their files.
pub(crate) fn draw() -> Result<()> {
    for (name, picture) in all()? {
        fs::write(build::workspace().join(name), picture)
            .with_context(|| format!("write {name}"))?;
        println!("{name}");
    }
    Ok(())
}

/// Returns each picture with the name of its file.
fn all() -> Result<Vec<(&'static str, String)>> {
    let recording = Recording::load(&build::workspace().join(RECORDING))?;
    let mut pictures = bench::pictures()?;
    pictures.extend([
        ("docs/pictures/demo.svg", recording.draw("cargo xtask demo")),
        (
            "docs/pictures/timeline-light.svg",
            timeline::draw(Theme::Light),
        ),
        (
            "docs/pictures/timeline-dark.svg",
            timeline::draw(Theme::Dark),
        ),
    ]);
    Ok(pictures)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::all;
    use crate::build;

    #[test]
    fn files_are_what_the_code_draws() {
        for (name, picture) in all().expect("the pictures can be drawn") {
            let file = fs::read_to_string(build::workspace().join(name)).unwrap_or_default();
            assert!(
                file == picture,
                "{name} is not what the code draws: run `cargo xtask docs --pictures`"
            );
        }
    }

    #[test]
    fn pictures_are_small_xml_without_scripts() {
        for (name, picture) in all().expect("the pictures can be drawn") {
            let parsed = roxmltree::Document::parse(&picture);
            let parsed = parsed.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(
                parsed
                    .root_element()
                    .has_tag_name(("http://www.w3.org/2000/svg", "svg"))
            );
            for node in parsed.descendants() {
                let tag = node.tag_name().name();
                assert!(
                    !["script", "image", "foreignObject"].contains(&tag),
                    "{name}: {tag}"
                );
            }
            assert!(picture.len() < 80_000, "{name} has {} bytes", picture.len());
        }
    }
}
