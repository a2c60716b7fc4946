//! The JSON objects that the command line prints, and the version of their format.

use schemars::JsonSchema;
use serde::Serialize;

/// The version of every JSON object of the command line. A new field keeps it. It changes only if
/// a field gets another meaning or another type, or is removed.
pub const VERSION: u32 = 1;

/// A JSON object with the version of its format as its first field.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Versioned<T> {
    /// The version of the format. A new field keeps it, so ignore fields that you do not know.
    version: u32,
    #[serde(flatten)]
    object: T,
}

impl<T> Versioned<T> {
    /// Puts the version in front of an object.
    pub const fn new(object: T) -> Self {
        Self {
            version: VERSION,
            object,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Versioned;

    #[test]
    fn the_version_comes_first_and_the_fields_stay() {
        #[derive(serde::Serialize)]
        struct Guards {
            guards: [u8; 0],
        }
        let text = serde_json::to_string(&Versioned::new(Guards { guards: [] })).ok();
        // packaging/debian/prerm looks for `"guards":[]`.
        assert_eq!(text.as_deref(), Some(r#"{"version":1,"guards":[]}"#));
    }
}
