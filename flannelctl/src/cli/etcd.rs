//! Where etcd is and how it is reached.

use clap::Args;
use flannel_model::EtcdPrefix;

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
