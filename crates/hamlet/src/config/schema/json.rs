//! JSON Schema (2020-12) from the table, for editors. Looser than the check: references, uniqueness
//! and a few formats can't be said in it.
//!
//! Invariant: what [`super::super::load`] accepts, the schema accepts (a test compares the two).

use serde_json::{Map, Value, json};

use super::{API_VERSION, Field, KINDS, Kind, METADATA, Need, Object, Shape};
use crate::config::scalar::Format;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of one kind; `None` if there is no such kind.
pub fn json_schema(kind: &str) -> Option<Value> {
    let kind = super::kind(kind)?;
    let mut schema = Map::new();
    schema.insert("$schema".into(), DIALECT.into());
    schema.insert("title".into(), format!("{} ({API_VERSION})", kind.name).into());
    schema.extend(kind_body(kind));
    Some(Value::Object(schema))
}

/// One schema that takes every kind, chosen by `kind`.
pub fn json_schema_all() -> Value {
    let names: Vec<Value> = KINDS.iter().map(|k| k.name.into()).collect();
    let rules: Vec<Value> = KINDS
        .iter()
        .map(|k| {
            json!({
                "if": {"properties": {"kind": {"const": k.name}}},
                "then": {"$ref": format!("#/$defs/{}", k.name)},
            })
        })
        .collect();
    let defs: Map<String, Value> =
        KINDS.iter().map(|k| (k.name.to_owned(), Value::Object(kind_body(k)))).collect();
    json!({
        "$schema": DIALECT,
        "title": format!("Hamlet configuration document ({API_VERSION})"),
        "type": "object",
        "required": ["apiVersion", "kind"],
        "properties": {"kind": {"enum": names}},
        "allOf": rules,
        "$defs": defs,
    })
}

fn kind_body(kind: &Kind) -> Map<String, Value> {
    let mut metadata = object(&METADATA);
    if let Some(properties) = metadata.get_mut("properties").and_then(Value::as_object_mut) {
        let mut name = format(kind.name_format);
        name.insert("description".into(), kind.name_doc.into());
        properties.insert("name".into(), Value::Object(name));
    }
    metadata.insert("required".into(), json!(["name"]));
    let body = json!({
        "description": kind.summary,
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": false,
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": kind.name},
            "metadata": metadata,
            "spec": object(&kind.spec),
        },
    });
    match body {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn object(object: &Object) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("type".into(), "object".into());
    let required: Vec<Value> =
        object.fields.iter().filter(|f| f.need == Need::Required).map(|f| f.key.into()).collect();
    if !required.is_empty() {
        out.insert("required".into(), required.into());
    }
    out.insert("additionalProperties".into(), false.into());
    let properties: Map<String, Value> = object.fields.iter().map(|f| (f.key.to_owned(), field(f))).collect();
    out.insert("properties".into(), properties.into());
    out
}

fn field(field: &Field) -> Value {
    let mut out = Map::new();
    out.insert("description".into(), field.doc.into());
    out.extend(shape(&field.shape));
    if let Need::Default(text) = field.need {
        let value: Value = match &field.shape {
            Shape::List { .. } => text.split(' ').collect(),
            Shape::Bool => (text == "true").into(),
            Shape::Integer(..) => text.parse::<u64>().map_or(Value::Null, Value::from),
            _ => text.into(),
        };
        out.insert("default".into(), value);
    }
    // A mapping or list that is written without a value counts as absent.
    let may_be_empty = field.need != Need::Required
        && matches!(field.shape, Shape::Object(_) | Shape::Map { .. } | Shape::List { min: 0, .. });
    if may_be_empty && let Some(kind) = out.get("type").cloned() {
        out.insert("type".into(), json!([kind, "null"]));
    }
    Value::Object(out)
}

fn shape(shape: &Shape) -> Map<String, Value> {
    let mut out = Map::new();
    match shape {
        Shape::Text(f) => return format(f),
        Shape::Bool => {
            out.insert("type".into(), "boolean".into());
        }
        Shape::Integer(min, max) => {
            out.insert("type".into(), "integer".into());
            out.insert("minimum".into(), (*min).into());
            out.insert("maximum".into(), (*max).into());
        }
        Shape::Choice(words) => {
            // The walk takes upper-case words in lower case as well.
            let lower = words.iter().map(|(w, _)| w.to_ascii_lowercase());
            let lower = lower.filter(|l| words.iter().all(|(w, _)| w != l));
            let all: Vec<Value> =
                words.iter().map(|(w, _)| (*w).into()).chain(lower.map(Value::from)).collect();
            out.insert("enum".into(), all.into());
        }
        Shape::List { item, min, max } => {
            out.insert("type".into(), "array".into());
            out.insert("items".into(), Value::Object(self::shape(item)));
            out.insert("minItems".into(), (*min).into());
            out.insert("maxItems".into(), (*max).into());
        }
        Shape::Map { key, value, max } => {
            out.insert("type".into(), "object".into());
            if let Some(pattern) = key.pattern {
                out.insert("propertyNames".into(), json!({"pattern": pattern}));
            }
            out.insert("additionalProperties".into(), Value::Object(self::shape(value)));
            out.insert("maxProperties".into(), (*max).into());
        }
        Shape::Object(inner) => return object(inner),
        Shape::TextOr(text, inner) => {
            let both = vec![Value::Object(format(text)), Value::Object(object(inner))];
            out.insert("oneOf".into(), both.into());
        }
    }
    out
}

fn format(format: &Format) -> Map<String, Value> {
    let mut out = Map::new();
    let kind = if format.numbers { json!(["string", "integer"]) } else { json!("string") };
    out.insert("type".into(), kind);
    if let Some(pattern) = format.pattern {
        out.insert("pattern".into(), pattern.into());
    }
    out
}
