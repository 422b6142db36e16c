//! What concerns the node that the command runs on.

use std::path::PathBuf;

use clap::Args;

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
