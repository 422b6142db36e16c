//! What is refused: addresses that are taken, and packets that nobody is to answer.

use std::time::Duration;

use anyhow::{Result, ensure};
use flannel_lab::{Place, eventually, limit, pod};
use serde_json::json;

use super::stand::{PORT, Stand, VIP, config, saved, web};
use crate::cases::common::put_peer;

/// Addresses that somebody needs are refused, each by name; what is right about the same Services works.
pub fn addresses_that_are_taken_are_refused_by_name() -> Result<()> {
    let mut config = config();
    config["cidrs"] = json!(["10.96.0.0/16", "10.5.0.0/20", "192.168.50.0/28", "127.1.0.0/16"]);
    config["externalCidrs"] = json!(["192.168.50.0/24", "10.0.0.0/8", "127.0.0.0/8"]);
    let mut stand = Stand::open(&config)?;
    put_peer(&stand.lab, "10.5.200.0-24", "192.168.50.77", "02:00:00:00:00:77")?;
    let pod = stand.pods[0].ip().to_owned();
    let taken = [
        "192.168.50.11",
        "192.168.50.77",
        "192.168.50.2",
        &pod,
        "10.96.0.40",
        "198.51.100.1",
    ];
    let mut spec = web(VIP);
    spec["externalIPs"] = json!(taken);
    stand.put("spec/shop/web", &spec)?;
    stand.put("spec/shop/astray", &web("10.97.0.1"))?;
    stand.put("spec/shop/loop", &web("127.1.0.1"))?;
    stand.endpoints("web", &[0])?;
    stand.await_servers("TCP 10.96.0.10:80 rr", &[(0, PORT, 1)])?;
    stand.await_answer("10.96.0.10:80")?;
    for text in [
        "cidrs 10.5.0.0/20 is refused: it overlaps the pod network 10.5.0.0/16",
        "cidrs 192.168.50.0/28 is refused: it holds this node's own address 192.168.50.11",
        "127.1.0.0/16 is refused",
        "externalIPs 192.168.50.11 is refused: it is this node's own address",
        "externalIPs 192.168.50.77 is refused: it is the address of another node",
        "externalIPs 192.168.50.2 is refused: it is an address of etcd",
        "is refused: it lies inside the pod network 10.5.0.0/16",
        "externalIPs 10.96.0.40 is refused: it lies inside the service CIDR 10.96.0.0/16",
        "externalIPs 198.51.100.1 is refused: it lies outside the ranges",
        "clusterIP 10.97.0.1 is refused: it lies outside the service CIDRs 10.96.0.0/16",
        "\"spec/shop/loop\"",
    ] {
        stand.await_log(text)?;
    }
    let node = stand.node()?;
    let servers = saved(node, &["-A "])?;
    ensure!(
        servers.len() == 3 && servers.iter().all(|l| l.contains("10.96.0.10:")),
        "{servers:#?}"
    );
    let routes = node.run(&["ip", "route", "show", "table", "local", "proto", "70"])?;
    assert_eq!(routes.lines().count(), 1, "{routes}");
    // nobody lost anybody: etcd still tells
    stand.endpoints("web", &[1])?;
    stand.await_servers("UDP 10.96.0.10:53 rr", &[(1, PORT, 1)])
}

/// Every port of the host but those of Services is out of reach through a virtual address, from everywhere and at once.
pub fn ports_of_the_host_do_not_answer_on_virtual_addresses() -> Result<()> {
    let mut config = config();
    config["externalCidrs"] = json!(["203.0.113.0/24"]);
    let stand = Stand::serving(&config)?;
    let mut spec = web("10.96.0.12");
    spec["externalIPs"] = json!(["203.0.113.7"]);
    stand.put("spec/shop/empty", &spec)?;
    let node = stand.node()?;
    let _host = pod::respond(node, "host", 9999)?;
    Place::netns("router").shell(&format!(
        "ip route add 203.0.113.0/24 via {0}; ip route add 10.96.0.0/16 via {0}",
        node.address()
    ))?;
    eventually(limit(20), "the external address", || {
        let routes = node.run(&["ip", "route", "show", "table", "local", "proto", "70"])?;
        ensure!(routes.contains("203.0.113.7"), "{routes}");
        Ok(())
    })?;
    let places: [&Place; 3] = [&stand.client, node, stand.lab.outside()];
    for place in places {
        // not of a Service; of one without endpoints
        for address in [
            "10.96.0.10:9999",
            "10.96.0.10:82",
            "10.96.7.7:9999",
            "203.0.113.7:9999",
            "10.96.0.12:80",
            "203.0.113.7:80",
        ] {
            refused(place, "tcp", address, 12)?;
            // The kernel sends a client one ICMP message a second, once six were sent (icmp_ratelimit).
            eventually(limit(10), "refusal", || refused(place, "udp", address, 1))?;
        }
        // the host's own addresses answer as ever
        let own = format!("{}:9999", node.address());
        let answer = pod::ask(place, "tcp", &own, 1)?;
        ensure!(
            matches!(answer.as_slice(), [Ok(_)]),
            "{own} from {}: {answer:?}",
            place.name()
        );
    }
    Ok(())
}

/// So many questions, each refused at once.
fn refused(place: &Place, protocol: &str, address: &str, count: usize) -> Result<()> {
    let begin = std::time::Instant::now();
    let answers = pod::ask(place, protocol, address, count)?;
    let all = answers
        .iter()
        .all(|a| a.as_ref().is_err_and(|e| e.contains("refused")));
    let took = begin.elapsed();
    ensure!(
        all && answers.len() == count,
        "{protocol} {address} asked from {}: {answers:?}",
        place.name()
    );
    // A client of TCP whose question is dropped asks again after a second, each time; half of that is left to a machine that stands still.
    let patience = Duration::from_millis(500 * u64::try_from(count)?).max(limit(1));
    ensure!(
        took < patience,
        "{protocol} {address} from {}: {count} refusals took {took:?}",
        place.name()
    );
    Ok(())
}
