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
    /// Where a node port has a virtual server on an address of the node. No rule asks: it tells a later process which are ours.
    NodeServer(VirtualAddress),
    /// A frontend of TCP that nobody answers.
    Unserved(VirtualAddress),
}

/// A member in the bytes of nf_tables, each field of a concatenation padded to four.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ElementBytes {
    /// The key.
    pub key: Vec<u8>,
    /// Upper end of a range.
    pub key_end: Option<Vec<u8>>,
    /// What it stands for, in a map.
    pub data: Option<Vec<u8>>,
}

/// Names of the sets and maps, in the order in which they stand in the table.
pub(super) const SETS: [&str; 9] = [
    "external",
    "hairpin",
    "restricted",
    "allowed",
    "marks",
    "node_port_marks",
    "node_ports",
    NODE_SERVERS,
    "unserved",
];

/// Name of the set of [`Element::NodeServer`].
pub const NODE_SERVERS: &str = "node_servers";

/// The keyword and the type of a set.
pub(super) fn declaration(name: &str, address: &str) -> (&'static str, String) {
    let frontend = format!("{address} . inet_proto . inet_service");
    let port = "inet_proto . inet_service".to_owned();
    match name {
        "external" => ("set", address.to_owned()),
        "hairpin" => ("set", format!("{address} . {address}")),
        "restricted" | NODE_SERVERS | "unserved" => ("set", frontend),
        "allowed" => ("set", format!("{frontend} . {address}; flags interval")),
        "marks" => ("map", format!("{frontend} : mark")),
        "node_port_marks" => ("map", format!("{port} : mark")),
        _ => ("set", port),
    }
}

impl Element {
    /// Name of the set or map of which it is a member.
    pub fn set(&self) -> &'static str {
        match self {
            Self::External(_) => "external",
            Self::Hairpin(_) => "hairpin",
            Self::Restricted(_) => "restricted",
            Self::Allowed(..) => "allowed",
            Self::Mark(..) => "marks",
            Self::NodePortMark(..) => "node_port_marks",
            Self::NodePort(..) => "node_ports",
            Self::NodeServer(_) => NODE_SERVERS,
            Self::Unserved(_) => "unserved",
        }
    }

    /// Whether it belongs to this family.
    pub fn is_of(&self, ipv4: bool) -> bool {
        match self {
            Self::External(ip) | Self::Hairpin(ip) => ip.is_ipv4() == ipv4,
            Self::Restricted(at)
            | Self::Allowed(at, _)
            | Self::Mark(at, _)
            | Self::NodeServer(at)
            | Self::Unserved(at) => at.address.is_ipv4() == ipv4,
            Self::NodePortMark(four, ..) | Self::NodePort(four, ..) => *four == ipv4,
        }
    }

    /// As the kernel reads it.
    pub fn bytes(&self) -> ElementBytes {
        let key = |key: Vec<u8>| ElementBytes {
            key,
            ..ElementBytes::default()
        };
        // marks are numbers of the host
        let marked = |of: Vec<u8>, mark: u32| ElementBytes {
            data: Some(mark.to_ne_bytes().to_vec()),
            ..key(of)
        };
        match self {
            Self::External(ip) => key(ip_bytes(*ip)),
            Self::Hairpin(ip) => key([ip_bytes(*ip), ip_bytes(*ip)].concat()),
            Self::Restricted(at) | Self::NodeServer(at) | Self::Unserved(at) => key(frontend_bytes(at)),
            Self::Allowed(at, range) => {
                let with = |ip| [frontend_bytes(at), ip_bytes(ip)].concat();
                ElementBytes {
                    key_end: Some(with(range.last())),
                    ..key(with(range.network()))
                }
            }
            Self::Mark(at, mark) => marked(frontend_bytes(at), *mark),
            Self::NodePort(_, protocol, port) => key(port_bytes(*protocol, *port)),
            Self::NodePortMark(_, protocol, port, mark) => marked(port_bytes(*protocol, *port), *mark),
        }
    }

    /// As nft reads it.
    pub(super) fn text(&self) -> String {
        match self {
            Self::External(ip) => ip.to_string(),
            Self::Hairpin(ip) => format!("{ip} . {ip}"),
            Self::Restricted(at) | Self::NodeServer(at) | Self::Unserved(at) => frontend(at),
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

fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn port_bytes(protocol: ServiceProtocol, port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![protocol.number(), 0, 0, 0, high, low, 0, 0]
}

fn frontend_bytes(at: &VirtualAddress) -> Vec<u8> {
    [ip_bytes(at.address), port_bytes(at.protocol, at.port)].concat()
}

/// Reads a member of [`NODE_SERVERS`] as `nft -nn` prints it, such as `192.0.2.1 . 6 . 30080`.
pub fn read_node_server(text: &str) -> Option<VirtualAddress> {
    let mut parts = text.split(" . ");
    let at = VirtualAddress {
        address: parts.next()?.parse().ok()?,
        protocol: ServiceProtocol::from_number(parts.next()?.parse().ok()?)?,
        port: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(at)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_of_the_node_are_read_back() {
        let at = VirtualAddress {
            address: "192.0.2.1".parse().unwrap(),
            protocol: ServiceProtocol::Sctp,
            port: 30080,
        };
        assert_eq!(read_node_server("192.0.2.1 . 132 . 30080"), Some(at));
        assert_eq!(Element::NodeServer(at).text(), "192.0.2.1 . sctp . 30080");
        for bad in [
            "",
            "192.0.2.1 . 1 . 30080",
            "x . 6 . 1",
            "192.0.2.1 . 6",
            "192.0.2.1 . 6 . 1 . 2",
        ] {
            assert_eq!(read_node_server(bad), None, "{bad}");
        }
    }
}
