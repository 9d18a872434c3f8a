//! YAML text as a tree of nodes, each with its place in the file.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};

use super::Spanned;
use super::problem::Problems;
use super::source::{FileText, Span};

/// Nodes nested deeper than this are refused: no topology needs it.
const MAX_DEPTH: usize = 32;
/// How many nodes aliases may add in all.
const MAX_ALIASED: usize = 10_000;
/// First of the private-use characters that stand in for [`SHIELDED`] ones while the text is parsed.
const SHIELD: u32 = 0xf800;
/// Characters that would end a plain scalar, although `${...}` holds them.
const SHIELDED: &str = "{}[],:#";

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// Where it is; for a value left empty, where its key is.
    pub span: Span,
    /// What it is.
    pub value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Nothing: empty, `~` or `null`.
    Null,
    /// Text as written, before `${...}` is replaced.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<Entry>),
}

/// An entry of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Its key.
    pub key: Spanned<String>,
    /// Its value.
    pub value: Node,
}

impl Node {
    /// What it is, for messages.
    pub(crate) fn shape(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.value.size()).sum(),
            Value::Null | Value::Text(_) => 0,
        }
    }
}

/// The document of `source`; `None` where there is none or its syntax is wrong. Mistakes go to `problems`.
pub(crate) fn parse(source: &FileText, problems: &mut Problems) -> Option<Node> {
    if let Some(at) = source.text().find(is_shield) {
        let hint = "remove the character; it has no place in a topology";
        problems.add("yaml.syntax", Span::new(at, 3), "private-use character", hint);
        return None;
    }
    let text = shield(source.text());
    let mut builder = Builder::new(source, problems);
    let mut parser = Parser::new_from_str(&text);
    while let Some(event) = parser.next_event() {
        match event {
            Ok((Event::StreamEnd, _)) => break,
            Ok((event, span)) => {
                let span = builder.span(span.start.index(), span.end.index());
                if !builder.take(event, span) {
                    return None;
                }
            }
            Err(error) => {
                builder.syntax_error(&error);
                return None;
            }
        }
    }
    builder.document
}

/// Replaces the characters of each `${...}` that YAML would read as its own by private-use ones, one for one.
fn shield(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, reference) = rest.split_at(start);
        let line_end = reference.find('\n').unwrap_or(reference.len());
        let end = reference[..line_end].find('}').map_or(2, |at| at + 1);
        out.push_str(before);
        if end == 2 {
            out.push_str("${");
        } else {
            out.extend(reference[..end].chars().map(|c| if SHIELDED.contains(c) { raise(c) } else { c }));
        }
        rest = &reference[end..];
    }
    out.push_str(rest);
    out
}

fn raise(c: char) -> char {
    char::from_u32(SHIELD + c as u32).unwrap_or(c)
}

fn lower(c: char) -> char {
    if is_shield(c) { char::from_u32(c as u32 - SHIELD).unwrap_or(c) } else { c }
}

fn is_shield(c: char) -> bool {
    (c as u32).checked_sub(SHIELD).and_then(char::from_u32).is_some_and(|c| SHIELDED.contains(c))
}

enum Frame {
    List { items: Vec<Node>, span: Span, anchor: usize },
    Map { entries: Vec<Entry>, key: Option<Key>, span: Span, anchor: usize },
}

/// The key whose value comes next; `None` inside if the entry is to be dropped.
struct Key(Option<Spanned<String>>);

struct Builder<'a> {
    source: &'a FileText,
    problems: &'a mut Problems,
    /// Byte offset of each character, and of the end.
    offsets: Vec<usize>,
    stack: Vec<Frame>,
    anchors: BTreeMap<usize, Node>,
    aliased: usize,
    document: Option<Node>,
}

impl<'a> Builder<'a> {
    fn new(source: &'a FileText, problems: &'a mut Problems) -> Self {
        let text = source.text();
        let offsets = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        Self { source, problems, offsets, stack: Vec::new(), anchors: BTreeMap::new(), aliased: 0, document: None }
    }

    /// Bytes of the characters `start..end`, without white space at the end.
    fn span(&self, start: usize, end: usize) -> Span {
        let last = self.source.text().len();
        let byte = |index: usize| self.offsets.get(index).copied().unwrap_or(last);
        let (start, end) = (byte(start), byte(end));
        let len = self.source.text().get(start..end).map_or(0, |text| text.trim_end().len());
        Span::new(start, len)
    }

    fn syntax_error(&mut self, error: &ScanError) {
        let at = error.marker().index();
        let span = self.span(at, at + 1);
        let hint = "correct the syntax first; the rest of the file can only be checked after that";
        self.problems.add("yaml.syntax", span, format!("not YAML: {}", error.info()), hint);
    }

    /// Takes in an event; `false` ends the parse.
    fn take(&mut self, event: Event<'_>, span: Span) -> bool {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => true,
            Event::DocumentStart(_) => self.document_start(span),
            Event::Scalar(text, style, anchor, tag) => {
                self.tag(tag.is_some_and(|tag| !tag.is_yaml_core_schema()), span);
                let plain = style == ScalarStyle::Plain;
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Text(text.chars().map(lower).collect()) };
                self.complete(Node { span, value }, anchor);
                true
            }
            Event::SequenceStart(anchor, tag) => {
                self.tag(tag.is_some_and(|tag| !tag.is_yaml_core_schema()), span);
                self.open(Frame::List { items: Vec::new(), span, anchor }, span)
            }
            Event::MappingStart(anchor, tag) => {
                self.tag(tag.is_some_and(|tag| !tag.is_yaml_core_schema()), span);
                self.open(Frame::Map { entries: Vec::new(), key: None, span, anchor }, span)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                self.close(span);
                true
            }
            Event::Alias(anchor) => self.alias(anchor, span),
        }
    }

    fn document_start(&mut self, span: Span) -> bool {
        if self.document.is_some() {
            let hint = "keep one document in the file: remove what follows `---`";
            self.problems.add("yaml.documents", span, "a second document begins here", hint);
            return false;
        }
        true
    }

    fn tag(&mut self, foreign: bool, span: Span) {
        if foreign {
            self.problems.add("yaml.tag", span, "tags have no meaning in a topology", "remove the `!tag`");
        }
    }

    fn open(&mut self, frame: Frame, span: Span) -> bool {
        if self.stack.len() >= MAX_DEPTH {
            let message = format!("nested more than {MAX_DEPTH} deep");
            self.problems.add("yaml.depth", span, message, "flatten the file; no setting lies that deep");
            return false;
        }
        self.stack.push(frame);
        true
    }

    fn close(&mut self, end: Span) {
        let (node, anchor) = match self.stack.pop() {
            Some(Frame::List { items, span, anchor }) => {
                (Node { span: self.trimmed(span, end), value: Value::List(items) }, anchor)
            }
            Some(Frame::Map { entries, span, anchor, .. }) => {
                (Node { span: self.trimmed(span, end), value: Value::Map(entries) }, anchor)
            }
            None => return,
        };
        self.complete(node, anchor);
    }

    /// From the start of a collection to its end, without the white space behind a block.
    fn trimmed(&self, start: Span, end: Span) -> Span {
        let whole = start.to(end);
        Span::new(whole.start, self.source.slice(whole).trim_end().len())
    }

    fn alias(&mut self, anchor: usize, span: Span) -> bool {
        let Some(node) = self.anchors.get(&anchor) else {
            let hint = "define the anchor (`&name`) before the alias, outside of it";
            self.problems.add("yaml.alias", span, "the alias stands for nothing that is complete", hint);
            return false;
        };
        self.aliased += node.size();
        if self.aliased > MAX_ALIASED {
            self.problems.add("yaml.alias", span, "aliases make the file too large", "write out what is needed");
            return false;
        }
        let node = Node { span, value: node.value.clone() };
        self.complete(node, 0);
        true
    }

    /// Puts a finished node into what it belongs to.
    fn complete(&mut self, mut node: Node, anchor: usize) {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => self.document = Some(node),
            Some(Frame::List { items, .. }) => items.push(node),
            Some(Frame::Map { entries, key, .. }) => match key.take() {
                None => *key = Some(Key(key_of(node, entries, self.problems))),
                Some(Key(Some(name))) => {
                    if node.value == Value::Null {
                        node.span = name.span;
                    }
                    entries.push(Entry { key: name, value: node });
                }
                Some(Key(None)) => {}
            },
        }
    }
}

/// The key that `node` is; `None`, with a problem, if it cannot be one.
fn key_of(node: Node, entries: &[Entry], problems: &mut Problems) -> Option<Spanned<String>> {
    let Value::Text(name) = node.value else {
        let message = format!("a key must be text, not {}", node.shape());
        problems.add("yaml.key", node.span, message, "write `name: value`");
        return None;
    };
    if let Some(first) = entries.iter().find(|entry| entry.key.value == name) {
        let hint = "keep one of the two";
        let message = format!("`{name}` is given twice");
        problems.add("yaml.duplicate_key", node.span, message, hint).note(first.key.span, "first given here");
        return None;
    }
    Some(Spanned::new(name, node.span))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> (Option<Node>, Vec<String>) {
        let source = FileText::new("t.yaml", text);
        let mut problems = Problems::default();
        let node = parse(&source, &mut problems);
        let report = problems.into_report(&source);
        let lines = report.problems().iter().map(|problem| {
            let at = report.position(problem);
            format!("{}:{} {}", at.line, at.column, problem.code)
        });
        (node, lines.collect())
    }

    /// Every scalar with the text its span covers.
    fn scalars(text: &str) -> Vec<(String, String)> {
        fn walk(node: &Node, source: &FileText, out: &mut Vec<(String, String)>) {
            match &node.value {
                Value::Null => out.push((String::new(), source.slice(node.span).to_owned())),
                Value::Text(text) => out.push((text.clone(), source.slice(node.span).to_owned())),
                Value::List(items) => items.iter().for_each(|item| walk(item, source, out)),
                Value::Map(entries) => entries.iter().for_each(|entry| {
                    out.push((entry.key.value.clone(), source.slice(entry.key.span).to_owned()));
                    walk(&entry.value, source, out);
                }),
            }
        }
        let mut out = Vec::new();
        if let (Some(node), _) = read(text) {
            walk(&node, &FileText::new("t", text), &mut out);
        }
        out
    }

    #[test]
    fn spans_cover_what_was_written() {
        let text = "a: b c  # note\r\ngrün: { x: [ 1, \"two, 2\" ], y: }\r\nz:\r\n  - 'q'\r\n";
        let expected = [
            ("a", "a"),
            ("b c", "b c"),
            ("grün", "grün"),
            ("x", "x"),
            ("1", "1"),
            ("two, 2", "\"two, 2\""),
            ("y", "y"),
            ("", "y"),
            ("z", "z"),
            ("q", "'q'"),
        ];
        let expected: Vec<_> = expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
        assert_eq!(scalars(text), expected);
    }

    #[test]
    fn references_may_stand_unquoted_in_flow_mappings() {
        let text = "n: { auth: ${RPC_AUTH}, b: ${X:-[a, b]: #c}, c: $${no} }";
        let texts: Vec<String> = scalars(text).into_iter().map(|(text, _)| text).collect();
        assert_eq!(texts, ["n", "auth", "${RPC_AUTH}", "b", "${X:-[a, b]: #c}", "c", "$${no}"]);
    }

    #[test]
    fn duplicate_keys_are_all_found() {
        let (node, problems) = read("a: 1\nb: { c: 1, c: 2 }\na: 2\n");
        assert_eq!(problems, ["2:12 yaml.duplicate_key", "3:1 yaml.duplicate_key"]);
        let Some(Node { value: Value::Map(entries), .. }) = node else { unreachable!("a mapping") };
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].value.value, Value::Text("1".to_owned()));
    }

    #[test]
    fn what_yaml_allows_and_a_topology_does_not() {
        assert_eq!(read("a: [1\nb: 2").1.len(), 1);
        assert_eq!(read("a: 1\n---\nb: 2\n").1, ["2:1 yaml.documents"]);
        assert_eq!(read("? [a]\n: 1\n").1, ["1:3 yaml.key"]);
        assert_eq!(read("a: !thing b\n").1.len(), 1);
        assert_eq!(read(&"[".repeat(40)).1.len(), 1);
        assert_eq!(read("a: \u{f87b}").1, ["1:4 yaml.syntax"]);
    }

    #[test]
    fn aliases_repeat_nodes_within_bounds() {
        let (node, problems) = read("a: &x { k: v }\nb: *x\n");
        assert!(problems.is_empty());
        let Some(Node { value: Value::Map(entries), .. }) = node else { unreachable!("a mapping") };
        assert_eq!(entries[0].value.value, entries[1].value.value);
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..9 {
            let last = i - 1;
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", vec![format!("*a{last}"); 10].join(",")));
        }
        assert_eq!(read(&bomb).1.len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_text_is_read_or_refused(text in "(\\PC|[\\[\\]{}:,&*!?|>'\"%@`#~ \n\t-]|\\$\\{[A-Z:-]*\\}?|: |- |\n  ){0,60}") {
            let (node, problems) = read(&text);
            prop_assert!(node.is_none() || problems.iter().all(|problem| !problem.contains("yaml.syntax")));
        }

        #[test]
        fn shields_are_undone(text: String) {
            prop_assume!(!text.contains(is_shield));
            let shielded = shield(&text);
            prop_assert_eq!(shielded.chars().count(), text.chars().count());
            prop_assert_eq!(shielded.chars().map(lower).collect::<String>(), text);
        }
    }
}
