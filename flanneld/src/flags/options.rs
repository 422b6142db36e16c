//! What the flags resolve to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use flannel_model::{EtcdPrefix, IpSubnet};
use flannel_store::{EtcdOptions, Password, Secret};
use flannel_tun::offloads::Offloads;

use super::Typed;
use super::services::{ServiceSource, node_name};
use crate::services::{HostSettings, ServiceMode};

/// flanneld's settings, checked.
#[derive(Debug, Clone)]
pub struct Options {
    /// How to reach etcd.
    pub etcd: EtcdOptions,
    /// Where our keys live.
    pub prefix: EtcdPrefix,
    /// `--iface`, in order.
    pub iface: Vec<String>,
    /// `--iface-regex`, in order.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`.
    pub iface_can_reach: Option<IpAddr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// Whether a network without IPv4 may be used, although flannel has no leases for one.
    pub ipv6_only: bool,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Where subnet.env goes.
    pub subnet_file: PathBuf,
    /// Renewal happens at the latest this long before the lease ends.
    pub renew_margin: Duration,
    /// Lifetime of the lease.
    pub lease_ttl: Duration,
    /// How long a peer stays whose lease is gone.
    pub delete_hold: Duration,
    /// How long peers stay after etcd was wiped or restored.
    pub reset_grace: Duration,
    /// What outlives a reboot.
    pub state_dir: PathBuf,
    /// Holds the preshared key of the WireGuard backend.
    pub wireguard_psk_file: Option<PathBuf>,
    /// Masquerade what leaves the overlay.
    pub ip_masq: bool,
    /// Destinations that see the addresses of pods.
    pub masq_exempt: Vec<IpSubnet>,
    /// Keep a blackhole route for the own subnet.
    pub blackhole: bool,
    /// With random source ports.
    pub fully_random: bool,
    /// Accept forwarded overlay traffic.
    pub forward_rules: bool,
    /// Take encapsulated packets from peers only.
    pub encap_filter: bool,
    /// Time between two checks of the packet filter rules.
    pub nft_resync: Duration,
    /// Where the health endpoints listen; nowhere when absent.
    pub healthz: Option<SocketAddr>,
    /// Where `flannelctl` asks for Services of this node.
    pub status_socket: Option<PathBuf>,
    /// VXLAN's outer packets over IPv4 have a UDP checksum.
    pub vxlan_udp_checksum: bool,
    /// `--udp-public-port`, unless 0.
    pub udp_public_port: Option<u16>,
    /// What the udp backend asks the kernel for.
    pub udp_offloads: Offloads,
    /// Where Services come from.
    pub services: ServiceSource,
    /// How Services are programmed.
    pub service_mode: ServiceMode,
    /// Settings of the host that Services share with everything else on it.
    pub host: HostSettings,
    /// Name of this node in Services, where it is not the host's own.
    pub node_name: Option<String>,
}

impl Options {
    /// Resolves what was typed.
    ///
    /// # Errors
    /// Every value that makes no sense, one sentence each.
    pub fn resolve(typed: &Typed) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let margin = ranged(
            typed,
            "subnet-lease-renew-margin",
            1..=1439,
            "minutes",
            &mut problems,
        );
        let resync = ranged(typed, "iptables-resync", 1..=86_400, "seconds", &mut problems);
        let options = Self {
            etcd: etcd(typed, &mut problems),
            prefix: EtcdPrefix::new(&typed.text("etcd-prefix")),
            iface: typed.list("iface"),
            iface_regex: typed.list("iface-regex"),
            iface_can_reach: address(
                typed,
                "iface-can-reach",
                "an IP address such as 192.168.50.1",
                &mut problems,
            ),
            public_ip: address(
                typed,
                "public-ip",
                "an IPv4 address such as 192.168.50.11",
                &mut problems,
            ),
            ipv6_only: typed.bool("ipv6-only"),
            public_ipv6: address(
                typed,
                "public-ipv6",
                "an IPv6 address such as fd00:50::11",
                &mut problems,
            ),
            subnet_file: PathBuf::from(typed.text("subnet-file")),
            renew_margin: Duration::from_secs(margin * 60),
            lease_ttl: period(typed, "subnet-lease-ttl", 5, &mut problems),
            delete_hold: period(typed, "peer-delete-hold", 0, &mut problems),
            reset_grace: period(typed, "etcd-reset-grace", 0, &mut problems),
            state_dir: PathBuf::from(typed.text("state-dir")),
            wireguard_psk_file: typed.optional("wireguard-psk-file").map(PathBuf::from),
            ip_masq: typed.bool("ip-masq"),
            masq_exempt: subnets(typed, "ip-masq-exempt", &mut problems),
            blackhole: typed.bool("ip-blackhole-route"),
            fully_random: !typed.bool("ip-masq-fully-random-disable"),
            forward_rules: typed.bool("iptables-forward-rules"),
            encap_filter: typed.bool("encap-filter"),
            nft_resync: Duration::from_secs(resync),
            healthz: healthz(typed, &mut problems),
            status_socket: Some(typed.text("status-socket"))
                .filter(|text| !text.is_empty())
                .map(PathBuf::from),
            vxlan_udp_checksum: typed.bool("vxlan-udp-checksum"),
            udp_public_port: u16::try_from(ranged(
                typed,
                "udp-public-port",
                0..=65_535,
                "(0: no NAT)",
                &mut problems,
            ))
            .ok()
            .filter(|port| *port != 0),
            udp_offloads: udp_offloads(typed, &mut problems),
            services: ServiceSource::resolve(typed, &mut problems),
            service_mode: service_mode(typed, &mut problems),
            host: super::host::settings(typed, &mut problems),
            node_name: node_name(typed),
        };
        if problems.is_empty() {
            Ok(options)
        } else {
            Err(problems)
        }
    }
}

impl Options {
    /// The folder for what must not outlive a reboot: that of subnet.env.
    pub fn run_dir(&self) -> PathBuf {
        self.subnet_file
            .parent()
            .map_or_else(|| PathBuf::from("/run/flannel"), PathBuf::from)
    }
}

fn ranged(
    typed: &Typed,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
    unit: &str,
    problems: &mut Vec<String>,
) -> u64 {
    let given = typed.number(name);
    match u64::try_from(given).ok().filter(|value| range.contains(value)) {
        Some(value) => value,
        None => {
            problems.push(format!(
                "--{name}={given}: expected {} to {} {unit}",
                range.start(),
                range.end()
            ));
            *range.start()
        }
    }
}

/// A time with its unit, such as 90s; at least `least` seconds, and at most a year.
fn period(typed: &Typed, name: &str, least: u64, problems: &mut Vec<String>) -> Duration {
    const YEAR: u64 = 365 * 86_400;
    let text = typed.text(name);
    let unit = |text: &str| match text {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(86_400),
        _ => None,
    };
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, rest) = text.split_at(digits);
    let seconds = number
        .parse::<u64>()
        .ok()
        .zip(unit(rest))
        .and_then(|(number, unit)| number.checked_mul(unit))
        .filter(|seconds| (least..=YEAR).contains(seconds));
    if seconds.is_none() {
        problems.push(format!(
            "--{name}={text:?}: expected a time of at least {least}s with its unit, such as 90s, 30m or 24h"
        ));
    }
    Duration::from_secs(seconds.unwrap_or(least))
}

/// Ranges, one or several joined by commas each time that the flag is given.
fn subnets(typed: &Typed, name: &str, problems: &mut Vec<String>) -> Vec<IpSubnet> {
    let mut ranges = Vec::new();
    for text in typed.list(name).iter().flat_map(|list| list.split(',')) {
        match text.trim().parse() {
            Ok(range) => ranges.push(range),
            Err(_) => problems.push(format!(
                "--{name}={text:?}: expected a range such as 192.168.0.0/16"
            )),
        }
    }
    ranges
}

fn address<A: std::str::FromStr>(
    typed: &Typed,
    name: &str,
    expected: &str,
    problems: &mut Vec<String>,
) -> Option<A> {
    let text = typed.optional(name)?;
    let address = text.parse().ok();
    if address.is_none() {
        problems.push(format!("--{name}={text:?}: expected {expected}"));
    }
    address
}

fn healthz(typed: &Typed, problems: &mut Vec<String>) -> Option<SocketAddr> {
    let port = u16::try_from(ranged(typed, "healthz-port", 0..=65_535, "(a port)", problems)).unwrap_or(0);
    let text = typed.text("healthz-ip");
    match text.parse::<IpAddr>() {
        Ok(address) => Some(SocketAddr::new(address, port)).filter(|_| port != 0),
        Err(_) => {
            problems.push(format!("--healthz-ip={text:?}: expected an IP address"));
            None
        }
    }
}

fn udp_offloads(typed: &Typed, problems: &mut Vec<String>) -> Offloads {
    typed.text("udp-offloads").parse().unwrap_or_else(|error| {
        problems.push(format!("--udp-offloads: {error}"));
        Offloads::NONE
    })
}

fn service_mode(typed: &Typed, problems: &mut Vec<String>) -> ServiceMode {
    match typed.text("service-mode").as_str() {
        "auto" => ServiceMode::Auto,
        "ipvs" => ServiceMode::Ipvs,
        "nftables" => ServiceMode::Nftables,
        other => {
            problems.push(format!(
                "--service-mode={other:?}: expected auto, ipvs or nftables"
            ));
            ServiceMode::Auto
        }
    }
}

fn etcd(typed: &Typed, problems: &mut Vec<String>) -> EtcdOptions {
    let endpoints = EtcdOptions::endpoint_list(&typed.text("etcd-endpoints"));
    let path = |name: &str| typed.optional(name).map(PathBuf::from);
    let options = EtcdOptions {
        endpoints,
        ca_file: path("etcd-cafile"),
        cert_file: path("etcd-certfile"),
        key_file: path("etcd-keyfile"),
        username: typed.optional("etcd-username"),
        password: password(typed, problems),
        insecure: typed.bool("etcd-insecure"),
    };
    problems.extend(options.endpoint_problems());
    options
}

fn password(typed: &Typed, problems: &mut Vec<String>) -> Option<Password> {
    let text = typed.optional("etcd-password");
    let file = typed.optional("etcd-password-file").map(PathBuf::from);
    if text.is_some() && file.is_some() {
        problems.push("--etcd-password and --etcd-password-file are both given: leave one out".into());
    }
    let text = text.map(|text| Password::Text(Secret::new(text)));
    file.map(Password::File).or(text)
}

#[cfg(test)]
mod tests {
    use super::super::{Parsed, parse};
    use super::*;

    fn resolve(args: &[&str]) -> Result<Options, Vec<String>> {
        let args: Vec<String> = args.iter().map(|&a| a.into()).collect();
        match parse(&args, |_| None)? {
            Parsed::Run(typed) => Options::resolve(&typed),
            Parsed::Help => panic!("help"),
        }
    }

    #[test]
    fn defaults_are_flannels() {
        let options = resolve(&[]).unwrap();
        assert_eq!(
            options.etcd.endpoints,
            ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]
        );
        assert_eq!(options.prefix.config(), "/coreos.com/network/config");
        assert_eq!(options.renew_margin, Duration::from_secs(3_600));
        assert_eq!(options.healthz, None);
        assert!(!options.ip_masq && options.fully_random && options.forward_rules);
    }

    #[test]
    fn ranges_are_joined_or_repeated() {
        let options = resolve(&[
            "--ip-masq-exempt=192.168.0.0/16, fd00:9::/48",
            "--ip-masq-exempt=10.9.0.0/24",
        ])
        .unwrap();
        let shown: Vec<String> = options.masq_exempt.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.168.0.0/16", "fd00:9::/48", "10.9.0.0/24"]);
        for bad in ["10.9.0.0", "10.9.0.0/33", "", "here"] {
            let problems = resolve(&[&format!("--ip-masq-exempt={bad}")]).unwrap_err();
            assert!(problems[0].contains("--ip-masq-exempt"), "{problems:?}");
        }
    }

    #[test]
    fn every_bad_value_is_named() {
        let problems = resolve(&[
            "--subnet-lease-renew-margin=1440",
            "--public-ip=fd00::1",
            "--public-ipv6=192.168.50.11",
            "--iface-can-reach=there",
            "--healthz-port=70000",
            "--healthz-ip=here",
            "--service-source=consul",
            "--etcd-endpoints=ftp://a:1,http://10.0.0.1:2379",
            "--etcd-password=x",
            "--etcd-password-file=/y",
        ])
        .unwrap_err();
        assert_eq!(problems.len(), 10, "{problems:?}");
    }

    #[test]
    fn plain_http_to_another_host_needs_leave() {
        let problems = resolve(&["--etcd-endpoints=http://10.0.0.1:2379"]).unwrap_err();
        assert!(problems[0].contains("--etcd-insecure"), "{problems:?}");
        assert!(resolve(&["--etcd-endpoints=http://10.0.0.1:2379", "--etcd-insecure"]).is_ok());
        assert!(resolve(&["--etcd-endpoints=10.0.0.1:2379", "--etcd-cafile=/etc/ca.pem"]).is_ok());
    }

    #[test]
    fn the_password_is_in_no_debug_text() {
        let options = resolve(&["--etcd-username=u", "--etcd-password=hunter2"]).unwrap();
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
