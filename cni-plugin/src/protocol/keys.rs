//! Reading JSON objects the way Go's decoder does: keys in any case, `null` as absent, unknown keys tolerated.
//!
//! Runtimes rely on it: containerd sends `HostPort` and `IngressRate` where the documents say `hostPort`.

use serde_json::{Map, Value};

use super::name::excerpt;
use super::{CniError, Code};

/// An object and where it stands in the configuration, for messages.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    path: &'a str,
    object: &'a Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// A view of `object`; `path` is `""` for the configuration itself, else like `delegate`.
    pub fn new(path: &'a str, object: &'a Map<String, Value>) -> Self {
        Self { path, object }
    }

    /// The value under `name`. `null` counts as absent.
    ///
    /// # Errors
    /// Code 7 when the key stands there twice in different case: which one is meant is anybody's guess.
    pub fn value(&self, name: &str) -> Result<Option<&'a Value>, CniError> {
        let mut same = self
            .object
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let first = same.next();
        match same.next() {
            Some((second, _)) => Err(CniError::new(
                Code::BadConfig,
                format!(
                    "{} is given twice, the second time as {second:?}",
                    self.full(name)
                ),
            )),
            None => Ok(first.map(|(_, value)| value).filter(|value| !value.is_null())),
        }
    }

    /// Text under `name`.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, CniError> {
        self.typed(name, "a string", Value::as_str)
    }

    /// A truth value under `name`.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>, CniError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A number within `least..=most` under `name`.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn number(&self, name: &str, least: u32, most: u32) -> Result<Option<u32>, CniError> {
        let within = |value: &Value| {
            let number = value.as_u64().and_then(|n| u32::try_from(n).ok())?;
            (least..=most).contains(&number).then_some(number)
        };
        self.typed(name, &format!("a number from {least} to {most}"), within)
    }

    /// A list under `name`.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn list(&self, name: &str) -> Result<&'a [Value], CniError> {
        let list = self.typed(name, "a list", |value| value.as_array().map(Vec::as_slice))?;
        Ok(list.unwrap_or_default())
    }

    /// Texts in a list under `name`.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, CniError> {
        let list = self.list(name)?;
        list.iter()
            .map(|item| match item.as_str() {
                Some(text) => Ok(text.to_owned()),
                None => Err(self.fault(name, item, "a list of strings")),
            })
            .collect()
    }

    /// An object under `name`.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, CniError> {
        self.typed(name, "an object", Value::as_object)
    }

    /// The error that `value` under `name` is not what was `expected`.
    pub fn fault(&self, name: &str, value: &Value, expected: &str) -> CniError {
        let shown = match value {
            Value::String(text) => excerpt(text),
            other => other.to_string().chars().take(80).collect(),
        };
        CniError::new(
            Code::BadConfig,
            format!("{} is {shown}; expected {expected}", self.full(name)),
        )
    }

    /// The name with its place in front.
    pub fn full(&self, name: &str) -> String {
        match self.path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, CniError> {
        let Some(value) = self.value(name)? else {
            return Ok(None);
        };
        read(value)
            .map(Some)
            .ok_or_else(|| self.fault(name, value, expected))
    }
}

/// The key of `object` that is `name` in any case.
pub fn key_like<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object
        .keys()
        .find(|key| key.eq_ignore_ascii_case(name))
        .map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn any_case_and_null() {
        let object = object(r#"{"SubNetFile":"/x","mtu":null,"other":1}"#);
        let keys = Keys::new("", &object);
        assert_eq!(keys.text("subnetFile"), Ok(Some("/x")));
        assert_eq!(keys.number("mtu", 0, 9), Ok(None));
        assert_eq!(keys.text("absent"), Ok(None));
    }

    #[test]
    fn faults_name_field_value_and_expectation() {
        let object = object(r#"{"mtu":-1,"on":"yes","l":[1],"o":[],"A":1,"a":2}"#);
        let keys = Keys::new("delegate", &object);
        let error = keys.number("mtu", 0, 65535).unwrap_err();
        assert_eq!(error.code, Code::BadConfig);
        assert_eq!(
            error.msg,
            r#"delegate.mtu is -1; expected a number from 0 to 65535"#
        );
        for error in [
            keys.boolean("on").unwrap_err(),
            keys.texts("l").unwrap_err(),
            keys.object("o").unwrap_err(),
            keys.value("a").unwrap_err(),
            keys.text("mtu").unwrap_err(),
        ] {
            assert_eq!(error.code, Code::BadConfig, "{error}");
        }
    }
}
