//! WireGuard devices: their key, port and peers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use flannel_model::{WireguardPublicKey, WireguardSecret};
use netlink_packet_core::{Emitable, ParseableParametrized};
use netlink_packet_generic::GenlHeader;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};
use rustix::io::Errno;

use super::family::family_id;
use crate::{Conn, NetlinkError, Protocol, Request};

/// Name of the family (`WG_GENL_NAME`, linux/wireguard.h).
const FAMILY: &str = "wireguard";
/// `WG_GENL_VERSION`.
const VERSION: u8 = 1;
/// `struct genlmsghdr`.
const HEADER: usize = 4;
/// Peers in one message. A peer with a dozen allowed addresses takes about 600 bytes, and the length of an attribute has 16 bits.
const PEERS_A_MESSAGE: usize = 64;

/// A prefix that a peer may use.
pub type AllowedIp = (IpAddr, u8);

/// A peer as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSpec {
    /// Where it is reached; `None` leaves it as it is, for a peer that was heard from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// The key that is mixed into the handshake.
    pub preshared: Option<WireguardSecret>,
    /// Seconds between empty packets; 0 for none.
    pub keepalive: u16,
    /// What it may send, and what is sent to it.
    pub allowed: BTreeSet<AllowedIp>,
}

/// A peer as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    /// Where it was heard last, or where it was said to be.
    pub endpoint: Option<SocketAddr>,
    /// The key that is mixed into the handshake.
    pub preshared: Option<WireguardSecret>,
    /// Seconds between empty packets; 0 for none.
    pub keepalive: u16,
    /// What it may send, and what is sent to it.
    pub allowed: BTreeSet<AllowedIp>,
    /// When keys were agreed on last.
    pub handshake: Option<SystemTime>,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes sent to it.
    pub sent: u64,
}

/// A device as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// Its public key; `None` before it has a private one.
    pub public_key: Option<WireguardPublicKey>,
    /// UDP port; 0 before it has one.
    pub port: u16,
    /// Its peers.
    pub peers: BTreeMap<WireguardPublicKey, PeerState>,
}

/// WireGuard of the network namespace in which this was opened.
#[derive(Debug)]
pub struct Wireguard {
    conn: Conn,
    family: u16,
}

impl Wireguard {
    /// Connects; `None` when the kernel has no WireGuard. Its module is loaded when the first device is made, so that `None` before
    /// that says nothing.
    ///
    /// # Errors
    /// When there is no generic netlink or the kernel refuses.
    pub fn open() -> Result<Option<Self>, NetlinkError> {
        let mut conn = Conn::open(Protocol::Generic)?;
        Ok(family_id(&mut conn, FAMILY)?.map(|family| Self { conn, family }))
    }

    /// The device of this name; `None` when there is none or it is of another kind.
    ///
    /// # Errors
    /// When the kernel refuses or its answer cannot be read.
    pub fn device(&mut self, name: &str) -> Result<Option<Device>, NetlinkError> {
        let what = format!("get WireGuard device {name}");
        let named = vec![WireguardAttribute::IfName(name.to_owned())];
        let request = self.request(WireguardCmd::GetDevice, named, what.clone());
        let replies = match self.conn.dump(&request) {
            Err(error) if error.has_errno(Errno::NODEV) || error.has_errno(Errno::OPNOTSUPP) => {
                return Ok(None);
            }
            replies => replies?,
        };
        let mut device = Device::default();
        for reply in replies {
            let read = parse(&reply.payload).and_then(|message| take(&mut device, message));
            read.ok_or_else(|| NetlinkError::malformed(&what, "a device that is not understood"))?;
        }
        Ok(Some(device))
    }

    /// Gives the device its private key and port. Peers stay.
    ///
    /// # Errors
    /// When the kernel refuses: the port is taken (EADDRINUSE), or the device is gone.
    pub fn set_identity(
        &mut self,
        name: &str,
        private: &WireguardSecret,
        port: u16,
    ) -> Result<(), NetlinkError> {
        let attributes = vec![
            WireguardAttribute::IfName(name.to_owned()),
            WireguardAttribute::PrivateKey(private.expose()),
            WireguardAttribute::ListenPort(port),
        ];
        let what = format!("set key and port {port} of {name}");
        let request = self.request(WireguardCmd::SetDevice, attributes, what);
        self.conn.request(&request).map(drop)
    }

    /// Makes peers what they should be, others stay as they are.
    ///
    /// # Errors
    /// When the kernel refuses; the peers of earlier messages are set then.
    pub fn set_peers<'a>(
        &mut self,
        name: &str,
        peers: impl IntoIterator<Item = (&'a WireguardPublicKey, &'a PeerSpec)>,
    ) -> Result<(), NetlinkError> {
        let peers: Vec<_> = peers.into_iter().map(|(key, spec)| set_peer(key, spec)).collect();
        self.send_peers(name, "set", &peers)
    }

    /// Removes peers; one that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_peers<'a>(
        &mut self,
        name: &str,
        keys: impl IntoIterator<Item = &'a WireguardPublicKey>,
    ) -> Result<(), NetlinkError> {
        let peers: Vec<_> = keys.into_iter().map(remove_peer).collect();
        self.send_peers(name, "remove", &peers)
    }

    fn send_peers(&mut self, name: &str, verb: &str, peers: &[WireguardPeer]) -> Result<(), NetlinkError> {
        let requests: Vec<Request> = peers
            .chunks(PEERS_A_MESSAGE)
            .map(|chunk| {
                let attributes = vec![
                    WireguardAttribute::IfName(name.to_owned()),
                    WireguardAttribute::Peers(chunk.to_vec()),
                ];
                let what = format!("{verb} {} WireGuard peers on {name}", chunk.len());
                self.request(WireguardCmd::SetDevice, attributes, what)
            })
            .collect();
        self.conn
            .batch(&requests)
            .into_iter()
            .try_for_each(|outcome| outcome.map(drop))
    }

    fn request(&self, cmd: WireguardCmd, attributes: Vec<WireguardAttribute>, what: String) -> Request {
        let message = WireguardMessage { cmd, attributes };
        let mut payload = vec![0; HEADER + message.buffer_len()];
        payload[0] = cmd.into();
        payload[1] = VERSION;
        message.emit(&mut payload[HEADER..]);
        Request {
            kind: self.family,
            flags: 0,
            payload,
            what,
        }
    }
}

fn set_peer(key: &WireguardPublicKey, spec: &PeerSpec) -> WireguardPeer {
    // A key of zeros takes a preshared key away (wg(8)).
    let preshared = spec.preshared.map_or([0; 32], |key| key.expose());
    let mut attributes = vec![
        WireguardPeerAttribute::PublicKey(key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
        WireguardPeerAttribute::PresharedKey(preshared),
        WireguardPeerAttribute::PersistentKeepalive(spec.keepalive),
        WireguardPeerAttribute::AllowedIps(spec.allowed.iter().map(allowed_ip).collect()),
    ];
    attributes.extend(spec.endpoint.map(WireguardPeerAttribute::Endpoint));
    WireguardPeer(attributes)
}

fn remove_peer(key: &WireguardPublicKey) -> WireguardPeer {
    WireguardPeer(vec![
        WireguardPeerAttribute::PublicKey(key.0),
        WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
    ])
}

fn allowed_ip((address, length): &AllowedIp) -> WireguardAllowedIp {
    let family = match address {
        IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
        IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
    };
    WireguardAllowedIp(vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(*address),
        WireguardAllowedIpAttr::Cidr(*length),
    ])
}

fn parse(payload: &[u8]) -> Option<WireguardMessage> {
    let header = GenlHeader {
        cmd: *payload.first()?,
        version: *payload.get(1)?,
    };
    WireguardMessage::parse_with_param(payload.get(HEADER..)?, header).ok()
}

/// Adds one message of a listing. A peer with many allowed addresses is spread over several, each with its key.
fn take(device: &mut Device, message: WireguardMessage) -> Option<()> {
    for attribute in message.attributes {
        match attribute {
            WireguardAttribute::PublicKey(key) => device.public_key = Some(WireguardPublicKey(key)),
            WireguardAttribute::ListenPort(port) => device.port = port,
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    take_peer(device, peer)?;
                }
            }
            // The private key comes along for root; nothing here keeps it.
            _ => {}
        }
    }
    Some(())
}

fn take_peer(device: &mut Device, peer: WireguardPeer) -> Option<()> {
    let key = peer.0.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(WireguardPublicKey(*key)),
        _ => None,
    })?;
    let state = device.peers.entry(key).or_insert_with(|| PeerState {
        endpoint: None,
        preshared: None,
        keepalive: 0,
        allowed: BTreeSet::new(),
        handshake: None,
        received: 0,
        sent: 0,
    });
    for attribute in peer.0 {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => state.endpoint = Some(endpoint),
            WireguardPeerAttribute::PresharedKey(key) if key != [0; 32] => {
                state.preshared = Some(WireguardSecret::preshared(key));
            }
            WireguardPeerAttribute::PersistentKeepalive(seconds) => state.keepalive = seconds,
            WireguardPeerAttribute::AllowedIps(list) => {
                state.allowed.extend(list.iter().filter_map(read_allowed));
            }
            WireguardPeerAttribute::LastHandshake(time) => {
                let since = u64::try_from(time.seconds).ok().filter(|seconds| *seconds > 0);
                state.handshake = since.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            }
            WireguardPeerAttribute::RxBytes(bytes) => state.received = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => state.sent = bytes,
            _ => {}
        }
    }
    Some(())
}

fn read_allowed(allowed: &WireguardAllowedIp) -> Option<AllowedIp> {
    let mut address = None;
    let mut length = None;
    for attribute in &allowed.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(ip) => address = Some(*ip),
            WireguardAllowedIpAttr::Cidr(bits) => length = Some(*bits),
            _ => {}
        }
    }
    address.zip(length)
}
