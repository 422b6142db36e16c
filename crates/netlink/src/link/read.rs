//! Asking for links.

use flannel_model::Mac;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, InfoBridge, InfoBridgePort, InfoData, InfoIpTunnel, InfoPortData,
    InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use super::change::message_for;
use super::{Ipip, Link, LinkRef, Rerouting, Vxlan};
use crate::error::NetlinkError;
use crate::route_conn::{RouteConn, RouteRequest};

/// A request for one link, to go into a batch; its answer is read by [`read_link`].
pub fn get_request<'a>(link: impl Into<LinkRef<'a>>) -> RouteRequest {
    let link = link.into();
    let mut message = message_for(link);
    message.attributes.push(without_statistics());
    RouteRequest::new(RouteNetlinkMessage::GetLink(message), 0, format!("get {link}"))
}

/// The link of that name; `None` when there is none.
///
/// # Errors
/// When the kernel refuses or its answer cannot be read.
pub fn by_name(conn: &mut RouteConn, name: &str) -> Result<Option<Link>, NetlinkError> {
    match can_be_a_name(name) {
        true => get(conn, LinkRef::Name(name)),
        false => Ok(None),
    }
}

/// A longer name than IFNAMSIZ (16, linux/if.h) with its closing zero is refused by the kernel as an error; one with a zero in it
/// would be read up to there, and another link be found.
fn can_be_a_name(name: &str) -> bool {
    !name.is_empty() && name.len() < 16 && !name.contains('\0')
}

/// The link of that index; `None` when there is none.
///
/// # Errors
/// When the kernel refuses or its answer cannot be read.
pub fn by_index(conn: &mut RouteConn, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
    get(conn, LinkRef::Index(ifindex))
}

fn get(conn: &mut RouteConn, link: LinkRef<'_>) -> Result<Option<Link>, NetlinkError> {
    match conn.request(&get_request(link)) {
        Ok(reply) => Ok(reply.as_ref().and_then(read_link)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// All links of the namespace, in the order of their index.
///
/// # Errors
/// When the kernel refuses.
pub fn dump(conn: &mut RouteConn) -> Result<Vec<Link>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(without_statistics());
    let request = RouteRequest::new(RouteNetlinkMessage::GetLink(message), 0, "list links");
    let mut links: Vec<Link> = conn.dump(&request)?.iter().filter_map(read_link).collect();
    links.sort_by_key(|link| link.ifindex);
    Ok(links)
}

/// Counters make two thirds of a link's answer, and we never look at them.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// Reads a link out of an answer or a notification; `None` for other messages.
pub fn read_link(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let flags = message.header.flags;
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        alias: None,
        mtu: 0,
        mac: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        running: flags.contains(LinkFlags::Running),
        loopback: flags.contains(LinkFlags::Loopback),
        promiscuous: flags.contains(LinkFlags::Promisc),
        group: 0,
        master: None,
        peer: None,
        kind: String::new(),
        vxlan: None,
        ipip: None,
        hairpin: None,
        isolated: None,
        vlan_filtering: None,
        rerouting: Rerouting::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Link(index) => link.peer = Some(*index).filter(|i| *i != 0),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Address(bytes) if ethernet => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac::new);
            }
            LinkAttribute::LinkInfo(infos) => infos.iter().for_each(|info| read_info(info, &mut link)),
            LinkAttribute::AfSpecUnspec(families) => {
                families
                    .iter()
                    .for_each(|family| read_family(family, &mut link.rerouting));
            }
            _ => {}
        }
    }
    Some(link)
}

fn read_family(family: &AfSpecUnspec, rerouting: &mut Rerouting) {
    match family {
        AfSpecUnspec::Inet(parts) => parts.iter().for_each(|part| {
            if let AfSpecInet::DevConf(conf) = part {
                rerouting.ipv4_redirects = Some(conf.accept_redirects != 0);
                rerouting.ipv4_sends = Some(conf.send_redirects != 0);
            }
        }),
        AfSpecUnspec::Inet6(parts) => parts.iter().for_each(|part| {
            if let AfSpecInet6::DevConf(conf) = part {
                rerouting.advertisements = Some(conf.accept_ra != 0);
                rerouting.ipv6_redirects = Some(conf.accept_redirects != 0);
            }
        }),
        _ => {}
    }
}

fn read_info(info: &LinkInfo, link: &mut Link) {
    match info {
        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
        LinkInfo::Data(InfoData::Vxlan(attributes)) => link.vxlan = Some(read_vxlan(attributes)),
        LinkInfo::Data(InfoData::Bridge(attributes)) => {
            link.vlan_filtering = attributes.iter().find_map(|a| match a {
                InfoBridge::VlanFiltering(on) => Some(*on),
                _ => None,
            });
        }
        LinkInfo::Data(InfoData::IpTunnel(attributes)) if link.kind == "ipip" => {
            link.ipip = Some(read_ipip(attributes));
        }
        LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
            link.hairpin = attributes.iter().find_map(|a| match a {
                InfoBridgePort::HairpinMode(on) => Some(*on),
                _ => None,
            });
            link.isolated = attributes.iter().find_map(|a| match a {
                InfoBridgePort::Isolated(on) => Some(*on),
                _ => None,
            });
        }
        _ => {}
    }
}

fn read_vxlan(attributes: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for attribute in attributes {
        match attribute {
            InfoVxlan::Id(id) => vxlan.id = *id,
            InfoVxlan::Link(index) => vxlan.underlay = Some(*index).filter(|i| *i != 0),
            InfoVxlan::Local(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Local6(address) => vxlan.local = Some((*address).into()),
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::L2Miss(on) => vxlan.l2miss = *on,
            // A flag: its presence is its value.
            InfoVxlan::Gbp => vxlan.gbp = true,
            _ => {}
        }
    }
    vxlan
}

fn read_ipip(attributes: &[InfoIpTunnel]) -> Ipip {
    let mut ipip = Ipip::default();
    for attribute in attributes {
        match attribute {
            // The unspecified address stands for any.
            InfoIpTunnel::Local(address) => ipip.local = Some(*address).filter(|a| !a.is_unspecified()),
            InfoIpTunnel::Remote(address) => ipip.remote = Some(*address).filter(|a| !a.is_unspecified()),
            _ => {}
        }
    }
    ipip
}
