//! What is wrong with a network config, field by field.

use std::fmt;

/// One field that holds what it cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Name of the field, as flannel documents it.
    pub field: String,
    /// What it holds, shortened.
    pub value: String,
    /// What is wrong and what was expected.
    pub problem: String,
}

impl FieldError {
    /// An error about `field`; of a long `value` only the beginning is kept.
    pub fn new(field: &str, value: &str, problem: &str) -> Self {
        const LONGEST: usize = 80;
        let value = value.chars().take(LONGEST).collect();
        Self {
            field: field.to_owned(),
            value,
            problem: problem.to_owned(),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.field, self.value, self.problem)
    }
}

/// Everything that is wrong with a network config, at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<FieldError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Fields of one object, and the errors that reading them brought.
pub(crate) struct Reader<'a> {
    fields: &'a crate::json::Fields,
    /// Everything wrong so far.
    pub errors: Vec<FieldError>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(fields: &'a crate::json::Fields) -> Self {
        Self {
            fields,
            errors: Vec::new(),
        }
    }

    /// The bytes of a field; `null` counts as absent, as in Go.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a str> {
        self.fields
            .get(name)
            .map(serde_json::value::RawValue::get)
            .filter(|raw| *raw != "null")
    }

    pub(crate) fn error(&mut self, field: &str, value: &str, problem: impl AsRef<str>) {
        self.errors.push(FieldError::new(field, value, problem.as_ref()));
    }

    /// A true-or-false field.
    pub(crate) fn flag(&mut self, name: &str, default: bool) -> bool {
        let Some(raw) = self.raw(name) else { return default };
        serde_json::from_str(raw).unwrap_or_else(|_| {
            self.error(name, raw, "expected true or false");
            default
        })
    }
}
