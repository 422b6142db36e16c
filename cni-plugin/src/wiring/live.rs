//! Which pods of a network the kernel has: what is left to go by when files are lost.

use std::net::IpAddr;

use flannel_netlink::RouteConn;
use flannel_netlink::link::{self, Link, released};

use super::plan::HostEnd;
use super::{kernel, vlan};
use crate::address::{Live, LiveEnd};
use crate::protocol::{Attachment, CniError, ContainerId, IfName, NetworkName};

/// Looks at all devices of the node.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn live(conn: &mut RouteConn, network: &NetworkName, bridge: &str) -> Result<Live, CniError> {
    let links = link::dump(conn).map_err(|e| kernel(&e))?;
    let found = links.iter().find(|link| link.name == bridge);
    let port = |link: &&Link| found.is_some_and(|bridge| link.master == Some(bridge.ifindex));
    let stranger = |link: &Link| !is_ours(link) && !vlan::is_gateway_port(link, bridge, &links);
    Ok(Live {
        strangers: links.iter().filter(port).any(stranger),
        ends: links.iter().filter_map(|link| end(link, network)).collect(),
    })
}

/// The other ports of the container of `attachment`, in whatever network of ours.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn siblings(conn: &mut RouteConn, attachment: &Attachment, own: &str) -> Result<Vec<Sibling>, CniError> {
    let links = link::dump(conn).map_err(|e| kernel(&e))?;
    let container = format!("/{}/", attachment.container);
    let of_container = links.into_iter().filter(|link| {
        let alias = link.alias.as_deref().unwrap_or_default();
        let whose = alias.split(' ').next().unwrap_or_default();
        is_ours(link) && !released::is_released(link) && whose.contains(&container) && link.name != own
    });
    Ok(of_container
        .map(|link| {
            let alias = link.alias.unwrap_or_default();
            let ifname = alias.split(' ').next().and_then(|whose| whose.rsplit('/').next());
            Sibling {
                ifname: ifname.unwrap_or_default().to_owned(),
                addresses: alias.split(' ').filter_map(|word| word.parse().ok()).collect(),
                name: link.name,
            }
        })
        .collect())
}

/// Another port of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// The host end's device name.
    pub name: String,
    /// The container's interface.
    pub ifname: String,
    /// Addresses on it.
    pub addresses: Vec<IpAddr>,
}

/// Whether the device is a host end that this plugin made, for whatever network.
fn is_ours(link: &Link) -> bool {
    let alias = link.alias.as_deref().unwrap_or_default();
    link.kind == "veth" && alias.starts_with(released::MARK)
}

/// A host end that may be of `network`: by its alias, or, without one, by nothing but the form of its name, which a record
/// must confirm.
fn end(link: &Link, network: &NetworkName) -> Option<LiveEnd> {
    // One that was cut off is no pod any more.
    if link.kind != "veth" || !link.name.starts_with("veth") || released::is_released(link) {
        return None;
    }
    let alias = link.alias.as_deref().unwrap_or_default();
    let mut words = alias.split(' ');
    let attachment = words
        .next()
        .and_then(|text| text.strip_prefix(&HostEnd::alias_prefix(network)))
        .and_then(|text| {
            let (container, ifname) = text.split_once('/')?;
            Some(Attachment {
                container: ContainerId::parse(container).ok()?,
                ifname: IfName::parse(ifname).ok()?,
            })
        })
        // A device that somebody renamed or gave our alias is not what the alias says.
        .filter(|attachment| HostEnd::of(network, attachment).name == link.name);
    Some(LiveEnd {
        name: link.name.clone(),
        attachment,
        addresses: words.filter_map(|word| word.parse::<IpAddr>().ok()).collect(),
    })
}
