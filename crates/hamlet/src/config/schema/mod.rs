//! The configuration's schema as one declarative table. The walk, the defaults, the JSON Schema and
//! the reference page are all made from it, so that they can't disagree.
//!
//! Not here: what needs more than one value (references, uniqueness); that is `config::check`.
//!
//! Invariant: a key that the table doesn't have is refused; a default in the table passes its own
//! check (a test walks the table).

mod json;
mod kinds;
mod reference;

pub use json::{json_schema, json_schema_all};
pub use kinds::{IMPORT, KINDS, MESH, PEER, PUBLICATION, SERVICE};
pub use reference::reference_markdown;

pub use super::scalar::Format;

/// The only API version there is.
pub const API_VERSION: &str = "hamlet.dev/v1";

/// One kind of document.
#[derive(Debug)]
pub struct Kind {
    /// Its name, as in `kind:`.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What a person should know before writing one.
    pub doc: &'static str,
    /// What `metadata.name` can be.
    pub name_format: &'static Format,
    /// What `metadata.name` means.
    pub name_doc: &'static str,
    /// `spec`.
    pub spec: Object,
    /// A whole document that loads.
    pub example: &'static str,
}

/// A mapping with known keys.
#[derive(Debug)]
pub struct Object {
    /// The keys, in the order of the reference.
    pub fields: &'static [Field],
}

impl Object {
    /// The field of a key.
    pub fn field(&self, key: &str) -> Option<&'static Field> {
        self.fields.iter().find(|f| f.key == key)
    }
}

/// One key.
#[derive(Debug)]
pub struct Field {
    /// As written.
    pub key: &'static str,
    /// What may stand there.
    pub shape: Shape,
    /// Whether it has to.
    pub need: Need,
    /// What it does.
    pub doc: &'static str,
    /// A value as one would write it (flow style), used in fixes and the reference.
    pub example: &'static str,
}

/// Whether a key has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It must.
    Required,
    /// It may.
    Optional,
    /// It may; this is the value without it.
    Default(&'static str),
}

/// What may stand at a place.
#[derive(Debug)]
pub enum Shape {
    /// A text of a format.
    Text(&'static Format),
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds, inclusive.
    Integer(u64, u64),
    /// One of some words, each with its meaning.
    Choice(&'static [(&'static str, &'static str)]),
    /// A list with at least `min` and at most `max` items.
    List {
        /// What each item is.
        item: &'static Shape,
        /// Fewest items.
        min: usize,
        /// Most items.
        max: usize,
    },
    /// A mapping with free keys.
    Map {
        /// What a key is.
        key: &'static Format,
        /// What a value is.
        value: &'static Shape,
        /// Most entries.
        max: usize,
    },
    /// A mapping with known keys.
    Object(&'static Object),
    /// A text as the short form of a mapping.
    TextOr(&'static Format, &'static Object),
}

impl Shape {
    /// What belongs there, for a message.
    pub fn noun(&self) -> &'static str {
        match self {
            Shape::Text(_) | Shape::Choice(_) => "text",
            Shape::Bool => "true or false",
            Shape::Integer(..) => "a whole number",
            Shape::List { .. } => "a list",
            Shape::Map { .. } | Shape::Object(_) => "a mapping",
            Shape::TextOr(..) => "text or a mapping",
        }
    }
}

/// The kind of a name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().copied().find(|k| k.name == name)
}

/// `metadata` without `name`, the same for every kind.
pub static METADATA: Object = Object {
    fields: &[
        Field {
            key: "labels",
            shape: Shape::Map {
                key: &super::scalar::LABEL_KEY,
                value: &Shape::Text(&super::scalar::TEXT),
                max: 64,
            },
            need: Need::Optional,
            doc: "Labels. Those of a `Service` are offered with it, and publications select by them.",
            example: "{team: payments}",
        },
        Field {
            key: "annotations",
            shape: Shape::Map {
                key: &super::scalar::TEXT,
                value: &Shape::Text(&super::scalar::DESCRIPTION),
                max: 64,
            },
            need: Need::Optional,
            doc: "Notes for people and tools. Hamlet reads none and offers none.",
            example: "{owner: jane}",
        },
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    fn check_default(path: &str, shape: &Shape, text: &str) {
        let right = match shape {
            Shape::Text(format) => (format.check)(text).is_ok(),
            Shape::Bool => matches!(text, "true" | "false"),
            Shape::Integer(min, max) => text.parse::<u64>().is_ok_and(|n| (*min..=*max).contains(&n)),
            Shape::Choice(words) => words.iter().any(|(w, _)| *w == text),
            Shape::List { item, .. } => {
                for part in text.split(' ') {
                    check_default(path, item, part);
                }
                true
            }
            _ => false,
        };
        assert!(right, "the default {text:?} of {path} breaks its own rule");
    }

    fn walk(path: &str, object: &Object) {
        for field in object.fields {
            let path = format!("{path}.{}", field.key);
            assert!(!field.doc.is_empty() && !field.example.is_empty(), "{path} has no doc or example");
            if let Need::Default(text) = field.need {
                check_default(&path, &field.shape, text);
            }
            match &field.shape {
                Shape::Object(inner) | Shape::TextOr(_, inner) => walk(&path, inner),
                Shape::List { item: Shape::Object(inner) | Shape::TextOr(_, inner), .. } => {
                    walk(&path, inner)
                }
                _ => {}
            }
        }
    }

    #[test]
    fn every_field_has_a_doc_and_an_example_and_every_default_passes_its_own_check() {
        for kind in KINDS {
            walk(kind.name, &kind.spec);
        }
        walk("metadata", &METADATA);
    }
}
