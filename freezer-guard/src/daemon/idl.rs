//! The description of a Varlink interface as a file, with each field on a line of its own.

use zlink::idl::{Comment, CustomType, Field, Interface};

/// Returns the description in Varlink's interface definition language.
pub(super) fn formatted(interface: &Interface<'_>) -> String {
    let mut text = comments(interface.comments(), "");
    text += &format!("interface {}\n", interface.name());
    for custom in interface.custom_types() {
        // Our enumerations are strings.
        if let CustomType::Object(object) = custom {
            text.push('\n');
            text += &comments(object.comments(), "");
            text += &format!("type {} {}\n", object.name(), fields(object.fields()));
        }
    }
    for method in interface.methods() {
        text.push('\n');
        text += &comments(method.comments(), "");
        let (name, inputs) = (method.name(), fields(method.inputs()));
        text += &format!("method {name}{inputs} -> {}\n", fields(method.outputs()));
    }
    for error in interface.errors() {
        text.push('\n');
        text += &comments(error.comments(), "");
        text += &format!("error {} {}\n", error.name(), fields(error.fields()));
    }
    text
}

/// Those of doc comments begin with a space.
fn comments<'a>(comments: impl Iterator<Item = &'a Comment<'a>>, indent: &str) -> String {
    comments
        .map(|comment| format!("{indent}# {}\n", comment.text().trim()))
        .collect()
}

fn fields<'a>(all: impl Iterator<Item = &'a Field<'a>>) -> String {
    let fields: Vec<_> = all
        .map(|field| {
            let comments = comments(field.comments(), "  ");
            format!("{comments}  {}: {}", field.name(), field.ty())
        })
        .collect();
    match fields.is_empty() {
        true => "()".to_owned(),
        false => format!("(\n{}\n)", fields.join(",\n")),
    }
}
