//! What is sound by itself and yet cannot work beside the rest.

use std::collections::BTreeMap;

use flannel_model::{ServiceName, ServiceSpec, ServicesConfig, VirtualAddress};

/// Virtual addresses that two Services would share: one would take the other's clients.
pub fn shared_addresses<'a>(
    services: impl IntoIterator<Item = (&'a ServiceName, &'a ServiceSpec)>,
) -> Vec<(VirtualAddress, &'a ServiceName, &'a ServiceName)> {
    let mut owners: BTreeMap<VirtualAddress, &ServiceName> = BTreeMap::new();
    let mut shared = Vec::new();
    for (service, spec) in services {
        for address in virtual_addresses(spec) {
            if let Some(other) = owners.insert(address, service) {
                shared.push((address, other, service));
            }
        }
    }
    shared
}

/// The cluster addresses of a Service that no node programs, because they lie outside of the service CIDRs.
pub fn outside<'a>(
    config: &'a ServicesConfig,
    spec: &'a ServiceSpec,
) -> impl Iterator<Item = std::net::IpAddr> + 'a {
    let inside = |ip: std::net::IpAddr| config.cidrs.iter().any(|cidr| cidr.holds(ip));
    spec.cluster_ips.iter().copied().filter(move |ip| !inside(*ip))
}

fn virtual_addresses(spec: &ServiceSpec) -> impl Iterator<Item = VirtualAddress> + '_ {
    spec.cluster_ips.iter().flat_map(|ip| {
        spec.ports.iter().map(|port| VirtualAddress {
            protocol: port.protocol,
            address: *ip,
            port: port.port,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, ip: &str, port: u16) -> (ServiceName, ServiceSpec) {
        let spec = format!(r#"{{"clusterIP":"{ip}","ports":[{{"port":{port}}}]}}"#);
        (
            ServiceName::new("shop", name).unwrap(),
            ServiceSpec::parse(spec.as_bytes()).unwrap(),
        )
    }

    #[test]
    fn shared_and_outside() {
        let all = [
            service("a", "10.96.0.1", 80),
            service("b", "10.96.0.1", 81),
            service("c", "10.96.0.1", 80),
        ];
        let shared = shared_addresses(all.iter().map(|(name, spec)| (name, spec)));
        assert_eq!(shared.len(), 1);
        assert_eq!(
            (shared[0].1.to_string(), shared[0].2.to_string()),
            ("shop/a".to_owned(), "shop/c".to_owned())
        );
        let config = ServicesConfig::parse(br#"{"cidrs":["10.97.0.0/16"]}"#).unwrap();
        assert_eq!(outside(&config, &all[0].1).count(), 1);
    }
}
