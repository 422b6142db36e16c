//! `prevResult`: what ADD of this plugin, and of plugins after it, told the runtime.

use std::net::IpAddr;

use flannel_model::Mac;
use serde_json::{Map, Value};

use super::args::network;
use super::keys::Keys;
use super::{AddResult, CniError, Code, Dns, Interface, IpConfig, Route, SpecVersion};

/// Most entries of any list in a result. Real ones have a handful.
const MOST: usize = 1024;

/// Reads `prevResult` out of a configuration of `version`; `None` without one.
///
/// # Errors
/// Code 7 when its cniVersion has another layout than the configuration's, or a value is malformed.
pub fn previous(config: &Keys<'_>, version: SpecVersion) -> Result<Option<AddResult>, CniError> {
    let Some(object) = config.object("prevResult")? else {
        return Ok(None);
    };
    let keys = Keys::new("prevResult", object);
    if let Some(own) = keys.text("cniVersion")?.filter(|text| !text.is_empty()) {
        let same = SpecVersion::parse(own).is_ok_and(|own| own.same_layout(version));
        if !same {
            let expected = format!("a version with the layout of {}", version.text());
            return Err(keys.fault("cniVersion", &Value::from(own), &expected));
        }
    }
    match version < SpecVersion::V0_3_0 {
        true => old(&keys),
        false => new(&keys),
    }
    .map(Some)
}

/// 0.1.0 and 0.2.0: at most one address a family, and no interfaces.
fn old(keys: &Keys<'_>) -> Result<AddResult, CniError> {
    let mut result = AddResult {
        dns: dns(keys)?,
        ..AddResult::default()
    };
    for name in ["ip4", "ip6"] {
        let Some(object) = keys.object(name)? else {
            continue;
        };
        let path = format!("prevResult.{name}");
        let keys = Keys::new(&path, object);
        let (address, length) = cidr(&keys, "ip")?;
        result.ips.push(IpConfig {
            address,
            length,
            gateway: ip(&keys, "gateway")?,
            interface: None,
        });
        result.routes.extend(routes(&keys)?);
    }
    Ok(result)
}

fn new(keys: &Keys<'_>) -> Result<AddResult, CniError> {
    let interfaces = each(keys, "interfaces", "prevResult.interfaces", interface)?;
    let count = interfaces.len();
    let ips = each(keys, "ips", "prevResult.ips", |keys| ip_config(keys, count))?;
    Ok(AddResult {
        interfaces,
        ips,
        routes: routes(keys)?,
        dns: dns(keys)?,
    })
}

fn interface(keys: &Keys<'_>) -> Result<Interface, CniError> {
    let text = |name: &str| {
        Ok(keys
            .text(name)?
            .filter(|text| !text.is_empty())
            .map(str::to_owned))
    };
    let mac = match keys.text("mac")?.filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => {
            let parsed: Result<Mac, _> = text.parse();
            Some(parsed.map_err(|_| keys.fault("mac", &Value::from(text), "an Ethernet address"))?)
        }
    };
    Ok(Interface {
        name: text("name")?.unwrap_or_default(),
        mac,
        mtu: keys.number("mtu", 0, u32::MAX)?.filter(|mtu| *mtu != 0),
        sandbox: text("sandbox")?,
        socket_path: text("socketPath")?,
        pci_id: text("pciID")?,
    })
}

fn ip_config(keys: &Keys<'_>, interfaces: usize) -> Result<IpConfig, CniError> {
    let (address, length) = cidr(keys, "address")?;
    let most = u32::try_from(interfaces).unwrap_or(u32::MAX);
    let interface = match (keys.value("interface")?, most.checked_sub(1)) {
        (None, _) => None,
        (Some(_), Some(most)) => keys.number("interface", 0, most)?,
        (Some(value), None) => {
            return Err(keys.fault("interface", value, "nothing, because there are no interfaces"));
        }
    };
    Ok(IpConfig {
        address,
        length,
        gateway: ip(keys, "gateway")?,
        interface: interface.and_then(|index| usize::try_from(index).ok()),
    })
}

fn routes(keys: &Keys<'_>) -> Result<Vec<Route>, CniError> {
    each(keys, "routes", "prevResult.routes", Route::read)
}

/// Reads every object of a list.
fn each<T>(
    keys: &Keys<'_>,
    name: &str,
    path: &str,
    read: impl Fn(&Keys<'_>) -> Result<T, CniError>,
) -> Result<Vec<T>, CniError> {
    let list = keys.list(name)?;
    if list.len() > MOST {
        let msg = format!("{path} has {} entries; expected {MOST} at the most", list.len());
        return Err(CniError::new(Code::BadConfig, msg));
    }
    let one = |item: &Value| {
        let object: &Map<String, Value> = item
            .as_object()
            .ok_or_else(|| keys.fault(name, item, "a list of objects"))?;
        read(&Keys::new(path, object))
    };
    list.iter().map(one).collect()
}

fn dns(keys: &Keys<'_>) -> Result<Dns, CniError> {
    match keys.object("dns")? {
        Some(object) => Dns::read(&Keys::new("prevResult.dns", object)),
        None => Ok(Dns::default()),
    }
}

/// An address with its prefix length, host bits and all.
fn cidr(keys: &Keys<'_>, name: &str) -> Result<(IpAddr, u8), CniError> {
    let expected = "an address with a prefix length, such as 10.244.1.2/24";
    let text = keys.text(name)?.unwrap_or_default();
    let parsed = network(text).and_then(|(_, length)| {
        let address = text.split_once('/')?.0.parse().ok()?;
        Some((address, length))
    });
    parsed.ok_or_else(|| keys.fault(name, &Value::from(text), expected))
}

fn ip(keys: &Keys<'_>, name: &str) -> Result<Option<IpAddr>, CniError> {
    match keys.text(name)?.filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => match text.parse() {
            Ok(ip) => Ok(Some(ip)),
            Err(_) => Err(keys.fault(name, &Value::from(text), "an address")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(version: SpecVersion, text: &str) -> Result<Option<AddResult>, CniError> {
        let object: Map<String, Value> = serde_json::from_str(text).unwrap();
        previous(&Keys::new("", &object), version)
    }

    #[test]
    fn what_we_print_is_what_we_read() {
        let result = super::super::result::sample();
        for version in SpecVersion::ALL {
            let text = format!(r#"{{"prevResult":{}}}"#, result.to_json(version));
            let back = read(version, &text).unwrap().unwrap();
            assert_eq!(back.to_json(version), result.to_json(version), "{version:?}");
            assert_eq!(back.ips[0].address, result.ips[0].address);
        }
    }

    #[test]
    fn go_case_and_nulls() {
        let text = r#"{"PrevResult":{"CNIVersion":"1.0.0","Interfaces":null,"IPs":[{"Address":"10.1.2.3/24","Gateway":""}],"dns":null}}"#;
        let result = read(SpecVersion::V1_1_0, text).unwrap().unwrap();
        assert_eq!((result.ips[0].length, result.ips[0].gateway), (24, None));
        assert_eq!(read(SpecVersion::V1_0_0, r#"{"prevResult":null}"#), Ok(None));
    }

    #[test]
    fn malformed_results_are_code_7() {
        for text in [
            r#"{"cniVersion":"0.4.0"}"#,
            r#"{"cniVersion":"9.9.9"}"#,
            r#"{"ips":[{"address":"10.1.2.3"}]}"#,
            r#"{"ips":[{"address":"10.1.2.3/24","interface":0}]}"#,
            r#"{"interfaces":[{"name":"a"}],"ips":[{"address":"10.1.2.3/24","interface":1}]}"#,
            r#"{"interfaces":[{"name":"a","mac":"zz"}]}"#,
            r#"{"interfaces":["a"]}"#,
            r#"{"routes":[{"dst":"ten"}]}"#,
            r#"{"dns":{"nameservers":[1]}}"#,
            r#"[]"#,
        ] {
            let error = read(SpecVersion::V1_0_0, &format!(r#"{{"prevResult":{text}}}"#)).unwrap_err();
            assert_eq!(error.code, Code::BadConfig, "{text}");
            assert!(error.msg.contains("prevResult"), "{error}");
        }
    }
}
