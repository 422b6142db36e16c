//! `flannelctl subnets show`: all that is known of one lease.

use std::fmt::Write as _;
use std::net::IpAddr;

use flannel_model::EtcdPrefix;
use flannel_store::Store;
use serde::Serialize;

use super::key::{is_meant, parse};
use super::list::Subnet;
use super::record::read;
use super::state::states;
use crate::failure::Failure;
use crate::output::{Output, printable};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    #[serde(flatten)]
    subnet: Subnet,
    /// The value as it stands in etcd.
    value: String,
    /// Number of the etcd lease, as `etcdctl lease` shows it; `null` for a reservation.
    etcd_lease: Option<String>,
    create_revision: i64,
    mod_revision: i64,
    /// When it was known to be in use for the last time, in seconds since 1970, by the clock of its node.
    last_held: Option<u64>,
    #[serde(skip)]
    owner: String,
    #[serde(skip)]
    state: String,
}

/// Shows the lease that `text` means: a subnet, a key, or the address of a pod.
pub async fn show<S: Store>(
    store: &S,
    prefix: &EtcdPrefix,
    text: &str,
    output: &mut Output,
) -> Result<(), Failure> {
    if text.parse::<IpAddr>().is_err() {
        parse(text)?;
    }
    let listing = read(store, prefix).await?;
    let states = states(&listing);
    let found = listing
        .records
        .iter()
        .zip(states)
        .find(|(record, _)| is_meant(&record.key, text));
    let Some((record, state)) = found else {
        return Err(Failure::NotFound(format!(
            "no lease is, or holds, {}; see flannelctl subnets",
            printable(text)
        )));
    };
    let note = listing.notes.get(&record.key);
    let view = View {
        subnet: Subnet::new(record, state),
        value: String::from_utf8_lossy(&record.kv.value).into_owned(),
        etcd_lease: (!record.is_reservation()).then(|| format!("{:x}", record.kv.lease.0)),
        create_revision: record.kv.create_revision,
        mod_revision: record.kv.mod_revision,
        last_held: note.map(|note| note.last_held),
        owner: record.owner(),
        state: state.to_string(),
    };
    output.show(&view, table)
}

fn table(view: &View) -> String {
    let mut text = String::new();
    let lines = [
        ("Subnet", view.subnet.subnets()),
        ("Public IP", view.subnet.addresses()),
        ("Owner", view.owner.clone()),
        ("State", view.state.clone()),
        ("Backend", view.subnet.backend()),
        ("Age", view.subnet.age()),
        ("Renewed", view.subnet.renewed()),
        ("Expires", view.subnet.expires()),
        (
            "etcd lease",
            view.etcd_lease
                .clone()
                .unwrap_or_else(|| "none: a reservation".to_owned()),
        ),
        ("Created at", format!("revision {}", view.create_revision)),
        ("Written at", format!("revision {}", view.mod_revision)),
        ("Value", printable(&view.value)),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<12}{value}");
    }
    text
}
