//! STATUS: would an ADD succeed now?

use flannel_netlink::RouteConn;
use flannel_netlink::link;

use crate::address::Store;
use crate::config::{Network, bridge_name};
use crate::order::Order;
use crate::protocol::{CniArgs, CniError, Code};
use crate::release;
use crate::subnet_file;
use crate::wiring::{kernel, live};

/// Looks at subnet.env, the configuration, the bridge and the free addresses.
///
/// # Errors
/// Code 50 when an ADD would fail; 51 when, besides, containers are attached to a node that has no subnet any more; the codes
/// of ADD for the configuration.
pub fn status(network: &Network, warn: &mut dyn FnMut(String)) -> Result<(), CniError> {
    let path = network.subnet_file()?;
    let mut conn = RouteConn::open().map_err(|e| kernel(&e))?;
    let env = match subnet_file::read(&path) {
        Ok(env) => env,
        Err(e) => {
            let name = bridge_name(&network.part("delegate")?)?;
            let code = match has_ports(&mut conn, name.as_str())? {
                true => Code::Limited,
                false => Code::NotAvailable,
            };
            return Err(CniError { code, ..e });
        }
    };
    let order = Order::read(network, &CniArgs::default(), &env)?;
    crate::wiring::bridge::find(&mut conn, order.bridge.name.as_str()).map_err(unavailable)?;
    room(network, &order, &mut conn, warn)
}

/// Whether every set has a free address, or one that only a dead container holds.
fn room(
    network: &Network,
    order: &Order,
    conn: &mut RouteConn,
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let Some(mut store) = Store::open_existing(&order.ipam.lease_root, &network.name)? else {
        return Ok(());
    };
    let mut reclaimed = false;
    for set in &order.ipam.sets {
        if !reclaimed && !store.has_room(set)? {
            let bridge = order.bridge.name.as_str();
            let gone = store.reclaim(&mut || live(conn, &network.name, bridge), warn)?;
            release::residue(&gone, warn);
            reclaimed = true;
        }
        if !store.has_room(set)? {
            return Err(unavailable(store.exhausted(set)));
        }
    }
    Ok(())
}

fn unavailable(error: CniError) -> CniError {
    CniError {
        code: Code::NotAvailable,
        ..error
    }
}

/// Whether containers hang on the bridge.
fn has_ports(conn: &mut RouteConn, bridge: &str) -> Result<bool, CniError> {
    let Some(bridge) = link::by_name(conn, bridge).map_err(|e| kernel(&e))? else {
        return Ok(false);
    };
    let links = link::dump(conn).map_err(|e| kernel(&e))?;
    Ok(links.iter().any(|link| link.master == Some(bridge.ifindex)))
}
