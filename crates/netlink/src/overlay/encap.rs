//! The filter of encapsulated packets in the words of the plan: what it should be, which is pure, and what it holds.

use std::collections::{BTreeMap, BTreeSet};

use flannel_plan::{DesiredOverlay, Exchange, LinkKind, Sender};

use crate::NetlinkError;
use crate::nftables::{EncapFilter, EncapKey, EncapKind, EncapSet, Family, NftConn, encap_key};

/// The elements of each set.
pub type Elements = BTreeMap<EncapSet, BTreeSet<EncapKey>>;

/// The filter that an overlay needs; `None` where nothing comes out of a tunnel that the kernel could look at.
pub fn filter(overlay: &DesiredOverlay) -> Option<EncapFilter> {
    let tunnel = overlay.tunnel.as_ref()?;
    let kind = match tunnel.link.kind {
        LinkKind::Vxlan(vxlan) => EncapKind::Vxlan {
            port: vxlan.port,
            vni: vxlan.id,
            local: vxlan.local,
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
pub fn elements(overlay: &DesiredOverlay, filter: &EncapFilter) -> Elements {
    let of = |set: EncapSet| {
        (
            set,
            senders(overlay).map(|sender| key(set, sender, filter)).collect(),
        )
    };
    filter.sets().map(of).into()
}

fn senders(overlay: &DesiredOverlay) -> impl Iterator<Item = &Sender> {
    overlay.tunnel.iter().flat_map(|tunnel| &tunnel.senders)
}

fn key(set: EncapSet, sender: &Sender, filter: &EncapFilter) -> EncapKey {
    let (outer, inner) = (sender.address, sender.subnet.network());
    match set {
        EncapSet::Subnets => EncapKey {
            outer,
            inner,
            destination: None,
        },
        EncapSet::Paths => EncapKey {
            outer,
            inner,
            destination: Some(filter.own_subnet.network()),
        },
        EncapSet::Nodes => EncapKey {
            outer,
            inner: outer,
            destination: None,
        },
    }
}

/// What the sets hold of some peers, before and after their `exchanges`: all of it that they had, and what of it `overlay`, which has taken
/// the exchanges, wants. A node's own address stays as long as one of its subnets does.
pub fn exchanged<'a>(
    overlay: &DesiredOverlay,
    filter: &EncapFilter,
    exchanges: impl Iterator<Item = &'a Exchange>,
) -> (Elements, Elements) {
    let mut touched: BTreeSet<Sender> = BTreeSet::new();
    for Exchange { before, after } in exchanges {
        touched.extend(senders(before).chain(senders(after)));
    }
    let is_wanted = |set: EncapSet, sender: &Sender| {
        let tunnel = overlay.tunnel.as_ref();
        tunnel.is_some_and(|tunnel| match set {
            EncapSet::Subnets | EncapSet::Paths => tunnel.senders.contains(sender),
            EncapSet::Nodes => {
                // Every subnet is one of the network, which comes before all of them.
                let first = Sender {
                    subnet: filter.network,
                    ..*sender
                };
                let next = tunnel.senders.range(first..).next();
                next.is_some_and(|next| next.address == sender.address)
            }
        })
    };
    let (mut all, mut wanted) = (Elements::new(), Elements::new());
    for set in filter.sets() {
        let keys =
            |senders: &mut dyn Iterator<Item = &Sender>| senders.map(|one| key(set, one, filter)).collect();
        all.insert(set, keys(&mut touched.iter()));
        wanted.insert(
            set,
            keys(&mut touched.iter().filter(|sender| is_wanted(set, sender))),
        );
    }
    (all, wanted)
}

/// What the sets of the table hold; nothing where there are none.
///
/// # Errors
/// When the kernel refuses or does not answer in time.
pub fn elements_there(conn: &mut NftConn, family: Family, table: &str) -> Result<Elements, NetlinkError> {
    let mut out = Elements::new();
    for set in EncapSet::ALL {
        let listed = conn.elements(family, table, set.name())?.unwrap_or_default();
        let keys = listed.iter().filter_map(|listed| encap_key(set, &listed.element));
        out.insert(set, keys.collect());
    }
    Ok(out)
}

/// The keys of each set that `one` has and `other` has not, in their order.
pub fn without(one: &Elements, other: &Elements) -> Vec<(EncapSet, Vec<EncapKey>)> {
    let rest = |set: EncapSet| {
        let keys = one.get(&set).into_iter().flatten();
        let rest = keys.filter(|key| other.get(&set).is_none_or(|known| !known.contains(key)));
        (set, rest.copied().collect::<Vec<_>>())
    };
    let all = EncapSet::ALL.map(rest).into_iter();
    all.filter(|(_, keys)| !keys.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flannel_model::IpSubnet;
    use flannel_plan::{Device, IpipLink, Tunnel, TunnelLink, VxlanLink};

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
        let vxlan = LinkKind::Vxlan(VxlanLink {
            id: 1,
            underlay: 2,
            local: "192.0.2.1".parse().unwrap(),
            port: 8472,
            mac: "8a:00:00:00:00:01".parse().unwrap(),
            learning: false,
            gbp: false,
            udp_checksum: true,
        });
        let of = |kind: LinkKind, set: EncapSet| {
            let overlay = overlay(kind, &senders);
            let all = elements(&overlay, &filter(&overlay).unwrap());
            let text = |key: &EncapKey| {
                let destination = key.destination.map(|address| address.to_string());
                format!("{} {} {}", key.outer, key.inner, destination.unwrap_or_default())
            };
            all[&set].iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(
            of(LinkKind::Wireguard, EncapSet::Subnets),
            [
                "192.0.2.2 10.5.2.0 ",
                "192.0.2.2 10.5.7.0 ",
                "192.0.2.3 10.5.3.0 "
            ]
        );
        assert_eq!(
            of(vxlan, EncapSet::Paths),
            [
                "192.0.2.2 10.5.2.0 10.5.1.0",
                "192.0.2.2 10.5.7.0 10.5.1.0",
                "192.0.2.3 10.5.3.0 10.5.1.0"
            ]
        );
        assert_eq!(
            of(vxlan, EncapSet::Nodes),
            ["192.0.2.2 192.0.2.2 ", "192.0.2.3 192.0.2.3 "]
        );
    }

    #[test]
    fn exchanged_peers_alone_tell_what_comes_and_goes() {
        let all = [
            ("192.0.2.2", "10.5.2.0/24"),
            ("192.0.2.2", "10.5.7.0/24"),
            ("192.0.2.3", "10.5.3.0/24"),
            ("192.0.2.4", "10.5.4.0/24"),
        ];
        // One of two subnets of a node goes, a subnet passes to another node, and one node goes or comes.
        type Step = (&'static [usize], &'static [(&'static str, &'static str)]);
        let steps: [Step; 4] = [
            (&[1], &[]),
            (&[2], &[("192.0.2.9", "10.5.3.0/24")]),
            (&[3], &[]),
            (&[], &[("192.0.2.4", "10.5.5.0/24")]),
        ];
        for kind in [
            LinkKind::Wireguard,
            LinkKind::Ipip(IpipLink {
                local: [192, 0, 2, 1].into(),
            }),
        ] {
            for (gone, new) in steps {
                let rest = all.iter().enumerate().filter(|(n, _)| !gone.contains(n));
                let rest: Vec<(&str, &str)> = rest.map(|(_, one)| *one).chain(new.iter().copied()).collect();
                let gone: Vec<(&str, &str)> = gone.iter().map(|n| all[*n]).collect();
                let (before, after) = (overlay(kind, &all), overlay(kind, &rest));
                let filter = filter(&after).unwrap();
                let exchange = Exchange {
                    before: overlay(kind, &gone),
                    after: overlay(kind, new),
                };
                let (touched, wanted) = exchanged(&after, &filter, [&exchange].into_iter());
                let mut there = elements(&before, &filter);
                for (set, keys) in there.iter_mut() {
                    keys.retain(|key| !touched[set].contains(key));
                    keys.extend(&wanted[set]);
                }
                assert_eq!(there, elements(&after, &filter), "{gone:?} became {new:?}");
            }
        }
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
