//! `flannelctl subnets watch`: what happens to leases, line by line as it happens.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use flannel_model::{EtcdPrefix, LeaseKey, LeaseValue};
use flannel_store::{Event, KeyValue, Store, follow};
use serde::Serialize;

use crate::cli::Format;
use crate::failure::Failure;
use crate::output::{printable, with_causes};

/// One line.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    /// `listed`, `added`, `renewed`, `changed`, `moved`, `removed`, `rejected`, `lost` or `resumed`.
    event: &'static str,
    /// The subnet, both in dual stack, or the bare key of a record that cannot be read.
    subnet: Option<String>,
    #[serde(rename = "publicIP")]
    public_ip: Option<String>,
    backend: Option<String>,
    /// Why a record cannot be used, or why etcd cannot be followed.
    reason: Option<String>,
}

/// Prints changes until `timeout`, or for ever.
pub async fn watch<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    timeout: Option<Duration>,
    format: Format,
) -> Result<(), Failure> {
    let (ipv4_range, ipv6_range) = (prefix.subnets(), prefix.ipv6_subnets());
    // Told before the first line, because `follow` tries for ever.
    store.position().await?;
    let (_one, mut ipv4) = follow(store.clone(), ipv4_range.clone());
    let (_other, mut ipv6) = follow(store.clone(), ipv6_range.clone());
    let mut logs = [Log::new(ipv4_range), Log::new(ipv6_range)];
    let end = tokio::time::sleep(timeout.unwrap_or(Duration::MAX / 4));
    tokio::pin!(end);
    loop {
        let lines = tokio::select! {
            Some(event) = ipv4.recv() => logs[0].take(event),
            Some(event) = ipv6.recv() => logs[1].take(event),
            () = &mut end => return Ok(()),
            else => return Ok(()),
        };
        match print(&lines, format) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
}

fn print(lines: &[Line], format: Format) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for line in lines {
        match format {
            Format::Table => writeln!(out, "{}", text(line))?,
            Format::Json => writeln!(out, "{}", serde_json::to_string(line).unwrap_or_default())?,
            Format::Yaml => write!(out, "---\n{}", serde_norway::to_string(line).unwrap_or_default())?,
        }
    }
    out.flush()
}

fn text(line: &Line) -> String {
    let part = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"));
    let head = format!("{:<9}", line.event);
    match &line.reason {
        Some(reason) if line.subnet.is_none() => format!("{head}{}", printable(reason)),
        Some(reason) => format!("{head}{}  {}", part(&line.subnet), printable(reason)),
        None => format!(
            "{head}{:<20}  {:<16}  {}",
            part(&line.subnet),
            part(&line.public_ip),
            part(&line.backend)
        ),
    }
}

/// What was seen of one range.
struct Log {
    range: String,
    known: BTreeMap<String, KeyValue>,
    listing: BTreeMap<String, KeyValue>,
    first: bool,
}

impl Log {
    fn new(range: String) -> Self {
        Self {
            range,
            known: BTreeMap::new(),
            listing: BTreeMap::new(),
            first: true,
        }
    }

    fn take(&mut self, event: Event) -> Vec<Line> {
        match event {
            Event::Init => {
                self.listing.clear();
                Vec::new()
            }
            Event::InitApply(kv) => {
                self.listing.insert(kv.key.clone(), kv);
                Vec::new()
            }
            Event::InitDone { .. } => self.listed(),
            Event::Apply(kv) => self.put(kv, "added").into_iter().collect(),
            Event::Delete { key, .. } => self.removed(&key).into_iter().collect(),
            Event::Lost { reason } => vec![told("lost", Some(reason.to_string()))],
            Event::Resumed { .. } => vec![told("resumed", None)],
        }
    }

    /// A complete list: what is not in it is gone.
    fn listed(&mut self) -> Vec<Line> {
        let new = if std::mem::take(&mut self.first) {
            "listed"
        } else {
            "added"
        };
        let gone: Vec<String> = self
            .known
            .keys()
            .filter(|key| !self.listing.contains_key(*key))
            .cloned()
            .collect();
        let mut lines: Vec<Line> = gone.iter().filter_map(|key| self.removed(key)).collect();
        for kv in std::mem::take(&mut self.listing).into_values() {
            lines.extend(self.put(kv, new));
        }
        lines
    }

    fn put(&mut self, kv: KeyValue, new: &'static str) -> Option<Line> {
        let before = self.known.insert(kv.key.clone(), kv.clone());
        let line = self.line(&kv, new);
        match before {
            None => Some(line),
            Some(before) if before.value == kv.value && before.lease == kv.lease => None,
            // A node of flannel puts the same value below another etcd lease to renew it.
            Some(before) if before.value == kv.value => Some(Line {
                event: "renewed",
                ..line
            }),
            Some(before) => {
                let moved = self.line(&before, new).public_ip != line.public_ip;
                let event = if moved { "moved" } else { "changed" };
                match line.event {
                    "rejected" => Some(line),
                    _ => Some(Line { event, ..line }),
                }
            }
        }
    }

    fn removed(&mut self, key: &str) -> Option<Line> {
        let before = self.known.remove(key)?;
        Some(Line {
            event: "removed",
            reason: None,
            ..self.line(&before, "removed")
        })
    }

    fn line(&self, kv: &KeyValue, event: &'static str) -> Line {
        let key = kv.key.strip_prefix(&self.range).unwrap_or(&kv.key);
        let rejected = |reason: String| Line {
            event: "rejected",
            subnet: Some(key.to_owned()),
            public_ip: None,
            backend: None,
            reason: Some(reason),
        };
        let lease: LeaseKey = match key.parse() {
            Ok(lease) => lease,
            Err(error) => return rejected(with_causes(&error)),
        };
        let value = match LeaseValue::parse(&kv.value) {
            Ok(value) => value,
            Err(error) => return rejected(with_causes(&error)),
        };
        let subnets = [
            lease.ipv4().map(|s| s.to_string()),
            lease.ipv6().map(|s| s.to_string()),
        ];
        let address = match value.public_ipv6 {
            Some(ipv6) if value.public_ip.is_unspecified() => ipv6.to_string(),
            _ => value.public_ip.to_string(),
        };
        Line {
            event,
            subnet: Some(subnets.into_iter().flatten().collect::<Vec<_>>().join(",")),
            public_ip: Some(address),
            backend: value.backend_type,
            reason: None,
        }
    }
}

fn told(event: &'static str, reason: Option<String>) -> Line {
    Line {
        event,
        subnet: None,
        public_ip: None,
        backend: None,
        reason: Some(reason.unwrap_or_else(|| "etcd is followed again".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::LeaseId;

    fn kv(key: &str, ip: &str, lease: i64) -> KeyValue {
        KeyValue {
            key: format!("/n/subnets/{key}"),
            value: format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan"}}"#).into_bytes(),
            create_revision: 1,
            mod_revision: 1,
            lease: LeaseId(lease),
        }
    }

    #[test]
    fn each_change_is_one_line() {
        let mut log = Log::new("/n/subnets/".to_owned());
        let mut events = |event: Event| -> Vec<String> { log.take(event).iter().map(text).collect() };
        assert!(
            events(Event::Apply(kv("10.5.1.0-24", "192.168.50.11", 1)))[0]
                .starts_with("added    10.5.1.0/24")
        );
        assert!(events(Event::Apply(kv("10.5.1.0-24", "192.168.50.11", 1))).is_empty());
        assert!(events(Event::Apply(kv("10.5.1.0-24", "192.168.50.11", 2)))[0].starts_with("renewed"));
        assert!(events(Event::Apply(kv("10.5.1.0-24", "192.168.50.12", 2)))[0].starts_with("moved"));
        let junk = KeyValue {
            value: b"junk".to_vec(),
            ..kv("10.5.2.0-24", "x", 1)
        };
        assert!(events(Event::Apply(junk))[0].starts_with("rejected 10.5.2.0-24"));
        let gone = Event::Delete {
            key: "/n/subnets/10.5.1.0-24".to_owned(),
            mod_revision: 9,
        };
        assert!(events(gone)[0].starts_with("removed  10.5.1.0/24"));
    }

    #[test]
    fn a_new_list_tells_only_what_differs() {
        let mut log = Log::new("/n/subnets/".to_owned());
        log.take(Event::Apply(kv("10.5.1.0-24", "192.168.50.11", 1)));
        log.take(Event::Apply(kv("10.5.2.0-24", "192.168.50.12", 1)));
        log.first = false;
        log.take(Event::Init);
        log.take(Event::InitApply(kv("10.5.2.0-24", "192.168.50.12", 1)));
        log.take(Event::InitApply(kv("10.5.3.0-24", "192.168.50.13", 1)));
        let lines: Vec<&str> = log.listed().iter().map(|line| line.event).collect();
        assert_eq!(lines, ["removed", "added"]);
    }
}
