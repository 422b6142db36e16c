//! What Services do on the wire, across nodes and over the overlay, in both families: each check through nftables and through
//! IPVS. Checks that get along with each other share one lab.

mod ask;
mod change;
mod choose;
mod city;
mod reach;
mod survive;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use flannel_lab::Node;

use crate::runner::Case;
use city::City;

/// Which programmer a case runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// nftables, on any kernel.
    Nftables,
    /// IPVS, in the guest where this machine's kernel has none.
    Ipvs,
}

impl Mode {
    fn flag(self) -> &'static str {
        match self {
            Self::Nftables => "--service-mode=nftables",
            Self::Ipvs => "--service-mode=ipvs",
        }
    }

    /// The endpoints that `node` has for `10.96.0.10:80` and the like.
    fn endpoints(self, node: &Node, protocol: &str, at: &str) -> Result<BTreeSet<SocketAddr>> {
        match self {
            Self::Nftables => of_nftables(node, protocol, at),
            Self::Ipvs => of_ipvs(node, protocol, at),
        }
    }

    /// Whose endpoint `node` remembers, for who wants to know why a client met another one.
    fn remembered(self, node: &Node) -> Result<String> {
        match self {
            Self::Nftables => node.run(&["nft", "list", "ruleset"]),
            Self::Ipvs => node.run(&["ipvsadm", "-Lnc"]),
        }
    }
}

/// Something that holds for Services.
type Check = (&'static str, fn(&City) -> Result<()>);

/// Checks under their names.
macro_rules! checks {
    ($($topic:ident::$name:ident),* $(,)?) => {
        &[$((stringify!($name), $topic::$name)),*]
    };
}

const REACH: &[Check] = checks![
    reach::everybody_reaches_a_service,
    reach::what_nobody_answers_is_refused_at_once,
    reach::node_ports_answer_outside,
    reach::external_addresses_answer_whom_they_may,
    reach::an_endpoint_reaches_itself,
];
/// What depends on the backend.
const OF_BACKEND: &[Check] = checks![reach::an_endpoint_reaches_itself];
const CHOOSE: &[Check] = checks![
    choose::internal_policy_local_stays_on_the_node,
    choose::hints_keep_traffic_near,
    choose::endpoints_on_their_way_out_serve_where_none_is_ready,
    choose::endpoints_that_are_not_ready_serve_where_that_is_wanted,
    choose::clients_keep_their_endpoint,
    choose::clients_are_forgotten_after_their_time,
    choose::health_checks_tell_where_endpoints_are,
    reach::connections_are_spread_as_asked_for,
];
const CHANGE: &[Check] = checks![
    change::udp_goes_on_when_its_endpoint_is_replaced,
    change::open_connections_outlive_the_choice_of_their_endpoint,
    change::a_drain_ends,
    change::flapping_endpoints_end_in_the_exact_state,
];
const SURVIVE: &[Check] = checks![
    survive::two_hundred_connections_survive_a_crash,
    survive::what_others_delete_comes_back,
];
/// Few machines have SCTP and IPVS, the guest does.
const IN_THE_GUEST: &[Check] = checks![
    survive::two_hundred_connections_survive_a_crash,
    survive::what_others_delete_comes_back,
    reach::sctp_is_a_protocol_like_others,
    survive::the_other_programmer_takes_over,
];

/// Every case: through nftables on any kernel, and through IPVS where there is one.
pub fn cases() -> Vec<Case> {
    vec![
        Case::plain("services_nftables::reach", || run(Mode::Nftables, REACH)),
        Case::plain("services_nftables::choose", || run(Mode::Nftables, CHOOSE)),
        Case::plain("services_nftables::change", || run(Mode::Nftables, CHANGE)),
        Case::plain("services_nftables::survive", || run(Mode::Nftables, SURVIVE)),
        Case::plain("services_nftables::over_host_gw", || {
            run_over("host-gw", Mode::Nftables, OF_BACKEND)
        }),
        Case::plain("services_nftables::over_udp", || {
            run_over("udp", Mode::Nftables, OF_BACKEND)
        }),
        Case::ipvs("services_ipvs::reach", || run(Mode::Ipvs, REACH)),
        Case::ipvs("services_ipvs::choose", || run(Mode::Ipvs, CHOOSE)),
        Case::ipvs("services_ipvs::change", || run(Mode::Ipvs, CHANGE)),
        Case::ipvs("services_ipvs::survive", || run(Mode::Ipvs, IN_THE_GUEST)),
    ]
}

/// Runs checks one after the other in one city. One that fails does not keep the others from being made.
fn run(mode: Mode, checks: &[Check]) -> Result<()> {
    run_over("vxlan", mode, checks)
}

fn run_over(backend: &str, mode: Mode, checks: &[Check]) -> Result<()> {
    let start = Instant::now();
    let city = City::open(mode, backend)?;
    println!("city: {:.1} s", start.elapsed().as_secs_f64());
    let mut failed = Vec::new();
    for (name, check) in checks {
        let start = Instant::now();
        let result = check(&city);
        println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
        if let Err(error) = result {
            println!("{name}: FAILED: {error:#}");
            failed.push(*name);
        }
        city.clear()?;
    }
    ensure!(failed.is_empty(), "failed (above): {}", failed.join(", "));
    Ok(())
}

/// `10.96.0.10 . tcp . 80 . 0 : 10.5.1.2 . 8080`
fn of_nftables(node: &Node, protocol: &str, at: &str) -> Result<BTreeSet<SocketAddr>> {
    let at: SocketAddr = at.parse()?;
    let family = if at.is_ipv4() { "ip" } else { "ip6" };
    let listing = node.run(&["nft", "list", "map", family, "flannel-services-nat", "backends"])?;
    let begin = format!("{} . {protocol} . {} . ", at.ip(), at.port());
    let elements = listing.split([',', '{', '}', '\n']).map(str::trim);
    let endpoint = |e: &str| {
        let (_, endpoint) = e.strip_prefix(begin.as_str())?.split_once(" : ")?;
        let (ip, port) = endpoint.split_once(" . ")?;
        Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
    };
    Ok(elements.filter_map(endpoint).collect())
}

fn of_ipvs(node: &Node, protocol: &str, at: &str) -> Result<BTreeSet<SocketAddr>> {
    let table = node.run(&["ipvsadm", "-Ln"])?;
    let mut lines = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let title = [&protocol.to_uppercase(), at];
    lines
        .find(|words| words.starts_with(&title))
        .with_context(|| format!("no {title:?} in:\n{table}"))?;
    let real = lines.take_while(|words| words.first() == Some(&"->"));
    // weight 0 takes no new connections
    let taking = real.filter(|words| words.get(3) != Some(&"0"));
    taking
        .map(|words| words[1].parse().context("no address"))
        .collect()
}
