//! The configuration on stdin: one JSON object of bounded size.

use std::io::Read;

use serde_json::{Map, Value};

use super::{CniError, Code, strict};

/// Largest configuration in bytes. Real ones are a few kilobytes; libcni's own cap does not exist, so this bounds our memory.
pub const MAX_STDIN: u64 = 1 << 20;

/// Reads one JSON object to the end of `input`.
///
/// # Errors
/// Code 5 when reading fails; code 6 when the text is empty, larger than [`MAX_STDIN`], not JSON or not an object.
pub fn read_object(input: impl Read) -> Result<Map<String, Value>, CniError> {
    let mut bytes = Vec::new();
    input
        .take(MAX_STDIN + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| CniError::caused(Code::Io, "stdin cannot be read", &e))?;
    if bytes.len() as u64 > MAX_STDIN {
        let msg = format!("the configuration on stdin is larger than {MAX_STDIN} bytes");
        return Err(CniError::new(Code::Decode, msg));
    }
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, CniError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(CniError::new(
            Code::Decode,
            "stdin is empty; expected the network configuration as a JSON object",
        ));
    }
    match strict::parse(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(CniError::new(
            Code::Decode,
            format!("stdin holds {}; expected a JSON object", kind(&other)),
        )),
        Err(e) => Err(CniError::caused(Code::Decode, "stdin is not JSON", &e)),
    }
}

/// What a JSON value is, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_is_code_6() {
        let deep = "[".repeat(100_000);
        let deep_object = format!("{{\"a\":{}", "{\"a\":".repeat(100_000));
        for text in [
            "",
            " \n\t",
            "{",
            "nonsense",
            "[]",
            "\"x\"",
            "null",
            "7",
            "{} {}",
            "\u{feff}{}",
            "{\"a\":\"\u{1}\"}",
            r#"{"name":"a","name":"b"}"#,
            &deep,
            &deep_object,
        ] {
            assert_eq!(
                read_object(text.as_bytes()).unwrap_err().code,
                Code::Decode,
                "{text:.20}"
            );
        }
        assert_eq!(
            read_object(&b"{\"name\":\"\xff\"}"[..]).unwrap_err().code,
            Code::Decode
        );
    }

    #[test]
    fn the_size_is_bounded() {
        let blank = " ".repeat(MAX_STDIN as usize - 2);
        assert!(read_object(format!("{{}}{blank}").as_bytes()).is_ok());
        let error = read_object(format!("{{}}{blank} ").as_bytes()).unwrap_err();
        assert_eq!(error.code, Code::Decode);
        assert!(error.msg.contains("1048576"), "{error}");
        assert_eq!(read_object(std::io::repeat(b'{')).unwrap_err().code, Code::Decode);
    }

    #[test]
    fn a_broken_pipe_is_code_5() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::ConnectionReset.into())
            }
        }
        assert_eq!(read_object(Broken).unwrap_err().code, Code::Io);
    }
}
