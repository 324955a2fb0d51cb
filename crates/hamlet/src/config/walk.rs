//! Walks a document along the schema's table and reports everything that is wrong with it alone:
//! types, unknown, doubled and missing keys, bad values. It changes nothing and stops at nothing.
//!
//! Invariant: a value that the walk doesn't report can be read by [`super::raw`].

use std::collections::HashMap;

use super::problem::{Collector, Mark};
use super::scalar::Format;
use super::schema::{self, API_VERSION, Field, Kind, METADATA, Need, Object, Shape};
use super::tree::{Entry, Node, Plain, Value, plain_kind};

/// What the walk found out about one document.
pub(super) struct Head {
    pub(super) kind: &'static Kind,
    /// `Kind/name`, or `Kind` without a usable name.
    pub(super) label: String,
    /// The name and its place, if it is right.
    pub(super) name: Option<(String, Mark)>,
    /// Its first key: where to say that something of the document is missing.
    pub(super) mark: Mark,
}

/// Walks one document; `None` if it isn't one of ours.
pub(super) fn document(node: &Node, problems: &mut Collector) -> Option<Head> {
    let Value::Map(entries) = &node.value else {
        if !matches!(node.value, Value::Refused) {
            let message = format!("a document is a mapping, not {}", node.noun());
            problems.error(node.mark, "", message, "start it with `apiVersion: hamlet.dev/v1` and `kind:`");
        }
        return None;
    };
    let mark = entries.first().map_or(node.mark, |e| e.mark);
    if let Some(version) = foreign(node) {
        let message =
            format!("this is another program's document: unknown version `{}`", shortened(version.0));
        let fix = format!(
            "keep it outside of this folder, or write `apiVersion: {API_VERSION}` and one of our kinds"
        );
        problems.error(version.1, "apiVersion", message, fix);
        return None;
    }
    let kind = kind(node, mark, problems);
    let name = kind.and_then(|k| name_text(node, k));
    let kind_name = shortened(node.get("kind").and_then(|e| text_of(&e.node)).unwrap_or_default());
    let label = match &name {
        Some((name, _)) => format!("{kind_name}/{name}"),
        None => kind_name,
    };
    api_version(node, mark, &label, problems);
    let kind = kind?;
    let mut walk = Walk { problems, label: &label };
    walk.keys(entries, "", &["apiVersion", "kind", "metadata", "spec"]);
    walk.metadata(node, kind, mark);
    match node.get("spec") {
        Some(entry) => walk.object(&kind.spec, &entry.node, entry.mark, "spec", &[]),
        None => walk.missing(mark, "spec", "spec", "add `spec:` with its keys below"),
    }
    Some(Head { kind, label, name, mark })
}

fn text_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } => Some(text),
        _ => None,
    }
}

fn kind(node: &Node, mark: Mark, problems: &mut Collector) -> Option<&'static Kind> {
    let names: Vec<&str> = schema::KINDS.iter().map(|k| k.name).collect();
    let known = || format!("write one of {}", names.join(", "));
    let Some(entry) = node.get("kind") else {
        problems.error(mark, "kind", "`kind` is missing", known());
        return None;
    };
    let Some(text) = text_of(&entry.node) else {
        let message = format!("`kind` is text, not {}", entry.node.noun());
        problems.error(entry.node.mark, "kind", message, known());
        return None;
    };
    let found = schema::kind(text);
    if found.is_none() {
        let fix = suggestion(text, names.iter().copied()).unwrap_or_else(known);
        problems.error(entry.node.mark, "kind", format!("unknown kind `{}`", shortened(text)), fix);
    }
    found
}

/// The version of a document that strayed in from another program: neither its version nor its kind
/// is ours, so what else stands in it says nothing to us.
fn foreign(node: &Node) -> Option<(&str, Mark)> {
    let entry = node.get("apiVersion")?;
    let version = text_of(&entry.node).filter(|v| !v.starts_with("hamlet"))?;
    let kind = node.get("kind").and_then(|e| text_of(&e.node));
    kind.and_then(schema::kind).is_none().then_some((version, entry.node.mark))
}

/// Reports a missing or wrong version.
fn api_version(node: &Node, mark: Mark, label: &str, problems: &mut Collector) {
    let path = format!("{label} apiVersion");
    let path = path.trim_start();
    let fix = format!("write `apiVersion: {API_VERSION}`");
    let Some(entry) = node.get("apiVersion") else {
        return problems.error(mark, path, "`apiVersion` is missing", fix);
    };
    match text_of(&entry.node) {
        Some(API_VERSION) => {}
        Some(other) => {
            problems.error(entry.node.mark, path, format!("unknown version `{}`", shortened(other)), fix);
        }
        None => {
            let message = format!("`apiVersion` is text, not {}", entry.node.noun());
            problems.error(entry.node.mark, path, message, fix);
        }
    }
}

/// The name if it is right; wrong ones are reported by the walk of `metadata`.
fn name_text(node: &Node, kind: &Kind) -> Option<(String, Mark)> {
    let entry = node.get("metadata")?.node.get("name")?;
    let Value::Scalar { text, plain } = &entry.node.value else { return None };
    let is_text = !plain || plain_kind(text) == Plain::Text;
    (is_text && (kind.name_format.check)(text).is_ok()).then(|| (text.clone(), entry.node.mark))
}

struct Walk<'w> {
    problems: &'w mut Collector,
    label: &'w str,
}

impl Walk<'_> {
    fn error(&mut self, mark: Mark, path: &str, message: impl Into<String>, fix: impl Into<String>) {
        self.problems.error(mark, &format!("{} {path}", self.label), message, fix);
    }

    fn missing(&mut self, mark: Mark, path: &str, key: &str, fix: impl Into<String>) {
        self.error(mark, path, format!("`{key}` is missing"), fix);
    }

    fn metadata(&mut self, node: &Node, kind: &Kind, mark: Mark) {
        let fix = format!("add `name:` under `metadata`; {}", kind.name_format.fix);
        let Some(entry) = node.get("metadata") else {
            return self.missing(mark, "metadata.name", "metadata.name", fix);
        };
        self.object(&METADATA, &entry.node, entry.mark, "metadata", &["name"]);
        if matches!(entry.node.value, Value::Map(_) | Value::Null) {
            match entry.node.get("name") {
                Some(name) => self.text(kind.name_format, &name.node, "metadata.name"),
                None => self.missing(entry.mark, "metadata.name", "metadata.name", fix),
            }
        }
    }

    /// Unknown and doubled keys.
    fn keys(&mut self, entries: &[Entry], path: &str, known: &[&str]) {
        self.doubled(entries, path);
        for entry in entries.iter().filter(|e| !known.contains(&e.key.as_str())) {
            let fix = suggestion(&entry.key, known.iter().copied())
                .unwrap_or_else(|| format!("remove it; the keys here are {}", known.join(", ")));
            self.error(entry.mark, &join(path, &entry.key), format!("unknown key `{}`", entry.key), fix);
        }
    }

    fn doubled(&mut self, entries: &[Entry], path: &str) {
        let mut seen: HashMap<&str, Mark> = HashMap::with_capacity(entries.len());
        for entry in entries {
            if let Some(first) = seen.get(entry.key.as_str()) {
                let message =
                    format!("the key `{}` stands twice; the first is on line {}", entry.key, first.line);
                self.error(entry.mark, &join(path, &entry.key), message, "keep one of the two");
            } else {
                seen.insert(&entry.key, entry.mark);
            }
        }
    }

    /// `also` are keys that the caller looks after itself.
    fn object(&mut self, object: &'static Object, node: &Node, mark: Mark, path: &str, also: &[&str]) {
        let entries: &[Entry] = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            Value::Refused => return,
            Value::Scalar { .. } | Value::List(_) => {
                let keys: Vec<&str> =
                    also.iter().copied().chain(object.fields.iter().map(|f| f.key)).collect();
                let fix = format!("write a mapping with the keys {}", keys.join(", "));
                return self.error(
                    node.mark,
                    path,
                    format!("expected a mapping, found {}", node.noun()),
                    fix,
                );
            }
        };
        let known: Vec<&str> = also.iter().copied().chain(object.fields.iter().map(|f| f.key)).collect();
        self.keys(entries, path, &known);
        for field in object.fields {
            let path = join(path, field.key);
            match entries.iter().find(|e| e.key == field.key) {
                Some(entry) => self.field(field, entry, &path),
                None if field.need == Need::Required => {
                    self.missing(mark, &path, field.key, format!("add `{}: {}`", field.key, field.example));
                }
                None => {}
            }
        }
    }

    fn field(&mut self, field: &'static Field, entry: &Entry, path: &str) {
        let may_be_empty = match field.shape {
            Shape::Object(_) | Shape::Map { .. } => true,
            Shape::List { min, .. } => min == 0,
            _ => false,
        };
        let null = matches!(entry.node.value, Value::Null);
        if null && !(may_be_empty && field.need != Need::Required) && !matches!(field.shape, Shape::Object(_))
        {
            let fix = match field.need {
                Need::Required => format!("write `{}: {}`", field.key, field.example),
                _ => format!("write `{}: {}`, or remove the key", field.key, field.example),
            };
            return self.error(entry.mark, path, format!("`{}` has no value", field.key), fix);
        }
        if null && field.need != Need::Required {
            return;
        }
        self.shape(&field.shape, &entry.node, entry.mark, path, field.example);
    }

    fn shape(&mut self, shape: &'static Shape, node: &Node, mark: Mark, path: &str, example: &str) {
        match (shape, &node.value) {
            (_, Value::Refused) => {}
            (Shape::Text(format), _) => self.text(format, node, path),
            (Shape::Choice(words), Value::Scalar { text, .. }) => self.choice(words, text, node.mark, path),
            (Shape::Bool, Value::Scalar { text, plain: true })
                if matches!(text.as_str(), "true" | "false") => {}
            (Shape::Bool, _) => self.wrong_type(shape, node, path, "write true or false, without quotes"),
            (Shape::Integer(min, max), Value::Scalar { text, plain: true })
                if plain_kind(text) == Plain::Integer =>
            {
                if !whole_number(text).is_some_and(|n| (*min..=*max).contains(&n)) {
                    let message = format!("{text} is not between {min} and {max}");
                    self.error(node.mark, path, message, format!("write a whole number from {min} to {max}"));
                }
            }
            (Shape::Integer(min, max), _) => {
                self.wrong_type(
                    shape,
                    node,
                    path,
                    &format!("write a number from {min} to {max}, without quotes"),
                );
            }
            (Shape::List { item, min, max }, Value::List(items)) => {
                self.size(items.len(), *min, *max, mark, path, example);
                for (i, node) in items.iter().enumerate() {
                    self.shape(item, node, node.mark, &format!("{path}[{i}]"), example);
                }
            }
            (Shape::Map { key, value, max }, Value::Map(entries)) => {
                self.size(entries.len(), 0, *max, mark, path, example);
                self.map(key, value, entries, path);
            }
            (Shape::Object(object), Value::Map(_) | Value::Null) => {
                self.object(object, node, mark, path, &[])
            }
            (Shape::TextOr(_, object), Value::Map(_)) => self.object(object, node, node.mark, path, &[]),
            (Shape::TextOr(format, _), Value::Scalar { .. }) => self.text(format, node, path),
            _ => self.wrong_type(shape, node, path, &format!("write it like this: {example}")),
        }
    }

    fn wrong_type(&mut self, shape: &Shape, node: &Node, path: &str, fix: &str) {
        let message = format!("expected {}, found {}", shape.noun(), node.noun());
        self.error(node.mark, path, message, fix);
    }

    fn size(&mut self, len: usize, min: usize, max: usize, mark: Mark, path: &str, example: &str) {
        if len < min {
            self.error(
                mark,
                path,
                "the list is empty",
                format!("list at least {min}, for example {example}"),
            );
        } else if len > max {
            self.error(
                mark,
                path,
                format!("{len} entries; at most {max} are possible"),
                "remove some of them",
            );
        }
    }

    fn map(&mut self, key: &'static Format, value: &'static Shape, entries: &[Entry], path: &str) {
        self.doubled(entries, path);
        for entry in entries {
            let path = join(path, &entry.key);
            if let Err(why) = (key.check)(&entry.key) {
                self.error(
                    entry.mark,
                    &path,
                    format!("`{}` is not a valid {}: {why}", shortened(&entry.key), key.name),
                    key.fix,
                );
            }
            if matches!(entry.node.value, Value::Null) {
                self.error(
                    entry.mark,
                    &path,
                    format!("`{}` has no value", entry.key),
                    "give it a value; \"\" is empty text",
                );
            } else {
                self.shape(value, &entry.node, entry.mark, &path, "a: b");
            }
        }
    }

    fn choice(&mut self, words: &[(&str, &str)], text: &str, mark: Mark, path: &str) {
        let right = words.iter().any(|(w, _)| *w == text || w.to_ascii_lowercase() == text);
        if !right {
            let known: Vec<&str> = words.iter().map(|(w, _)| *w).collect();
            let fix = suggestion(text, known.iter().copied())
                .unwrap_or_else(|| format!("write one of {}", known.join(", ")));
            let message = format!("`{}` is not one of {}", shortened(text), known.join(", "));
            self.error(mark, path, message, fix);
        }
    }

    fn text(&mut self, format: &Format, node: &Node, path: &str) {
        match &node.value {
            Value::Refused => {}
            Value::Scalar { text, plain } => {
                let kind = if *plain { plain_kind(text) } else { Plain::Text };
                let number = format.numbers && kind == Plain::Integer;
                if kind != Plain::Text && !number {
                    let quoted = format!("quote it: \"{text}\"");
                    let fix = if (format.check)(text).is_ok() { quoted } else { format.fix.to_owned() };
                    let noun = node.noun();
                    self.error(node.mark, path, format!("expected text, found {noun}: {text}"), fix);
                } else if let Err(why) = (format.check)(text) {
                    let message = format!("`{}` is not a valid {}: {why}", shortened(text), format.name);
                    self.error(node.mark, path, message, format.fix);
                }
            }
            _ => {
                let message = format!("expected text, found {}", node.noun());
                self.error(node.mark, path, message, format.fix);
            }
        }
    }
}

/// A value as a message quotes it.
fn shortened(text: &str) -> String {
    let start = hamlet_core::rejection::one_line(text, 64);
    if text.len() > 64 { format!("{start}…") } else { start }
}

fn whole_number(text: &str) -> Option<u64> {
    <u64 as super::scalar::Scalar>::read(text).ok()
}

/// A key below a path, quoted where it isn't a plain word.
fn join(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let key = hamlet_core::rejection::one_line(key, 64);
    match (path.is_empty(), plain) {
        (true, true) => key,
        (false, true) => format!("{path}.{key}"),
        (_, false) => format!("{path}[\"{key}\"]"),
    }
}

/// "did you mean": the nearest known word, if it is near.
pub(super) fn suggestion<'k>(text: &str, known: impl Iterator<Item = &'k str>) -> Option<String> {
    if text.len() > 64 {
        return None;
    }
    let lower = text.to_lowercase();
    let near = known.map(|k| (distance(&lower, &k.to_lowercase()), k)).min()?;
    let allowed = (text.chars().count() / 3).clamp(1, 3);
    (near.0 <= allowed).then(|| format!("did you mean `{}`?", near.1))
}

/// Edits between two words: insert, remove, replace, swap neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > 3 {
        return usize::MAX;
    }
    let mut before = vec![0; b.len() + 1];
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut current = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = previous[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            current[j] = change.min(previous[j] + 1).min(current[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                current[j] = current[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut previous, current);
    }
    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_quotes_keys_that_are_not_plain_words() {
        assert_eq!(join("spec", "peer"), "spec.peer");
        assert_eq!(join("spec.ports", "a.b/c"), "spec.ports[\"a.b/c\"]");
    }

    #[test]
    fn a_near_word_is_suggested_and_a_far_one_is_not() {
        let known = ["address", "trustDomain", "agentIds", "paused"];
        for (text, expected) in [
            ("adress", Some("address")),
            ("trustdomain", Some("trustDomain")),
            ("agnetIds", Some("agentIds")),
            ("pause", Some("paused")),
            ("colour", None),
            ("x", None),
            ("", None),
        ] {
            let found = suggestion(text, known.iter().copied());
            assert_eq!(found, expected.map(|e| format!("did you mean `{e}`?")), "{text}");
        }
    }
}
