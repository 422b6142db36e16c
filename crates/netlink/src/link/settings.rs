//! Settings of the protocols on a link, which else are files under /proc/sys/net: as messages, they go with others in one call.

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};

use super::LinkRef;
use super::change::message_for;
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
    let mut bytes = Vec::new();
    for (setting, on) in settings {
        let value = u32::from(*on).to_ne_bytes().to_vec();
        let attribute = DefaultNla::new(*setting as u16, value);
        let begin = bytes.len();
        bytes.resize(begin + attribute.buffer_len(), 0);
        attribute.emit(bytes.get_mut(begin..).unwrap_or_default());
    }
    // The crate's own type for it leaves zeros out, with which a setting is switched off.
    let inet = AfSpecInet::Other(DefaultNla::new(INET_CONF | NLA_F_NESTED, bytes));
    let names: Vec<String> = settings
        .iter()
        .map(|(setting, on)| format!("{setting:?} {on}"))
        .collect();
    with(link, AfSpecUnspec::Inet(vec![inet]), &names.join(", "))
}

/// Keeps the kernel from giving a link an IPv6 address of its own. EAFNOSUPPORT where there is no IPv6.
pub fn set_no_link_local<'a>(link: impl Into<LinkRef<'a>>) -> RouteRequest {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    with(
        link.into(),
        AfSpecUnspec::Inet6(vec![mode]),
        "give no link-local address",
    )
}

fn with(link: LinkRef<'_>, settings: AfSpecUnspec, what: &str) -> RouteRequest {
    let mut message = message_for(link);
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![settings]));
    RouteRequest::new(
        RouteNetlinkMessage::SetLink(message),
        0,
        format!("{what} on {link}"),
    )
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
