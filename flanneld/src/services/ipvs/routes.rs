//! Local routes: one for each service CIDR and one for each address outside them. They deliver virtual addresses to IPVS with no
//! address on any device.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::IpSubnet;
use flannel_netlink::local_route::{self, LocalRoute};
use flannel_netlink::{NetlinkError, RouteConn, link};

use super::tables::{FAMILIES, has_family};
use crate::services::programmer::{Status, View};

/// The loopback device, over which local routes go.
const LOOPBACK: &str = "lo";

/// Routes of ours by their destination, each with its source.
pub(super) type Routes = BTreeMap<IpSubnet, Option<IpAddr>>;

/// The local routes that carry our mark: those of now and of earlier configurations.
pub(super) fn observe(conn: &mut RouteConn) -> Result<Routes, NetlinkError> {
    let mut routes = Routes::new();
    for ipv4 in FAMILIES {
        let ours = local_route::ours(conn, ipv4)?;
        routes.extend(ours.into_iter().map(|r| (r.destination, r.source)));
    }
    Ok(routes)
}

/// The routes that should be there.
pub(super) fn wanted(view: &View<'_>) -> Routes {
    let source = |ipv4| view.node.primary(ipv4);
    let external = view.frontends.external_ips.iter().copied();
    let external = external.filter(|ip| has_family(view.frontends, ip.is_ipv4()));
    let cidrs = view.frontends.cidrs.iter().copied();
    cidrs
        .chain(external.filter_map(host))
        .map(|destination| (destination, source(destination.is_ipv4())))
        .collect()
}

/// The range that holds one address.
pub(super) fn host(address: IpAddr) -> Option<IpSubnet> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    format!("{address}/{length}").parse().ok()
}

/// Adds the routes of `wanted` that are not in `present`, and corrects those with another source. Without the guard of its family
/// no route is added, because every port of the host would answer on each address behind it.
///
/// # Errors
/// When the loopback device cannot be asked for.
pub(super) fn add(
    conn: &mut RouteConn,
    wanted: &Routes,
    present: &mut Routes,
    guarded: impl Fn(bool) -> bool,
    status: &mut Status,
) -> Result<(), NetlinkError> {
    let missing: Vec<LocalRoute> = wanted
        .iter()
        .filter(|(to, source)| present.get(*to) != Some(source))
        .filter(|(to, _)| present.contains_key(*to) || guarded(to.is_ipv4()))
        .map(|(to, source)| LocalRoute {
            destination: *to,
            source: *source,
        })
        .collect();
    status.unchanged += wanted.len().saturating_sub(missing.len());
    if missing.is_empty() {
        return Ok(());
    }
    let Some(loopback) = link::by_name(conn, LOOPBACK)? else {
        status.failed.push(format!(
            "the device {LOOPBACK} is missing: Services need it for their local routes"
        ));
        return Ok(());
    };
    let requests: Vec<_> = missing
        .iter()
        .map(|r| local_route::put(r, loopback.ifindex))
        .collect();
    for (route, outcome) in missing.iter().zip(conn.batch(&requests)) {
        match outcome {
            Ok(_) => {
                present.insert(route.destination, route.source);
                status.added += 1;
            }
            Err(error) => status.fail(&error),
        }
    }
    Ok(())
}

/// Removes those of `present` that are not wanted.
pub(super) fn remove_stale(conn: &mut RouteConn, wanted: &Routes, present: &mut Routes, status: &mut Status) {
    let stale: BTreeSet<IpSubnet> = present
        .keys()
        .filter(|to| !wanted.contains_key(*to))
        .copied()
        .collect();
    for destination in stale {
        let route = LocalRoute {
            destination,
            source: None,
        };
        match conn.run(&local_route::delete(&route)) {
            Ok(()) => status.removed += 1,
            Err(error) if error.is_missing() => {}
            Err(error) => {
                status.fail(&error);
                continue;
            }
        }
        present.remove(&destination);
    }
}
