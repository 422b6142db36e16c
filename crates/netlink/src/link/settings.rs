//! Settings of the protocols on a link, which else are files under /proc/sys/net: as messages, they go with others in one call.

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoPortData, InfoPortKind,
    LinkAttribute, LinkFlags, LinkInfo,
};

use super::LinkRef;
use super::change::{change_info, message_for};
use crate::route_conn::RouteRequest;

/// `IFLA_INET_CONF` (linux/if_link.h)
const INET_CONF: u16 = 1;

/// A setting of IPv4 on a link: its number in `IPV4_DEVCONF_*` (linux/ip.h), under its name below /proc/sys/net/ipv4/conf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv4Setting {
    /// `accept_redirects`
    AcceptRedirects = 4,
    /// `send_redirects`
    SendRedirects = 6,
    /// `arp_notify`
    ArpNotify = 22,
}

/// Switches settings of IPv4 on a link.
pub fn set_ipv4<'a>(link: impl Into<LinkRef<'a>>, settings: &[(Ipv4Setting, bool)]) -> RouteRequest {
    let link = link.into();
    let mut message = message_for(link);
    let names: Vec<String> = settings
        .iter()
        .map(|(setting, on)| format!("{setting:?} {on}"))
        .collect();
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![ipv4(settings)]));
    let what = format!("{} on {link}", names.join(", "));
    RouteRequest::new(RouteNetlinkMessage::SetLink(message), 0, what)
}

fn ipv4(settings: &[(Ipv4Setting, bool)]) -> AfSpecUnspec {
    let mut bytes = Vec::new();
    for (setting, on) in settings {
        let value = u32::from(*on).to_ne_bytes().to_vec();
        let attribute = DefaultNla::new(*setting as u16, value);
        let begin = bytes.len();
        bytes.resize(begin + attribute.buffer_len(), 0);
        attribute.emit(bytes.get_mut(begin..).unwrap_or_default());
    }
    // The crate's own type for it leaves zeros out, with which a setting is switched off.
    AfSpecUnspec::Inet(vec![AfSpecInet::Other(DefaultNla::new(
        INET_CONF | NLA_F_NESTED,
        bytes,
    ))])
}

/// Sets a link up, and then these settings, in one message.
pub fn set_up_with<'a>(link: impl Into<LinkRef<'a>>, settings: &[(Ipv4Setting, bool)]) -> RouteRequest {
    let mut request = set_ipv4(link, settings);
    if let RouteNetlinkMessage::SetLink(message) = &mut request.message {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    request.what.insert_str(0, "set up, with ");
    request
}

/// Whether the kernel gives a link an IPv6 address of its own, made from the hardware address (EUI-64). EAFNOSUPPORT where there is
/// no IPv6.
pub fn set_link_local<'a>(link: impl Into<LinkRef<'a>>, on: bool) -> RouteRequest {
    let link = link.into();
    let mut message = message_for(link);
    let settings = vec![link_local(on)];
    message.attributes.push(LinkAttribute::AfSpecUnspec(settings));
    let what = format!("give {link} {} link-local address", if on { "a" } else { "no" });
    RouteRequest::new(RouteNetlinkMessage::SetLink(message), 0, what)
}

/// What a port of a bridge is given besides its place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMarks<'a> {
    /// Alias text, at most 255 bytes.
    pub alias: &'a str,
    /// Settings of IPv4.
    pub ipv4: &'a [(Ipv4Setting, bool)],
    /// Keep the kernel from giving it an IPv6 address of its own. Where there is no IPv6, the whole request fails with EAFNOSUPPORT.
    pub no_link_local: bool,
    /// The bridge sends a frame back through it when it is for there.
    pub hairpin: bool,
    /// It does not reach other isolated ports.
    pub isolated: bool,
}

/// Gives a port its marks, all in one message: each message waits for the kernel's one lock of all devices.
pub fn mark_port(name: &str, marks: &PortMarks<'_>) -> RouteRequest {
    let mut flags = Vec::new();
    if marks.hairpin {
        flags.push(InfoBridgePort::HairpinMode(true));
    }
    if marks.isolated {
        flags.push(InfoBridgePort::Isolated(true));
    }
    let mut info = Vec::new();
    if !flags.is_empty() {
        info.push(LinkInfo::PortKind(InfoPortKind::Bridge));
        info.push(LinkInfo::PortData(InfoPortData::BridgePort(flags)));
    }
    let mut request = change_info(LinkRef::Name(name), info, "mark the port");
    if let RouteNetlinkMessage::NewLink(message) = &mut request.message {
        // An empty list of details is refused.
        message
            .attributes
            .retain(|attribute| !matches!(attribute, LinkAttribute::LinkInfo(info) if info.is_empty()));
        let mut families = vec![ipv4(marks.ipv4)];
        families.extend(marks.no_link_local.then(|| link_local(false)));
        message
            .attributes
            .push(LinkAttribute::IfAlias(marks.alias.to_owned()));
        message.attributes.push(LinkAttribute::AfSpecUnspec(families));
    }
    request
}

fn link_local(on: bool) -> AfSpecUnspec {
    let mode = match on {
        true => In6AddrGenMode::Eui64,
        false => In6AddrGenMode::None,
    };
    AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_sent_off_as_well_as_on() {
        let request = set_ipv4(
            7,
            &[
                (Ipv4Setting::ArpNotify, true),
                (Ipv4Setting::SendRedirects, false),
            ],
        );
        let RouteNetlinkMessage::SetLink(message) = request.message else {
            panic!("no change of a link");
        };
        let mut bytes = vec![0; message.attributes.as_slice().buffer_len()];
        message.attributes.as_slice().emit(&mut bytes);
        let pairs: Vec<(u16, u32)> = bytes[12..]
            .chunks(8)
            .map(|nla| {
                (
                    u16::from_ne_bytes([nla[2], nla[3]]),
                    u32::from_ne_bytes([nla[4], nla[5], nla[6], nla[7]]),
                )
            })
            .collect();
        assert_eq!(pairs, [(22, 1), (6, 0)]);
    }
}
