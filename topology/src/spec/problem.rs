//! Problems of a topology file: each with its place, what is wrong, and what to do.

use std::fmt;
use std::sync::Arc;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};

use super::source::{FileText, Position, Span};

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Stable short name of the rule, such as `topic.unknown`.
    pub code: &'static str,
    /// Where.
    pub span: Span,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// Other places that belong to it.
    pub notes: Vec<Note>,
}

/// Another place that belongs to a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where.
    pub span: Span,
    /// What is there.
    pub text: String,
}

/// Collects problems while a file is read and checked.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    /// Adds one.
    pub(crate) fn add(
        &mut self,
        code: &'static str,
        span: Span,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> &mut Problem {
        let problem = Problem { code, span, message: message.into(), hint: hint.into(), notes: Vec::new() };
        let index = self.0.len();
        self.0.push(problem);
        &mut self.0[index]
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them as a report on `source`, by place; a problem found twice is shown once.
    pub(crate) fn into_report(mut self, source: &FileText) -> Report {
        self.0.sort_by(|a, b| (a.span, a.code, &a.message).cmp(&(b.span, b.code, &b.message)));
        self.0.dedup();
        Report { source: Arc::new(source.clone()), problems: self.0 }
    }
}

impl Problem {
    /// Points at another place that belongs to the problem.
    pub(crate) fn note(&mut self, span: Span, text: impl Into<String>) -> &mut Self {
        self.notes.push(Note { span, text: text.into() });
        self
    }
}

/// All problems of a file.
///
/// `Display` and [`Report::plain`] give one or two lines each, `FILE:LINE:COLUMN: MESSAGE`, fit for editors and logs;
/// [`Report::fancy`] shows the lines of the file. It is also a [`Diagnostic`] with the problems as related ones.
#[derive(Clone, PartialEq, Eq)]
pub struct Report {
    source: Arc<FileText>,
    problems: Vec<Problem>,
}

impl Report {
    /// The problems, by place.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Line and column of a problem.
    pub fn position(&self, problem: &Problem) -> Position {
        self.source.position(problem.span)
    }

    /// Two lines for each problem: `FILE:LINE:COLUMN: MESSAGE [RULE]` and the hint.
    pub fn plain(&self) -> String {
        let mut out = String::new();
        for problem in &self.problems {
            let at = self.position(problem);
            let place = format!("{}:{}:{}", self.source.name(), at.line, at.column);
            out.push_str(&format!("{place}: {} [{}]\n", problem.message, problem.code));
            for note in &problem.notes {
                let at = self.source.position(note.span);
                out.push_str(&format!("    see {}:{}:{}: {}\n", self.source.name(), at.line, at.column, note.text));
            }
            out.push_str(&format!("    hint: {}\n", problem.hint));
        }
        out
    }

    /// The problems with the lines of the file they are on, for a terminal of `width` columns.
    pub fn fancy(&self, color: bool, width: usize) -> String {
        let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(width.max(40)).with_context_lines(1);
        let mut out = String::new();
        for shown in self.diagnostics() {
            if handler.render_report(&mut out, &shown).is_err() {
                return self.plain();
            }
            out.push('\n');
        }
        out
    }

    fn diagnostics(&self) -> Vec<Shown> {
        let code = Arc::new(NamedSource::new(self.source.name(), self.source.text().to_owned()).with_language("yaml"));
        self.problems.iter().map(|problem| Shown::new(problem, Arc::clone(&code))).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plain().trim_end())
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Report {}

impl From<Report> for miette::Report {
    fn from(report: Report) -> Self {
        miette::Report::new(Whole {
            message: match report.problems.len() {
                1 => format!("{} has a mistake", report.source.name()),
                count => format!("{} has {count} mistakes", report.source.name()),
            },
            shown: report.diagnostics(),
        })
    }
}

/// A report as miette shows it: the problems are its related diagnostics.
#[derive(Debug)]
struct Whole {
    message: String,
    shown: Vec<Shown>,
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Whole {}

impl Diagnostic for Whole {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.shown.iter().map(|shown| shown as &dyn Diagnostic)))
    }
}

/// A problem as miette shows it.
#[derive(Debug)]
struct Shown {
    problem: Problem,
    source: Arc<NamedSource<String>>,
}

impl Shown {
    fn new(problem: &Problem, source: Arc<NamedSource<String>>) -> Self {
        Self { problem: problem.clone(), source }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Shown {}

impl Diagnostic for Shown {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.problem.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.problem.hint))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&*self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let here = LabeledSpan::new_primary_with_span(Some("here".to_owned()), span_of(self.problem.span));
        let notes = self.problem.notes.iter();
        let notes = notes.map(|note| LabeledSpan::new_with_span(Some(note.text.clone()), span_of(note.span)));
        Some(Box::new(std::iter::once(here).chain(notes)))
    }
}

fn span_of(span: Span) -> (usize, usize) {
    (span.start, span.len)
}

/// The name among `valid` that `name` most likely means, if one is near enough.
pub(crate) fn nearest<'a>(name: &str, valid: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best: Option<(f64, &str)> = None;
    for candidate in valid {
        let score = strsim::jaro_winkler(&name.to_lowercase(), &candidate.to_lowercase());
        let edits = strsim::damerau_levenshtein(name, candidate);
        let near = edits <= 1.max(name.chars().count() / 3) || score >= 0.9;
        if near && best.is_none_or(|(most, _)| score > most) {
            best = Some((score, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// `a, b and c`, each in backquotes.
pub(crate) fn quoted_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_else() {
        let valid = ["gateway", "verify", "dedupe", "vardiff"];
        assert_eq!(nearest("verfy", valid), Some("verify"));
        assert_eq!(nearest("Gateway", valid), Some("gateway"));
        assert_eq!(nearest("vardif", valid), Some("vardiff"));
        assert_eq!(nearest("kafka", valid), None);
    }

    fn report() -> Report {
        let source = FileText::new("t.yaml", "version: 2\ntopics: {}\n");
        let mut problems = Problems::default();
        problems.add("b", Span::new(11, 6), "second", "do that").note(Span::new(0, 7), "because of this");
        problems.add("a", Span::new(9, 1), "first", "do this");
        problems.add("a", Span::new(9, 1), "first", "do this");
        problems.into_report(&source)
    }

    #[test]
    fn plain_gives_place_message_and_hint_by_place() {
        assert_eq!(
            report().plain(),
            "t.yaml:1:10: first [a]\n    hint: do this\nt.yaml:2:1: second [b]\n    see t.yaml:1:1: because of this\n    hint: do that\n"
        );
    }

    #[test]
    fn fancy_shows_the_lines_and_the_hints() {
        let shown = report().fancy(false, 100);
        for part in ["t.yaml:1:10", "version: 2", "first", "help: do this", "because of this"] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        let whole = format!("{:?}", miette::Report::from(report()));
        assert!(whole.contains("2 mistakes") && whole.contains("second"), "{whole}");
    }
}
