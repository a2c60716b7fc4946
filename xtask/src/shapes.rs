//! The shapes that pictures are made of.

use svg::node::{
    self, Node as _,
    element::{Element, Rectangle},
};

/// Returns a line of text. Its style comes from a class.
///
/// (`element::Text` puts line breaks around the text, which are part of it where space is kept.)
pub(crate) fn text(class: &str, x: i32, y: i32, content: &str) -> Element {
    let mut text = Element::new("text");
    if !class.is_empty() {
        text.assign("class", class);
    }
    text.assign("x", x);
    text.assign("y", y);
    text.append(node::Text::new(content));
    text
}

/// Returns a rectangle whose upper left corner is at a point.
pub(crate) fn rectangle(x: i32, y: i32, width: i32, height: i32) -> Rectangle {
    Rectangle::new()
        .set("x", x)
        .set("y", y)
        .set("width", width)
        .set("height", height)
}
