//! A Service: one address, answered by pods on different nodes.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use flannel_lab::{Lab, LabOptions, Pod, Process, eventually, limit, sandbox};

use crate::{overlay, show};

const SERVICE: &str = "10.96.0.10";
const QUESTIONS: usize = 6;

/// The Service in a lab of its own, with two nodes; the steps before it have numbers up to `before`.
pub fn show_alone(before: u32) -> Result<()> {
    show::continue_after(before);
    let lab = show::step("In the guest: two nodes on a switch, and an etcd", || {
        Lab::new(&LabOptions::nodes(2))
    })?;
    let _daemons = show::step("flanneld on each node", || overlay::start(&lab))?;
    let pods = show::step("Two pods on each node", || overlay::add_pods(&lab))?;
    show(&lab, &pods)
}

/// The Service in the lab as it stands: the last pod of the first and of the second node serve, the first pod asks.
pub fn show(lab: &Lab, pods: &[Pod]) -> Result<()> {
    let servers = [&pods[1], &pods[3]];
    let _responders = show::step("A Service: one address for pods on two nodes", || {
        publish(lab, &servers)
    })?;
    show::step("IPVS has it on every node", || programmed(lab))?;
    show::step("A pod asks the Service's address", || ask(&pods[0], &servers))
}

fn publish(lab: &Lab, servers: &[&Pod]) -> Result<Vec<Process>> {
    show::say("Written as for Kubernetes, kept in etcd; every flanneld watches for it.");
    let file = format!("{}/web.yaml", sandbox::SCRATCH);
    let text = manifest(servers);
    std::fs::write(&file, &text)?;
    show::command("cat web.yaml", &text);
    let said = lab.flannelctl(&["service", "apply", "-f", &file])?.ok()?;
    show::command("flannelctl service apply -f web.yaml", &said);
    servers.iter().map(|pod| pod.respond(8080)).collect()
}

fn manifest(servers: &[&Pod]) -> String {
    let endpoints: String = servers
        .iter()
        .map(|p| format!("- addresses: [{}]\n", p.ip()))
        .collect();
    format!(
        "apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {{name: kubernetes}}
spec: {{cidrs: [10.96.0.0/16]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: demo}}
spec:
  clusterIP: {SERVICE}
  ports:
  - {{name: http, protocol: TCP, port: 80, targetPort: 8080}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: demo
  labels: {{kubernetes.io/service-name: web}}
addressType: IPv4
ports:
- {{name: http, protocol: TCP, port: 8080}}
endpoints:
{endpoints}"
    )
}

fn programmed(lab: &Lab) -> Result<()> {
    show::say(
        "IPVS is the kernel's load balancer; rr means by turns, Masq that answers come back through the node.",
    );
    for node in lab.nodes() {
        let table = eventually(limit(20), "the Service in IPVS", || {
            let table = node.run(&["ipvsadm", "-Ln"])?;
            let complete =
                table.contains(&format!("TCP  {SERVICE}:80 rr")) && table.matches("Masq").count() == 2;
            ensure!(complete, "{table}");
            Ok(table)
        })?;
        show::say(&format!("{}:", node.name()));
        show::command("ipvsadm -Ln", &table);
    }
    Ok(())
}

fn ask(client: &Pod, servers: &[&Pod]) -> Result<()> {
    let address = format!("{SERVICE}:80");
    eventually(limit(10), "a first answer", || client.ask("tcp", &address))?;
    let mut seen = BTreeSet::new();
    for answer in client.ask_many("tcp", &address, QUESTIONS)? {
        let answer = answer.map_err(anyhow::Error::msg)?;
        let server = answer.split(' ').next().context("an empty answer")?.to_owned();
        show::say(&format!("{} asks {address}: {server} answers", client.name()));
        seen.insert(server);
    }
    let expected: BTreeSet<String> = servers.iter().map(|p| p.name().to_owned()).collect();
    ensure!(
        seen == expected,
        "answered by {seen:?}, not by all of {expected:?}"
    );
    Ok(())
}
