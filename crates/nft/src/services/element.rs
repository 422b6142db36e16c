//! Members of the sets and maps that change with Services.

use std::net::IpAddr;

use flannel_model::{IpSubnet, ServiceProtocol, VirtualAddress};

/// One member of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// An address outside the service CIDRs that Services have.
    External(IpAddr),
    /// An endpoint on this node, which may reach itself through a Service.
    Hairpin(IpAddr),
    /// A frontend that only some may use.
    Restricted(VirtualAddress),
    /// Somebody who may.
    Allowed(VirtualAddress, IpSubnet),
    /// The mark of packets from outside for a frontend.
    Mark(VirtualAddress, u32),
    /// The same for a node port; whether of IPv4.
    NodePortMark(bool, ServiceProtocol, u16, u32),
    /// A port of the node that a Service has.
    NodePort(bool, ServiceProtocol, u16),
}

/// Names of the sets and maps, in the order in which they stand in the table.
pub(super) const SETS: [&str; 7] = [
    "external",
    "hairpin",
    "restricted",
    "allowed",
    "marks",
    "node_port_marks",
    "node_ports",
];

/// The keyword and the type of a set.
pub(super) fn declaration(name: &str, address: &str) -> (&'static str, String) {
    let frontend = format!("{address} . inet_proto . inet_service");
    let port = "inet_proto . inet_service".to_owned();
    match name {
        "external" => ("set", address.to_owned()),
        "hairpin" => ("set", format!("{address} . {address}")),
        "restricted" => ("set", frontend),
        "allowed" => ("set", format!("{frontend} . {address}; flags interval")),
        "marks" => ("map", format!("{frontend} : mark")),
        "node_port_marks" => ("map", format!("{port} : mark")),
        _ => ("set", port),
    }
}

impl Element {
    /// Where it is a member.
    pub(super) fn set(&self) -> &'static str {
        match self {
            Self::External(_) => "external",
            Self::Hairpin(_) => "hairpin",
            Self::Restricted(_) => "restricted",
            Self::Allowed(..) => "allowed",
            Self::Mark(..) => "marks",
            Self::NodePortMark(..) => "node_port_marks",
            Self::NodePort(..) => "node_ports",
        }
    }

    /// Whether it belongs to this family.
    pub(super) fn is_of(&self, ipv4: bool) -> bool {
        match self {
            Self::External(ip) | Self::Hairpin(ip) => ip.is_ipv4() == ipv4,
            Self::Restricted(at) | Self::Allowed(at, _) | Self::Mark(at, _) => at.address.is_ipv4() == ipv4,
            Self::NodePortMark(four, ..) | Self::NodePort(four, ..) => *four == ipv4,
        }
    }

    /// As nft reads it.
    pub(super) fn text(&self) -> String {
        match self {
            Self::External(ip) => ip.to_string(),
            Self::Hairpin(ip) => format!("{ip} . {ip}"),
            Self::Restricted(at) => frontend(at),
            Self::Allowed(at, range) => format!("{} . {range}", frontend(at)),
            Self::Mark(at, mark) => format!("{} : {mark:#010x}", frontend(at)),
            Self::NodePort(_, protocol, port) => {
                format!("{} . {port}", name(*protocol))
            }
            Self::NodePortMark(_, protocol, port, mark) => {
                format!("{} . {port} : {mark:#010x}", name(*protocol))
            }
        }
    }
}

fn frontend(at: &VirtualAddress) -> String {
    format!("{} . {} . {}", at.address, name(at.protocol), at.port)
}

fn name(protocol: ServiceProtocol) -> &'static str {
    match protocol {
        ServiceProtocol::Tcp => "tcp",
        ServiceProtocol::Udp => "udp",
        ServiceProtocol::Sctp => "sctp",
    }
}
