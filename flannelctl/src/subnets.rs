//! `flannelctl subnets`: who holds which subnet.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_model::{EtcdPrefix, LeaseKey, LeaseValue, VxlanLeaseData};
use flannel_store::{KeyValue, LeaseId, Store, TimeToLive};
use futures::StreamExt;
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;
use crate::output::{Output, Rejected, columns, rejected_lines, span, with_causes};

/// Questions about leases that are under way at once.
const PARALLEL: usize = 64;
/// Time for all of them together; what is not answered by then is shown as unknown.
const EXPIRY_DEADLINE: Duration = Duration::from_millis(2500);

/// The leases as they are shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    subnets: Vec<Subnet>,
    rejected: Vec<Rejected>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Subnet {
    /// `null` in a network without IPv4.
    subnet: Option<String>,
    ipv6_subnet: Option<String>,
    #[serde(rename = "publicIP")]
    public_ip: String,
    #[serde(rename = "publicIPv6")]
    public_ipv6: Option<String>,
    /// Absent in leases of flannel's udp and alloc backends.
    backend: Option<String>,
    backend_data: Option<Value>,
    backend_v6_data: Option<Value>,
    /// The key hangs on no lease and never expires.
    reservation: bool,
    /// `null` for a reservation, and when etcd did not say.
    expires_in_seconds: Option<u32>,
    key: String,
    #[serde(skip)]
    lease: LeaseId,
    #[serde(skip)]
    vxlan: Option<VxlanLeaseData>,
}

/// Shows all leases.
pub async fn show<S: Store>(store: &S, prefix: &EtcdPrefix, output: &mut Output) -> Result<(), Failure> {
    let range = prefix.subnets();
    let listing = store.list(&range).await?;
    let mut view = view(&range, &listing.kvs);
    let expiries = expiries(store, &view.subnets).await;
    for subnet in &mut view.subnets {
        subnet.expires_in_seconds = expiries.get(&subnet.lease).copied();
    }
    output.show(&view, table)
}

async fn expiries<S: Store>(store: &S, subnets: &[Subnet]) -> BTreeMap<LeaseId, u32> {
    let leases: std::collections::BTreeSet<LeaseId> = subnets
        .iter()
        .map(|s| s.lease)
        .filter(|lease| !lease.is_none())
        .collect();
    let questions = futures::stream::iter(leases)
        .map(|lease| async move { (lease, store.time_to_live(lease).await) })
        .buffer_unordered(PARALLEL)
        .take_until(tokio::time::sleep(EXPIRY_DEADLINE));
    let answers = questions.filter_map(|(lease, answer)| async move {
        match answer {
            Ok(TimeToLive::Remaining { secs, .. }) => Some((lease, secs)),
            Ok(TimeToLive::Expired) => Some((lease, 0)),
            Err(_) => None,
        }
    });
    answers.collect().await
}

fn view(range: &str, kvs: &[KeyValue]) -> View {
    let mut view = View {
        subnets: Vec::new(),
        rejected: Vec::new(),
    };
    for kv in kvs {
        match subnet(range, kv) {
            Ok(subnet) => view.subnets.push(subnet),
            Err(reason) => view.rejected.push(Rejected {
                key: kv.key.clone(),
                reason,
            }),
        }
    }
    // In the order of addresses; etcd's is that of text, in which 10.5.10.0 comes before 10.5.9.0.
    view.subnets.sort_by_cached_key(|subnet| {
        let key = subnet.key.strip_prefix(range).unwrap_or_default();
        key.parse::<LeaseKey>().ok()
    });
    view
}

fn subnet(range: &str, kv: &KeyValue) -> Result<Subnet, String> {
    let key = kv.key.strip_prefix(range).unwrap_or(&kv.key);
    let key: LeaseKey = key.parse().map_err(|error| with_causes(&error))?;
    let value = LeaseValue::parse(&kv.value).map_err(|error| with_causes(&error))?;
    let json = |raw: Option<Box<serde_json::value::RawValue>>| {
        raw.and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok())
    };
    let vxlan = match (value.backend_type.as_deref(), &value.backend_data) {
        (Some("vxlan"), Some(data)) => Some(
            VxlanLeaseData::parse(data).map_err(|error| format!("BackendData of a vxlan lease: {error}"))?,
        ),
        (Some("vxlan"), None) => return Err("a vxlan lease without BackendData".to_owned()),
        _ => None,
    };
    let (data, v6_data) = (json(value.backend_data), json(value.backend_v6_data));
    Ok(Subnet {
        subnet: key.ipv4().map(|subnet| subnet.to_string()),
        ipv6_subnet: key.ipv6().map(|subnet| subnet.to_string()),
        public_ip: value.public_ip.to_string(),
        public_ipv6: value.public_ipv6.map(|address| address.to_string()),
        backend: value.backend_type,
        backend_data: data,
        backend_v6_data: v6_data,
        reservation: kv.lease.is_none(),
        expires_in_seconds: None,
        key: kv.key.clone(),
        lease: kv.lease,
        vxlan,
    })
}

fn table(view: &View) -> String {
    let header = ["SUBNET", "PUBLIC IP", "BACKEND", "DATA", "EXPIRES"];
    let both = |v4: Option<&String>, v6: &Option<String>| {
        let known: Vec<&str> = [v4, v6.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        known.join(",")
    };
    let rows = view.subnets.iter().map(|subnet| {
        [
            both(subnet.subnet.as_ref(), &subnet.ipv6_subnet),
            both(Some(&subnet.public_ip), &subnet.public_ipv6),
            subnet.backend.clone().unwrap_or_else(|| "-".to_owned()),
            data(subnet),
            match (subnet.reservation, subnet.expires_in_seconds) {
                (true, _) => "never".to_owned(),
                (false, Some(secs)) => span(secs),
                (false, None) => "unknown".to_owned(),
            },
        ]
    });
    columns(header, rows) + &rejected_lines(&view.rejected)
}

/// VNI and MAC of a VXLAN lease; the JSON itself of another.
fn data(subnet: &Subnet) -> String {
    match (&subnet.vxlan, &subnet.backend_data) {
        (Some(vxlan), _) => format!("VNI {} {}", vxlan.vni, vxlan.vtep_mac),
        (None, Some(data)) => data.to_string().chars().take(60).collect(),
        (None, None) => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::NewLease;
    use flannel_store::memory::MemoryStore;

    use crate::cli::Format;

    const VXLAN: &str = r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"}}"#;

    #[tokio::test(start_paused = true)]
    async fn good_and_bad_records() {
        let store = MemoryStore::new();
        let prefix = EtcdPrefix::new("/n");
        for (key, value) in [
            ("10.5.10.0-24", VXLAN),
            ("10.5.9.0-24", r#"{"PublicIP":"192.168.50.12"}"#),
        ] {
            let key = format!("/n/subnets/{key}");
            store
                .create(&key, value, NewLease::any(86_400), &[])
                .await
                .unwrap();
        }
        for (key, value) in [
            ("10.5.11.0-24", VXLAN),
            ("0.0.0.0-0", VXLAN),
            (
                "10.5.12.0-24",
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"\u001b"}}"#,
            ),
            ("10.5.13.0-24", "junk"),
        ] {
            store.put(&format!("/n/subnets/{key}"), value).await.unwrap();
        }
        let listing = store.list("/n/subnets/").await.unwrap();
        let found = view("/n/subnets/", &listing.kvs);
        let names: Vec<&str> = found.subnets.iter().filter_map(|s| s.subnet.as_deref()).collect();
        assert_eq!(names, ["10.5.9.0/24", "10.5.10.0/24", "10.5.11.0/24"]);
        assert_eq!(found.rejected.len(), 3);

        let mut output = Output::new(Format::Table);
        show(&store, &prefix, &mut output).await.unwrap();
        let text = format!("{output:?}");
        for part in [
            "24h0m",
            "never",
            "VNI 1 8a:55:6f:01:02:03",
            "/n/subnets/10.5.13.0-24: the value is not a JSON object",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
