//! `flannelctl service apply`.

use std::collections::BTreeMap;

use flannel_model::{EtcdPrefix, ServiceKey, ServiceName, ServiceSpec, ServicesConfig};
use flannel_store::Store;
use serde_json::{Value, json};

use super::conflicts::{outside, shared_addresses};
use super::input::read_all;
use super::manifests::{Wanted, cidrs, label, records};
use super::stored::Stored;
use super::write::write;
use crate::failure::Failure;
use crate::output::{Output, with_causes};

/// What is to be written, and what is to be said.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Keys behind `<prefix>/services/v1/` and their values.
    puts: Vec<(String, String)>,
    /// One line an object: `service/shop/web created`.
    said: Vec<String>,
    warnings: Vec<String>,
}

/// Reads manifests, checks all of them and writes what is new.
pub async fn apply<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    files: &[String],
    output: &mut Output,
) -> Result<(), Failure> {
    let wanted = records(&read_all(files)?)?;
    let stored = Stored::read(store, prefix).await?;
    let plan = plan(&wanted, &stored).map_err(|problem| {
        let key = format!("{}config", prefix.services());
        Failure::Content(problem.replace("{config}", &key))
    })?;
    for warning in &plan.warnings {
        eprintln!("flannelctl: warning: {warning}");
    }
    let range = prefix.services();
    let puts: Vec<(String, String)> = plan
        .puts
        .into_iter()
        .map(|(key, value)| (format!("{range}{key}"), value))
        .collect();
    write(store, puts, Vec::new()).await?;
    for line in &plan.said {
        output.push(&format!("{line}\n"));
    }
    Ok(())
}

fn plan(wanted: &[Wanted], stored: &Stored) -> Result<Plan, String> {
    let config = merged_config(wanted, stored)?;
    let mut plan = Plan {
        puts: Vec::new(),
        said: Vec::new(),
        warnings: Vec::new(),
    };
    for record in wanted {
        if record.key == ServiceKey::Config {
            let known = stored.config.as_ref().map_or_else(Vec::new, texts);
            for cidr in cidrs(&record.value) {
                let said = if known.contains(&cidr) {
                    "unchanged"
                } else {
                    "created"
                };
                plan.said.push(format!("servicecidr/{cidr} {said}"));
            }
        } else {
            let said = put(&mut plan, &record.key, &record.value, stored);
            plan.said.push(format!("{} {said}", label(&record.key)));
        }
    }
    if let Some(config) = &config {
        put(&mut plan, &ServiceKey::Config, config, stored);
    }
    check(wanted, stored, config.as_ref(), &mut plan)?;
    Ok(plan)
}

/// Notes a write unless the same stands there already. Compared as JSON: the order of fields does not matter.
fn put(plan: &mut Plan, key: &ServiceKey, value: &Value, stored: &Stored) -> &'static str {
    let key = key.to_string();
    let said = match stored.value(&key) {
        None => "created",
        Some(old) if serde_json::from_slice::<Value>(old).is_ok_and(|old| old == *value) => {
            return "unchanged";
        }
        Some(_) => "configured",
    };
    plan.puts.push((key, value.to_string()));
    said
}

fn texts(config: &ServicesConfig) -> Vec<String> {
    config.cidrs.iter().map(ToString::to_string).collect()
}

/// The config with the new ranges, all other fields kept; `None` when no ranges are given.
fn merged_config(wanted: &[Wanted], stored: &Stored) -> Result<Option<Value>, String> {
    let new = wanted.iter().filter(|record| record.key == ServiceKey::Config);
    let new: Vec<String> = new.flat_map(|record| cidrs(&record.value)).collect();
    if new.is_empty() {
        return Ok(None);
    }
    let mut value = match stored.value("config") {
        None => json!({}),
        Some(old) => {
            let bad = |why: String| {
                format!(
                    "{{config}} is bad, so no range can be added to it: {why}; correct or delete that key"
                )
            };
            ServicesConfig::parse(old).map_err(|error| bad(with_causes(&error)))?;
            serde_json::from_slice::<Value>(old).map_err(|error| bad(error.to_string()))?
        }
    };
    let mut ranges = cidrs(&value);
    for cidr in new {
        if !ranges.contains(&cidr) {
            ranges.push(cidr);
        }
    }
    if let Some(map) = value.as_object_mut() {
        map.insert("cidrs".to_owned(), json!(ranges));
    }
    Ok(Some(value))
}

/// What is sound by itself but not beside the rest: shared addresses are refused, useless ones are warned of.
fn check(wanted: &[Wanted], stored: &Stored, config: Option<&Value>, plan: &mut Plan) -> Result<(), String> {
    let mut services: BTreeMap<ServiceName, ServiceSpec> = stored.specs.iter().cloned().collect();
    let mut new = BTreeMap::new();
    for record in wanted {
        if let ServiceKey::Spec(name) = &record.key
            && let Ok(spec) = ServiceSpec::from_value(&record.value)
        {
            services.insert(name.clone(), spec.clone());
            new.insert(name.clone(), (spec, &record.origin));
        }
    }
    let mut problems = Vec::new();
    for (address, one, other) in shared_addresses(&services) {
        // Two that stand there already are not our business now.
        if let Some((name, (_, origin))) = new.get_key_value(other).or_else(|| new.get_key_value(one)) {
            let rival = if name == other { one } else { other };
            problems.push(format!(
                "{origin}: Service {name}: spec.clusterIP: {address} is taken by Service {rival}; \
                 expected an address and port that no other Service has"
            ));
        }
    }
    if !problems.is_empty() {
        return Err(format!("{}\nNothing was changed.", problems.join("\n")));
    }
    let config = match config {
        Some(value) => ServicesConfig::parse(value.to_string().as_bytes()).unwrap_or_default(),
        None => stored.config.clone().unwrap_or_default(),
    };
    for (name, (spec, origin)) in &new {
        for ip in outside(&config, spec) {
            let ranges = match config.cidrs.is_empty() {
                true => "no service CIDR is set".to_owned(),
                false => format!("the service CIDRs are {}", texts(&config).join(", ")),
            };
            plan.warnings.push(format!(
                "{origin}: Service {name}: no node programs {ip}, because {ranges}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::input::Input;
    use super::*;
    use flannel_store::{KeyValue, LeaseId};

    const SERVICE: &str = "kind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n";
    const CIDR: &str = "kind: ServiceCIDR\nmetadata: {name: a}\nspec: {cidrs: [10.96.0.0/16]}\n";

    fn wanted(text: &str) -> Vec<Wanted> {
        let input = Input {
            name: "a.yaml".to_owned(),
            text: text.to_owned(),
        };
        records(&[input]).unwrap()
    }

    fn stored(records: &[(String, String)]) -> Stored {
        let kvs = records.iter().map(|(key, value)| KeyValue {
            key: key.clone(),
            value: value.clone().into_bytes(),
            create_revision: 1,
            mod_revision: 1,
            lease: LeaseId::NONE,
        });
        let mut kvs: Vec<KeyValue> = kvs.collect();
        kvs.sort_by(|a, b| a.key.cmp(&b.key));
        Stored::sort("", kvs)
    }

    #[test]
    fn created_unchanged_configured() {
        let both = format!("{SERVICE}---\n{CIDR}");
        let first = plan(&wanted(&both), &stored(&[])).unwrap();
        assert_eq!(
            first.said,
            ["service/shop/web created", "servicecidr/10.96.0.0/16 created"]
        );
        assert_eq!(first.puts.len(), 2);
        assert!(first.warnings.is_empty(), "{first:?}");

        let again = plan(&wanted(&both), &stored(&first.puts)).unwrap();
        assert_eq!(
            again.said,
            ["service/shop/web unchanged", "servicecidr/10.96.0.0/16 unchanged"]
        );
        assert!(again.puts.is_empty());

        let other = both
            .replace("port: 80", "port: 81")
            .replace("10.96.0.0/16", "10.97.0.0/16");
        let changed = plan(&wanted(&other), &stored(&first.puts)).unwrap();
        assert_eq!(
            changed.said,
            ["service/shop/web configured", "servicecidr/10.97.0.0/16 created"]
        );
        assert_eq!(changed.puts[1].1, r#"{"cidrs":["10.96.0.0/16","10.97.0.0/16"]}"#);
    }

    #[test]
    fn other_fields_of_the_config_are_kept_and_a_bad_one_is_told() {
        let old = ("config".to_owned(), r#"{"scheduler":"lc","later":1}"#.to_owned());
        let changed = plan(&wanted(CIDR), &stored(&[old])).unwrap();
        let value: Value = serde_json::from_str(&changed.puts[0].1).unwrap();
        assert_eq!(
            value,
            json!({"scheduler":"lc","later":1,"cidrs":["10.96.0.0/16"]})
        );
        let bad = ("config".to_owned(), "[".to_owned());
        let problem = plan(&wanted(CIDR), &stored(&[bad])).unwrap_err();
        assert!(problem.contains("is bad"), "{problem}");
    }

    #[test]
    fn an_address_that_is_taken_is_refused() {
        let rival = (
            "spec/shop/old".to_owned(),
            r#"{"clusterIP":"10.96.0.10","ports":[{"port":80}]}"#.to_owned(),
        );
        let problem = plan(&wanted(SERVICE), &stored(&[rival])).unwrap_err();
        assert!(
            problem.contains("a.yaml, document 1: Service shop/web: spec.clusterIP: TCP 10.96.0.10:80 is taken by Service shop/old"),
            "{problem}"
        );
    }

    #[test]
    fn an_address_outside_the_ranges_is_warned_of() {
        let plan = plan(&wanted(SERVICE), &stored(&[])).unwrap();
        assert!(plan.warnings[0].contains("no service CIDR is set"), "{plan:?}");
    }
}
