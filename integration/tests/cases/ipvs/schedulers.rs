//! Every scheduler, by the annotation of a Service.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flannel_lab::sandbox;
use flannel_model::{Scheduler, ServiceProtocol, VirtualAddress};
use flannel_netlink::Netns;
use flannel_netlink::generic::{Ipvs, IpvsKey, IpvsRequest, VirtualServer};

use super::stand::{PORT, Stand, config};

/// Each scheduler of Linux stands in the kernel as the annotation asks for, and clients get answers through it. One that this kernel does
/// not have is named, with its Service, and harms no other; without it the Service is refused at once.
pub fn every_scheduler_serves_or_is_named() -> Result<()> {
    let mut stand = Stand::open(&config())?;
    let schedulers: Vec<Scheduler> = Scheduler::all().collect();
    ensure!(schedulers.len() == 14, "{schedulers:?}");
    let file = format!("{}/schedulers.yaml", sandbox::SCRATCH);
    let manifests = |(n, scheduler): (usize, &Scheduler)| manifest(n, scheduler.as_str());
    let text: Vec<String> = schedulers.iter().enumerate().map(manifests).collect();
    std::fs::write(&file, text.join("---\n"))?;
    stand.lab.flannelctl(&["service", "apply", "-f", &file])?.ok()?;
    for scheduler in &schedulers {
        stand.endpoints(&format!("by-{scheduler}"), &[0, 1])?;
    }
    let title = |n: usize, scheduler: &str| {
        let flags = if scheduler == "mh" { " (mh-port)" } else { "" };
        format!("TCP {}:80 {scheduler}{flags}", address(n))
    };
    let mut lacking = Vec::new();
    for (n, scheduler) in schedulers.iter().map(Scheduler::as_str).enumerate() {
        if !has(&stand, scheduler)? {
            lacking.push((n, scheduler));
            continue;
        }
        stand.await_servers(&title(n, scheduler), &[(0, PORT, 1), (1, PORT, 1)])?;
        // one by one, and patiently: ovf has no server while each of both still has as many connections as its weight
        for _ in 0..4 {
            let answer = stand.await_answer(&format!("{}:80", address(n)));
            answer.with_context(|| scheduler.to_owned())?;
        }
    }
    for (n, scheduler) in lacking {
        println!("this kernel has no {scheduler}");
        stand.await_log(&format!("no scheduler {scheduler}"))?;
        let refused = stand.client.ask("tcp", &format!("{}:80", address(n)));
        ensure!(refused.is_err(), "{scheduler}: {refused:?}");
    }
    // two endpoints by turns, and by the client's address
    let seen = |n: usize| -> Result<BTreeSet<String>> {
        let answers = stand.client.ask_many("tcp", &format!("{}:80", address(n)), 8)?;
        let server = |answer: Result<String, String>| {
            let answer = answer.map_err(anyhow::Error::msg)?;
            answer.split(' ').next().map(str::to_owned).context("no name")
        };
        answers.into_iter().map(server).collect()
    };
    for (n, scheduler) in schedulers.iter().map(Scheduler::as_str).enumerate() {
        match scheduler {
            "rr" | "wrr" => ensure!(seen(n)?.len() == 2, "{scheduler}"),
            "sh" | "dh" | "fo" | "lblc" => ensure!(seen(n)?.len() == 1, "{scheduler}"),
            _ => {}
        }
    }
    check_that_a_missing_scheduler_is_enoent(&stand)
}

/// Whether the kernel has a scheduler: asked by a virtual server elsewhere.
fn has(stand: &Stand, scheduler: &str) -> Result<bool> {
    let ask = format!(
        "ipvsadm -A -t 203.0.113.99:9 -s {scheduler} 2>/dev/null && ipvsadm -D -t 203.0.113.99:9 && echo yes || true"
    );
    Ok(stand.node()?.shell(&ask)?.contains("yes"))
}

fn address(n: usize) -> String {
    format!("10.96.2.{}", n + 1)
}

fn manifest(n: usize, scheduler: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: by-{scheduler}
  namespace: shop
  annotations: {{flannel.alpha.coreos.com/ipvs-scheduler: {scheduler}}}
spec:
  clusterIP: {}
  ports:
  - {{name: http, port: 80, protocol: TCP}}
  - {{name: query, port: 53, protocol: UDP}}
  - {{name: lines, port: 81, protocol: TCP}}
",
        address(n)
    )
}

/// What the daemon takes for a scheduler that is missing, asked of this kernel: there is none of that name.
fn check_that_a_missing_scheduler_is_enoent(stand: &Stand) -> Result<()> {
    let netns = Netns::open(format!("/run/netns/{}", stand.node()?.name()))?;
    let mut ipvs = netns.run(Ipvs::open)??.context("no IPVS")?;
    let server = VirtualServer {
        key: IpvsKey::Address(VirtualAddress {
            protocol: ServiceProtocol::Tcp,
            address: [203, 0, 113, 99].into(),
            port: 9,
        }),
        scheduler: "nonesuch".into(),
        flags: 0,
        timeout: 0,
    };
    let outcome = ipvs.apply(&[IpvsRequest::AddVirtual(server)]).remove(0);
    let error = outcome.err().context("IPVS knows a scheduler nonesuch")?;
    ensure!(error.errno() == Some(2), "{error}");
    Ok(())
}
