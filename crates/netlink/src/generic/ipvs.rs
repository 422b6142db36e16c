//! IPVS: virtual servers, real servers and the requests that change them, as bytes of linux/ip_vs.h (family version 1).

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use flannel_model::ServerKey as IpvsKey;
use flannel_model::VirtualAddress;

use super::attribute::Message;

/// Version of the IPVS family.
pub(crate) const VERSION: u8 = 1;

pub(crate) mod command {
    //! `IPVS_CMD_*`.
    pub(crate) const NEW_SERVICE: u8 = 1;
    pub(crate) const SET_SERVICE: u8 = 2;
    pub(crate) const DEL_SERVICE: u8 = 3;
    pub(crate) const GET_SERVICE: u8 = 4;
    pub(crate) const NEW_DEST: u8 = 5;
    pub(crate) const SET_DEST: u8 = 6;
    pub(crate) const DEL_DEST: u8 = 7;
    pub(crate) const GET_DEST: u8 = 8;
    pub(crate) const SET_CONFIG: u8 = 12;
    pub(crate) const GET_CONFIG: u8 = 13;
}

pub(crate) mod attr {
    //! `IPVS_CMD_ATTR_*`, `IPVS_SVC_ATTR_*`, `IPVS_DEST_ATTR_*`.
    pub(crate) const SERVICE: u16 = 1;
    pub(crate) const DEST: u16 = 2;
    pub(crate) const TIMEOUT_TCP: u16 = 4;
    pub(crate) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(crate) const TIMEOUT_UDP: u16 = 6;

    pub(crate) const SVC_AF: u16 = 1;
    pub(crate) const SVC_PROTOCOL: u16 = 2;
    pub(crate) const SVC_ADDR: u16 = 3;
    pub(crate) const SVC_PORT: u16 = 4;
    pub(crate) const SVC_FWMARK: u16 = 5;
    pub(crate) const SVC_SCHED_NAME: u16 = 6;
    pub(crate) const SVC_FLAGS: u16 = 7;
    pub(crate) const SVC_TIMEOUT: u16 = 8;
    pub(crate) const SVC_NETMASK: u16 = 9;
    pub(crate) const SVC_STATS: u16 = 10;
    pub(crate) const SVC_STATS64: u16 = 12;

    /// `IPVS_STATS_ATTR_*`: the same numbers in both nests.
    pub(crate) const STATS_CONNS: u16 = 1;
    pub(crate) const STATS_INPKTS: u16 = 2;
    pub(crate) const STATS_OUTPKTS: u16 = 3;
    pub(crate) const STATS_INBYTES: u16 = 4;
    pub(crate) const STATS_OUTBYTES: u16 = 5;

    pub(crate) const DEST_ADDR: u16 = 1;
    pub(crate) const DEST_PORT: u16 = 2;
    pub(crate) const DEST_FWD_METHOD: u16 = 3;
    pub(crate) const DEST_WEIGHT: u16 = 4;
    pub(crate) const DEST_U_THRESH: u16 = 5;
    pub(crate) const DEST_L_THRESH: u16 = 6;
    pub(crate) const DEST_ACTIVE_CONNS: u16 = 7;
    pub(crate) const DEST_INACT_CONNS: u16 = 8;
    pub(crate) const DEST_ADDR_FAMILY: u16 = 11;
}

/// AF_INET and AF_INET6 of Linux.
pub(crate) const INET: u16 = 2;
pub(crate) const INET6: u16 = 10;

/// A virtual server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualServer {
    /// Its identity.
    pub key: IpvsKey,
    /// Name of its scheduler, at most 15 bytes.
    pub scheduler: Cow<'static, str>,
    /// Flags (`IP_VS_SVC_F_*`) without HASHED, which is the kernel's own.
    pub flags: u32,
    /// Seconds for which a client keeps its real server; counts only with the flag PERSISTENT (1).
    pub timeout: u32,
}

/// What a virtual server has carried since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Connections.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// Seconds for which IPVS remembers a connection without packets. Of a request, what is `None` stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IpvsTimeouts {
    /// An open TCP connection.
    pub tcp: Option<u32>,
    /// A TCP connection after its first FIN.
    pub tcp_fin: Option<u32>,
    /// UDP.
    pub udp: Option<u32>,
}

/// How packets reach a real server (`IP_VS_CONN_F_FWD_MASK`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forward {
    /// Address translation.
    Masquerade,
    /// The real server is this host.
    LocalNode,
    /// IP in IP or the like.
    Tunnel,
    /// Same packet to another link-layer address.
    DirectRoute,
    /// Past IPVS.
    Bypass,
}

impl Forward {
    fn number(self) -> u32 {
        match self {
            Self::Masquerade => 0,
            Self::LocalNode => 1,
            Self::Tunnel => 2,
            Self::DirectRoute => 3,
            Self::Bypass => 4,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        let all = [
            Self::Masquerade,
            Self::LocalNode,
            Self::Tunnel,
            Self::DirectRoute,
            Self::Bypass,
        ];
        // the mask has three bits, the others are flags of connections
        all.into_iter().find(|f| f.number() == number & 7)
    }
}

/// A real server of a virtual server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealServer {
    /// Where it listens; its identity within the virtual server.
    pub address: SocketAddr,
    /// How packets reach it.
    pub forward: Forward,
    /// Share of new connections for weighted schedulers; 0 takes none.
    pub weight: u32,
    /// Established connections (read only).
    pub active: u32,
    /// Other connections that are remembered (read only).
    pub inactive: u32,
}

impl RealServer {
    /// A real server that is reached by address translation.
    pub fn masquerade(address: SocketAddr, weight: u32) -> Self {
        Self {
            address,
            forward: Forward::Masquerade,
            weight,
            active: 0,
            inactive: 0,
        }
    }
}

/// One change of IPVS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpvsRequest {
    /// Adds a virtual server; EEXIST when there is one.
    AddVirtual(VirtualServer),
    /// Changes scheduler and flags; ESRCH when there is none.
    SetVirtual(VirtualServer),
    /// Removes one with its real servers.
    RemoveVirtual(IpvsKey),
    /// Adds a real server; EEXIST when there is one.
    AddReal(IpvsKey, RealServer),
    /// Changes weight and forwarding; ENOENT when there is none.
    SetReal(IpvsKey, RealServer),
    /// Removes a real server.
    RemoveReal(IpvsKey, SocketAddr),
}

impl IpvsRequest {
    /// Appends all that follows `struct nlmsghdr`.
    pub(crate) fn encode(&self, datagram: Vec<u8>) -> Vec<u8> {
        let message = |command| Message::behind(datagram, command, VERSION);
        match self {
            Self::AddVirtual(server) => virtual_server(message(command::NEW_SERVICE), server),
            Self::SetVirtual(server) => virtual_server(message(command::SET_SERVICE), server),
            Self::RemoveVirtual(key) => key_only(message(command::DEL_SERVICE), key),
            Self::AddReal(key, real) => real_server(key_only(message(command::NEW_DEST), key), real),
            Self::SetReal(key, real) => real_server(key_only(message(command::SET_DEST), key), real),
            Self::RemoveReal(key, address) => {
                key_only(message(command::DEL_DEST), key).nest(attr::DEST, |m| real_address(m, *address))
            }
        }
        .finish()
    }
}

/// A request for the list of all virtual servers.
pub(crate) fn list_virtual() -> Vec<u8> {
    Message::new(command::GET_SERVICE, VERSION).finish()
}

/// A request for the list of the real servers of one virtual server.
pub(crate) fn list_real(key: &IpvsKey) -> Vec<u8> {
    key_only(Message::new(command::GET_DEST, VERSION), key).finish()
}

/// A request for the timeouts.
pub(crate) fn read_timeouts() -> Vec<u8> {
    Message::new(command::GET_CONFIG, VERSION).finish()
}

/// A request to set timeouts.
pub(crate) fn set_timeouts(timeouts: &IpvsTimeouts) -> Vec<u8> {
    let all = [
        (attr::TIMEOUT_TCP, timeouts.tcp),
        (attr::TIMEOUT_TCP_FIN, timeouts.tcp_fin),
        (attr::TIMEOUT_UDP, timeouts.udp),
    ];
    let message = Message::new(command::SET_CONFIG, VERSION);
    let add = |message: Message, (kind, seconds): (u16, Option<u32>)| match seconds {
        Some(seconds) => message.u32(kind, seconds),
        None => message,
    };
    all.into_iter().fold(message, add).finish()
}

fn key_only(message: Message, key: &IpvsKey) -> Message {
    message.nest(attr::SERVICE, |m| identity(m, key))
}

fn identity(message: Message, key: &IpvsKey) -> Message {
    match key {
        IpvsKey::Address(virt) => message
            .u16(attr::SVC_AF, family(&virt.address))
            .u16(attr::SVC_PROTOCOL, u16::from(virt.protocol.number()))
            .bytes(attr::SVC_ADDR, &address(&virt.address))
            .bytes(attr::SVC_PORT, &virt.port.to_be_bytes()),
        IpvsKey::Mark { ipv6, mark } => message
            .u16(attr::SVC_AF, if *ipv6 { INET6 } else { INET })
            .u32(attr::SVC_FWMARK, *mark),
    }
}

fn virtual_server(message: Message, server: &VirtualServer) -> Message {
    message.nest(attr::SERVICE, |m| {
        // struct ip_vs_flags: the flags, then the mask of those that are meant: all
        let mut flags = [0xff; 8];
        flags[..4].copy_from_slice(&server.flags.to_ne_bytes());
        identity(m, &server.key)
            .text(attr::SVC_SCHED_NAME, &server.scheduler)
            .bytes(attr::SVC_FLAGS, &flags)
            .u32(attr::SVC_TIMEOUT, server.timeout)
            .u32(attr::SVC_NETMASK, single_host(&server.key))
    })
}

/// Persistence by single client addresses: a mask of 32 ones in IPv4, the length 128 in IPv6.
fn single_host(key: &IpvsKey) -> u32 {
    match key {
        IpvsKey::Address(VirtualAddress {
            address: IpAddr::V6(_),
            ..
        })
        | IpvsKey::Mark { ipv6: true, .. } => 128,
        IpvsKey::Address(_) | IpvsKey::Mark { ipv6: false, .. } => u32::MAX,
    }
}

fn real_server(message: Message, real: &RealServer) -> Message {
    message.nest(attr::DEST, |m| {
        real_address(m, real.address)
            .u32(attr::DEST_FWD_METHOD, real.forward.number())
            .u32(attr::DEST_WEIGHT, real.weight)
            // no connection limits
            .u32(attr::DEST_U_THRESH, 0)
            .u32(attr::DEST_L_THRESH, 0)
    })
}

fn real_address(message: Message, real: SocketAddr) -> Message {
    message
        .u16(attr::DEST_ADDR_FAMILY, family(&real.ip()))
        .bytes(attr::DEST_ADDR, &address(&real.ip()))
        .bytes(attr::DEST_PORT, &real.port().to_be_bytes())
}

fn family(address: &IpAddr) -> u16 {
    if address.is_ipv4() { INET } else { INET6 }
}

/// `union nf_inet_addr`: 16 bytes, an IPv4 address in the first four.
fn address(address: &IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl fmt::Display for IpvsRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddVirtual(s) => write!(f, "add virtual server {} {}", s.key, s.scheduler),
            Self::SetVirtual(s) => write!(f, "change virtual server {} to {}", s.key, s.scheduler),
            Self::RemoveVirtual(key) => write!(f, "remove virtual server {key}"),
            Self::AddReal(key, real) => {
                write!(
                    f,
                    "add real server {} weight {} to {key}",
                    real.address, real.weight
                )
            }
            Self::SetReal(key, real) => {
                write!(
                    f,
                    "change real server {} of {key} to weight {}",
                    real.address, real.weight
                )
            }
            Self::RemoveReal(key, address) => write!(f, "remove real server {address} from {key}"),
        }
    }
}
