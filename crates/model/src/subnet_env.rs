//! subnet.env: the file by which the daemon tells the CNI plugin, container engines and its own next start what it has.

use std::fmt::Write as _;

use crate::{Ipv4Subnet, Ipv6Subnet};

/// What stands in subnet.env. `ipv4.1` and `ipv6.1` are the node's own subnets; their first host address is written, as
/// flannel does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The cluster's IPv4 networks (flannel knows a comma list when reading) and the node's subnet.
    pub ipv4: Option<(Vec<Ipv4Subnet>, Ipv4Subnet)>,
    /// The same for IPv6.
    pub ipv6: Option<(Vec<Ipv6Subnet>, Ipv6Subnet)>,
    /// MTU for pods, in bytes.
    pub mtu: u32,
    /// Whether the daemon masquerades, so that nobody else has to.
    pub ip_masq: bool,
}

/// Why a text is no subnet.env.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetEnvError {
    /// Keys that must be there are not.
    #[error("is missing {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// A value is not what its key asks for.
    #[error("has {key}={value:?}; expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// What stands behind it.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

impl SubnetEnv {
    /// The file's text, keys in flannel's order.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key}={value}");
        };
        if let Some((networks, subnet)) = &self.ipv4 {
            line("FLANNEL_NETWORK", &joined(networks));
            line(
                "FLANNEL_SUBNET",
                &format!("{}/{}", subnet.first_host(), subnet.length()),
            );
        }
        if let Some((networks, subnet)) = &self.ipv6 {
            line("FLANNEL_IPV6_NETWORK", &joined(networks));
            line(
                "FLANNEL_IPV6_SUBNET",
                &format!("{}/{}", subnet.first_host(), subnet.length()),
            );
        }
        line("FLANNEL_MTU", &self.mtu);
        line("FLANNEL_IPMASQ", &self.ip_masq);
        text
    }

    /// Reads the file as flannel's CNI plugin does: `KEY=VALUE` lines, unknown keys and lines ignored, networks as comma
    /// lists without duplicates.
    ///
    /// # Errors
    /// All missing keys at once, or the first value that is not what it should be.
    pub fn parse(text: &str) -> Result<Self, SubnetEnvError> {
        let value = |key: &str| -> Option<&str> {
            let of_key = |line: &'_ str| {
                line.trim()
                    .split_once('=')
                    .filter(|(k, _)| *k == key)
                    .map(|(_, v)| v.len())
            };
            let line = text
                .lines()
                .rev()
                .find(|line| of_key(line).is_some_and(|length| length > 0))?;
            line.trim()
                .split_once('=')
                .map(|(_, v)| v.trim().trim_matches('"'))
        };
        let keys = [
            "FLANNEL_NETWORK",
            "FLANNEL_SUBNET",
            "FLANNEL_IPV6_NETWORK",
            "FLANNEL_IPV6_SUBNET",
        ];
        let found = keys.map(&value);
        let mut missing = missing_keys(keys, found);
        missing.extend(
            ["FLANNEL_MTU", "FLANNEL_IPMASQ"]
                .into_iter()
                .filter(|key| value(key).is_none()),
        );
        if !missing.is_empty() {
            return Err(SubnetEnvError::Missing(missing));
        }
        let mtu = value("FLANNEL_MTU").unwrap_or_default();
        Ok(Self {
            ipv4: family(
                keys[0],
                found[0],
                keys[1],
                found[1],
                "an IPv4 subnet such as 10.5.1.1/24",
            )?,
            ipv6: family(
                keys[2],
                found[2],
                keys[3],
                found[3],
                "an IPv6 subnet such as fd00:5:1::1/64",
            )?,
            mtu: mtu
                .parse()
                .map_err(|_| bad("FLANNEL_MTU", mtu, "a number of bytes"))?,
            // flannel takes exactly `true`; everything else is false.
            ip_masq: value("FLANNEL_IPMASQ") == Some("true"),
        })
    }
}

/// One family is enough, but of a family both keys are needed; with none at all, all four are named.
fn missing_keys(keys: [&'static str; 4], found: [Option<&str>; 4]) -> Vec<&'static str> {
    let [v4_network, v4_subnet, v6_network, v6_subnet] = found.map(|value| value.is_some());
    let none = !(v4_network || v4_subnet || v6_network || v6_subnet);
    let absent = [
        (v4_subnet || none) && !v4_network,
        (v4_network || none) && !v4_subnet,
        (v6_subnet || none) && !v6_network,
        (v6_network || none) && !v6_subnet,
    ];
    keys.into_iter()
        .zip(absent)
        .filter(|(_, absent)| *absent)
        .map(|(key, _)| key)
        .collect()
}

type Family<S> = Option<(Vec<S>, S)>;

fn family<S: std::str::FromStr + PartialEq>(
    network_key: &str,
    networks: Option<&str>,
    subnet_key: &str,
    subnet: Option<&str>,
    expected: &'static str,
) -> Result<Family<S>, SubnetEnvError> {
    let (Some(networks), Some(subnet)) = (networks, subnet) else {
        return Ok(None);
    };
    let mut list: Vec<S> = Vec::new();
    for text in networks.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let network = text.parse().map_err(|_| bad(network_key, text, expected))?;
        if !list.contains(&network) {
            list.push(network);
        }
    }
    let subnet = subnet.parse().map_err(|_| bad(subnet_key, subnet, expected))?;
    Ok(Some((list, subnet)))
}

fn bad(key: &str, value: &str, expected: &'static str) -> SubnetEnvError {
    SubnetEnvError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        expected,
    }
}

fn joined<S: ToString>(networks: &[S]) -> String {
    networks
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUAL: &str = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn dual_stack_round_trips_byte_for_byte() {
        assert_eq!(SubnetEnv::parse(DUAL).unwrap().render(), DUAL);
    }

    #[test]
    fn one_family_is_enough() {
        let env = SubnetEnv::parse("FLANNEL_NETWORK=10.5.0.0/16,10.6.0.0/16,10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n").unwrap();
        let (networks, subnet) = env.ipv4.unwrap();
        assert_eq!(networks.len(), 2);
        assert_eq!(subnet.to_string(), "10.5.1.0/24");
        assert!(env.ipv6.is_none() && !env.ip_masq);
    }

    #[test]
    fn all_missing_keys_are_named_in_order() {
        let error = SubnetEnv::parse("foo=bar\nFLANNEL_MTU\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "is missing FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_NETWORK, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
        );
        let half =
            SubnetEnv::parse("FLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1\nFLANNEL_IPMASQ=true").unwrap_err();
        assert_eq!(half.to_string(), "is missing FLANNEL_NETWORK");
    }

    #[test]
    fn bad_values_are_quoted() {
        let error = SubnetEnv::parse(&DUAL.replace("1450", "many")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "has FLANNEL_MTU=\"many\"; expected a number of bytes"
        );
    }
}
