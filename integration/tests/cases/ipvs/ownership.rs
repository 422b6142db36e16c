//! Whose virtual servers, rules and devices are whose, and in which order ours come.

use std::time::Duration;

use anyhow::{Result, ensure};
use flannel_lab::clock::throughout;
use flannel_lab::{Lab, LabOptions, eventually, limit};
use serde_json::{Value, json};

use super::stand::{LINES, PORT, SERVICES, Stand, VIP, config, saved, web};
use crate::cases::common::count;

/// Virtual servers of others keep every byte, through everything that we do; one that stands where a node port should is named and stays.
pub fn virtual_servers_of_others_keep_every_byte() -> Result<()> {
    let mut stand = Stand::open(&config())?;
    let foreign = [
        "203.0.113.5",
        "-f 7",
        "[2001:db8::5]",
        "192.168.50.11:30085",
        "192.168.50.11:8443",
    ];
    let node = stand.node()?;
    node.shell(
        "ipvsadm -A -t 203.0.113.5:443 -s wlc -p 77; ipvsadm -a -t 203.0.113.5:443 -r 192.168.50.99:443 -i -w 3 -x 9 -y 4
         ipvsadm -A -u 203.0.113.5:53 -s sh -b sh-port; ipvsadm -a -u 203.0.113.5:53 -r 192.168.50.99:53 -g
         ipvsadm -A -f 7 -s rr; ipvsadm -a -f 7 -r 192.168.50.98 -m
         ipvsadm -A -t [2001:db8::5]:80 -s lc
         ipvsadm -A -t 192.168.50.11:30085 -s rr; ipvsadm -a -t 192.168.50.11:30085 -r 192.168.50.98:1 -m
         ipvsadm -A -t 192.168.50.11:8443 -s rr; ipvsadm -a -t 192.168.50.11:8443 -r 192.168.50.98:1 -m",
    )?;
    let before = saved(node, &foreign)?;
    ensure!(before.len() == 11, "{before:#?}");
    let unchanged = |stand: &Stand, when: &str| -> Result<()> {
        let now = saved(stand.node()?, &foreign)?;
        ensure!(now == before, "{when}: {now:#?}\nbefore: {before:#?}");
        Ok(())
    };
    stand.put("spec/shop/web", &web(VIP))?;
    stand.endpoints("web", &[0, 1])?;
    stand.put(
        "spec/shop/ports",
        &json!({"type": "NodePort", "clusterIP": "10.96.0.11", "ports": [
        {"name": "http", "port": 80, "nodePort": 30085}, {"name": "lines", "port": 81, "nodePort": 30086}]}),
    )?;
    stand.endpoints("ports", &[0])?;
    stand.await_servers("TCP 10.96.0.10:80 rr", &[(0, PORT, 1), (1, PORT, 1)])?;
    stand.await_servers("TCP 192.168.50.11:30086 rr", &[(0, LINES, 1)])?;
    stand.await_log("30085 is the virtual server of somebody else")?;
    unchanged(&stand, "with Services")?;
    stand.crash()?;
    stand.start()?;
    stand.endpoints("web", &[1])?;
    stand.await_servers("UDP 10.96.0.10:53 rr", &[(1, PORT, 1)])?;
    unchanged(&stand, "after a crash")?;
    // its owner gives the place up
    stand
        .node()?
        .run(&["ipvsadm", "-D", "-t", "192.168.50.11:30085"])?;
    stand.await_servers("TCP 192.168.50.11:30085 rr", &[(0, PORT, 1)])?;
    stand.delete("config")?;
    let rest = ["203.0.113.5", "-f 7", "[2001:db8::5]", "192.168.50.11:8443"];
    let rest: Vec<String> = before
        .iter()
        .filter(|l| rest.iter().any(|p| l.contains(p)))
        .cloned()
        .collect();
    eventually(limit(30), "all of ours to go", || {
        let all = saved(stand.node()?, &[""])?;
        ensure!(all == rest, "{all:#?}, expected {rest:#?}");
        let left = stand
            .node()?
            .shell("nft list tables; ip route show table local proto 70")?;
        ensure!(
            !left.contains("flannel-services") && !left.contains("10.96"),
            "{left}"
        );
        Ok(())
    })
}

/// Whatever the number of Services: one route, one table with as many rules, no device, no address, nothing of ipset or iptables.
pub fn only_virtual_servers_grow_with_services() -> Result<()> {
    let stand = Stand::serving(&config())?;
    let node = stand.node()?;
    let rules = || -> Result<usize> {
        Ok(count(
            &node.run(&["nft", "-a", "list", "table", "ip", "flannel-services"])?,
            "# handle",
        ))
    };
    let devices = || node.link_names();
    let (few, before) = (rules()?, devices()?);
    for n in 1..=60 {
        stand.put(&format!("spec/many/s{n}"), &web(&format!("10.96.1.{n}")))?;
        stand.put(&format!("endpoints/many/s{n}/http/172.31.77.{n}:80"), &json!({}))?;
    }
    eventually(limit(30), "60 more Services", || {
        let table = node.run(&["ipvsadm", "-Ln"])?;
        let servers = count(&table, "10.96.1.");
        let real = count(&table, "172.31.77.");
        ensure!(
            (servers, real) == (180, 60),
            "{servers} virtual, {real} real servers"
        );
        Ok(())
    })?;
    assert_eq!(rules()?, few, "rules, chains and sets");
    assert_eq!(devices()?, before, "devices");
    let routes = node
        .shell("ip route show table local proto 70; ip route show table local | grep -c '10[.]96' || true")?;
    let lines: Vec<&str> = routes.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        ["local 10.96.0.0/16 dev lo scope host src 192.168.50.11", "1"]
    );
    let addresses = node.run(&["ip", "-o", "address", "show"])?;
    ensure!(!addresses.contains("10.96."), "{addresses}");
    let tables =
        node.shell("nft list tables; iptables-legacy-save 2>/dev/null; ipset list -n 2>/dev/null || true")?;
    let ours = |l: &&str| l.starts_with("table ") && l.contains(" flannel-");
    ensure!(tables.lines().all(|l| ours(&l)), "{tables}");
    Ok(())
}

/// While `nft` takes its time, nothing else is begun: no route, no virtual server.
pub fn rules_stand_before_routes_and_virtual_servers() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1))?;
    let node = lab.node(1)?;
    node.shell(
        "mkdir -p /run/flannel/held; cp $(command -v nft) /run/flannel/held/nft.real
         printf '#!/bin/sh\\nwhile [ -e /run/flannel/held/shut ]; do sleep 0.05; done\\nexec /run/flannel/held/nft.real \"$@\"\\n' > /run/flannel/held/nft
         chmod +x /run/flannel/held/nft; mount --bind /run/flannel/held/nft $(readlink -f $(command -v nft))",
    )?;
    let _daemon = node.start_ready_flanneld(&["--service-mode=ipvs"])?;
    node.shell("touch /run/flannel/held/shut")?;
    let put = |key: &str, value: Value| lab.etcd().put(&format!("{SERVICES}/{key}"), value.to_string());
    put("config", config())?;
    put("spec/shop/web", web(VIP))?;
    put("endpoints/shop/web/http/172.31.77.1:80", json!({}))?;
    throughout(Duration::from_secs(3), "nothing before the rules", || {
        let seen = node.shell("ipvsadm -Ln | grep 10.96 || true; ip route show table local proto 70")?;
        ensure!(seen.is_empty(), "{seen}");
        Ok(())
    })?;
    node.shell("rm /run/flannel/held/shut")?;
    eventually(limit(20), "the Service once the rules stand", || {
        let seen = node.shell(
            "ipvsadm -Ln; ip route show table local proto 70; nft list chain ip flannel-services guard",
        )?;
        let all = ["172.31.77.1:80", "local 10.96.0.0/16", "reject with tcp reset"];
        ensure!(all.iter().all(|part| seen.contains(part)), "{seen}");
        Ok(())
    })
}
