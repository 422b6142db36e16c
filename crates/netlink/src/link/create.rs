//! Making links. Each is one message, so that no half-made link is ever seen.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use flannel_model::Mac;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoIpTunnel, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::LinkRef;
use super::change::message_for;
use crate::conn::{CREATE, EXCL};
use crate::route_conn::RouteRequest;

/// A VXLAN link to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanSpec<'a> {
    /// Name, at most 15 bytes.
    pub name: &'a str,
    /// VXLAN network identifier, 24 bits.
    pub id: u32,
    /// Index of the device that carries the tunnel.
    pub underlay: u32,
    /// Source address of the outer packets.
    pub local: IpAddr,
    /// UDP destination port; also the port on which the kernel listens.
    pub port: u16,
    /// Largest inner packet in bytes. The kernel lowers what the underlay cannot carry.
    pub mtu: u32,
    /// Hardware address.
    pub mac: Mac,
    /// Learn source addresses from received packets.
    pub learning: bool,
    /// Carry the group policy extension.
    pub gbp: bool,
    /// Send a UDP checksum over IPv4. Over IPv6 there always is one, because receivers insist on it.
    pub udp_checksum: bool,
}

/// An IPIP link to be made, without an other end of its own: each route over it names one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpipSpec<'a> {
    /// Name, at most 15 bytes.
    pub name: &'a str,
    /// Source address of the outer packets.
    pub local: IpAddr,
    /// Largest inner packet in bytes.
    pub mtu: u32,
}

/// A bridge to be made. It is set up at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeSpec<'a> {
    /// Name, at most 15 bytes.
    pub name: &'a str,
    /// Largest packet in bytes; `None` leaves it to the ports.
    pub mtu: Option<u32>,
    /// Hardware address. `None`: the kernel takes a random one and changes it as ports come and go.
    pub mac: Option<Mac>,
}

/// A veth pair to be made: one end in the namespace of the connection, the other in another. The near end is set up at
/// once; the far one has to be set up over a connection in its namespace (the kernel refuses to do it in the same
/// message, because the ends do not know each other yet then: `veth_open`, ENOTCONN).
#[derive(Debug, Clone)]
pub struct VethSpec<'a> {
    /// Name of the end in the connection's namespace.
    pub name: &'a str,
    /// Bridge that this end becomes a port of.
    pub master: Option<u32>,
    /// Alias text of this end. The kernel takes it at creation or ignores it, depending on its version;
    /// [`super::mark_port`] or [`super::set_alias`] in the same batch is sure.
    pub alias: Option<&'a str>,
    /// Largest packet in bytes, for both ends.
    pub mtu: u32,
    /// Hardware address of this end; random when `None`.
    pub mac: Option<Mac>,
    /// Name of the other end.
    pub peer_name: &'a str,
    /// Hardware address of the other end; random when `None`.
    pub peer_mac: Option<Mac>,
    /// Namespace of the other end; it has to stay open until the request was sent.
    pub peer_namespace: BorrowedFd<'a>,
}

/// Makes a VXLAN link, not yet up; EEXIST when the name is taken or another link has the same identifier and port.
pub fn create_vxlan(spec: &VxlanSpec<'_>) -> RouteRequest {
    let mut attributes = vec![
        InfoVxlan::Id(spec.id),
        InfoVxlan::Link(spec.underlay),
        local_attribute(spec.local),
        InfoVxlan::Port(spec.port),
        InfoVxlan::Learning(spec.learning),
        // 0: the kernel's default for the outer TTL, as flannel has it.
        InfoVxlan::Ttl(0),
    ];
    if spec.gbp {
        attributes.push(InfoVxlan::Gbp);
    }
    if !spec.udp_checksum {
        attributes.push(InfoVxlan::UDPCsum(false));
    }
    let mut message = message_for(LinkRef::Name(spec.name));
    message.attributes.push(LinkAttribute::Mtu(spec.mtu));
    message
        .attributes
        .push(LinkAttribute::Address(spec.mac.bytes().to_vec()));
    message
        .attributes
        .push(info(InfoKind::Vxlan, Some(InfoData::Vxlan(attributes))));
    create(
        message,
        format!("create VXLAN link {} (VNI {})", spec.name, spec.id),
    )
}

/// The source address; its family is that of the whole tunnel.
pub(super) fn local_attribute(local: IpAddr) -> InfoVxlan {
    match local {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    }
}

/// Makes an IPIP link, not yet up; EEXIST when the name is taken or another link has the same source address and no other end.
pub fn create_ipip(spec: &IpipSpec<'_>) -> RouteRequest {
    let attributes = vec![
        InfoIpTunnel::Local(spec.local),
        // The kernel forbids fragments of outer packets only where the path's MTU may be learned (ipip_tunnel_setup, ip_tunnel_newlink).
        InfoIpTunnel::PMtuDisc(true),
    ];
    let mut message = message_for(LinkRef::Name(spec.name));
    message.attributes.push(LinkAttribute::Mtu(spec.mtu));
    let data = InfoData::IpTunnel(attributes);
    message.attributes.push(info(InfoKind::IpIp, Some(data)));
    create(message, format!("create IPIP link {}", spec.name))
}

/// Makes a WireGuard link, not yet up; its key and peers are set over generic netlink.
pub fn create_wireguard(name: &str, mtu: u32) -> RouteRequest {
    let mut message = message_for(LinkRef::Name(name));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(info(InfoKind::Wireguard, None));
    create(message, format!("create WireGuard link {name}"))
}

/// Makes a bridge and sets it up.
pub fn create_bridge(spec: &BridgeSpec<'_>) -> RouteRequest {
    let mut message = message_for(LinkRef::Name(spec.name));
    set_up(&mut message);
    message.attributes.extend(spec.mtu.map(LinkAttribute::Mtu));
    message
        .attributes
        .extend(spec.mac.map(|mac| LinkAttribute::Address(mac.bytes().to_vec())));
    message.attributes.push(info(InfoKind::Bridge, None));
    create(message, format!("create bridge {}", spec.name))
}

/// Makes a veth pair in one message.
pub fn create_veth(spec: &VethSpec<'_>) -> RouteRequest {
    let mut peer = end(spec.peer_name, spec.mtu, spec.peer_mac);
    peer.attributes
        .push(LinkAttribute::NetNsFd(spec.peer_namespace.as_raw_fd()));
    let mut message = end(spec.name, spec.mtu, spec.mac);
    set_up(&mut message);
    message
        .attributes
        .extend(spec.master.map(LinkAttribute::Controller));
    message
        .attributes
        .extend(spec.alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
    message
        .attributes
        .push(info(InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(peer)))));
    create(
        message,
        format!("create veth {} with peer {}", spec.name, spec.peer_name),
    )
}

/// One end of a veth pair. The kernel would make room for a queue for each processor and then use one of them, and cutting the others off
/// waits for all processors, twice a pair and with the lock held that all namespaces share (`veth_init_queues`, drivers/net/veth.c;
/// `netif_set_real_num_tx_queues`, net/core/dev.c).
fn end(name: &str, mtu: u32, mac: Option<Mac>) -> LinkMessage {
    let mut message = message_for(LinkRef::Name(name));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    message.attributes.push(LinkAttribute::NumTxQueues(1));
    message.attributes.push(LinkAttribute::NumRxQueues(1));
    message
        .attributes
        .extend(mac.map(|mac| LinkAttribute::Address(mac.bytes().to_vec())));
    message
}

fn set_up(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

fn info(kind: InfoKind, data: Option<InfoData>) -> LinkAttribute {
    let mut infos = vec![LinkInfo::Kind(kind)];
    infos.extend(data.map(LinkInfo::Data));
    LinkAttribute::LinkInfo(infos)
}

fn create(message: LinkMessage, what: String) -> RouteRequest {
    RouteRequest::new(RouteNetlinkMessage::NewLink(message), CREATE | EXCL, what)
}
