//! Text to a tree that knows where everything stands. Knows YAML, not our kinds.
//!
//! A part of YAML is refused on purpose, each with a problem at its place: aliases and merge keys
//! (their value has two places), tags, keys that aren't text, and deep nesting. After a syntax
//! error the reading goes on at the next `---`, so that one slip doesn't hide the others.
//!
//! Invariant: any text is read without a panic, in time and memory proportional to its size.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};

use super::problem::{Collector, Mark};

/// Deepest nesting of lists and mappings; our kinds need less than ten.
const DEPTH_MAX: usize = 32;

/// One value with its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) value: Value,
}

/// What stands there.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A text; `plain` if it had no quotes, so that it may be a number or a truth value.
    Scalar { text: String, plain: bool },
    /// A list.
    List(Vec<Node>),
    /// A mapping in written order, duplicates included.
    Map(Vec<Entry>),
    /// Something that was refused and reported already.
    Refused,
}

/// One entry of a mapping.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) mark: Mark,
    pub(super) node: Node,
}

/// What a plain scalar is in YAML's core schema, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    Text,
    Bool,
    Integer,
    Float,
}

impl Node {
    /// The entry of a mapping; the first, if the key stands twice.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key),
            _ => None,
        }
    }

    /// What the value is called in a message.
    pub(super) fn noun(&self) -> &'static str {
        match &self.value {
            Value::Null => "nothing",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Refused => "a refused value",
            Value::Scalar { text, plain: true } => match plain_kind(text) {
                Plain::Text => "text",
                Plain::Bool => "a truth value",
                Plain::Integer => "a number",
                Plain::Float => "a fraction",
            },
            Value::Scalar { .. } => "text",
        }
    }
}

/// Resolves a plain scalar by YAML 1.2's core schema.
pub(super) fn plain_kind(text: &str) -> Plain {
    if matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE") {
        return Plain::Bool;
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Plain::Integer;
    }
    let radix = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0o"));
    if radix.is_some_and(|r| !r.is_empty() && r.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Plain::Integer;
    }
    let number =
        digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && digits.parse::<f64>().is_ok();
    let special = matches!(digits, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN");
    if number || special { Plain::Float } else { Plain::Text }
}

/// The lines of a text as the parser counts them: `\n`, `\r\n` and a lone `\r` each end one.
pub(super) fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text.strip_prefix('\u{feff}').unwrap_or(text));
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\n', '\r']) else {
            rest = None;
            return Some(text);
        };
        let skip = if text[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = Some(&text[end + skip..]);
        Some(&text[..end])
    })
}

/// What was read of one file.
pub(super) struct Parsed {
    /// The documents that could be read; empty ones are left out.
    pub(super) documents: Vec<Node>,
    /// Whether a part could not be read.
    pub(super) incomplete: bool,
}

/// Reads all documents of one file; syntax errors become problems.
pub(super) fn parse(file: u32, text: &str, problems: &mut Collector) -> Parsed {
    let mut parsed = Parsed { documents: Vec::new(), incomplete: false };
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(at) = rest.find('\0') {
        // The parser takes NUL for the end: what follows would silently be no part of the mesh.
        let before: Vec<&str> = lines(&rest[..at]).collect();
        let column = before.last().map_or(0, |l| l.chars().count()) + 1;
        let mark = Mark { file, line: before.len() as u32, column: column as u32, width: 1 };
        problems.error(
            mark,
            "",
            "the file has a NUL character",
            "remove it; a configuration file is UTF-8 text",
        );
        parsed.incomplete = true;
        return parsed;
    }
    let mut line_base = 0;
    loop {
        let mut builder = Builder::new(file, line_base, problems);
        let failure = builder.run(rest);
        parsed.documents.append(&mut builder.documents);
        parsed.incomplete |= builder.incomplete;
        let started = builder.document_line;
        let Some(error) = failure else { return parsed };
        parsed.incomplete = true;
        let mark = place(file, line_base, *error.marker(), 1);
        let (message, fix) = explain(&error, rest);
        problems.error(mark, "", message, fix);
        let Some((bytes, lines)) = next_document(rest, started) else { return parsed };
        rest = &rest[bytes..];
        line_base += lines;
    }
}

/// Byte offset and line count of the first `---` line after line `after` (from 1).
fn next_document(text: &str, after: u32) -> Option<(usize, u32)> {
    let origin = text.as_ptr() as usize;
    let found = lines(text)
        .enumerate()
        .skip(after.max(1) as usize)
        .find(|(_, l)| l.strip_prefix("---").is_some_and(|r| r.is_empty() || r.starts_with([' ', '\t'])))?;
    Some((found.1.as_ptr() as usize - origin, found.0 as u32))
}

fn place(file: u32, line_base: u32, marker: Marker, width: usize) -> Mark {
    Mark {
        file,
        line: line_base + marker.line().max(1) as u32,
        column: marker.col() as u32 + 1,
        width: width.max(1) as u32,
    }
}

/// The parser's words, and what to do about the usual slips.
fn explain(error: &ScanError, text: &str) -> (String, &'static str) {
    let line = lines(text).nth(error.marker().line().saturating_sub(1)).unwrap_or_default();
    let indent_has_tab = line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
    let fix = if indent_has_tab {
        "indent with spaces; YAML allows no tab there"
    } else if error.info().contains("quote") || line.matches('"').count() % 2 == 1 {
        "close the quotation mark"
    } else if error.info().contains("flow") || error.info().contains(',') {
        "close the bracket, and separate the items by commas"
    } else {
        "check the indentation and the colons here and on the line before; quote texts with special characters"
    };
    (format!("not valid YAML: {}", error.info()), fix)
}

/// A list or mapping that is still open.
enum Frame {
    List { mark: Mark, items: Vec<Node> },
    Map { mark: Mark, entries: Vec<Entry>, key: Option<Key> },
}

/// The key that waits for its value; `None` text if the key was refused.
struct Key {
    text: Option<String>,
    mark: Mark,
}

struct Builder<'p> {
    file: u32,
    line_base: u32,
    problems: &'p mut Collector,
    stack: Vec<Frame>,
    /// Open collections inside one that is too deep or a refused key.
    skipped: usize,
    documents: Vec<Node>,
    incomplete: bool,
    /// Line in this stretch where the current document began.
    document_line: u32,
}

impl<'p> Builder<'p> {
    fn new(file: u32, line_base: u32, problems: &'p mut Collector) -> Builder<'p> {
        let stack = Vec::new();
        let documents = Vec::new();
        Builder {
            file,
            line_base,
            problems,
            stack,
            skipped: 0,
            documents,
            incomplete: false,
            document_line: 1,
        }
    }

    fn run(&mut self, text: &str) -> Option<ScanError> {
        let mut parser = Parser::new_from_str(text);
        while let Some(next) = parser.next_event() {
            match next {
                Ok((event, span)) => self.event(event, span),
                Err(error) => return Some(error),
            }
        }
        None
    }

    fn mark(&self, span: Span) -> Mark {
        let width = if span.start.line() == span.end.line() { span.len() } else { 1 };
        place(self.file, self.line_base, span.start, width)
    }

    fn event(&mut self, event: Event<'_>, span: Span) {
        let mark = self.mark(span);
        match event {
            Event::DocumentStart(_) => self.document_line = span.start.line().max(1) as u32,
            Event::Alias(_) => {
                self.problems.error(
                    mark,
                    "",
                    "aliases are not read here: the value would have two places",
                    "write the value out where the alias stands",
                );
                self.incomplete = true;
                self.value(mark, Value::Refused);
            }
            Event::Scalar(text, style, _, tag) => {
                let value = self.scalar(mark, text.into_owned(), style, tag.as_deref());
                self.value(mark, value);
            }
            Event::SequenceStart(_, tag) => {
                self.tag(mark, tag.as_deref());
                self.open(mark, Frame::List { mark, items: Vec::new() });
            }
            Event::MappingStart(_, tag) => {
                self.tag(mark, tag.as_deref());
                self.open(mark, Frame::Map { mark, entries: Vec::new(), key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }

    /// Reports a tag that we don't know; `!!str` is the only one that means something here.
    fn tag(&mut self, mark: Mark, tag: Option<&Tag>) -> bool {
        let Some(tag) = tag else { return false };
        if tag.is_yaml_core_schema() && tag.suffix == "str" {
            return true;
        }
        let fix = "remove the tag, and quote the value if it should be text";
        self.problems.error(mark, "", format!("the tag {tag} is not read here"), fix);
        self.incomplete = true;
        false
    }

    fn scalar(&mut self, mark: Mark, text: String, style: ScalarStyle, tag: Option<&Tag>) -> Value {
        let tagged_text = self.tag(mark, tag);
        if tag.is_some() && !tagged_text {
            return Value::Refused;
        }
        let plain = style == ScalarStyle::Plain && !tagged_text;
        if plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") {
            return Value::Null;
        }
        Value::Scalar { text, plain }
    }

    /// Whether the next value is a key of the innermost mapping.
    fn key_is_due(&self) -> bool {
        matches!(self.stack.last(), Some(Frame::Map { key: None, .. }))
    }

    fn open(&mut self, mark: Mark, frame: Frame) {
        if self.skipped > 0 {
            self.skipped += 1;
            return;
        }
        let refusal = if self.key_is_due() {
            Some((
                "a key is a text, not a list or mapping",
                "write a plain key; quote it if it starts with [, { or ?",
            ))
        } else if self.stack.len() >= DEPTH_MAX {
            Some((
                "nested too deeply",
                "nothing here has more than a few levels: check the brackets and the indentation",
            ))
        } else {
            None
        };
        match refusal {
            None => self.stack.push(frame),
            Some((message, fix)) => {
                self.problems.error(mark, "", message, fix);
                self.incomplete = true;
                self.skipped = 1;
                self.value_here(mark, Value::Refused);
            }
        }
    }

    fn close(&mut self) {
        if self.skipped > 0 {
            self.skipped -= 1;
            return;
        }
        match self.stack.pop() {
            Some(Frame::List { mark, items }) => self.value(mark, Value::List(items)),
            Some(Frame::Map { mark, entries, .. }) => self.value(mark, Value::Map(entries)),
            None => {}
        }
    }

    fn value(&mut self, mark: Mark, value: Value) {
        if self.skipped == 0 {
            self.value_here(mark, value);
        }
    }

    fn value_here(&mut self, mark: Mark, value: Value) {
        if self.key_is_due() {
            let read = self.key(mark, value);
            if let Some(Frame::Map { key, .. }) = self.stack.last_mut() {
                *key = Some(read);
            }
            return;
        }
        match self.stack.last_mut() {
            None => {
                if !matches!(value, Value::Null) {
                    self.documents.push(Node { mark, value });
                }
            }
            Some(Frame::List { items, .. }) => items.push(Node { mark, value }),
            Some(Frame::Map { entries, key, .. }) => match key.take() {
                None | Some(Key { text: None, .. }) => {}
                Some(Key { text: Some(text), mark: key_mark }) => {
                    // An empty value has no place of its own: the key is what one looks at.
                    let mark = if matches!(value, Value::Null) { key_mark } else { mark };
                    entries.push(Entry { key: text, mark: key_mark, node: Node { mark, value } });
                }
            },
        }
    }
}

impl Builder<'_> {
    fn key(&mut self, mark: Mark, value: Value) -> Key {
        let text = match value {
            Value::Scalar { text, plain } if plain && text == "<<" => {
                let message = "merge keys are not read here: the values would have two places";
                self.problems.error(mark, "", message, "write the merged keys out");
                self.incomplete = true;
                None
            }
            Value::Scalar { text, .. } => Some(text),
            Value::Null => {
                self.problems.error(
                    mark,
                    "",
                    "a key is missing before the colon",
                    "write the key, or remove the line",
                );
                None
            }
            Value::List(_) | Value::Map(_) | Value::Refused => None,
        };
        Key { text, mark }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_text(text: &str) -> (Vec<Node>, Vec<(Mark, String)>) {
        let mut problems = Collector::default();
        let parsed = parse(0, text, &mut problems);
        let source = super::super::SourceFile { path: "x.yaml".into(), text: text.into() };
        let (list, _) = problems.finish(&[source]);
        let found = list
            .into_iter()
            .map(|p| (Mark { file: 0, line: p.line as u32, column: p.column as u32, width: 1 }, p.message))
            .collect();
        (parsed.documents, found)
    }

    fn at(node: &Node, path: &[&str]) -> (u32, u32) {
        let mut node = node;
        for key in path {
            node = match &node.value {
                Value::List(items) => &items[key.parse::<usize>().unwrap()],
                _ => &node.get(key).unwrap().node,
            };
        }
        (node.mark.line, node.mark.column)
    }

    const SAMPLE: &str = "# c\nkind: Peer\nspec:\n  a: é\n  list:\n    - x\n    - \"y\"\n  b: {c: d, e: [f]}\n  n:\n---\nsecond: 1\n";

    #[test]
    fn places_are_the_same_with_every_line_ending() {
        for (ending, bom) in [("\n", ""), ("\r\n", ""), ("\r", ""), ("\n", "\u{feff}")] {
            let (documents, problems) = parse_text(&format!("{bom}{}", SAMPLE.replace('\n', ending)));
            assert!(problems.is_empty() && documents.len() == 2, "{problems:?}");
            assert_eq!(at(&documents[0], &["kind"]), (2, 7));
            assert_eq!(at(&documents[0], &["spec", "a"]), (4, 6));
            assert_eq!(at(&documents[0], &["spec", "list", "1"]), (7, 7));
            assert_eq!(at(&documents[0], &["spec", "b", "e", "0"]), (8, 17));
            assert_eq!(at(&documents[0], &["spec", "n"]), (9, 3), "an empty value stands at its key");
            assert_eq!(at(&documents[1], &["second"]), (11, 9));
            let entry = documents[0].get("spec").unwrap();
            assert_eq!((entry.mark.line, entry.mark.column, entry.mark.width), (3, 1, 4));
        }
    }

    #[test]
    fn after_a_syntax_error_reading_goes_on_at_the_next_document() {
        let text = "a: 1\n---\nb: \"open\n---\nc: [1, 2\n---\nd: 4\n";
        let (documents, problems) = parse_text(text);
        let keys: Vec<&str> = documents
            .iter()
            .filter_map(|d| if let Value::Map(e) = &d.value { Some(e[0].key.as_str()) } else { None })
            .collect();
        assert_eq!(keys, ["a", "d"]);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn the_refused_parts_of_yaml_are_reported_at_their_place() {
        let deep = format!("a: {}{}", "[".repeat(40), "]".repeat(40));
        for (bad, line, good) in [
            ("a: &x 1\nb: *x\n", 2, "a: &x 1\nb: 1\n"),
            ("a:\n  <<: {b: 1}\n", 2, "a:\n  \"<<\": {b: 1}\n"),
            ("a: !secret b\n", 1, "a: !!str b\n"),
            ("? [a, b]\n: c\n", 1, "? a\n: c\n"),
            ("a: 1\n: 2\n", 2, "a: 1\nb: 2\n"),
            ("a: b\0c\n", 1, "a: bc\n"),
            (deep.as_str(), 1, "a: [[[[1]]]]\n"),
        ] {
            let (_, problems) = parse_text(bad);
            assert_eq!(problems.len(), 1, "{bad:?}: {problems:?}");
            assert_eq!(problems[0].0.line, line, "{bad:?}");
            let (documents, problems) = parse_text(good);
            assert!(problems.is_empty() && documents.len() == 1, "{good:?}: {problems:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,200}") {
            parse_text(&text);
        }

        #[test]
        fn any_soup_of_yaml_tokens_is_read_without_a_panic(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "a", ": ", "- ", "\n", "  ", "\t", "[", "]", "{", "}", "\"", "'", "|\n", ">", "---\n", "...\n",
                    "&a ", "*a", "!t ", "<<", "?", "#", ",", "%YAML 1.2\n", "\r\n", "\r", "é", "1", "~",
                ]),
                0..60,
            )
        ) {
            parse_text(&parts.concat());
        }
    }
}
