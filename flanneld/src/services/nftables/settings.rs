//! Kernel settings that translated connections need.

use std::io::ErrorKind;
use std::path::Path;

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
pub(super) fn set(ipv4: bool, failed: &mut Vec<String>) -> bool {
    let settings = if ipv4 { IPV4 } else { IPV6 };
    if let Err(error) = set_one(settings.forward) {
        failed.push(format!(
            "set sysctl {} to 1: {error}; without it Services reach no pod",
            name(settings.forward)
        ));
    }
    match set_one(settings.bridge) {
        Ok(()) => false,
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => {
            failed.push(format!("set sysctl {} to 1: {error}", name(settings.bridge)));
            true
        }
    }
}

fn set_one(setting: &str) -> std::io::Result<()> {
    let path = Path::new("/proc/sys").join(setting);
    if std::fs::read_to_string(&path)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(path, "1\n")
}

/// `net.ipv4.ip_forward`
fn name(path: &str) -> String {
    path.replace('/', ".")
}
