//! Keys and values of every backend as flannel v0.28 writes them: they are read and written back byte for byte.
//!
//! Each file in `tests/golden` has two lines: what stands behind `<prefix>/subnets/` in the key, and the value.
#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::path::Path;

use flannel_model::{EtcdPrefix, LeaseKey, LeaseValue, VxlanLeaseData};

/// Key and value by backend.
fn golden() -> BTreeMap<String, (String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let (key, value) = text.strip_suffix('\n').unwrap().split_once('\n').unwrap();
        (name, (key.to_owned(), value.to_owned()))
    };
    std::fs::read_dir(directory).unwrap().map(read).collect()
}

#[test]
fn every_backend_is_there() {
    let golden = golden();
    for backend in [
        "udp",
        "alloc",
        "tencent-vpc",
        "host-gw",
        "host-gw-dual",
        "vxlan",
        "vxlan-dual",
        "wireguard",
        "wireguard-dual",
        "ipip",
        "ipsec",
        "extension",
        "extension-without-command",
    ] {
        assert!(golden.contains_key(backend), "{backend}");
    }
}

#[test]
fn keys_and_values_round_trip_byte_for_byte() {
    let prefix = EtcdPrefix::new("/coreos.com/network");
    for (backend, (key, value)) in golden() {
        let read: LeaseKey = key.parse().unwrap();
        assert_eq!(
            prefix.lease(&read),
            format!("/coreos.com/network/subnets/{key}"),
            "{backend}"
        );
        let read = LeaseValue::parse(value.as_bytes()).unwrap();
        assert_eq!(read.to_json(), value, "{backend}");
    }
}

#[test]
fn what_backends_publish_is_read() {
    for (backend, (_, value)) in golden() {
        let read = LeaseValue::parse(value.as_bytes()).unwrap();
        assert_eq!(read.public_ip.to_string(), "192.168.50.11", "{backend}");
        assert_eq!(
            read.public_ipv6.is_some(),
            backend.ends_with("-dual"),
            "{backend}"
        );
        let without_type = ["udp", "alloc", "tencent-vpc"].contains(&backend.as_str());
        assert_eq!(read.backend_type.is_none(), without_type, "{backend}");
        if read.backend_type.as_deref() == Some("vxlan") {
            for data in [&read.backend_data, &read.backend_v6_data].into_iter().flatten() {
                let data = VxlanLeaseData::parse(data).unwrap();
                assert_eq!(data.vni, 1, "{backend}");
            }
        }
    }
}

#[test]
fn a_field_of_ours_is_none_that_flannel_would_have_written() {
    // flannel ignores unknown fields; what it wrote itself must come back without any.
    for (backend, (_, value)) in golden() {
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&value).unwrap();
        let known = [
            "PublicIP",
            "PublicIPv6",
            "BackendType",
            "BackendData",
            "BackendV6Data",
        ];
        assert!(
            fields.keys().all(|name| known.contains(&name.as_str())),
            "{backend}"
        );
    }
}
