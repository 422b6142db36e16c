//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

use crate::conn::{CREATE, EXCL, REPLACE};
use crate::error::NetlinkError;
use crate::family::number;
use crate::route_conn::{RouteConn, RouteRequest};
use flannel_model::IpFamily;

/// An address on a link, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub ifindex: u32,
    /// The address of this host.
    pub local: IpAddr,
    /// Length of the prefix that is on the link: 0 to 32 or to 128.
    pub length: u8,
    /// Address of the other end, on point-to-point links.
    pub peer: Option<IpAddr>,
    /// How far the address is valid.
    pub scope: Scope,
    /// Not bound to a lifetime (IFA_F_PERMANENT).
    pub permanent: bool,
    /// Valid, but not to be used for new connections (IFA_F_DEPRECATED).
    pub deprecated: bool,
    /// In IPv4, another address of the same prefix came first (IFA_F_SECONDARY); in IPv6 the same bit marks a temporary
    /// address (RFC 8981).
    pub secondary: bool,
}

/// How far an address is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// On this link.
    Link,
    /// On this host.
    Host,
    /// Another number of `ip(8)`, as it is.
    Other(u8),
}

/// An address to be put on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressSpec {
    /// Index of the link.
    pub ifindex: u32,
    /// The address.
    pub local: IpAddr,
    /// Prefix length, 0 to 32 or to 128. The kernel makes a route to the prefix unless it is the longest.
    pub length: u8,
    /// Make no route to the prefix (IFA_F_NOPREFIXROUTE).
    pub no_prefix_route: bool,
}

/// Addresses of one family of one link (`Some`) or of all (`None`).
///
/// # Errors
/// When the kernel refuses.
pub fn dump(
    conn: &mut RouteConn,
    family: IpFamily,
    ifindex: Option<u32>,
) -> Result<Vec<Address>, NetlinkError> {
    let mut message = AddressMessage::default();
    message.header.family = number(family);
    message.header.index = ifindex.unwrap_or(0);
    let what = ifindex.map_or_else(
        || "list addresses".to_owned(),
        |i| format!("list addresses of link {i}"),
    );
    let request = RouteRequest::new(RouteNetlinkMessage::GetAddress(message), 0, what);
    let listed = match conn.dump(&request) {
        // The kernel refuses to list a link that is not there; it has no addresses.
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        other => other?,
    };
    let addresses = listed.iter().filter_map(read_address);
    Ok(addresses
        .filter(|a| IpFamily::of(a.local) == family && ifindex.is_none_or(|i| a.ifindex == i))
        .collect())
}

/// Puts an address on a link; EEXIST when it is there.
pub fn add(spec: &AddressSpec) -> RouteRequest {
    let message = RouteNetlinkMessage::NewAddress(message(spec));
    RouteRequest::new(message, CREATE | EXCL, format!("add address {spec}"))
}

/// Puts an address on a link, whether or not it is there.
pub fn replace(spec: &AddressSpec) -> RouteRequest {
    let message = RouteNetlinkMessage::NewAddress(message(spec));
    RouteRequest::new(message, CREATE | REPLACE, format!("set address {spec}"))
}

/// Takes an address off a link; EADDRNOTAVAIL when it is not there.
pub fn delete(spec: &AddressSpec) -> RouteRequest {
    let message = RouteNetlinkMessage::DelAddress(message(spec));
    RouteRequest::new(message, 0, format!("delete address {spec}"))
}

fn message(spec: &AddressSpec) -> AddressMessage {
    let mut flags = AddressFlags::Permanent;
    flags.set(AddressFlags::Noprefixroute, spec.no_prefix_route);
    // Our addresses come from leases that each exist once; waiting for nobody's objection would only delay the first packet.
    flags.set(AddressFlags::Nodad, spec.local.is_ipv6());
    let mut message = AddressMessage::default();
    message.header.family = number(IpFamily::of(spec.local));
    message.header.prefix_len = spec.length;
    message.header.index = spec.ifindex;
    message.header.scope = AddressScope::Universe;
    message.header.flags = AddressHeaderFlags::Permanent;
    message.attributes.push(AddressAttribute::Local(spec.local));
    message.attributes.push(AddressAttribute::Address(spec.local));
    message.attributes.push(AddressAttribute::Flags(flags));
    if let Some(broadcast) = broadcast(spec) {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    message
}

/// The last address of the prefix; prefixes of 31 and 32 bits have none (RFC 3021), nor
/// has IPv6.
fn broadcast(spec: &AddressSpec) -> Option<Ipv4Addr> {
    let IpAddr::V4(local) = spec.local else {
        return None;
    };
    let hosts = u32::MAX.checked_shr(u32::from(spec.length))?;
    (spec.length < 31).then(|| Ipv4Addr::from(u32::from(local) | hosts))
}

/// Reads an address out of an answer; `None` for other messages.
fn read_address(message: &RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let (mut local, mut other) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let local = local.or(other)?;
    Some(Address {
        ifindex: message.header.index,
        local,
        length: message.header.prefix_len,
        peer: other.filter(|address| *address != local),
        scope: message.header.scope.into(),
        permanent: flags.contains(AddressFlags::Permanent),
        deprecated: flags.contains(AddressFlags::Deprecated),
        secondary: flags.contains(AddressFlags::Secondary),
    })
}

impl From<AddressScope> for Scope {
    fn from(scope: AddressScope) -> Self {
        match scope {
            AddressScope::Universe => Self::Global,
            AddressScope::Link => Self::Link,
            AddressScope::Host => Self::Host,
            other => Self::Other(other.into()),
        }
    }
}

impl std::fmt::Display for AddressSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} on link {}", self.local, self.length, self.ifindex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_addresses_follow_the_prefix() {
        let spec = |length| AddressSpec {
            ifindex: 1,
            local: Ipv4Addr::new(10, 5, 1, 1).into(),
            length,
            no_prefix_route: false,
        };
        assert_eq!(broadcast(&spec(24)), Some(Ipv4Addr::new(10, 5, 1, 255)));
        assert_eq!(broadcast(&spec(0)), Some(Ipv4Addr::BROADCAST));
        assert_eq!(broadcast(&spec(31)), None);
        assert_eq!(broadcast(&spec(32)), None);
    }
}
