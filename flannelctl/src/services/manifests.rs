//! Manifests turned into records, each with the place that it came from.

use std::collections::BTreeMap;
use std::fmt;

use flannel_model::{ServiceKey, ServiceRecord, manifests_to_records};
use serde::Deserialize;
use serde_json::Value;

use super::input::Input;
use crate::failure::Failure;
use crate::output::{printable, with_causes};

/// Where a record came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    file: String,
    /// Counted from 1, empty documents included, as they stand in the file.
    document: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.file, self.document)
    }
}

/// One record to write or to delete.
#[derive(Debug)]
pub struct Wanted {
    /// Where it came from.
    pub origin: Origin,
    /// Its key behind `<prefix>/services/v1/`.
    pub key: ServiceKey,
    /// Its value.
    pub value: Value,
}

/// Every record of every document, in the order in which they stand.
///
/// # Errors
/// All problems of all documents, one a line: a document that is no YAML or JSON, a bad field, the same object twice.
pub fn records(inputs: &[Input]) -> Result<Vec<Wanted>, Failure> {
    let mut problems = Vec::new();
    let mut wanted = Vec::new();
    for input in inputs {
        for (origin, document) in documents(input) {
            match document.and_then(|document| convert(&document)) {
                Ok(records) => wanted.extend(records.into_iter().map(|(key, value)| Wanted {
                    origin: origin.clone(),
                    key,
                    value,
                })),
                Err(stories) => problems.extend(stories.iter().map(|story| format!("{origin}: {story}"))),
            }
        }
    }
    problems.extend(twice(&wanted));
    if !problems.is_empty() {
        let lines: Vec<String> = problems.iter().map(|line| printable(line)).collect();
        return Err(Failure::Content(format!(
            "{}\nNothing was changed.",
            lines.join("\n")
        )));
    }
    if wanted.is_empty() {
        let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        return Err(Failure::Content(format!("no object in {}", names.join(", "))));
    }
    Ok(wanted)
}

/// The documents of a file: JSON values one behind the other, or YAML.
fn documents(input: &Input) -> Vec<(Origin, Result<Value, Vec<String>>)> {
    let json = input.text.trim_start().starts_with('{');
    let parsed = match json {
        true => from_json(&input.text).or_else(|error| match from_yaml(&input.text) {
            // A flow mapping of YAML begins with a brace, too.
            yaml if yaml.iter().all(Result::is_ok) => Ok(yaml),
            _ => Err(error),
        }),
        false => Ok(from_yaml(&input.text)),
    };
    let documents = parsed.unwrap_or_else(|error| vec![Err(error)]);
    let numbered = documents.into_iter().enumerate().map(|(i, document)| {
        let origin = Origin {
            file: input.name.clone(),
            document: i + 1,
        };
        (origin, document.map_err(|error| vec![error]))
    });
    // A document with nothing in it is no mistake: many files begin with a line of dashes.
    numbered
        .filter(|(_, document)| !matches!(document, Ok(Value::Null)))
        .collect()
}

fn from_json(text: &str) -> Result<Vec<Result<Value, String>>, String> {
    let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let values: Result<Vec<Value>, _> = values.collect();
    let values = values.map_err(|error| format!("not JSON: {error}"))?;
    Ok(values.into_iter().map(Ok).collect())
}

fn from_yaml(text: &str) -> Vec<Result<Value, String>> {
    let mut out = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        // First YAML's own value, which refuses a key that stands twice.
        let value = serde_norway::Value::deserialize(document)
            .map_err(|error| format!("not YAML: {error}"))
            .and_then(|value| serde_json::to_value(value).map_err(|error| format!("not like JSON: {error}")));
        let end = value.is_err();
        out.push(value);
        // What stands behind a mistake cannot be told apart any more.
        if end {
            break;
        }
    }
    out
}

fn convert(document: &Value) -> Result<Vec<(ServiceKey, Value)>, Vec<String>> {
    let records = manifests_to_records(std::slice::from_ref(document))
        .map_err(|errors| errors.0.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    // What is written must be what a daemon reads, size included.
    let mut stories = Vec::new();
    for (key, value) in &records {
        if let Err(error) = ServiceRecord::parse(key, value.to_string().as_bytes()) {
            stories.push(format!("{}: {}", label(key), with_causes(&error)));
        }
    }
    match stories.is_empty() {
        true => Ok(records),
        false => Err(stories),
    }
}

/// Objects that are given twice. Ranges of addresses may be: they are added up.
fn twice(wanted: &[Wanted]) -> Vec<String> {
    let mut first: BTreeMap<&ServiceKey, &Origin> = BTreeMap::new();
    let mut problems = Vec::new();
    for record in wanted.iter().filter(|record| record.key != ServiceKey::Config) {
        if let Some(before) = first.insert(&record.key, &record.origin) {
            problems.push(format!(
                "{}: {} stands in {before} already",
                record.origin,
                label(&record.key)
            ));
        }
    }
    problems
}

/// A key as its object is called: `service/shop/web`.
pub fn label(key: &ServiceKey) -> String {
    match key {
        ServiceKey::Config => "servicecidr".to_owned(),
        ServiceKey::Spec(service) => format!("service/{service}"),
        ServiceKey::Slice { service, slice } => format!("endpointslice/{}/{slice}", service.namespace()),
        ServiceKey::Endpoint { service, address, .. } => format!("endpoint/{service}/{address}"),
    }
}

/// The ranges in a value of the config key.
pub fn cidrs(value: &Value) -> Vec<String> {
    let list = value.get("cidrs").and_then(Value::as_array);
    let texts = list
        .into_iter()
        .flatten()
        .filter_map(|item| item.as_str().map(ToOwned::to_owned));
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "kind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n";

    fn of(text: &str) -> Result<Vec<Wanted>, String> {
        let input = Input {
            name: "a.yaml".to_owned(),
            text: text.to_owned(),
        };
        records(&[input]).map_err(|failure| match failure {
            Failure::Content(text) => text,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn documents_lists_and_json_are_read() {
        let many = format!(
            "---\n{SERVICE}---\n---\nkind: List\nitems:\n- {{kind: ServiceCIDR, metadata: {{name: a}}, spec: {{cidrs: [10.96.0.0/16]}}}}\n"
        );
        let found = of(&many).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(label(&found[0].key), "service/shop/web");
        assert_eq!(cidrs(&found[1].value), ["10.96.0.0/16"]);
        let json = r#"{"kind":"Service","metadata":{"name":"a"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]}}"#;
        assert_eq!(of(json).unwrap().len(), 1);
        assert_eq!(
            of(&format!("{json}\n{}", json.replace("\"a\"", "\"b\"")))
                .unwrap()
                .len(),
            2
        );
        let flow = "{kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}";
        assert_eq!(of(flow).unwrap().len(), 1);
    }

    #[test]
    fn problems_name_file_document_object_and_field() {
        let text = format!("{SERVICE}---\n{}", SERVICE.replace("port: 80", "port: 0"));
        let error = of(&text).unwrap_err();
        assert!(
            error.contains("a.yaml, document 2: Service shop/web: spec.ports[0].port: 0"),
            "{error}"
        );
        for (text, part) in [
            ("kind: [", "document 1: not YAML"),
            ("{\"kind\":", "document 1: not JSON"),
            ("kind: a\nkind: b\n", "duplicate"),
            ("1: 2", "document 1"),
            ("", "no object in a.yaml"),
            ("---\n---\n", "no object in a.yaml"),
            ("- a", "document 1: object without a name: kind"),
            (
                &format!("{SERVICE}---\n{SERVICE}"),
                "document 2: service/shop/web stands in a.yaml, document 1",
            ),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let refer = format!("*a{}", i - 1);
            bomb += &format!("a{i}: &a{i} [{}]\n", [refer.as_str(); 10].join(","));
        }
        assert!(of(&bomb).is_err());
    }
}
