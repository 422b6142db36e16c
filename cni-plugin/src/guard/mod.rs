//! What a pod may send: frames from its own hardware address, with its own addresses in IP, ARP and neighbour discovery, and
//! no router advertisements, redirects, DHCP answers, packets to the nodes' tunnels, VLAN tags but those of its own trunk, or
//! protocols other than ARP, IPv4 and IPv6.
//!
//! One table of the family bridge, `flannel-cni-guard`: a fixed number of rules that look into sets, so that the work for a
//! frame does not grow with the number of pods, and a pod's ADD and DEL change elements only. The interfaces of one container
//! may use each other's addresses, because Linux answers on whichever it has a route.

mod rules;

use std::net::IpAddr;

use flannel_model::Mac;
use flannel_netlink::NetlinkError;
use flannel_netlink::nftables::{Family, Kind, commit, has_element, has_rules, keys};

use crate::masq::is_unsupported;
use crate::protocol::{CniError, Code};
use rules::{Set, TABLE};

/// How much of a pod's frames is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Nothing.
    Nothing,
    /// The hardware address alone.
    Mac,
    /// Everything.
    All,
}

/// A port and whose addresses may come in by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The host end's device name.
    pub name: String,
    /// The container's hardware address.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// VLANs whose frames it may send with their tag; what is in them is not looked at.
    pub tagged: Vec<u16>,
}

/// Fences `port` before it carries its first frame. `siblings` are the other ports of the same container. `false` when the
/// kernel cannot do it.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn add(port: &Port, siblings: &[Port], scope: Scope) -> Result<bool, CniError> {
    let what = format!("guard {}", port.name);
    match insert(&rules::elements(port, siblings, scope), &what) {
        Ok(()) => Ok(true),
        Err(e) if is_unsupported(&e) => Ok(false),
        Err(e) => Err(CniError::new(Code::Kernel, e.to_string()).with(
            "delegate.antiSpoof needs nf_tables for bridges in the kernel; set it to false to do without",
        )),
    }
}

/// A rule change makes the kernel build its chains anew, an element does not; so rules are made only where they are missing.
fn insert(elements: &[(Set, Vec<Vec<u8>>)], what: &str) -> Result<(), NetlinkError> {
    let messages = rules::change(Kind::NewElement, elements);
    if has_rules(Family::Bridge, TABLE, rules::BASE)? {
        match commit(Family::Bridge, &messages, what) {
            // Somebody removed the table just now.
            Err(e) if e.is_missing() => {}
            result => return result,
        }
    }
    let mut whole = rules::table();
    whole.extend(messages);
    commit(Family::Bridge, &whole, what)
}

/// Takes down the fence of a port. What is not there is no error.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn remove(name: &str, mac: Option<Mac>, addresses: &[IpAddr]) -> Result<(), CniError> {
    match take_out(name, mac, addresses) {
        Err(e) if !e.is_missing() && !is_unsupported(&e) => Err(CniError::new(Code::Kernel, e.to_string())),
        Err(_) | Ok(()) => Ok(()),
    }
}

fn take_out(name: &str, mac: Option<Mac>, addresses: &[IpAddr]) -> Result<(), NetlinkError> {
    let what = format!("stop guarding {name}");
    let exact = mac.map(|mac| Port {
        name: name.to_owned(),
        mac,
        addresses: addresses.to_vec(),
        tagged: Vec::new(),
    });
    let has = |set: Set| has_element(Family::Bridge, TABLE, set.name(), &rules::name_key(name));
    if let Some(port) = exact {
        // A port with a trunk, or one that shares addresses, has more elements than these; one without a guard has none, and a transaction
        // that fails makes the kernel wait for all its processors.
        if has(Set::Pods)? && !has(Set::Shared)? {
            let usual = rules::elements(&port, &[], Scope::All);
            match commit(Family::Bridge, &rules::change(Kind::DeleteElement, &usual), &what) {
                // One of them is not there, and then none was taken out: look which are.
                Err(e) if e.is_missing() => {}
                result => return result,
            }
        }
    }
    let mut found = Vec::new();
    for set in Set::ALL {
        let all = keys(Family::Bridge, TABLE, set.name())?;
        let ours = |key: &Vec<u8>| rules::concerns(set, key, name, mac, addresses);
        found.push((set, all.into_iter().filter(ours).collect()));
    }
    match rules::change(Kind::DeleteElement, &found) {
        none if none.is_empty() => Ok(()),
        messages => commit(Family::Bridge, &messages, &what),
    }
}

/// Whether the fence of a port is up.
///
/// # Errors
/// Code 100 when the kernel does not say.
pub fn is_in_place(port: &Port, scope: Scope) -> Result<bool, CniError> {
    let look = || {
        for (set, keys) in rules::elements(port, &[], scope) {
            for key in keys {
                if !has_element(Family::Bridge, TABLE, set.name(), &key)? {
                    return Ok(false);
                }
            }
        }
        has_rules(Family::Bridge, TABLE, rules::BASE)
    };
    match look() {
        // Where the kernel cannot, ADD said so.
        Err(e) if is_unsupported(&e) => Ok(true),
        result => result.map_err(|e: NetlinkError| CniError::new(Code::Kernel, e.to_string())),
    }
}
