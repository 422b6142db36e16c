//! Reading what the kernel says of a link.
//!
//! A link's message has some sixty attributes, those of a bridge twice as many. Only the few that a [`Link`] has are looked at: the CNI
//! plugin asks for several links in each of its calls, and reading all attributes took it longer than the kernel takes to answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_model::Mac;

use super::{Forwarding, Ipip, Link, Rerouting, Vxlan};
use crate::conn::Reply;
use crate::wire::attributes;

/// `RTM_NEWLINK` (linux/rtnetlink.h).
pub(crate) const NEW_LINK: u16 = 16;
/// Size of `struct ifinfomsg` (linux/rtnetlink.h): family, type, index, flags, and which of them change.
pub(crate) const HEADER: usize = 16;
/// `ARPHRD_ETHER` (linux/if_arp.h).
const ETHERNET: u16 = 1;
/// `AF_INET` and `AF_INET6` (linux/socket.h), by which the settings of a link are sorted.
const IPV4: u16 = 2;
const IPV6: u16 = 10;

/// Reads a link out of an answer; `None` for other messages.
pub(super) fn read_link(reply: &Reply) -> Option<Link> {
    if reply.kind != NEW_LINK {
        return None;
    }
    let (header, rest) = reply.payload.split_at_checked(HEADER)?;
    let flags = number(header.get(8..12)?)?;
    // IFF_UP, IFF_LOWER_UP, IFF_RUNNING, IFF_LOOPBACK and IFF_PROMISC (linux/if.h)
    let has = |flag: u32| flags & flag != 0;
    let mut link = Link {
        ifindex: number(header.get(4..8)?)?,
        up: has(1),
        carrier: has(1 << 16),
        running: has(1 << 6),
        loopback: has(1 << 3),
        promiscuous: has(1 << 8),
        ..Link::default()
    };
    let ethernet = header.get(2..4) == Some(&ETHERNET.to_ne_bytes());
    for (kind, value) in attributes(rest) {
        // IFLA_… (linux/if_link.h)
        match kind {
            1 if ethernet => link.mac = <[u8; 6]>::try_from(value).ok().map(Mac::new),
            3 => link.name = text(value),
            4 => link.mtu = number(value).unwrap_or_default(),
            5 => link.peer = number(value).filter(|index| *index != 0),
            10 => link.master = number(value),
            18 => read_info(value, &mut link),
            20 => link.alias = Some(text(value)),
            26 => (link.rerouting, link.forwarding) = read_families(value),
            27 => link.group = number(value).unwrap_or_default(),
            _ => {}
        }
    }
    Some(link)
}

/// `IFLA_AF_SPEC`: the settings of each family, in arrays (linux/ip.h, linux/ipv6.h).
fn read_families(bytes: &[u8]) -> (Rerouting, Forwarding) {
    let (mut rerouting, mut forwarding) = (Rerouting::default(), Forwarding::default());
    for (family, parts) in attributes(bytes) {
        let array = |wanted| attributes(parts).find(|(kind, _)| *kind == wanted);
        let on = |array: &[u8], place: usize| {
            let value = array.get(place * 4..place * 4 + 4)?;
            Some(number(value)? != 0)
        };
        match family {
            // IFLA_INET_CONF; IPV4_DEVCONF_FORWARDING, _ACCEPT_REDIRECTS and _SEND_REDIRECTS, which count from 1
            IPV4 => {
                let conf = array(1).map(|(_, conf)| conf).unwrap_or_default();
                forwarding.ipv4 = on(conf, 0);
                rerouting.ipv4_redirects = on(conf, 3);
                rerouting.ipv4_sends = on(conf, 5);
            }
            // IFLA_INET6_CONF; DEVCONF_FORWARDING, _ACCEPT_RA and _ACCEPT_REDIRECTS
            IPV6 => {
                let conf = array(2).map(|(_, conf)| conf).unwrap_or_default();
                forwarding.ipv6 = on(conf, 0);
                rerouting.advertisements = on(conf, 3);
                rerouting.ipv6_redirects = on(conf, 4);
            }
            _ => {}
        }
    }
    (rerouting, forwarding)
}

/// `IFLA_LINKINFO`. The kernel names the kind before it tells what belongs to it (`rtnl_link_fill`, net/core/rtnetlink.c).
fn read_info(bytes: &[u8], link: &mut Link) {
    let mut port_of_bridge = false;
    for (kind, value) in attributes(bytes) {
        // IFLA_INFO_KIND, _DATA, _SLAVE_KIND, _SLAVE_DATA
        match (kind, link.kind.as_str()) {
            (1, _) => link.kind = text(value),
            (2, "vxlan") => link.vxlan = Some(read_vxlan(value)),
            (2, "ipip") => link.ipip = Some(read_ipip(value)),
            // IFLA_BR_VLAN_FILTERING
            (2, "bridge") => link.vlan_filtering = switch(value, 7),
            (4, _) => port_of_bridge = text(value) == "bridge",
            (5, _) if port_of_bridge => {
                // IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED
                link.hairpin = switch(value, 4);
                link.isolated = switch(value, 33);
            }
            _ => {}
        }
    }
}

fn read_vxlan(bytes: &[u8]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for (kind, value) in attributes(bytes) {
        // IFLA_VXLAN_…
        match kind {
            1 => vxlan.id = number(value).unwrap_or_default(),
            3 => vxlan.underlay = number(value).filter(|index| *index != 0),
            4 | 17 => vxlan.local = address(value),
            7 => vxlan.learning = is_on(value),
            13 => vxlan.l2miss = is_on(value),
            15 => vxlan.port = <[u8; 2]>::try_from(value).map_or(0, u16::from_be_bytes),
            // A flag: its presence is its value.
            23 => vxlan.gbp = true,
            _ => {}
        }
    }
    vxlan
}

fn read_ipip(bytes: &[u8]) -> Ipip {
    let mut ipip = Ipip::default();
    for (kind, value) in attributes(bytes) {
        // The unspecified address stands for any.
        let end = || address(value).filter(|address| !address.is_unspecified());
        // IFLA_IPTUN_LOCAL, IFLA_IPTUN_REMOTE
        match kind {
            2 => ipip.local = end(),
            3 => ipip.remote = end(),
            _ => {}
        }
    }
    ipip
}

/// The attribute `wanted` as what is on or off; `None` when it is not there.
fn switch(bytes: &[u8], wanted: u16) -> Option<bool> {
    let (_, value) = attributes(bytes).find(|(kind, _)| *kind == wanted)?;
    Some(is_on(value))
}

fn is_on(value: &[u8]) -> bool {
    value.first().is_some_and(|byte| *byte != 0)
}

pub(crate) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).map(Ipv4Addr::from).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(value).map(Ipv6Addr::from).map(IpAddr::from);
    v4().or_else(|_| v6()).ok()
}

/// A text ends with a zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn reply(kind: u16, hardware: u16, flags: u32, parts: &[Vec<u8>]) -> Reply {
        let mut payload = vec![0, 0];
        payload.extend(hardware.to_ne_bytes());
        payload.extend(7_u32.to_ne_bytes());
        payload.extend(flags.to_ne_bytes());
        payload.extend([0; 4]);
        payload.extend(parts.concat());
        Reply {
            kind,
            flags: 0,
            sequence: 0,
            payload,
        }
    }

    fn tunnel(info: &[Vec<u8>]) -> Link {
        read_link(&reply(NEW_LINK, 0, 0, &[attribute(18, &info.concat())])).unwrap()
    }

    #[test]
    fn a_port_of_a_bridge() {
        let mut conf4 = [[0; 4]; 8];
        conf4[0] = 1_u32.to_ne_bytes();
        conf4[5] = 1_u32.to_ne_bytes();
        let mut conf6 = [[0; 4]; 8];
        conf6[3] = 2_u32.to_ne_bytes();
        let families = [
            attribute(IPV4, &attribute(1, conf4.as_flattened())),
            attribute(IPV6, &attribute(2, conf6.as_flattened())),
        ];
        let info = [
            attribute(1, b"veth\0"),
            attribute(4, b"bridge\0"),
            attribute(5, &[attribute(4, &[1]), attribute(33, &[0])].concat()),
        ];
        let parts = [
            attribute(3, b"veth1\0"),
            attribute(1, &[2, 0, 0, 0, 0, 1]),
            attribute(4, &1450_u32.to_ne_bytes()),
            attribute(5, &0_u32.to_ne_bytes()),
            attribute(10, &3_u32.to_ne_bytes()),
            attribute(20, b"flannel:n/c/eth0\0"),
            attribute(18, &info.concat()),
            attribute(26, &families.concat()),
            attribute(27, &9_u32.to_ne_bytes()),
        ];
        let expected = Link {
            ifindex: 7,
            name: "veth1".to_owned(),
            alias: Some("flannel:n/c/eth0".to_owned()),
            mtu: 1450,
            mac: Some(Mac::new([2, 0, 0, 0, 0, 1])),
            up: true,
            carrier: true,
            group: 9,
            master: Some(3),
            kind: "veth".to_owned(),
            hairpin: Some(true),
            isolated: Some(false),
            rerouting: Rerouting {
                advertisements: Some(true),
                ipv6_redirects: Some(false),
                ipv4_redirects: Some(false),
                ipv4_sends: Some(true),
            },
            forwarding: Forwarding {
                ipv4: Some(true),
                ipv6: Some(false),
            },
            ..Link::default()
        };
        let message = |kind, hardware| reply(kind, hardware, 1 | 1 << 16, &parts);
        assert_eq!(read_link(&message(NEW_LINK, ETHERNET)), Some(expected));
        // A tunnel's own address, six bytes by chance, is no Ethernet address.
        assert_eq!(read_link(&message(NEW_LINK, 768)).unwrap().mac, None);
        assert_eq!(read_link(&message(17, ETHERNET)), None);
    }

    #[test]
    fn tunnels() {
        let parts = [
            attribute(1, &5_u32.to_ne_bytes()),
            attribute(3, &2_u32.to_ne_bytes()),
            attribute(4, &[192, 0, 2, 1]),
            attribute(7, &[1]),
            attribute(13, &[1]),
            attribute(15, &4789_u16.to_be_bytes()),
            attribute(23, &[]),
        ];
        let vxlan = tunnel(&[attribute(1, b"vxlan\0"), attribute(2, &parts.concat())]).vxlan;
        let expected = Vxlan {
            id: 5,
            underlay: Some(2),
            local: Some(IpAddr::from([192, 0, 2, 1])),
            port: 4789,
            learning: true,
            gbp: true,
            l2miss: true,
        };
        assert_eq!(vxlan, Some(expected));
        let parts = [attribute(2, &[192, 0, 2, 1]), attribute(3, &[0; 4])];
        let ipip = |kind: &[u8]| tunnel(&[attribute(1, kind), attribute(2, &parts.concat())]).ipip;
        let expected = Ipip {
            local: Some(IpAddr::from([192, 0, 2, 1])),
            remote: None,
        };
        assert_eq!((ipip(b"ipip\0"), ipip(b"sit\0")), (Some(expected), None));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        for length in (0..300).cycle().take(20_000) {
            let mut payload: Vec<u8> = (0..length)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    seed.to_ne_bytes()[0]
                })
                .collect();
            // Lengths that fit, so that the walk goes into what is nested.
            for (place, kind) in [(16, 18), (20, 1), (28, 2), (40, 26)] {
                if let Some(header) = payload.get_mut(place..place + 4) {
                    header.copy_from_slice(&[8 + seed.to_ne_bytes()[1] % 32, 0, kind, 0]);
                }
            }
            let reply = Reply {
                kind: NEW_LINK,
                flags: 0,
                sequence: 0,
                payload,
            };
            assert_eq!(read_link(&reply).is_some(), length >= HEADER);
        }
    }
}
