//! The backends of this build: from the network config to what plans and what publishes.

use flannel_model::{BackendSettings, Families, IpFamily, Mac};
use flannel_plan::Underlay;
use flannel_plan::backend::{Alloc, Backend, HostGw, Ipip, Vxlan};

use crate::clock::random_bits;
use crate::publish::{Published, Vtep};
use crate::underlay::device_mac;

/// What turns facts into the overlay; `None` while something that it needs is not settled.
pub fn backend(settings: &BackendSettings, macs: Option<Families<Mac, Mac>>) -> Option<Box<dyn Backend>> {
    Some(match *settings {
        BackendSettings::Vxlan(options) => Box::new(Vxlan { options, macs: macs? }),
        BackendSettings::HostGw => Box::new(HostGw),
        BackendSettings::Ipip(options) => Box::new(Ipip {
            direct_routing: options.direct_routing,
        }),
        BackendSettings::Alloc => Box::new(Alloc),
        BackendSettings::Unread => return None,
    })
}

/// Whether the backend can work with this interface.
///
/// # Errors
/// When it cannot: what is wrong and what to do.
pub fn check(settings: &BackendSettings, underlay: &Underlay) -> anyhow::Result<()> {
    let behind_nat = underlay.public_ip != underlay.address;
    anyhow::ensure!(
        !(behind_nat && matches!(settings, BackendSettings::HostGw)),
        "host-gw sends packets of pods as they are, so the published address must be {}'s own; leave out --public-ip (and \
         --public-ipv6), or use vxlan",
        underlay.name
    );
    Ok(())
}

/// What the backend tells peers about this node. A VTEP that stands keeps its Ethernet address.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn published(settings: &BackendSettings) -> anyhow::Result<Published> {
    Ok(match settings {
        BackendSettings::Vxlan(options) => Published::Vxlan {
            vni: options.vni,
            ipv4: vtep(options.vni, IpFamily::V4)?,
            ipv6: vtep(options.vni, IpFamily::V6)?,
        },
        BackendSettings::HostGw => Published::Name("host-gw"),
        BackendSettings::Ipip(_) => Published::Name("ipip"),
        BackendSettings::Alloc | BackendSettings::Unread => Published::Nothing,
    })
}

fn vtep(vni: u32, family: IpFamily) -> anyhow::Result<Vtep> {
    let bits = random_bits().to_ne_bytes();
    let fresh = Mac::local_unicast([bits[0], bits[1], bits[2], bits[3], bits[4], bits[5]]);
    Ok(Vtep::new(device_mac(vni, family)?, fresh))
}
