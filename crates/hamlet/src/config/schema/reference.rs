//! The reference page from the table: `docs/reference/configuration.md`. Committed and compared in
//! a test; nobody edits it by hand.
//!
//! Invariant: every key of every kind is on the page.

use std::fmt::Write as _;

use super::{API_VERSION, Field, KINDS, Kind, METADATA, Need, Object, Shape};
use crate::config::scalar::{FORMATS, PATH};

/// The whole page as Markdown.
pub fn reference_markdown() -> String {
    let mut out = String::from(INTRO);
    for kind in KINDS {
        let _ = writeln!(out, "- [`{0}`](#{1}): {2}", kind.name, kind.name.to_lowercase(), kind.summary);
    }
    for kind in KINDS {
        kind_section(&mut out, kind);
    }
    out.push_str("\n## Values\n\n| value | what it looks like |\n|---|---|\n");
    for format in FORMATS {
        let _ = writeln!(out, "| {} | {} |", format.name, cell(format.doc));
    }
    out
}

const INTRO: &str = "\
# Configuration

<!-- Generated from crates/hamlet/src/config/schema/kinds/. Don't edit: HAMLET_BLESS=1 cargo test -p hamlet --test config -->

Documents in YAML: one file, or a folder with its `*.yaml` and `*.yml` files and those of its subfolders. Names that
start with a dot are left out. A file may hold several documents with `---` between them. Every document has
`apiVersion: hamlet.dev/v1`, a `kind`, a `metadata.name` and a `spec`. Unknown keys are refused, and all problems
are reported at once with file, line, column and a fix: `hamlet validate -f PATH`.

Of YAML, aliases, merge keys and tags are refused, so that every value has one place. A relative path in a document
starts at the folder of the file it stands in. JSON Schemas for editors are in [`schema/`](schema/).

A reload is atomic: the new configuration is checked whole; if there is a problem the old one keeps serving.

";

fn kind_section(out: &mut String, kind: &Kind) {
    let _ = write!(out, "\n## {}\n\n{}\n\n{}\n\n", kind.name, kind.summary, kind.doc);
    let _ = write!(out, "```yaml\n{}```\n\n", kind.example);
    out.push_str("| key | value | without it | |\n|---|---|---|---|\n");
    let _ = writeln!(out, "| `apiVersion` | `{API_VERSION}` | required | |");
    let _ = writeln!(out, "| `kind` | `{}` | required | |", kind.name);
    let _ = writeln!(out, "| `metadata.name` | {} | required | {} |", kind.name_format.name, kind.name_doc);
    rows(out, "metadata", &METADATA);
    rows(out, "spec", &kind.spec);
}

fn rows(out: &mut String, path: &str, object: &Object) {
    for field in object.fields {
        let path = format!("{path}.{}", field.key);
        let without = match (field.need, &field.shape) {
            (Need::Required, _) => "required".to_owned(),
            (Need::Optional, Shape::Object(inner))
                if inner.fields.iter().any(|f| f.need != Need::Required) =>
            {
                "see below".to_owned()
            }
            (Need::Optional, _) => "none".to_owned(),
            (Need::Default(text), Shape::List { .. }) => format!("`[{}]`", text.replace(' ', ", ")),
            (Need::Default(text), _) => format!("`{text}`"),
        };
        let doc = format!("{} Example: `{}`", field.doc, field.example);
        let _ = writeln!(out, "| `{path}` | {} | {without} | {} |", cell(&value(field)), cell(&doc));
        nested(out, &path, &field.shape);
    }
}

fn nested(out: &mut String, path: &str, shape: &Shape) {
    match shape {
        Shape::Object(inner) | Shape::TextOr(_, inner) => rows(out, path, inner),
        Shape::List { item, .. } => nested(out, &format!("{path}[]"), item),
        _ => {}
    }
}

fn value(field: &Field) -> String {
    match &field.shape {
        Shape::Text(format) if std::ptr::eq(*format, &PATH) => "path".to_owned(),
        shape => noun(shape),
    }
}

fn noun(shape: &Shape) -> String {
    match shape {
        Shape::Text(format) => format.name.to_owned(),
        Shape::Bool => "`true` or `false`".to_owned(),
        Shape::Integer(min, max) => format!("{min} to {max}"),
        Shape::Choice(words) => {
            let words: Vec<String> = words.iter().map(|(w, doc)| format!("`{w}` ({doc})")).collect();
            words.join(", ")
        }
        Shape::List { item: item @ Shape::Object(_), .. } => format!("list of {}s", noun(item)),
        Shape::List { item, .. } => format!("list of: {}", noun(item)),
        Shape::Map { key, value, .. } => format!("{} to {}", key.name, noun(value)),
        Shape::Object(_) => "mapping".to_owned(),
        Shape::TextOr(format, _) => format!("{} or mapping", format.name),
    }
}

/// Text for one table cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
