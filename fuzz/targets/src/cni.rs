//! What a container runtime, and whatever writes to the plugin's folders, can send.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use flannel_cni::address::{Live, Range, RangeSet, Store, choose};
use flannel_cni::config::Network;
use flannel_cni::order::Order;
use flannel_cni::protocol::keys::Keys;
use flannel_cni::protocol::{AddResult, Call, CniArgs, NetworkName, SpecVersion, previous as read_previous};
use flannel_cni::protocol::{from_environment, read_object};
use flannel_model::SubnetEnv;
use serde_json::{Map, Value};

const ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// The configuration on stdin, up to the plan: what is accepted is within the bounds of the kernel and of the file system.
pub fn stdin(data: &[u8]) {
    let Ok(network) = read_object(data).and_then(Network::new) else {
        return;
    };
    assert!(
        is_name(network.name.as_str()),
        "the network's name {:?}",
        network.name
    );
    for path in [network.subnet_file(), network.data_dir(), network.lease_root()]
        .into_iter()
        .flatten()
    {
        assert!(path.is_absolute(), "{}", path.display());
    }
    let _ = read_previous(&network.keys(), network.version);
    let Ok(env) = SubnetEnv::parse(ENV) else {
        return;
    };
    let Ok(order) = Order::read(&network, &CniArgs::default(), &env) else {
        return;
    };
    let bridge = &order.bridge;
    assert!(is_device(bridge.name.as_str()), "the bridge {:?}", bridge.name);
    assert!(
        bridge.mtu.is_none_or(|mtu| (68..=65_535).contains(&mtu)),
        "MTU {:?}",
        bridge.mtu
    );
    assert!(bridge.mac.is_none_or(|mac| mac.is_unicast()), "{:?}", bridge.mac);
    assert!(!(bridge.hairpin && bridge.promisc), "hairpin and promiscuous");
    assert!(
        order.ipam.lease_root.is_absolute(),
        "{}",
        order.ipam.lease_root.display()
    );
    // What flannel's own plugin would read from the saved file is what we read.
    let saved = serde_json::to_vec(&order.delegate).unwrap_or_default();
    assert!(
        read_object(&saved[..]).is_ok_and(|again| again == order.delegate),
        "the saved configuration reads otherwise"
    );
}

/// The environment, as `NAME=VALUE` lines.
pub fn environment(data: &[u8]) {
    let lines = data.split(|byte| *byte == b'\n');
    let pairs: HashMap<&[u8], &[u8]> = lines
        .filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b'=')?;
            Some((&line[..at], &line[at + 1..]))
        })
        .collect();
    let get = |name: &str| {
        pairs
            .get(name.as_bytes())
            .map(|value| OsString::from_vec(value.to_vec()))
    };
    let Ok(Some(call)) = from_environment(get) else {
        return;
    };
    if let Call::Add { attachment, .. } | Call::Del { attachment, .. } | Call::Check { attachment, .. } = call
    {
        assert!(
            is_name(attachment.container.as_str()),
            "container {:?}",
            attachment.container
        );
        assert!(
            is_device(attachment.ifname.as_str()),
            "interface {:?}",
            attachment.ifname
        );
    }
}

/// CNI_ARGS.
pub fn arguments(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(args) = CniArgs::parse(text) {
        assert!(args.mac.is_none_or(|mac| mac.is_unicast()), "{:?}", args.mac);
    }
}

/// An earlier result in every version: what is read is written and read again the same.
pub fn previous(data: &[u8]) {
    let Ok(object) = read_object(data) else {
        return;
    };
    let mut config = Map::new();
    config.insert("prevResult".into(), Value::Object(object));
    for version in SpecVersion::ALL {
        let Ok(Some(result)) = read_previous(&Keys::new("", &config), version) else {
            continue;
        };
        let again = reread(&result, version);
        assert_eq!(
            again.map(|again| again.to_json(version)),
            Some(result.to_json(version)),
            "{version:?}"
        );
    }
}

fn reread(result: &AddResult, version: SpecVersion) -> Option<AddResult> {
    let text = format!(r#"{{"prevResult":{}}}"#, result.to_json(version));
    let config: Map<String, Value> = serde_json::from_str(&text).ok()?;
    read_previous(&Keys::new("", &config), version).ok()?
}

/// Anything at all in the files of leases and records: the store opens, and gives an address that no readable lease holds.
pub fn records(data: &[u8]) {
    // In memory where there is such a place: the store syncs what it writes.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let Ok(folder) = folder else {
        return;
    };
    let Some(held) = write_store(folder.path(), data) else {
        return;
    };
    let Ok(network) = NetworkName::parse("n") else {
        return;
    };
    let Ok(mut store) = Store::open(folder.path(), &network) else {
        return;
    };
    let refreshed = store.refresh(&mut || Ok(Live::default()), &mut |_| {});
    assert!(refreshed.is_ok(), "bad files stop the plugin: {refreshed:?}");
    let Ok(range) = Range::of_subnet(IpAddr::from([10, 5, 7, 0]), 29) else {
        return;
    };
    let given = choose(&store, &[RangeSet::new(vec![range])], &[]);
    let addresses: Vec<IpAddr> = given.iter().flatten().map(|given| given.address).collect();
    assert!(!addresses.contains(&held), "{held} was given and is held");
}

/// A sound lease of 10.5.7.2, its holder unknown to us, and the bytes in every other kind of file.
fn write_store(root: &Path, data: &[u8]) -> Option<IpAddr> {
    let (leases, records) = (root.join("n"), root.join(".flannel-n/records"));
    fs::create_dir_all(&leases).ok()?;
    fs::create_dir_all(&records).ok()?;
    fs::write(leases.join("10.5.7.2"), "held-by-somebody-else\r\neth0").ok()?;
    fs::write(leases.join("10.5.7.3"), data).ok()?;
    fs::write(leases.join("last_reserved_ip.0"), data).ok()?;
    fs::write(records.join("veth0a14c78f129"), data).ok()?;
    fs::write(root.join(".flannel-n/index"), data).ok()?;
    Some(IpAddr::from([10, 5, 7, 2]))
}

/// What may become part of a path: no way up, no other folder.
fn is_name(text: &str) -> bool {
    let first = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    first
        && text.len() <= 255
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// What the kernel takes as a device's name, without its `%d`.
fn is_device(text: &str) -> bool {
    let bad = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
    !text.is_empty() && text.len() <= 15 && text != "." && text != ".." && !text.contains(bad)
}
