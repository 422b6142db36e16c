//! What the rendered configuration asks of the bridge, its ports and the containers: a typed view of the bridge plugin's keys.

use flannel_model::Mac;
use serde_json::{Map, Value};

use super::Vlans;
use crate::guard::Scope;
use crate::protocol::args::{address, unicast};
use crate::protocol::keys::Keys;
use crate::protocol::{CniArgs, CniError, Code, Dns, IfName};
use std::net::IpAddr;

/// Largest MTU of a veth device (ETH_MAX_MTU, linux/if_ether.h).
const MAX_MTU: u32 = 65535;
/// IPv4's smallest MTU (RFC 791), which the kernel asks for before it puts an IPv4 address on a device.
const MIN_MTU: u32 = 68;

/// Settings of the bridge plugin that are built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// `bridge`: its device name.
    pub name: IfName,
    /// `isGateway` or `isDefaultGateway`: the gateway addresses stand on the bridge, and the node forwards.
    pub is_gateway: bool,
    /// `isDefaultGateway`: containers get a default route by it.
    pub is_default_gateway: bool,
    /// `forceAddress`: other addresses of the gateway's family leave the bridge.
    pub force_address: bool,
    /// `ipMasq`: what leaves the node's subnet is masqueraded here.
    pub ip_masq: bool,
    /// `mtu` in bytes; none leaves the kernel's default.
    pub mtu: Option<u32>,
    /// `hairpinMode` of the container's port.
    pub hairpin: bool,
    /// `promiscMode` of the bridge.
    pub promisc: bool,
    /// `portIsolation`: the container reaches the node, and what is beyond it, but no other isolated container.
    pub port_isolation: bool,
    /// `vlan`, `vlanTrunk` and `preserveDefaultVlan`: the VLANs of the container's port.
    pub vlans: Option<Vlans>,
    /// `enabledad`: ADD waits until the kernel found the container's IPv6 addresses to be nobody else's.
    pub enable_dad: bool,
    /// `antiSpoof` and `macspoofchk`: how much of what the container sends is checked.
    pub guard: Scope,
    /// Whether a kernel that cannot check makes ADD fail, because somebody asked for it.
    pub guard_required: bool,
    /// `dns`, which replaces that of the address management when set.
    pub dns: Dns,
    /// Hardware address asked for: `runtimeConfig.mac`, else `MAC` of `CNI_ARGS`.
    pub mac: Option<Mac>,
    /// Addresses asked for: `IP` of `CNI_ARGS`, then `runtimeConfig.ips`.
    pub requested: Vec<IpAddr>,
}

impl Bridge {
    /// Reads the rendered delegate.
    ///
    /// # Errors
    /// Code 2 for a way of masquerading that there is not, code 7 for values out of range and contradictions.
    pub fn read(delegate: &Map<String, Value>, args: &CniArgs) -> Result<Self, CniError> {
        let keys = Keys::new("delegate", delegate);
        refuse(&keys)?;
        let flag = |name: &str| keys.boolean(name).map(Option::unwrap_or_default);
        let runtime = keys.object("runtimeConfig")?.cloned().unwrap_or_default();
        let runtime = Keys::new("runtimeConfig", &runtime);
        // `args.cni`, by the specification's conventions.
        let conventional = keys.object("args")?.cloned().unwrap_or_default();
        let conventional = Keys::new("delegate.args", &conventional)
            .object("cni")?
            .cloned()
            .unwrap_or_default();
        let conventional = Keys::new("delegate.args.cni", &conventional);
        let (guard, guard_required) = guard(&keys)?;
        let is_default_gateway = flag("isDefaultGateway")?;
        let bridge = Self {
            name: bridge_name(delegate)?,
            is_gateway: flag("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: flag("forceAddress")?,
            ip_masq: flag("ipMasq")?,
            mtu: mtu(&keys)?,
            hairpin: flag("hairpinMode")?,
            promisc: flag("promiscMode")?,
            port_isolation: flag("portIsolation")?,
            vlans: Vlans::read(&keys)?,
            enable_dad: flag("enabledad")?,
            guard,
            guard_required,
            dns: dns(&keys)?,
            mac: mac(&runtime)?.or(mac(&conventional)?).or(args.mac),
            requested: requested(&[conventional, runtime], args)?,
        };
        bridge.agrees().map(|()| bridge)
    }

    /// The device that bears the gateway addresses of a VLAN, as the bridge plugin names it. `None`: the bridge itself does.
    pub fn gateway_device(&self) -> Option<String> {
        let access = self.vlans.as_ref().and_then(Vlans::access)?;
        Some(format!("{}.{access}", self.name.as_str())).filter(|_| self.is_gateway)
    }

    fn agrees(&self) -> Result<(), CniError> {
        if self.hairpin && self.promisc {
            return Err(contradiction(
                "delegate.hairpinMode and delegate.promiscMode cannot both be true",
                "each makes a container reach itself by its Service address, and together every frame arrives twice; keep hairpinMode",
            ));
        }
        match self.gateway_device() {
            Some(name) if IfName::parse(&name).is_err() => Err(contradiction(
                format!(
                    "delegate.bridge and delegate.vlan make the gateway's device {name}, which is too long for a name"
                ),
                "a device name has 15 characters at most: give the bridge a shorter one",
            )),
            _ => Ok(()),
        }
    }
}

/// The error of values of which each alone is fine.
pub fn contradiction(msg: impl Into<String>, advice: &str) -> CniError {
    CniError::new(Code::BadConfig, msg).with(advice)
}

/// Rules of iptables do the same as those of nftables, so a configuration that asks for them goes on working; it is told.
pub const OTHER_BACKEND: &str = "iptables";

/// Silence would leave a container otherwise than its owner thinks.
fn refuse(keys: &Keys<'_>) -> Result<(), CniError> {
    if keys.boolean("disableContainerInterface")? == Some(true) {
        return Err(contradiction(
            "delegate.disableContainerInterface is true, but the container gets addresses of the node's subnet",
            "an interface that is down cannot have them: leave the key out",
        ));
    }
    match keys.text("ipMasqBackend")?.unwrap_or_default() {
        "" | "nftables" | OTHER_BACKEND => Ok(()),
        other => Err(CniError::new(
            Code::UnsupportedField,
            format!(
                "{} = {other:?} is not built into this plugin",
                keys.full("ipMasqBackend")
            ),
        )
        .with("leave it out or set it to \"nftables\"")),
    }
}

/// The bridge's device name.
///
/// # Errors
/// Code 7 when it is none.
pub fn bridge_name(delegate: &Map<String, Value>) -> Result<IfName, CniError> {
    let keys = Keys::new("delegate", delegate);
    let text = keys
        .text("bridge")?
        .filter(|text| !text.is_empty())
        .unwrap_or("cni0");
    IfName::parse(text).map_err(|fault| {
        let expected = format!("a device name, but it {fault}");
        keys.fault("bridge", &Value::from(text), &expected)
    })
}

/// Everything is checked unless somebody says otherwise; `macspoofchk` is the bridge plugin's key for the hardware address.
fn guard(keys: &Keys<'_>) -> Result<(Scope, bool), CniError> {
    let macspoofchk = keys.boolean("macspoofchk")?;
    Ok(match (keys.boolean("antiSpoof")?, macspoofchk) {
        (Some(true), _) | (None, Some(true)) => (Scope::All, true),
        (Some(false), Some(true)) => (Scope::Mac, true),
        (Some(false), _) | (None, Some(false)) => (Scope::Nothing, false),
        (None, None) => (Scope::All, false),
    })
}

/// Zero leaves it to the kernel, as in the bridge plugin.
fn mtu(keys: &Keys<'_>) -> Result<Option<u32>, CniError> {
    let mtu = keys.number("mtu", 0, MAX_MTU)?.filter(|mtu| *mtu != 0);
    match mtu.filter(|mtu| *mtu < MIN_MTU) {
        Some(small) => Err(keys.fault("mtu", &Value::from(small), "0 or a number from 68 to 65535")),
        None => Ok(mtu),
    }
}

fn dns(keys: &Keys<'_>) -> Result<Dns, CniError> {
    match keys.object("dns")? {
        Some(object) => Dns::read(&Keys::new("delegate.dns", object)),
        None => Ok(Dns::default()),
    }
}

fn mac(runtime: &Keys<'_>) -> Result<Option<Mac>, CniError> {
    let Some(text) = runtime.text("mac")?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let mac = unicast(text).map_err(|expected| runtime.fault("mac", &Value::from(text), expected))?;
    Ok(Some(mac))
}

fn requested(sources: &[Keys<'_>], args: &CniArgs) -> Result<Vec<IpAddr>, CniError> {
    let mut requested: Vec<IpAddr> = args.ip.into_iter().collect();
    for source in sources {
        for text in source.texts("ips")? {
            let expected = "addresses such as 10.244.1.7/24";
            let ip =
                address(&text).ok_or_else(|| source.fault("ips", &Value::from(text.as_str()), expected))?;
            requested.push(ip);
        }
    }
    Ok(requested)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Bridge, CniError> {
        Bridge::read(&serde_json::from_str(text).unwrap(), &CniArgs::default())
    }

    #[test]
    fn defaults() {
        let bridge = read("{}").unwrap();
        assert_eq!(bridge.name.as_str(), "cni0");
        assert!(!bridge.is_gateway && !bridge.ip_masq && !bridge.hairpin && bridge.mtu.is_none());
    }

    #[test]
    fn the_gateway_of_a_vlan_has_a_device_of_its_own() {
        let device = |text: &str| read(text).unwrap().gateway_device();
        assert_eq!(
            device(r#"{"vlan":100,"isDefaultGateway":true}"#).as_deref(),
            Some("cni0.100")
        );
        for text in [
            r#"{"vlan":100}"#,
            r#"{"isGateway":true}"#,
            r#"{"vlanTrunk":[{"id":5}],"isGateway":true}"#,
        ] {
            assert_eq!(device(text), None, "{text}");
        }
    }

    #[test]
    fn the_default_gateway_is_a_gateway() {
        let bridge =
            read(r#"{"isGateway":false,"IsDefaultGateway":true,"mtu":1450,"vlan":0,"macspoofchk":false}"#)
                .unwrap();
        assert!(bridge.is_gateway && bridge.is_default_gateway);
        assert_eq!(bridge.mtu, Some(1450));
    }

    #[test]
    fn spoofing_is_prevented_unless_told_otherwise() {
        for (text, expected) in [
            ("{}", (Scope::All, false)),
            (r#"{"antiSpoof":true}"#, (Scope::All, true)),
            (r#"{"macspoofchk":true}"#, (Scope::All, true)),
            (r#"{"macspoofchk":false}"#, (Scope::Nothing, false)),
            (r#"{"antiSpoof":false}"#, (Scope::Nothing, false)),
            (r#"{"antiSpoof":false,"macspoofchk":true}"#, (Scope::Mac, true)),
        ] {
            let bridge = read(text).unwrap();
            assert_eq!((bridge.guard, bridge.guard_required), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (name, value, code) in [
            ("disableContainerInterface", "true", Code::BadConfig),
            ("ipMasqBackend", "\"ebpf\"", Code::UnsupportedField),
        ] {
            let error = read(&format!("{{\"{name}\":{value}}}")).unwrap_err();
            assert_eq!(error.code, code, "{name}");
            assert!(error.msg.contains(&format!("delegate.{name}")), "{error}");
            assert!(!error.details.is_empty(), "{name}");
        }
    }

    #[test]
    fn bad_values_and_contradictions_are_code_7() {
        for text in [
            r#"{"hairpinMode":true,"promiscMode":true}"#,
            r#"{"bridge":"a/b"}"#,
            r#"{"bridge":"a234567890123456"}"#,
            r#"{"bridge":7}"#,
            r#"{"mtu":-1}"#,
            r#"{"mtu":67}"#,
            r#"{"mtu":65536}"#,
            r#"{"mtu":1450.5}"#,
            r#"{"vlan":5000}"#,
            r#"{"vlan":100,"vlanTrunk":[{"id":100}]}"#,
            r#"{"bridge":"a23456789012","vlan":100,"isGateway":true}"#,
            r#"{"hairpinMode":"yes"}"#,
            r#"{"runtimeConfig":{"mac":"01:00:00:00:00:00"}}"#,
            r#"{"runtimeConfig":{"ips":["10.0.0.0/99"]}}"#,
        ] {
            assert_eq!(read(text).unwrap_err().code, Code::BadConfig, "{text}");
        }
    }

    #[test]
    fn the_runtime_outranks_the_arguments() {
        let args = CniArgs::parse("MAC=02:00:00:00:00:01;IP=10.1.17.7").unwrap();
        let runtime = r#"{"RuntimeConfig":{"Mac":"02:00:00:00:00:02","ips":["10.1.17.8/24"]}}"#;
        let bridge = Bridge::read(&serde_json::from_str(runtime).unwrap(), &args).unwrap();
        assert_eq!(bridge.mac.unwrap().to_string(), "02:00:00:00:00:02");
        assert_eq!(bridge.requested.len(), 2);
        let conventional = r#"{"args":{"cni":{"mac":"02:00:00:00:00:03","ips":["10.1.17.9"],"labels":[]}}}"#;
        let between = Bridge::read(&serde_json::from_str(conventional).unwrap(), &args).unwrap();
        assert_eq!(between.mac.unwrap().to_string(), "02:00:00:00:00:03");
        assert_eq!(between.requested.len(), 2);
        let plain = Bridge::read(&Map::new(), &args).unwrap();
        assert_eq!(plain.mac.unwrap().to_string(), "02:00:00:00:00:01");
    }
}
