//! Kernel settings that Services need.

use std::io::ErrorKind;
use std::path::Path;

use flannel_netlink::sysctl;

use crate::services::host::set_sysctl;

struct Setting {
    path: &'static str,
    /// What to do, and what happens otherwise, where the kernel has no such setting.
    missing: &'static str,
}

const SETTINGS: [Setting; 5] = [
    Setting {
        path: "net/ipv4/vs/conntrack",
        missing: "IPVS of this kernel has no connection tracking (CONFIG_IP_VS_NFCT): hosts get no answer from Services",
    },
    // Packets of a connection whose endpoint is gone end it, instead of being dropped until it times out.
    Setting {
        path: "net/ipv4/vs/expire_nodest_conn",
        missing: "connections to endpoints that are gone hang until they time out",
    },
    // A client with affinity to an endpoint that drains gets another one.
    Setting {
        path: "net/ipv4/vs/expire_quiescent_template",
        missing: "clients with sessionAffinity stay at endpoints that are on their way out",
    },
    Setting {
        path: "net/ipv4/ip_forward",
        missing: "this kernel cannot forward IPv4 packets: Services reach no pod",
    },
    Setting {
        path: "net/bridge/bridge-nf-call-iptables",
        missing: "bridged packets are not filtered, so pods of one node cannot reach each other through Services: \
                  load it with `modprobe br_netfilter`",
    },
];

/// The same for Services of IPv6.
const IPV6_SETTINGS: [Setting; 2] = [
    Setting {
        path: "net/ipv6/conf/all/forwarding",
        missing: "this kernel cannot forward IPv6 packets: Services reach no pod",
    },
    Setting {
        path: "net/bridge/bridge-nf-call-ip6tables",
        missing: "bridged packets are not filtered, so pods of one node cannot reach each other through Services: \
                  load it with `modprobe br_netfilter`",
    },
];

/// Sets each to 1 where it exists. Answers a sentence for each that does not; what cannot be written goes to `failed`.
pub(super) fn set(ipv6: bool, notes: Option<&Path>, failed: &mut Vec<String>) -> Vec<String> {
    if ipv6 {
        keep_router_advertisements(Path::new("/proc/sys/net/ipv6/conf"), notes);
    }
    let ipv6: &[Setting] = if ipv6 { &IPV6_SETTINGS } else { &[] };
    let mut missing = Vec::new();
    for setting in SETTINGS.iter().chain(ipv6) {
        match sysctl::set(setting.path, "1", notes) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                missing.push(format!(
                    "sysctl {} is missing: {}",
                    name(setting.path),
                    setting.missing
                ));
            }
            Err(error) => failed.push(format!("set sysctl {} to 1: {error}", name(setting.path))),
        }
    }
    missing
}

/// Addresses are answered for by ARP on the device that has them only. What no device has, and only a local route delivers, is left to
/// who announces it. Answers a sentence for each setting that cannot be made.
pub(super) fn strict_arp(notes: Option<&Path>) -> Vec<String> {
    // Documentation/networking/ip-sysctl.rst: reply only for addresses of the device that was asked on; announce with such a one
    let settings = [
        ("net/ipv4/conf/all/arp_ignore", 1),
        ("net/ipv4/conf/all/arp_announce", 2),
    ];
    settings
        .into_iter()
        .filter_map(|(path, value)| set_sysctl(path, value, notes))
        .collect()
}

/// A host that forwards IPv6 heeds router advertisements only with accept_ra 2 (Documentation/networking/ip-sysctl.rst): one that had its
/// default route from them must not lose it when forwarding begins.
fn keep_router_advertisements(folder: &Path, notes: Option<&Path>) {
    let forwards = std::fs::read_to_string(folder.join("all/forwarding"));
    if forwards.is_ok_and(|value| value.trim() != "0") {
        return;
    }
    for device in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = device.path().join("accept_ra");
        if !std::fs::read_to_string(&file).is_ok_and(|value| value.trim() == "1") {
            continue;
        }
        if let Some(notes) = notes {
            let name = format!("net/ipv6/conf/{}/accept_ra", device.file_name().display());
            // A setting without a way back is better than a default route that is lost.
            let _ = sysctl::note(notes, &name, "1", "2");
        }
        if let Err(error) = std::fs::write(&file, "2\n") {
            tracing::warn!(file = %file.display(), %error, "router advertisements will not be heeded any more");
        }
    }
}

/// `net.ipv4.ip_forward`
fn name(path: &str) -> String {
    path.replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_are_still_listened_to_when_forwarding_begins() {
        let folder = tempfile::tempdir().unwrap();
        let file = |device: &str, name: &str| folder.path().join(device).join(name);
        let notes = folder.path().join(sysctl::NOTES);
        for (device, value) in [("all", "1"), ("eth0", "1"), ("eth1", "0")] {
            std::fs::create_dir(folder.path().join(device)).unwrap();
            std::fs::write(file(device, "accept_ra"), value).unwrap();
        }
        std::fs::write(file("all", "forwarding"), "0\n").unwrap();
        keep_router_advertisements(folder.path(), Some(&notes));
        let read = |device| std::fs::read_to_string(file(device, "accept_ra")).unwrap();
        assert_eq!((read("eth0").trim(), read("eth1").trim()), ("2", "0"));
        let noted = sysctl::changed(&notes).unwrap();
        let names: Vec<&str> = noted.iter().map(|changed| changed.name.as_str()).collect();
        assert_eq!(
            names,
            ["net/ipv6/conf/all/accept_ra", "net/ipv6/conf/eth0/accept_ra"]
        );
        std::fs::write(file("all", "forwarding"), "1\n").unwrap();
        std::fs::write(file("eth0", "accept_ra"), "1").unwrap();
        keep_router_advertisements(folder.path(), None);
        assert_eq!(read("eth0"), "1", "its owner's choice for a host that forwards");
    }
}
