//! Changes to links that exist. All are requests to be batched or run.

use std::net::IpAddr;

use flannel_model::Mac;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};

use super::LinkRef;
use crate::route_conn::RouteRequest;

/// A message about `link` and nothing else yet.
pub(super) fn message_for(link: LinkRef<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    match link {
        LinkRef::Index(ifindex) => message.header.index = ifindex,
        LinkRef::Name(name) => message.attributes.push(LinkAttribute::IfName(name.to_owned())),
    }
    message
}

fn set(link: LinkRef<'_>, attribute: LinkAttribute, what: &str) -> RouteRequest {
    let mut message = message_for(link);
    message.attributes.push(attribute);
    RouteRequest::new(
        RouteNetlinkMessage::SetLink(message),
        0,
        format!("{what} of {link}"),
    )
}

fn set_flag(link: LinkRef<'_>, up: bool) -> RouteRequest {
    let mut message = message_for(link);
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    let what = format!("set {link} {}", if up { "up" } else { "down" });
    RouteRequest::new(RouteNetlinkMessage::SetLink(message), 0, what)
}

/// Sets a link up.
pub fn set_up<'a>(link: impl Into<LinkRef<'a>>) -> RouteRequest {
    set_flag(link.into(), true)
}

/// Sets a link down. The kernel drops the routes over it and its learned neighbours.
pub fn set_down<'a>(link: impl Into<LinkRef<'a>>) -> RouteRequest {
    set_flag(link.into(), false)
}

/// Sets the largest packet, in bytes.
pub fn set_mtu<'a>(link: impl Into<LinkRef<'a>>, mtu: u32) -> RouteRequest {
    set(link.into(), LinkAttribute::Mtu(mtu), &format!("set MTU {mtu}"))
}

/// Sets the hardware address.
pub fn set_mac<'a>(link: impl Into<LinkRef<'a>>, mac: Mac) -> RouteRequest {
    set(
        link.into(),
        LinkAttribute::Address(mac.bytes().to_vec()),
        &format!("set address {mac}"),
    )
}

/// Puts a link under a bridge, or takes it away from the one it is under.
pub fn set_master<'a>(link: impl Into<LinkRef<'a>>, master: Option<u32>) -> RouteRequest {
    let what = master.map_or_else(|| "remove master".to_owned(), |m| format!("set master {m}"));
    // Index 0 is no link: it releases.
    set(link.into(), LinkAttribute::Controller(master.unwrap_or(0)), &what)
}

/// Sets the alias text (at most 255 bytes).
pub fn set_alias<'a>(link: impl Into<LinkRef<'a>>, alias: &str) -> RouteRequest {
    set(link.into(), LinkAttribute::IfAlias(alias.to_owned()), "set alias")
}

/// Lets a bridge send a frame back through the port on which it came, so that a pod reaches itself by a Service.
pub fn set_hairpin<'a>(link: impl Into<LinkRef<'a>>, on: bool) -> RouteRequest {
    let what = format!("set hairpin {}", if on { "on" } else { "off" });
    change_port(link.into(), InfoBridgePort::HairpinMode(on), &what)
}

/// Keeps a port of a bridge from reaching other isolated ports.
pub fn set_isolated<'a>(link: impl Into<LinkRef<'a>>, on: bool) -> RouteRequest {
    let what = format!("set isolation {}", if on { "on" } else { "off" });
    change_port(link.into(), InfoBridgePort::Isolated(on), &what)
}

fn change_port(link: LinkRef<'_>, attribute: InfoBridgePort, what: &str) -> RouteRequest {
    let info = vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![attribute])),
    ];
    change_info(link, info, what)
}

/// Cuts a link off: down, no bridge's port any more, and in `group`. Together this takes a fraction of a millisecond,
/// where a deletion waits for the whole kernel to forget the device (`netdev_run_todo`: a good ten milliseconds).
pub fn detach(ifindex: u32, group: u32) -> RouteRequest {
    let mut message = message_for(LinkRef::Index(ifindex));
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::Group(group));
    message.attributes.push(LinkAttribute::Controller(0));
    let what = format!("detach link {ifindex}");
    RouteRequest::new(RouteNetlinkMessage::SetLink(message), 0, what)
}

/// Deletes all links of a group; they go together, in the time that one takes. ENODEV when there is none.
pub fn delete_group(group: u32) -> RouteRequest {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    let what = format!("delete the links of group {group}");
    RouteRequest::new(RouteNetlinkMessage::DelLink(message), 0, what)
}

/// Switches the learning of source addresses on a VXLAN link.
pub fn set_vxlan_learning<'a>(link: impl Into<LinkRef<'a>>, on: bool) -> RouteRequest {
    let what = format!("set VXLAN learning {}", if on { "on" } else { "off" });
    change_vxlan(link.into(), InfoVxlan::Learning(on), &what)
}

/// Changes the source address of the outer packets of a VXLAN link.
pub fn set_vxlan_local<'a>(link: impl Into<LinkRef<'a>>, local: IpAddr) -> RouteRequest {
    change_vxlan(
        link.into(),
        super::create::local_attribute(local),
        &format!("set VXLAN local address {local}"),
    )
}

fn change_vxlan(link: LinkRef<'_>, attribute: InfoVxlan, what: &str) -> RouteRequest {
    let info = vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(vec![attribute])),
    ];
    change_info(link, info, what)
}

/// Details of a kind are changed by RTM_NEWLINK without the flag CREATE; RTM_SETLINK would leave them as they are.
pub(super) fn change_info(link: LinkRef<'_>, info: Vec<LinkInfo>, what: &str) -> RouteRequest {
    let mut message = message_for(link);
    message.attributes.push(LinkAttribute::LinkInfo(info));
    RouteRequest::new(
        RouteNetlinkMessage::NewLink(message),
        0,
        format!("{what} of {link}"),
    )
}

/// Deletes a link. The peer of a veth goes with it.
pub fn delete<'a>(link: impl Into<LinkRef<'a>>) -> RouteRequest {
    let link = link.into();
    RouteRequest::new(
        RouteNetlinkMessage::DelLink(message_for(link)),
        0,
        format!("delete {link}"),
    )
}
