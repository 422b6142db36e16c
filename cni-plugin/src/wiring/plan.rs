//! What a pod's wiring will be: decided from the configuration and the addresses alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_model::Mac;

use crate::address::Given;
use crate::config::Bridge;
use crate::protocol::{Attachment, CniError, Code, NetworkName, Route};

/// Ethernet's MTU, which the kernel gives a veth by default.
const DEFAULT_MTU: u32 = 1500;
/// Most bytes of an interface alias: IFALIASZ (linux/if.h) without the closing zero.
const ALIAS_MAX: usize = 255;
/// Room kept in an alias for addresses: one of each family, as long as they come.
const ALIAS_ADDRESSES: usize = 57;

/// The host's end of an attachment.
///
/// Its name follows from network, container and interface name, so that DEL finds it without the container's namespace, and
/// two ADDs of one attachment cannot both succeed. Its alias says in plain text whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEnd {
    /// Device name.
    pub name: String,
    /// Interface alias.
    pub alias: String,
}

impl HostEnd {
    /// The host's end of `attachment` to `network`.
    pub fn of(network: &NetworkName, attachment: &Attachment) -> Self {
        let text = format!("{network}/{}/{}", attachment.container, attachment.ifname);
        let hash = fnv1a(text.as_bytes());
        // 4 + 11 digits fill a device name, and the bridge plugin's random names have 8 digits: the two never meet.
        let name = format!("veth{:011x}", hash & 0xfff_ffff_ffff);
        let alias = match text.len() + "flannel:".len() <= ALIAS_MAX - ALIAS_ADDRESSES {
            true => format!("flannel:{text}"),
            false => format!("flannel:{hash:016x}"),
        };
        Self { name, alias }
    }

    /// The alias with the container's addresses, as many as fit: they tell who has them when all files are lost.
    pub fn alias_with(&self, addresses: &[Given]) -> String {
        let mut alias = self.alias.clone();
        for word in addresses.iter().map(|given| format!(" {}", given.address)) {
            if alias.len() + word.len() <= ALIAS_MAX {
                alias.push_str(&word);
            }
        }
        alias
    }

    /// What the aliases of all host ends of `network` begin with, but for those too long to be text.
    pub fn alias_prefix(network: &NetworkName) -> String {
        format!("flannel:{network}/")
    }

    /// Whether a device of this name with `alias` is this attachment's. It has no alias when its maker died between making
    /// and marking it.
    pub fn owns(&self, alias: Option<&str>) -> bool {
        alias.is_none_or(|alias| {
            let rest = alias.strip_prefix(&self.alias);
            alias.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        })
    }
}

/// FNV-1a, 64 bits: the same name on every run and with every release, which std's hasher does not promise.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// All that is to be made for an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The bridge and its options.
    pub bridge: Bridge,
    /// The host's end of the veth pair.
    pub host_end: HostEnd,
    /// The container's interface name.
    pub ifname: String,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// Hardware address of the host's end.
    pub host_mac: Mac,
    /// Hardware address of the container's end.
    pub pod_mac: Mac,
    /// The container's addresses.
    pub addresses: Vec<Given>,
    /// The container's routes as the result tells them.
    pub routes: Vec<Route>,
}

impl Plan {
    /// Puts the pieces together; `macs` are the hardware addresses of the host's end and the container's.
    ///
    /// # Errors
    /// Code 7 for a route of a family in which the container has no address.
    pub fn new(
        bridge: Bridge,
        host_end: HostEnd,
        ifname: &str,
        addresses: Vec<Given>,
        mut routes: Vec<Route>,
        macs: (Mac, Mac),
    ) -> Result<Self, CniError> {
        if bridge.is_default_gateway {
            add_default_routes(&addresses, &mut routes);
        }
        let lost = routes.iter().find(|route| next_hop(&addresses, route).is_none());
        if let Some(Route {
            dst: (network, length),
            ..
        }) = lost
        {
            let msg = format!("ipam.routes: {network}/{length} has no gateway");
            let advice = "the node has no subnet of that family; give the route a gw or leave it out";
            return Err(CniError::new(Code::BadConfig, msg).with(advice));
        }
        Ok(Self {
            host_end,
            ifname: ifname.to_owned(),
            mtu: bridge.mtu.unwrap_or(DEFAULT_MTU),
            host_mac: macs.0,
            pod_mac: macs.1,
            bridge,
            addresses,
            routes,
        })
    }

    /// Every route with its next hop, in an order in which they can be added.
    pub fn hops(&self) -> impl Iterator<Item = (&Route, IpAddr)> + '_ {
        self.routes
            .iter()
            .filter_map(|route| Some((route, next_hop(&self.addresses, route)?)))
    }

    /// The gateway addresses of the container's subnets, with prefix length.
    pub fn gateways(&self) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
        self.addresses
            .iter()
            .map(|given| (given.range.gateway(), given.range.length()))
    }

    /// The hardware address of a bridge that is made to bear the gateway addresses: the one that goes with them, so that a bridge that
    /// was lost and is made anew is found where the containers know it.
    pub fn bridge_mac(&self) -> Option<Mac> {
        let gateways = || self.gateways().map(|(gateway, _)| gateway);
        self.bridge.is_gateway.then(|| mac_for(gateways))
    }

    /// Whether the container has an address of the family.
    pub fn has_family(&self, v4: bool) -> bool {
        self.addresses.iter().any(|given| given.address.is_ipv4() == v4)
    }
}

/// The hardware address that goes with a container's addresses.
pub fn mac_of(addresses: &[Given]) -> Mac {
    mac_for(|| addresses.iter().map(|given| given.address))
}

/// The hardware address that goes with addresses: `0a:58` and its IPv4 address, as kubenet made them, or, without one,
/// `0a:59` and four bytes of the IPv6 address. So an address that passes to another container keeps its hardware address, what
/// neighbours know of it stays true, and nobody needs to be told.
fn mac_for<I: Iterator<Item = IpAddr>>(all: impl Fn() -> I) -> Mac {
    let v4 = all().find_map(|ip| match ip {
        IpAddr::V4(v4) => Some(v4.octets()),
        IpAddr::V6(_) => None,
    });
    let (prefix, [a, b, c, d]) = match (v4, all().next()) {
        // The last four bytes differ where addresses are given one after the other; the others, hashed, tell apart those that end alike.
        (None, Some(IpAddr::V6(v6))) => {
            let (front, end) = (v6.to_bits() >> 32, v6.to_bits() & 0xffff_ffff);
            // Spread (Knuth's multiplicative hashing), because the last byte changes but few bits of the hash.
            let spread = fnv1a(&front.to_be_bytes()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let folded = end ^ u128::from(spread);
            (0x59, u32::try_from(folded).unwrap_or_default().to_be_bytes())
        }
        (v4, _) => (0x58, v4.unwrap_or_default()),
    };
    Mac::new([0x0a, prefix, a, b, c, d])
}

/// A default route a family, unless one was configured: with or without a gateway of its own, two would collide.
fn add_default_routes(addresses: &[Given], routes: &mut Vec<Route>) {
    for given in addresses {
        let any: IpAddr = match given.address {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        if !routes.iter().any(|route| route.dst == (any, 0)) {
            routes.push(Route::new((any, 0), Some(given.range.gateway())));
        }
    }
}

/// A route's own gateway, else that of the container's subnet of the same family.
fn next_hop(addresses: &[Given], route: &Route) -> Option<IpAddr> {
    let v4 = route.dst.0.is_ipv4();
    let of_family = || addresses.iter().find(|given| given.address.is_ipv4() == v4);
    route
        .gw
        .or_else(|| of_family().map(|given| given.range.gateway()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Range;
    use crate::protocol::{CniArgs, ContainerId, IfName};

    fn host_end(network: &str, id: &str, ifname: &str) -> HostEnd {
        let attachment = Attachment {
            container: ContainerId::parse(id).unwrap(),
            ifname: IfName::parse(ifname).unwrap(),
        };
        HostEnd::of(&NetworkName::parse(network).unwrap(), &attachment)
    }

    #[test]
    fn names_are_stable_and_tell_attachments_apart() {
        let end = host_end("cbr0", "c1", "eth0");
        // Fixed for good: DEL of a later release must find what an earlier one made.
        assert_eq!(end.name, "veth0a14c78f129");
        assert_eq!(end.alias, "flannel:cbr0/c1/eth0");
        assert_eq!(end.name.len(), 15);
        for other in [
            host_end("cbr1", "c1", "eth0"),
            host_end("cbr0", "c2", "eth0"),
            host_end("cbr0", "c1", "eth1"),
        ] {
            assert_ne!(end.name, other.name);
            assert!(!end.owns(Some(&other.alias)));
        }
        assert!(end.owns(None) && end.owns(Some("")) && end.owns(Some(&end.alias)));
    }

    #[test]
    fn a_long_alias_becomes_a_hash() {
        let end = host_end(&"n".repeat(200), &"c".repeat(200), "eth0");
        assert_eq!(end.alias.len(), 24);
    }

    fn given(address: &str, network: &str, length: u8) -> Given {
        Given {
            address: address.parse().unwrap(),
            range: Range::of_subnet(network.parse().unwrap(), length).unwrap(),
        }
    }

    fn plan(delegate: &str, addresses: Vec<Given>, routes: Vec<Route>) -> Result<Plan, CniError> {
        let bridge = Bridge::read(&serde_json::from_str(delegate).unwrap(), &CniArgs::default()).unwrap();
        let mac = |last| Mac::new([2, 0, 0, 0, 0, last]);
        Plan::new(
            bridge,
            host_end("n", "c", "eth0"),
            "eth0",
            addresses,
            routes,
            (mac(1), mac(2)),
        )
    }

    fn hops(plan: &Plan) -> Vec<String> {
        plan.hops()
            .map(|(route, gw)| format!("{}/{} via {gw}", route.dst.0, route.dst.1))
            .collect()
    }

    #[test]
    fn an_address_has_one_hardware_address_whoever_has_it() {
        let mac = |addresses: &[Given]| mac_of(addresses).to_string();
        let (v4, v6) = (
            given("10.1.17.2", "10.1.17.0", 24),
            given("fc00:7::2", "fc00:7::", 64),
        );
        assert_eq!(mac(std::slice::from_ref(&v4)), "0a:58:0a:01:11:02");
        assert_eq!(mac(&[v6.clone(), v4.clone()]), "0a:58:0a:01:11:02");
        assert!(mac(std::slice::from_ref(&v6)).starts_with("0a:59:"));
        assert!(mac_of(&[v6]).is_unicast());
        let all: std::collections::BTreeSet<String> = (1..0x1000)
            .map(|number| mac(&[given(&format!("fc00:7::{number:x}"), "fc00:7::", 64)]))
            .collect();
        assert_eq!(all.len(), 0xfff);
        let far = given("fc00:7::1:0:2", "fc00:7::", 64);
        assert!(!all.contains(&mac(&[far])));
    }

    #[test]
    fn both_families_get_their_routes() {
        let addresses = vec![
            given("10.1.17.2", "10.1.17.0", 24),
            given("fc00:7::2", "fc00:7::", 64),
        ];
        let routes = vec![
            Route::new(("10.1.0.0".parse().unwrap(), 16), None),
            Route::new(("fc00::".parse().unwrap(), 16), None),
        ];
        let plan = plan(r#"{"isDefaultGateway":true}"#, addresses, routes).unwrap();
        assert_eq!(
            hops(&plan),
            [
                "10.1.0.0/16 via 10.1.17.1",
                "fc00::/16 via fc00:7::1",
                "0.0.0.0/0 via 10.1.17.1",
                "::/0 via fc00:7::1"
            ]
        );
        assert_eq!(plan.mtu, 1500);
        assert_ne!(plan.host_mac, plan.pod_mac);
    }

    #[test]
    fn a_configured_default_route_stays_the_only_one() {
        for gw in [None, Some("10.1.17.9".parse().unwrap())] {
            let routes = vec![Route::new(("0.0.0.0".parse().unwrap(), 0), gw)];
            let addresses = vec![given("10.1.17.2", "10.1.17.0", 24)];
            let plan = plan(r#"{"isDefaultGateway":true}"#, addresses, routes).unwrap();
            assert_eq!(plan.routes.len(), 1);
        }
    }

    #[test]
    fn a_route_without_a_gateway_is_refused() {
        let routes = vec![Route::new(("fc00::".parse().unwrap(), 16), None)];
        let error = plan("{}", vec![given("10.1.17.2", "10.1.17.0", 24)], routes).unwrap_err();
        assert_eq!(error.code, Code::BadConfig);
    }
}
