//! The plugin's own keys in the network configuration.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::protocol::keys::Keys;
use crate::protocol::{CniError, Code, NetworkName, SpecVersion};

/// Where flanneld writes what a node has.
pub const SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Where flannel keeps the delegate's configuration of each container.
pub const DATA_DIR: &str = "/var/lib/cni/flannel";
/// Where host-local keeps its leases.
pub const LEASE_DIR: &str = "/var/lib/cni/networks";

/// What every command but VERSION needs of the configuration.
#[derive(Debug, Clone)]
pub struct Network {
    /// Its `name`.
    pub name: NetworkName,
    /// Its `cniVersion`.
    pub version: SpecVersion,
    object: Map<String, Value>,
}

impl Network {
    /// Checks `name`, then `cniVersion`.
    ///
    /// # Errors
    /// Code 7 for a missing or malformed name, code 1 for a version that is not ours.
    pub fn new(object: Map<String, Value>) -> Result<Self, CniError> {
        let keys = Keys::new("", &object);
        let name = keys
            .text("name")?
            .ok_or_else(|| CniError::new(Code::BadConfig, "name is missing in the network configuration"))?;
        let name = NetworkName::parse(name)?;
        let version = SpecVersion::parse(keys.text("cniVersion")?.unwrap_or(SpecVersion::IMPLIED))?;
        Ok(Self {
            name,
            version,
            object,
        })
    }

    /// All of it.
    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    /// The keys.
    pub fn keys(&self) -> Keys<'_> {
        Keys::new("", &self.object)
    }

    /// `subnetFile`.
    ///
    /// # Errors
    /// Code 7 unless it is an absolute path.
    pub fn subnet_file(&self) -> Result<PathBuf, CniError> {
        path(&self.keys(), "subnetFile", SUBNET_FILE)
    }

    /// `dataDir`.
    ///
    /// # Errors
    /// Code 7 unless it is an absolute path.
    pub fn data_dir(&self) -> Result<PathBuf, CniError> {
        path(&self.keys(), "dataDir", DATA_DIR)
    }

    /// The object under `name`, empty when absent.
    ///
    /// # Errors
    /// Code 7 when it is something else.
    pub fn part(&self, name: &str) -> Result<Map<String, Value>, CniError> {
        Ok(self.keys().object(name)?.cloned().unwrap_or_default())
    }

    /// The directory that holds this network's directory of leases.
    ///
    /// # Errors
    /// Code 7 unless `ipam.dataDir` is an absolute path.
    pub fn lease_root(&self) -> Result<PathBuf, CniError> {
        lease_root(&self.part("ipam")?)
    }
}

/// `dataDir` of host-local's configuration.
///
/// # Errors
/// Code 7 unless it is an absolute path.
pub fn lease_root(ipam: &Map<String, Value>) -> Result<PathBuf, CniError> {
    path(&Keys::new("ipam", ipam), "dataDir", LEASE_DIR)
}

/// A relative path would mean the runtime's working directory, which nobody chose.
fn path(keys: &Keys<'_>, name: &str, default: &str) -> Result<PathBuf, CniError> {
    let text = keys
        .text(name)?
        .filter(|text| !text.is_empty())
        .unwrap_or(default);
    match text.starts_with('/') && !text.contains('\0') {
        true => Ok(PathBuf::from(text)),
        false => Err(keys.fault(name, &Value::from(text), "an absolute path")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Result<Network, CniError> {
        Network::new(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn name_comes_before_version() {
        let cases = [
            ("{}", Code::BadConfig),
            (r#"{"name":""}"#, Code::BadConfig),
            (r#"{"name":7}"#, Code::BadConfig),
            (r#"{"name":"../x","cniVersion":"9.9.9"}"#, Code::BadConfig),
            (r#"{"name":"x","cniVersion":"9.9.9"}"#, Code::IncompatibleVersion),
            (r#"{"name":"x","cniVersion":1}"#, Code::BadConfig),
        ];
        for (text, code) in cases {
            assert_eq!(network(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn defaults_are_flannels() {
        let net = network(r#"{"NAME":"cbr0","CniVersion":"0.3.1","ipam":{},"delegate":null}"#).unwrap();
        assert_eq!(net.subnet_file().unwrap().to_str(), Some(SUBNET_FILE));
        assert_eq!(net.data_dir().unwrap().to_str(), Some(DATA_DIR));
        assert_eq!(net.lease_root().unwrap().to_str(), Some(LEASE_DIR));
        assert!(net.part("delegate").unwrap().is_empty());
    }

    #[test]
    fn relative_paths_are_refused() {
        let text =
            r#"{"name":"x","cniVersion":"1.0.0","subnetFile":"a","dataDir":"../b","ipam":{"dataDir":"c"}}"#;
        let net = network(text).unwrap();
        for error in [net.subnet_file(), net.data_dir(), net.lease_root()].map(Result::unwrap_err) {
            assert_eq!(error.code, Code::BadConfig);
            assert!(error.msg.contains("absolute path"), "{error}");
        }
    }
}
