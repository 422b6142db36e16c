//! The records of a source, with the last good value of each that turned bad. What they say is kept by the table alone.

use std::collections::BTreeMap;

use flannel_model::{ServiceKey, ServiceRecord};
use flannel_plan::ServiceTable;

/// A record as its source tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// What the source calls it, in messages too: the key behind `<prefix>/services/v1/`, or kind, namespace and name.
    pub name: String,
    /// What it says, or why it cannot be read.
    pub content: Result<(ServiceKey, ServiceRecord), String>,
    /// Grows with the time of its creation: the older of two Services that claim one address wins.
    pub created: i64,
}

/// Which records there are.
#[derive(Debug, Default)]
pub(super) struct RecordMemory {
    /// Where the table has what each record says, or said when it was good last; `None` for one that was never good.
    entries: BTreeMap<String, Option<ServiceKey>>,
    /// Why records are not used. Apart from the others, so that a pass need not look through all of them.
    faults: BTreeMap<String, String>,
}

/// Name of the config, on which everything hangs, with every source.
pub const CONFIG: &str = "config";

impl RecordMemory {
    /// Takes a record in. One that turned bad counts with its last good value, so that a typing error takes no Service away.
    pub(super) fn put(&mut self, record: Record, table: &mut ServiceTable) {
        let before = self.entries.remove(&record.name).flatten();
        let good = match record.content {
            Ok((key, value)) => {
                if let Some(old) = before.filter(|old| *old != key) {
                    table.set(old, None);
                }
                table.set(key.clone(), Some((value, record.created)));
                self.faults.remove(&record.name);
                Some(key)
            }
            Err(mut fault) => {
                if before.is_some() {
                    fault.push_str(" (its former value stays in use)");
                }
                self.faults.insert(record.name.clone(), fault);
                before
            }
        };
        self.entries.insert(record.name, good);
    }

    /// Forgets a record and all that it ever said.
    pub(super) fn gone(&mut self, name: &str, table: &mut ServiceTable) {
        self.faults.remove(name);
        if let Some(key) = self.entries.remove(name).flatten() {
            table.set(key, None);
        }
    }

    /// Which records are not used, and why.
    pub(super) fn faults(&self) -> impl Iterator<Item = (String, String)> {
        let pair = |(name, fault): (&String, &String)| (name.clone(), fault.clone());
        self.faults.iter().map(pair)
    }

    /// Whether it is known what should be there: not while there is a config of which no good value is known.
    pub(super) fn is_usable(&self) -> bool {
        self.entries.get(CONFIG).is_none_or(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service_feed::etcd_record;
    use flannel_plan::ServiceFacts;

    const SPEC: &[u8] = br#"{"clusterIP":"10.96.0.10","ports":[{"port":80}]}"#;

    #[derive(Default)]
    struct Kept {
        memory: RecordMemory,
        table: ServiceTable,
    }

    impl Kept {
        fn put(&mut self, name: &str, value: &[u8]) -> String {
            self.memory.put(etcd_record(name, value, 1), &mut self.table);
            self.memory
                .faults()
                .map(|(name, fault)| format!("{name}: {fault}\n"))
                .collect()
        }

        fn gone(&mut self, name: &str) {
            self.memory.gone(name, &mut self.table);
        }

        fn facts(&self) -> &ServiceFacts {
            self.table.facts()
        }
    }

    #[test]
    fn hostile_records_beside_good_ones_are_reported_and_skipped() {
        let mut kept = Kept::default();
        let junk = vec![0xff; 1 << 20];
        kept.put("config", br#"{"cidrs":["10.96.0.0/16"]}"#);
        kept.put("spec/shop/web", SPEC);
        kept.put("spec/../web", SPEC);
        kept.put("spec/shop/junk", &junk);
        kept.put("endpoints/shop/web/-/0.0.0.0:x", b"{}");
        assert_eq!(kept.facts().specs.len(), 1);
        let names: Vec<String> = kept.memory.faults().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["endpoints/shop/web/-/0.0.0.0:x", "spec/../web", "spec/shop/junk"]
        );
    }

    #[test]
    fn a_record_that_turns_bad_keeps_its_former_value_until_it_is_deleted() {
        let mut kept = Kept::default();
        assert_eq!(kept.put("spec/shop/web", SPEC), "");
        let faults = kept.put("spec/shop/web", b"{");
        assert_eq!(kept.facts().specs.len(), 1);
        assert!(
            faults.contains("not JSON") && faults.contains("former value"),
            "{faults}"
        );
        kept.gone("spec/shop/web");
        assert_eq!(kept.facts().specs.len(), 0);
        kept.put("spec/shop/web", b"{");
        assert_eq!(kept.facts().specs.len(), 0, "a deleted value is forgotten");
        assert_eq!(
            kept.put("spec/shop/web", SPEC),
            "",
            "a fault that is mended is no fault"
        );
    }

    #[test]
    fn an_unreadable_config_means_that_nothing_is_known() {
        let mut kept = Kept::default();
        kept.put("config", b"{");
        assert!(!kept.memory.is_usable());
        kept.put("config", br#"{"cidrs":["10.96.0.0/16"]}"#);
        kept.put("config", b"{");
        assert!(kept.memory.is_usable(), "the former value counts");
        assert_eq!(kept.facts().config.cidrs.len(), 1);
    }

    #[test]
    fn a_record_that_moves_to_another_service_leaves_the_first() {
        let mut kept = Kept::default();
        let slice = |service: &str| {
            let key = ServiceKey::parse(&format!("slices/shop/{service}/x")).unwrap();
            let value =
                br#"{"addressType":"IPv4","ports":[{"port":80}],"endpoints":[{"addresses":["10.5.1.2"]}]}"#;
            let record = ServiceRecord::parse(&key, value).unwrap();
            Record {
                name: "EndpointSlice shop/x".to_owned(),
                content: Ok((key, record)),
                created: 1,
            }
        };
        kept.memory.put(slice("web"), &mut kept.table);
        kept.memory.put(slice("db"), &mut kept.table);
        let services: Vec<String> = kept.facts().endpoints.keys().map(ToString::to_string).collect();
        assert_eq!(services, ["shop/db"]);
    }
}
