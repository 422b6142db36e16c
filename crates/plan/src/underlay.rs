//! Which interface carries the tunnels, chosen as flannel does.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_model::{Families, IpFamily, IpSubnet};
use regex::Regex;

use crate::overlay::Carrier;

/// An interface of the node, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// Addresses of both families, each in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of the prefix that it shares with its neighbours, in bits.
    pub length: u8,
    /// Valid on this host only (scope host).
    pub host_scope: bool,
    /// Not bound to a lifetime, as addresses from DHCP are.
    pub permanent: bool,
    /// Not to be used for new connections.
    pub deprecated: bool,
    /// An IPv6 address that changes from time to time (RFC 8981).
    pub temporary: bool,
}

/// A default route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Its family.
    pub family: IpFamily,
    /// Its device.
    pub ifindex: u32,
    /// Its priority; the lowest wins.
    pub metric: u32,
}

/// What the kernel answered when it was asked for the way to the address of `--iface-can-reach`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanReach {
    /// The address.
    pub target: IpAddr,
    /// Device and source address of the way; `None` when there is none.
    pub way: Option<(u32, Option<IpAddr>)>,
}

/// What the operator said about the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayOptions {
    /// Families of the network; the interface needs an address of each.
    pub families: Families<(), ()>,
    /// `--iface`: names or addresses, the first that fits wins.
    pub iface: Vec<String>,
    /// `--iface-regex`: unanchored patterns, the first that fits wins; each against all addresses, then against all names.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`, resolved.
    pub iface_can_reach: Option<CanReach>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
}

impl UnderlayOptions {
    /// No wishes, for a network with these families.
    pub fn for_families(families: Families<(), ()>) -> Self {
        Self {
            families,
            iface: Vec::new(),
            iface_regex: Vec::new(),
            iface_can_reach: None,
            public_ip: None,
            public_ipv6: None,
        }
    }

    fn wants(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.families.ipv4().is_some(),
            IpAddr::V6(_) => self.families.ipv6().is_some(),
        }
    }
}

/// The interface that carries the tunnels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// The address of each family that outer packets come from.
    pub address: Families<Ipv4Addr, Ipv6Addr>,
    /// The address of each family that peers send to: what the lease publishes. Differs from `address` behind NAT.
    pub public_ip: Families<Ipv4Addr, Ipv6Addr>,
    /// What it reaches without a router, by its addresses.
    pub connected: Vec<IpSubnet>,
}

impl Underlay {
    /// What carries the tunnels of a family; `None` when the network does not have it.
    pub fn carrier(&self, family: IpFamily) -> Option<Carrier> {
        let address = match family {
            IpFamily::V4 => self.address.ipv4().copied().map(IpAddr::from),
            IpFamily::V6 => self.address.ipv6().copied().map(IpAddr::from),
        };
        Some(Carrier {
            ifindex: self.ifindex,
            mtu: self.mtu,
            address: address?,
        })
    }
}

/// No interface fits: what was tried, and what there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct UnderlayError {
    /// Each option that was tried with why it led nowhere, in order.
    pub tried: Vec<(String, String)>,
    /// The interfaces with their addresses: `eth0 (192.168.50.11)`.
    pub interfaces: Vec<String>,
}

impl fmt::Display for UnderlayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no interface for the tunnels: ")?;
        for (option, reason) in &self.tried {
            write!(f, "{option}: {reason}; ")?;
        }
        let listed = if self.interfaces.is_empty() {
            "none".to_owned()
        } else {
            self.interfaces.join(", ")
        };
        write!(f, "interfaces here: {listed}; name one of them with --iface")
    }
}

/// Chooses the interface. Options go before one another as in flannel: `--iface`, `--iface-regex`, `--iface-can-reach`;
/// with none of them the interface that has `--public-ip` (or, without it, `--public-ipv6`), and at last that of the default
/// route. In dual stack both default routes have to leave by one interface.
///
/// # Errors
/// When nothing fits; the error lists every attempt.
pub fn choose_underlay(
    interfaces: &[Interface],
    defaults: &[DefaultRoute],
    options: &UnderlayOptions,
) -> Result<Underlay, UnderlayError> {
    let mut search = Search {
        interfaces,
        options,
        tried: Vec::new(),
    };
    let found = search.run(defaults);
    found.ok_or_else(|| UnderlayError {
        tried: search.tried,
        interfaces: interfaces.iter().map(ToString::to_string).collect(),
    })
}

/// An interface, and the address on it if that was decided as well.
type Found<'a> = (&'a Interface, Option<IpAddr>);
/// One way to find the interface, with the text of the option that asks for it.
type Attempt<'a> = (String, Result<Found<'a>, String>);

struct Search<'a> {
    interfaces: &'a [Interface],
    options: &'a UnderlayOptions,
    tried: Vec<(String, String)>,
}

impl<'a> Search<'a> {
    fn run(&mut self, defaults: &[DefaultRoute]) -> Option<Underlay> {
        let options = self.options;
        let mut attempts: Vec<Attempt<'a>> = Vec::new();
        attempts.extend(
            options
                .iface
                .iter()
                .map(|text| (format!("--iface {text}"), self.by_text(text))),
        );
        let patterns = options.iface_regex.iter();
        attempts.extend(patterns.map(|text| (format!("--iface-regex {text}"), self.by_pattern(text))));
        attempts.extend(options.iface_can_reach.map(|reach| {
            (
                format!("--iface-can-reach {}", reach.target),
                self.by_reach(&reach),
            )
        }));
        if attempts.is_empty() {
            let ipv4 = options.families.ipv4().and(options.public_ip).map(IpAddr::from);
            let ipv6 = options.families.ipv6().and(options.public_ipv6).map(IpAddr::from);
            let (flag, address) = match ipv4 {
                Some(_) => ("--public-ip", ipv4),
                None => ("--public-ipv6", ipv6),
            };
            attempts.extend(address.map(|address| (format!("{flag} {address}"), self.by_address(address))));
            attempts.push(("default route".to_owned(), self.by_default(defaults)));
        }
        attempts
            .into_iter()
            .find_map(|(option, found)| self.check(option, found))
    }

    /// Turns a found interface into the answer, or notes why it will not do.
    fn check(&mut self, option: String, found: Result<Found<'a>, String>) -> Option<Underlay> {
        match found.and_then(|(interface, address)| underlay(interface, address, self.options)) {
            Ok(underlay) => Some(underlay),
            Err(reason) => {
                self.tried.push((option, reason));
                None
            }
        }
    }

    fn by_text(&self, text: &str) -> Result<Found<'a>, String> {
        if let Ok(address) = text.parse() {
            return self.by_address(address);
        }
        let named = self.interfaces.iter().find(|i| i.name == text);
        named
            .map(|i| (i, None))
            .ok_or_else(|| "no interface of that name".to_owned())
    }

    fn by_address(&self, address: IpAddr) -> Result<Found<'a>, String> {
        let holder = self
            .interfaces
            .iter()
            .find(|i| i.addresses.iter().any(|a| a.address == address));
        holder
            .map(|i| (i, Some(address)))
            .ok_or_else(|| "no interface has that address".to_owned())
    }

    fn by_pattern(&self, text: &str) -> Result<Found<'a>, String> {
        let pattern = Regex::new(text).map_err(|_| "not a regular expression".to_owned())?;
        let by_address = self.interfaces.iter().find_map(|interface| {
            let fits = |a: &&InterfaceAddress| pattern.is_match(&a.address.to_string());
            [IpFamily::V4, IpFamily::V6]
                .into_iter()
                .flat_map(|family| ranked(interface, family))
                .filter(|a| self.options.wants(a.address))
                .find(fits)
                .map(|a| (interface, Some(a.address)))
        });
        let by_name = || {
            self.interfaces
                .iter()
                .find(|i| pattern.is_match(&i.name))
                .map(|i| (i, None))
        };
        by_address
            .or_else(by_name)
            .ok_or_else(|| "fits no address and no name".to_owned())
    }

    fn by_reach(&self, reach: &CanReach) -> Result<Found<'a>, String> {
        let (ifindex, source) = reach.way.ok_or_else(|| "no route to that address".to_owned())?;
        let source = source.filter(|source| self.options.wants(*source));
        Ok((self.by_index(ifindex)?.0, source))
    }

    fn by_default(&self, defaults: &[DefaultRoute]) -> Result<Found<'a>, String> {
        // The first of equals: `min_by_key` keeps the kernel's order.
        let best = |family: IpFamily| {
            let routes = defaults.iter().filter(|route| route.family == family);
            let best = routes.min_by_key(|route| route.metric).map(|route| route.ifindex);
            best.ok_or_else(|| format!("there is none for {family} over a single device in table main"))
        };
        let ifindex = match self.options.families {
            Families::Ipv4(()) => best(IpFamily::V4)?,
            Families::Ipv6(()) => best(IpFamily::V6)?,
            Families::Dual((), ()) => {
                let (ipv4, ipv6) = (best(IpFamily::V4)?, best(IpFamily::V6)?);
                if ipv4 != ipv6 {
                    let name = |index| self.by_index(index).map(|(interface, _)| interface.name.clone());
                    let (ipv4, ipv6) = (name(ipv4)?, name(ipv6)?);
                    return Err(format!(
                        "that of IPv4 leaves by {ipv4}, that of IPv6 by {ipv6}; both families need one interface"
                    ));
                }
                ipv4
            }
        };
        self.by_index(ifindex)
    }

    fn by_index(&self, ifindex: u32) -> Result<Found<'a>, String> {
        let found = self.interfaces.iter().find(|i| i.ifindex == ifindex);
        found
            .map(|interface| (interface, None))
            .ok_or_else(|| format!("it leads to interface {ifindex}, which is gone"))
    }
}

fn underlay(
    interface: &Interface,
    decided: Option<IpAddr>,
    options: &UnderlayOptions,
) -> Result<Underlay, String> {
    let name = &interface.name;
    if interface.mtu == 0 {
        return Err(format!("{name} has MTU 0"));
    }
    let missing = |family: IpFamily| format!("{name} has no {family} address to use");
    let ipv4 = || -> Result<Ipv4Addr, String> {
        match decided
            .filter(IpAddr::is_ipv4)
            .or_else(|| best(interface, IpFamily::V4))
        {
            Some(IpAddr::V4(address)) => Ok(address),
            _ => Err(missing(IpFamily::V4)),
        }
    };
    let ipv6 = || -> Result<Ipv6Addr, String> {
        match decided
            .filter(IpAddr::is_ipv6)
            .or_else(|| best(interface, IpFamily::V6))
        {
            Some(IpAddr::V6(address)) => Ok(address),
            _ => Err(missing(IpFamily::V6)),
        }
    };
    let address = match options.families {
        Families::Ipv4(()) => Families::Ipv4(ipv4()?),
        Families::Ipv6(()) => Families::Ipv6(ipv6()?),
        Families::Dual((), ()) => Families::Dual(ipv4()?, ipv6()?),
    };
    let public4 = |address: Ipv4Addr| options.public_ip.unwrap_or(address);
    let public6 = |address: Ipv6Addr| options.public_ipv6.unwrap_or(address);
    Ok(Underlay {
        ifindex: interface.ifindex,
        name: name.clone(),
        mtu: interface.mtu,
        address,
        public_ip: match address {
            Families::Ipv4(ipv4) => Families::Ipv4(public4(ipv4)),
            Families::Ipv6(ipv6) => Families::Ipv6(public6(ipv6)),
            Families::Dual(ipv4, ipv6) => Families::Dual(public4(ipv4), public6(ipv6)),
        },
        connected: connected(interface),
    })
}

/// The prefixes of the interface's addresses; an address alone has no neighbours.
pub(crate) fn connected(interface: &Interface) -> Vec<IpSubnet> {
    let mut subnets: Vec<IpSubnet> = interface
        .addresses
        .iter()
        .filter(|a| a.length < IpFamily::of(a.address).bits())
        .filter_map(|a| IpSubnet::around(a.address, a.length))
        .collect();
    subnets.sort();
    subnets.dedup();
    subnets
}

fn best(interface: &Interface, family: IpFamily) -> Option<IpAddr> {
    ranked(interface, family).first().map(|a| a.address)
}

/// The addresses of a family that tunnels may come from, best first: global before link-local, permanent before dynamic,
/// lasting before temporary, then in the kernel's order. Deprecated, loopback and multicast ones are none, nor are link-local
/// ones of IPv6: every interface has one, and none says anything outside its link.
fn ranked(interface: &Interface, family: IpFamily) -> Vec<&InterfaceAddress> {
    let usable = |a: &&InterfaceAddress| {
        let address = a.address;
        let nobody = address.is_unspecified() || address.is_loopback();
        let unfit = match address {
            IpAddr::V4(v4) => v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        IpFamily::of(address) == family
            && !(a.deprecated || a.host_scope || nobody || unfit || address.is_multicast())
    };
    let mut addresses: Vec<_> = interface.addresses.iter().filter(usable).collect();
    addresses.sort_by_key(|a| {
        let link_local = matches!(a.address, IpAddr::V4(v4) if v4.is_link_local());
        (link_local, !a.permanent, a.temporary)
    });
    addresses
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(|a| a.address.to_string()).collect();
        let addresses = if addresses.is_empty() {
            "no address".to_owned()
        } else {
            addresses.join(" ")
        };
        write!(
            f,
            "{} ({addresses}{})",
            self.name,
            if self.up { "" } else { ", down" }
        )
    }
}
