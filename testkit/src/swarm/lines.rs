//! Lines on the hot path: submits rendered by patching, answers told apart without a JSON parser.

use memchr::memmem::find;

/// Ids of submits begin here and have this many digits always, so that a line is patched in place.
pub(super) const FIRST_ID: u64 = 10_000_000;
const ID_DIGITS: usize = 8;
/// Ids that there are before they begin again.
pub(super) const IDS: u64 = 100_000_000 - FIRST_ID;

/// What a line of the pool is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The answer `true` to the request of this id.
    Yes(u64),
    /// Another answer: an error, or the result of a login's request.
    Answer,
    /// `mining.notify`.
    Notify,
    /// Another call.
    Call,
}

impl Line {
    /// Tells them apart. Wrong JSON is not noticed here: what is no [`Line::Yes`] and no job known already is parsed.
    pub(super) fn of(line: &[u8]) -> Self {
        if let Some((id, rest)) = line.strip_prefix(b"{\"id\":").and_then(number)
            && rest.starts_with(b",\"result\":true")
        {
            return Self::Yes(id);
        }
        if find(line, b"\"method\"").is_some() {
            return if find(line, b"mining.notify").is_some() { Self::Notify } else { Self::Call };
        }
        let yes = value_of(line, b"\"result\"").is_some_and(|value| value.starts_with(b"true"));
        match value_of(line, b"\"id\"").and_then(number) {
            Some((id, _)) if yes => Self::Yes(id),
            _ => Self::Answer,
        }
    }
}

/// What follows a key, its colon and spaces.
fn value_of<'a>(line: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let rest = line.get(find(line, key)? + key.len()..)?.trim_ascii_start();
    Some(rest.strip_prefix(b":")?.trim_ascii_start())
}

/// The number in front, and what follows it.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(digits);
    let value =
        digits.iter().try_fold(0_u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
    value.filter(|_| !digits.is_empty()).map(|value| (value, rest))
}

/// A submit of one job, with places for what differs from share to share.
pub(super) struct SubmitLine {
    bytes: Vec<u8>,
    extranonce2: usize,
    extranonce2_size: usize,
    nonce: usize,
}

/// Where the id stands: behind `{"id":`.
const ID_AT: usize = 6;

impl SubmitLine {
    /// For shares of `user` on a job with this time and, if the pool grants a mask, these version bits (hex).
    pub(super) fn new(user: &str, job: &str, extranonce2_size: usize, ntime: &str, version_bits: Option<&str>) -> Self {
        let text = |value: &str| serde_json::Value::from(value).to_string();
        let mut line =
            format!("{{\"id\":{FIRST_ID},\"method\":\"mining.submit\",\"params\":[{},{},\"", text(user), text(job));
        let extranonce2 = line.len();
        line += &"0".repeat(2 * extranonce2_size);
        line += &format!("\",\"{ntime}\",\"");
        let nonce = line.len();
        line += "00000000\"";
        if let Some(bits) = version_bits {
            line += &format!(",\"{bits}\"");
        }
        line += "]}\n";
        Self { bytes: line.into_bytes(), extranonce2, extranonce2_size, nonce }
    }

    /// Writes the line of a share.
    pub(super) fn render(&self, id: u64, extranonce2: u64, nonce: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let line = &mut out[start..];
        let mut rest = id;
        for place in line[ID_AT..ID_AT + ID_DIGITS].iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        // A number wider than 8 bytes begins with zeros, which the line has already.
        let digits = 2 * self.extranonce2_size.min(8);
        let end = self.extranonce2 + 2 * self.extranonce2_size;
        hex(extranonce2, &mut line[end - digits..end]);
        hex(u64::from(nonce), &mut line[self.nonce..self.nonce + 8]);
    }
}

/// The lowest digits of a number in hex.
fn hex(number: u64, places: &mut [u8]) {
    let mut rest = number;
    for place in places.iter_mut().rev() {
        *place = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_any_pool_are_told_apart() {
        for (line, is) in [
            (r#"{"id":10000007,"result":true,"error":null}"#, Line::Yes(10_000_007)),
            (r#"{"result": true, "error": null, "id": 12}"#, Line::Yes(12)),
            (r#"{"jsonrpc":"2.0","result":true,"id":3}"#, Line::Yes(3)),
            (r#"{"id":9,"result":null,"error":[21,"Job not found (=stale)",null]}"#, Line::Answer),
            (r#"{"id":9,"result":false,"error":null}"#, Line::Answer),
            (r#"{"id":2,"result":[[["mining.notify","01"]],"01",8],"error":null}"#, Line::Answer),
            (r#"{"id":null,"method":"mining.notify","params":[]}"#, Line::Notify),
            (r#"{"params":[1],"id":null,"method":"mining.set_difficulty"}"#, Line::Call),
            ("", Line::Answer),
            (r#"{"id":99999999999999999999999,"result":true}"#, Line::Answer),
        ] {
            assert_eq!(Line::of(line.as_bytes()), is, "{line}");
        }
    }

    #[test]
    fn a_submit_is_patched_in_place() {
        let line = SubmitLine::new("a.\"b", "6a", 8, "66610000", Some("00e2a000"));
        let mut out = b"before".to_vec();
        line.render(10_000_123, 0x0102, 0xdead_beef, &mut out);
        let expected = "before{\"id\":10000123,\"method\":\"mining.submit\",\"params\":[\"a.\\\"b\",\"6a\",\
                        \"0000000000000102\",\"66610000\",\"deadbeef\",\"00e2a000\"]}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn extranonce2_has_the_size_that_the_pool_announced() {
        for (size, hex) in [(2, "0708"), (8, "0102030405060708"), (10, "00000102030405060708")] {
            let mut out = Vec::new();
            SubmitLine::new("a", "1", size, "0", None).render(FIRST_ID, 0x0102_0304_0506_0708, 0, &mut out);
            let line: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(line["params"][2], hex);
            assert_eq!(line["params"].as_array().unwrap().len(), 5);
        }
    }
}
