//! Kernel settings of our devices, which are files below /proc/sys.

use std::collections::BTreeMap;

use crate::device::Device;
use crate::op::Op;

/// A setting of a tunnel device. Nobody inside the overlay may change the routes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// Router advertisements: a pod could give the node a default route by one.
    AcceptRa,
    /// ICMPv6 redirects: a pod could lead the node's packets to itself.
    AcceptRedirectsV6,
    /// ICMP redirects, for the same reason.
    AcceptRedirects,
    /// A packet that leaves where it came from is no reason to tell pods of another way.
    SendRedirects,
    /// ICMP errors of the udp backend's data path come in from the device's own address, which the kernel takes for a forgery unless
    /// told otherwise. No peer can use it: the address is in this node's subnet.
    AcceptLocal,
}

/// Those of every tunnel device.
const OF_EACH: [Setting; 4] = [
    Setting::AcceptRa,
    Setting::AcceptRedirectsV6,
    Setting::AcceptRedirects,
    Setting::SendRedirects,
];
/// Those of the TUN device.
const OF_TUN: [Setting; 5] = [
    Setting::AcceptRa,
    Setting::AcceptRedirectsV6,
    Setting::AcceptRedirects,
    Setting::SendRedirects,
    Setting::AcceptLocal,
];

impl Setting {
    /// Those that a device should have.
    pub fn of(device: Device) -> &'static [Self] {
        match device {
            Device::Tun => &OF_TUN,
            Device::Vxlan { .. } | Device::Ipip | Device::Wireguard { .. } => &OF_EACH,
        }
    }

    /// The path below /proc/sys.
    pub fn path(self, device: Device) -> String {
        let (family, name) = match self {
            Self::AcceptRa => ("ipv6", "accept_ra"),
            Self::AcceptRedirectsV6 => ("ipv6", "accept_redirects"),
            Self::AcceptRedirects => ("ipv4", "accept_redirects"),
            Self::SendRedirects => ("ipv4", "send_redirects"),
            Self::AcceptLocal => ("ipv4", "accept_local"),
        };
        format!("net/{family}/conf/{device}/{name}")
    }

    /// The name as sysctl(8) has it. A dot in a device's name stands as a slash there.
    pub fn name(self, device: Device) -> String {
        let swapped = |c| match c {
            '/' => '.',
            '.' => '/',
            other => other,
        };
        self.path(device).chars().map(swapped).collect()
    }

    /// What it should be.
    pub fn value(self) -> &'static str {
        match self {
            Self::AcceptRa | Self::AcceptRedirectsV6 | Self::AcceptRedirects | Self::SendRedirects => "0",
            Self::AcceptLocal => "1",
        }
    }

    /// What happens where it cannot be set.
    pub fn otherwise(self) -> &'static str {
        match self {
            Self::AcceptRa => "a pod can give this node a default route",
            Self::AcceptRedirectsV6 | Self::AcceptRedirects => "a pod can redirect packets of this node",
            Self::SendRedirects => "pods are told of other ways than the overlay's",
            Self::AcceptLocal => "pods will not hear of packets that cannot be forwarded",
        }
    }
}

/// The changes that bring the settings of a device, as far as the kernel has them, to what they should be.
pub fn setting_ops(device: Device, observed: &BTreeMap<Setting, String>) -> Vec<Op> {
    let differs = |setting: &&Setting| {
        let value = observed.get(setting);
        value.is_some_and(|value| value != setting.value())
    };
    let op = |setting: &Setting| Op::SettingSet {
        device,
        setting: *setting,
    };
    Setting::of(device).iter().filter(differs).map(op).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_differ_are_set_and_those_that_are_not_there_are_not_missed() {
        let device = Device::Vxlan {
            vni: 1,
            family: flannel_model::IpFamily::V4,
        };
        let texts = |observed: &[(Setting, &str)], device| {
            let observed = observed
                .iter()
                .map(|(setting, value)| (*setting, (*value).to_owned()));
            let ops = setting_ops(device, &observed.collect());
            ops.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let nobody: [String; 0] = [];
        assert_eq!(texts(&[], device), nobody);
        assert_eq!(
            texts(
                &[
                    (Setting::AcceptRa, "2"),
                    (Setting::SendRedirects, "1"),
                    (Setting::AcceptRedirects, "0"),
                    (Setting::AcceptLocal, "0"),
                ],
                device
            ),
            [
                "sysctl net.ipv6.conf.flannel/1.accept_ra=0",
                "sysctl net.ipv4.conf.flannel/1.send_redirects=0"
            ]
        );
        assert_eq!(
            texts(&[(Setting::AcceptLocal, "0")], Device::Tun),
            ["sysctl net.ipv4.conf.flannel0.accept_local=1"]
        );
    }
}
