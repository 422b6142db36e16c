//! Duplicate address detection (RFC 4862): IPv6 addresses that serve once nobody on the link said that they are his.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use crate::conn::{CREATE, EXCL};
use crate::error::NetlinkError;
use crate::pod::{self, IpOnLink};
use crate::route_conn::{RouteConn, RouteRequest};
use crate::watch;

/// `RTNLGRP_IPV6_IFADDR` (linux/rtnetlink.h): changes of IPv6 addresses.
const IPV6_ADDRESS_CHANGES: u32 = 9;

/// What the kernel found out about the addresses of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// All of them serve.
    Unique,
    /// Somebody else on the link has these.
    Taken(Vec<IpAddr>),
}

/// Puts an address on a link as [`pod::add_address`] does, but has the kernel ask first whether somebody has it. The kernel
/// asks where the link's `accept_dad` is not 0; IPv4 knows no such question.
pub fn add_address_asking(ip: &IpOnLink) -> RouteRequest {
    let mut message = pod::message(ip);
    message
        .header
        .flags
        .remove(netlink_packet_route::address::AddressHeaderFlags::Nodad);
    for attribute in &mut message.attributes {
        if let AddressAttribute::Flags(flags) = attribute {
            flags.remove(AddressFlags::Nodad);
        }
    }
    let what = format!("add address {ip}");
    RouteRequest::new(RouteNetlinkMessage::NewAddress(message), CREATE | EXCL, what)
}

/// Waits for the answers about all addresses of a link, link-local ones too. `None` when they are not known within `patience`.
///
/// # Errors
/// When the kernel refuses.
pub fn await_answers(
    conn: &mut RouteConn,
    ifindex: u32,
    patience: Duration,
) -> Result<Option<Found>, NetlinkError> {
    let what = format!("watch the addresses of link {ifindex}");
    let concerns = |message: &_| address_of(message, ifindex).is_some();
    let mut look = || {
        let listed = conn.dump(&pod::list_request(ifindex))?;
        let states: Vec<(IpAddr, AddressFlags)> = listed
            .iter()
            .filter_map(|message| Some((pod::read(message)?.address, flags(address_of(message, ifindex)?))))
            .collect();
        Ok(judge(&states))
    };
    watch::until(IPV6_ADDRESS_CHANGES, &what, patience, concerns, &mut look)
}

fn judge(states: &[(IpAddr, AddressFlags)]) -> Option<Found> {
    let taken: Vec<IpAddr> = states
        .iter()
        .filter(|(_, flags)| flags.contains(AddressFlags::Dadfailed))
        .map(|(address, _)| *address)
        .collect();
    if !taken.is_empty() {
        return Some(Found::Taken(taken));
    }
    let open = states
        .iter()
        .any(|(_, flags)| flags.contains(AddressFlags::Tentative));
    (!open).then_some(Found::Unique)
}

fn address_of(message: &RouteNetlinkMessage, ifindex: u32) -> Option<&AddressMessage> {
    match message {
        RouteNetlinkMessage::NewAddress(message) if message.header.index == ifindex => Some(message),
        _ => None,
    }
}

fn flags(message: &AddressMessage) -> AddressFlags {
    let found = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    found.unwrap_or(AddressFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_taken_outweighs_what_is_open() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (open, none) = (AddressFlags::Tentative, AddressFlags::Permanent);
        assert_eq!(judge(&[]), Some(Found::Unique));
        assert_eq!(judge(&[(ip("10.0.0.2"), none), (ip("fd00::2"), open)]), None);
        assert_eq!(judge(&[(ip("fd00::2"), none)]), Some(Found::Unique));
        assert_eq!(
            judge(&[
                (ip("fe80::2"), open),
                (ip("fd00::2"), open | AddressFlags::Dadfailed)
            ]),
            Some(Found::Taken(vec![ip("fd00::2")]))
        );
    }
}
