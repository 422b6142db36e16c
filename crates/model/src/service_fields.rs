//! Reading JSON values field by field, so that a fault names its field, its value and what was expected, and all faults are told at once.

use std::fmt;

use serde_json::Value;

/// Longest value of a Services key that is read, in bytes. A slice of 1,000 endpoints, the most that Kubernetes
/// writes, is about 300 kB; etcd's own limit for a request is 1.5 MB.
pub const MAX_SERVICE_VALUE: usize = 512 * 1024;

/// Longest excerpt of a refused value in an error, in characters.
const EXCERPT: usize = 60;

/// One field that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {found}; expected {expected}")]
pub struct ServiceFieldError {
    /// Path of the field, such as `ports[0].port`; `value` for the whole.
    pub field: String,
    /// What stands there: an excerpt of the JSON, or `is missing`.
    pub found: String,
    /// What should stand there.
    pub expected: String,
}

/// Why the value of a Services key was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ServiceValueError {
    /// Larger than [`MAX_SERVICE_VALUE`].
    #[error("the value has {0} bytes; expected at most {MAX_SERVICE_VALUE}")]
    TooLong(usize),
    /// Not JSON at all.
    #[error("the value is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// JSON with faults: every one found.
    #[error("{}", list(.0))]
    Fields(Vec<ServiceFieldError>),
}

fn list(errors: &[ServiceFieldError]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" | ")
}

/// Reads `value` as JSON and hands its root to `read`; the result counts only when no fault was noted.
pub(crate) fn parse<T>(
    value: &[u8],
    read: impl FnOnce(&Field<'_>, &mut Faults) -> Option<T>,
) -> Result<T, ServiceValueError> {
    if value.len() > MAX_SERVICE_VALUE {
        return Err(ServiceValueError::TooLong(value.len()));
    }
    let value: Value = serde_json::from_slice(value).map_err(ServiceValueError::NotJson)?;
    read_value(&value, read).map_err(ServiceValueError::Fields)
}

/// The same for JSON that is already read.
pub(crate) fn read_value<T>(
    value: &Value,
    read: impl FnOnce(&Field<'_>, &mut Faults) -> Option<T>,
) -> Result<T, Vec<ServiceFieldError>> {
    let mut faults = Faults::default();
    let root = Field {
        path: String::new(),
        value: Some(value),
    };
    let out = if value.is_object() {
        read(&root, &mut faults)
    } else {
        faults.add(&root, "a JSON object");
        None
    };
    match out {
        Some(out) if faults.0.is_empty() => Ok(out),
        _ => Err(faults.0),
    }
}

/// The faults found so far.
#[derive(Default)]
pub(crate) struct Faults(Vec<ServiceFieldError>);

impl Faults {
    /// Notes that `field` is not what was `expected`.
    pub(crate) fn add(&mut self, field: &Field<'_>, expected: impl Into<String>) {
        let path = if field.path.is_empty() {
            "value".to_owned()
        } else {
            field.path.clone()
        };
        self.0.push(ServiceFieldError {
            field: path,
            found: field.found(),
            expected: expected.into(),
        });
    }
}

/// A place in a JSON value. `null` counts as absent, as Kubernetes has it.
pub(crate) struct Field<'a> {
    path: String,
    value: Option<&'a Value>,
}

impl<'a> Field<'a> {
    /// The member `name` of this object.
    pub(crate) fn get(&self, name: &str) -> Field<'a> {
        let path = if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        };
        let value = self.value.and_then(|v| v.get(name)).filter(|v| !v.is_null());
        Field { path, value }
    }

    /// Whether nothing stands here.
    pub(crate) fn is_absent(&self) -> bool {
        self.value.is_none()
    }

    /// The items of this list; none when absent.
    pub(crate) fn items(&self, faults: &mut Faults) -> Vec<Field<'a>> {
        match self.value {
            None => Vec::new(),
            Some(Value::Array(items)) => {
                let item = |(i, value)| Field {
                    path: format!("{}[{i}]", self.path),
                    value: Some(value),
                };
                items.iter().enumerate().map(item).collect()
            }
            Some(_) => {
                faults.add(self, "a list");
                Vec::new()
            }
        }
    }

    /// What `read` makes of the value; absent is `None` without a fault, a value that `read` refuses is a fault.
    pub(crate) fn optional<T>(
        &self,
        faults: &mut Faults,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let out = read(self.value?);
        if out.is_none() {
            faults.add(self, expected);
        }
        out
    }

    /// The same where absence is a fault, too.
    pub(crate) fn required<T>(
        &self,
        faults: &mut Faults,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        if self.is_absent() {
            faults.add(self, expected);
        }
        self.optional(faults, expected, read)
    }

    /// A text, absent when empty.
    pub(crate) fn text(&self, faults: &mut Faults) -> Option<&'a str> {
        self.optional(faults, "a text", Value::as_str)
            .filter(|t| !t.is_empty())
    }

    fn found(&self) -> String {
        let Some(value) = self.value else {
            return "is missing".to_owned();
        };
        let text = value.to_string();
        let mut short: String = text.chars().take(EXCERPT).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        format!("{short} is refused")
    }
}

impl fmt::Debug for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.found())
    }
}

/// A port number from 1 to 65535.
pub(crate) fn port_number(value: &Value) -> Option<u16> {
    value
        .as_u64()
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n != 0)
}

/// What [`port_number`] takes, in words.
pub(crate) const PORT_NUMBER: &str = "a port number from 1 to 65535";

/// A value that `FromStr` reads.
pub(crate) fn from_text<T: std::str::FromStr>(value: &Value) -> Option<T> {
    value.as_str()?.parse().ok()
}
