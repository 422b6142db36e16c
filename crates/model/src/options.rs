//! Reading the options of a backend: one object, every error told.

use std::ops::RangeInclusive;

use serde_json::value::RawValue;

use crate::FieldError;
use crate::config_error::Reader;
use crate::json::Fields;

/// Reads the fields of the `Backend` object. Errors name them as `Backend.<field>`.
pub(crate) struct Options<'a>(Reader<'a>);

impl<'a> Options<'a> {
    /// The object's fields.
    pub(crate) fn fields(backend: &RawValue) -> Result<Fields, Vec<FieldError>> {
        let error = |_| {
            vec![FieldError::new(
                "Backend",
                backend.get(),
                "expected a JSON object",
            )]
        };
        serde_json::from_str(backend.get()).map_err(error)
    }

    pub(crate) fn new(fields: &'a Fields) -> Self {
        Self(Reader::new(fields))
    }

    pub(crate) fn error(&mut self, name: &str, value: &str, problem: &str) {
        self.0.error(&format!("Backend.{name}"), value, problem);
    }

    /// A whole number; `None` when it is absent or bad.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let raw = self.0.raw(name)?;
        let value = serde_json::from_str::<u64>(raw)
            .ok()
            .filter(|v| range.contains(v));
        if value.is_none() {
            let problem = format!(
                "expected a whole number from {} to {}",
                range.start(),
                range.end()
            );
            self.error(name, raw, &problem);
        }
        value
    }

    /// A UDP port; 0 counts as absent.
    pub(crate) fn port(&mut self, name: &str) -> Option<u16> {
        let value = self.number(name, 0..=u64::from(u16::MAX))?;
        u16::try_from(value).ok().filter(|port| *port != 0)
    }

    /// An MTU in bytes; 0 counts as absent.
    pub(crate) fn mtu(&mut self, name: &str, range: RangeInclusive<u64>) -> Option<u32> {
        let value = self.number(name, 0..=*range.end()).filter(|mtu| *mtu != 0)?;
        if !range.contains(&value) {
            let problem = format!(
                "expected at least {} (0 or nothing: the interface's own)",
                range.start()
            );
            self.error(name, &value.to_string(), &problem);
        }
        u32::try_from(value).ok()
    }

    /// True or false; absent is false.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let Some(raw) = self.0.raw(name) else { return false };
        serde_json::from_str(raw).unwrap_or_else(|_| {
            self.error(name, raw, "expected true or false");
            false
        })
    }

    /// A text; empty counts as absent.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        let raw = self.0.raw(name)?;
        match serde_json::from_str::<String>(raw) {
            Ok(text) => Some(text).filter(|text| !text.is_empty()),
            Err(_) => {
                // It may have been meant to be secret.
                self.error(name, "no text", "expected a text in quotes");
                None
            }
        }
    }

    /// The options, unless something was wrong.
    pub(crate) fn finish<T>(self, options: T) -> Result<T, Vec<FieldError>> {
        if self.0.errors.is_empty() {
            Ok(options)
        } else {
            Err(self.0.errors)
        }
    }
}
