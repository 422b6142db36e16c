//! Pods: a network namespace each, wired by the CNI plugin that is called as a runtime calls it.

use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::clock::{eventually, limit};
use crate::command::{Environment, Output};
use crate::node::Node;
use crate::place::Place;
use crate::process::Process;
use crate::sandbox;

/// The plugin entry of flannel's own conflist, with the name and version that a runtime adds.
pub const CNI_CONFIG: &str = r#"{"name":"cbr0","cniVersion":"0.3.1","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}"#;

/// One call of the CNI plugin.
#[derive(Debug, Clone)]
pub struct CniCall {
    /// CNI_COMMAND.
    pub command: String,
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_NETNS; not set when empty.
    pub netns: String,
    /// CNI_IFNAME.
    pub interface: String,
    /// Further variables, such as CNI_ARGS; they win over the ones above.
    pub variables: Vec<(String, String)>,
    /// What the plugin reads.
    pub stdin: Vec<u8>,
    /// A program with its arguments that starts the plugin; usually none.
    pub launcher: Vec<String>,
}

impl CniCall {
    /// ADD for the pod called `pod`, interface eth0.
    pub fn add(pod: &str) -> Self {
        Self::new("ADD", pod)
    }

    /// DEL for the pod called `pod`, interface eth0.
    pub fn del(pod: &str) -> Self {
        Self::new("DEL", pod)
    }

    /// Any command for the pod called `pod`.
    pub fn new(command: &str, pod: &str) -> Self {
        Self {
            command: command.into(),
            container: container_id(pod),
            netns: netns_path(pod),
            interface: "eth0".into(),
            variables: Vec::new(),
            stdin: CNI_CONFIG.into(),
            launcher: Vec::new(),
        }
    }

    /// With another input.
    pub fn stdin(self, stdin: impl Into<Vec<u8>>) -> Self {
        Self {
            stdin: stdin.into(),
            ..self
        }
    }

    /// Started by `launcher`, a program with its arguments.
    pub fn through(self, launcher: &[&str]) -> Self {
        Self {
            launcher: launcher.iter().map(|word| (*word).to_owned()).collect(),
            ..self
        }
    }

    /// Without CNI_NETNS, as runtimes send DEL when the container is gone.
    pub fn without_netns(self) -> Self {
        Self {
            netns: String::new(),
            ..self
        }
    }

    pub(crate) fn run(&self, node: &Node) -> Result<Output> {
        let mut set = vec![
            ("CNI_COMMAND".to_owned(), self.command.clone()),
            ("CNI_CONTAINERID".to_owned(), self.container.clone()),
            ("CNI_IFNAME".to_owned(), self.interface.clone()),
            ("CNI_PATH".to_owned(), sandbox::BINARIES.to_owned()),
        ];
        if !self.netns.is_empty() {
            set.push(("CNI_NETNS".to_owned(), self.netns.clone()));
        }
        set.extend(self.variables.iter().cloned());
        let program = format!("{}/flannel", sandbox::BINARIES);
        let argv: Vec<&str> = self
            .launcher
            .iter()
            .map(String::as_str)
            .chain([program.as_str()])
            .collect();
        node.exec_with(&argv, &self.stdin, &Environment { set, clean: true })
    }
}

/// A wired pod. It is also the [`Place`] where its programs run.
#[derive(Debug)]
pub struct Pod {
    place: Place,
    ip: String,
    result: Value,
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Pod {
    pub(crate) fn add(node: &Node, name: &str, config: &str) -> Result<Self> {
        let place = make_netns(node, name)?;
        let result = node
            .cni(&CniCall::add(name).stdin(config))?
            .json()
            .with_context(|| format!("cannot wire pod {name}"))?;
        let address = result["ips"][0]["address"]
            .as_str()
            .with_context(|| format!("no address in {result}"))?;
        let ip = address.split('/').next().unwrap_or_default().to_owned();
        Ok(Self { place, ip, result })
    }

    /// Its address, without the prefix length.
    pub fn ip(&self) -> &str {
        &self.ip
    }

    /// All addresses that the plugin gave it, without their prefix lengths.
    pub fn addresses(&self) -> Result<Vec<String>> {
        let ips = self.result["ips"].as_array().context("no addresses")?;
        let bare = |ip: &Value| Some(ip["address"].as_str()?.split('/').next()?.to_owned());
        ips.iter().map(|ip| bare(ip).context("no address")).collect()
    }

    /// What the plugin answered to ADD.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// Starts a responder in the pod that answers TCP and UDP on `port` with the pod's name and the source address.
    pub fn respond(&self, port: u16) -> Result<Process> {
        respond(&self.place, self.name(), port)
    }

    /// Asks `address` (`ip:port`) once by `protocol` (tcp or udp); the answer, as `name source-address`.
    pub fn ask(&self, protocol: &str, address: &str) -> Result<String> {
        let answers = ask(&self.place, protocol, address, 1)?;
        answers
            .into_iter()
            .next()
            .context("no answer at all")?
            .map_err(anyhow::Error::msg)
    }

    /// Asks `count` times; each answer, or how the attempt failed.
    pub fn ask_many(
        &self,
        protocol: &str,
        address: &str,
        count: usize,
    ) -> Result<Vec<Result<String, String>>> {
        ask(&self.place, protocol, address, count)
    }
}

/// Makes a pod's network namespace, visible on its node at [`netns_path`], as a runtime does before ADD.
pub fn make_netns(node: &Node, name: &str) -> Result<Place> {
    node.shell(&format!("ip netns add {name} && ip -n {name} link set lo up"))?;
    Ok(node.pod_place(name))
}

/// Where a pod's network namespace is on its node.
pub fn netns_path(pod: &str) -> String {
    format!("/run/netns/{pod}")
}

/// The container id of the pod called `pod`.
pub fn container_id(pod: &str) -> String {
    format!("lab-{pod}")
}

/// Starts a responder called `name` at `place` and waits until it listens.
pub fn respond(place: &Place, name: &str, port: u16) -> Result<Process> {
    let program = format!("{}/lab-tool", sandbox::BINARIES);
    let argv = [program.as_str(), "respond", name, &port.to_string()];
    let mut process = place.spawn(
        &format!("responder-{name}-{port}"),
        &argv,
        &Environment::default(),
    )?;
    eventually(limit(5), &format!("the responder {name}"), || {
        process.check_running()?;
        process
            .log_text()?
            .contains("listening")
            .then_some(())
            .context("it does not listen yet")
    })?;
    Ok(process)
}

/// Asks a responder `count` times from `place`.
pub fn ask(
    place: &Place,
    protocol: &str,
    address: &str,
    count: usize,
) -> Result<Vec<Result<String, String>>> {
    ask_within(place, protocol, address, count, limit(5))
}

/// The same, where each answer may take as long as `patience`.
pub fn ask_within(
    place: &Place,
    protocol: &str,
    address: &str,
    count: usize,
    patience: Duration,
) -> Result<Vec<Result<String, String>>> {
    let program = format!("{}/lab-tool", sandbox::BINARIES);
    let patience = patience.as_millis().to_string();
    let argv = [
        program.as_str(),
        "ask",
        protocol,
        address,
        &count.to_string(),
        &patience,
    ];
    let output = place.exec_within(&argv, 5 + 2 * count as u64)?.ok()?;
    let answer = |line: &str| {
        line.strip_prefix("error: ")
            .map_or_else(|| Ok(line.to_owned()), |e| Err(e.to_owned()))
    };
    Ok(output.lines().map(answer).collect())
}
