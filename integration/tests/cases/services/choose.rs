//! Which endpoints are used: policies, hints, conditions, affinity.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_lab::{Pod, eventually, limit};
use serde_json::{Value, json};

use super::Mode;
use super::ask::{MANY, await_answer, check_fails, check_reaches, shares};
use super::city::{City, Family, at, node_ip};

pub fn internal_policy_local_stays_on_the_node(city: &City) -> Result<()> {
    let shop = city.shop(json!({"internalTrafficPolicy": "Local"}))?;
    shop.endpoints(&[&city.near])?;
    for family in Family::BOTH {
        let address = shop.at(family, 80);
        await_answer(&city.client, "tcp", &address)?;
        check_reaches(&city.client, "tcp", &address, &[&city.near])?;
        check_fails(&city.far, "tcp", &address, "refused")?;
    }
    shop.endpoints(&city.both())?;
    for family in Family::BOTH {
        let address = shop.at(family, 80);
        await_answer(&city.far, "tcp", &address)?;
        check_reaches(&city.far, "tcp", &address, &[&city.far])?;
        check_reaches(&city.client, "tcp", &address, &[&city.near])?;
    }
    Ok(())
}

/// Hints count only where every endpoint has them.
pub fn hints_keep_traffic_near(city: &City) -> Result<()> {
    let hint = |node: &str| json!({"hints": {"forNodes": [{"name": node}]}});
    let shop = city.shop(json!({}))?;
    shop.slices(&[(&city.near, hint("node1")), (&city.far, hint("node2"))])?;
    let (one, two) = (city.node(1)?, city.node(2)?);
    shop.await_endpoints_on(one, &[&city.near])?;
    shop.await_endpoints_on(two, &[&city.far])?;
    for family in Family::BOTH {
        let address = shop.at(family, 80);
        check_reaches(&city.client, "tcp", &address, &[&city.near])?;
        check_reaches(&city.far, "tcp", &address, &[&city.far])?;
    }
    shop.slices(&[(&city.near, hint("node1")), (&city.far, json!({}))])?;
    shop.await_endpoints(&city.both())?;
    check_reaches(&city.client, "tcp", &shop.at(Family::V6, 80), &city.both())
}

pub fn endpoints_on_their_way_out_serve_where_none_is_ready(city: &City) -> Result<()> {
    let leaving = json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
    let dead = json!({"conditions": {"ready": false, "serving": false, "terminating": true}});
    let ready = json!({"conditions": {"ready": true}});
    let shop = city.shop(json!({}))?;
    let expect = |near: &Value, far: &Value, used: &[&Pod]| -> Result<()> {
        shop.slices(&[(&city.near, near.clone()), (&city.far, far.clone())])?;
        shop.await_endpoints(used)?;
        for family in Family::BOTH {
            let address = shop.at(family, 80);
            match used {
                [] => check_fails(&city.client, "tcp", &address, "refused")?,
                used => check_reaches(&city.client, "tcp", &address, used)?,
            }
        }
        Ok(())
    };
    expect(&leaving, &leaving, &city.both())?;
    expect(&leaving, &ready, &[&city.far])?;
    expect(&leaving, &dead, &[&city.near])?;
    expect(&dead, &dead, &[])
}

pub fn endpoints_that_are_not_ready_serve_where_that_is_wanted(city: &City) -> Result<()> {
    let waiting = json!({"conditions": {"ready": false, "serving": false}});
    let shop = city.shop(json!({"publishNotReadyAddresses": true}))?;
    shop.slices(&[(&city.near, waiting.clone()), (&city.far, waiting)])?;
    shop.await_endpoints(&city.both())?;
    for family in Family::BOTH {
        check_reaches(&city.client, "tcp", &shop.at(family, 80), &city.both())?;
    }
    shop.spec(json!({}))?;
    shop.await_endpoints(&[])?;
    check_fails(&city.client, "tcp", &shop.at(Family::V6, 80), "refused")
}

pub fn clients_keep_their_endpoint(city: &City) -> Result<()> {
    let more = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}});
    let shop = city.open_shop(more, &city.both())?;
    for family in Family::BOTH {
        for (protocol, port) in [("tcp", 80), ("udp", 53)] {
            let address = shop.at(family, port);
            await_answer(&city.client, protocol, &address)?;
            let first = shares(&city.client, protocol, &address, MANY)?;
            ensure!(first.len() == 1, "{protocol} {address}: {first:?}");
            let [kept, other] = if first.contains_key("near") {
                city.both()
            } else {
                [&city.far, &city.near]
            };
            // its endpoint goes: the client gets the other one, and keeps that when the first comes back
            for endpoints in [&[other][..], &[kept, other]] {
                shop.endpoints(endpoints)?;
                shop.await_endpoints(endpoints)?;
                let remembered = city.mode.get().remembered(city.node(1)?)?;
                check_reaches(&city.client, protocol, &address, &[other]).with_context(|| {
                    format!("of {} endpoints, having remembered {remembered}", endpoints.len())
                })?;
            }
        }
    }
    Ok(())
}

/// A client that was silent for longer than the timeout is a new one.
pub fn clients_are_forgotten_after_their_time(city: &City) -> Result<()> {
    const TIME: u64 = 4;
    let more = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": TIME}}});
    let shop = city.open_shop(more, &city.both())?;
    if city.mode.get() == Mode::Ipvs {
        // it remembers a client for as long as any of his connections is remembered
        city.node(1)?.run(&["ipvsadm", "--set", "0", "0", "1"])?;
    }
    for family in Family::BOTH {
        let address = shop.at(family, 53);
        await_answer(&city.client, "udp", &address)?;
        let mut seen = BTreeSet::new();
        // by chance it may be the same endpoint again
        for _ in 0..15 {
            let begin = Instant::now();
            let answered = shares(&city.client, "udp", &address, MANY)?;
            // on a machine that stands still for longer than the time, one was forgotten between two questions
            let is_late = begin.elapsed() >= Duration::from_secs(TIME);
            ensure!(answered.len() == 1 || is_late, "{address}: {answered:?}");
            seen.extend(answered.into_keys());
            if seen.len() == 2 {
                break;
            }
            std::thread::sleep(Duration::from_secs(TIME + 3));
            if city.mode.get() == Mode::Nftables {
                // the kernel remembers a flow for longer than that: a question from a port of before belongs to it
                let (kind, ip) = (family.pick("ipv4", "ipv6"), shop.ip(family));
                city.node(1)?
                    .run(&["conntrack", "-D", "-f", kind, "-p", "udp", "--orig-dst", &ip])?;
            }
        }
        ensure!(seen.len() == 2, "{address}: {seen:?} answered, whenever asked");
    }
    Ok(())
}

/// Load balancers ask each node for endpoints of its own.
pub fn health_checks_tell_where_endpoints_are(city: &City) -> Result<()> {
    const CHECK: u16 = 32100;
    let balancer =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": CHECK});
    let shop = city.shop(balancer)?;
    shop.endpoints(&[&city.far])?;
    let ask = |number: usize, family: Family| -> Result<String> {
        let address = at(node_ip(city.node(number)?, family), CHECK);
        let kind = family.pick("TCP4", "TCP6");
        let question = r"printf 'GET /healthz HTTP/1.0\r\n\r\n'";
        city.outside()
            .shell(&format!("{question} | socat -t5 - {kind}:{address}"))
    };
    let expect = |number: usize, status: &str, count: usize| -> Result<()> {
        for family in Family::BOTH {
            eventually(limit(20), &format!("{status} of node {number}"), || {
                let answer = ask(number, family)?;
                let (head, body) = answer.split_once("\r\n\r\n").context("not HTTP")?;
                ensure!(head.contains(status), "{answer}");
                let body: Value = serde_json::from_str(body).with_context(|| answer.clone())?;
                ensure!(
                    body["localEndpoints"] == count && body["service"]["name"] == shop.name.as_str(),
                    "{body}"
                );
                Ok(())
            })?;
        }
        Ok(())
    };
    expect(1, "503 Service Unavailable", 0)?;
    // one pod, whatever its addresses are
    expect(2, "200 OK", 1)?;
    shop.endpoints(&[&city.near])?;
    expect(1, "200 OK", 1)?;
    expect(2, "503 Service Unavailable", 0)?;
    shop.spec(json!({}))?;
    eventually(limit(20), "the check to end", || {
        let answer = ask(1, Family::V4);
        ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    })
}
