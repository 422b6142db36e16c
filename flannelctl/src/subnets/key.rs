//! Subnets as operators type them.

use std::net::IpAddr;

use flannel_model::{Families, Ipv4Subnet, Ipv6Subnet, LeaseKey};

use crate::failure::Failure;

/// `10.5.7.0/24`, `10.5.7.0/24,fd00:5:0:7::/64`, `fd00:5:0:7::/64`, or a key as etcd has it.
pub fn parse(text: &str) -> Result<LeaseKey, Failure> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let (mut ipv4, mut ipv6): (Option<Ipv4Subnet>, Option<Ipv6Subnet>) = (None, None);
    for part in text.split([',', '&']) {
        match (part.parse(), part.parse()) {
            (Ok(subnet), _) if ipv4.is_none() => ipv4 = Some(subnet),
            (_, Ok(subnet)) if ipv6.is_none() => ipv6 = Some(subnet),
            (_, _) => return Err(wrong(text)),
        }
    }
    let key = Families::new(ipv4, ipv6)
        .map(LeaseKey::new)
        .ok_or_else(|| wrong(text))?;
    // The rules for lengths are those of keys.
    key.to_string().parse().map_err(|_| wrong(text))
}

fn wrong(text: &str) -> Failure {
    Failure::Usage(anyhow::anyhow!(
        "{text:?} is no subnet of a node: expected a form like 10.5.7.0/24, 10.5.7.0/24,fd00:5:0:7::/64 or fd00:5:0:7::/64"
    ))
}

/// Whether the lease is meant by `text`: one of its subnets, its key, or an address of a pod inside.
pub fn is_meant(key: &LeaseKey, text: &str) -> bool {
    if let Ok(address) = text.parse::<IpAddr>() {
        return match address {
            IpAddr::V4(address) => key.ipv4().is_some_and(|subnet| subnet.holds(address)),
            IpAddr::V6(address) => key.ipv6().is_some_and(|subnet| subnet.holds(address)),
        };
    }
    parse(text).is_ok_and(|wanted| {
        wanted == *key
            || matches!(wanted.subnets(), Families::Ipv4(subnet) if key.ipv4() == Some(*subnet))
            || matches!(wanted.subnets(), Families::Ipv6(subnet) if key.ipv6() == Some(*subnet))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_that_operators_type() {
        for (text, key) in [
            ("10.5.7.0/24", "10.5.7.0-24"),
            ("10.5.7.0-24", "10.5.7.0-24"),
            ("10.5.7.0/24,fd00:5:0:7::/64", "10.5.7.0-24&fd00:5:0:7::-64"),
            ("10.5.7.0-24&fd00:5:0:7::-64", "10.5.7.0-24&fd00:5:0:7::-64"),
            ("fd00:5:0:7::/64", "fd00:5:0:7::-64"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), key);
        }
        for bad in [
            "",
            "10.5.7.0",
            "10.5.7.0/33",
            "10.5.7.0/31",
            "10.5.7.0/24,10.5.8.0/24",
            "x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_lease_is_found_by_any_of_its_names() {
        let key: LeaseKey = "10.5.7.0-24&fd00:5:0:7::-64".parse().unwrap();
        for text in [
            "10.5.7.0/24",
            "fd00:5:0:7::/64",
            "10.5.7.0-24&fd00:5:0:7::-64",
            "10.5.7.99",
            "fd00:5:0:7::9",
        ] {
            assert!(is_meant(&key, text), "{text}");
        }
        for text in ["10.5.8.0/24", "10.5.8.1", "10.5.7.0/25", "junk"] {
            assert!(!is_meant(&key, text), "{text}");
        }
    }
}
