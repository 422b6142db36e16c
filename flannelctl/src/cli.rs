//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use flannel_model::EtcdPrefix;

/// What the exit codes mean; shown by --help and in the man page.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  wrong usage, or a file that cannot be read or written
  2  etcd cannot be reached, gives no answer within 5 seconds, or refuses the request
  3  bad content: in etcd (config) or in a file
  4  not found: no network config, no such Service";

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
    /// Shows the lease of every node: its subnet, public IP, backend and when it expires
    ///
    /// Records that no flanneld can use are listed below the table, with the reason. They do not change the exit code.
    Subnets,

    /// Shows the network config as it resolves, or sets it
    ///
    /// Shows Network, SubnetLen, SubnetMin, SubnetMax, the number of subnets and the backend, defaults filled in. When the config
    /// is bad, every error is shown with its field (exit code 3).
    #[command(args_conflicts_with_subcommands = true)]
    Config {
        #[command(subcommand)]
        command: Option<ConfigCommand>,
    },

    /// Shows the Services with their cluster addresses and endpoints
    ///
    /// Records that no flanneld can use are listed below the table, with the reason. They do not change the exit code.
    Services,

    /// Changes Services
    Service {
        #[command(subcommand)]
        command: ServiceCommand,
    },

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
    /// A running flanneld keeps the config that it started with.
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
    /// or JSON. Every document is checked before anything is written, and everything is written in one transaction. The ranges of
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
    fn options_stand_before_or_behind_the_command() {
        for line in ["flannelctl -o json subnets", "flannelctl subnets -o json"] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(arguments.output, Format::Json);
        }
        assert!(Arguments::try_parse_from(["flannelctl", "service", "delete"]).is_err());
        assert!(Arguments::try_parse_from(["flannelctl", "service", "apply"]).is_err());
    }
}
