//! What flanneld carries out of all that a network config can ask for: one list for the daemon and for whoever checks a config.

use crate::{Asked, BackendConfig, BackendSettings, FieldError};

/// What a config asks for and flanneld does not offer. `ipv6_only`: nodes run with the switch of that name, so a network without
/// IPv4 is fine.
pub fn offered(asked: Asked<'_>, ipv6_only: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if asked.ipv6 && !asked.ipv4 && !ipv6_only {
        let problem = "flannel has no leases for a network of IPv6 alone; start flanneld with --ipv6-only on every node, \
                       or use both families";
        errors.push(FieldError::new("EnableIPv4", "false", problem));
    }
    let Some(backend) = asked.backend else {
        return errors;
    };
    errors.extend(refused_backend(backend));
    if asked.ipv6 && matches!(backend.settings, BackendSettings::Ipip(_)) {
        let problem = "ipip carries IPv4 only, as in flannel; use vxlan or host-gw with IPv6";
        errors.push(FieldError::new("Backend.Type", "\"ipip\"", problem));
    }
    errors
}

/// Why a backend that flannel has or had is none of ours, and what serves instead.
fn refused_backend(backend: &BackendConfig) -> Option<FieldError> {
    let ours = "vxlan, host-gw, wireguard, ipip, udp and alloc are there";
    let problem = match backend.kind.as_str() {
        "vxlan" | "host-gw" | "wireguard" | "ipip" | "udp" | "alloc" => return None,
        "ipsec" => format!(
            "it needs strongSwan and a key that all nodes share in etcd, and is not offered; use wireguard: {ours}"
        ),
        "extension" => format!(
            "it runs commands that whoever writes to etcd chooses, and is not offered; use alloc with routes of your own: {ours}"
        ),
        "tencent-vpc" | "aws-vpc" | "gce" | "ali-vpc" => format!(
            "it drives one cloud's routing table, and is not offered; use alloc with that cloud's own controller, or vxlan: {ours}"
        ),
        _ => format!("there is no such backend: {ours}"),
    };
    Some(FieldError::new(
        "Backend.Type",
        &format!("{:?}", backend.kind),
        &problem,
    ))
}
