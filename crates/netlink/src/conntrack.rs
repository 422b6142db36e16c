//! Connections as netfilter tracks them: listing, and ending single ones.
//!
//! Numbers are those of linux/netfilter/nfnetlink_conntrack.h; integers inside attributes are big-endian.

use std::net::{IpAddr, SocketAddr};

use crate::conn::{Conn, Protocol, Request};
use crate::error::NetlinkError;
use crate::nftables::Attributes;
use crate::wire::attributes;

/// NFNL_SUBSYS_CTNETLINK with IPCTNL_MSG_CT_GET and IPCTNL_MSG_CT_DELETE
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
/// CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_PROTOINFO, CTA_ID, CTA_ZONE
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const PROTOINFO: u16 = 4;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// Flows ended in one send.
const AT_ONCE: usize = 512;

/// A tracked flow of a protocol with ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number: 6 TCP, 17 UDP, 132 SCTP.
    pub protocol: u8,
    /// Who began it.
    pub source: SocketAddr,
    /// Whom it was sent to.
    pub destination: SocketAddr,
    /// Who answers: differs from `destination` where that was translated.
    pub answerer: SocketAddr,
    /// Whether it is a TCP connection that both sides have opened and none has closed.
    pub established: bool,
    /// The kernel's number for it, so that a later flow of the same addresses is not taken for it.
    id: Option<Vec<u8>>,
    /// Its zone, where it is not zone 0.
    zone: Option<Vec<u8>>,
}

/// The flows of one family that `wanted` chooses, out of all in the network namespace.
///
/// # Errors
/// When the kernel has no connection tracking by netlink or does not answer.
pub fn flows(ipv4: bool, mut wanted: impl FnMut(&Flow) -> bool) -> Result<Vec<Flow>, NetlinkError> {
    let mut conn = Conn::open(Protocol::Netfilter)?;
    let request = request(GET, ipv4, &Attributes::new(), "list tracked connections");
    let mut out = Vec::new();
    conn.each(&request, |payload| {
        out.extend(read_flow(payload).filter(|flow| wanted(flow)));
    })?;
    Ok(out)
}

/// Ends these flows: the next packet of each begins a new one. Answers how many there still were.
///
/// # Errors
/// The first refusal of the kernel, after all that could be ended was ended.
pub fn end(flows: &[Flow]) -> Result<usize, NetlinkError> {
    let mut conn = Conn::open(Protocol::Netfilter)?;
    let mut ended = 0;
    let mut result = Ok(());
    for chunk in flows.chunks(AT_ONCE) {
        let requests: Vec<Request> = chunk.iter().map(deletion).collect();
        for outcome in conn.batch(&requests) {
            match outcome {
                Ok(_) => ended += 1,
                // it ended by itself
                Err(error) if error.is_missing() => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
    }
    result.map(|()| ended)
}

fn deletion(flow: &Flow) -> Request {
    let mut tuple = Attributes::new().nest(
        ORIGINAL,
        &write_tuple(flow.protocol, flow.source, flow.destination),
    );
    if let Some(zone) = &flow.zone {
        tuple = tuple.bytes(ZONE, zone);
    }
    if let Some(id) = &flow.id {
        tuple = tuple.bytes(ID, id);
    }
    let what = format!("end tracked flow {} → {}", flow.source, flow.destination);
    request(DELETE, flow.source.is_ipv4(), &tuple, &what)
}

fn request(kind: u16, ipv4: bool, attributes: &Attributes, what: &str) -> Request {
    // struct nfgenmsg: AF_INET or AF_INET6, version 0, resource 0
    let mut payload = vec![if ipv4 { 2 } else { 10 }, 0, 0, 0];
    payload.extend_from_slice(attributes.as_bytes());
    Request {
        kind,
        flags: 0,
        payload,
        what: what.to_owned(),
    }
}

/// CTA_TUPLE_IP with CTA_IP_V4_SRC, _DST or CTA_IP_V6_SRC, _DST; CTA_TUPLE_PROTO with CTA_PROTO_NUM, _SRC_PORT, _DST_PORT.
fn write_tuple(protocol: u8, source: SocketAddr, destination: SocketAddr) -> Attributes {
    let ips = match (source.ip(), destination.ip()) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => Attributes::new()
            .bytes(3, &source.octets())
            .bytes(4, &destination.octets()),
        (source, destination) => {
            [source, destination]
                .iter()
                .zip(1..)
                .fold(Attributes::new(), |out, (ip, kind)| match ip {
                    IpAddr::V4(ip) => out.bytes(kind, &ip.octets()),
                    IpAddr::V6(_) => out,
                })
        }
    };
    let ports = Attributes::new()
        .bytes(1, &[protocol])
        .bytes(2, &source.port().to_be_bytes())
        .bytes(3, &destination.port().to_be_bytes());
    Attributes::new().nest(1, &ips).nest(2, &ports)
}

struct Tuple {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
}

/// A flow in a message behind struct nfgenmsg; `None` for protocols without ports.
fn read_flow(payload: &[u8]) -> Option<Flow> {
    let (mut original, mut reply, mut id, mut zone) = (None, None, None, None);
    let mut established = false;
    for (kind, value) in attributes(payload.get(4..)?) {
        match kind {
            ORIGINAL => original = read_tuple(value),
            REPLY => reply = read_tuple(value),
            PROTOINFO => established = tcp_state(value) == Some(ESTABLISHED),
            ID => id = Some(value.to_vec()),
            ZONE => zone = Some(value.to_vec()),
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    Some(Flow {
        protocol: original.protocol,
        source: original.source,
        destination: original.destination,
        answerer: reply.source,
        established,
        id,
        zone,
    })
}

/// TCP_CONNTRACK_ESTABLISHED
const ESTABLISHED: u8 = 3;

/// CTA_PROTOINFO_TCP_STATE in CTA_PROTOINFO_TCP; `None` for other protocols.
fn tcp_state(info: &[u8]) -> Option<u8> {
    let (_, tcp) = attributes(info).find(|(kind, _)| *kind == 1)?;
    let (_, state) = attributes(tcp).find(|(kind, _)| *kind == 1)?;
    state.first().copied()
}

fn read_tuple(bytes: &[u8]) -> Option<Tuple> {
    let nested = |wanted: u16| {
        attributes(bytes)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let (ips, ports) = (nested(1)?, nested(2)?);
    let field = |list, wanted: u16| {
        attributes(list)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let ip = |v4, v6| -> Option<IpAddr> {
        match (field(ips, v4), field(ips, v6)) {
            (Some(v4), _) => Some(<[u8; 4]>::try_from(v4).ok()?.into()),
            (None, v6) => Some(<[u8; 16]>::try_from(v6?).ok()?.into()),
        }
    };
    let port = |kind| Some(u16::from_be_bytes(field(ports, kind)?.try_into().ok()?));
    Some(Tuple {
        protocol: *field(ports, 1)?.first()?,
        source: SocketAddr::new(ip(1, 3)?, port(2)?),
        destination: SocketAddr::new(ip(2, 4)?, port(3)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(protocol: u8, source: &str, destination: &str, answerer: &str) -> Vec<u8> {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        let attributes = Attributes::new()
            .nest(ORIGINAL, &write_tuple(protocol, source, destination))
            .nest(REPLY, &write_tuple(protocol, answerer.parse().unwrap(), source))
            .number(ID, 77);
        [&[2, 0, 0, 0], attributes.as_bytes()].concat()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let flow = read_flow(&message(17, "10.5.1.2:40000", "10.96.0.10:53", "10.5.2.3:5353")).unwrap();
        assert_eq!(
            (flow.protocol, flow.answerer),
            (17, "10.5.2.3:5353".parse().unwrap())
        );
        assert_eq!((flow.destination.port(), flow.source.port()), (53, 40000));
        let flow = read_flow(&message(6, "[fd00::1]:1", "[fd00:96::a]:80", "[fd00::2]:8080")).unwrap();
        assert_eq!(flow.destination, "[fd00:96::a]:80".parse().unwrap());
    }

    #[test]
    fn nonsense_is_passed_over() {
        let whole = message(17, "10.5.1.2:40000", "10.96.0.10:53", "10.5.2.3:5353");
        for length in 0..whole.len() - 12 {
            assert!(read_flow(&whole[..length]).is_none(), "{length}");
        }
    }
}
