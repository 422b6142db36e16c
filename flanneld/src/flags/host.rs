//! Settings of the host, by kube-proxy's names.

use flannel_netlink::generic::IpvsTimeouts;

use super::Typed;
use crate::services::{Conntrack, HostSettings};

/// Longest of these timeouts, in seconds: the kernel keeps them in jiffies of 32 bits.
const LONGEST: u64 = 7 * 86_400;

/// What was typed; what makes no sense goes into `problems`.
pub(super) fn settings(typed: &Typed, problems: &mut Vec<String>) -> HostSettings {
    let mut seconds = |name: &str| timeout(typed, name, problems);
    let ipvs_timeouts = IpvsTimeouts {
        tcp: seconds("ipvs-tcp-timeout"),
        tcp_fin: seconds("ipvs-tcpfin-timeout"),
        udp: seconds("ipvs-udp-timeout"),
    };
    let conntrack = Conntrack {
        tcp_established: seconds("conntrack-tcp-timeout-established"),
        tcp_close_wait: seconds("conntrack-tcp-timeout-close-wait"),
        udp: seconds("conntrack-udp-timeout"),
        udp_stream: seconds("conntrack-udp-timeout-stream"),
        tcp_liberal: typed.bool("conntrack-tcp-be-liberal"),
        max_per_core: number(typed, "conntrack-max-per-core", problems),
        min: number(typed, "conntrack-min", problems),
    };
    HostSettings {
        conntrack,
        ipvs_timeouts,
        strict_arp: typed.bool("ipvs-strict-arp"),
    }
}

fn number(typed: &Typed, name: &str, problems: &mut Vec<String>) -> u64 {
    let given = typed.number(name);
    let number = u32::try_from(given)
        .ok()
        .filter(|number| i32::try_from(*number).is_ok());
    if number.is_none() {
        problems.push(format!(
            "--{name}={given}: expected a number of connections, 0 to {}",
            i32::MAX
        ));
    }
    u64::from(number.unwrap_or(0))
}

/// A time as kube-proxy takes it (`24h0m0s`, `90s`); `None` for 0, which leaves what is set.
fn timeout(typed: &Typed, name: &str, problems: &mut Vec<String>) -> Option<u32> {
    let text = typed.optional(name)?;
    match duration(&text).filter(|seconds| *seconds <= LONGEST) {
        Some(seconds) => u32::try_from(seconds).ok().filter(|seconds| *seconds > 0),
        None => {
            problems.push(format!(
                "--{name}={text:?}: expected a time in whole seconds up to a week, such as 90s, 15m or 24h0m0s; 0 leaves what is set"
            ));
            None
        }
    }
}

/// Hours, minutes and seconds, each with its unit.
fn duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut sum: u64 = 0;
    let mut digits = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        let number: u64 = digits.parse().ok()?;
        sum = sum.checked_add(number.checked_mul(unit)?)?;
        digits.clear();
    }
    (digits.is_empty() && !text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::super::{Parsed, parse};
    use super::*;

    fn resolve(args: &[&str]) -> (HostSettings, Vec<String>) {
        let args: Vec<String> = args.iter().map(|&a| a.into()).collect();
        let Ok(Parsed::Run(typed)) = parse(&args, |_| None) else {
            panic!("{args:?}");
        };
        let mut problems = Vec::new();
        let settings = settings(&typed, &mut problems);
        (settings, problems)
    }

    #[test]
    fn what_is_not_given_or_nought_is_left_alone() {
        assert_eq!(resolve(&[]), (HostSettings::default(), vec![]));
        let nought = [
            "--ipvs-tcp-timeout=0s",
            "--conntrack-udp-timeout=0",
            "--conntrack-max-per-core=0",
        ];
        assert_eq!(resolve(&nought), (HostSettings::default(), vec![]));
    }

    #[test]
    fn times_have_kube_proxys_form() {
        let (settings, problems) = resolve(&[
            "--conntrack-tcp-timeout-established=24h0m0s",
            "--conntrack-max-per-core=32768",
            "--conntrack-min=131072",
            "--ipvs-udp-timeout=1m30s",
            "--ipvs-strict-arp",
        ]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(settings.conntrack.tcp_established, Some(86_400));
        assert_eq!(settings.conntrack.max_per_core, 32_768);
        assert_eq!(settings.ipvs_timeouts.udp, Some(90));
        assert!(settings.strict_arp);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for text in ["5", "1d", "-1s", "1.5s", "s", "900h"] {
            let (_, problems) = resolve(&[&format!("--ipvs-tcp-timeout={text}")]);
            assert!(problems[0].starts_with("--ipvs-tcp-timeout"), "{problems:?}");
        }
        let (_, problems) = resolve(&["--conntrack-min=-1"]);
        assert!(
            problems[0].starts_with("--conntrack-min=-1: expected"),
            "{problems:?}"
        );
    }
}
