//! Asking for links.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};

use super::change::message_for;
use super::decode::read_link;
use super::{Link, LinkRef};
use crate::conn::Outcome;
use crate::error::NetlinkError;
use crate::route_conn::{RouteConn, RouteRequest};

/// A request for one link, to go into a batch: asking alone has an effect (see [`super::await_running`]).
pub fn get_request<'a>(link: impl Into<LinkRef<'a>>) -> RouteRequest {
    let link = link.into();
    let mut message = message_for(link);
    message.attributes.push(without_statistics());
    RouteRequest::new(RouteNetlinkMessage::GetLink(message), 0, format!("get {link}"))
}

/// The link of that name; `None` when there is none.
///
/// # Errors
/// When the kernel refuses or its answer cannot be read.
pub fn by_name(conn: &mut RouteConn, name: &str) -> Result<Option<Link>, NetlinkError> {
    match can_be_a_name(name) {
        true => get(conn, LinkRef::Name(name)),
        false => Ok(None),
    }
}

/// A longer name than IFNAMSIZ (16, linux/if.h) with its closing zero is refused by the kernel as an error; one with a zero in it
/// would be read up to there, and another link be found.
fn can_be_a_name(name: &str) -> bool {
    !name.is_empty() && name.len() < 16 && !name.contains('\0')
}

/// The link of that index; `None` when there is none.
///
/// # Errors
/// When the kernel refuses or its answer cannot be read.
pub fn by_index(conn: &mut RouteConn, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
    get(conn, LinkRef::Index(ifindex))
}

/// The links of these names, which must be such as a link can have, in their order; `None` for one that there is not.
///
/// # Errors
/// When the kernel refuses or its answer cannot be read.
pub(super) fn by_names(conn: &mut RouteConn, names: &[&str]) -> Result<Vec<Option<Link>>, NetlinkError> {
    let requests: Vec<RouteRequest> = names.iter().map(|name| get_request(*name)).collect();
    conn.ask_all(&requests).into_iter().map(found).collect()
}

fn get(conn: &mut RouteConn, link: LinkRef<'_>) -> Result<Option<Link>, NetlinkError> {
    found(conn.ask(&get_request(link)))
}

fn found(answer: Outcome) -> Result<Option<Link>, NetlinkError> {
    match answer {
        Ok(reply) => Ok(reply.as_ref().and_then(read_link)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error),
    }
}

/// All links of the namespace, in the order of their index.
///
/// # Errors
/// When the kernel refuses.
pub fn dump(conn: &mut RouteConn) -> Result<Vec<Link>, NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes.push(without_statistics());
    let request = RouteRequest::new(RouteNetlinkMessage::GetLink(message), 0, "list links");
    let mut links: Vec<Link> = conn.list(&request)?.iter().filter_map(read_link).collect();
    links.sort_by_key(|link| link.ifindex);
    Ok(links)
}

/// Counters make two thirds of a link's answer, and we never look at them.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}
