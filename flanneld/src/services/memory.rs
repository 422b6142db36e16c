//! The records of the services prefix, read, with the last good value of each that turned bad.

use std::collections::BTreeMap;

use flannel_model::{ServiceKey, ServiceRecord};
use flannel_plan::ServiceFacts;

use super::RawRecord;
use crate::said::chain;

/// Key of the cluster-wide config, behind `<prefix>/services/v1/`.
const CONFIG: &str = "config";

/// What is remembered of the records between passes.
#[derive(Debug, Default)]
pub(super) struct RecordMemory {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    value: Vec<u8>,
    /// What the value says, or the last one that said something.
    good: Option<(ServiceKey, ServiceRecord)>,
    /// Why the value is not used.
    fault: Option<String>,
}

impl RecordMemory {
    /// The facts in `records`; faults are added to `rejects`. A record that turned bad counts with its last good value, so that
    /// a typing error takes no Service away. `None` when there is a config of which no good value is known: nothing can be
    /// said about what should be there then.
    pub(super) fn facts(
        &mut self,
        records: &BTreeMap<String, RawRecord>,
        rejects: &mut Vec<(String, String)>,
    ) -> Option<ServiceFacts> {
        self.entries.retain(|key, _| records.contains_key(key));
        let mut facts = ServiceFacts::default();
        for (key, raw) in records {
            let entry = self.read(key, &raw.value);
            if let Some(fault) = &entry.fault {
                rejects.push((key.clone(), fault.clone()));
            }
            match &entry.good {
                Some((key, record)) => facts.add(key.clone(), record.clone(), raw.create_revision),
                None if key == CONFIG => return None,
                None => {}
            }
        }
        Some(facts)
    }

    /// Reads a value unless it is the one that was read before.
    fn read(&mut self, key: &str, value: &[u8]) -> &Entry {
        let before = self.entries.remove(key);
        let entry = match before {
            Some(entry) if entry.value == value => entry,
            before => {
                let value = value.to_vec();
                match parse(key, &value) {
                    Ok(good) => Entry {
                        value,
                        good: Some(good),
                        fault: None,
                    },
                    Err(fault) => bad(value, before.and_then(|b| b.good), fault),
                }
            }
        };
        self.entries.entry(key.to_owned()).or_insert(entry)
    }
}

fn bad(value: Vec<u8>, good: Option<(ServiceKey, ServiceRecord)>, mut fault: String) -> Entry {
    if good.is_some() {
        fault.push_str(" (its former value stays in use)");
    }
    Entry {
        value,
        good,
        fault: Some(fault),
    }
}

fn parse(key: &str, value: &[u8]) -> Result<(ServiceKey, ServiceRecord), String> {
    let key = ServiceKey::parse(key).map_err(|error| chain(&error))?;
    let record = ServiceRecord::parse(&key, value).map_err(|error| chain(&error))?;
    Ok((key, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(list: &[(&str, &[u8])]) -> BTreeMap<String, RawRecord> {
        let raw = |value: &[u8]| RawRecord {
            value: value.to_vec(),
            create_revision: 1,
        };
        list.iter()
            .map(|(key, value)| ((*key).to_owned(), raw(value)))
            .collect()
    }

    const SPEC: &[u8] = br#"{"clusterIP":"10.96.0.10","ports":[{"port":80}]}"#;

    #[test]
    fn hostile_records_beside_good_ones_are_reported_and_skipped() {
        let mut rejects = Vec::new();
        let junk = vec![0xff; 1 << 20];
        let list: [(&str, &[u8]); 5] = [
            ("config", br#"{"cidrs":["10.96.0.0/16"]}"#),
            ("spec/shop/web", SPEC),
            ("spec/../web", SPEC),
            ("spec/shop/junk", &junk),
            ("endpoints/shop/web/-/0.0.0.0:x", b"{}"),
        ];
        let facts = RecordMemory::default()
            .facts(&records(&list), &mut rejects)
            .unwrap();
        assert_eq!(facts.specs.len(), 1);
        let keys: Vec<&str> = rejects.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys,
            ["endpoints/shop/web/-/0.0.0.0:x", "spec/../web", "spec/shop/junk"]
        );
    }

    #[test]
    fn a_record_that_turns_bad_keeps_its_former_value_until_it_is_deleted() {
        let mut memory = RecordMemory::default();
        let mut rejects = Vec::new();
        memory.facts(&records(&[("spec/shop/web", SPEC)]), &mut rejects);
        assert_eq!(rejects, []);
        let facts = memory
            .facts(&records(&[("spec/shop/web", b"{")]), &mut rejects)
            .unwrap();
        assert_eq!(facts.specs.len(), 1);
        assert!(
            rejects[0].1.contains("not JSON") && rejects[0].1.contains("former value"),
            "{rejects:?}"
        );
        let facts = memory.facts(&records(&[]), &mut rejects).unwrap();
        assert_eq!(facts.specs.len(), 0);
        let facts = memory
            .facts(&records(&[("spec/shop/web", b"{")]), &mut rejects)
            .unwrap();
        assert_eq!(facts.specs.len(), 0, "a deleted value is forgotten");
    }

    #[test]
    fn an_unreadable_config_means_that_nothing_is_known() {
        let mut memory = RecordMemory::default();
        let mut rejects = Vec::new();
        let bad = records(&[("config", b"{"), ("spec/shop/web", SPEC)]);
        assert!(memory.facts(&bad, &mut rejects).is_none());
        let good = records(&[("config", br#"{"cidrs":["10.96.0.0/16"]}"#)]);
        memory.facts(&good, &mut rejects).unwrap();
        assert_eq!(memory.facts(&bad, &mut rejects).unwrap().config.cidrs.len(), 1);
    }
}
