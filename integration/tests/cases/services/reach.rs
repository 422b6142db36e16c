//! Who reaches a Service by which of its addresses, and who is refused.

use anyhow::{Context, Result, ensure};
use flannel_lab::{Environment, Place, Pod, eventually, limit, pod};
use serde_json::{Value, json};

use super::Mode;
use super::ask::{MANY, answers, await_answer, check_fails, check_reaches, check_sees, check_silent, shares};
use super::city::{City, Family, at, gateway_of, ip_of, node_ip};

/// Protocols and ports of a shop that a responder stands behind.
const QUESTIONS: [(&str, u16); 2] = [("tcp", 80), ("udp", 53)];

/// Pods, on the same node, another one, and the endpoints themselves; and nodes.
pub fn everybody_reaches_a_service(city: &City) -> Result<()> {
    let shop = city.open_shop(json!({}), &city.both())?;
    let places: [&Place; 5] = [&city.client, &city.near, &city.far, city.node(1)?, city.node(2)?];
    for family in Family::BOTH {
        for (protocol, port) in QUESTIONS {
            let address = shop.at(family, port);
            for place in places {
                await_answer(place, protocol, &address)?;
                check_reaches(place, protocol, &address, &city.both())?;
            }
            // pods are seen as who they are
            let own = ip_of(&city.client, family)?;
            for (_, source) in answers(&city.client, protocol, &address, MANY)? {
                ensure!(source == own, "{protocol} {address}: {source}, not {own}");
            }
        }
    }
    Ok(())
}

pub fn what_nobody_answers_is_refused_at_once(city: &City) -> Result<()> {
    let shop = city.open_shop(json!({}), &city.both())?;
    let empty = city.shop(json!({"type": "NodePort", "ports": [
        {"name": "http", "port": 80, "nodePort": 30090}, {"name": "query", "port": 53, "protocol": "UDP", "nodePort": 30053}]}))?;
    let node = city.node(1)?;
    // the node's own port must not answer on every virtual address
    let _host = pod::respond(node, "host", 9999)?;
    for family in Family::BOTH {
        let nobodys = family.pick("10.96.7.7", "fd00:96::707");
        for place in [&city.client as &Place, node] {
            let tcp = [
                shop.at(family, 9999),
                shop.at(family, 82),
                at(nobodys, 80),
                at(nobodys, 9999),
                empty.at(family, 80),
                at(node_ip(node, family), 30090),
            ];
            for address in tcp {
                check_fails(place, "tcp", &address, "refused")?;
            }
            for address in [shop.at(family, 54), at(nobodys, 53), empty.at(family, 53)] {
                check_refuses_udp(place, &address)?;
            }
        }
        check_fails(
            city.outside(),
            "tcp",
            &at(node_ip(node, family), 30090),
            "refused",
        )?;
    }
    // endpoints that come are used at once, those that go are not missed
    empty.endpoints(&[&city.far])?;
    for family in Family::BOTH {
        await_answer(&city.client, "tcp", &empty.at(family, 80))?;
    }
    empty.endpoints(&[])?;
    for family in Family::BOTH {
        eventually(limit(20), "refusal", || {
            check_fails(&city.client, "tcp", &empty.at(family, 80), "refused")
        })?;
    }
    Ok(())
}

/// Hairpin: the only endpoint of a Service asks for it, by its virtual address and by the port of its own node and of the other one.
pub fn an_endpoint_reaches_itself(city: &City) -> Result<()> {
    let ports = |tcp: u16, udp: u16| json!([{"name": "http", "port": 80, "nodePort": tcp}, {"name": "query", "port": 53, "protocol": "UDP", "nodePort": udp}]);
    for (pod, tcp, udp) in [(&city.near, 30082, 30055), (&city.far, 30083, 30056)] {
        let shop = city.shop(json!({"type": "NodePort", "ports": ports(tcp, udp)}))?;
        shop.endpoints(&[pod])?;
        for family in Family::BOTH {
            for (protocol, port, node_port) in [("tcp", 80, tcp), ("udp", 53, udp)] {
                let addresses = [
                    shop.at(family, port),
                    at(node_ip(city.node(1)?, family), node_port),
                    at(node_ip(city.node(2)?, family), node_port),
                ];
                for address in addresses {
                    await_answer(pod, protocol, &address)?;
                    check_reaches(pod, protocol, &address, &[pod])?;
                }
            }
        }
    }
    Ok(())
}

/// The node's own packet may be stopped on its way out already.
fn check_refuses_udp(place: &Place, address: &str) -> Result<()> {
    check_fails(place, "udp", address, "refused")
        .or_else(|_| check_fails(place, "udp", address, "not permitted"))
}

pub fn node_ports_answer_outside(city: &City) -> Result<()> {
    let ports = |tcp: u16, udp: u16| json!([{"name": "http", "port": 80, "nodePort": tcp}, {"name": "query", "port": 53, "protocol": "UDP", "nodePort": udp}]);
    let open = city.shop(json!({"type": "NodePort", "ports": ports(30080, 30053)}))?;
    open.endpoints(&city.both())?;
    let local = city
        .shop(json!({"type": "NodePort", "ports": ports(30081, 30054), "externalTrafficPolicy": "Local"}))?;
    local.endpoints(&[&city.far])?;
    let (one, two) = (city.node(1)?, city.node(2)?);
    for family in Family::BOTH {
        let outside = family.pick("192.0.2.10", "2001:db8:2::10");
        for (protocol, port, local) in [("tcp", 30080, 30081), ("udp", 30053, 30054)] {
            for node in [one, two] {
                let address = at(node_ip(node, family), port);
                // the endpoints themselves among them: one may get itself
                let places: [&Place; 6] = [city.outside(), &city.client, &city.near, &city.far, one, two];
                for place in places {
                    await_answer(place, protocol, &address)?;
                    check_reaches(place, protocol, &address, &city.both())?;
                }
            }
            // policy Local: only the node that has the endpoint answers outsiders, and the endpoint sees them
            let (without, with) = (at(node_ip(one, family), local), at(node_ip(two, family), local));
            await_answer(city.outside(), protocol, &with)?;
            check_sees(city.outside(), protocol, &with, &city.far, outside)?;
            check_fails(city.outside(), protocol, &without, "refused")?;
            // pods and the node itself reach every endpoint through the node without one
            for place in [&city.client as &Place, one] {
                check_reaches(place, protocol, &without, &[&city.far])?;
            }
        }
        let loopback = family.pick("127.0.0.1", "::1");
        check_fails(one, "tcp", &at(loopback, 30080), "refused")?;
        // only the chosen addresses answer: the bridge's is another
        let bridge = at(&gateway_of(&city.near, family)?, 30080);
        check_fails(&city.client, "tcp", &bridge, "refused")?;
    }
    Ok(())
}

pub fn external_addresses_answer_whom_they_may(city: &City) -> Result<()> {
    route_external_addresses(city)?;
    let external = |number: u8, family: Family| {
        family.pick(format!("203.0.113.{number}"), format!("2001:db8:113::{number:x}"))
    };
    let balancer = |number: u8, ranges: &[&str], policy: &str| {
        let ingress: Vec<Value> = Family::BOTH
            .iter()
            .map(|f| json!({"ip": external(number, *f)}))
            .collect();
        json!({"type": "LoadBalancer", "loadBalancer": {"ingress": ingress}, "loadBalancerSourceRanges": ranges, "externalTrafficPolicy": policy})
    };
    let plain = json!({"externalIPs": Family::BOTH.map(|f| external(7, f))});
    let open = balancer(8, &["192.0.2.0/24", "2001:db8:2::/64"], "Cluster");
    let shut = balancer(9, &["198.51.100.0/24", "10.5.0.0/16", "fd00:5::/48"], "Cluster");
    for more in [plain, open, shut, balancer(10, &[], "Local")] {
        city.shop(more)?.endpoints(&city.both())?;
    }
    let outside = city.outside();
    for family in Family::BOTH {
        let source = family.pick("192.0.2.10", "2001:db8:2::10");
        for (protocol, port) in QUESTIONS {
            let address = |number: u8| at(&external(number, family), port);
            for place in [outside, &city.client as &Place, &city.near, city.node(2)?] {
                await_answer(place, protocol, &address(7))?;
                check_reaches(place, protocol, &address(7), &city.both())?;
            }
            await_answer(outside, protocol, &address(8))?;
            check_reaches(outside, protocol, &address(8), &city.both())?;
            check_silent(&city.client, protocol, &address(8))?;
            await_answer(&city.client, protocol, &address(9))?;
            check_silent(outside, protocol, &address(9))?;
            // policy Local: outsiders reach the endpoint of the node that they come to, and are seen
            await_answer(outside, protocol, &address(10))?;
            check_sees(outside, protocol, &address(10), &city.near, source)?;
            check_reaches(&city.client, protocol, &address(10), &city.both())?;
        }
        // no other port of such an address reaches anything
        check_fails(&city.client, "tcp", &at(&external(7, family), 82), "")?;
    }
    // an address outside the allowed ranges is nobody's
    let hijack = city.shop(json!({"externalIPs": ["192.0.2.10", "2001:db8:2::10"]}))?;
    hijack.endpoints(&[&city.near])?;
    for family in Family::BOTH {
        await_answer(&city.client, "tcp", &hijack.at(family, 80))?;
        let victim = at(family.pick("192.0.2.10", "2001:db8:2::10"), 80);
        check_fails(&city.client, "tcp", &victim, "refused")?;
    }
    Ok(())
}

/// The router sends the external addresses to the first node.
fn route_external_addresses(city: &City) -> Result<()> {
    let node = city.node(1)?;
    let router = Place::netns("router");
    router.run(&["ip", "route", "replace", "203.0.113.0/24", "via", node.address()])?;
    let via = node.ipv6_address();
    router
        .run(&["ip", "route", "replace", "2001:db8:113::/64", "via", via])
        .map(drop)
}

/// In a guest whose kernel has SCTP.
pub fn sctp_is_a_protocol_like_others(city: &City) -> Result<()> {
    let listen = |pod: &Pod| {
        let answer = format!("SYSTEM:echo {}; sleep 1", pod.name());
        pod.spawn(
            "sctp",
            &["socat", "SCTP6-LISTEN:9000,fork,reuseaddr,ipv6only=0", &answer],
            &Environment::default(),
        )
    };
    let _servers = [listen(&city.near)?, listen(&city.far)?];
    let shop = city.shop(json!({"ports": [{"name": "stream", "port": 90, "protocol": "SCTP"}]}))?;
    for pod in city.both() {
        for family in Family::BOTH {
            let slice = json!({"addressType": family.pick("IPv4", "IPv6"), "endpoints": [{"addresses": [ip_of(pod, family)?]}],
                "ports": [{"name": "stream", "port": 9000, "protocol": "SCTP"}]});
            city.put(
                &format!("slices/shop/{}/{}", shop.name, family.pick("v4", "v6")),
                &slice,
            )?;
        }
        for family in Family::BOTH {
            // SCTP has no half-open end: the question stays open until the answer is there
            let kind = family.pick("SCTP4", "SCTP6");
            let command = format!(
                "sleep 1 | timeout 5 socat -T2 - {kind}:{},connect-timeout=3",
                shop.at(family, 90)
            );
            for place in [&city.client as &Place, city.node(1)?] {
                let what = format!("{} by SCTP in {}", pod.name(), place.name());
                eventually(limit(20), &what, || {
                    let answer = place.shell(&command)?;
                    ensure!(answer.trim() == pod.name(), "{answer:?}");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// Connections are shared out as the scheduler says, and one that this programmer does not have is named.
pub fn connections_are_spread_as_asked_for(city: &City) -> Result<()> {
    let spread = |scheduler: &str, family: Family| -> Result<[usize; 2]> {
        let shop = city.shop(json!({"scheduler": scheduler}))?;
        for (pod, weight) in [(&city.near, 1), (&city.far, 3)] {
            let endpoint = at(&ip_of(pod, family)?, super::city::PORT);
            let key = format!("endpoints/shop/{}/http/{endpoint}", shop.name);
            city.put(&key, &json!({"weight": weight}))?;
        }
        let address = shop.at(family, 80);
        await_answer(&city.client, "tcp", &address)?;
        eventually(limit(20), "both endpoints", || {
            let seen = city.mode.get().endpoints(city.node(1)?, "tcp", &address)?;
            ensure!(seen.len() == 2, "{seen:?}");
            Ok(())
        })?;
        let shares = shares(&city.client, "tcp", &address, 1000)?;
        let [near, far] = ["near", "far"].map(|name| shares.get(name).copied().unwrap_or_default());
        ensure!(near + far == 1000, "{scheduler}: {shares:?}");
        Ok([near, far])
    };
    // five standard deviations of a binomial distribution of 1000: 79 for a half, 69 for a quarter
    for family in Family::BOTH {
        let [near, far] = spread("rr", family)?;
        ensure!(near.abs_diff(500) < 79, "{family:?} rr: {near} and {far}");
        let [near, far] = spread("wrr", family)?;
        ensure!(near.abs_diff(250) < 69, "{family:?} wrr 1:3: {near} and {far}");
    }
    let [near, far] = spread("sh", Family::V4)?;
    ensure!(near.max(far) == 1000, "sh: {near} and {far}");
    schedulers_that_count_are_named(city)
}

fn schedulers_that_count_are_named(city: &City) -> Result<()> {
    let shop = city.shop(json!({"scheduler": "lc"}))?;
    shop.endpoints(&city.both())?;
    let address = shop.at(Family::V4, 80);
    await_answer(&city.client, "tcp", &address)?;
    match city.mode.get() {
        Mode::Ipvs => {
            let table = city.node(1)?.run(&["ipvsadm", "-Ln"])?;
            ensure!(table.contains(&format!("TCP  {address} lc")), "{table}");
        }
        Mode::Nftables => {
            let mut daemons = city.daemons.borrow_mut();
            let daemon = daemons.first_mut().context("no daemon")?;
            daemon.wait_log("scheduler lc counts connections, which nftables cannot")?;
            let log = daemon.log()?;
            let line = log.lines().find(|l| l.contains("scheduler lc counts"));
            let line = line.context("no line")?;
            ensure!(line.contains(&format!("shop/{}", shop.name)), "{line}");
        }
    }
    Ok(())
}
