//! The bridge plugin's keys of VLANs: `vlan`, `vlanTrunk`, `preserveDefaultVlan`.

use std::collections::BTreeSet;

use flannel_netlink::link::PortVlan;
use serde_json::Value;

use super::bridge::contradiction;
use crate::protocol::CniError;
use crate::protocol::keys::Keys;

/// The VLAN that every port of a bridge is in by default (`br_vlan_init`, net/bridge/br_vlan.c).
const DEFAULT: u16 = 1;
/// The largest VLAN: 4095 is reserved (IEEE 802.1Q).
const LAST: u32 = 4094;

/// In which VLANs a container's port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlans {
    /// `vlan`: that of frames without a tag, and of the gateway. `None`: the bridge's default one.
    access: Option<u16>,
    /// `vlanTrunk`: those whose frames the container sends and gets with a tag.
    trunk: BTreeSet<u16>,
    /// `preserveDefaultVlan`: the container gets the frames of VLAN 1 besides.
    keep_default: bool,
}

impl Vlans {
    /// Reads the keys; `None` when the bridge is to know no VLANs.
    ///
    /// # Errors
    /// Code 7 for numbers out of range, incomplete ranges and a VLAN that would have to be tagged and untagged at once.
    pub fn read(keys: &Keys<'_>) -> Result<Option<Self>, CniError> {
        let access = keys.number("vlan", 0, LAST)?.and_then(vlan).filter(|id| *id != 0);
        let mut trunk = BTreeSet::new();
        for (index, item) in keys.list("vlanTrunk")?.iter().enumerate() {
            trunk.extend(members(keys, index, item)?);
        }
        let keep_default = keys.boolean("preserveDefaultVlan")?.unwrap_or_default();
        if access.is_none() && trunk.is_empty() {
            return Ok(None);
        }
        let vlans = Self {
            access,
            trunk,
            keep_default,
        };
        match vlans.trunk.contains(&vlans.native()) {
            false => Ok(Some(vlans)),
            true => Err(contradiction(
                format!(
                    "delegate.vlanTrunk contains {0}, which is the VLAN of the container's untagged frames",
                    vlans.native()
                ),
                "a VLAN is either tagged or untagged on a port: take it out of vlanTrunk, or give delegate.vlan another number",
            )),
        }
    }

    /// The VLAN of a gateway that is not on the bridge itself.
    pub fn access(&self) -> Option<u16> {
        self.access
    }

    /// VLANs whose frames have a tag.
    pub fn tagged(&self) -> impl Iterator<Item = u16> {
        self.trunk.iter().copied()
    }

    /// What the container's port is to be a member of, and which VLAN it is to be taken out of.
    pub fn of_port(&self) -> (Vec<PortVlan>, Option<PortVlan>) {
        let mut wanted = vec![PortVlan::native(self.native())];
        for id in self.tagged() {
            match wanted
                .last_mut()
                .filter(|last| !last.native && last.last + 1 == id)
            {
                Some(range) => range.last = id,
                None => wanted.push(PortVlan::tagged(id, id)),
            }
        }
        (wanted, self.unwanted())
    }

    /// The same of the gateway's port.
    pub fn of_gateway(&self, access: u16) -> (Vec<PortVlan>, Option<PortVlan>) {
        (vec![PortVlan::native(access)], self.unwanted())
    }

    fn native(&self) -> u16 {
        self.access.unwrap_or(DEFAULT)
    }

    /// Every new port is in the default VLAN; as one whose frames a container gets and cannot answer, it stays by request only.
    fn unwanted(&self) -> Option<PortVlan> {
        let stays = self.keep_default || self.native() == DEFAULT || self.trunk.contains(&DEFAULT);
        (!stays).then(|| PortVlan::native(DEFAULT))
    }
}

fn vlan(number: u32) -> Option<u16> {
    u16::try_from(number).ok()
}

/// An item of `vlanTrunk`: `id`, or `minID` and `maxID`, or all three.
fn members(keys: &Keys<'_>, index: usize, item: &Value) -> Result<BTreeSet<u16>, CniError> {
    let Some(object) = item.as_object() else {
        return Err(keys.fault("vlanTrunk", item, "a list of objects with id, or minID and maxID"));
    };
    let path = format!("{}[{index}]", keys.full("vlanTrunk"));
    let inner = Keys::new(&path, object);
    let number = |name: &str| Ok(inner.number(name, 1, LAST)?.and_then(vlan));
    let mut ids = BTreeSet::from_iter(number("id")?);
    match (number("minID")?, number("maxID")?) {
        (Some(first), Some(last)) if first <= last => ids.extend(first..=last),
        (Some(first), Some(last)) => {
            let expected = format!("a number not below minID, which is {first}");
            return Err(inner.fault("maxID", &Value::from(last), &expected));
        }
        (Some(first), None) => {
            return Err(inner.fault("minID", &Value::from(first), "to stand together with maxID"));
        }
        (None, Some(last)) => {
            return Err(inner.fault("maxID", &Value::from(last), "to stand together with minID"));
        }
        (None, None) if ids.is_empty() => {
            return Err(keys.fault("vlanTrunk", item, "objects with id, or minID and maxID"));
        }
        (None, None) => {}
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Code;

    fn read(text: &str) -> Result<Option<Vlans>, CniError> {
        let object = serde_json::from_str(text).unwrap();
        Vlans::read(&Keys::new("delegate", &object))
    }

    #[test]
    fn without_a_vlan_there_are_none() {
        for text in [
            "{}",
            r#"{"vlan":0,"vlanTrunk":[],"preserveDefaultVlan":true}"#,
            r#"{"vlan":null,"vlanTrunk":null}"#,
        ] {
            assert_eq!(read(text).unwrap(), None, "{text}");
        }
    }

    #[test]
    fn b12_what_a_port_is_a_member_of() {
        let native = |id| PortVlan::native(id);
        let default = Some(native(1));
        for (text, wanted, unwanted) in [
            (r#"{"vlan":100}"#, vec![native(100)], default),
            (
                r#"{"vlan":100,"preserveDefaultVlan":true}"#,
                vec![native(100)],
                None,
            ),
            (r#"{"vlan":1}"#, vec![native(1)], None),
            (
                r#"{"vlanTrunk":[{"id":101},{"minID":200,"maxID":210}]}"#,
                vec![native(1), PortVlan::tagged(101, 101), PortVlan::tagged(200, 210)],
                None,
            ),
            (
                r#"{"vlan":100,"vlanTrunk":[{"id":103},{"minID":101,"maxID":102}]}"#,
                vec![native(100), PortVlan::tagged(101, 103)],
                default,
            ),
            (
                r#"{"vlan":100,"vlanTrunk":[{"id":1}]}"#,
                vec![native(100), PortVlan::tagged(1, 1)],
                None,
            ),
        ] {
            let vlans = read(text).unwrap().unwrap();
            assert_eq!(vlans.of_port(), (wanted, unwanted), "{text}");
        }
    }

    #[test]
    fn b13_members_of_a_trunk() {
        let ids = |text: &str| read(text).unwrap().unwrap().tagged().collect::<Vec<_>>();
        assert_eq!(
            ids(r#"{"vlanTrunk":[{"id":7,"minID":5,"maxID":6},{"ID":6}]}"#),
            [5, 6, 7]
        );
        for (text, named) in [
            (r#"[{"minID":5}]"#, "delegate.vlanTrunk[0].minID"),
            (r#"[{"id":3},{"maxID":5}]"#, "delegate.vlanTrunk[1].maxID"),
            (r#"[{"minID":6,"maxID":5}]"#, "delegate.vlanTrunk[0].maxID"),
            (r#"[{"minID":0,"maxID":5}]"#, "delegate.vlanTrunk[0].minID"),
            (r#"[{"minID":1,"maxID":4095}]"#, "delegate.vlanTrunk[0].maxID"),
            (r#"[{"id":0}]"#, "delegate.vlanTrunk[0].id"),
            (r#"[{"id":-1}]"#, "delegate.vlanTrunk[0].id"),
            (r#"[{"id":"5"}]"#, "delegate.vlanTrunk[0].id"),
            ("[{}]", "delegate.vlanTrunk"),
            ("[5]", "delegate.vlanTrunk"),
            ("5", "delegate.vlanTrunk"),
        ] {
            let error = read(&format!("{{\"vlanTrunk\":{text}}}")).unwrap_err();
            assert_eq!(error.code, Code::BadConfig, "{text}");
            assert!(error.msg.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn b14_numbers_out_of_range() {
        for number in ["-100", "5000", "4095", "1.5"] {
            let error = read(&format!("{{\"vlan\":{number}}}")).unwrap_err();
            assert_eq!(error.code, Code::BadConfig, "{number}");
            assert!(error.msg.contains("delegate.vlan"), "{error}");
        }
    }

    #[test]
    fn a_vlan_is_tagged_or_untagged() {
        for text in [
            r#"{"vlan":100,"vlanTrunk":[{"minID":90,"maxID":110}]}"#,
            r#"{"vlanTrunk":[{"minID":1,"maxID":4094}]}"#,
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.code, Code::BadConfig, "{text}");
            assert!(error.msg.contains("vlanTrunk") && !error.details.is_empty());
        }
    }
}
