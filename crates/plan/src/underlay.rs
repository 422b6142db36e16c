//! Which interface carries the tunnels, chosen as flannel does.

use std::fmt;
use std::net::Ipv4Addr;

use regex::Regex;

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
    /// IPv4 addresses in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

/// An IPv4 address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub address: Ipv4Addr,
    /// Valid on this host only (scope host).
    pub host_scope: bool,
    /// Not bound to a lifetime, as addresses from DHCP are.
    pub permanent: bool,
    /// Not to be used for new connections.
    pub deprecated: bool,
}

/// A default route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Its device.
    pub ifindex: u32,
    /// Its priority; the lowest wins.
    pub metric: u32,
}

/// What the kernel answered when it was asked for the way to the address of `--iface-can-reach`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CanReach {
    /// The address.
    pub target: Ipv4Addr,
    /// Device and source address of the way; `None` when there is none.
    pub way: Option<(u32, Option<Ipv4Addr>)>,
}

/// What the operator said about the interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnderlayOptions {
    /// `--iface`: names or addresses, the first that fits wins.
    pub iface: Vec<String>,
    /// `--iface-regex`: unanchored patterns, the first that fits wins; each against all addresses, then against all names.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`, resolved.
    pub iface_can_reach: Option<CanReach>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
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
    /// The address that outer packets come from.
    pub address: Ipv4Addr,
    /// The address that peers send to: what the lease publishes. Differs from `address` behind NAT.
    pub public_ip: Ipv4Addr,
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
/// with none of them the interface that has `--public-ip`, and at last that of the default route.
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
        public_ip: options.public_ip,
        tried: Vec::new(),
    };
    let found = search.run(defaults, options);
    found.ok_or_else(|| UnderlayError {
        tried: search.tried,
        interfaces: interfaces.iter().map(ToString::to_string).collect(),
    })
}

/// One way to find the interface, with the text of the option that asks for it.
type Attempt<'a> = (String, Result<(&'a Interface, Option<Ipv4Addr>), String>);

struct Search<'a> {
    interfaces: &'a [Interface],
    public_ip: Option<Ipv4Addr>,
    tried: Vec<(String, String)>,
}

impl<'a> Search<'a> {
    fn run(&mut self, defaults: &[DefaultRoute], options: &UnderlayOptions) -> Option<Underlay> {
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
            let public_ip = options.public_ip;
            attempts.extend(
                public_ip.map(|address| (format!("--public-ip {address}"), self.by_address(address))),
            );
            attempts.push(("default route".to_owned(), self.by_default(defaults)));
        }
        attempts
            .into_iter()
            .find_map(|(option, found)| self.check(option, found))
    }

    /// Turns a found interface into the answer, or notes why it will not do.
    fn check(
        &mut self,
        option: String,
        found: Result<(&'a Interface, Option<Ipv4Addr>), String>,
    ) -> Option<Underlay> {
        match found.and_then(|(interface, address)| underlay(interface, address, self.public_ip)) {
            Ok(underlay) => Some(underlay),
            Err(reason) => {
                self.tried.push((option, reason));
                None
            }
        }
    }

    fn by_text(&self, text: &str) -> Result<(&'a Interface, Option<Ipv4Addr>), String> {
        if let Ok(address) = text.parse() {
            return self.by_address(address);
        }
        let named = self.interfaces.iter().find(|i| i.name == text);
        named
            .map(|i| (i, None))
            .ok_or_else(|| "no interface of that name".to_owned())
    }

    fn by_address(&self, address: Ipv4Addr) -> Result<(&'a Interface, Option<Ipv4Addr>), String> {
        let holder = self
            .interfaces
            .iter()
            .find(|i| i.addresses.iter().any(|a| a.address == address));
        holder
            .map(|i| (i, Some(address)))
            .ok_or_else(|| "no interface has that address".to_owned())
    }

    fn by_pattern(&self, text: &str) -> Result<(&'a Interface, Option<Ipv4Addr>), String> {
        let pattern = Regex::new(text).map_err(|_| "not a regular expression".to_owned())?;
        let by_address = self.interfaces.iter().find_map(|interface| {
            let fits = |a: &&InterfaceAddress| pattern.is_match(&a.address.to_string());
            ranked(interface)
                .into_iter()
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

    fn by_reach(&self, reach: &CanReach) -> Result<(&'a Interface, Option<Ipv4Addr>), String> {
        let (ifindex, source) = reach.way.ok_or_else(|| "no route to that address".to_owned())?;
        Ok((self.by_index(ifindex)?, source))
    }

    fn by_default(&self, defaults: &[DefaultRoute]) -> Result<(&'a Interface, Option<Ipv4Addr>), String> {
        // The first of equals: `min_by_key` keeps the kernel's order.
        let route = defaults.iter().min_by_key(|route| route.metric);
        let route = route.ok_or_else(|| "there is none over a single device in table main".to_owned())?;
        Ok((self.by_index(route.ifindex)?, None))
    }

    fn by_index(&self, ifindex: u32) -> Result<&'a Interface, String> {
        let found = self.interfaces.iter().find(|i| i.ifindex == ifindex);
        found.ok_or_else(|| format!("it leads to interface {ifindex}, which is gone"))
    }
}

fn underlay(
    interface: &Interface,
    address: Option<Ipv4Addr>,
    public_ip: Option<Ipv4Addr>,
) -> Result<Underlay, String> {
    let name = &interface.name;
    if interface.mtu == 0 {
        return Err(format!("{name} has MTU 0"));
    }
    let best = || ranked(interface).first().map(|a| a.address);
    let address = address
        .or_else(best)
        .ok_or_else(|| format!("{name} has no IPv4 address to use"))?;
    Ok(Underlay {
        ifindex: interface.ifindex,
        name: name.clone(),
        mtu: interface.mtu,
        address,
        public_ip: public_ip.unwrap_or(address),
    })
}

/// The addresses that tunnels may come from, best first: global before link-local, permanent before dynamic, then in
/// the kernel's order. Deprecated, loopback and multicast ones are none.
fn ranked(interface: &Interface) -> Vec<&InterfaceAddress> {
    let usable = |a: &&InterfaceAddress| {
        let address = a.address;
        let nobody = address.is_unspecified() || address.is_loopback();
        let everybody = address.is_multicast() || address.is_broadcast();
        !a.deprecated && !a.host_scope && !nobody && !everybody
    };
    let mut addresses: Vec<_> = interface.addresses.iter().filter(usable).collect();
    addresses.sort_by_key(|a| (a.address.is_link_local(), !a.permanent));
    addresses
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(|a| a.address.to_string()).collect();
        let addresses = if addresses.is_empty() {
            "no IPv4 address".to_owned()
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
