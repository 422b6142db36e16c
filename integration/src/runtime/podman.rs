//! podman with its CNI backend.

use anyhow::Result;

use super::{Home, image};
use crate::command::{Environment, Output};
use crate::node::Node;

/// podman on a node. It has no daemon.
#[derive(Debug)]
pub struct Podman<'a> {
    node: &'a Node,
    home: Home,
}

impl<'a> Podman<'a> {
    /// Furnishes podman on `node` with the CNI configuration `conflist`, whose network is called cbr0, and the image.
    pub fn new(node: &'a Node, conflist: &str) -> Result<Self> {
        let home = Home::new(node, conflist)?;
        std::fs::write(home.path("containers.conf")?, config(&home)?)?;
        let podman = Self { node, home };
        podman.run(&["load", "--quiet", "--input", &podman.home.path(image::FILES[0])?])?;
        Ok(podman)
    }

    /// Runs `podman` with these arguments; it must succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.exec(arguments)?.ok()
    }

    fn exec(&self, arguments: &[&str]) -> Result<Output> {
        let [root, runroot, tmp] =
            ["podman-root", "podman-runroot", "podman-tmp"].map(|name| self.home.path(name));
        let (root, runroot, tmp) = (root?, runroot?, tmp?);
        let start = ["podman", "--root", &root, "--runroot", &runroot, "--tmpdir", &tmp];
        let config = self.home.path("containers.conf")?;
        let env = Environment::with(&[("CONTAINERS_CONF", &config)]);
        self.node.exec_with(&[&start[..], arguments].concat(), b"", &env)
    }
}

/// The limits are lowered because a lab may run without CAP_SYS_RESOURCE and then cannot raise its own.
fn config(home: &Home) -> Result<String> {
    Ok(format!(
        r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
cgroups = "disabled"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{bin}"]
network_config_dir = "{conf}"
default_network = "cbr0"
"#,
        bin = home.path("bin")?,
        conf = home.path("conf")?,
    ))
}
