//! A node: a network and a mount namespace, so that flannel's default paths are the node's own.

use std::ops::Deref;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::clock::{eventually, limit};
use crate::command::{Environment, Output};
use crate::flanneld::Flanneld;
use crate::place::Place;
use crate::pod::{CNI_CONFIG, CniCall, Pod, netns_path};
use crate::process::Process;
use crate::sandbox;

/// The folders that every node has for itself.
const OWN_FOLDERS: &str = "/run/netns /run/flannel /var/lib/cni /var/lib/flannel";

/// A node of the lab. It is also the [`Place`] where its programs run.
#[derive(Debug)]
pub struct Node {
    place: Place,
    address: String,
    ipv6_address: String,
    holder: Process,
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Node {
    /// Makes the mount namespace for the network namespace called `name`.
    pub(crate) fn new(name: &str, address: &str, ipv6_address: &str) -> Result<Self> {
        let up = format!("{}/{name}.up", sandbox::SCRATCH);
        // ip_forward starts at 0 whatever the machine has: pods must not work by the machine's luck.
        let script = format!(
            "mkdir -p {OWN_FOLDERS}; for d in {OWN_FOLDERS}; do mount -t tmpfs -o mode=0755 tmpfs $d; done; \
             mount -t sysfs sysfs /sys; echo 0 > /proc/sys/net/ipv4/ip_forward; : > {up}; exec sleep infinity"
        );
        let argv = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-ec",
            &script,
        ];
        let mut holder = Place::netns(name).spawn(name, &argv, &Environment::default())?;
        eventually(limit(10), &format!("{name}'s mounts"), || {
            holder.check_running()?;
            std::fs::metadata(&up).map(drop).context("not there yet")
        })?;
        let place = Place::of_process(name, holder.pid());
        Ok(Self {
            place,
            address: address.into(),
            ipv6_address: ipv6_address.into(),
            holder,
        })
    }

    /// Its address on the underlay.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its IPv6 address on the underlay, in a lab that has IPv6.
    pub fn ipv6_address(&self) -> &str {
        &self.ipv6_address
    }

    /// Starts flanneld with `arguments` besides the address of the lab's etcd.
    pub fn start_flanneld(&self, arguments: &[&str]) -> Result<Flanneld> {
        Flanneld::start(self, arguments)
    }

    /// Starts flanneld and waits until it is ready.
    pub fn start_ready_flanneld(&self, arguments: &[&str]) -> Result<Flanneld> {
        let mut daemon = self.start_flanneld(arguments)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// The variables of subnet.env, in order.
    pub fn subnet_env(&self) -> Result<Vec<(String, String)>> {
        let text = self.read_file("/run/flannel/subnet.env")?;
        let pair = |line: &str| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        text.lines()
            .map(|l| pair(l).with_context(|| format!("subnet.env: not a variable: {l}")))
            .collect()
    }

    /// Calls the CNI plugin as a runtime does.
    pub fn cni(&self, call: &CniCall) -> Result<Output> {
        call.run(self)
    }

    /// Makes a pod and has the CNI plugin wire it.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        self.add_pod_with(name, CNI_CONFIG)
    }

    /// The same with another plugin entry.
    pub fn add_pod_with(&self, name: &str, config: &str) -> Result<Pod> {
        Pod::add(self, name, config)
    }

    /// The namespace of the pod called `name`, which somebody has made.
    pub fn pod_place(&self, name: &str) -> Place {
        Place::of_path_in(name, self.holder_pid(), &netns_path(name))
    }

    /// Has the CNI plugin take a pod's wiring away and removes its namespace.
    pub fn del_pod(&self, pod: Pod) -> Result<()> {
        self.cni(&CniCall::del(pod.name()))?.ok()?;
        self.run(&["ip", "netns", "delete", pod.name()]).map(drop)
    }

    /// The node's file `path` as the sandbox sees it, for reading without starting a program on the node.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder_pid()))
    }

    /// The names of the node's links, as its kernel has them now.
    pub fn link_names(&self) -> Result<Vec<String>> {
        let table = std::fs::read_to_string(format!("/proc/{}/net/dev", self.holder_pid()))?;
        let names = table
            .lines()
            .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
        Ok(names.collect())
    }

    /// The process whose namespaces are the node's.
    pub(crate) fn holder_pid(&self) -> u32 {
        self.holder.pid()
    }
}
