//! Pods in a subnet that is another node's now, and addresses that no route may cover.

use std::net::IpAddr;

use flannel_lease::Protected;
use flannel_model::{IpFamily, LeaseKey};
use flannel_netlink::{NetlinkError, RouteConn, address};
use flannel_store::endpoint_address;

/// Those of the lost subnets in which this node still has an address: the bridge has its own there as long as pods live on
/// it. When the kernel cannot be asked, all of them.
pub fn still_in_use(lost: &[LeaseKey]) -> Vec<LeaseKey> {
    if lost.is_empty() {
        return Vec::new();
    }
    let Ok(addresses) = addresses() else {
        return lost.to_vec();
    };
    let inside = |key: &LeaseKey, address: &IpAddr| match address {
        IpAddr::V4(v4) => key.ipv4().is_some_and(|subnet| subnet.holds(*v4)),
        IpAddr::V6(v6) => key.ipv6().is_some_and(|subnet| subnet.holds(*v6)),
    };
    let lives = |key: &&LeaseKey| addresses.iter().any(|address| inside(key, address));
    lost.iter().filter(lives).copied().collect()
}

fn addresses() -> Result<Vec<IpAddr>, NetlinkError> {
    let mut conn = RouteConn::open()?;
    let ipv4 = address::dump(&mut conn, IpFamily::V4, None)?;
    let ipv6 = address::dump(&mut conn, IpFamily::V6, None)?;
    Ok(ipv4
        .into_iter()
        .chain(ipv6)
        .map(|address| address.local)
        .collect())
}

/// The addresses of etcd's endpoints, as far as they are not names.
pub fn etcd_addresses(endpoints: &[String]) -> Vec<Protected> {
    let lists = endpoints.iter().flat_map(|list| list.split(','));
    lists
        .filter_map(endpoint_address)
        .map(|address| (address, "an etcd endpoint"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_in_every_form() {
        let endpoints = [
            "http://10.0.0.1:2379, https://[fd00::1]:2379/",
            "10.0.0.2",
            "etcd.example:2379",
        ];
        let found: Vec<String> = etcd_addresses(&endpoints.map(str::to_owned))
            .into_iter()
            .map(|(address, _)| address.to_string())
            .collect();
        assert_eq!(found, ["10.0.0.1", "fd00::1", "10.0.0.2"]);
    }

    #[test]
    fn only_subnets_with_an_address_of_this_node_are_in_use() {
        // 127.0.0.0/30 holds lo's address, TEST-NET-3 (RFC 5737) nobody's.
        let key = |text: &str| text.parse::<LeaseKey>().unwrap();
        let lost = [key("127.0.0.0-30"), key("203.0.113.0-24")];
        assert_eq!(still_in_use(&lost), [lost[0]]);
    }
}
