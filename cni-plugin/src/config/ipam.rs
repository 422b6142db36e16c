//! The part of the rendered configuration that flannel hands to host-local: ranges, routes, the place of the leases.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::network::lease_root;
use super::ranges::{range_sets, refuse_overlap};
use crate::address::RangeSet;
use crate::protocol::keys::Keys;
use crate::protocol::{CniError, Code, Route};

/// host-local's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipam {
    /// One address is taken from each set.
    pub sets: Vec<RangeSet>,
    /// Routes for the container.
    pub routes: Vec<Route>,
    /// The directory that holds the networks' directories of leases.
    pub lease_root: PathBuf,
    /// `resolvConf`: a file whose name service settings the container gets.
    pub resolv_conf: Option<PathBuf>,
}

impl Ipam {
    /// Reads `ipam` of the rendered delegate.
    ///
    /// # Errors
    /// Code 2 for what is not built, code 7 for malformed values.
    pub fn read(delegate: &Map<String, Value>) -> Result<Self, CniError> {
        let empty = Map::new();
        let ipam = Keys::new("", delegate).object("ipam")?.unwrap_or(&empty);
        let keys = Keys::new("ipam", ipam);
        refuse_unbuilt(&keys)?;
        let runtime = Keys::new("", delegate).object("runtimeConfig")?.unwrap_or(&empty);
        // Those of the runtime come first, as in host-local.
        let mut sets = range_sets(&Keys::new("runtimeConfig", runtime), "ipRanges")?;
        sets.extend(range_sets(&keys, "ranges")?);
        refuse_overlap(&sets)?;
        Ok(Self {
            sets,
            routes: keys
                .list("routes")?
                .iter()
                .map(|item| route(&keys, item))
                .collect::<Result<_, _>>()?,
            lease_root: lease_root(ipam)?,
            resolv_conf: keys
                .text("resolvConf")?
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
        })
    }
}

fn refuse_unbuilt(keys: &Keys<'_>) -> Result<(), CniError> {
    if let Some(other) = keys.text("type")?.filter(|kind| *kind != "host-local") {
        let msg = format!("ipam.type = {other:?} is not built into this plugin");
        let advice = "addresses come from the node's subnet as host-local gives them; leave ipam.type out";
        return Err(CniError::new(Code::UnsupportedField, msg).with(advice));
    }
    for name in ["subnet", "rangeStart", "rangeEnd", "gateway"] {
        if keys.text(name)?.is_some_and(|text| !text.is_empty()) {
            let msg = format!("ipam.{name} is not supported");
            let advice = "the range and its gateway come from subnet.env; leave the key out";
            return Err(CniError::new(Code::UnsupportedField, msg).with(advice));
        }
    }
    Ok(())
}

fn route(keys: &Keys<'_>, item: &Value) -> Result<Route, CniError> {
    let object = item
        .as_object()
        .ok_or_else(|| keys.fault("routes", item, "a list of objects"))?;
    Route::read(&Keys::new("ipam.routes", object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ipam: &str) -> Result<Ipam, CniError> {
        Ipam::read(&serde_json::from_str(&format!("{{\"ipam\":{ipam}}}")).unwrap())
    }

    #[test]
    fn what_flannel_renders() {
        let ipam = read(
            r#"{"type":"host-local","dataDir":"/tmp/x","ranges":[[{"subnet":"10.1.17.0/24"}],[{"subnet":"fc00:7::/64"}]],
               "routes":[{"dst":"10.1.0.0/16"},{"dst":"0.0.0.0/0","gw":"10.1.17.1"}]}"#,
        )
        .unwrap();
        assert_eq!(ipam.sets.len(), 2);
        assert_eq!(ipam.routes[1].gw, Some("10.1.17.1".parse().unwrap()));
        assert_eq!(ipam.lease_root.to_str(), Some("/tmp/x"));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (text, name) in [
            (r#"{"type":"dhcp"}"#, "ipam.type"),
            (r#"{"subnet":"10.0.0.0/8"}"#, "ipam.subnet"),
            (r#"{"rangeStart":"10.0.0.1"}"#, "ipam.rangeStart"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.code, Code::UnsupportedField, "{text}");
            assert!(error.msg.contains(name), "{error}");
        }
    }

    #[test]
    fn malformed_values_are_code_7() {
        for text in [
            r#"{"ranges":[{"subnet":"10.1.17.0/24"}]}"#,
            r#"{"ranges":[[{"subnet":"10.1.17.0"}]]}"#,
            r#"{"ranges":[[{"subnet":"10.1.17.0/31"}]]}"#,
            r#"{"routes":[{"dst":"ten"}]}"#,
            r#"{"routes":["10.0.0.0/8"]}"#,
            r#"{"routes":[{"dst":"10.0.0.0/8","gw":"fc00::1"}]}"#,
            r#"{"routes":{}}"#,
            r#"{"dataDir":"relative"}"#,
        ] {
            assert_eq!(read(text).unwrap_err().code, Code::BadConfig, "{text}");
        }
    }
}
