//! Kernel settings that translated connections need.

use std::io::ErrorKind;
use std::path::Path;

use flannel_netlink::sysctl;

/// What one family needs, below /proc/sys: forwarding, and bridged frames in the packet filter.
struct Settings {
    forward: &'static str,
    bridge: &'static str,
}

const IPV4: Settings = Settings {
    forward: "net/ipv4/ip_forward",
    bridge: "net/bridge/bridge-nf-call-iptables",
};
const IPV6: Settings = Settings {
    forward: "net/ipv6/conf/all/forwarding",
    bridge: "net/bridge/bridge-nf-call-ip6tables",
};

/// Sets what a family needs. Answers whether frames between pods of this node pass by the packet filter, because the kernel
/// lacks br_netfilter.
pub(super) fn set(ipv4: bool, notes: Option<&Path>, failed: &mut Vec<String>) -> bool {
    let settings = if ipv4 { IPV4 } else { IPV6 };
    if let Err(error) = sysctl::set(settings.forward, "1", notes) {
        failed.push(format!(
            "set sysctl {} to 1: {error}; without it Services reach no pod",
            name(settings.forward)
        ));
    }
    match sysctl::set(settings.bridge, "1", notes) {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => {
            failed.push(format!("set sysctl {} to 1: {error}", name(settings.bridge)));
            true
        }
    }
}

/// `net.ipv4.ip_forward`
fn name(path: &str) -> String {
    path.replace('/', ".")
}
