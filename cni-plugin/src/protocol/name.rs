//! Names that come from outside and end up in paths and in the kernel, each checked when it is made.

use std::fmt;

use super::{CniError, Code};

/// The longest file name that Linux file systems take (NAME_MAX), since container ids and network names become one.
const NAME_MAX: usize = 255;
/// Longest device name: IFNAMSIZ (16) without the closing zero.
const IFNAME_MAX: usize = 15;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A container id: `[A-Za-z0-9][A-Za-z0-9_.-]*`.
    ContainerId
);
name_type!(
    /// A device name the kernel takes: 1 to 15 bytes, not `.` or `..`, without `/`, `:`, `%` and white space.
    IfName
);
name_type!(
    /// A network's name: `[A-Za-z0-9][A-Za-z0-9_.-]*`.
    NetworkName
);

impl ContainerId {
    /// Checks `CNI_CONTAINERID`.
    ///
    /// # Errors
    /// Code 4, with the id as details.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        if is_identifier(text) {
            return Ok(Self(text.to_owned()));
        }
        let msg = format!(
            "CNI_CONTAINERID is not a container id; expected a letter or digit, then letters, digits, `_`, `.` or `-`, at most {NAME_MAX} in all"
        );
        Err(CniError::new(Code::BadEnvironment, msg).with(excerpt(text)))
    }
}

impl NetworkName {
    /// Checks the configuration's `name`.
    ///
    /// # Errors
    /// Code 7, with the name as details.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        if is_identifier(text) {
            return Ok(Self(text.to_owned()));
        }
        let msg = format!(
            "name is not a network name; expected a letter or digit, then letters, digits, `_`, `.` or `-`, at most {NAME_MAX} in all"
        );
        Err(CniError::new(Code::BadConfig, msg).with(excerpt(text)))
    }
}

impl IfName {
    /// The name, if it is one; else what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match ifname_fault(text) {
            Some(fault) => Err(fault),
            None => Ok(Self(text.to_owned())),
        }
    }
}

fn ifname_fault(text: &str) -> Option<&'static str> {
    let forbidden = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    match text {
        "" => Some("is empty"),
        "." | ".." => Some("is a directory, not a name"),
        long if long.len() > IFNAME_MAX => Some("is longer than 15 bytes"),
        odd if odd.contains(forbidden) => Some("has a `/`, `:`, `%`, white space or a control character"),
        _ => None,
    }
}

/// Whether the text is a letter or digit, then letters, digits, `_`, `.` or `-`, and short enough for a file's name.
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= NAME_MAX
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// At most 80 characters of a text that may be hostile.
pub fn excerpt(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids() {
        for good in ["a", "0Z", "k8s_POD.web-1", &"a".repeat(255)] {
            assert_eq!(ContainerId::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "../x",
            "a/b",
            ".",
            "-a",
            "_a",
            "a b",
            "a\0",
            "ä",
            "a\n",
            &"a".repeat(256),
        ] {
            assert_eq!(
                ContainerId::parse(bad).unwrap_err().code,
                Code::BadEnvironment,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn network_names() {
        assert!(NetworkName::parse("cbr0").is_ok());
        for bad in ["", "../cbr0", "a/b", "..", "a b"] {
            assert_eq!(
                NetworkName::parse(bad).unwrap_err().code,
                Code::BadConfig,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn interface_names() {
        assert!(IfName::parse("eth0").is_ok() && IfName::parse("a23456789012345").is_ok());
        for bad in [
            "",
            ".",
            "..",
            "a234567890123456",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "veth%d",
            "a\0",
        ] {
            assert!(IfName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_excerpt_is_short() {
        assert!(excerpt(&"ä".repeat(1 << 20)).len() < 200);
    }
}
