//! What an attachment was asked to be: the configuration, read and checked as far as that goes without touching anything.

use flannel_model::SubnetEnv;
use serde_json::{Map, Value};

use crate::config::{Bridge, Ipam, Network, read_resolv_conf, render};
use crate::protocol::{CniArgs, CniError, Code, Dns, SpecVersion};

/// A configuration, resolved for a node that has a subnet.
#[derive(Debug, Clone)]
pub struct Order {
    /// The delegate's configuration as flannel renders it.
    pub delegate: Map<String, Value>,
    /// Bridge, port and container.
    pub bridge: Bridge,
    /// Addresses and routes.
    pub ipam: Ipam,
}

impl Order {
    /// Reads the configuration of `network` on a node that has `env`.
    ///
    /// # Errors
    /// Code 2 and 7, naming key and value.
    pub fn read(network: &Network, args: &CniArgs, env: &SubnetEnv) -> Result<Self, CniError> {
        let delegate = render::delegate(network, env)?;
        let order = Self {
            bridge: Bridge::read(&delegate, args)?,
            ipam: Ipam::read(&delegate)?,
            delegate,
        };
        order.fits(network.version)?;
        Ok(order)
    }

    /// The container's name service: `delegate.dns`, else the file that `ipam.resolvConf` names.
    ///
    /// # Errors
    /// Code 5 when that file cannot be read.
    pub fn dns(&self) -> Result<Dns, CniError> {
        match &self.ipam.resolv_conf {
            Some(path) if self.bridge.dns.is_empty() => read_resolv_conf(path),
            Some(_) | None => Ok(self.bridge.dns.clone()),
        }
    }

    /// Before 0.3.0 a result has room for one address a family.
    fn fits(&self, version: SpecVersion) -> Result<(), CniError> {
        if version >= SpecVersion::V0_3_0 {
            return Ok(());
        }
        let v4 = self.ipam.sets.iter().filter(|set| set.is_ipv4()).count();
        match v4 > 1 || self.ipam.sets.len() - v4 > 1 {
            false => Ok(()),
            true => Err(CniError::new(
                Code::UnsupportedField,
                format!(
                    "cniVersion {} does not support more than 1 address per family",
                    version.text()
                ),
            )
            .with("set cniVersion to 0.3.0 or newer")),
        }
    }
}
