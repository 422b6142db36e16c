//! The command line.

mod etcd;
mod explain;
mod node;
mod services;
mod subnets;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use etcd::EtcdArguments;
pub use explain::{ExplainArguments, Target};
pub use node::{CleanupArguments, NodeArguments, SocketArgument};
pub use services::{EndpointArguments, EndpointCommand, ServiceCommand, ServicesArguments};
pub use subnets::SubnetsCommand;

/// What the exit codes mean; shown by --help and in the man page.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  wrong usage, or a file that cannot be read or written
  2  etcd, or flanneld on this node, cannot be reached, gives no answer in time, or refuses the request
  3  bad content: in etcd (config) or in a file
  4  not found: no network config, no such subnet or Service
  5  in use by a node, or changed by somebody else meanwhile
  6  doctor found something that has to be mended, or diff a difference";

/// Shows and changes what a flannel network keeps in etcd: leases, the network config and Services.
///
/// The etcd options have the names of flanneld's flags and are read from flanneld's environment variables as well, so on a node
/// no option is needed.
#[derive(Debug, Parser)]
#[command(name = "flannelctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Arguments {
    #[command(flatten)]
    pub etcd: EtcdArguments,

    /// Form of what is shown; field names in json and yaml do not change between versions
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,

    #[command(subcommand)]
    pub command: Command,
}

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows the lease of every node: its subnet, address, owner, backend, state, age and when it expires
    ///
    /// NODE is the beginning of the identity that a node of ours publishes; a node of flannel has none. AGE is the time since the node
    /// took the subnet; nodes of flannel do not write that down, and then it is more (>) than what is shown. RENEWED is the
    /// time since the lease was renewed for the last time, EXPIRES what is left of it. STATE is one of: held; reserved (waits for its node); expiring (not renewed in time:
    /// its node is down or cut off); duplicate (its node holds another one as well); overlap (shares addresses with an older
    /// lease); outside (the network config does not offer it). Records that no flanneld can use are listed below the table, with
    /// the reason. They do not change the exit code.
    #[command(args_conflicts_with_subcommands = true)]
    Subnets {
        #[command(subcommand)]
        command: Option<SubnetsCommand>,
    },

    /// Checks a network config as flanneld reads it: every error with its field, fields that nobody reads, and what it means for
    /// the leases that are there
    ///
    /// FILE alone is checked by itself, and etcd is not asked. With --etcd, the config in etcd is checked, or FILE as the one that
    /// is to take its place, beside the leases and service ranges that are there. Warnings do not change the exit code; an error
    /// is exit code 3.
    CheckConfig {
        /// JSON file with the config; - reads standard input
        #[arg(value_name = "FILE", required_unless_present = "etcd")]
        file: Option<String>,

        /// Look into etcd
        #[arg(long)]
        etcd: bool,

        /// The nodes run with --ipv6-only, so a network without IPv4 is fine
        #[arg(long)]
        ipv6_only: bool,
    },

    /// Checks whether leases and peers are as they should be, and says what to do where they are not
    ///
    /// Looks at etcd and each of its members, the network config, every lease, the clocks of the nodes, how full the network is and, on
    /// a node, at its lease, its tunnel devices, what it keeps for a boot without etcd, and at what the kernel has for every
    /// peer: the route, with VXLAN the neighbour and the forwarding entry, with WireGuard the key and its addresses, and at the chains of the packet filter, of whomever, that
    /// forwarded packets of pods meet. Nothing
    /// is changed. Warnings do not change the exit code; an error is
    /// exit code 6.
    Doctor {
        /// Where flanneld writes the subnet of this node
        #[arg(
            long,
            env = "FLANNELD_SUBNET_FILE",
            value_name = "FILE",
            default_value = "/run/flannel/subnet.env"
        )]
        subnet_file: PathBuf,

        /// Where flanneld keeps what outlives a reboot
        #[arg(
            long,
            env = "FLANNELD_STATE_DIR",
            value_name = "DIR",
            default_value = "/var/lib/flannel"
        )]
        state_dir: PathBuf,
    },

    /// Shows the network config as it resolves, or sets it
    ///
    /// Shows Network, SubnetLen, SubnetMin, SubnetMax, the number of subnets and the backend, defaults filled in. When the config
    /// is bad, every error is shown with its field (exit code 3).
    #[command(args_conflicts_with_subcommands = true)]
    Config {
        #[command(subcommand)]
        command: Option<ConfigCommand>,
    },

    /// Shows the Services, the nodes that program them, and what they carry on this node
    ///
    /// First the Services as etcd has them, with records that no flanneld can use and the reason; then every node that
    /// programs Services, with the revision that its kernel shows; then, on a node, each port of each Service with its
    /// endpoints, weights and connections, as flanneld tells.
    Services(ServicesArguments),

    /// Explains what happens to packets for an address and port of a Service, or for any address, and why
    ///
    /// IP:PORT: which Service answers there, and which of its endpoints. On a node flanneld is asked; elsewhere, what etcd has is
    /// worked out. ADDRESS: what the address is (a pod here or elsewhere, a node, somebody outside), and what a packet to it meets on
    /// this host: route, neighbour, forwarding entry or WireGuard session, the way of the outer packet, the devices with their
    /// counters, every base chain of the packet filter with what decides in it, and what keeps the packet from getting there.
    /// That comes from etcd and the kernel, whether flanneld runs or not; without etcd the kernel's part is shown. The exit code is 0 also
    /// where something keeps it.
    Explain(ExplainArguments),

    /// Changes Services
    Service {
        #[command(subcommand)]
        command: ServiceCommand,
    },

    /// Shows how the flanneld of this node stands: whether it is ready and why not, subnet, devices, peers, what failed, and who undoes
    /// its work
    Status(SocketArgument),

    /// Shows what this node's kernel has for every peer: route, neighbour and forwarding entry or WireGuard handshake, and whether
    /// that is all of it
    ///
    /// One line for each subnet of a peer. STATE is `complete`, or names what is missing, wrong, or somebody else's and in the way.
    /// Below are the records that this node does not use, with the reason. Works from etcd and the kernel, whether flanneld runs
    /// or not.
    Peers(NodeArguments),

    /// Compares what this node's kernel has with what flanneld wants, and changes nothing
    ///
    /// DIFFERENCE is one of: missing; wrong (it is there, but another one); extra (it is of flanneld's and should not be there);
    /// foreign (somebody else's route that takes packets of peers; flanneld leaves it alone). The exit code is 6 when there
    /// is any. Works from etcd and the kernel, whether flanneld runs or not.
    Diff(NodeArguments),

    /// Shows what flanneld would write into this node's kernel now, one operation a line, and writes nothing
    Plan {
        /// Write nothing; it is the only way, and may be left out
        #[arg(long)]
        dry_run: bool,

        #[command(flatten)]
        node: NodeArguments,
    },

    /// Takes away what flanneld made on this host, and nothing else
    ///
    /// Runs `flanneld cleanup`: devices, routes, nftables tables, virtual servers, files and changed kernel settings. flanneld must
    /// not be running. The lease stays in etcd until it expires; `subnets release` gives it back at once.
    Cleanup(CleanupArguments),

    /// Prints a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },

    /// Prints the man page
    Man {
        /// Write the pages of all commands into this directory instead
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Checks a network config and writes it
    ///
    /// A running flanneld applies what it can of a change at once (MTU and Learning of vxlan) and names what waits for a restart.
    Set {
        /// JSON file with the config; - reads standard input
        #[arg(short, long, value_name = "FILE")]
        file: String,

        /// Write it even when it is bad
        #[arg(long)]
        force: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_behind_the_command() {
        for line in ["flannelctl -o json subnets", "flannelctl subnets -o json"] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(arguments.output, Format::Json);
        }
        assert!(Arguments::try_parse_from(["flannelctl", "service", "delete"]).is_err());
        assert!(Arguments::try_parse_from(["flannelctl", "service", "apply"]).is_err());
    }
}
