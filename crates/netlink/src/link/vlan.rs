//! VLANs of bridges: filtering on the bridge, and which VLANs a port belongs to.

use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoData, InfoKind, LinkAttribute,
    LinkExtentMask, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::LinkRef;
use super::change::{change_info, message_for};
use crate::error::NetlinkError;
use crate::route_conn::{RouteConn, RouteRequest};

/// Neighbouring VLANs that a port of a bridge belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortVlan {
    /// The first VLAN, 1 to 4094.
    pub first: u16,
    /// The last one, the same for a single one.
    pub last: u16,
    /// Frames leave without a tag, and those that come without one belong to it; only a single VLAN can be that.
    pub native: bool,
}

impl PortVlan {
    /// The VLAN of the frames that have no tag on this port.
    pub fn native(vlan: u16) -> Self {
        Self {
            first: vlan,
            last: vlan,
            native: true,
        }
    }

    /// VLANs whose frames have a tag on this port.
    pub fn tagged(first: u16, last: u16) -> Self {
        Self {
            first,
            last,
            native: false,
        }
    }

    /// As the kernel takes it: one entry, or the two ends of a range.
    fn entries(self) -> Vec<AfSpecBridge> {
        let entry = |vid, flags| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
        let flags = match self.native {
            true => BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged,
            false => BridgeVlanInfoFlags::empty(),
        };
        match self.first == self.last {
            true => vec![entry(self.first, flags)],
            false => vec![
                entry(self.first, flags | BridgeVlanInfoFlags::RangeBegin),
                entry(self.last, flags | BridgeVlanInfoFlags::RangeEnd),
            ],
        }
    }
}

/// Makes a bridge keep VLANs apart. A kernel without the ability ignores it; then adding a VLAN fails with EOPNOTSUPP.
pub fn set_vlan_filtering<'a>(bridge: impl Into<LinkRef<'a>>, on: bool) -> RouteRequest {
    let info = vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(on)])),
    ];
    change_info(bridge.into(), info, &format!("set VLAN filtering {on}"))
}

/// Makes a port of a bridge a member of VLANs.
pub fn add_vlan(port: u32, vlan: PortVlan) -> RouteRequest {
    let what = format!("make link {port} a member of VLAN {}", shown(vlan));
    RouteRequest::new(RouteNetlinkMessage::SetLink(message(port, vlan)), 0, what)
}

/// Takes a port of a bridge out of VLANs. What it is no member of is no error.
pub fn remove_vlan(port: u32, vlan: PortVlan) -> RouteRequest {
    let what = format!("take link {port} out of VLAN {}", shown(vlan));
    RouteRequest::new(RouteNetlinkMessage::DelLink(message(port, vlan)), 0, what)
}

/// The VLANs of a port of a bridge; the kernel tells neighbouring ones in one piece.
///
/// # Errors
/// When the kernel refuses.
pub fn vlans(conn: &mut RouteConn, port: u32) -> Result<Vec<PortVlan>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message
        .attributes
        .push(LinkAttribute::ExtMask(vec![LinkExtentMask::BrvlanCompressed]));
    let listed = conn.dump(&RouteRequest::new(
        RouteNetlinkMessage::GetLink(message),
        0,
        "list VLANs",
    ))?;
    Ok(listed
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) if link.header.index == port => Some(link),
            _ => None,
        })
        .flat_map(read)
        .collect())
}

fn read(message: &LinkMessage) -> Vec<PortVlan> {
    let entries = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::AfSpecBridge(entries) => Some(entries),
        _ => None,
    });
    let mut list = Vec::new();
    let mut begin = None;
    for entry in entries.flatten() {
        let AfSpecBridge::VlanInfo(info) = entry else {
            continue;
        };
        if info.flags.contains(BridgeVlanInfoFlags::RangeBegin) {
            begin = Some(info.vid);
            continue;
        }
        list.push(PortVlan {
            first: begin.take().unwrap_or(info.vid),
            last: info.vid,
            native: info.flags.contains(BridgeVlanInfoFlags::Pvid),
        });
    }
    list
}

fn message(port: u32, vlan: PortVlan) -> LinkMessage {
    let mut message = message_for(LinkRef::Index(port));
    message.header.interface_family = AddressFamily::Bridge;
    message
        .attributes
        .push(LinkAttribute::AfSpecBridge(vlan.entries()));
    message
}

fn shown(vlan: PortVlan) -> String {
    match vlan.first == vlan.last {
        true => vlan.first.to_string(),
        false => format!("{}-{}", vlan.first, vlan.last),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read_again() {
        for vlan in [
            PortVlan::native(100),
            PortVlan::tagged(5, 5),
            PortVlan::tagged(200, 210),
        ] {
            assert_eq!(read(&message(7, vlan)), [vlan]);
        }
    }
}
