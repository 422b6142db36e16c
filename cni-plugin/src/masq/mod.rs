//! Masquerading of pods where the daemon leaves it to the CNI plugin (flanneld without --ip-masq).
//!
//! One table a family, `flannel-cni-masq`, with a set of the pods' addresses and one chain of five expressions a subnet: the
//! work for a packet does not grow with the number of pods, and a pod's ADD and DEL change one element.

mod rules;

use std::net::IpAddr;

use flannel_model::IpFamily;
use flannel_netlink::NetlinkError;
use flannel_netlink::nftables::{Family, commit, has_element, has_rules};

use crate::address::Given;
use crate::expression;
use crate::protocol::{CniError, Code};

/// Masquerades what the pod sends from each of its addresses to the outside of that address's subnet. Idempotent; a rule that
/// somebody removed comes back.
///
/// # Errors
/// Code 100 when the kernel refuses.
pub fn add(addresses: &[Given]) -> Result<(), CniError> {
    for given in addresses {
        let subnet = (given.range.network(), given.range.length());
        let what = format!("masquerade {}", given.address);
        insert(given.address, subnet, &what).map_err(|e| {
            CniError::new(Code::Kernel, e.to_string()).with(
                "delegate.ipMasq needs nf_tables with masquerading in the kernel; or run flanneld with --ip-masq",
            )
        })?;
    }
    Ok(())
}

/// A rule change makes the kernel build the chain anew, an element does not; so the rule is made only where it is missing.
fn insert(address: IpAddr, subnet: (IpAddr, u8), what: &str) -> Result<(), NetlinkError> {
    let family = family(address);
    if has_rules(family, rules::TABLE, &rules::chain_name(subnet))? {
        match commit(family, &rules::add_element(address), what) {
            // Somebody removed the table just now.
            Err(e) if e.is_missing() => {}
            result => return result,
        }
    }
    commit(family, &rules::add(address, subnet), what)
}

/// Ends it for these addresses. What is not there is no error.
///
/// # Errors
/// Code 100, after all that could be removed was removed.
pub fn remove(addresses: &[IpAddr]) -> Result<(), CniError> {
    let mut result = Ok(());
    for address in addresses {
        match take_out(*address) {
            Err(e) if !is_gone(&e) => result = Err(CniError::new(Code::Kernel, e.to_string())),
            Err(_) | Ok(()) => {}
        }
    }
    result
}

/// A transaction that fails costs ten milliseconds (`synchronize_rcu` in `__nf_tables_abort`), a question next to nothing; and
/// where the daemon masquerades, there is never anything to remove.
fn take_out(address: IpAddr) -> Result<(), NetlinkError> {
    let (family, key) = (family(address), expression::octets(address));
    if !has_element(family, rules::TABLE, rules::SET, &key)? {
        return Ok(());
    }
    commit(
        family,
        &rules::remove(address),
        &format!("stop masquerading {address}"),
    )
}

/// Whether `address` is masqueraded: its element and its subnet's rule are there.
///
/// # Errors
/// Code 100 when the kernel does not say.
pub fn is_in_place(address: IpAddr, length: u8) -> Result<bool, CniError> {
    let family = family(address);
    let chain = rules::chain_name((expression::network(address, length), length));
    let kernel = |e: NetlinkError| CniError::new(Code::Kernel, e.to_string());
    let element =
        has_element(family, rules::TABLE, rules::SET, &expression::octets(address)).map_err(kernel)?;
    Ok(element && has_rules(family, rules::TABLE, &chain).map_err(kernel)?)
}

/// No element, no set, no table; or no nf_tables in this kernel, so that there never was one.
fn is_gone(error: &NetlinkError) -> bool {
    error.is_missing() || is_unsupported(error)
}

/// The kernel has no nf_tables, or not for this family.
pub fn is_unsupported(error: &NetlinkError) -> bool {
    use rustix::io::Errno;
    [Errno::PROTONOSUPPORT, Errno::OPNOTSUPP, Errno::AFNOSUPPORT]
        .iter()
        .any(|errno| error.has_errno(*errno))
}

fn family(address: IpAddr) -> Family {
    IpFamily::of(address).into()
}
