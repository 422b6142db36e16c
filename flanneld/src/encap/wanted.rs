//! What the filter of a family should be, from the facts. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_netlink::nftables::{EncapFilter, EncapKind, EncapSet};
use flannel_plan::{DesiredOverlay, LinkKind, Sender};

/// The elements of each set: outer and inner address.
pub type Elements = BTreeMap<EncapSet, BTreeSet<(IpAddr, IpAddr)>>;

/// The filter that an overlay needs; `None` where nothing comes out of a tunnel that the kernel could look at.
pub fn filter(overlay: &DesiredOverlay) -> Option<EncapFilter> {
    let tunnel = overlay.tunnel.as_ref()?;
    let kind = match tunnel.link.kind {
        LinkKind::Vxlan(vxlan) => EncapKind::Vxlan {
            port: vxlan.port,
            vni: vxlan.id,
        },
        LinkKind::Ipip(_) => EncapKind::Ipip,
        LinkKind::Wireguard => EncapKind::Checked,
        // The daemon's own data path looks at every packet.
        LinkKind::Tun => return None,
    };
    Some(EncapFilter {
        network: overlay.network,
        own_subnet: overlay.own_subnet,
        kind,
        device: tunnel.link.device.to_string(),
    })
}

/// Who may send what.
pub fn elements(overlay: &DesiredOverlay) -> Elements {
    let senders = overlay.tunnel.iter().flat_map(|tunnel| &tunnel.senders);
    let (mut subnets, mut nodes) = (BTreeSet::new(), BTreeSet::new());
    for Sender { address, subnet } in senders {
        subnets.insert((*address, subnet.network()));
        nodes.insert((*address, *address));
    }
    BTreeMap::from([(EncapSet::Subnets, subnets), (EncapSet::Nodes, nodes)])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flannel_model::IpSubnet;
    use flannel_plan::{Device, Tunnel, TunnelLink};

    use super::*;

    fn overlay(kind: LinkKind, senders: &[(&str, &str)]) -> DesiredOverlay {
        let senders = senders.iter().map(|(address, subnet)| Sender {
            address: address.parse().unwrap(),
            subnet: subnet.parse().unwrap(),
        });
        let own_subnet: IpSubnet = "10.5.1.0/24".parse().unwrap();
        DesiredOverlay {
            network: "10.5.0.0/16".parse().unwrap(),
            own_subnet,
            mtu: 1480,
            tunnel: Some(Tunnel {
                link: TunnelLink {
                    device: Device::Ipip,
                    mtu: 1480,
                    kind,
                },
                address: own_subnet.network(),
                neighbours: BTreeMap::new(),
                fdb: BTreeMap::new(),
                wireguard: None,
                senders: senders.collect(),
                vteps: BTreeMap::new(),
            }),
            routes: BTreeMap::new(),
            blackholes: BTreeSet::new(),
            peers: 0,
        }
    }

    #[test]
    fn a_node_sends_for_its_subnets_and_for_itself() {
        let senders = [
            ("192.0.2.2", "10.5.2.0/24"),
            ("192.0.2.2", "10.5.7.0/24"),
            ("192.0.2.3", "10.5.3.0/24"),
        ];
        let elements = elements(&overlay(LinkKind::Wireguard, &senders));
        let text = |set| {
            let pairs = elements[&set].iter();
            pairs
                .map(|(outer, inner)| format!("{outer} {inner}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            text(EncapSet::Subnets),
            ["192.0.2.2 10.5.2.0", "192.0.2.2 10.5.7.0", "192.0.2.3 10.5.3.0"]
        );
        assert_eq!(
            text(EncapSet::Nodes),
            ["192.0.2.2 192.0.2.2", "192.0.2.3 192.0.2.3"]
        );
    }

    #[test]
    fn what_the_daemon_or_nobody_unpacks_needs_no_filter() {
        assert_eq!(
            filter(&overlay(LinkKind::Wireguard, &[])).map(|filter| filter.kind),
            Some(EncapKind::Checked)
        );
        assert_eq!(filter(&overlay(LinkKind::Tun, &[])), None);
        let plain = DesiredOverlay {
            tunnel: None,
            ..overlay(LinkKind::Tun, &[])
        };
        assert_eq!(filter(&plain), None);
    }
}
