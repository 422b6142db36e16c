//! Reading the kernel's lists of virtual and real servers. Never panics, whatever the bytes are.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flannel_model::{Scheduler, ServiceProtocol, VirtualAddress};

use super::attribute::attributes_of;
use super::ipvs::{Forward, INET, INET6, IpvsKey, IpvsTimeouts, RealServer, Stats, VirtualServer, attr};
use crate::wire::Attributes;

/// `IP_VS_SVC_F_HASHED`: set by the kernel on every virtual server that it uses.
const HASHED: u32 = 2;

/// The virtual server in a message of a GET_SERVICE list.
pub(crate) fn virtual_server(payload: &[u8]) -> Option<VirtualServer> {
    let service = Nest::of(payload, attr::SERVICE)?;
    Some(VirtualServer {
        key: key(&service)?,
        scheduler: scheduler(service.text(attr::SVC_SCHED_NAME)?),
        // struct ip_vs_flags: flags first, mask second
        flags: service.u32(attr::SVC_FLAGS)? & !HASHED,
        timeout: service.u32(attr::SVC_TIMEOUT)?,
    })
}

/// There are virtual servers by the ten thousand and few schedulers.
fn scheduler(name: String) -> Cow<'static, str> {
    match name.parse::<Scheduler>() {
        Ok(known) => Cow::Borrowed(known.as_str()),
        Err(_) => Cow::Owned(name),
    }
}

/// What the virtual server in a message of a GET_SERVICE list has carried.
pub(crate) fn stats(payload: &[u8]) -> Option<(IpvsKey, Stats)> {
    let service = Nest::of(payload, attr::SERVICE)?;
    let read = |stats: &Nest<'_>, number: &dyn Fn(u16) -> Option<u64>| {
        Some(Stats {
            connections: number(attr::STATS_CONNS)?,
            packets_in: number(attr::STATS_INPKTS)?,
            packets_out: number(attr::STATS_OUTPKTS)?,
            bytes_in: stats.u64(attr::STATS_INBYTES)?,
            bytes_out: stats.u64(attr::STATS_OUTBYTES)?,
        })
    };
    let stats = match service.get(attr::SVC_STATS64).map(Nest) {
        Some(nest) => read(&nest, &|kind| nest.u64(kind))?,
        None => {
            // Kernels before 4.1: all but bytes in 32 bits.
            let nest = Nest(service.get(attr::SVC_STATS)?);
            read(&nest, &|kind| nest.u32(kind).map(u64::from))?
        }
    };
    Some((key(&service)?, stats))
}

/// The real server in a message of a GET_DEST list for a virtual server of the given family.
pub(crate) fn real_server(payload: &[u8], ipv6: bool) -> Option<RealServer> {
    let dest = Nest::of(payload, attr::DEST)?;
    // Kernels before 3.18 leave the family out: it is the virtual server's then.
    let family = dest
        .u16(attr::DEST_ADDR_FAMILY)
        .unwrap_or(if ipv6 { INET6 } else { INET });
    let address = dest.address(attr::DEST_ADDR, family)?;
    Some(RealServer {
        address: SocketAddr::new(address, dest.port(attr::DEST_PORT)?),
        forward: Forward::from_number(dest.u32(attr::DEST_FWD_METHOD)?)?,
        weight: dest.u32(attr::DEST_WEIGHT)?,
        active: dest.u32(attr::DEST_ACTIVE_CONNS).unwrap_or(0),
        inactive: dest.u32(attr::DEST_INACT_CONNS).unwrap_or(0),
    })
}

/// The timeouts in the answer to GET_CONFIG.
pub(crate) fn timeouts(payload: &[u8]) -> IpvsTimeouts {
    let config = Nest(attributes_of(payload));
    IpvsTimeouts {
        tcp: config.u32(attr::TIMEOUT_TCP),
        tcp_fin: config.u32(attr::TIMEOUT_TCP_FIN),
        udp: config.u32(attr::TIMEOUT_UDP),
    }
}

fn key(service: &Nest<'_>) -> Option<IpvsKey> {
    let family = service.u16(attr::SVC_AF)?;
    if let Some(mark) = service.u32(attr::SVC_FWMARK) {
        return Some(IpvsKey::Mark {
            ipv6: family == INET6,
            mark,
        });
    }
    let protocol = u8::try_from(service.u16(attr::SVC_PROTOCOL)?).ok()?;
    Some(IpvsKey::Address(VirtualAddress {
        protocol: ServiceProtocol::from_number(protocol)?,
        address: service.address(attr::SVC_ADDR, family)?,
        port: service.port(attr::SVC_PORT)?,
    }))
}

/// The attributes inside one attribute.
struct Nest<'a>(&'a [u8]);

impl<'a> Nest<'a> {
    fn of(payload: &'a [u8], kind: u16) -> Option<Self> {
        Attributes(attributes_of(payload))
            .find(|(k, _)| *k == kind)
            .map(|(_, value)| Self(value))
    }

    fn get(&self, kind: u16) -> Option<&'a [u8]> {
        Attributes(self.0)
            .find(|(k, _)| *k == kind)
            .map(|(_, value)| value)
    }

    /// The first `N` bytes of the attribute's value.
    fn head<const N: usize>(&self, kind: u16) -> Option<[u8; N]> {
        self.get(kind)?.get(..N)?.try_into().ok()
    }

    fn u16(&self, kind: u16) -> Option<u16> {
        self.head(kind).map(u16::from_ne_bytes)
    }

    fn u32(&self, kind: u16) -> Option<u32> {
        self.head(kind).map(u32::from_ne_bytes)
    }

    fn u64(&self, kind: u16) -> Option<u64> {
        self.head(kind).map(u64::from_ne_bytes)
    }

    /// A port: network byte order.
    fn port(&self, kind: u16) -> Option<u16> {
        self.head(kind).map(u16::from_be_bytes)
    }

    fn text(&self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?.split(|b| *b == 0).next()?;
        String::from_utf8(bytes.to_vec()).ok()
    }

    fn address(&self, kind: u16, family: u16) -> Option<IpAddr> {
        match family {
            INET => self.head::<4>(kind).map(|b| IpAddr::V4(Ipv4Addr::from(b))),
            INET6 => self.head::<16>(kind).map(|b| IpAddr::V6(Ipv6Addr::from(b))),
            _ => None,
        }
    }
}
