//! Where Services come from, and what holds for all of them where the source does not say.

use std::path::PathBuf;
use std::str::FromStr;

use flannel_kube::KubeOptions;
use flannel_model::{IpSubnet, ServicesConfig};

use super::Typed;

/// Flags that stand for what etcd holds in `services/v1/config`.
const CONFIG_FLAGS: [&str; 6] = [
    "service-cluster-ip-range",
    "service-external-ip-range",
    "service-node-port-range",
    "nodeport-addresses",
    "ipvs-scheduler",
    "ipvs-drain-timeout",
];
/// Longest drain, in seconds: the limit of the same field in etcd.
const MAX_DRAIN: u32 = 86_400;

/// Where Services come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceSource {
    /// From etcd, below `<prefix>/services/v1/`.
    Etcd,
    /// From a Kubernetes API server.
    Kube {
        /// How to reach it.
        server: KubeOptions,
        /// What holds for all Services; without `cidrs`, those of the API server.
        config: Box<ServicesConfig>,
    },
    /// Nowhere: Services are somebody else's.
    None,
}

impl ServiceSource {
    /// Resolves what was typed; what makes no sense goes into `problems`.
    pub(super) fn resolve(typed: &Typed, problems: &mut Vec<String>) -> Self {
        let source = match typed.text("service-source").as_str() {
            "kube" => return kube(typed, problems),
            "etcd" => Self::Etcd,
            "none" => Self::None,
            other => {
                problems.push(format!("--service-source={other:?}: expected etcd, kube or none"));
                Self::None
            }
        };
        for flag in CONFIG_FLAGS.iter().filter(|flag| typed.optional(flag).is_some()) {
            problems.push(format!(
                "--{flag} is for --service-source=kube; with etcd it is set for all nodes in the key services/v1/config below the prefix"
            ));
        }
        source
    }
}

fn kube(typed: &Typed, problems: &mut Vec<String>) -> ServiceSource {
    let mut config = ServicesConfig {
        cidrs: ranges(typed, "service-cluster-ip-range", problems),
        external_cidrs: ranges(typed, "service-external-ip-range", problems),
        ..ServicesConfig::default()
    };
    if let Some(range) = read(typed, "service-node-port-range", problems) {
        config.node_port_range = range;
    }
    if let Some(addresses) = read(typed, "nodeport-addresses", problems) {
        config.node_port_addresses = addresses;
    }
    if let Some(scheduler) = read(typed, "ipvs-scheduler", problems) {
        config.scheduler = scheduler;
    }
    if let Some(text) = typed.optional("ipvs-drain-timeout") {
        match text
            .trim_end_matches('s')
            .parse()
            .ok()
            .filter(|seconds| *seconds <= MAX_DRAIN)
        {
            Some(seconds) => config.drain_timeout = seconds,
            None => problems.push(format!(
                "--ipvs-drain-timeout={text:?}: expected seconds from 0 to {MAX_DRAIN}"
            )),
        }
    }
    let path = typed.optional("kubeconfig-file").map(PathBuf::from);
    ServiceSource::Kube {
        server: KubeOptions::from_environment(typed.optional("kube-api-url"), path),
        config: Box::new(config),
    }
}

/// The value of a flag, if it is given and makes sense.
fn read<T: FromStr>(typed: &Typed, name: &str, problems: &mut Vec<String>) -> Option<T>
where
    T::Err: std::fmt::Display,
{
    match typed.optional(name)?.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            problems.push(format!("--{name}: {error}"));
            None
        }
    }
}

fn ranges(typed: &Typed, name: &str, problems: &mut Vec<String>) -> Vec<IpSubnet> {
    let text = typed.optional(name).unwrap_or_default();
    let mut ranges = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match item.parse() {
            Ok(range) => ranges.push(range),
            Err(error) => problems.push(format!("--{name}: {error}")),
        }
    }
    ranges.sort();
    ranges.dedup();
    ranges
}

/// What `--hostname-override` or `NODE_NAME` says, which a pod sets from `spec.nodeName`.
pub(super) fn node_name(typed: &Typed) -> Option<String> {
    let of_pod = || std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    typed.optional("hostname-override").or_else(of_pod)
}

#[cfg(test)]
mod tests {
    use super::super::{Parsed, parse};
    use super::*;

    fn resolve(args: &[&str]) -> (ServiceSource, Vec<String>) {
        let args: Vec<String> = args.iter().map(|&a| a.into()).collect();
        let Ok(Parsed::Run(typed)) = parse(&args, |_| None) else {
            panic!("{args:?}");
        };
        let mut problems = Vec::new();
        let source = ServiceSource::resolve(&typed, &mut problems);
        (source, problems)
    }

    #[test]
    fn flags_make_a_config_for_kubernetes() {
        let (source, problems) = resolve(&[
            "--service-source=kube",
            "--kube-api-url=https://192.0.2.1:6443",
            "--service-cluster-ip-range=10.96.0.0/16, fd00:96::/112",
            "--service-node-port-range=30000-30999",
            "--nodeport-addresses=192.0.2.0/24",
            "--ipvs-scheduler=lc",
            "--ipvs-drain-timeout=30s",
        ]);
        assert_eq!(problems, Vec::<String>::new());
        let ServiceSource::Kube { server, config } = source else {
            panic!("{source:?}");
        };
        assert_eq!(server.api_url.as_deref(), Some("https://192.0.2.1:6443"));
        assert_eq!((config.cidrs.len(), config.drain_timeout), (2, 30));
        assert_eq!(
            (config.scheduler.as_str(), config.node_port_range.last),
            ("lc", 30999)
        );
    }

    #[test]
    fn every_bad_value_is_named() {
        let (_, problems) = resolve(&[
            "--service-source=kube",
            "--service-cluster-ip-range=10.96",
            "--service-external-ip-range=here",
            "--service-node-port-range=9-1",
            "--nodeport-addresses=some",
            "--ipvs-scheduler=best",
            "--ipvs-drain-timeout=-1",
        ]);
        for flag in CONFIG_FLAGS {
            assert_eq!(
                problems.iter().filter(|p| p.contains(flag)).count(),
                1,
                "{flag}: {problems:?}"
            );
        }
        let (_, problems) = resolve(&["--service-source=etcd", "--ipvs-scheduler=lc"]);
        assert!(problems[0].contains("services/v1/config"), "{problems:?}");
        assert!(resolve(&["--service-source=consul"]).1[0].contains("etcd, kube or none"));
    }
}
