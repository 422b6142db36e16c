//! The one error of the plugin: what a runtime reads on stdout when a command fails.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

/// Error codes of the CNI specification ("Error"), then, from 100 on, the plugin's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration's cniVersion is not one of ours.
    IncompatibleVersion = 1,
    /// A key of the configuration asks for something that is not supported.
    UnsupportedField = 2,
    /// A variable of the environment is missing or wrong.
    BadEnvironment = 4,
    /// A file or a stream could not be read or written.
    Io = 5,
    /// The text on stdin is not what it should be.
    Decode = 6,
    /// The configuration contradicts itself or a value is out of range.
    BadConfig = 7,
    /// The network namespace cannot be used (the code that Go plugins give for it).
    BadNetns = 8,
    /// The same call can succeed later.
    TryAgain = 11,
    /// STATUS: an ADD would fail now.
    NotAvailable = 50,
    /// STATUS: an ADD would fail now, and containers that are attached may have lost connections.
    Limited = 51,
    /// The kernel refused a change.
    Kernel = 100,
    /// No address is free, or a requested one is not.
    NoAddress = 101,
    /// The attachment, or a device in its place, exists already.
    Exists = 102,
    /// CHECK: the container is not as ADD left it.
    Differs = 103,
    /// A delegate that was run as a program failed.
    Delegate = 104,
}

/// A failure in the terms of the CNI specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// What kind of failure.
    pub code: Code,
    /// One sentence: what failed, on which field and value.
    pub msg: String,
    /// The cause, or what to do about it; may be empty.
    pub details: String,
}

impl CniError {
    /// An error that needs no details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The same error with `details`.
    #[must_use]
    pub fn with(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// An error with the whole chain of `cause` as details.
    pub fn caused(code: Code, msg: impl Into<String>, cause: &dyn Error) -> Self {
        Self::new(code, msg).with(chain(cause))
    }

    /// The JSON object that goes to stdout, in the layout that every version shares.
    pub fn to_json(&self, version: &str) -> String {
        serde_json::json!({
            "cniVersion": version,
            "code": self.code as u32,
            "msg": bounded(&self.msg),
            "details": bounded(&self.details),
        })
        .to_string()
    }
}

/// The text, or its beginning: what is told may repeat what was sent, and runtimes put errors into events and logs.
fn bounded(text: &str) -> Cow<'_, str> {
    const MOST: usize = 1_500;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()).into(),
        None => text.into(),
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}

impl Error for CniError {}

/// An error and all its sources, parted by colons.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_all_four_keys() {
        let error = CniError::new(Code::TryAgain, "later").with("why");
        assert_eq!(
            error.to_json("1.0.0"),
            r#"{"cniVersion":"1.0.0","code":11,"details":"why","msg":"later"}"#
        );
    }

    #[test]
    fn a_long_text_is_cut() {
        let long = "ä".repeat(100_000);
        let text = CniError::new(Code::BadConfig, long.as_str())
            .with(long)
            .to_json("1.0.0");
        assert!(
            text.len() < 7_000 && text.contains("200000 bytes"),
            "{}",
            text.len()
        );
    }

    #[test]
    fn a_chain_names_every_cause() {
        let inner = std::io::Error::other(CniError::new(Code::Io, "disk gone"));
        let error = CniError::caused(Code::Io, "lease", &inner);
        assert!(error.to_string().starts_with("lease: "), "{error}");
        assert!(error.details.contains("disk gone"), "{error}");
    }
}
