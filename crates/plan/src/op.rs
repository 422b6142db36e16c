//! One change of the overlay, as plain data that can be printed.

use std::fmt;
use std::net::IpAddr;

use flannel_model::{IpSubnet, Mac, WireguardPublicKey, WireguardSecret};

use crate::device::Device;
use crate::observed::ObservedRoute;
use crate::overlay::{IpipLink, LinkKind, TunnelLink, VxlanLink, Way, WayText, WireguardPeer};
use crate::setting::Setting;

/// One change of the overlay in the kernel. Its text reads like an argument of `ip` or `bridge`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Delete the device, with all that is on it, because it cannot be turned into what is wanted.
    LinkDelete {
        /// The device.
        device: Device,
        /// What cannot be changed.
        reason: String,
    },
    /// Make the device.
    LinkCreate(TunnelLink),
    /// Give the device another Ethernet address. The kernel forgets the neighbours on it.
    LinkSetMac {
        /// The device.
        device: Device,
        /// The address.
        mac: Mac,
    },
    /// Give the device another MTU.
    LinkSetMtu {
        /// The device.
        device: Device,
        /// Largest packet in bytes.
        mtu: u32,
    },
    /// Switch address learning.
    LinkSetLearning {
        /// The device.
        device: Device,
        /// On or off.
        learning: bool,
    },
    /// Change the source address of outer packets.
    LinkSetLocal {
        /// The device.
        device: Device,
        /// The address.
        local: IpAddr,
    },
    /// Give a WireGuard device its key and port.
    WireguardIdentity {
        /// The device.
        device: Device,
        /// The private key.
        private: WireguardSecret,
        /// UDP port.
        port: u16,
    },
    /// Make a peer of a WireGuard device, or make it what it should be.
    WireguardPeerSet {
        /// The device.
        device: Device,
        /// Its key.
        key: WireguardPublicKey,
        /// What it should be.
        peer: WireguardPeer,
        /// Write the endpoint, too; otherwise it stays where the peer was heard from.
        endpoint: bool,
    },
    /// Remove a peer of a WireGuard device.
    WireguardPeerRemove {
        /// The device.
        device: Device,
        /// Its key.
        key: WireguardPublicKey,
    },
    /// Set the device up.
    LinkUp {
        /// The device.
        device: Device,
    },
    /// Give a kernel setting of the device its value.
    SettingSet {
        /// The device.
        device: Device,
        /// The setting.
        setting: Setting,
    },
    /// Put an address on the device.
    AddressAdd {
        /// The device.
        device: Device,
        /// The address.
        address: IpAddr,
        /// Its prefix length.
        length: u8,
    },
    /// Take an address off the device.
    AddressDelete {
        /// The device.
        device: Device,
        /// The address.
        address: IpAddr,
        /// Its prefix length.
        length: u8,
    },
    /// Make or change a permanent neighbour.
    NeighbourReplace {
        /// The device.
        device: Device,
        /// The IP address.
        address: IpAddr,
        /// Its Ethernet address.
        mac: Mac,
    },
    /// Delete a neighbour.
    NeighbourDelete {
        /// The device.
        device: Device,
        /// The IP address.
        address: IpAddr,
    },
    /// Make or change an entry of the forwarding table.
    FdbReplace {
        /// The device.
        device: Device,
        /// Inner destination.
        mac: Mac,
        /// Outer destination.
        dst: IpAddr,
    },
    /// Delete an entry of the forwarding table.
    FdbDelete {
        /// The device.
        device: Device,
        /// Inner destination.
        mac: Mac,
        /// Outer destination.
        dst: IpAddr,
    },
    /// Add a route; it fails when somebody else has one to the same destination.
    RouteAdd {
        /// The overlay's tunnel, if it has one.
        device: Option<Device>,
        /// Where to.
        destination: IpSubnet,
        /// How.
        way: Way,
    },
    /// Put a route in the place of one of ours.
    RouteReplace {
        /// The overlay's tunnel, if it has one.
        device: Option<Device>,
        /// Where to.
        destination: IpSubnet,
        /// How.
        way: Way,
    },
    /// Put an IPv4 route before somebody else's to the same destination, which stays and serves again when ours goes. IPv6 would make
    /// one route with two ways of them.
    RoutePrepend {
        /// The overlay's tunnel, if it has one.
        device: Option<Device>,
        /// Where to.
        destination: IpSubnet,
        /// How.
        way: Way,
    },
    /// Delete a route of ours.
    RouteDelete {
        /// The overlay's tunnel, if it has one.
        device: Option<Device>,
        /// The route as it is.
        route: ObservedRoute,
    },
    /// Drop packets that no better route takes.
    BlackholeAdd {
        /// Where to.
        destination: IpSubnet,
    },
    /// Drop them no more.
    BlackholeDelete {
        /// Where to.
        destination: IpSubnet,
    },
}

/// The priority of a route that is to be the last: far behind all that people and programs choose.
pub const METRIC_OF_LAST_RESORT: u32 = 4_000_000_000;

impl Op {
    /// Whether it concerns the device itself. The others need the device to be there.
    pub fn is_link(&self) -> bool {
        match self {
            Self::LinkDelete { .. }
            | Self::LinkCreate(_)
            | Self::LinkSetMac { .. }
            | Self::LinkSetMtu { .. }
            | Self::LinkSetLearning { .. }
            | Self::LinkSetLocal { .. }
            | Self::LinkUp { .. } => true,
            Self::WireguardIdentity { .. }
            | Self::WireguardPeerSet { .. }
            | Self::WireguardPeerRemove { .. }
            | Self::SettingSet { .. }
            | Self::AddressAdd { .. }
            | Self::AddressDelete { .. }
            | Self::NeighbourReplace { .. }
            | Self::NeighbourDelete { .. }
            | Self::FdbReplace { .. }
            | Self::FdbDelete { .. }
            | Self::RouteAdd { .. }
            | Self::RouteReplace { .. }
            | Self::RoutePrepend { .. }
            | Self::RouteDelete { .. }
            | Self::BlackholeAdd { .. }
            | Self::BlackholeDelete { .. } => false,
        }
    }

    /// Whether it concerns one peer, and not the device as a whole.
    pub fn is_of_peer(&self) -> bool {
        match self {
            Self::WireguardPeerSet { .. }
            | Self::WireguardPeerRemove { .. }
            | Self::NeighbourReplace { .. }
            | Self::NeighbourDelete { .. }
            | Self::FdbReplace { .. }
            | Self::FdbDelete { .. }
            | Self::RouteAdd { .. }
            | Self::RouteReplace { .. }
            | Self::RoutePrepend { .. }
            | Self::RouteDelete { .. } => true,
            Self::LinkDelete { .. }
            | Self::LinkCreate(_)
            | Self::LinkSetMac { .. }
            | Self::LinkSetMtu { .. }
            | Self::LinkSetLearning { .. }
            | Self::LinkSetLocal { .. }
            | Self::LinkUp { .. }
            | Self::WireguardIdentity { .. }
            | Self::SettingSet { .. }
            | Self::AddressAdd { .. }
            | Self::AddressDelete { .. }
            | Self::BlackholeAdd { .. }
            | Self::BlackholeDelete { .. } => false,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkDelete { device, reason } => write!(f, "link delete {device} ({reason})"),
            Self::LinkCreate(link) => fmt_create(link, f),
            Self::LinkSetMac { device, mac } => write!(f, "link set {device} address {mac}"),
            Self::LinkSetMtu { device, mtu } => write!(f, "link set {device} mtu {mtu}"),
            Self::LinkSetLearning { device, learning } => {
                write!(f, "link set {device} type vxlan {}", learning_text(*learning))
            }
            Self::LinkSetLocal { device, local } => write!(f, "link set {device} type vxlan local {local}"),
            Self::LinkUp { device } => write!(f, "link set {device} up"),
            // As wg(8) has it; a secret is never printed.
            Self::WireguardIdentity { device, port, .. } => {
                write!(f, "wg set {device} listen-port {port} private-key (not shown)")
            }
            Self::WireguardPeerSet {
                device,
                key,
                peer,
                endpoint,
            } => fmt_peer(*device, key, peer, *endpoint, f),
            Self::WireguardPeerRemove { device, key } => write!(f, "wg set {device} peer {key} remove"),
            Self::SettingSet { device, setting } => {
                write!(f, "sysctl {}={}", setting.name(*device), setting.value())
            }
            Self::AddressAdd {
                device,
                address,
                length,
            } => {
                write!(f, "address add {address}/{length} dev {device}")
            }
            Self::AddressDelete {
                device,
                address,
                length,
            } => {
                write!(f, "address delete {address}/{length} dev {device}")
            }
            Self::NeighbourReplace { device, address, mac } => {
                write!(
                    f,
                    "neighbour replace {address} lladdr {mac} dev {device} permanent"
                )
            }
            Self::NeighbourDelete { device, address } => write!(f, "neighbour delete {address} dev {device}"),
            Self::FdbReplace { device, mac, dst } => {
                write!(f, "fdb replace {mac} dev {device} dst {dst} self permanent")
            }
            Self::FdbDelete { device, mac, dst } => write!(f, "fdb delete {mac} dev {device} dst {dst} self"),
            Self::RouteAdd {
                device,
                destination,
                way,
            } => write!(f, "route add {destination} {}", WayText(way, *device)),
            Self::RouteReplace {
                device,
                destination,
                way,
            } => write!(f, "route replace {destination} {}", WayText(way, *device)),
            Self::RoutePrepend {
                device,
                destination,
                way,
            } => write!(f, "route prepend {destination} {}", WayText(way, *device)),
            Self::RouteDelete { device, route } => fmt_route_delete(*device, route, f),
            Self::BlackholeAdd { destination } => {
                write!(
                    f,
                    "route add blackhole {destination} metric {METRIC_OF_LAST_RESORT}"
                )
            }
            Self::BlackholeDelete { destination } => {
                write!(
                    f,
                    "route delete blackhole {destination} metric {METRIC_OF_LAST_RESORT}"
                )
            }
        }
    }
}

fn fmt_create(link: &TunnelLink, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let TunnelLink { device, mtu, kind } = link;
    write!(f, "link add {device} mtu {mtu} ")?;
    match kind {
        LinkKind::Vxlan(vxlan) => fmt_vxlan(vxlan, f),
        LinkKind::Ipip(IpipLink { local }) => write!(f, "type ipip local {local}"),
        LinkKind::Wireguard => f.write_str("type wireguard"),
        LinkKind::Tun => f.write_str("type tun"),
    }
}

fn fmt_vxlan(link: &VxlanLink, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let VxlanLink {
        id,
        underlay,
        local,
        port,
        mac,
        learning,
        gbp,
        udp_checksum,
    } = link;
    write!(
        f,
        "address {mac} type vxlan id {id} link {underlay} local {local} dstport {port} {}{}{}",
        learning_text(*learning),
        if *gbp { " gbp" } else { "" },
        if *udp_checksum { "" } else { " noudpcsum" }
    )
}

fn fmt_peer(
    device: Device,
    key: &WireguardPublicKey,
    peer: &WireguardPeer,
    endpoint: bool,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    write!(f, "wg set {device} peer {key}")?;
    if endpoint {
        write!(f, " endpoint {}", peer.endpoint)?;
    }
    if peer.preshared.is_some() {
        f.write_str(" preshared-key (not shown)")?;
    }
    let allowed: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
    write!(
        f,
        " persistent-keepalive {} allowed-ips {}",
        peer.keepalive,
        allowed.join(",")
    )
}

fn fmt_route_delete(
    device: Option<Device>,
    route: &ObservedRoute,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    // A route is deleted by where it leads; how it was made does not matter.
    let way = Way {
        onlink: false,
        ..route.way
    };
    write!(f, "route delete {} {}", route.destination, WayText(&way, device))?;
    write!(f, " proto {}", route.protocol)?;
    if route.metric != 0 {
        write!(f, " metric {}", route.metric)?;
    }
    Ok(())
}

fn learning_text(learning: bool) -> &'static str {
    if learning { "learning" } else { "nolearning" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_model::IpFamily;

    #[test]
    fn the_texts_are_those_of_iproute2() {
        let device = Device::Vxlan {
            vni: 1,
            family: IpFamily::V4,
        };
        let gateway: IpAddr = "10.5.2.0".parse().unwrap();
        let destination: IpSubnet = "10.5.2.0/24".parse().unwrap();
        let mac = Mac::new([0x8a, 0x55, 0x6f, 1, 2, 3]);
        let route = ObservedRoute {
            destination,
            way: Way::tunnel(gateway),
            protocol: 3,
            metric: 0,
        };
        let link = TunnelLink {
            device,
            mtu: 1450,
            kind: LinkKind::Vxlan(VxlanLink {
                id: 1,
                underlay: 2,
                local: "192.0.2.1".parse().unwrap(),
                port: 8472,
                mac,
                learning: false,
                gbp: false,
                udp_checksum: false,
            }),
        };
        let texts = [
            (
                Op::RouteReplace {
                    device: Some(device),
                    destination,
                    way: Way::tunnel(gateway),
                },
                "route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
            ),
            (
                Op::RouteDelete {
                    device: Some(device),
                    route,
                },
                "route delete 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 3",
            ),
            (
                Op::NeighbourReplace {
                    device,
                    address: gateway,
                    mac,
                },
                "neighbour replace 10.5.2.0 lladdr 8a:55:6f:01:02:03 dev flannel.1 permanent",
            ),
            (
                Op::RouteAdd {
                    device: None,
                    destination,
                    way: Way::direct(2, "192.0.2.12".parse().unwrap()),
                },
                "route add 10.5.2.0/24 via 192.0.2.12 dev if2",
            ),
            (
                Op::LinkCreate(link),
                "link add flannel.1 mtu 1450 address 8a:55:6f:01:02:03 type vxlan id 1 link 2 local 192.0.2.1 \
                 dstport 8472 nolearning noudpcsum",
            ),
        ];
        for (op, text) in texts {
            assert_eq!(op.to_string(), text);
        }
    }
}
