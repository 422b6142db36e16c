//! `flannelctl subnets`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum SubnetsCommand {
    /// Draws the network: what is used, reserved, in hold-down and free, and how full it is
    ///
    /// A subnet is in hold-down for a day after its last node: it is given out only when no other is left, so that nobody
    /// still sends to pods of before.
    Map,

    /// Shows all that is known of one lease
    Show {
        /// Its subnet (10.5.7.0/24), its key (10.5.7.0-24), or the address of a pod
        #[arg(value_name = "SUBNET|ADDRESS")]
        subnet: String,
    },

    /// Shows what happens to leases, line by line as it happens
    ///
    /// Events are: listed (there at the start), added, renewed (by a node of flannel; ours renew without a write), changed, moved (to
    /// another address), removed, rejected (no flanneld can use it), lost (etcd cannot be followed) and resumed. With -o json every
    /// line is one object, with -o yaml one document.
    Watch {
        /// End after this time, as 30s or 5m; without it, never
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        timeout: Option<Duration>,
    },

    /// Keeps a subnet for one node
    ///
    /// The node with that address takes it when it starts without a lease, and the reservation stays one however long it is used or
    /// not. No other node gets it.
    Reserve {
        /// The subnet, as 10.5.7.0/24; in dual stack both, as 10.5.7.0/24,fd00:5:0:7::/64
        #[arg(value_name = "SUBNET")]
        subnet: String,

        /// The node's IPv4 address, as it publishes it
        #[arg(long, value_name = "ADDRESS")]
        public_ip: Option<Ipv4Addr>,

        /// The node's IPv6 address; needed in a network without IPv4
        #[arg(long, value_name = "ADDRESS")]
        public_ipv6: Option<Ipv6Addr>,
    },

    /// Gives a reservation back, or with --force the lease of a node that is gone
    ///
    /// A lease in use is refused (exit code 5): a node that runs would claim it again at once.
    Release {
        /// The subnet, as 10.5.7.0/24, or its key
        #[arg(value_name = "SUBNET")]
        subnet: String,

        /// Delete the lease although a node uses it
        #[arg(long)]
        force: bool,
    },
}
