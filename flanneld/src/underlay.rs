//! What the kernel says before anything is planned: the interface for the tunnels, and a VTEP that stands already.

mod follow;

use anyhow::Context;
use flannel_model::{Families, IpFamily, Mac};
use flannel_netlink::{RouteConn, link};
use flannel_plan::{DefaultRoute, Device, Interface, Underlay, UnderlayOptions};

use crate::flags::Options;
use crate::kernel;

pub use follow::follow;

/// Chooses the interface for traffic between nodes of a network with these families.
///
/// # Errors
/// When the kernel cannot be asked or no interface fits.
pub fn choose_underlay(options: &Options, families: Families<(), ()>) -> anyhow::Result<Underlay> {
    let Seen {
        interfaces,
        defaults,
        wanted,
    } = Seen::look(options, families)?;
    Ok(flannel_plan::choose_underlay(&interfaces, &defaults, &wanted)?)
}

/// What the choice is made from.
struct Seen {
    interfaces: Vec<Interface>,
    defaults: Vec<DefaultRoute>,
    wanted: UnderlayOptions,
}

impl Seen {
    fn look(options: &Options, families: Families<(), ()>) -> anyhow::Result<Self> {
        let mut conn = RouteConn::open()?;
        let interfaces = kernel::interfaces(&mut conn).context("cannot list the interfaces")?;
        let defaults = kernel::default_routes(&mut conn).context("cannot list the default routes")?;
        let can_reach = options
            .iface_can_reach
            .map(|target| kernel::can_reach(&mut conn, target))
            .transpose()?;
        let wanted = UnderlayOptions {
            families,
            iface: options.iface.clone(),
            iface_regex: options.iface_regex.clone(),
            iface_can_reach: can_reach,
            public_ip: options.public_ip,
            public_ipv6: options.public_ipv6,
        };
        Ok(Self {
            interfaces,
            defaults,
            wanted,
        })
    }
}

/// The Ethernet address of the VTEP of a family of an earlier run, ours or flannel's.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn device_mac(vni: u32, family: IpFamily) -> anyhow::Result<Option<Mac>> {
    let mut conn = RouteConn::open()?;
    let device = link::by_name(&mut conn, &Device::Vxlan { vni, family }.to_string())?;
    Ok(device
        .filter(|link| link.vxlan.is_some())
        .and_then(|link| link.mac))
}
