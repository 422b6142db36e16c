//! What the kernel says before anything is planned: the interface for the tunnels, and a VTEP that stands already.

use anyhow::Context;
use flannel_model::Mac;
use flannel_netlink::{RouteConn, link};
use flannel_plan::{Device, Underlay, UnderlayOptions};

use crate::flags::Options;
use crate::kernel;

/// Chooses the interface for traffic between nodes.
///
/// # Errors
/// When the kernel cannot be asked or no interface fits.
pub fn choose_underlay(options: &Options) -> anyhow::Result<Underlay> {
    let mut conn = RouteConn::open()?;
    let interfaces = kernel::interfaces(&mut conn).context("cannot list the interfaces")?;
    let defaults = kernel::default_routes(&mut conn).context("cannot list the default routes")?;
    let can_reach = options
        .iface_can_reach
        .map(|target| kernel::can_reach(&mut conn, target))
        .transpose()?;
    let wanted = UnderlayOptions {
        iface: options.iface.clone(),
        iface_regex: options.iface_regex.clone(),
        iface_can_reach: can_reach,
        public_ip: options.public_ip,
    };
    Ok(flannel_plan::choose_underlay(&interfaces, &defaults, &wanted)?)
}

/// The Ethernet address of the VTEP of an earlier run, ours or flannel's.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn device_mac(vni: u32) -> anyhow::Result<Option<Mac>> {
    let mut conn = RouteConn::open()?;
    let device = link::by_name(&mut conn, &Device { vni }.to_string())?;
    Ok(device
        .filter(|link| link.vxlan.is_some())
        .and_then(|link| link.mac))
}
