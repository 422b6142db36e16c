//! Who a node is, and whose a record is.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use flannel_model::{LeaseValue, NodeId};

/// What a node is known by. flannel knows only the address; ours carries an identity besides, so that two nodes with one
/// address are told apart and a node whose address changed is known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Published IPv4 address; unspecified in a network of IPv6 alone.
    pub public_ip: Ipv4Addr,
    /// Published IPv6 address.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Our own identity; a node of flannel has none.
    pub node: Option<NodeId>,
}

impl Identity {
    /// Who published `value`.
    pub fn of(value: &LeaseValue) -> Self {
        Self {
            public_ip: value.public_ip,
            public_ipv6: value.public_ipv6,
            node: value.node_id,
        }
    }

    /// Whether both are the same node: by identity where both have one, else by address as flannel does it.
    pub fn is(&self, other: &Self) -> bool {
        match (self.node, other.node) {
            (Some(mine), Some(theirs)) => mine == theirs,
            (_, _) => self.same_address(other),
        }
    }

    /// Whether both carry the same identity of our own: no address can pretend that.
    pub fn is_surely(&self, other: &Self) -> bool {
        self.node.is_some() && self.node == other.node
    }

    /// Whether both are reached under the same address.
    pub fn same_address(&self, other: &Self) -> bool {
        match self.public_ip.is_unspecified() && other.public_ip.is_unspecified() {
            // flannel matches by IPv4 alone, and so takes all nodes of a network without IPv4 for one.
            true => self.public_ipv6.is_some() && self.public_ipv6 == other.public_ipv6,
            false => self.public_ip == other.public_ip,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.public_ip.is_unspecified(), self.public_ipv6) {
            (true, Some(ipv6)) => write!(f, "{ipv6}")?,
            (_, _) => write!(f, "{}", self.public_ip)?,
        }
        match self.node {
            Some(node) => write!(f, " (node {node})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ip: &str, id: Option<u128>) -> Identity {
        Identity {
            public_ip: ip.parse().unwrap(),
            public_ipv6: None,
            node: id.map(NodeId::new),
        }
    }

    #[test]
    fn identities_decide_where_both_have_one_and_addresses_else() {
        let me = node("10.0.2.15", Some(1));
        assert!(me.is(&node("10.0.2.15", None)), "flannel's record of this node");
        assert!(
            !me.is(&node("10.0.2.15", Some(2))),
            "another node with the same address"
        );
        assert!(
            me.is(&node("10.0.2.99", Some(1))),
            "this node before its address changed"
        );
        assert!(!me.is(&node("10.0.2.99", None)));
        assert!(me.is_surely(&node("10.0.2.99", Some(1))) && !me.is_surely(&node("10.0.2.15", None)));
    }

    #[test]
    fn nodes_without_ipv4_are_told_apart_by_ipv6() {
        let v6 = |last: u16| Identity {
            public_ip: Ipv4Addr::UNSPECIFIED,
            public_ipv6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)),
            node: None,
        };
        assert!(v6(1).is(&v6(1)) && !v6(1).is(&v6(2)));
        let none = node("0.0.0.0", None);
        assert!(!none.is(&none), "a record without any address is nobody's");
    }
}
