//! A connection to IPVS.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_model::VirtualAddress;

use super::family::family_id;
use super::ipvs::{self, IpvsKey, IpvsRequest, IpvsTimeouts, RealServer, Stats, VirtualServer};
use super::ipvs_parse;
use crate::{Conn, NetlinkError, Protocol, Request};

/// Name of the family.
const FAMILY: &str = "IPVS";

/// IPVS of the network namespace in which this was opened.
#[derive(Debug)]
pub struct Ipvs {
    conn: Conn,
    family: u16,
}

impl Ipvs {
    /// Connects; `None` when the kernel has no IPVS (module ip_vs neither built in nor loaded).
    ///
    /// # Errors
    /// When there is no generic netlink or the kernel refuses, as it does without CAP_NET_ADMIN.
    pub fn open() -> Result<Option<Self>, NetlinkError> {
        let mut conn = Conn::open(Protocol::Generic)?;
        Ok(family_id(&mut conn, FAMILY)?.map(|family| Self { conn, family }))
    }

    /// Every virtual server of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses or an entry cannot be read.
    pub fn virtual_servers(&mut self) -> Result<Vec<VirtualServer>, NetlinkError> {
        let what = "list virtual servers";
        let request = self.request(ipvs::list_virtual(), what.to_owned());
        let mut servers = Vec::new();
        let mut unread = None;
        self.conn
            .each(&request, |payload| match ipvs_parse::virtual_server(payload) {
                Some(server) => servers.push(server),
                None => unread = Some(unreadable(what, payload)),
            })?;
        unread.map_or(Ok(servers), Err)
    }

    /// What every virtual server of the namespace has carried. One that cannot be read is left out.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn traffic(&mut self) -> Result<Vec<(IpvsKey, Stats)>, NetlinkError> {
        let request = self.request(ipvs::list_virtual(), "list virtual servers".to_owned());
        let replies = self.conn.dump(&request)?;
        Ok(replies
            .iter()
            .filter_map(|r| ipvs_parse::stats(&r.payload))
            .collect())
    }

    /// The real servers of one virtual server; none when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses or an entry cannot be read.
    pub fn real_servers(&mut self, key: &IpvsKey) -> Result<Vec<RealServer>, NetlinkError> {
        let what = format!("list real servers of {key}");
        let replies = self
            .conn
            .dump(&self.request(ipvs::list_real(key), what.clone()))?;
        let ipv6 = match key {
            IpvsKey::Address(VirtualAddress { address, .. }) => matches!(address, IpAddr::V6(_)),
            IpvsKey::Mark { ipv6, .. } => *ipv6,
        };
        let read = |payload: &[u8]| ipvs_parse::real_server(payload, ipv6);
        replies
            .iter()
            .map(|r| read(&r.payload).ok_or_else(|| unreadable(&what, &r.payload)))
            .collect()
    }

    /// Carries out all requests in their order, many a system call. One result each; no failure stops the rest.
    pub fn apply(&mut self, requests: &[IpvsRequest]) -> Vec<Result<(), NetlinkError>> {
        let mut failures = self.apply_each(requests, IpvsRequest::clone);
        let places = 0..requests.len();
        places
            .map(|place| failures.remove(&place).map_or(Ok(()), Err))
            .collect()
    }

    /// The same with requests that are made one by one as they are sent. The failures alone come back, by their place.
    pub fn apply_each<T>(
        &mut self,
        items: &[T],
        request: impl Fn(&T) -> IpvsRequest,
    ) -> BTreeMap<usize, NetlinkError> {
        let encode = |item: &T, datagram| request(item).encode(datagram);
        let failures = self.conn.quietly(self.family, items, encode);
        // The words for an error are made when there is one: of a hundred thousand requests hardly any fails.
        let named = |(place, failure)| {
            let what = items.get(place).map(|item| request(item).to_string());
            let what = what.unwrap_or_default();
            (place, NetlinkError { what, failure })
        };
        failures.into_iter().map(named).collect()
    }

    /// The timeouts of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn timeouts(&mut self) -> Result<IpvsTimeouts, NetlinkError> {
        let request = self.request(ipvs::read_timeouts(), "read the timeouts of IPVS".to_owned());
        let reply = self.conn.request(&request)?;
        Ok(reply.map_or_else(IpvsTimeouts::default, |r| ipvs_parse::timeouts(&r.payload)))
    }

    /// Sets those timeouts that are `Some`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_timeouts(&mut self, timeouts: &IpvsTimeouts) -> Result<(), NetlinkError> {
        let request = self.request(
            ipvs::set_timeouts(timeouts),
            "set the timeouts of IPVS".to_owned(),
        );
        self.conn.request(&request).map(drop)
    }

    fn request(&self, payload: Vec<u8>, what: String) -> Request {
        Request {
            kind: self.family,
            flags: 0,
            payload,
            what,
        }
    }
}

fn unreadable(what: &str, payload: &[u8]) -> NetlinkError {
    NetlinkError::malformed(
        what,
        format!("an entry of {} bytes that is not understood", payload.len()),
    )
}
