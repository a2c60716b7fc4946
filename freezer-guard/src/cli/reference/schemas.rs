//! The JSON schemas of the objects that `--json` prints, and the tables of `json.md`.

use std::{collections::BTreeMap, path::Path};

use freezer_guard::{
    criu::Evidence,
    doctor,
    guard::{Event, Incident},
    json::Versioned,
    report::Report,
};
use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::Value;

use super::File;
use crate::{
    cli::{error::Result, restore::Restored, status::watch::Refresh, verify::Verified},
    daemon::reply::{Guards, State},
};

/// An object that the command line prints.
pub(super) struct Object {
    /// The name of its schema's file, without `.json`.
    pub(super) name: &'static str,
    /// The commands that print it.
    pub(super) printed_by: &'static str,
    schema: fn() -> Schema,
}

/// Every object.
pub(super) const OBJECTS: [Object; 10] = [
    Object {
        name: "status",
        printed_by: "`freezer-guard status --json` and `freezer-guard status --last --json`",
        schema: schema::<Guards>,
    },
    Object {
        name: "status-cgroup",
        printed_by: "`freezer-guard status PATH --json`",
        schema: schema::<State>,
    },
    Object {
        name: "status-watch",
        printed_by: "`freezer-guard status --watch --json`, one object at each refresh",
        schema: schema::<Refresh>,
    },
    Object {
        name: "report",
        printed_by: "`freezer-guard report --json`",
        schema: schema::<Report>,
    },
    Object {
        name: "event",
        printed_by: "`freezer-guard events --json`, one object a line",
        schema: schema::<Event>,
    },
    Object {
        name: "doctor",
        printed_by: "`freezer-guard doctor --json`",
        schema: schema::<doctor::Report>,
    },
    Object {
        name: "doctor-bundle",
        printed_by: "`freezer-guard doctor --bundle FILE`",
        schema: schema::<doctor::Bundle>,
    },
    Object {
        name: "verify",
        printed_by: "`freezer-guard verify --json`",
        schema: schema::<Verified>,
    },
    Object {
        name: "evidence",
        printed_by: "`freezer-guard checkpoint --json`, and the file `freezer-guard.json` in each image",
        schema: schema::<Evidence>,
    },
    Object {
        name: "restore",
        printed_by: "`freezer-guard restore --json`",
        schema: schema::<Restored>,
    },
];

fn generate<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::draft2020_12()
        .for_serialize()
        .with_transform(RecursiveTransform(join_description));
    settings.into_generator().into_root_schema_for::<T>()
}

/// The lines of a doc comment are one text.
fn join_description(schema: &mut Schema) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = joined(text);
    }
}

fn schema<T: JsonSchema>() -> Schema {
    generate::<Versioned<T>>()
}

impl Object {
    /// Returns its JSON schema.
    pub(super) fn schema(&self) -> Schema {
        let mut schema = (self.schema)();
        schema.insert("title".to_owned(), self.name.into());
        let text = format!("Printed by {}.", self.printed_by.replace('`', ""));
        schema.insert("description".to_owned(), text.into());
        schema
    }
}

/// Returns a file for each object.
pub(super) fn all(dir: &str) -> Result<Vec<File>> {
    let files = OBJECTS.iter().map(|object| {
        let path = Path::new(dir).join(object.name).with_extension("json");
        let text = serde_json::to_string_pretty(&object.schema())? + "\n";
        Ok((path, text))
    });
    files.collect()
}

/// Returns the tables of all objects, and then those of the types that they have in common.
pub(super) fn tables() -> String {
    let mut text = String::new();
    let mut types = BTreeMap::new();
    for object in &OBJECTS {
        let schema = object.schema();
        let name = object.name;
        text += &format!(
            "## {name}\n\nPrinted by {}. Schema: [{name}.json](schemas/{name}.json).\n\n{}\n",
            object.printed_by,
            fields(schema.as_value())
        );
        let defined = schema.as_value()["$defs"].as_object();
        for (name, schema) in defined.into_iter().flatten() {
            types.insert(name.clone(), schema.clone());
        }
    }
    text += "## Types\n\n";
    for (name, schema) in &types {
        let description = schema["description"].as_str().unwrap_or_default();
        let table = match schema["properties"].is_object() {
            true => fields(schema),
            false => values(schema),
        };
        text += &format!("### {name}\n\n{description}\n\n{table}\n");
    }
    text.trim_end().to_owned() + "\n"
}

/// Returns the kinds of events as a table.
pub(super) fn event_kinds() -> String {
    let schema = generate::<freezer_guard::guard::What>();
    values(schema.as_value())
}

/// Returns the fields of an event and of its incident as tables.
pub(super) fn event_fields() -> String {
    let (event, incident) = (schema::<Event>(), generate::<Incident>());
    format!(
        "{}\nThe fields of `by`:\n\n{}",
        fields(event.as_value()),
        fields(incident.as_value())
    )
    // The types have their headings there.
    .replace("](#", "](json.md#")
}

fn fields(schema: &Value) -> String {
    let mut table = "| field | type | meaning |\n|---|---|---|\n".to_owned();
    let required = |name: &str| {
        let names = schema["required"].as_array();
        names.is_some_and(|names| names.iter().any(|required| required == name))
    };
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let description = property["description"].as_str().unwrap_or_default();
        let optional = if required(name) { "" } else { ", optional" };
        table += &format!(
            "| `{name}` | {}{optional} | {} |\n",
            kind(property),
            description
        );
    }
    table
}

fn values(schema: &Value) -> String {
    let mut table = "| value | meaning |\n|---|---|\n".to_owned();
    for variant in schema["oneOf"].as_array().into_iter().flatten() {
        let value = variant["const"].as_str().unwrap_or_default();
        let description = variant["description"].as_str().unwrap_or_default();
        table += &format!("| `{value}` | {description} |\n");
    }
    table
}

fn joined(text: &str) -> String {
    text.replace('\n', " ")
}

/// Returns the type in words.
fn kind(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(variants) = schema["anyOf"].as_array() {
        let kinds: Vec<_> = variants.iter().map(kind).collect();
        return kinds.join(" or ");
    }
    match &schema["type"] {
        Value::Array(kinds) => {
            let kinds: Vec<_> = kinds
                .iter()
                .map(|one| {
                    let mut schema = schema.clone();
                    schema["type"] = one.clone();
                    kind(&schema)
                })
                .collect();
            kinds.join(" or ")
        }
        Value::String(name) => match &**name {
            "array" => format!("list of {}", kind(&schema["items"])),
            "object" if schema["additionalProperties"].is_object() => {
                format!("map to {}", kind(&schema["additionalProperties"]))
            }
            name => name.to_owned(),
        },
        _ => String::new(),
    }
}
