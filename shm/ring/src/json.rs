//! JSON text on its way through the gateway: checked once, at the producer, and made compact.
//!
//! Publications carry JSON as text. Nothing behind the producer parses it again, so what enters
//! here must be valid (RFC 8259) and should be small.

use serde::de::IgnoredAny;

/// Appends `text` without insignificant white space to `out`; on an error, `out` is as before.
///
/// # Errors
/// What is wrong and where, for the producer of the text.
pub fn compact(text: &[u8], out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    // serde_json checks UTF-8 only in strings that it keeps, and this one keeps none.
    let text = std::str::from_utf8(text).map_err(serde::de::Error::custom)?;
    serde_json::from_str::<IgnoredAny>(text)?;
    strip(text.as_bytes(), out);
    Ok(())
}

/// As [`compact`], for text that must be an object.
///
/// # Errors
/// As [`compact`]; also for any JSON value that is no object.
pub fn compact_object(text: &[u8], out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(serde::de::Error::custom("expected a JSON object"));
    }
    compact(text, out)
}

/// Copies valid JSON without the white space between its tokens.
fn strip(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(next) = rest
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'"'))
    {
        out.extend_from_slice(&rest[..next]);
        rest = &rest[next..];
        let taken = if rest[0] == b'"' {
            string_bytes(rest)
        } else {
            1
        };
        if rest[0] == b'"' {
            out.extend_from_slice(&rest[..taken]);
        }
        rest = &rest[taken..];
    }
    out.extend_from_slice(rest);
}

/// Length of the string that begins `text`, with both quotes.
fn string_bytes(text: &[u8]) -> usize {
    let mut at = 1;
    while text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compacted(text: &str) -> Option<String> {
        let mut out = Vec::new();
        compact(text.as_bytes(), &mut out).ok()?;
        Some(String::from_utf8(out).expect("compacting keeps UTF-8"))
    }

    #[test]
    fn white_space_between_tokens_goes_and_within_strings_stays() {
        assert_eq!(
            compacted("{ \"a b\" :\n[ 1 ,\t2.50e+3 , \"x \\\" \\\\\" ] , \"ü\": null }\r\n")
                .as_deref(),
            Some("{\"a b\":[1,2.50e+3,\"x \\\" \\\\\"],\"ü\":null}")
        );
        assert_eq!(compacted("  7 ").as_deref(), Some("7"));
        assert_eq!(compacted("\"\"").as_deref(), Some("\"\""));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "", " ", "{", "{\"a\":}", "[1,]", "nul", "1 2", "\"a", "{'a':1}", "\"\\x\"", "01",
        ] {
            assert_eq!(compacted(text), None, "{text:?}");
        }
        assert!(compact(b"\"\xff\"", &mut Vec::new()).is_err());
    }

    #[test]
    fn an_object_is_asked_for_where_tags_are_meant() {
        assert!(compact_object(b" {\"a\":\"b\"}", &mut Vec::new()).is_ok());
        assert!(compact_object(b"[]", &mut Vec::new()).is_err());
        assert!(compact_object(b"", &mut Vec::new()).is_err());
    }

    #[test]
    fn deep_nesting_neither_overflows_the_stack_nor_is_accepted_broken() {
        let deep = "[".repeat(1 << 20);
        assert_eq!(compacted(&deep), None);
        assert!(compacted(&(deep + &"]".repeat(1 << 20))).is_some());
    }
}
