//! `flannelctl services` and `flannelctl service`.

use std::net::SocketAddr;

use clap::{Args, Subcommand};

use super::SocketArgument;

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

    /// Deletes Services and their endpoints, or what manifests name
    Delete {
        /// The Services; one without a namespace is in that called default
        #[arg(
            value_name = "NAMESPACE/NAME",
            required_unless_present = "files",
            conflicts_with = "files"
        )]
        names: Vec<String>,

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
