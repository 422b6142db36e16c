//! Kernel settings that Services need.

use std::io::ErrorKind;
use std::path::Path;

struct Setting {
    path: &'static str,
    /// What to do, and what happens otherwise, where the kernel has no such setting.
    missing: &'static str,
}

const SETTINGS: [Setting; 3] = [
    Setting {
        path: "net/ipv4/vs/conntrack",
        missing: "IPVS of this kernel has no connection tracking (CONFIG_IP_VS_NFCT): hosts get no answer from Services",
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

/// Sets each to 1 where it exists. Answers a sentence for each that does not; what cannot be written goes to `failed`.
pub(super) fn set(failed: &mut Vec<String>) -> Vec<String> {
    let mut missing = Vec::new();
    for setting in &SETTINGS {
        let path = Path::new("/proc/sys").join(setting.path);
        match set_one(&path) {
            Ok(()) => {}
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

fn set_one(path: &Path) -> std::io::Result<()> {
    if std::fs::read_to_string(path)?.trim() == "1" {
        return Ok(());
    }
    std::fs::write(path, "1\n")
}

/// `net.ipv4.ip_forward`
fn name(path: &str) -> String {
    path.replace('/', ".")
}
