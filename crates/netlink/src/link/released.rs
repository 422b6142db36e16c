//! Host ends of containers that were cut off and wait to be deleted.
//!
//! Deleting a device takes a good ten milliseconds, whoever does it. So the CNI plugin only cuts the device off, which takes a
//! fraction of one, and the daemon deletes all that were, together. What is cut off is down and no bridge's port: nothing gets
//! into the container or out of it by that device. Until it is really gone it bears each of the container's addresses as an
//! alternative name, so that whoever gives such an address to another container can see that, in one question to the kernel.

mod word;

use std::iter;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, Prop};

use super::change::{delete, delete_group, detach, message_for};
use super::read::{by_names, dump};
use super::{Link, LinkRef};
use crate::error::NetlinkError;
use crate::route_conn::{RouteConn, RouteRequest};

pub use word::{hear, tell};

/// The group of devices that were cut off, as in `ip link show group 1718380916`: the letters `flqt`, which nobody else uses.
pub const GROUP: u32 = u32::from_be_bytes(*b"flqt");
/// What the alias of every host end begins with.
pub const MARK: &str = "flannel:";
/// The datagram socket on which the daemon is told that there is something to delete; beside subnet.env.
pub const SOCKET: &str = "cni-released.sock";

/// Whether the device is a container's host end that was cut off.
pub fn is_released(link: &Link) -> bool {
    let alias = link.alias.as_deref().unwrap_or_default();
    link.group == GROUP && link.kind == "veth" && alias.starts_with(MARK)
}

/// Cuts a device off that had these addresses. After an error it may be half done; it can still be deleted.
///
/// # Errors
/// When the kernel refuses, as one older than 5.5 does, which has no alternative names.
pub fn release(conn: &mut RouteConn, ifindex: u32, addresses: &[IpAddr]) -> Result<(), NetlinkError> {
    let mut requests: Vec<RouteRequest> = addresses.iter().map(|ip| add_name(ifindex, *ip)).collect();
    // Last: from then on it can go at any time, and the names must be there before the addresses are given away.
    requests.push(detach(ifindex, GROUP));
    for outcome in conn.batch(&requests) {
        match outcome {
            // Done by one that did not get further.
            Err(e) if e.is_exists() => {}
            Err(e) => return Err(e),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// The link called `name`, and the devices that were cut off and have not gone yet, of containers that had one of these addresses.
///
/// # Errors
/// When the kernel refuses.
pub fn look(
    conn: &mut RouteConn,
    name: &str,
    addresses: &[IpAddr],
) -> Result<(Option<Link>, Vec<Link>), NetlinkError> {
    let others: Vec<String> = addresses.iter().map(|ip| name_of(*ip)).collect();
    let names: Vec<&str> = iter::once(name)
        .chain(others.iter().map(String::as_str))
        .collect();
    let mut links = by_names(conn, &names)?.into_iter();
    let named = links.next().flatten();
    Ok((named, links.flatten().filter(is_released).collect()))
}

/// Deletes all that was cut off; they go together, in the time that one takes. Gives their number.
///
/// # Errors
/// When the kernel refuses.
pub fn reap(conn: &mut RouteConn) -> Result<usize, NetlinkError> {
    let links = dump(conn)?;
    let in_group: Vec<&Link> = links.iter().filter(|link| link.group == GROUP).collect();
    let released: Vec<&Link> = in_group
        .iter()
        .copied()
        .filter(|link| is_released(link))
        .collect();
    if released.is_empty() {
        return Ok(0);
    }
    // A stranger in the group must not go with them.
    let requests = match released.len() == in_group.len() {
        true => vec![delete_group(GROUP)],
        false => released.iter().map(|link| delete(link.ifindex)).collect(),
    };
    for outcome in conn.batch(&requests) {
        match outcome {
            // The container's namespace took it with it.
            Err(e) if e.is_missing() => {}
            Err(e) => return Err(e),
            Ok(_) => {}
        }
    }
    Ok(released.len())
}

fn add_name(ifindex: u32, address: IpAddr) -> RouteRequest {
    let mut message = message_for(LinkRef::Index(ifindex));
    let name = Prop::AltIfName(name_of(address));
    message.attributes.push(LinkAttribute::PropList(vec![name]));
    let what = format!("name link {ifindex} after {address}");
    RouteRequest::new(RouteNetlinkMessage::NewLinkProp(message), 0, what)
}

/// `flq` and the address in hexadecimal digits; of IPv6, a hash. A name has 15 characters at most, and a clash is no harm: that
/// device is then deleted a little earlier.
fn name_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("flq{:08x}", v4.to_bits()),
        IpAddr::V6(v6) => {
            // FNV-1a, 64 bits.
            let hash = v6.octets().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            format!("flq{:012x}", hash & 0xffff_ffff_ffff)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        assert_eq!(name_of("10.244.1.7".parse().unwrap()), "flq0af40107");
        let v6 = |text: &str| name_of(text.parse().unwrap());
        assert_eq!(v6("fd00::1").len(), 15);
        assert_ne!(v6("fd00::1"), v6("fd00::2"));
    }

    #[test]
    fn only_marked_devices_of_the_group_count() {
        let link = |kind: &str, group, alias: Option<&str>| {
            is_released(&Link {
                kind: kind.to_owned(),
                group,
                alias: alias.map(str::to_owned),
                ..Link::default()
            })
        };
        assert!(link("veth", GROUP, Some("flannel:cbr0/c1/eth0 10.244.1.7")));
        assert!(!link("veth", 0, Some("flannel:cbr0/c1/eth0")));
        assert!(!link("veth", GROUP, None));
        assert!(!link("dummy", GROUP, Some("flannel:cbr0/c1/eth0")));
    }
}
