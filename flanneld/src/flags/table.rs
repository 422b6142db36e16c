//! Every flag of flanneld: flannel's own, with its names, defaults and meanings, and the few that we add.

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One text.
    Text,
    /// A text for each time it is given.
    List,
    /// A whole number.
    Number,
    /// `true` or `false`; alone it means `true`, and only `=false` turns it off.
    Bool,
}

/// One flag.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name without dashes.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The value when it is not given.
    pub default: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
    /// Why it is refused: it is not built yet, and swallowing it would promise what does not happen.
    pub refused: Option<&'static str>,
}

const fn built(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag {
        name,
        kind,
        default,
        help,
        refused: None,
    }
}

const fn refused(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
    why: &'static str,
) -> Flag {
    Flag {
        name,
        kind,
        default,
        help,
        refused: Some(why),
    }
}

const NO_KUBE: &str = "subnets from Kubernetes are not built yet; leave it out and use etcd";

/// The flags in the order in which `--help` shows them.
pub const FLAGS: &[Flag] = &[
    built(
        "etcd-endpoints",
        Kind::Text,
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "a comma-separated list of etcd endpoints",
    ),
    built(
        "etcd-prefix",
        Kind::Text,
        "/coreos.com/network",
        "etcd key prefix",
    ),
    built(
        "etcd-keyfile",
        Kind::Text,
        "",
        "file with the private key for TLS to etcd",
    ),
    built(
        "etcd-certfile",
        Kind::Text,
        "",
        "file with the certificate for TLS to etcd",
    ),
    built(
        "etcd-cafile",
        Kind::Text,
        "",
        "file with the certificate authority of etcd; enough for TLS by itself",
    ),
    built("etcd-username", Kind::Text, "", "user name for etcd"),
    built(
        "etcd-password",
        Kind::Text,
        "",
        "password for etcd; better given as FLANNELD_ETCD_PASSWORD or in a file, which `ps` does not show",
    ),
    built(
        "etcd-password-file",
        Kind::Text,
        "",
        "file with the password for etcd, read at each new connection",
    ),
    built(
        "etcd-insecure",
        Kind::Bool,
        "false",
        "reach etcd on other hosts by plain http, where whoever is on the way can read and change leases",
    ),
    built(
        "iface",
        Kind::List,
        "",
        "interface (name or IP address) for traffic between nodes; may be repeated, the first match counts",
    ),
    built(
        "iface-regex",
        Kind::List,
        "",
        "regular expression for the interface, matched against IP addresses, then names; may be repeated, tried after all --iface",
    ),
    built(
        "iface-can-reach",
        Kind::Text,
        "",
        "take the interface by which this IP address is reached",
    ),
    built(
        "subnet-file",
        Kind::Text,
        "/run/flannel/subnet.env",
        "file that gets the node's subnet and MTU",
    ),
    built(
        "public-ip",
        Kind::Text,
        "",
        "IPv4 address that other nodes use to reach this one",
    ),
    built(
        "ipv6-only",
        Kind::Bool,
        "false",
        "take part in a network without IPv4; its leases have keys that flannel does not know",
    ),
    built(
        "public-ipv6",
        Kind::Text,
        "",
        "IPv6 address that other nodes use to reach this one",
    ),
    built(
        "subnet-lease-renew-margin",
        Kind::Number,
        "60",
        "the lease is renewed at the latest this many minutes before it ends (1 to 1439)",
    ),
    built(
        "subnet-lease-ttl",
        Kind::Text,
        "24h",
        "lifetime of the lease in etcd, such as 90s, 30m or 24h; a node cut off for longer may lose its subnet",
    ),
    built(
        "peer-delete-hold",
        Kind::Text,
        "30s",
        "a peer whose lease is gone stays in use for this long, unless it appears elsewhere",
    ),
    built(
        "etcd-reset-grace",
        Kind::Text,
        "5m",
        "after etcd was wiped or restored from a backup, peers stay in use for this long while all nodes register again",
    ),
    built(
        "vxlan-udp-checksum",
        Kind::Bool,
        "true",
        "vxlan over IPv4: a checksum in outer packets, as flannel has it; =false saves 5 to 15 % where no NIC needs it (RFC 7348); for a device that is made anew",
    ),
    built(
        "udp-public-port",
        Kind::Number,
        "0",
        "udp backend: the port that a NAT in front of this node maps to its own; 0 when none does",
    ),
    built(
        "udp-offloads",
        Kind::Text,
        "all",
        "udp backend: what to ask the kernel for, each tried: all, none, or some of multi-queue,tso,uso,udp-segment,udp-gro",
    ),
    built(
        "state-dir",
        Kind::Text,
        "/var/lib/flannel",
        "folder for what outlives a reboot: this node's identity and the last verified peers",
    ),
    built(
        "wireguard-psk-file",
        Kind::Text,
        "",
        "file with the preshared key of the wireguard backend, the same on every node; it goes before PSK in the network config",
    ),
    built(
        "ip-masq",
        Kind::Bool,
        "false",
        "masquerade traffic that leaves the overlay",
    ),
    built(
        "ip-masq-exempt",
        Kind::List,
        "",
        "destinations outside the network that see the addresses of pods (with --ip-masq): a CIDR or several joined by commas; may be repeated",
    ),
    built(
        "ip-masq-fully-random-disable",
        Kind::Bool,
        "false",
        "masquerade without random source ports",
    ),
    refused(
        "kube-subnet-mgr",
        Kind::Bool,
        "false",
        "take subnets from Kubernetes instead of etcd",
        NO_KUBE,
    ),
    built(
        "kube-api-url",
        Kind::Text,
        "",
        "address of the Kubernetes API server, instead of the one in the kubeconfig or the pod's environment",
    ),
    refused(
        "kube-annotation-prefix",
        Kind::Text,
        "flannel.alpha.coreos.com",
        "prefix of node annotations",
        NO_KUBE,
    ),
    built(
        "kubeconfig-file",
        Kind::Text,
        "",
        "kubeconfig file; without one the pod's own credentials are used",
    ),
    refused(
        "net-config-path",
        Kind::Text,
        "/etc/kube-flannel/net-conf.json",
        "network config with --kube-subnet-mgr",
        NO_KUBE,
    ),
    refused(
        "set-node-network-unavailable",
        Kind::Bool,
        "true",
        "set the node condition NetworkUnavailable",
        NO_KUBE,
    ),
    built(
        "healthz-ip",
        Kind::Text,
        "0.0.0.0",
        "address for /healthz, /readyz and /metrics",
    ),
    built(
        "healthz-port",
        Kind::Number,
        "0",
        "port for /healthz, /readyz and /metrics; 0 turns them off",
    ),
    built(
        "iptables-resync",
        Kind::Number,
        "5",
        "seconds between two checks of the packet filter rules",
    ),
    built(
        "iptables-forward-rules",
        Kind::Bool,
        "true",
        "accept forwarded traffic of the overlay (with --ip-masq)",
    ),
    built(
        "encap-filter",
        Kind::Bool,
        "true",
        "vxlan, ipip and wireguard: drop encapsulated packets that do not come from a peer, from an inner address of that peer, to the node's \
         subnet",
    ),
    built(
        "ip-blackhole-route",
        Kind::Bool,
        "false",
        "drop packets to addresses of the node's subnet that no container has, instead of sending them out by another route",
    ),
    built(
        "service-source",
        Kind::Text,
        "etcd",
        "where Services come from: etcd, kube (a Kubernetes API server) or none",
    ),
    built(
        "service-cluster-ip-range",
        Kind::Text,
        "",
        "ranges of cluster addresses, joined by commas, instead of the API server's ServiceCIDRs (with --service-source=kube)",
    ),
    built(
        "service-external-ip-range",
        Kind::Text,
        "",
        "ranges that external and load balancer addresses may come from, joined by commas (with --service-source=kube)",
    ),
    built(
        "service-node-port-range",
        Kind::Text,
        "",
        "ports that Services may take on every node, such as 30000-32767 (with --service-source=kube)",
    ),
    built(
        "nodeport-addresses",
        Kind::Text,
        "",
        "addresses of the node that answer on these ports: primary, all, or ranges (with --service-source=kube)",
    ),
    built(
        "ipvs-scheduler",
        Kind::Text,
        "",
        "scheduler of every Service that names none (with --service-source=kube)",
    ),
    built(
        "ipvs-drain-timeout",
        Kind::Text,
        "",
        "seconds for which a connection may hold an endpoint that leaves, 0 to 86400 (with --service-source=kube)",
    ),
    built(
        "ipvs-strict-arp",
        Kind::Bool,
        "false",
        "with IPVS: answer ARP for addresses of the device that was asked on and no others (arp_ignore 1, arp_announce 2)",
    ),
    built(
        "ipvs-tcp-timeout",
        Kind::Text,
        "",
        "how long IPVS remembers an open TCP connection without packets, such as 15m; 0 leaves what is set",
    ),
    built(
        "ipvs-tcpfin-timeout",
        Kind::Text,
        "",
        "how long IPVS remembers a TCP connection after its first FIN; 0 leaves what is set",
    ),
    built(
        "ipvs-udp-timeout",
        Kind::Text,
        "",
        "how long IPVS remembers UDP without packets; 0 leaves what is set",
    ),
    built(
        "conntrack-max-per-core",
        Kind::Number,
        "0",
        "tracked connections for each processor at the most; 0 leaves the limit as it is",
    ),
    built(
        "conntrack-min",
        Kind::Number,
        "0",
        "least limit of tracked connections, with --conntrack-max-per-core",
    ),
    built(
        "conntrack-tcp-timeout-established",
        Kind::Text,
        "",
        "how long an open TCP connection without packets is tracked, such as 24h0m0s; 0 leaves what is set",
    ),
    built(
        "conntrack-tcp-timeout-close-wait",
        Kind::Text,
        "",
        "how long a TCP connection in CLOSE_WAIT is tracked; 0 leaves what is set",
    ),
    built(
        "conntrack-tcp-be-liberal",
        Kind::Bool,
        "false",
        "TCP packets outside of their window count as packets of their connection",
    ),
    built(
        "conntrack-udp-timeout",
        Kind::Text,
        "",
        "how long UDP that was not answered is tracked; 0 leaves what is set",
    ),
    built(
        "conntrack-udp-timeout-stream",
        Kind::Text,
        "",
        "how long UDP that was answered is tracked; 0 leaves what is set",
    ),
    refused(
        "ipvs-exclude-cidrs",
        Kind::Text,
        "",
        "ranges whose virtual servers are left alone",
        "virtual servers that are not ours are never touched; leave it out",
    ),
    refused(
        "ipvs-sync-period",
        Kind::Text,
        "",
        "time between two comparisons with the kernel",
        "changes are written as they come and what stands is looked at all the time; leave it out",
    ),
    refused(
        "ipvs-min-sync-period",
        Kind::Text,
        "",
        "least time between two comparisons with the kernel",
        "a change writes what changed and nothing else, so that none has to wait; leave it out",
    ),
    refused(
        "proxy-mode",
        Kind::Text,
        "",
        "how Services are programmed",
        "it is called --service-mode here: auto, ipvs or nftables",
    ),
    refused(
        "masquerade-all",
        Kind::Bool,
        "false",
        "masquerade everything that is sent to a Service",
        "it hides clients from endpoints, and what needs masquerading is masqueraded; leave it out",
    ),
    refused(
        "iptables-masquerade-bit",
        Kind::Number,
        "14",
        "bit of the packet mark for what is masqueraded",
        "no bit of the mark is taken for that; leave it out",
    ),
    refused(
        "iptables-localhost-nodeports",
        Kind::Bool,
        "false",
        "answer on node ports of 127.0.0.1",
        "it opens services of the loopback device to neighbours (CVE-2020-8558); use an address of the node",
    ),
    refused(
        "cluster-cidr",
        Kind::Text,
        "",
        "pod network of the cluster",
        "the pod network is known from the network config; leave it out",
    ),
    refused(
        "detect-local-mode",
        Kind::Text,
        "",
        "how pods of this node are known",
        "the pods of this node are known by its subnet; leave it out",
    ),
    built(
        "hostname-override",
        Kind::Text,
        "",
        "name of this node in Services; $NODE_NAME or the host's own name when not given",
    ),
    built(
        "service-mode",
        Kind::Text,
        "auto",
        "how Services are programmed: ipvs, nftables, or auto for IPVS where the kernel has it and nftables elsewhere",
    ),
    built(
        "status-socket",
        Kind::Text,
        "/run/flannel/flanneld.sock",
        "Unix socket on which flannelctl asks for Services and connections of this node; empty for none",
    ),
    built(
        "v",
        Kind::Number,
        "0",
        "log verbosity: 0 changes that matter, 4 every step, 10 everything",
    ),
    refused(
        "vmodule",
        Kind::Text,
        "",
        "log verbosity by source file",
        "verbosity by file is not built; use -v, or RUST_LOG=<module>=debug",
    ),
    refused(
        "log_backtrace_at",
        Kind::Text,
        ":0",
        "log a backtrace at a source line",
        "backtraces by line are not built; leave it out",
    ),
    built("version", Kind::Bool, "false", "print the version and exit"),
];

/// The flag of that name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The environment variable that stands for a flag: `FLANNELD_` and the name in upper case with underscores.
pub fn variable(name: &str) -> String {
    format!("FLANNELD_{}", name.to_uppercase().replace('-', "_"))
}

/// The text of `--help`.
pub fn help() -> String {
    let mut text = String::from(
        "flanneld: gives this node a pod subnet from etcd and carries pod traffic between nodes\n\n\
         Usage: flanneld [FLAGS]\n       flanneld cleanup --help\n\n\
         Each flag is read as -flag or --flag, with its value behind = or as the next argument; true-or-false flags are\n\
         turned off only by =false. A flag that is not given is read from FLANNELD_<FLAG> in the environment.\n\n",
    );
    for flag in FLAGS {
        let default = if flag.default.is_empty() {
            String::new()
        } else {
            format!(" (default {})", flag.default)
        };
        let note = if flag.refused.is_some() {
            " [not built yet]"
        } else {
            ""
        };
        text.push_str(&format!(
            "  --{}\n        {}{default}{note}\n",
            flag.name, flag.help
        ));
    }
    text
}
