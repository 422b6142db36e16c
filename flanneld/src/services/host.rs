//! Settings of the host that Services share with everything else on it, and that whoever runs the node may set through us, by
//! kube-proxy's names. Nothing is set unless it was asked for.

use std::io::ErrorKind;
use std::path::Path;

use flannel_netlink::generic::IpvsTimeouts;
use flannel_netlink::sysctl;

/// Buckets of the connection table; `nf_conntrack_max` alone would make its chains longer.
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";
/// Connections that one bucket should hold (what kube-proxy takes; the kernel's own default is 1).
const A_BUCKET: u64 = 4;

/// Limits and timeouts of connection tracking. What is `None` or 0 stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections for each processor; 0 leaves the limit alone.
    pub max_per_core: u64,
    /// Connections at the least, where there is a limit for each processor.
    pub min: u64,
    /// Seconds for which an open TCP connection without packets is remembered.
    pub tcp_established: Option<u32>,
    /// Seconds in CLOSE_WAIT.
    pub tcp_close_wait: Option<u32>,
    /// Seconds for which a UDP packet without an answer is remembered.
    pub udp: Option<u32>,
    /// Seconds for UDP that was answered.
    pub udp_stream: Option<u32>,
    /// TCP packets outside their window count as packets of their connection.
    pub tcp_liberal: bool,
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// Of connection tracking, with both programmers.
    pub conntrack: Conntrack,
    /// Of IPVS.
    pub ipvs_timeouts: IpvsTimeouts,
    /// An address is answered for by ARP on the device that has it, and on no other: external addresses of Services, which no
    /// device has, are left to who announces them.
    pub strict_arp: bool,
}

impl Conntrack {
    /// Sysctls, by their path, and their values.
    fn sysctls(&self, processors: u64) -> Vec<(&'static str, u64)> {
        let max = (self.max_per_core > 0).then(|| self.max_per_core.saturating_mul(processors).max(self.min));
        let seconds = |seconds: Option<u32>| seconds.map(u64::from);
        let all = [
            ("net/netfilter/nf_conntrack_max", max),
            (
                "net/netfilter/nf_conntrack_tcp_timeout_established",
                seconds(self.tcp_established),
            ),
            (
                "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
                seconds(self.tcp_close_wait),
            ),
            ("net/netfilter/nf_conntrack_udp_timeout", seconds(self.udp)),
            (
                "net/netfilter/nf_conntrack_udp_timeout_stream",
                seconds(self.udp_stream),
            ),
            (
                "net/netfilter/nf_conntrack_tcp_be_liberal",
                self.tcp_liberal.then_some(1),
            ),
        ];
        all.into_iter()
            .filter_map(|(path, value)| Some((path, value?)))
            .collect()
    }

    /// Sets what was asked for. Answers a sentence for each that cannot be set: Services work without it.
    pub(super) fn set(&self, notes: &Path) -> Vec<String> {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let wanted = self.sysctls(processors);
        let mut faults: Vec<String> = wanted
            .iter()
            .filter_map(|(path, value)| set_sysctl(path, *value, Some(notes)))
            .collect();
        if let Some((_, max)) = wanted.iter().find(|(path, _)| path.ends_with("nf_conntrack_max")) {
            faults.extend(grow(Path::new(BUCKETS), max / A_BUCKET));
        }
        faults
    }
}

/// Brings a sysctl to a value unless it has it. Answers why that did not work.
pub(super) fn set_sysctl(path: &str, value: u64, notes: Option<&Path>) -> Option<String> {
    let name = path.replace('/', ".");
    match sysctl::set(path, &value.to_string(), notes) {
        Ok(true) => {
            tracing::info!("sysctl {name} is {value} now, as the flags ask for");
            None
        }
        Ok(false) => None,
        Err(error) if error.kind() == ErrorKind::NotFound => Some(format!(
            "sysctl {name} cannot be set to {value}: this kernel, or this network namespace, has none"
        )),
        Err(error) => Some(format!("sysctl {name} cannot be set to {value}: {error}")),
    }
}

/// More buckets, never fewer. A kernel that does not let them be changed has what it has.
fn grow(file: &Path, buckets: u64) -> Option<String> {
    let enough = |text: String| text.trim().parse().is_ok_and(|now: u64| now >= buckets);
    let grown = std::fs::read_to_string(file).and_then(|text| match enough(text) {
        true => Ok(()),
        false => std::fs::write(file, format!("{buckets}\n")),
    });
    match grown {
        Ok(()) => None,
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => Some(format!("{} cannot be set to {buckets}: {error}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_set_unless_asked_for_and_the_least_counts_with_a_limit_only() {
        assert_eq!(Conntrack::default().sysctls(8), []);
        let none = Conntrack {
            min: 131_072,
            ..Conntrack::default()
        };
        assert_eq!(none.sysctls(8), []);
        let some = Conntrack {
            max_per_core: 32_768,
            udp: Some(45),
            ..none
        };
        assert_eq!(
            some.sysctls(2),
            [
                ("net/netfilter/nf_conntrack_max", 131_072),
                ("net/netfilter/nf_conntrack_udp_timeout", 45)
            ]
        );
        assert_eq!(some.sysctls(8)[0].1, 262_144);
    }

    #[test]
    fn tables_grow_and_do_not_shrink() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hashsize");
        std::fs::write(&file, "65536\n").unwrap();
        assert_eq!(grow(&file, 1000), None);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "65536\n");
        assert_eq!(grow(&file, 131_072), None);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "131072\n");
        assert_eq!(grow(&folder.path().join("none"), 1), None);
    }
}
