//! containerd with its state in the lab.

use anyhow::{Context, Result};

use super::cri::Cri;
use super::{Home, image};
use crate::clock::{eventually, limit};
use crate::command::Environment;
use crate::node::Node;
use crate::process::Process;

/// A running containerd. Its containers end with it or with the sandbox.
#[derive(Debug)]
pub struct Containerd<'a> {
    node: &'a Node,
    home: Home,
    socket: String,
    _process: Process,
}

impl<'a> Containerd<'a> {
    /// Starts it on `node` with the CNI configuration `conflist`, and gives it the images.
    pub fn start(node: &'a Node, conflist: &str) -> Result<Self> {
        let home = Home::new(node, conflist)?;
        let socket = home.path("containerd.sock")?;
        let file = home.path("containerd.toml")?;
        std::fs::write(&file, config(&home)?)?;
        let argv = ["containerd", "--config", &file];
        let log = format!("containerd-{}", node.name());
        let mut process = node.spawn(&log, &argv, &Environment::default())?;
        eventually(limit(20), "containerd", || {
            process.check_running()?;
            node.run(&["ctr", "--address", &socket, "version"]).map(drop)
        })?;
        let containerd = Self {
            node,
            home,
            socket,
            _process: process,
        };
        for namespace in ["default", "k8s.io"] {
            for file in image::FILES {
                let path = containerd.home.path(file)?;
                containerd.ctr(&["--namespace", namespace, "images", "import", &path])?;
            }
        }
        Ok(containerd)
    }

    /// What Kubernetes' node agent talks to.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.socket).context("cannot connect to containerd")
    }

    /// `ctr run --rm --cni`: a container called `name` from [`super::IMAGE`] that runs `script`; what it said.
    pub fn run(&self, name: &str, script: &str) -> Result<String> {
        let oci = self.home.path("oci")?;
        let start = ["run", "--rm", "--cni", "--runc-binary", &oci, image::IMAGE, name];
        self.ctr(&[&start[..], &["sh", "-c", script]].concat())
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        self.node
            .exec_within(&[&["ctr", "--address", &self.socket], arguments].concat(), 30)?
            .ok()
    }
}

/// `restrict_oom_score_adj`: a lab may run without CAP_SYS_RESOURCE, and then no score below its own can be set.
fn config(home: &Home) -> Result<String> {
    Ok(format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_cgroup = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{bin}"
  conf_dir = "{conf}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  BinaryName = "{oci}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{opt}"
"#,
        root = home.path("root")?,
        state = home.path("state")?,
        socket = home.path("containerd.sock")?,
        pause = image::PAUSE,
        bin = home.path("bin")?,
        conf = home.path("conf")?,
        oci = home.path("oci")?,
        opt = home.path("opt")?,
    ))
}
