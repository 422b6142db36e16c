//! Names of ipsets: enough to see what another program left.
//!
//! Numbers are those of linux/netfilter/ipset/ip_set.h.

use crate::conn::{Conn, Protocol, Request};
use crate::error::NetlinkError;
use crate::nftables::Attributes;
use crate::wire::attributes;

/// NFNL_SUBSYS_IPSET with IPSET_CMD_LIST
const LIST: u16 = 6 << 8 | 7;
/// IPSET_ATTR_PROTOCOL, IPSET_ATTR_SETNAME, IPSET_ATTR_FLAGS
const PROTOCOL: u16 = 1;
const NAME: u16 = 2;
const FLAGS: u16 = 6;
/// The protocol that every kernel since 2.6.39 speaks.
const VERSION: u8 = 6;
/// IPSET_FLAG_LIST_SETNAME: names alone.
const NAMES_ONLY: u32 = 1 << 1;
/// NLA_F_NET_BYTEORDER: ipset asks for it where a number is in network byte order.
const NETWORK_ORDER: u16 = 0x4000;

/// The names of all ipsets of the network namespace; none where the kernel has no ipset.
///
/// # Errors
/// When the kernel has no netfilter netlink or does not answer.
pub fn names() -> Result<Vec<String>, NetlinkError> {
    let mut conn = Conn::open(Protocol::Netfilter)?;
    let filter = Attributes::new()
        .bytes(PROTOCOL, &[VERSION])
        .number(FLAGS | NETWORK_ORDER, NAMES_ONLY);
    // struct nfgenmsg: family AF_INET, version 0, resource 0
    let mut payload = vec![2, 0, 0, 0];
    payload.extend_from_slice(filter.as_bytes());
    let request = Request {
        kind: LIST,
        flags: 0,
        payload,
        what: "list ipsets".to_owned(),
    };
    let mut names = Vec::new();
    let listed = conn.each(&request, |message| names.extend(name(message)));
    match listed {
        Ok(()) => Ok(names),
        // No ip_set in this kernel, or not loaded: EINVAL from nfnetlink for an unknown subsystem, EOPNOTSUPP from older ones.
        Err(error) if matches!(error.errno(), Some(22 | 95)) || error.is_missing() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn name(message: &[u8]) -> Option<String> {
    let text = attributes(message.get(4..)?).find(|(kind, _)| *kind == NAME)?.1;
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    Some(String::from_utf8_lossy(text.get(..end)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_and_what_is_none_is_passed_over() {
        let message = Attributes::new()
            .bytes(PROTOCOL, &[6])
            .text(NAME, "KUBE-CLUSTER-IP");
        let bytes = [vec![2, 0, 0, 0], message.as_bytes().to_vec()].concat();
        assert_eq!(name(&bytes).as_deref(), Some("KUBE-CLUSTER-IP"));
        assert_eq!(name(&bytes[..4]), None);
        assert_eq!(name(&[]), None);
    }
}
