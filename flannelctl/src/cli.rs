//! The command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use flannel_model::{EtcdPrefix, ServiceProtocol};

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

/// Where etcd is.
#[derive(Debug, Args)]
#[command(next_help_heading = "etcd options")]
pub struct EtcdArguments {
    /// Comma-separated addresses of etcd; tried in order until one answers
    #[arg(
        long,
        global = true,
        env = "FLANNELD_ETCD_ENDPOINTS",
        value_name = "URLS",
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub etcd_endpoints: String,

    /// Key prefix of the network
    #[arg(
        long,
        global = true,
        env = "FLANNELD_ETCD_PREFIX",
        value_name = "PREFIX",
        default_value = "/coreos.com/network"
    )]
    pub etcd_prefix: String,

    /// PEM file with the authorities that sign etcd's certificate [default: the system's own]
    #[arg(long, global = true, env = "FLANNELD_ETCD_CAFILE", value_name = "FILE")]
    pub etcd_cafile: Option<String>,

    /// PEM file with a client certificate for etcd
    #[arg(long, global = true, env = "FLANNELD_ETCD_CERTFILE", value_name = "FILE")]
    pub etcd_certfile: Option<String>,

    /// PEM file with the key of that certificate
    #[arg(long, global = true, env = "FLANNELD_ETCD_KEYFILE", value_name = "FILE")]
    pub etcd_keyfile: Option<String>,

    /// User name for etcd's own authentication
    #[arg(long, global = true, env = "FLANNELD_ETCD_USERNAME", value_name = "NAME")]
    pub etcd_username: Option<String>,

    /// File with the password of that user; without it, the variable FLANNELD_ETCD_PASSWORD counts
    #[arg(long, global = true, env = "FLANNELD_ETCD_PASSWORD_FILE", value_name = "FILE")]
    pub etcd_password_file: Option<String>,

    /// Reach etcd on other hosts by plain http, where whoever is on the way can read and change everything
    #[arg(
        long,
        global = true,
        env = "FLANNELD_ETCD_INSECURE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_parser = go_bool
    )]
    pub etcd_insecure: bool,
}

/// true and false as flanneld reads them from its flags and environment; an empty variable is one that is not set.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

impl EtcdArguments {
    /// The cleaned prefix; flannel's default when it is empty, as for an empty environment variable.
    pub fn prefix(&self) -> EtcdPrefix {
        match self.etcd_prefix.as_str() {
            "" => EtcdPrefix::new("/coreos.com/network"),
            text => EtcdPrefix::new(text),
        }
    }
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

/// Where the flanneld of this node is asked.
#[derive(Debug, Args)]
pub struct SocketArgument {
    /// Unix socket of the flanneld of this node
    #[arg(
        long,
        env = "FLANNELD_STATUS_SOCKET",
        value_name = "FILE",
        default_value = "/run/flannel/flanneld.sock"
    )]
    pub status_socket: PathBuf,
}

/// Which node this is.
#[derive(Debug, Args)]
pub struct NodeArguments {
    /// Where flanneld writes the subnet of this node; without the file, the node is known by its address
    #[arg(
        long,
        env = "FLANNELD_SUBNET_FILE",
        value_name = "FILE",
        default_value = "/run/flannel/subnet.env"
    )]
    pub subnet_file: PathBuf,
}

#[derive(Debug, Args)]
pub struct CleanupArguments {
    /// Only show what would be removed
    #[arg(long)]
    pub dry_run: bool,

    /// Remove everything that is ours: --cni and --state
    #[arg(long)]
    pub all: bool,

    /// Remove the containers' bridge, the CNI plugin's nftables tables and what it keeps below /var/lib/cni (saved configurations,
    /// addresses of our network) as well; refused while a container is attached
    #[arg(long)]
    pub cni: bool,

    /// Name of that bridge
    #[arg(long, value_name = "NAME", default_value = "cni0")]
    pub bridge: String,

    /// Remove what outlives a reboot as well: this node's identity, its WireGuard key (also one that $WIREGUARD_KEY_FILE names) and the last
    /// verified peers
    #[arg(long)]
    pub state: bool,

    /// Leave kernel settings as they are, for other programs that need them by now
    #[arg(long)]
    pub keep_sysctls: bool,
    /// Remove only what was programmed for Services; the overlay stays as it is
    #[arg(long, conflicts_with_all = ["all", "cni", "state"])]
    pub services: bool,

    /// The file that flanneld wrote
    #[arg(
        long,
        env = "FLANNELD_SUBNET_FILE",
        value_name = "FILE",
        default_value = "/run/flannel/subnet.env"
    )]
    pub subnet_file: PathBuf,

    /// flanneld's folder for what outlives a reboot
    #[arg(
        long,
        env = "FLANNELD_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/flannel"
    )]
    pub state_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct ServicesArguments {
    /// Only this Service, or those of one namespace
    #[arg(value_name = "NAMESPACE[/NAME]")]
    pub name: Option<String>,

    /// Ask only the flanneld of this node, and not etcd
    #[arg(long)]
    pub local: bool,

    /// Show connections and bytes a second on this node, over so many seconds
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub rates: Option<u64>,

    #[command(flatten)]
    pub socket: SocketArgument,
}

/// What is to be explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A port of a Service.
    Port(SocketAddr),
    /// Any address.
    Address(IpAddr),
}

fn target(text: &str) -> Result<Target, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address = || bare.parse().map(Target::Address);
    text.parse().map(Target::Port).or_else(|_| address()).map_err(|_| {
        "expected an address (10.5.7.3, fd00:5:0:7::3) or an address with its port (10.96.0.10:80, [fd00:96::a]:80)".to_owned()
    })
}

#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// An address of a Service with its port, such as 10.96.0.10:80 or [fd00:96::a]:80, or any address alone
    #[arg(value_name = "IP:PORT|ADDRESS", value_parser = target)]
    pub address: Target,

    /// Only this protocol, of an address with a port
    #[arg(long, value_enum, ignore_case = true)]
    pub protocol: Option<Protocol>,

    #[command(flatten)]
    pub node: NodeArguments,

    #[command(flatten)]
    pub socket: SocketArgument,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl From<Protocol> for ServiceProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

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

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Writes Services, their endpoints and service CIDRs from Kubernetes manifests
    ///
    /// Takes the kinds Service, EndpointSlice, ServiceCIDR and List with Kubernetes' field names, as YAML (any number of documents)
    /// or JSON. Every document is checked before anything is written, and everything is written in one
    /// transaction, or in several when there are more than 120 objects. The ranges of
    /// a ServiceCIDR are added to those that are there.
    Apply {
        /// File or directory (its *.yaml, *.yml and *.json files); - reads standard input; may be repeated
        #[arg(short, long = "filename", value_name = "FILE", required = true)]
        files: Vec<String>,
    },

    /// Deletes a Service and its endpoints, or what manifests name
    Delete {
        /// The Service; without a namespace, the one called default
        #[arg(
            value_name = "NAMESPACE/NAME",
            required_unless_present = "files",
            conflicts_with = "files"
        )]
        name: Option<String>,

        /// File or directory with manifests, as for apply; may be repeated
        #[arg(short, long = "filename", value_name = "FILE")]
        files: Vec<String>,
    },

    /// Registers endpoints
    Endpoint {
        #[command(subcommand)]
        command: EndpointCommand,
    },
}

#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// Registers one endpoint for as long as this command runs
    ///
    /// The endpoint hangs on an etcd lease that is renewed every third of its time to live: it disappears by itself when this
    /// command, its machine or its network is gone, and at once on SIGTERM or SIGINT. While etcd is away the command goes on
    /// trying; an endpoint that expired or was deleted meanwhile is registered again.
    Register(EndpointArguments),
}

#[derive(Debug, Args)]
pub struct EndpointArguments {
    /// The Service; without a namespace, in the one called default
    #[arg(value_name = "NAMESPACE/NAME")]
    pub service: String,

    /// Where the endpoint listens, such as 10.5.1.2:8080 or [fd00::2]:8080
    #[arg(value_name = "IP:PORT")]
    pub address: SocketAddr,

    /// Name of the Service's port; none for a Service whose only port has no name
    #[arg(long, value_name = "NAME", default_value = "")]
    pub port_name: String,

    /// Share of new connections for weighted schedulers, 0 to 65535; 0 takes none
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub weight: u32,

    /// Name of the node that it runs on, for the traffic policy Local [default: told by its address]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,

    /// Zone of that node
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,

    /// Seconds after which the endpoint disappears when it is not renewed
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(3..=86_400))]
    pub ttl: u32,

    /// Seconds for which it stays as terminating after SIGTERM or SIGINT: it gets no new connections then, unless no
    /// endpoint is ready
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub drain: u32,
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
    fn an_address_stands_with_a_port_or_alone() {
        assert_eq!(
            target("10.96.0.10:80"),
            Ok(Target::Port(([10, 96, 0, 10], 80).into()))
        );
        assert_eq!(target("10.5.7.3"), Ok(Target::Address([10, 5, 7, 3].into())));
        for text in ["fd00::3", "[fd00::3]"] {
            assert_eq!(
                target(text),
                Ok(Target::Address("fd00::3".parse().unwrap())),
                "{text}"
            );
        }
        assert!(matches!(target("[fd00::3]:80"), Ok(Target::Port(_))));
        assert!(target("shop/web").is_err());
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
