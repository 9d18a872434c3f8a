//! A topology file's text and places in it.

/// A file: its name as shown in problems, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileText {
    name: String,
    text: String,
    lines: Vec<usize>,
}

/// A piece of a file: bytes `start..start + len` of its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Number of bytes.
    pub len: usize,
}

/// Line and column of a place, both from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl FileText {
    /// A file called `name` with this text.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name: name.into(), text, lines }
    }

    /// Name as shown in problems.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column where `span` starts.
    pub fn position(&self, span: Span) -> Position {
        let start = span.start.min(self.text.len());
        let line = self.lines.partition_point(|&first| first <= start).max(1);
        let first = self.lines.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(first..start).map_or(0, |before| before.chars().count()) + 1;
        Position { line, column }
    }

    /// The text of `span`.
    pub fn slice(&self, span: Span) -> &str {
        self.text.get(span.start..span.start.saturating_add(span.len)).unwrap_or("")
    }
}

impl Span {
    /// `len` bytes from byte `start` on.
    pub const fn new(start: usize, len: usize) -> Self {
        Self { start, len }
    }

    /// From the start of this one to the end of `last`.
    pub fn to(self, last: Self) -> Self {
        let end = (last.start + last.len).max(self.start);
        Self { start: self.start, len: end - self.start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let source = FileText::new("t.yaml", "a: 1\nbüb: 2\n\nc");
        let at = |needle: &str| {
            let start = source.text().find(needle).unwrap_or(0);
            let position = source.position(Span::new(start, needle.len()));
            (position.line, position.column)
        };
        assert_eq!(at("a"), (1, 1));
        assert_eq!(at("2"), (2, 6));
        assert_eq!(at("c"), (4, 1));
        let end = source.position(Span::new(10_000, 1));
        assert_eq!((end.line, end.column), (4, 2));
    }
}
