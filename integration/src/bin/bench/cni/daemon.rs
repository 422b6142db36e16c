//! flanneld on our node, with an etcd of its own: it deletes what the plugin leaves to it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use flannel_lab::command::Environment;
use flannel_lab::process::Process;
use flannel_lab::{Place, eventually, limit, sandbox};

use super::side::{GATEWAY, SUBNET};

const ETCD: &str = "http://127.0.0.1:2379";
/// The one subnet that there is, in a network like that of the rival's routes.
const CONFIG: &str = r#"{"Network":"10.64.0.0/10","SubnetLen":16,"SubnetMin":"10.77.0.0","SubnetMax":"10.77.0.0","Backend":{"Type":"alloc"}}"#;

/// Both end with this value.
pub struct Daemon {
    _flanneld: Process,
    _etcd: Process,
}

impl Daemon {
    /// Starts both in the namespace `node`, and waits until subnet.env is in `files`.
    pub fn start(node: &str, files: &Path) -> Result<Self> {
        let place = Place::netns(node);
        place.shell(
            "ip link add ext0 mtu 1450 type veth peer name ext1; ip address add 192.0.2.10/24 dev ext0; \
             ip link set ext1 up; ip link set ext0 up; ip route add default via 192.0.2.1",
        )?;
        let path = |name: &str| files.join(name).to_string_lossy().into_owned();
        let env = Environment {
            clean: true,
            ..Environment::default()
        };
        let data = path("etcd");
        let etcd = [
            "etcd",
            "--data-dir",
            &data,
            "--log-level",
            "error",
            "--listen-client-urls",
            ETCD,
            "--advertise-client-urls",
            ETCD,
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
            "--unsafe-no-fsync",
        ];
        let etcd = place.spawn(&format!("{node}-etcd"), &etcd, &env)?;
        eventually(limit(30), "etcd to take the config", || {
            let put = [
                "etcdctl",
                "--endpoints",
                ETCD,
                "put",
                "/coreos.com/network/config",
                CONFIG,
            ];
            place.run(&put).map(drop)
        })?;
        let env_file = files.join("subnet.env");
        std::fs::remove_file(&env_file).ok();
        let program = format!("{}/flanneld", sandbox::BINARIES);
        let flags = [
            format!("--etcd-endpoints={ETCD}"),
            "--iface=ext0".to_owned(),
            "--ip-masq".to_owned(),
            format!("--subnet-file={}", env_file.display()),
            format!("--state-dir={}", path("state")),
        ];
        let argv: Vec<&str> = [program.as_str()]
            .into_iter()
            .chain(flags.iter().map(String::as_str))
            .collect();
        let mut flanneld = place.spawn(&format!("{node}-flanneld"), &argv, &env)?;
        let subnet = format!(
            "FLANNEL_SUBNET={GATEWAY}/{}",
            SUBNET.split('/').nth(1).unwrap_or_default()
        );
        eventually(limit(30), "flanneld to have its subnet", || {
            flanneld.check_running()?;
            let text = std::fs::read_to_string(&env_file)
                .with_context(|| format!("its log:\n{}", flanneld.log_text().unwrap_or_default()))?;
            ensure!(text.contains(&subnet), "{text}");
            Ok(())
        })?;
        Ok(Self {
            _flanneld: flanneld,
            _etcd: etcd,
        })
    }
}
