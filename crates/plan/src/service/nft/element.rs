//! Elements as bytes: every field of a concatenation begins at a multiple of four.

use std::net::{IpAddr, SocketAddr};

use flannel_model::{IpSubnet, ServiceProtocol};

/// Sets and maps of the table, which is the same in both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NftSet {
    /// The service CIDRs.
    Cidrs,
    /// The pod networks of the cluster.
    Pods,
    /// Addresses of endpoints on this node, each with itself.
    Hairpin,
    /// Addresses of the node that answer on node ports.
    NodeAddresses,
    /// Frontends by address: where to draw.
    Frontends,
    /// The same for clients outside, where it differs.
    FrontendsOutside,
    /// What stands in their slots.
    Backends,
    /// Frontends by node port: where to draw.
    NodePorts,
    /// The same for clients outside, where it differs.
    NodePortsOutside,
    /// What stands in their slots.
    NodePortBackends,
    /// Frontends outside the service CIDRs that nobody answers.
    Refused,
    /// Frontends that nobody answers clients outside.
    RefusedOutside,
    /// Node ports that nobody answers.
    RefusedPorts,
    /// Node ports that nobody answers clients outside.
    RefusedPortsOutside,
    /// Frontends outside the service CIDRs: whose source is masqueraded.
    External,
    /// Node ports: whose source is masqueraded.
    ExternalPorts,
    /// Frontends that only some may use.
    Restricted,
    /// Who may.
    Allowed,
    /// Frontends that remember their clients.
    Affine,
    /// Node ports that remember their clients.
    AffinePorts,
    /// Frontends, each with a counter of what clients send to them.
    Received,
    /// Frontends, each with a counter of what is sent back.
    Sent,
    /// Node ports, each with a counter of what clients send to them.
    ReceivedPorts,
    /// Node ports, each with a counter of what is sent back.
    SentPorts,
}

impl NftSet {
    /// All of them.
    pub const ALL: [Self; 24] = [
        Self::Cidrs,
        Self::Pods,
        Self::Hairpin,
        Self::NodeAddresses,
        Self::Frontends,
        Self::FrontendsOutside,
        Self::Backends,
        Self::NodePorts,
        Self::NodePortsOutside,
        Self::NodePortBackends,
        Self::Refused,
        Self::RefusedOutside,
        Self::RefusedPorts,
        Self::RefusedPortsOutside,
        Self::External,
        Self::ExternalPorts,
        Self::Restricted,
        Self::Allowed,
        Self::Affine,
        Self::AffinePorts,
        Self::Received,
        Self::Sent,
        Self::ReceivedPorts,
        Self::SentPorts,
    ];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cidrs => "cidrs",
            Self::Pods => "pods",
            Self::Hairpin => "hairpin",
            Self::NodeAddresses => "node-addresses",
            Self::Frontends => "frontends",
            Self::FrontendsOutside => "frontends-outside",
            Self::Backends => "backends",
            Self::NodePorts => "node-ports",
            Self::NodePortsOutside => "node-ports-outside",
            Self::NodePortBackends => "node-port-backends",
            Self::Refused => "refused",
            Self::RefusedOutside => "refused-outside",
            Self::RefusedPorts => "refused-ports",
            Self::RefusedPortsOutside => "refused-ports-outside",
            Self::External => "external",
            Self::ExternalPorts => "external-ports",
            Self::Restricted => "restricted",
            Self::Allowed => "allowed",
            Self::Affine => "affine",
            Self::AffinePorts => "affine-ports",
            Self::Received => "received",
            Self::Sent => "sent",
            Self::ReceivedPorts => "received-ports",
            Self::SentPorts => "sent-ports",
        }
    }
}

/// What a key of a map stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NftData {
    /// An endpoint: address and port.
    Value(Vec<u8>),
    /// `goto` of a chain.
    Goto(String),
    /// `accept`: not translated.
    Accept,
}

/// An element of a set or map of one family's table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NftElement {
    /// Which set.
    pub set: NftSet,
    /// The key.
    pub key: Vec<u8>,
    /// Upper end of a range of concatenations.
    pub key_end: Option<Vec<u8>>,
    /// Marks the first key behind a range of single fields.
    pub interval_end: bool,
    /// What it stands for.
    pub data: Option<NftData>,
}

impl NftElement {
    pub(super) fn new(set: NftSet, key: Vec<u8>) -> Self {
        Self {
            set,
            key,
            key_end: None,
            interval_end: false,
            data: None,
        }
    }

    pub(super) fn mapping(set: NftSet, key: Vec<u8>, data: NftData) -> Self {
        Self {
            data: Some(data),
            ..Self::new(set, key)
        }
    }
}

/// A key under construction.
#[derive(Debug, Clone, Default)]
pub(super) struct Key(pub(super) Vec<u8>);

impl Key {
    pub(super) fn ip(mut self, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => self.0.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => self.0.extend_from_slice(&ip.octets()),
        }
        self
    }

    pub(super) fn protocol(mut self, protocol: ServiceProtocol) -> Self {
        self.0.extend_from_slice(&[protocol.number(), 0, 0, 0]);
        self
    }

    pub(super) fn port(mut self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.0.extend_from_slice(&[high, low, 0, 0]);
        self
    }

    /// The number that was drawn lies in the order of the host.
    pub(super) fn slot(mut self, slot: u32) -> Self {
        self.0.extend_from_slice(&slot.to_ne_bytes());
        self
    }
}

/// An endpoint as the data of a map.
pub(super) fn endpoint(at: SocketAddr) -> NftData {
    NftData::Value(Key::default().ip(at.ip()).port(at.port()).0)
}

/// Reads what [`endpoint`] wrote.
pub(super) fn read_endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let (ip, rest): (IpAddr, &[u8]) = match bytes.len() {
        8 => (<[u8; 4]>::try_from(bytes.get(..4)?).ok()?.into(), bytes.get(4..)?),
        20 => (
            <[u8; 16]>::try_from(bytes.get(..16)?).ok()?.into(),
            bytes.get(16..)?,
        ),
        _ => return None,
    };
    Some(SocketAddr::new(
        ip,
        u16::from_be_bytes(rest.get(..2)?.try_into().ok()?),
    ))
}

/// A range as the elements of a set of ranges: its first address, and the first behind it where there is one.
pub(super) fn range(set: NftSet, range: &IpSubnet) -> Vec<NftElement> {
    let first = NftElement::new(set, Key::default().ip(range.network()).0);
    let mut behind = Key::default().ip(range.last()).0;
    for byte in behind.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            let end = NftElement {
                interval_end: true,
                ..NftElement::new(set, behind)
            };
            return vec![first, end];
        }
    }
    vec![first]
}
