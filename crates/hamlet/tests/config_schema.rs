//! The published JSON Schema accepts what the loader accepts. With a small validator for the part of
//! JSON Schema that we write, so that the tests need no other implementation's dependencies.

use std::fs;
use std::path::{Path, PathBuf};

use hamlet::config::{load, schema};
use serde_json::Value;

/// Everything that is wrong with `value`; panics at a keyword that it doesn't know.
fn wrong(schema: &Value, value: &Value, at: &str, out: &mut Vec<String>) {
    let object = value.as_object();
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "title" | "description" | "default" => {}
            "type" => {
                let types: Vec<&Value> = rule.as_array().map_or(vec![rule], |a| a.iter().collect());
                note(out, at, types.iter().any(|t| is_a(t.as_str().unwrap(), value)), "type");
            }
            "const" => note(out, at, rule == value, "const"),
            "enum" => note(out, at, rule.as_array().unwrap().contains(value), "enum"),
            "minimum" => note(out, at, value.as_u64() >= rule.as_u64(), "minimum"),
            "maximum" => note(out, at, value.as_u64() <= rule.as_u64(), "maximum"),
            "minItems" => note(
                out,
                at,
                value.as_array().is_none_or(|a| a.len() as u64 >= rule.as_u64().unwrap()),
                "minItems",
            ),
            "maxItems" => note(
                out,
                at,
                value.as_array().is_none_or(|a| a.len() as u64 <= rule.as_u64().unwrap()),
                "maxItems",
            ),
            "maxProperties" => note(
                out,
                at,
                object.is_none_or(|o| o.len() as u64 <= rule.as_u64().unwrap()),
                "maxProperties",
            ),
            "required" => {
                for key in rule.as_array().unwrap() {
                    note(out, at, object.is_none_or(|o| o.contains_key(key.as_str().unwrap())), "required");
                }
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                for (key, inner) in object.into_iter().flatten() {
                    if known.is_some_and(|k| k.contains_key(key)) {
                        continue;
                    }
                    match rule {
                        Value::Bool(false) => out.push(format!("{at}.{key}: unknown")),
                        rule => wrong(rule, inner, &format!("{at}.{key}"), out),
                    }
                }
            }
            "properties" => {
                for (key, rule) in rule.as_object().unwrap() {
                    if let Some(inner) = object.and_then(|o| o.get(key)) {
                        wrong(rule, inner, &format!("{at}.{key}"), out);
                    }
                }
            }
            "items" => {
                for (i, inner) in value.as_array().into_iter().flatten().enumerate() {
                    wrong(rule, inner, &format!("{at}[{i}]"), out);
                }
            }
            "oneOf" => {
                let fits = |rule: &&Value| {
                    let mut found = Vec::new();
                    wrong(rule, value, at, &mut found);
                    found.is_empty()
                };
                let count = rule.as_array().unwrap().iter().filter(fits).count();
                out.extend((count != 1).then(|| format!("{at}: oneOf")));
            }
            // Patterns are looser than the formats' own checks, which other tests cover.
            "pattern" | "propertyNames" => {}
            other => panic!("{at}: the validator doesn't know {other}"),
        }
    }
}

fn note(out: &mut Vec<String>, at: &str, right: bool, what: &str) {
    if !right {
        out.push(format!("{at}: {what}"));
    }
}

fn is_a(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "null" => value.is_null(),
        other => panic!("unknown type {other}"),
    }
}

fn problems_of(document: &Value) -> Vec<String> {
    let kind = document["kind"].as_str().unwrap_or("Mesh");
    let Some(schema) = schema::json_schema(kind) else { return vec![format!("unknown kind {kind}")] };
    let mut found = Vec::new();
    wrong(&schema, document, kind, &mut found);
    found
}

fn documents(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    // YAML 1.2, as we and the editors' language server read it: `off` is a text.
    let options = serde_saphyr::options! { strict_booleans: true };
    let read: Vec<Value> = serde_saphyr::from_multiple_with_options(&text, options)
        .unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    read.into_iter().filter(|d| !d.is_null()).collect()
}

fn yaml_files(folder: &Path, side: Option<&str>, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            yaml_files(&path, side, found);
        } else if path.extension().is_some_and(|e| e == "yaml")
            && side.is_none_or(|s| path.components().any(|c| c.as_os_str() == s))
        {
            found.push(path);
        }
    }
}

#[test]
fn what_the_loader_accepts_the_schema_accepts() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    yaml_files(&here.join("tests/golden/config"), Some("good"), &mut files);
    yaml_files(&here.join("tests/golden/config/base"), None, &mut files);
    yaml_files(&here.join("../../examples"), None, &mut files);
    let mut count = 0;
    for file in files {
        for document in documents(&file) {
            count += 1;
            assert_eq!(problems_of(&document), Vec::<String>::new(), "{}", file.display());
        }
    }
    assert!(count > 60, "{count} documents");
}

#[test]
fn the_schema_refuses_unknown_keys_wrong_types_and_missing_keys() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let peer = documents(&here.join("tests/golden/config/base/peer.yaml")).remove(0);
    assert_eq!(problems_of(&peer), Vec::<String>::new());
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = peer.clone();
        change(&mut changed);
        problems_of(&changed)
    };
    assert_eq!(with(&|p| p["spec"]["colour"] = "blue".into()), ["Peer.spec.colour: unknown"]);
    assert_eq!(with(&|p| p["spec"]["agentIds"] = "x".into()), ["Peer.spec.agentIds: type"]);
    assert_eq!(with(&|p| p["spec"]["paused"] = "true".into()), ["Peer.spec.paused: type"]);
    assert_eq!(
        with(&|p| p["spec"]["guard"] = serde_json::json!({"percent": 0})),
        ["Peer.spec.guard.percent: minimum"]
    );
    let missing = with(&|p| {
        p["spec"].as_object_mut().unwrap().remove("trust");
    });
    assert_eq!(missing, ["Peer.spec: required"]);
    assert!(load(&here.join("tests/golden/config/base")).is_ok());
}
