//! `CNI_ARGS`: `KEY=VALUE` pairs parted by semicolons.

use std::net::IpAddr;

use flannel_model::Mac;

use super::{CniError, Code};

/// What the pairs ask of this plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `MAC`: the hardware address of the container's interface.
    pub mac: Option<Mac>,
    /// `IP`: an address the container must get.
    pub ip: Option<IpAddr>,
}

impl CniArgs {
    /// Reads the pairs. Unknown keys are an error unless `IgnoreUnknown` is 1 or true, as in the CNI library; keys that begin
    /// with `K8S_` are known to every plugin of a Kubernetes node and never used here.
    ///
    /// # Errors
    /// Code 4 with the pair.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = Self::default();
        let mut unknown = Vec::new();
        let mut tolerant = false;
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').filter(|(_, value)| !value.contains('=')) {
                Some(("IgnoreUnknown", value)) => tolerant = truth(value)?,
                Some(("MAC", value)) => args.mac = Some(mac(value)?),
                Some(("IP", value)) => args.ip = Some(ip(value)?),
                Some((key, _)) if key.starts_with("K8S_") => {}
                Some((key, _)) => unknown.push(key),
                None => return Err(bad(&format!("{pair:?} is not one KEY=VALUE pair"))),
            }
        }
        match unknown.is_empty() || tolerant {
            true => Ok(args),
            false => Err(bad(&format!(
                "unknown keys {unknown:?}; set IgnoreUnknown=1 to allow them"
            ))),
        }
    }
}

fn truth(value: &str) -> Result<bool, CniError> {
    match value {
        "1" | "true" | "True" => Ok(true),
        "0" | "false" | "False" => Ok(false),
        _ => Err(bad(&format!("IgnoreUnknown={value:?}; expected 1 or 0"))),
    }
}

fn mac(value: &str) -> Result<Mac, CniError> {
    unicast(value).map_err(|fault| bad(&format!("MAC={value:?}: {fault}")))
}

/// A hardware address that a container's interface can have.
pub fn unicast(value: &str) -> Result<Mac, &'static str> {
    let mac: Mac = value
        .parse()
        .map_err(|_| "expected an Ethernet address such as 02:00:5e:10:00:01")?;
    match mac.is_unicast() {
        true => Ok(mac),
        false => Err("expected a unicast address (the first byte even, not all zero)"),
    }
}

/// An address with or without a prefix length behind it; the length is not used, since the range knows it.
fn ip(value: &str) -> Result<IpAddr, CniError> {
    address(value).ok_or_else(|| bad(&format!("IP={value:?}; expected an address such as 10.244.1.7")))
}

/// The address of `10.244.1.7` or `10.244.1.7/24`.
pub fn address(text: &str) -> Option<IpAddr> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let ip: IpAddr = address.parse().ok()?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    match length.map(str::parse::<u8>) {
        None => Some(ip),
        Some(Ok(length)) if length <= most => Some(ip),
        Some(_) => None,
    }
}

/// `address/length` with the host bits cleared, as Go's `ParseCIDR` gives the network.
pub fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let length: u8 = length.parse().ok()?;
    match address.parse().ok()? {
        IpAddr::V4(v4) => {
            let net = flannel_model::Ipv4Subnet::new(v4, length)?;
            Some((net.network().into(), length))
        }
        IpAddr::V6(v6) => {
            let net = flannel_model::Ipv6Subnet::new(v6, length)?;
            Some((net.network().into(), length))
        }
    }
}

fn bad(fault: &str) -> CniError {
    CniError::new(Code::BadEnvironment, format!("CNI_ARGS: {fault}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_send() {
        let containerd = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=";
        assert_eq!(CniArgs::parse(containerd).unwrap(), CniArgs::default());
        let podman = CniArgs::parse("IgnoreUnknown=1;FOO=x;MAC=02:aa:bb:cc:dd:ee;IP=10.99.0.77").unwrap();
        assert_eq!(podman.mac.unwrap().to_string(), "02:aa:bb:cc:dd:ee");
        assert_eq!(podman.ip, Some("10.99.0.77".parse().unwrap()));
        assert_eq!(CniArgs::parse("").unwrap(), CniArgs::default());
    }

    #[test]
    fn faults_are_code_4() {
        for text in [
            "FOO=1",
            "FOO",
            "A=b=c",
            "IgnoreUnknown=maybe",
            "MAC=zz",
            "MAC=ff:ff:ff:ff:ff:ff",
            "IP=10.0.0",
            "IP=10.0.0.1/33",
        ] {
            assert_eq!(
                CniArgs::parse(text).unwrap_err().code,
                Code::BadEnvironment,
                "{text}"
            );
        }
    }
}
