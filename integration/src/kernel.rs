//! What the running kernel can do.

use std::path::Path;
use std::process::{Command, Stdio};

/// Appears as soon as IPVS is there (built in, or its module loaded): net/netfilter/ipvs/ip_vs_ctl.c.
const IPVS_PROC: &str = "/proc/net/ip_vs";

/// Whether the running kernel has IPVS, after an attempt to load it.
pub fn has_ipvs() -> bool {
    if !Path::new(IPVS_PROC).exists() {
        let _ = Command::new("modprobe")
            .args(["-q", "ip_vs"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    Path::new(IPVS_PROC).exists()
}

/// Whether the running kernel can make IPIP tunnels.
pub fn has_ipip() -> bool {
    makes("ip link add probe type ipip local 192.0.2.1")
}

/// Whether the running kernel has WireGuard.
pub fn has_wireguard() -> bool {
    makes("ip link add probe type wireguard")
}

/// Whether the running kernel has bridges that keep VLANs apart, and VLAN devices.
pub fn has_vlans() -> bool {
    makes(
        "ip link add probe type bridge vlan_filtering 1 && bridge vlan add vid 5 dev probe self \
         && ip link add link probe name tagged type vlan id 5",
    )
}

/// Whether a script succeeds in a network namespace of its own.
fn makes(script: &str) -> bool {
    Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
