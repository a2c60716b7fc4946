//! The keys of the configuration, with their documentation, read from the JSON schema of
//! [`Config`].

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{Config, PATH};

/// A key of the configuration.
#[derive(Debug)]
pub(crate) struct Key {
    /// The table that it is in, such as `automatic`; empty for the root table.
    pub(crate) table: String,
    /// Its name in that table.
    pub(crate) name: String,
    /// The effect of the key.
    pub(crate) text: String,
    /// Its type in words.
    pub(crate) kind: String,
    /// Its default, as TOML.
    pub(crate) default: String,
    /// Another value, as TOML.
    pub(crate) example: String,
}

impl Key {
    /// Returns the name with that of its table: `automatic.enabled`.
    pub(crate) fn path(&self) -> String {
        match &*self.table {
            "" => self.name.clone(),
            table => format!("{table}.{}", self.name),
        }
    }
}

/// Returns the keys in the order of the file.
pub(crate) fn keys() -> Vec<Key> {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<Config>();
    let mut keys = Vec::new();
    for (name, property) in properties(schema.as_value()) {
        match properties(property) {
            inner if inner.is_empty() => keys.push(key("", name, property)),
            inner => keys.extend(
                inner
                    .into_iter()
                    .map(|(inner, property)| key(name, inner, property)),
            ),
        }
    }
    keys
}

fn properties(schema: &Value) -> Vec<(&String, &Value)> {
    let properties = schema["properties"].as_object();
    properties.into_iter().flatten().collect()
}

fn key(table: &str, name: &str, schema: &Value) -> Key {
    let text = schema["description"].as_str().unwrap_or_default();
    Key {
        table: table.to_owned(),
        name: name.to_owned(),
        text: text.replace('\n', " "),
        kind: kind(schema),
        default: toml(&schema["default"]),
        example: toml(&schema["example"]),
    }
}

/// Returns the type in words.
fn kind(schema: &Value) -> String {
    if let Some(format) = schema["format"].as_str() {
        return format.to_owned();
    }
    let names = schema["enum"].as_array().cloned().or_else(|| {
        let variants = schema["oneOf"].as_array()?.iter();
        Some(variants.map(|variant| variant["const"].clone()).collect())
    });
    match (names, schema["type"].as_str()) {
        (Some(names), _) => {
            let names: Vec<_> = names.iter().map(toml).collect();
            format!("one of {}", names.join(", "))
        }
        (None, Some("array")) => match schema["items"]["enum"].as_array() {
            Some(names) => {
                let names: Vec<_> = names.iter().map(toml).collect();
                format!("list of {}", names.join(", "))
            }
            None => "list of strings".to_owned(),
        },
        (None, kind) => kind.unwrap_or_default().to_owned(),
    }
}

/// Returns a value as TOML, which is the same as JSON for the types of our keys.
fn toml(value: &Value) -> String {
    match value {
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(toml).collect();
            format!("[{}]", values.join(", "))
        }
        value => value.to_string(),
    }
}

/// Returns the file that the packages install: each key with its default, as a comment.
pub(crate) fn installed_file() -> String {
    let mut text = format!(
        "# The configuration of freezer-guard.service: {PATH}\n\
         # See freezer-guard.toml(5). Each key is here with its default, as a comment.\n\
         # After a change: freezer-guard config check && systemctl reload freezer-guard\n"
    );
    let mut table = String::new();
    for key in keys() {
        if key.table != table {
            table.clone_from(&key.table);
            text += &format!("\n[{table}]");
        }
        let comment = textwrap::fill(
            &key.text.replace('`', "\""),
            textwrap::Options::new(96)
                .initial_indent("# ")
                .subsequent_indent("# ")
                .word_splitter(textwrap::WordSplitter::NoHyphenation),
        );
        text += &format!("\n{comment}\n#{} = {}\n", key.name, key.default);
    }
    text
}
