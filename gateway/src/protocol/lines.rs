//! Cutting a stream into lines.

/// What comes next in a piece of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// A whole line, without its end.
    Whole(&'a [u8]),
    /// The beginning of a line whose end has not come yet; empty if there is none.
    Begun(&'a [u8]),
    /// More bytes without an end than a line may have.
    TooLong,
}

/// The lines of a piece of a stream.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    rest: &'a [u8],
    limit: usize,
}

impl<'a> Lines<'a> {
    /// Lines of `bytes` that have at most `limit` bytes.
    pub(crate) fn new(bytes: &'a [u8], limit: usize) -> Self {
        Self { rest: bytes, limit }
    }

    /// What has not been cut yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next line. After [`Line::Begun`] and [`Line::TooLong`] nothing more comes.
    pub(crate) fn next_line(&mut self) -> Line<'a> {
        let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') else {
            return if self.rest.len() > self.limit { Line::TooLong } else { Line::Begun(self.rest) };
        };
        if end > self.limit {
            return Line::TooLong;
        }
        let (line, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Line::Whole(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_lines_come_in_order_and_the_rest_is_kept() {
        let mut lines = Lines::new(b"a\r\n\nbcd\nef", 3);
        assert_eq!(lines.next_line(), Line::Whole(b"a\r"));
        assert_eq!(lines.next_line(), Line::Whole(b""));
        assert_eq!(lines.next_line(), Line::Whole(b"bcd"));
        assert_eq!(lines.next_line(), Line::Begun(b"ef"));
        assert_eq!(Lines::new(b"", 3).next_line(), Line::Begun(b""));
    }

    #[test]
    fn a_line_beyond_the_limit_is_too_long_with_or_without_its_end() {
        assert_eq!(Lines::new(b"abcd", 3).next_line(), Line::TooLong);
        assert_eq!(Lines::new(b"abcd\n", 3).next_line(), Line::TooLong);
        assert_eq!(Lines::new(b"abc", 3).next_line(), Line::Begun(b"abc"));
    }
}
