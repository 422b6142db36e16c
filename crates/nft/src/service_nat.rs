//! The table that carries Services on kernels without IPVS, as far as it does not depend on the Services: sets and maps without
//! their elements, and the chains that lead to those that draw an endpoint.
//!
//! Every rule is one that the `nft` program can express, so that `nft list ruleset` goes on to work for everybody.

use std::collections::BTreeSet;
use std::fmt::Write;

use flannel_model::IpSubnet;
use flannel_plan::nft::{AFFINITY, NftSet};

use crate::masquerade::masquerade_statements;
use crate::table::{Family, Table, TableName};

/// Where new connections are translated: before the chains of others at the usual place for it (dstnat, -100), so that a hostPort
/// rule that takes a port at any address does not take it away from Services (CVE-2019-9946).
const NAT: i32 = -105;
/// What was not translated is refused right behind them.
const GUARD: i32 = -95;
/// Before the usual place for source translation (srcnat, 100), where flannel's own masquerading is.
const MASQUERADE: i32 = 95;
/// Behind filters (filter, 0) and source translation (srcnat, 100): what is counted is on its way.
const COUNT: i32 = 150;
/// Clients that can be remembered at once; the memory is taken only as they come.
const CLIENTS: u32 = 1 << 20;

/// What the rules are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceNat {
    /// Address family.
    pub family: Family,
    /// Whether source ports are chosen at random.
    pub fully_random: bool,
    /// The pods of this node, where the packet filter does not see frames between them: an answer must be sent to the node then.
    pub bridged: Option<IpSubnet>,
}

impl ServiceNat {
    /// The table's name in its family.
    pub fn name(&self) -> TableName {
        match self.family {
            Family::Ip => TableName::SERVICE_NAT,
            Family::Ip6 => TableName::SERVICE_NAT6,
        }
    }

    /// Sets, maps and empty chains. Its hash changes with what cannot be changed in a table that stands.
    fn declarations(&self) -> String {
        let mut out = String::new();
        for set in NftSet::ALL {
            let _ = writeln!(out, "  {}", self.declare(set));
        }
        let address = self.address();
        let _ = writeln!(
            out,
            "  map {AFFINITY} {{ type {address} . {address} . inet_proto . inet_service : {address} . inet_service; size {CLIENTS}; flags dynamic,timeout; }}"
        );
        for chain in [
            "services",
            "outside",
            "guard",
            "guard-outside",
            "refuse",
            "remember",
            "source",
            "masquerade-all",
            "masquerade-node",
            "carried",
            "carried-received",
            "carried-sent",
        ] {
            let _ = writeln!(out, "  chain {chain} {{ }}");
        }
        for (chain, kind, hook, priority) in BASE_CHAINS {
            let _ = writeln!(
                out,
                "  chain {chain} {{ type {kind} hook {hook} priority {priority}; policy accept; }}"
            );
        }
        out
    }

    fn declare(&self, set: NftSet) -> String {
        let (name, ip, address) = (set.name(), self.ip(), self.address());
        let at = format!("{address} . inet_proto . inet_service");
        let endpoint = format!("{ip} daddr . th dport");
        match set {
            NftSet::Cidrs | NftSet::Pods => format!("set {name} {{ type {address}; flags interval; }}"),
            NftSet::NodeAddresses => format!("set {name} {{ type {address}; }}"),
            NftSet::Hairpin => format!("set {name} {{ type {address} . {address}; }}"),
            NftSet::Frontends | NftSet::FrontendsOutside => {
                format!("map {name} {{ type {at} : verdict; counter; }}")
            }
            NftSet::External | NftSet::Affine => format!("map {name} {{ type {at} : verdict; }}"),
            NftSet::NodePorts | NftSet::NodePortsOutside => {
                format!("map {name} {{ type inet_proto . inet_service : verdict; counter; }}")
            }
            NftSet::ExternalPorts | NftSet::AffinePorts => {
                format!("map {name} {{ type inet_proto . inet_service : verdict; }}")
            }
            NftSet::Received | NftSet::Sent => format!("set {name} {{ type {at}; counter; }}"),
            NftSet::ReceivedPorts | NftSet::SentPorts => {
                format!("set {name} {{ type inet_proto . inet_service; counter; }}")
            }
            NftSet::Backends => format!(
                "map {name} {{ typeof {ip} daddr . meta l4proto . th dport . numgen random mod 65536 : {endpoint}; }}"
            ),
            NftSet::NodePortBackends => format!(
                "map {name} {{ typeof meta l4proto . th dport . numgen random mod 65536 : {endpoint}; }}"
            ),
            NftSet::Refused | NftSet::RefusedOutside | NftSet::Restricted => {
                format!("set {name} {{ type {at}; }}")
            }
            NftSet::RefusedPorts | NftSet::RefusedPortsOutside => {
                format!("set {name} {{ type inet_proto . inet_service; }}")
            }
            NftSet::Allowed => format!("set {name} {{ type {at} . {address}; flags interval; }}"),
        }
    }

    /// The table without rules: what its hash is taken of.
    pub fn table(&self) -> Table {
        Table::new(self.name(), self.declarations())
    }

    /// Commands that bring the rules to what they should be, in a table that stands or in a new one. Elements stay.
    pub fn script(&self) -> String {
        let name = self.name();
        let mut out = self.table().declaration();
        let rules = self.rules();
        for (chain, _) in &rules {
            let _ = writeln!(out, "add chain {name} {chain}\nflush chain {name} {chain}");
        }
        for (chain, rules) in &rules {
            for rule in rules {
                let _ = writeln!(out, "add rule {name} {chain} {rule}");
            }
        }
        out
    }

    /// Commands that remove chains, which no element may name any more.
    pub fn delete_chains<'a>(&self, chains: impl IntoIterator<Item = &'a str>) -> String {
        let name = self.name();
        let lines = chains
            .into_iter()
            .map(|chain| format!("flush chain {name} {chain}\ndelete chain {name} {chain}\n"));
        lines.collect()
    }

    /// Names of all chains that [`Self::script`] writes rules into.
    pub fn chain_names(&self) -> BTreeSet<String> {
        self.rules().into_iter().map(|(name, _)| name).collect()
    }

    fn rules(&self) -> Vec<(String, Vec<String>)> {
        let chain = |name: &str, rules: Vec<String>| (name.to_owned(), rules);
        let mut out = vec![
            chain(
                "refuse",
                vec!["meta l4proto tcp reject with tcp reset".into(), "reject".into()],
            ),
            chain("services", self.services()),
            chain("outside", self.outside()),
            chain("guard", self.guard()),
            chain("guard-outside", self.guard_outside()),
            chain("remember", self.remember()),
            chain("source", self.source()),
            chain("masquerade-all", self.masquerade("")),
            chain("masquerade-node", self.masquerade("fib saddr type local ")),
        ];
        let ip = self.ip();
        let from_outside = format!("{ip} saddr != @pods fib saddr type != local");
        out.extend([
            chain(
                "nat-prerouting",
                vec![format!("{from_outside} jump outside"), "jump services".into()],
            ),
            chain("nat-output", vec!["jump services".into()]),
            chain(
                "guard-prerouting",
                vec![
                    format!("ct state new {from_outside} jump guard-outside"),
                    "ct state new jump guard".into(),
                ],
            ),
            chain("guard-output", vec!["ct state new jump guard".into()]),
            chain("postrouting", vec!["ct status dnat jump source".into()]),
            chain(
                "carried",
                vec![
                    "ct direction original goto carried-received".into(),
                    "goto carried-sent".into(),
                ],
            ),
            chain("carried-received", self.count("received", "received-ports")),
            chain("carried-sent", self.count("sent", "sent-ports")),
            chain("count-postrouting", vec!["ct status dnat jump carried".into()]),
            // what comes over the loopback device has been counted as it left
            chain(
                "count-input",
                vec!["ct status dnat iif != lo jump carried".into()],
            ),
        ]);
        out
    }

    /// The order of the first two matters: a frontend that only some may use is closed to the rest whoever answers it.
    fn services(&self) -> Vec<String> {
        let (at, node) = (self.at(), self.to_node());
        vec![
            self.restricted(),
            format!("{at} vmap @frontends"),
            format!("{node} {PORT} vmap @node-ports"),
        ]
    }

    /// The protocol is read from the packet here: nft would turn the bytes of `meta l4proto` around for a set of ranges, which
    /// kernels of late refuse for a field of one byte. A packet with extension headers before its protocol is dropped.
    fn restricted(&self) -> String {
        let (at, ip) = (self.at(), self.ip());
        let protocol = match self.family {
            Family::Ip => "ip protocol",
            Family::Ip6 => "ip6 nexthdr",
        };
        format!("{at} @restricted {ip} daddr . {protocol} . th dport . {ip} saddr != @allowed drop")
    }

    fn outside(&self) -> Vec<String> {
        let (at, node) = (self.at(), self.to_node());
        vec![
            self.restricted(),
            format!("{at} vmap @frontends-outside"),
            format!("{node} {PORT} vmap @node-ports-outside"),
        ]
    }

    fn guard(&self) -> Vec<String> {
        let (at, ip, node) = (self.at(), self.ip(), self.to_node());
        vec![
            "ct status dnat goto remember".into(),
            format!("{ip} daddr @cidrs goto refuse"),
            format!("{at} @refused goto refuse"),
            format!("{node} {PORT} @refused-ports goto refuse"),
        ]
    }

    fn guard_outside(&self) -> Vec<String> {
        let (at, node) = (self.at(), self.to_node());
        vec![
            "ct status dnat return".into(),
            format!("{at} @refused-outside goto refuse"),
            format!("{node} {PORT} @refused-ports-outside goto refuse"),
        ]
    }

    /// Once for each protocol: nft takes the port of a tracked packet for a number only behind a match of its protocol.
    fn of_tracked(&self, by_address: &str, by_port: &str) -> Vec<String> {
        self.matched(&format!("vmap @{by_address}"), &format!("vmap @{by_port}"))
    }

    /// The elements count what meets them.
    fn count(&self, by_address: &str, by_port: &str) -> Vec<String> {
        self.matched(&format!("@{by_address} return"), &format!("@{by_port} return"))
    }

    /// What a tracked packet was sent to at first, looked up: among frontends by address, then among node ports.
    fn matched(&self, by_address: &str, by_port: &str) -> Vec<String> {
        let ip = self.ip();
        PROTOCOLS
            .iter()
            .flat_map(|protocol| {
                [
                    format!(
                        "meta l4proto {protocol} ct original {ip} daddr . meta l4proto . ct original proto-dst {by_address}"
                    ),
                    format!(
                        "ct original {ip} daddr @node-addresses meta l4proto {protocol} meta l4proto . ct original proto-dst {by_port}"
                    ),
                ]
            })
            .collect()
    }

    fn remember(&self) -> Vec<String> {
        self.of_tracked("affine", "affine-ports")
    }

    /// Hosts and outsiders get the node's own address, so that the answer comes back through it; and a pod that reaches itself,
    /// which would otherwise get an answer from its own address.
    fn source(&self) -> Vec<String> {
        let ip = self.ip();
        let mut out = vec![format!("{ip} saddr . {ip} daddr @hairpin goto masquerade-all")];
        out.extend(
            self.bridged
                .iter()
                .map(|pods| format!("{ip} saddr {pods} {ip} daddr {pods} goto masquerade-all")),
        );
        out.push(format!("{ip} saddr @pods return"));
        out.push(format!("ct original {ip} daddr @cidrs goto masquerade-all"));
        out.extend(self.of_tracked("external", "external-ports"));
        out
    }

    fn masquerade(&self, whom: &str) -> Vec<String> {
        let statements = masquerade_statements(self.fully_random).iter();
        statements.map(|statement| format!("{whom}{statement}")).collect()
    }

    fn ip(&self) -> Family {
        self.family
    }

    fn address(&self) -> &'static str {
        match self.family {
            Family::Ip => "ipv4_addr",
            Family::Ip6 => "ipv6_addr",
        }
    }

    /// What a frontend is found by.
    fn at(&self) -> String {
        format!("{} daddr . {PORT}", self.ip())
    }

    /// CVE-2025-67499: a rule for node ports is for addresses of the node alone.
    fn to_node(&self) -> String {
        format!("fib daddr type local {} daddr @node-addresses", self.ip())
    }
}

/// What a node port is found by.
const PORT: &str = "meta l4proto . th dport";
/// What Services can be of.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
const BASE_CHAINS: [(&str, &str, &str, i32); 7] = [
    ("nat-prerouting", "nat", "prerouting", NAT),
    ("nat-output", "nat", "output", NAT),
    ("guard-prerouting", "filter", "prerouting", GUARD),
    ("guard-output", "filter", "output", GUARD),
    ("postrouting", "nat", "postrouting", MASQUERADE),
    ("count-postrouting", "filter", "postrouting", COUNT),
    ("count-input", "filter", "input", COUNT),
];
