//! `flannelctl service delete`.

use std::collections::BTreeSet;

use flannel_model::{EtcdPrefix, ServiceKey, ServiceName, ServicesConfig};
use flannel_store::Store;
use serde_json::{Value, json};

use super::input::read_all;
use super::manifests::{Wanted, cidrs, label, records};
use super::stored::Stored;
use super::write::write;
use crate::failure::Failure;
use crate::output::Output;

/// What is to be done and said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Keys behind `<prefix>/services/v1/`.
    deletes: BTreeSet<String>,
    /// The config without the ranges that go.
    config: Option<String>,
    said: Vec<String>,
    missing: Vec<String>,
}

/// Deletes Services with everything under their names; none where one of the names cannot be one.
pub async fn delete_named<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    names: &[String],
    output: &mut Output,
) -> Result<(), Failure> {
    let services: BTreeSet<ServiceName> = names.iter().map(|name| named(name)).collect::<Result<_, _>>()?;
    let stored = Stored::read(store, prefix).await?;
    let mut plan = Plan::default();
    for service in &services {
        plan.service(service, &stored);
    }
    plan.run(store, prefix, output).await
}

fn named(name: &str) -> anyhow::Result<ServiceName> {
    let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
    ServiceName::new(namespace, short)
        .map_err(|error| anyhow::anyhow!("{name:?} is not the name of a Service: {error}"))
}

/// Deletes what manifests name.
pub async fn delete_files<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    files: &[String],
    output: &mut Output,
) -> Result<(), Failure> {
    let wanted = records(&read_all(files)?)?;
    let stored = Stored::read(store, prefix).await?;
    Plan::of(&wanted, &stored).run(store, prefix, output).await
}

impl Plan {
    fn of(wanted: &[Wanted], stored: &Stored) -> Self {
        let mut plan = Self::default();
        let mut ranges = Vec::new();
        for record in wanted {
            match &record.key {
                ServiceKey::Config => ranges.extend(cidrs(&record.value)),
                ServiceKey::Spec(service) => plan.service(service, stored),
                ServiceKey::Slice { .. } | ServiceKey::Endpoint { .. } => plan.one(&record.key, stored),
            }
        }
        if !ranges.is_empty() {
            plan.ranges(&ranges, stored);
        }
        plan
    }

    fn one(&mut self, key: &ServiceKey, stored: &Stored) {
        let text = key.to_string();
        // It may be on the list with its Service already.
        if stored.value(&text).is_some() {
            self.deletes.insert(text);
            self.said.push(format!("{} deleted", label(key)));
        } else {
            self.missing.push(label(key));
        }
    }

    /// The Service, its slices and its endpoints, unreadable ones included.
    fn service(&mut self, service: &ServiceName, stored: &Stored) {
        self.one(&ServiceKey::Spec(service.clone()), stored);
        for folder in ["slices", "endpoints"] {
            let below = format!("{folder}/{service}/");
            let keys = stored.raw.iter().map(|(key, _, _)| key);
            self.deletes
                .extend(keys.filter(|key| key.starts_with(&below)).cloned());
        }
    }

    fn ranges(&mut self, ranges: &[String], stored: &Stored) {
        let old = stored
            .value("config")
            .filter(|old| ServicesConfig::parse(old).is_ok());
        let old = old.and_then(|old| serde_json::from_slice::<Value>(old).ok());
        let mut value = old.unwrap_or_else(|| json!({}));
        let before = cidrs(&value);
        for range in ranges {
            match before.contains(range) {
                true => self.said.push(format!("servicecidr/{range} deleted")),
                false => self.missing.push(format!("servicecidr/{range}")),
            }
        }
        let kept: Vec<&String> = before.iter().filter(|range| !ranges.contains(range)).collect();
        if kept.len() < before.len()
            && let Some(map) = value.as_object_mut()
        {
            map.insert("cidrs".to_owned(), json!(kept));
            self.config = Some(value.to_string());
        }
    }

    async fn run<S: Store>(self, store: &S, prefix: &EtcdPrefix, output: &mut Output) -> Result<(), Failure> {
        let range = prefix.services();
        let whole = |key: &str| format!("{range}{key}");
        let puts: Vec<(String, String)> = self
            .config
            .into_iter()
            .map(|value| (whole("config"), value))
            .collect();
        let deletes: Vec<String> = self.deletes.iter().map(|key| whole(key)).collect();
        write(store, puts, deletes).await?;
        for line in &self.said {
            output.push(&format!("{line}\n"));
        }
        match self.missing.as_slice() {
            [] => Ok(()),
            missing => Err(Failure::NotFound(format!("not found: {}", missing.join(", ")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Format;
    use flannel_store::memory::MemoryStore;

    #[tokio::test]
    async fn a_service_goes_with_all_that_is_its_own() {
        let store = MemoryStore::new();
        let prefix = EtcdPrefix::new("/n");
        for key in [
            "spec/shop/web",
            "slices/shop/web/a",
            "endpoints/shop/web/-/10.5.1.2:80",
            "spec/shop/web2",
            "slices/shop/web2/a",
        ] {
            store.put(&format!("/n/services/v1/{key}"), "{}").await.unwrap();
        }
        let mut output = Output::new(Format::Table);
        let web = ["shop/web".to_owned()];
        let odd = [web[0].clone(), "Shop/..".to_owned()];
        let odd = delete_named(&store, &prefix, &odd, &mut output).await;
        assert!(matches!(odd, Err(Failure::Usage(_))));
        delete_named(&store, &prefix, &web, &mut output).await.unwrap();
        let left = store.list("/n/services/v1/").await.unwrap().kvs;
        let left: Vec<&str> = left.iter().map(|kv| kv.key.as_str()).collect();
        assert_eq!(
            left,
            [
                "/n/services/v1/slices/shop/web2/a",
                "/n/services/v1/spec/shop/web2"
            ]
        );
        // What is there goes, what is not is named.
        let both = [web[0].clone(), "shop/web2".to_owned(), "shop/web2".to_owned()];
        let again = delete_named(&store, &prefix, &both, &mut output).await;
        assert!(matches!(again, Err(Failure::NotFound(text)) if text == "not found: service/shop/web"));
        assert_eq!(store.list("/n/services/v1/").await.unwrap().kvs, []);
    }
}
