//! The host changes under a node that runs: another address, MTU or device of the interface for the tunnels.

use std::net::Ipv4Addr;

use flannel_lease::{Identity, Protected};
use flannel_model::NodeId;
use flannel_plan::{Followed, Underlay};

use super::{Node, listed};
use crate::flags::Options;
use crate::stranded;

/// Who a node on this interface is.
pub(super) fn identity(underlay: &Underlay, node: Option<NodeId>) -> Identity {
    let public_ip = underlay.public_ip.ipv4().copied();
    Identity {
        public_ip: public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
        public_ipv6: underlay.public_ip.ipv6().copied(),
        node,
    }
}

/// Addresses that no peer's subnet may cover.
pub(super) fn protected(options: &Options, underlay: &Underlay) -> Vec<Protected> {
    let own = "this node's own address";
    let mut protected = stranded::etcd_addresses(&options.etcd.endpoints);
    protected.extend(underlay.address.ipv4().map(|address| ((*address).into(), own)));
    protected.extend(underlay.address.ipv6().map(|address| ((*address).into(), own)));
    protected
}

impl Node<'_> {
    /// Takes what became of the interface: the lease, the devices and the routes follow.
    pub(super) fn follow_host(&mut self) {
        let Followed {
            underlay,
            missing,
            other,
        } = self.host.borrow_and_update().clone();
        self.host_problem = missing;
        self.tell_other(other);
        if underlay == self.underlay {
            return;
        }
        self.known = None;
        if let Err(error) = self.backend.moved(&underlay) {
            self.host_problem = Some(format!("{error:#}"));
            return;
        }
        tracing::info!(
            interface = underlay.name,
            ifindex = underlay.ifindex,
            address = listed(&underlay.address),
            public_ip = listed(&underlay.public_ip),
            mtu = underlay.mtu,
            "the interface of the tunnels changed (before: {}, {}, MTU {})",
            self.underlay.name,
            listed(&self.underlay.address),
            self.underlay.mtu
        );
        self.underlay = underlay;
        self.protected = protected(self.options, &self.underlay);
        self.identity = identity(&self.underlay, self.identity.node);
        let identity = self.identity;
        self.feed.look_again();
        self.identity_news
            .send_if_modified(|old| std::mem::replace(old, identity) != identity);
        self.publish_facts();
    }

    /// A node does not wander to another interface because a start would choose it now; whoever wants that restarts it.
    fn tell_other(&mut self, other: Option<String>) {
        match other {
            Some(name) if self.other.is_news(&name) => tracing::info!(
                "the flags and the default routes lead to {name} now; this node stays on {} as long as it has its address there, \
                 and takes {name} at its next start",
                self.underlay.name
            ),
            Some(_) => {}
            None => {
                self.other.clear();
            }
        }
    }
}
