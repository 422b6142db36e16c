//! What Services do on the wire, across nodes and over the overlay: each case once through nftables and once through IPVS.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::held::{self, Held};
use flannel_lab::{
    Environment, Flanneld, Lab, LabOptions, Node, Pinger, Place, Pod, Process, eventually, limit, pod,
};
use serde_json::{Value, json};

use super::common::{await_ping, start_all};
use crate::runner::Case;

const SERVICES: &str = "/coreos.com/network/services/v1";
const VIP: &str = "10.96.0.10";
/// Where the pods' responders listen.
const PORT: u16 = 8080;
/// Where their servers of lines listen.
const LINES: u16 = 8081;
const OUTSIDE: &str = flannel_lab::lab::OUTSIDE_ADDRESS;

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

    /// The endpoints that `node` has for `10.96.0.10:80` and the like, in order.
    fn endpoints(self, node: &Node, protocol: &str, at: &str) -> Result<BTreeSet<String>> {
        match self {
            Self::Nftables => of_nftables(node, protocol, at),
            Self::Ipvs => of_ipvs(node, protocol, at),
        }
    }
}

/// A case under the name of its mode.
macro_rules! through {
    ($kind:ident $topic:literal $mode:ident: $($name:ident),* $(,)?) => {
        [$(Case::$kind(concat!($topic, "::", stringify!($name)), || $name(Mode::$mode))),*]
    };
}

/// Every case: through nftables on any kernel, and through IPVS where there is one. Few machines have SCTP, the guest does.
pub fn cases() -> Vec<Case> {
    let nftables = through![plain "services_nftables" Nftables:
        everybody_reaches_a_service,
        connections_are_spread_as_asked_for,
        what_nobody_answers_is_refused_at_once,
        node_ports_answer_outside,
        external_addresses_answer_whom_they_may,
        internal_policy_local_stays_on_the_node,
        clients_keep_their_endpoint,
        udp_goes_on_when_its_endpoint_is_replaced,
        open_connections_outlive_the_choice_of_their_endpoint,
        two_hundred_connections_survive_a_crash,
        what_others_delete_comes_back,
        flapping_endpoints_end_in_the_exact_state,
    ];
    let ipvs = through![ipvs "services_ipvs" Ipvs:
        everybody_reaches_a_service,
        two_hundred_connections_survive_a_crash,
    ];
    let sctp = through![ipvs "services_nftables" Nftables: sctp_is_a_protocol_like_others];
    nftables.into_iter().chain(ipvs).chain(sctp).collect()
}

/// `10.96.0.10 . tcp . 80 . 0 : 10.5.1.2 . 8080`
fn of_nftables(node: &Node, protocol: &str, at: &str) -> Result<BTreeSet<String>> {
    let (ip, port) = at.rsplit_once(':').context("no port")?;
    let listing = node.run(&["nft", "list", "map", "ip", "flannel-services-nat", "backends"])?;
    let begin = format!("{ip} . {protocol} . {port} . ");
    let elements = listing.split([',', '{', '}', '\n']).map(str::trim);
    let endpoint = |e: &str| {
        let (_, endpoint) = e.strip_prefix(begin.as_str())?.split_once(" : ")?;
        Some(endpoint.replace(" . ", ":"))
    };
    Ok(elements.filter_map(endpoint).collect())
}

fn of_ipvs(node: &Node, protocol: &str, at: &str) -> Result<BTreeSet<String>> {
    let table = node.run(&["ipvsadm", "-Ln"])?;
    let mut lines = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let title = [&protocol.to_uppercase(), at];
    lines
        .find(|words| words.starts_with(&title))
        .with_context(|| format!("no {title:?} in:\n{table}"))?;
    let real = lines.take_while(|words| words.first() == Some(&"->"));
    // weight 0 takes no new connections
    Ok(real
        .filter(|words| words.get(3) != Some(&"0"))
        .map(|words| words[1].to_owned())
        .collect())
}

/// Two nodes with pods that serve: `near` on the first, where the client is, and `far` on the second.
struct City {
    mode: Mode,
    lab: Lab,
    daemons: Vec<Flanneld>,
    client: Pod,
    near: Pod,
    far: Pod,
    _servers: Vec<Process>,
}

impl City {
    fn open(mode: Mode) -> Result<Self> {
        let lab = Lab::new(&LabOptions::nodes(2))?;
        let daemons = start_all(&lab, &["--ip-masq", mode.flag()])?;
        let client = lab.node(1)?.add_pod("client")?;
        let (near, far) = (lab.node(1)?.add_pod("near")?, lab.node(2)?.add_pod("far")?);
        let mut servers = Vec::new();
        for pod in [&near, &far] {
            servers.push(pod.respond(PORT)?);
            servers.push(held::echo(pod, pod.name(), LINES)?);
            await_ping(&client, pod.ip())?;
        }
        let city = Self {
            mode,
            lab,
            daemons,
            client,
            near,
            far,
            _servers: servers,
        };
        city.put("config", &json!({"cidrs": ["10.96.0.0/16"], "externalCidrs": ["203.0.113.0/24"], "nodePortAddresses": ["192.168.50.0/24"]}))?;
        Ok(city)
    }

    fn put(&self, key: &str, value: &Value) -> Result<()> {
        self.lab
            .etcd()
            .put(&format!("{SERVICES}/{key}"), value.to_string())
    }

    /// A Service with the ports http (TCP 80), query (UDP 53) and lines (TCP 81), and what `more` says.
    fn service(&self, name: &str, cluster_ip: &str, more: Value) -> Result<()> {
        let mut spec = json!({"clusterIP": cluster_ip, "ports": [
            {"name": "http", "port": 80},
            {"name": "query", "port": 53, "protocol": "UDP"},
            {"name": "lines", "port": 81}]});
        let (Some(spec_fields), Value::Object(more)) = (spec.as_object_mut(), more) else {
            anyhow::bail!("no object");
        };
        spec_fields.extend(more);
        self.put(&format!("spec/shop/{name}"), &spec)
    }

    fn endpoints(&self, service: &str, pods: &[&Pod]) -> Result<()> {
        let endpoints: Vec<Value> = pods.iter().map(|p| json!({"addresses": [p.ip()]})).collect();
        let slice = json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [
            {"name": "http", "port": PORT},
            {"name": "query", "port": PORT, "protocol": "UDP"},
            {"name": "lines", "port": LINES}]});
        self.put(&format!("slices/shop/{service}/lab"), &slice)
    }

    /// The Service `web` at [`VIP`] with both pods, programmed on both nodes.
    fn open_shop(mode: Mode) -> Result<Self> {
        let city = Self::open(mode)?;
        city.service("web", VIP, json!({}))?;
        city.endpoints("web", &[&city.near, &city.far])?;
        city.await_endpoints(&[&city.near, &city.far])?;
        Ok(city)
    }

    /// Waits until every node has exactly these pods for all ports of `web`.
    fn await_endpoints(&self, pods: &[&Pod]) -> Result<()> {
        for (protocol, port, target) in [("tcp", 80, PORT), ("udp", 53, PORT), ("tcp", 81, LINES)] {
            let expected: BTreeSet<String> = pods.iter().map(|p| format!("{}:{target}", p.ip())).collect();
            for node in self.lab.nodes() {
                eventually(limit(20), &format!("endpoints on {}", node.name()), || {
                    let seen = self.mode.endpoints(node, protocol, &format!("{VIP}:{port}"))?;
                    ensure!(
                        seen == expected,
                        "{protocol} {port}: {seen:?}, expected {expected:?}"
                    );
                    Ok(())
                })?;
            }
        }
        Ok(())
    }
}

/// Who answered, and whom it saw, as often as asked. Every answer must come.
fn answers(place: &Place, protocol: &str, address: &str, count: usize) -> Result<Vec<(String, String)>> {
    let answers = pod::ask(place, protocol, address, count)?;
    let read = |answer: Result<String, String>| {
        let answer = answer.map_err(anyhow::Error::msg)?;
        let mut words = answer.split(' ').map(str::to_owned);
        Ok((words.next().unwrap_or_default(), words.next().unwrap_or_default()))
    };
    let answers: Result<Vec<_>> = answers.into_iter().map(read).collect();
    let answers = answers.with_context(|| format!("{protocol} {address} asked from {}", place.name()))?;
    ensure!(
        answers.len() == count,
        "{} answers to {count} questions",
        answers.len()
    );
    Ok(answers)
}

/// How often each server answered.
fn shares(place: &Place, protocol: &str, address: &str, count: usize) -> Result<BTreeMap<String, usize>> {
    let mut shares = BTreeMap::new();
    for (server, _) in answers(place, protocol, address, count)? {
        *shares.entry(server).or_default() += 1;
    }
    Ok(shares)
}

fn await_answer(place: &Place, protocol: &str, address: &str) -> Result<()> {
    let what = format!("an answer of {protocol} {address} in {}", place.name());
    eventually(limit(20), &what, || {
        answers(place, protocol, address, 1).map(drop)
    })
}

/// Enough questions for both servers to have answered, but for one case in a thousand million.
const MANY: usize = 32;

fn check_reaches(place: &Place, protocol: &str, address: &str, expected: &[&Pod]) -> Result<()> {
    let seen: BTreeSet<String> = shares(place, protocol, address, MANY)?.into_keys().collect();
    let expected: BTreeSet<String> = expected.iter().map(|p| p.name().to_owned()).collect();
    ensure!(
        seen == expected,
        "{protocol} {address} asked from {}: {seen:?} answered, expected {expected:?}",
        place.name()
    );
    Ok(())
}

fn check_fails(place: &Place, protocol: &str, address: &str, how: &str) -> Result<()> {
    let answer = pod::ask(place, protocol, address, 1)?;
    let fits = matches!(answer.as_slice(), [Err(error)] if error.contains(how));
    ensure!(
        fits,
        "{protocol} {address} asked from {}: {answer:?}, expected {how:?}",
        place.name()
    );
    Ok(())
}

pub fn everybody_reaches_a_service(mode: Mode) -> Result<()> {
    let city = City::open_shop(mode)?;
    let both = [&city.near, &city.far];
    let nodes = city.lab.nodes();
    // the servers are clients, too, of each other and of themselves
    let places: [&Place; 5] = [&city.client, &city.near, &city.far, &nodes[0], &nodes[1]];
    for (protocol, port) in [("tcp", 80), ("udp", 53)] {
        let address = format!("{VIP}:{port}");
        for place in places {
            await_answer(place, protocol, &address)?;
            check_reaches(place, protocol, &address, &both)?;
        }
        // pods are seen as who they are
        for (_, source) in answers(&city.client, protocol, &address, MANY)? {
            assert_eq!(source, city.client.ip(), "{protocol}");
        }
    }
    Ok(())
}

pub fn connections_are_spread_as_asked_for(mode: Mode) -> Result<()> {
    let city = City::open(mode)?;
    for (name, ip, scheduler) in [
        ("even", VIP, "rr"),
        ("weighted", "10.96.0.11", "wrr"),
        ("sticky", "10.96.0.12", "sh"),
    ] {
        city.service(name, ip, json!({"scheduler": scheduler}))?;
        for (pod, weight) in [(&city.near, 1), (&city.far, 3)] {
            city.put(
                &format!("endpoints/shop/{name}/http/{}:{PORT}", pod.ip()),
                &json!({"weight": weight}),
            )?;
        }
    }
    let connections = |ip: &str| -> Result<[usize; 2]> {
        let address = format!("{ip}:80");
        await_answer(&city.client, "tcp", &address)?;
        eventually(limit(20), "both endpoints", || {
            let seen = mode.endpoints(city.lab.node(1)?, "tcp", &address)?;
            ensure!(seen.len() == 2, "{seen:?}");
            Ok(())
        })?;
        let shares = shares(&city.client, "tcp", &address, 1000)?;
        Ok(["near", "far"].map(|name| shares.get(name).copied().unwrap_or_default()))
    };
    // five standard deviations of a binomial distribution of 1000: 79 for a half, 69 for a quarter
    let [near, far] = connections(VIP)?;
    ensure!(
        near.abs_diff(500) < 79 && near + far == 1000,
        "rr: {near} and {far}"
    );
    let [near, far] = connections("10.96.0.11")?;
    ensure!(
        near.abs_diff(250) < 69 && near + far == 1000,
        "wrr 1:3: {near} and {far}"
    );
    let [near, far] = connections("10.96.0.12")?;
    ensure!(near.max(far) == 1000, "sh: {near} and {far}");
    Ok(())
}

pub fn what_nobody_answers_is_refused_at_once(mode: Mode) -> Result<()> {
    let city = City::open_shop(mode)?;
    city.service("empty", "10.96.0.20", json!({"type": "NodePort", "ports": [
        {"name": "http", "port": 80, "nodePort": 30090}, {"name": "query", "port": 53, "protocol": "UDP", "nodePort": 30053}]}))?;
    let node = city.lab.node(1)?;
    // the node's own port must not answer on every virtual address
    let _host = pod::respond(node, "host", 9999)?;
    for place in [&city.client as &Place, node] {
        for address in [
            "10.96.0.10:9999",
            "10.96.0.10:82",
            "10.96.7.7:80",
            "10.96.7.7:9999",
            "10.96.0.20:80",
        ] {
            check_fails(place, "tcp", address, "refused")?;
        }
        // the node's own packet is stopped on its way out
        let local = mode == Mode::Nftables && place.name() == node.name();
        let how = if local { "not permitted" } else { "refused" };
        for address in ["10.96.0.10:54", "10.96.7.7:53", "10.96.0.20:53"] {
            check_fails(place, "udp", address, how)?;
        }
        check_fails(place, "tcp", "192.168.50.11:30090", "refused")?;
    }
    check_fails(city.lab.outside(), "tcp", "192.168.50.11:30090", "refused")?;
    // endpoints that come are used at once, those that go are not missed
    city.endpoints("empty", &[&city.far])?;
    await_answer(&city.client, "tcp", "10.96.0.20:80")?;
    city.endpoints("empty", &[])?;
    eventually(limit(20), "refusal", || {
        check_fails(&city.client, "tcp", "10.96.0.20:80", "refused")
    })
}

pub fn node_ports_answer_outside(mode: Mode) -> Result<()> {
    let city = City::open(mode)?;
    let ports = |tcp: u16, udp: u16| json!([{"name": "http", "port": 80, "nodePort": tcp}, {"name": "query", "port": 53, "protocol": "UDP", "nodePort": udp}]);
    city.service(
        "web",
        VIP,
        json!({"type": "NodePort", "ports": ports(30080, 30053)}),
    )?;
    city.endpoints("web", &[&city.near, &city.far])?;
    city.service(
        "local",
        "10.96.0.11",
        json!({"type": "NodePort", "ports": ports(30081, 30054), "externalTrafficPolicy": "Local"}),
    )?;
    city.endpoints("local", &[&city.far])?;
    let (outside, nodes) = (city.lab.outside(), city.lab.nodes());
    let both = [&city.near, &city.far];
    for (protocol, port, local) in [("tcp", 30080, 30081), ("udp", 30053, 30054)] {
        for node in nodes {
            let address = format!("{}:{port}", node.address());
            let places: [&Place; 4] = [outside, &city.client, &nodes[0], &nodes[1]];
            for place in places {
                await_answer(place, protocol, &address)?;
                check_reaches(place, protocol, &address, &both)?;
            }
        }
        // policy Local: only the node that has the endpoint answers outsiders, and the endpoint sees them
        let (without, with) = (
            format!("{}:{local}", nodes[0].address()),
            format!("{}:{local}", nodes[1].address()),
        );
        await_answer(outside, protocol, &with)?;
        for (server, source) in answers(outside, protocol, &with, 4)? {
            assert_eq!((server.as_str(), source.as_str()), ("far", OUTSIDE), "{protocol}");
        }
        check_fails(outside, protocol, &without, "refused")?;
        // pods and the node itself reach every endpoint through the node without one
        for place in [&city.client as &Place, &nodes[0]] {
            check_reaches(place, protocol, &without, &[&city.far])?;
        }
    }
    check_fails(&nodes[0], "tcp", "127.0.0.1:30080", "refused")?;
    // only the chosen addresses answer: the bridge's is another
    let bridge = city
        .near
        .ip()
        .rsplit_once('.')
        .map(|(net, _)| format!("{net}.1:30080"));
    check_fails(&city.client, "tcp", &bridge.context("no address")?, "refused")
}

pub fn external_addresses_answer_whom_they_may(mode: Mode) -> Result<()> {
    let city = City::open(mode)?;
    let (outside, nodes) = (city.lab.outside(), city.lab.nodes());
    let balancer = |ip: &str, ranges: &[&str], policy: &str| json!({"type": "LoadBalancer", "loadBalancer": {"ingress": [{"ip": ip}]}, "loadBalancerSourceRanges": ranges, "externalTrafficPolicy": policy});
    city.service("external", VIP, json!({"externalIPs": ["203.0.113.7"]}))?;
    city.service(
        "open",
        "10.96.0.11",
        balancer("203.0.113.8", &["192.0.2.0/24"], "Cluster"),
    )?;
    city.service(
        "shut",
        "10.96.0.12",
        balancer("203.0.113.9", &["198.51.100.0/24", "10.5.0.0/16"], "Cluster"),
    )?;
    city.service("seen", "10.96.0.13", balancer("203.0.113.10", &[], "Local"))?;
    for service in ["external", "open", "shut", "seen"] {
        city.endpoints(service, &[&city.near, &city.far])?;
    }
    Place::netns("router").run(&["ip", "route", "add", "203.0.113.0/24", "via", nodes[0].address()])?;
    let both = [&city.near, &city.far];
    for (protocol, port) in [("tcp", 80), ("udp", 53)] {
        let at = |ip: &str| format!("{ip}:{port}");
        for place in [outside, &city.client as &Place, &nodes[1]] {
            await_answer(place, protocol, &at("203.0.113.7"))?;
            check_reaches(place, protocol, &at("203.0.113.7"), &both)?;
        }
        await_answer(outside, protocol, &at("203.0.113.8"))?;
        check_reaches(outside, protocol, &at("203.0.113.8"), &both)?;
        check_fails(&city.client, protocol, &at("203.0.113.8"), "timed out")?;
        await_answer(&city.client, protocol, &at("203.0.113.9"))?;
        check_fails(outside, protocol, &at("203.0.113.9"), "timed out")?;
        // policy Local: outsiders reach the endpoint of the node that they come to, and are seen
        await_answer(outside, protocol, &at("203.0.113.10"))?;
        for (server, source) in answers(outside, protocol, &at("203.0.113.10"), 8)? {
            assert_eq!(
                (server.as_str(), source.as_str()),
                ("near", OUTSIDE),
                "{protocol}"
            );
        }
        check_reaches(&city.client, protocol, &at("203.0.113.10"), &both)?;
    }
    // no other port of such an address reaches anything
    check_fails(&city.client, "tcp", "203.0.113.7:82", "")?;
    // an address outside the allowed ranges is nobody's
    city.service("hijack", "10.96.0.14", json!({"externalIPs": ["192.0.2.10"]}))?;
    city.endpoints("hijack", &[&city.near])?;
    await_answer(&city.client, "tcp", "10.96.0.14:80")?;
    check_fails(&city.client, "tcp", "192.0.2.10:80", "refused")
}

pub fn internal_policy_local_stays_on_the_node(mode: Mode) -> Result<()> {
    let city = City::open(mode)?;
    city.service("web", VIP, json!({"internalTrafficPolicy": "Local"}))?;
    city.endpoints("web", &[&city.near])?;
    let address = format!("{VIP}:80");
    await_answer(&city.client, "tcp", &address)?;
    check_reaches(&city.client, "tcp", &address, &[&city.near])?;
    check_fails(&city.far, "tcp", &address, "refused")?;
    city.endpoints("web", &[&city.near, &city.far])?;
    await_answer(&city.far, "tcp", &address)?;
    check_reaches(&city.far, "tcp", &address, &[&city.far])?;
    check_reaches(&city.client, "tcp", &address, &[&city.near])
}

pub fn clients_keep_their_endpoint(mode: Mode) -> Result<()> {
    let city = City::open(mode)?;
    city.service("web", VIP, json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}))?;
    city.endpoints("web", &[&city.near, &city.far])?;
    city.await_endpoints(&[&city.near, &city.far])?;
    for (protocol, port) in [("tcp", 80), ("udp", 53)] {
        let address = format!("{VIP}:{port}");
        await_answer(&city.client, protocol, &address)?;
        let first = shares(&city.client, protocol, &address, MANY)?;
        assert_eq!(first.len(), 1, "{protocol}: {first:?}");
        let kept = if first.contains_key("near") {
            &city.near
        } else {
            &city.far
        };
        let other = if first.contains_key("near") {
            &city.far
        } else {
            &city.near
        };
        // its endpoint goes: the client gets the other one, and keeps that when the first comes back
        city.endpoints("web", &[other])?;
        city.await_endpoints(&[other])?;
        check_reaches(&city.client, protocol, &address, &[other])?;
        city.endpoints("web", &[&city.near, &city.far])?;
        city.await_endpoints(&[kept, other])?;
        check_reaches(&city.client, protocol, &address, &[other])?;
    }
    Ok(())
}

/// As a client of DNS does it: one socket, while everything behind the address is replaced.
pub fn udp_goes_on_when_its_endpoint_is_replaced(mode: Mode) -> Result<()> {
    let city = City::open_shop(mode)?;
    city.endpoints("web", &[&city.near])?;
    city.await_endpoints(&[&city.near])?;
    let stream = Pinger::to(&city.client, &format!("{VIP}:53"))?;
    std::thread::sleep(Duration::from_secs(1));
    city.endpoints("web", &[&city.far])?;
    city.await_endpoints(&[&city.far])?;
    // what is under way may still be on its way to the old one
    std::thread::sleep(Duration::from_millis(200));
    stream.mark()?;
    std::thread::sleep(Duration::from_secs(2));
    let report = stream.stop()?;
    let mark = report.mark.context("the stream was not marked")?;
    let lost_after = report.lost.iter().filter(|n| **n >= mark).count();
    ensure!(report.sent > mark + 50, "{report:?}");
    assert_eq!(lost_after, 0, "lost after the switch: {report:?}");
    // and when nobody is there for a while
    let stream = Pinger::to(&city.client, &format!("{VIP}:53"))?;
    city.endpoints("web", &[])?;
    city.await_endpoints(&[]).ok();
    std::thread::sleep(Duration::from_millis(500));
    city.endpoints("web", &[&city.near])?;
    city.await_endpoints(&[&city.near])?;
    std::thread::sleep(Duration::from_millis(200));
    stream.mark()?;
    std::thread::sleep(Duration::from_secs(1));
    let report = stream.stop()?;
    let mark = report.mark.context("the stream was not marked")?;
    assert_eq!(
        report.lost.iter().filter(|n| **n >= mark).count(),
        0,
        "{report:?}"
    );
    Ok(())
}

pub fn open_connections_outlive_the_choice_of_their_endpoint(mode: Mode) -> Result<()> {
    let city = City::open_shop(mode)?;
    let lines = format!("{VIP}:81");
    await_answer(&city.client, "tcp", &format!("{VIP}:80"))?;
    let held = Held::open(&city.client, &lines, 20)?;
    city.endpoints("web", &[&city.near])?;
    city.await_endpoints(&[&city.near])?;
    check_reaches(&city.client, "tcp", &format!("{VIP}:80"), &[&city.near])?;
    std::thread::sleep(Duration::from_secs(2));
    // it comes back while they are still open
    city.endpoints("web", &[&city.near, &city.far])?;
    city.await_endpoints(&[&city.near, &city.far])?;
    check_reaches(
        &city.client,
        "tcp",
        &format!("{VIP}:80"),
        &[&city.near, &city.far],
    )?;
    let report = held.close()?;
    assert_eq!(report.broken, 0, "{report:?}");
    assert_eq!(report.servers, ["far", "near"], "{report:?}");
    Ok(())
}

pub fn two_hundred_connections_survive_a_crash(mode: Mode) -> Result<()> {
    let mut city = City::open_shop(mode)?;
    await_answer(&city.client, "tcp", &format!("{VIP}:80"))?;
    let held = Held::open(&city.client, &format!("{VIP}:81"), 200)?;
    for daemon in std::mem::take(&mut city.daemons) {
        daemon.kill()?;
    }
    throughout(Duration::from_secs(1), "Services while flanneld is away", || {
        answers(&city.client, "tcp", &format!("{VIP}:80"), 1).map(drop)
    })?;
    let arguments = ["--ip-masq", mode.flag()];
    city.daemons = start_all(&city.lab, &arguments)?;
    throughout(Duration::from_secs(3), "Services after the start", || {
        answers(&city.client, "tcp", &format!("{VIP}:80"), 4).map(drop)
    })?;
    let report = held.close()?;
    assert_eq!((report.opened, report.broken), (200, 0), "{report:?}");
    Ok(())
}

pub fn what_others_delete_comes_back(mode: Mode) -> Result<()> {
    let city = City::open_shop(mode)?;
    let node = city.lab.node(1)?;
    let address = format!("{VIP}:80");
    await_answer(&city.client, "tcp", &address)?;
    let held = Held::open(&city.client, &format!("{VIP}:81"), 10)?;
    let (harms, patience): (&[&str], u64) = match mode {
        Mode::Nftables => (
            &[
                "nft flush map ip flannel-services-nat backends",
                "nft flush map ip flannel-services-nat frontends",
                "nft flush chain ip flannel-services-nat postrouting",
                "nft delete table ip flannel-services-nat",
            ],
            10,
        ),
        // nothing tells of changes in IPVS: what stands is compared once a minute
        Mode::Ipvs => (
            &["ipvsadm -d -t 10.96.0.10:80 -r $(ipvsadm -Ln | awk '/->.*8080/ {print $2; exit}')"],
            90,
        ),
    };
    for harm in harms {
        node.shell(harm)?;
        eventually(limit(patience), &format!("repair after: {harm}"), || {
            check_reaches(&city.client, "tcp", &address, &[&city.near, &city.far])?;
            check_reaches(node, "tcp", &address, &[&city.near, &city.far])
        })?;
    }
    let report = held.close()?;
    assert_eq!(report.broken, 0, "{report:?}");
    Ok(())
}

/// Many changes of one Service, beside one that does not change.
pub fn flapping_endpoints_end_in_the_exact_state(mode: Mode) -> Result<()> {
    let city = City::open_shop(mode)?;
    city.service("still", "10.96.0.11", json!({}))?;
    city.endpoints("still", &[&city.near])?;
    await_answer(&city.client, "tcp", "10.96.0.11:80")?;
    let memory = || -> Result<u64> { resident(&city.daemons[0]) };
    let before = memory()?;
    // as fast as etcd takes them, which is about a thousand a second
    for round in 0..60 {
        for n in 0..30 {
            let key = format!("endpoints/shop/web/http/10.5.9.{}:{PORT}", n + 1);
            if (round + n) % 2 == 0 {
                city.put(&key, &json!({"weight": 1}))?;
            } else {
                city.lab.etcd().delete(&format!("{SERVICES}/{key}"))?;
            }
        }
        answers(&city.client, "tcp", "10.96.0.11:80", 1)?;
    }
    city.lab
        .etcd()
        .delete_prefix(&format!("{SERVICES}/endpoints/shop/web/"))?;
    city.await_endpoints(&[&city.near, &city.far])?;
    check_reaches(
        &city.client,
        "tcp",
        &format!("{VIP}:80"),
        &[&city.near, &city.far],
    )?;
    let grown = memory()?.saturating_sub(before);
    ensure!(grown < 16 * 1024, "the daemon grew by {grown} KiB");
    Ok(())
}

/// Resident memory of the daemon in KiB.
fn resident(daemon: &Flanneld) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// In a guest whose kernel has SCTP.
pub fn sctp_is_a_protocol_like_others(mode: Mode) -> Result<()> {
    let city = City::open(mode)?;
    let listen = |pod: &Pod| {
        let answer = format!("SYSTEM:echo {}; sleep 1", pod.name());
        pod.spawn(
            "sctp",
            &["socat", "SCTP-LISTEN:9000,fork,reuseaddr", &answer],
            &Environment::default(),
        )
    };
    let _servers = [listen(&city.near)?, listen(&city.far)?];
    city.put(
        "spec/shop/stream",
        &json!({"clusterIP": VIP, "ports": [{"name": "stream", "port": 90, "protocol": "SCTP"}]}),
    )?;
    let slice = |pods: &[&Pod]| {
        let endpoints: Vec<Value> = pods.iter().map(|p| json!({"addresses": [p.ip()]})).collect();
        json!({"addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "stream", "port": 9000, "protocol": "SCTP"}]})
    };
    // SCTP has no half-open end: the question stays open until the answer is there
    let command = format!("sleep 1 | timeout 5 socat -T2 - SCTP:{VIP}:90,connect-timeout=3");
    let ask = |place: &Place| place.shell(&command);
    for pod in [&city.near, &city.far] {
        city.put("slices/shop/stream/lab", &slice(&[pod]))?;
        for place in [&city.client as &Place, city.lab.node(1)?] {
            eventually(
                limit(20),
                &format!("{} by SCTP in {}", pod.name(), place.name()),
                || {
                    let answer = ask(place)?;
                    ensure!(answer.trim() == pod.name(), "{answer:?}");
                    Ok(())
                },
            )?;
        }
    }
    Ok(())
}
