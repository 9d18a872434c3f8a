//! Writing answers and notifications, without building JSON values.

use std::io::Write;

use sluice_mining::Difficulty;
use sluice_proto::v1::Reason;

use super::request::Id;

/// An error as miners know it: a code and a text.
pub(crate) type Fault = (u32, &'static str);

/// 20: a request that cannot be carried out.
pub(crate) const UNKNOWN_METHOD: Fault = (20, "Unknown method");
/// A line that is no request.
pub(crate) const NOT_A_REQUEST: Fault = (20, "Not a JSON request");
/// Parameters that cannot be read.
pub(crate) const BAD_PARAMS: Fault = (20, "Invalid parameters");
/// Extranonce2 of another size than the 8 bytes that were agreed.
pub(crate) const BAD_EXTRANONCE2: Fault = (20, "Invalid extranonce2: 16 hex digits are right");
/// The gateway does not hand out transactions.
pub(crate) const NO_TRANSACTIONS: Fault =
    (20, "get_transactions is not served: the job's merkle branch is all there is");
/// No room for another session.
pub(crate) const NO_ROOM: Fault = (20, "The pool is full, connect again later");
/// A job id that no job of the pool ever had.
pub(crate) const JOB_NOT_FOUND: Fault = (21, "Job not found (=stale)");
/// The user of a share was not authorized.
pub(crate) const UNAUTHORIZED: Fault = (24, "Unauthorized worker");
/// A share before the subscription.
pub(crate) const NOT_SUBSCRIBED: Fault = (25, "Not subscribed");

/// `client.reconnect`. Without parameters the miner comes back to the address it knows: with one, firmware that fears
/// to be led away refuses.
pub(crate) const RECONNECT: &[u8] = b"{\"id\":null,\"method\":\"client.reconnect\",\"params\":[]}\n";

/// `client.reconnect` to `HOST:PORT`, or to the address that the miner knows.
pub(crate) fn reconnect(to: Option<&str>) -> Vec<u8> {
    let Some((host, port)) = to.and_then(|to| to.rsplit_once(':')) else { return RECONNECT.to_vec() };
    let host = host.trim_matches(['[', ']']);
    format!("{{\"id\":null,\"method\":\"client.reconnect\",\"params\":[\"{host}\",{port},0]}}\n").into_bytes()
}

/// What a miner is told about a share; `None` if it was accepted.
pub(crate) const fn fault_of(reason: Reason) -> Option<Fault> {
    match reason {
        Reason::Accepted => None,
        Reason::Stale => Some((21, "Stale share (=job of an earlier block)")),
        Reason::JobNotFound => Some(JOB_NOT_FOUND),
        Reason::Duplicate => Some((22, "Duplicate share")),
        Reason::LowDifficulty => Some((23, "Low difficulty share")),
        Reason::NtimeTooOld => Some((20, "Time too old")),
        Reason::NtimeTooNew => Some((20, "Time too new")),
        Reason::VersionMask => Some((20, "Invalid version mask")),
        Reason::Unspecified => Some((20, "Other")),
    }
}

/// Answers a request with `result`, which is JSON. A request without an id is not answered.
pub(crate) fn result(out: &mut Vec<u8>, id: Id<'_>, result: &str) {
    let Some(id) = id.0 else { return };
    for part in ["{\"id\":", id.get(), ",\"result\":", result, ",\"error\":null}\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Answers a request with an error. A request without an id is not answered.
pub(crate) fn error(out: &mut Vec<u8>, id: Id<'_>, fault: Fault) {
    match id.0 {
        Some(id) => error_to(out, id.get(), fault),
        None => tracing::debug!(code = fault.0, text = fault.1, "an error in a request without an id"),
    }
}

/// Answers a line whose id could not be read.
pub(crate) fn error_to(out: &mut Vec<u8>, id: &str, (code, text): Fault) {
    // Writing to a Vec does not fail.
    let _ = writeln!(out, "{{\"id\":{id},\"result\":null,\"error\":[{code},\"{text}\",null]}}");
}

/// Answers a submit.
pub(crate) fn verdict(out: &mut Vec<u8>, id: Id<'_>, reason: Reason) {
    match fault_of(reason) {
        None => result(out, id, "true"),
        Some(fault) => error(out, id, fault),
    }
}

/// `mining.set_difficulty`.
pub(crate) fn set_difficulty(out: &mut Vec<u8>, difficulty: Difficulty) {
    let _ = writeln!(out, "{{\"id\":null,\"method\":\"mining.set_difficulty\",\"params\":[{difficulty}]}}");
}

/// `mining.set_extranonce`: holds from the next job on.
pub(crate) fn set_extranonce(out: &mut Vec<u8>, extranonce1: u32) {
    let size = sluice_mining::EXTRANONCE2_SIZE;
    let _ =
        writeln!(out, "{{\"id\":null,\"method\":\"mining.set_extranonce\",\"params\":[\"{extranonce1:08x}\",{size}]}}");
}

/// `client.show_message`.
pub(crate) fn show_message(text: &str) -> Vec<u8> {
    let text = serde_json::Value::from(text);
    format!("{{\"id\":null,\"method\":\"client.show_message\",\"params\":[{text}]}}\n").into_bytes()
}

/// `mining.set_version_mask`.
pub(crate) fn set_version_mask(out: &mut Vec<u8>, mask: u32) {
    let _ = writeln!(out, "{{\"id\":null,\"method\":\"mining.set_version_mask\",\"params\":[\"{mask:08x}\"]}}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::request::Request;
    use crate::status::REASONS;

    fn written(write: impl FnOnce(&mut Vec<u8>, Id<'_>)) -> String {
        let request = Request::parse(b"{\"id\":\"x1\"}").unwrap();
        let mut out = Vec::new();
        write(&mut out, request.id);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn error_null_is_always_there() {
        assert_eq!(written(|out, id| result(out, id, "true")), "{\"id\":\"x1\",\"result\":true,\"error\":null}\n");
    }

    #[test]
    fn each_reason_has_its_code_and_all_answers_are_json() {
        let codes = [20, 0, 21, 21, 22, 23, 20, 20, 20];
        for (reason, code) in REASONS.into_iter().zip(codes) {
            let text = written(|out, id| verdict(out, id, reason));
            let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(answer["id"], "x1");
            match code {
                0 => assert_eq!((&answer["result"], &answer["error"]), (&true.into(), &serde_json::Value::Null)),
                _ => {
                    assert_eq!((&answer["result"], &answer["error"][0]), (&serde_json::Value::Null, &code.into()));
                    assert!(answer["error"][2].is_null() && answer["error"].as_array().unwrap().len() == 3);
                }
            }
        }
    }

    #[test]
    fn calls_of_the_server_are_requests_with_a_null_id() {
        let mut out = RECONNECT.to_vec();
        out.extend(show_message("\"down\" at 5\n"));
        set_extranonce(&mut out, 0x0100_000a);
        let lines: Vec<serde_json::Value> =
            std::str::from_utf8(&out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let calls: Vec<_> =
            lines.iter().map(|line| (line["method"].as_str().unwrap(), line["params"].clone())).collect();
        let expected = [
            ("client.reconnect", serde_json::json!([])),
            ("client.show_message", serde_json::json!(["\"down\" at 5\n"])),
            ("mining.set_extranonce", serde_json::json!(["0100000a", 8])),
        ];
        assert_eq!(calls, expected);
        assert!(lines.iter().all(|line| line["id"].is_null() && line.as_object().unwrap().len() == 3));
    }

    #[test]
    fn quirk_difficulties_are_written_exactly() {
        let mut out = Vec::new();
        set_difficulty(&mut out, Difficulty::parse_wire("0.00015").unwrap());
        set_version_mask(&mut out, 0x1fff_e000);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("[0.0001220703125]") && text.contains("[\"1fffe000\"]"), "{text}");
    }
}
