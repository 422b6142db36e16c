//! Real container runtimes on a node of the lab: containerd (by CRI and by `ctr`) and podman with its CNI backend.
//!
//! Containers run without cgroups: the kernel's are shared with the machine, and a killed lab would leave some behind. crun does
//! without when it is told to; all else is as the runtimes do it on a node.

mod containerd;
mod cri;
mod image;
mod podman;

pub use containerd::Containerd;
pub use cri::{Cri, PodConfig};
pub use image::{IMAGE, PORT};
pub use podman::Podman;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::node::Node;
use crate::sandbox;

/// Where Debian's package containernetworking-plugins puts its plugins.
const CHAINED_PLUGINS: &str = "/usr/lib/cni";
/// Those that a runtime runs besides ours.
const CHAINED: [&str; 2] = ["portmap", "loopback"];

/// The folder of a node's runtime, with plugins, images and state in it.
#[derive(Debug)]
struct Home(PathBuf);

impl Home {
    /// Furnishes the node `node` for a runtime that reads `conflist`.
    fn new(node: &Node, conflist: &str) -> Result<Self> {
        let home = Self(PathBuf::from(sandbox::SCRATCH).join(format!("runtime-{}", node.name())));
        for folder in ["bin", "conf"] {
            std::fs::create_dir_all(home.0.join(folder))?;
        }
        let link = |from: String, name: &str| std::os::unix::fs::symlink(from, home.0.join("bin").join(name));
        link(format!("{}/flannel", sandbox::BINARIES), "flannel")?;
        for name in CHAINED {
            link(format!("{CHAINED_PLUGINS}/{name}"), name)?;
        }
        std::fs::write(home.0.join("conf/10-flannel.conflist"), conflist)?;
        home.script("oci", "#!/bin/sh\nexec crun --cgroup-manager=disabled \"$@\"\n")?;
        // crun and the shims look what is mounted there; ctr's folders for plugins and configuration cannot be chosen.
        let (bin, conf) = (home.path("bin")?, home.path("conf")?);
        node.shell(&format!(
            "mount -t tmpfs tmpfs /sys/fs/cgroup; mount -t tmpfs tmpfs /opt; mkdir -p /opt/cni/bin; \
             mount --bind {bin} /opt/cni/bin; mount --bind {conf} /etc/cni/net.d"
        ))?;
        image::build(node, &home)?;
        Ok(home)
    }

    /// A file in it, as text.
    fn path(&self, name: &str) -> Result<String> {
        let path = self.0.join(name);
        path.into_os_string()
            .into_string()
            .ok()
            .with_context(|| format!("{name} is not UTF-8"))
    }

    /// An executable file in it.
    fn script(&self, name: &str, text: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .with_context(|| path.display().to_string())
    }
}
