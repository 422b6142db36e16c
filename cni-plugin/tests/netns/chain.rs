//! Other plugins behind ours in a chain, as packaged by the distribution, and traffic through what they made.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::V4;
use crate::lab::{Node, Space, root};

/// Where Debian's containernetworking-plugins puts them.
const PLUGINS: &str = "/usr/lib/cni";
const PATIENCE: Duration = Duration::from_secs(10);

fn installed() -> bool {
    let there = Path::new(PLUGINS).join("portmap").exists();
    assert!(
        there || std::env::var_os("CI").is_none(),
        "these tests need containernetworking-plugins"
    );
    there
}

/// Ours, and those behind it.
struct Chain {
    node: Node,
    behind: Vec<Value>,
}

impl Chain {
    fn new(behind: Value) -> Self {
        let delegate = json!({ "hairpinMode": true, "isDefaultGateway": true });
        Self {
            node: Node::new(V4, delegate),
            behind: behind.as_array().unwrap().clone(),
        }
    }

    /// One call of a plugin behind ours.
    fn call(&self, plugin: &Value, verb: &str, pod: &Space, previous: &Value) -> Value {
        let mut conf = plugin.clone();
        conf["name"] = self.node.conf["name"].clone();
        conf["cniVersion"] = self.node.conf["cniVersion"].clone();
        conf["prevResult"] = previous.clone();
        let input = self.node.file("stdin");
        fs::write(&input, conf.to_string()).unwrap();
        let program = Path::new(PLUGINS).join(plugin["type"].as_str().unwrap());
        let mut command = Command::new(program);
        command.stdin(File::open(input).unwrap()).envs([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", &pod.path()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", PLUGINS),
        ]);
        let output = self.node.space.run(&mut command);
        assert!(output.status.success(), "{verb} of {plugin}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn add(&self, pod: &Space) -> Value {
        let first = self.node.add("c1", pod).json;
        let each = self.behind.iter();
        each.fold(first, |previous, plugin| self.call(plugin, "ADD", pod, &previous))
    }

    fn check(&mut self, pod: &Space, result: &Value) {
        self.node.conf["prevResult"] = result.clone();
        let answer = self.node.call("CHECK", "c1", &pod.path());
        assert!(answer.ok, "{}", answer.json);
        // portmap's CHECK of 1.1.1 looks for IPv4 rules among those of IPv6, and never succeeds.
        for plugin in self.behind.iter().filter(|plugin| plugin["type"] != "portmap") {
            self.call(plugin, "CHECK", pod, result);
        }
    }

    fn del(&mut self, pod: &Space, result: &Value) {
        for plugin in self.behind.iter().rev() {
            self.call(plugin, "DEL", pod, result);
        }
        self.node.conf["prevResult"] = result.clone();
        self.node.del("c1", &pod.path());
    }
}

/// Answers every connection with who asked.
fn respond(pod: &Space, port: u16) {
    let listener = pod.inside(|| TcpListener::bind(("0.0.0.0", port))).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, asker)) = listener.accept() {
            let _ = write!(stream, "{}", asker.ip());
        }
    });
}

fn ask(from: &Space, address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = from
        .inside(|| TcpStream::connect_timeout(&address, PATIENCE))
        .ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn portmap_bandwidth_tuning_and_firewall_work_behind_us() {
    if !root() || !installed() {
        return;
    }
    let mut chain = Chain::new(json!([
        { "type": "portmap", "snat": true, "runtimeConfig": {
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] } },
        { "type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 80_000_000,
          "egressRate": 80_000_000, "egressBurst": 80_000_000 },
        { "type": "tuning", "sysctl": { "net.core.somaxconn": "511" } },
        { "type": "firewall", "backend": "iptables" },
    ]));
    chain.node.conf["cniVersion"] = json!("1.0.0");
    let (pod, outside) = (Space::new(), Space::new());
    let uplink = format!("link add up0 type veth peer name up0 netns {}", outside.path());
    chain.node.space.ok("ip", &uplink);
    for (space, address) in [(&chain.node.space, "192.0.2.1/24"), (&outside, "192.0.2.2/24")] {
        space.ok("ip", &format!("address add {address} dev up0"));
        space.ok("ip", "link set up0 up");
    }
    let rules_before = chain.node.space.ok("iptables-save", "-t filter");

    let result = chain.add(&pod);
    let port = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/24");
    assert_eq!(pod.sysctl("core/somaxconn"), "511");
    let queues = chain.node.space.ok("tc", &format!("qdisc show dev {port}"));
    assert!(queues.contains("tbf") && queues.contains("ingress"), "{queues}");
    let rules = chain.node.space.ok("iptables-save", "-t filter");
    assert!(
        rules.contains("10.244.1.2/32") && rules != rules_before,
        "{rules}"
    );
    chain.check(&pod, &result);

    respond(&pod, 80);
    assert_eq!(ask(&outside, "192.0.2.1:8080").as_deref(), Some("192.0.2.2"));
    // The pod's own port by way of the node: the frame goes back out of the port that it came in by.
    assert!(ask(&pod, "192.0.2.1:8080").is_some());

    chain.del(&pod, &result);
    assert_eq!(ask(&outside, "192.0.2.1:8080"), None);
    let rules = chain.node.space.ok("iptables-save", "");
    assert!(!rules.contains("10.244.1.2"), "{rules}");
    assert_eq!(pod.devices(), ["lo"]);
    let rest = chain.node.space.devices();
    assert_eq!(rest, ["lo", "up0", "cni0"], "and nothing of bandwidth");
    chain.node.assert_clean();
}

/// Our own, run behind another network's plugin, passes on what came before it.
#[test]
fn an_earlier_result_is_passed_on() {
    if !root() {
        return;
    }
    let mut node = Node::new(V4, json!({ "isDefaultGateway": true }));
    node.conf["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "lo", "sandbox": "/run/netns/x" }],
        "ips": [{ "address": "127.0.0.1/8", "interface": 0 }],
    });
    let pod = Space::new();
    let result = node.add("c1", &pod).json;
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 4);
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
    assert_eq!(result["ips"][1]["interface"], 3);
    node.conf["prevResult"] = result;
    assert!(node.call("CHECK", "c1", &pod.path()).ok);
    node.del("c1", "");
    node.assert_clean();
}
