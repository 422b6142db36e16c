//! One local route for each service CIDR: it delivers all virtual addresses to IPVS, with no address on any device.

use std::net::Ipv4Addr;

use flannel_model::Ipv4Subnet;
use flannel_netlink::route::{self, Filter, Route, RouteKind, TABLE_LOCAL};
use flannel_netlink::{NetlinkError, OUR_PROTOCOL, RouteConn, RouteRequest, link};

use super::Status;

/// The loopback device, over which local routes go.
const LOOPBACK: &str = "lo";

/// The local routes that carry our mark: the service CIDRs of now and of earlier configurations.
pub(super) fn ours(conn: &mut RouteConn) -> Result<Vec<Route>, NetlinkError> {
    let filter = Filter {
        table: TABLE_LOCAL,
        protocol: Some(OUR_PROTOCOL),
        kind: Some(RouteKind::Local),
        ..Filter::default()
    };
    route::dump(conn, &filter)
}

/// Adds the routes of `cidrs` that are not there and corrects those with another source address. Without the guard no route
/// is added, because every port of the host would answer on each address behind it. Answers the CIDRs whose route stands.
///
/// # Errors
/// When the loopback device cannot be asked for.
pub(super) fn add(
    conn: &mut RouteConn,
    cidrs: &[Ipv4Subnet],
    present: &[Route],
    source: Ipv4Addr,
    guarded: bool,
    status: &mut Status,
) -> Result<Vec<Ipv4Subnet>, NetlinkError> {
    let loopback = link::by_name(conn, LOOPBACK)?;
    if loopback.is_none() {
        status.failed.push(format!(
            "the device {LOOPBACK} is missing: Services need it for their local routes"
        ));
    }
    let mut standing = Vec::new();
    for cidr in cidrs {
        let found = present.iter().find(|r| r.destination == (*cidr).into());
        let wanted = loopback
            .as_ref()
            .map(|lo| Route::local(*cidr, lo.ifindex, Some(source.into())));
        let stands = match (found, wanted) {
            (Some(found), Some(wanted)) if *found == wanted => {
                status.unchanged += 1;
                true
            }
            (Some(_), Some(wanted)) => {
                write(conn, &route::replace(&wanted), status);
                true
            }
            (None, Some(wanted)) if guarded => write(conn, &route::add(&wanted), status),
            (found, _) => found.is_some(),
        };
        standing.extend(stands.then_some(*cidr));
    }
    Ok(standing)
}

fn write(conn: &mut RouteConn, request: &RouteRequest, status: &mut Status) -> bool {
    match conn.run(request) {
        Ok(()) => {
            status.added += 1;
            true
        }
        Err(error) => {
            status.fail(&error);
            false
        }
    }
}

/// Removes those of `present` that are not for one of `cidrs`.
pub(super) fn remove_stale(
    conn: &mut RouteConn,
    cidrs: &[Ipv4Subnet],
    present: &[Route],
    status: &mut Status,
) {
    for stale in present
        .iter()
        .filter(|r| !cidrs.iter().any(|cidr| r.destination == (*cidr).into()))
    {
        match conn.run(&route::delete(stale)) {
            Ok(()) => status.removed += 1,
            Err(error) if error.is_missing() => {}
            Err(error) => status.fail(&error),
        }
    }
}
