//! What carries the tunnels of a node that runs. The interface is chosen once, at the start; from then on its address, its MTU and
//! its index are followed, and the node leaves it only when it has been without an address for long.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use flannel_model::{Families, IpFamily};

use crate::underlay::{
    DefaultRoute, Interface, Underlay, UnderlayError, UnderlayOptions, choose_underlay, connected,
};

/// An interface that is gone, or has no address, is waited for this long before another one is taken: a DHCP server may take seconds
/// to answer, and so may a driver that is loaded again.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The host as it is, and what the operator said about the interface.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// Every interface.
    pub interfaces: &'a [Interface],
    /// The default routes.
    pub defaults: &'a [DefaultRoute],
    /// The flags; they bind a node that runs as they bind one that starts.
    pub options: &'a UnderlayOptions,
}

/// What became of the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// What carries the tunnels from now on. Where something is missing it is as before.
    pub underlay: Underlay,
    /// What is missing; peers may not reach this node.
    pub missing: Option<String>,
    /// Another interface that a start at this moment would choose.
    pub other: Option<String>,
}

/// Follows the interface. `lost_for` is how long it has been without any address.
///
/// The node stays on its interface (of the same index, else of the same name) and on its address there. When that is gone, the
/// flags choose another address of the same interface. When the interface is gone or has no address, one that has the very same
/// addresses is taken at once (they were moved to a bridge, say), any other that the flags allow after [`PATIENCE`].
pub fn follow_underlay(now: &Underlay, host: &Host<'_>, lost_for: Duration) -> Followed {
    let by_index = host.interfaces.iter().find(|i| i.ifindex == now.ifindex);
    let here = by_index.or_else(|| host.interfaces.iter().find(|i| i.name == now.name));
    let lost = match here.map(|interface| (interface, Kept::on(interface, now, host.options))) {
        Some((interface, kept)) if kept.is_any() => return kept.followed(interface, now, host),
        Some((interface, kept)) => kept.missing(interface, now),
        None => format!("interface {} is gone", now.name),
    };
    if let Some((interface, kept)) = moved_to(now, host) {
        return kept.followed(interface, now, host);
    }
    let missing = match (lost_for >= PATIENCE).then(|| chosen(host)) {
        Some(Ok(underlay)) => {
            return Followed {
                underlay,
                missing: None,
                other: None,
            };
        }
        Some(Err(error)) => format!("{lost}; {error}"),
        None => format!("{lost}; it is waited for"),
    };
    Followed {
        underlay: now.clone(),
        missing: Some(missing),
        other: None,
    }
}

fn chosen(host: &Host<'_>) -> Result<Underlay, UnderlayError> {
    choose_underlay(host.interfaces, host.defaults, host.options)
}

/// Another interface that has all the addresses in use and that the flags allow.
fn moved_to<'a>(now: &Underlay, host: &Host<'a>) -> Option<(&'a Interface, Kept)> {
    let addresses: Vec<IpAddr> = both(&now.address).collect();
    let has_all = |interface: &&Interface| {
        addresses.iter().all(|address| {
            interface.addresses.iter().any(|a| a.address == *address)
                && candidate(interface, IpFamily::of(*address), host.options).is_some()
        })
    };
    let interface = host.interfaces.iter().find(has_all)?;
    Some((interface, Kept::on(interface, now, host.options)))
}

fn both(families: &Families<Ipv4Addr, Ipv6Addr>) -> impl Iterator<Item = IpAddr> {
    let ipv4 = families.ipv4().copied().map(IpAddr::from);
    ipv4.into_iter().chain(families.ipv6().copied().map(IpAddr::from))
}

/// The addresses that an interface has for the node, of the families that the network has.
#[derive(Debug, Clone, Copy)]
struct Kept {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

impl Kept {
    fn on(interface: &Interface, now: &Underlay, options: &UnderlayOptions) -> Self {
        let keep = |address: IpAddr| keep(interface, address, options);
        let ipv4 = now.address.ipv4().and_then(|address| keep((*address).into()));
        let ipv6 = now.address.ipv6().and_then(|address| keep((*address).into()));
        Self {
            ipv4: ipv4.and_then(|address| match address {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            }),
            ipv6: ipv6.and_then(|address| match address {
                IpAddr::V6(v6) => Some(v6),
                IpAddr::V4(_) => None,
            }),
        }
    }

    fn is_any(&self) -> bool {
        self.ipv4.is_some() || self.ipv6.is_some()
    }

    /// What the interface lacks of what the node had.
    fn missing(&self, interface: &Interface, now: &Underlay) -> String {
        let ipv4 = now.address.ipv4().is_some() && self.ipv4.is_none();
        let ipv6 = now.address.ipv6().is_some() && self.ipv6.is_none();
        let families = match (ipv4, ipv6) {
            (true, true) => "neither an IPv4 nor an IPv6 address",
            (true, false) => "no IPv4 address",
            (false, _) => "no IPv6 address",
        };
        format!("{} has {families} that the tunnels may use", interface.name)
    }

    /// On this interface, with the addresses of before where there are none.
    fn followed(&self, interface: &Interface, now: &Underlay, host: &Host<'_>) -> Followed {
        let ipv4 = now.address.ipv4().map(|old| self.ipv4.unwrap_or(*old));
        let ipv6 = now.address.ipv6().map(|old| self.ipv6.unwrap_or(*old));
        let public4 = ipv4.map(|address| host.options.public_ip.unwrap_or(address));
        let public6 = ipv6.map(|address| host.options.public_ipv6.unwrap_or(address));
        let underlay = Underlay {
            ifindex: interface.ifindex,
            name: interface.name.clone(),
            mtu: interface.mtu,
            address: Families::new(ipv4, ipv6).unwrap_or(now.address),
            public_ip: Families::new(public4, public6).unwrap_or(now.public_ip),
            connected: connected(interface),
        };
        let complete = (self.ipv4.is_some() || ipv4.is_none()) && (self.ipv6.is_some() || ipv6.is_none());
        Followed {
            missing: (!complete).then(|| format!("{}; it is waited for", self.missing(interface, now))),
            other: other(&underlay, host),
            underlay,
        }
    }
}

/// What a start would choose at this moment, where that is another interface.
fn other(underlay: &Underlay, host: &Host<'_>) -> Option<String> {
    let chosen = chosen(host).ok()?;
    (chosen.ifindex != underlay.ifindex).then_some(chosen.name)
}

/// The address in use as long as the interface has it; else what the flags choose there. One that is deprecated gives way as soon
/// as there is another.
fn keep(interface: &Interface, address: IpAddr, options: &UnderlayOptions) -> Option<IpAddr> {
    let known = interface.addresses.iter().find(|a| a.address == address);
    match known {
        Some(known) if !known.deprecated => Some(address),
        known => candidate(interface, IpFamily::of(address), options).or(known.map(|_| address)),
    }
}

/// The address of a family that the flags choose on this interface, if they allow it at all.
fn candidate(interface: &Interface, family: IpFamily, options: &UnderlayOptions) -> Option<IpAddr> {
    let families = match family {
        IpFamily::V4 => Families::Ipv4(()),
        IpFamily::V6 => Families::Ipv6(()),
    };
    let alone = UnderlayOptions {
        families,
        ..options.clone()
    };
    // Without flags the interface was that of the default route, and stays it wherever the route leads now.
    let default = DefaultRoute {
        family,
        ifindex: interface.ifindex,
        metric: 0,
    };
    let found = choose_underlay(std::slice::from_ref(interface), &[default], &alone).ok()?;
    found.carrier(family).map(|carrier| carrier.address)
}

#[cfg(test)]
mod tests;
