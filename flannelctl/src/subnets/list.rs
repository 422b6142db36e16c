//! `flannelctl subnets`: every lease in one line.

use flannel_model::{EtcdPrefix, VxlanLeaseData};
use flannel_store::Store;
use serde::Serialize;
use serde_json::Value;

use super::record::{Listing, Record, read};
use super::state::{State, states};
use crate::failure::Failure;
use crate::output::{Output, Rejected, columns, rejected_lines, span, wall_seconds};

/// The leases as they are shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    subnets: Vec<Subnet>,
    rejected: Vec<Rejected>,
}

/// One lease as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subnet {
    /// `null` in a network without IPv4.
    subnet: Option<String>,
    ipv6_subnet: Option<String>,
    #[serde(rename = "publicIP")]
    public_ip: String,
    #[serde(rename = "publicIPv6")]
    public_ipv6: Option<String>,
    /// The identity of the node; a node of flannel has none.
    #[serde(rename = "nodeID")]
    node_id: Option<String>,
    /// Absent in leases of flannel's udp and alloc backends.
    backend: Option<String>,
    backend_data: Option<Value>,
    backend_v6_data: Option<Value>,
    state: State,
    /// The key hangs on no lease and never expires.
    reservation: bool,
    /// Since when its node holds it, in seconds since 1970; `null` for a node of flannel, which does not write that down.
    held_since: Option<u64>,
    /// The same as a time span.
    age_seconds: Option<u64>,
    /// `null` for a reservation, and when etcd did not say.
    renewed_seconds_ago: Option<u32>,
    /// The same.
    expires_in_seconds: Option<u32>,
    key: String,
}

impl Subnet {
    /// What is shown of a record.
    pub fn new(record: &Record, state: State) -> Self {
        let json = |raw: &Option<Box<serde_json::value::RawValue>>| {
            raw.as_ref()
                .and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok())
        };
        let value = &record.value;
        Self {
            subnet: record.key.ipv4().map(|subnet| subnet.to_string()),
            ipv6_subnet: record.key.ipv6().map(|subnet| subnet.to_string()),
            public_ip: value.public_ip.to_string(),
            public_ipv6: value.public_ipv6.map(|address| address.to_string()),
            node_id: value.node_id.map(|id| id.to_string()),
            backend: value.backend_type.clone(),
            backend_data: json(&value.backend_data),
            backend_v6_data: json(&value.backend_v6_data),
            state,
            reservation: record.is_reservation(),
            held_since: record.held_since,
            age_seconds: record
                .held_since
                .map(|since| wall_seconds().saturating_sub(since)),
            renewed_seconds_ago: record.lifetime.map(|life| life.granted.saturating_sub(life.left)),
            expires_in_seconds: record.lifetime.map(|life| life.left),
            key: record.kv.key.clone(),
        }
    }

    /// Both subnets in one text.
    pub fn subnets(&self) -> String {
        both(self.subnet.as_deref(), self.ipv6_subnet.as_deref())
    }

    /// Both addresses in one text.
    pub fn addresses(&self) -> String {
        let ipv4 = Some(self.public_ip.as_str()).filter(|address| *address != "0.0.0.0");
        both(ipv4, self.public_ipv6.as_deref())
    }

    /// How long its node has it; where nobody wrote that down, what is known of it: at least since it was renewed.
    pub fn age(&self) -> String {
        match (self.age_seconds, self.renewed_seconds_ago) {
            (Some(secs), _) => span(secs),
            (None, Some(secs)) if !self.reservation => format!(">{}", span(secs.into())),
            (None, _) => "-".to_owned(),
        }
    }

    /// How long ago it was renewed.
    pub fn renewed(&self) -> String {
        match (self.reservation, self.renewed_seconds_ago) {
            (true, _) => "-".to_owned(),
            (false, Some(secs)) => span(secs.into()),
            (false, None) => "unknown".to_owned(),
        }
    }

    /// When it ends.
    pub fn expires(&self) -> String {
        match (self.reservation, self.expires_in_seconds) {
            (true, _) => "never".to_owned(),
            (false, Some(secs)) => span(secs.into()),
            (false, None) => "unknown".to_owned(),
        }
    }

    /// The backend's name.
    pub fn backend(&self) -> String {
        self.backend.clone().unwrap_or_else(|| "-".to_owned())
    }

    /// VNI and MAC of a VXLAN lease; the JSON itself of another.
    fn data(&self) -> String {
        let vxlan = self.backend.as_deref() == Some("vxlan");
        let shown = |data: &Value| {
            let raw = serde_json::value::to_raw_value(data).ok()?;
            let read = VxlanLeaseData::parse(&raw).ok().filter(|_| vxlan);
            Some(match read {
                Some(vxlan) => format!("VNI {} {}", vxlan.vni, vxlan.vtep_mac),
                None => data.to_string().chars().take(60).collect(),
            })
        };
        let of_ipv4 = self.backend_data.as_ref().and_then(shown);
        let of_ipv6 = || self.backend_v6_data.as_ref().and_then(shown);
        of_ipv4.or_else(of_ipv6).unwrap_or_else(|| "-".to_owned())
    }

    /// The identity's beginning is enough to tell nodes apart.
    fn owner(&self) -> String {
        self.node_id
            .as_ref()
            .map_or("-".to_owned(), |id| id.chars().take(8).collect())
    }
}

fn both(ipv4: Option<&str>, ipv6: Option<&str>) -> String {
    let known: Vec<&str> = [ipv4, ipv6].into_iter().flatten().collect();
    known.join(",")
}

/// Shows all leases.
pub async fn show<S: Store>(store: &S, prefix: &EtcdPrefix, output: &mut Output) -> Result<(), Failure> {
    let listing = read(store, prefix).await?;
    output.show(&view(listing), table)
}

fn view(listing: Listing) -> View {
    let states = states(&listing);
    let subnets = listing
        .records
        .iter()
        .zip(states)
        .map(|(record, state)| Subnet::new(record, state));
    View {
        subnets: subnets.collect(),
        rejected: listing.rejected,
    }
}

fn table(view: &View) -> String {
    let header = [
        "SUBNET",
        "PUBLIC IP",
        "NODE",
        "BACKEND",
        "STATE",
        "AGE",
        "RENEWED",
        "EXPIRES",
        "DATA",
    ];
    let rows = view.subnets.iter().map(|subnet| {
        [
            subnet.subnets(),
            subnet.addresses(),
            subnet.owner(),
            subnet.backend(),
            subnet.state.to_string(),
            subnet.age(),
            subnet.renewed(),
            subnet.expires(),
            subnet.data(),
        ]
    });
    columns(header, rows) + &rejected_lines(&view.rejected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::NewLease;
    use flannel_store::memory::MemoryStore;

    use crate::cli::Format;

    fn vxlan(n: u8) -> String {
        format!(
            r#"{{"PublicIP":"192.168.50.{n}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"8a:55:6f:01:02:{n:02x}"}}}}"#
        )
    }

    async fn lease(store: &MemoryStore, key: &str, value: &str) {
        let key = format!("/n/subnets/{key}");
        store
            .create(&key, value, NewLease::any(86_400), &[])
            .await
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn good_and_bad_records() {
        let store = MemoryStore::new();
        let prefix = EtcdPrefix::new("/n");
        lease(&store, "10.5.10.0-24", &vxlan(11)).await;
        lease(&store, "10.5.9.0-24", r#"{"PublicIP":"192.168.50.12"}"#).await;
        lease(
            &store,
            "10.5.20.0-24&fd00:5:0:20::-64",
            &vxlan(20).replace("null", "\"fd00:50::20\""),
        )
        .await;
        for (key, value) in [
            ("10.5.11.0-24", r#"{"PublicIP":"192.168.50.13"}"#),
            ("0.0.0.0-0", "{}"),
            ("fd00::-64", "{}"),
            ("10.5.13.0-24", "junk"),
        ] {
            store.put(&format!("/n/subnets/{key}"), value).await.unwrap();
        }
        let found = view(read(&store, &prefix).await.unwrap());
        let names: Vec<String> = found.subnets.iter().map(Subnet::subnets).collect();
        assert_eq!(
            names,
            [
                "10.5.9.0/24",
                "10.5.10.0/24",
                "10.5.11.0/24",
                "10.5.20.0/24,fd00:5:0:20::/64"
            ]
        );
        let states: Vec<State> = found.subnets.iter().map(|subnet| subnet.state).collect();
        assert_eq!(states, [State::Held, State::Held, State::Reserved, State::Held]);
        assert_eq!(found.rejected.len(), 3);

        let mut output = Output::new(Format::Table);
        show(&store, &prefix, &mut output).await.unwrap();
        let text = format!("{output:?}");
        for part in [
            "24h0m",
            "never",
            "VNI 1 8a:55:6f:01:02:0b",
            "192.168.50.20,fd00:50::20",
            "/n/subnets/10.5.13.0-24: the value is not a JSON object",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_odd_shows_as_its_state() {
        let store = MemoryStore::new();
        store
            .put("/n/config", r#"{"Network":"10.5.0.0/16"}"#)
            .await
            .unwrap();
        for (key, n) in [
            ("10.5.1.0-24", 1),
            ("10.5.2.0-24", 2),
            ("10.5.3.0-24", 2),
            ("10.6.1.0-24", 3),
            ("10.5.1.0-25", 4),
        ] {
            lease(&store, key, &vxlan(n)).await;
        }
        lease(&store, "10.5.9.0-24", &vxlan(9)).await;
        tokio::time::advance(std::time::Duration::from_secs(86_000)).await;
        lease(&store, "10.5.8.0-24", &vxlan(8)).await;
        let found = view(read(&store, &EtcdPrefix::new("/n")).await.unwrap());
        let state = |subnet: &str| {
            found
                .subnets
                .iter()
                .find(|s| s.subnets() == subnet)
                .unwrap()
                .state
        };
        assert_eq!(state("10.5.2.0/24"), State::Duplicate);
        assert_eq!(state("10.5.3.0/24"), State::Duplicate);
        assert_eq!(state("10.6.1.0/24"), State::Outside);
        assert_eq!(state("10.5.1.0/25"), State::Overlap);
        assert_eq!(state("10.5.9.0/24"), State::Expiring);
        assert_eq!(state("10.5.8.0/24"), State::Held);
    }
}
