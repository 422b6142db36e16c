//! The nftables tables around IPVS: what stands in them, and how it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_model::{ServiceProtocol, VirtualAddress};
use flannel_netlink::NetlinkError;
use flannel_netlink::nftables::{self, Data, Family, Message, NftConn, TableWatch};
use flannel_nft::{
    Element, NODE_SERVERS, Nft, ServiceMarks, ServicesTable, read_node_server, services_table,
    services_table_name,
};
use flannel_plan::ipvs::{KEEP_SOURCE, MARK_MASK, MASQUERADE, Marks};
use flannel_plan::{Frontend, FrontendChanges, FrontendKey, Frontends};

use crate::services::programmer::{Status, View};

/// Both families.
pub(super) const FAMILIES: [bool; 2] = [true, false];

/// What was written of one table.
#[derive(Debug)]
struct Standing {
    /// All but its elements.
    frame: ServicesTable,
    elements: BTreeSet<Element>,
}

/// The tables of both families.
#[derive(Debug, Default)]
pub(super) struct Tables {
    nft: Nft,
    /// Whether source ports are chosen at random when addresses are masqueraded.
    pub fully_random: bool,
    /// What stands in the kernel; `None` before the first write and after a failure.
    standing: [Option<Standing>; 2],
    /// Keeps its socket: the kernel makes whoever closes it wait until what was removed is freed.
    conn: Option<NftConn>,
    watch: Option<TableWatch>,
    /// Somebody else changed a table.
    touched: bool,
}

impl Tables {
    /// The virtual servers on addresses of the node that a former process noted in the kernel before it made them.
    pub(super) fn recorded_node_servers(&self, status: &mut Status) -> BTreeSet<VirtualAddress> {
        let mut servers = BTreeSet::new();
        for ipv4 in FAMILIES {
            if !self.may_stand(ipv4) {
                continue;
            }
            match self.nft.elements(services_table_name(ipv4), NODE_SERVERS) {
                Ok(elements) => servers.extend(elements.iter().filter_map(|e| read_node_server(e))),
                Err(error) => status.fail(&error),
            }
        }
        servers
    }

    /// Brings the tables of the families that have service CIDRs to these elements. Only where more than elements differ, or with `touched`, is
    /// a table written as a whole, in one transaction. The first writing of a process is such a one: of what stands there nothing is known.
    pub(super) fn write(
        &mut self,
        view: &View<'_>,
        elements: &BTreeSet<Element>,
        touched: bool,
        status: &mut Status,
    ) {
        for ipv4 in FAMILIES {
            if !has_family(view.frontends, ipv4) {
                continue;
            }
            let frame = self.frame(ipv4, view);
            let same = |s: &Standing| s.frame == frame;
            if !touched && self.standing[index(ipv4)].as_ref().is_some_and(same) {
                self.bring_to(ipv4, elements, status);
                continue;
            }
            let of_family = elements.iter().filter(|e| e.is_of(ipv4)).copied();
            let elements: BTreeSet<Element> = of_family.collect();
            let whole = ServicesTable {
                elements: elements.clone(),
                ..frame.clone()
            };
            self.standing[index(ipv4)] = match self.nft.replace(&services_table(&whole)) {
                Ok(()) => Some(Standing { frame, elements }),
                Err(error) => {
                    status.fail(&error);
                    None
                }
            };
        }
        self.look_away();
        // What could not be repaired has still to be.
        self.touched = touched
            && FAMILIES
                .iter()
                .any(|f| has_family(view.frontends, *f) && !self.stands(*f));
    }

    /// The table of a family without its elements.
    fn frame(&self, ipv4: bool, view: &View<'_>) -> ServicesTable {
        ServicesTable {
            ipv4,
            cidrs: view.frontends.cidrs.clone(),
            networks: view.node.networks.clone(),
            node_addresses: view.frontends.node_addresses.clone(),
            marks: ServiceMarks {
                keep_source: KEEP_SOURCE,
                masquerade: MASQUERADE,
                mask: MARK_MASK,
            },
            elements: BTreeSet::new(),
            fully_random: self.fully_random,
        }
    }

    /// Brings the elements of a table that stands to these.
    fn bring_to(&mut self, ipv4: bool, wanted: &BTreeSet<Element>, status: &mut Status) {
        let Some(standing) = &self.standing[index(ipv4)] else {
            return;
        };
        let gone = standing.elements.difference(wanted).copied().collect();
        let come = wanted.difference(&standing.elements).filter(|e| e.is_of(ipv4));
        let come = come.copied().collect();
        self.exchange(ipv4, &gone, &come, status);
    }

    /// Takes elements out of a table and puts others in, in one transaction.
    fn exchange(
        &mut self,
        ipv4: bool,
        gone: &BTreeSet<Element>,
        come: &BTreeSet<Element>,
        status: &mut Status,
    ) {
        if gone.is_empty() && come.is_empty() {
            return;
        }
        let result = commit(&mut self.conn, ipv4, gone, come);
        let slot = &mut self.standing[index(ipv4)];
        match (result, slot.as_mut()) {
            (Ok(()), Some(standing)) => {
                standing.elements.retain(|e| !gone.contains(e));
                standing.elements.extend(come);
            }
            (Ok(()), None) => {}
            (Err(error), _) => {
                status.fail(&error);
                *slot = None;
            }
        }
    }

    /// Whether no table of ours stands in either family, nor one that only has our name.
    pub(super) fn are_absent(&self) -> bool {
        FAMILIES
            .iter()
            .all(|ipv4| !self.stands(*ipv4) && !self.may_stand(*ipv4))
    }

    /// Whether the table of this family stands as written.
    pub(super) fn stands(&self, ipv4: bool) -> bool {
        self.standing[index(ipv4)].is_some()
    }

    /// Whether there may be a table of this family, ours or not. Asking the kernel spares a run of `nft`, some ten milliseconds.
    fn may_stand(&self, ipv4: bool) -> bool {
        let family = if ipv4 { Family::Ipv4 } else { Family::Ipv6 };
        nftables::has_table(family, services_table_name(ipv4).name).unwrap_or(true)
    }

    /// Brings the elements of both tables to `add` and without `remove`.
    pub(super) fn change(
        &mut self,
        add: &BTreeSet<Element>,
        remove: &BTreeSet<Element>,
        status: &mut Status,
    ) {
        for ipv4 in FAMILIES {
            let Some(standing) = &self.standing[index(ipv4)] else {
                continue;
            };
            let old = &standing.elements;
            let gone = remove.intersection(old).copied().collect();
            let come = add.difference(old).filter(|e| e.is_of(ipv4));
            let come = come.copied().collect();
            self.exchange(ipv4, &gone, &come, status);
        }
        self.look_away();
    }

    /// Removes the tables of families without service CIDRs.
    pub(super) fn remove_unused(&mut self, frontends: &Frontends, status: &mut Status) {
        for ipv4 in FAMILIES {
            if has_family(frontends, ipv4) {
                continue;
            }
            self.standing[index(ipv4)] = None;
            if !self.may_stand(ipv4) {
                continue;
            }
            if let Err(error) = self.nft.remove(services_table_name(ipv4)) {
                status.fail(&error);
            }
        }
        self.look_away();
    }

    /// Begins to watch for changes by others.
    pub(super) fn watch(&mut self) {
        if self.watch.is_none() {
            // Without notifications (no descriptors left) a changed table is noticed by nobody; everything else goes on.
            self.watch = TableWatch::open(services_table_name(true).name).ok();
        }
    }

    /// Whether somebody else changed one of the tables since we last wrote.
    pub(super) fn touched(&mut self) -> bool {
        // No port: our own changes, through nft and by netlink, are passed over by looking away behind them.
        self.touched |= self.watch.as_ref().is_some_and(|watch| watch.touched(0));
        self.touched
    }

    fn look_away(&mut self) {
        self.touched = false;
        if let Some(watch) = &self.watch {
            watch.touched(0);
        }
    }
}

/// Carries out one transaction.
fn commit(
    conn: &mut Option<NftConn>,
    ipv4: bool,
    gone: &BTreeSet<Element>,
    come: &BTreeSet<Element>,
) -> Result<(), NetlinkError> {
    let conn = match conn {
        Some(conn) => conn,
        None => conn.insert(NftConn::open()?),
    };
    let (name, family) = match ipv4 {
        true => (services_table_name(true).name, Family::Ipv4),
        false => (services_table_name(false).name, Family::Ipv6),
    };
    let gone = in_sets(gone).map(|(set, elements)| nftables::delete_elements(name, set, &elements));
    let come = in_sets(come).map(|(set, elements)| nftables::add_elements(name, set, &elements));
    let messages: Vec<Message> = gone.chain(come).flatten().collect();
    conn.commit(family, &messages, "change elements of Services")
}

/// Elements as the kernel reads them, by their set.
fn in_sets(
    elements: &BTreeSet<Element>,
) -> impl Iterator<Item = (&'static str, Vec<nftables::Element>)> + use<> {
    let mut by_set: BTreeMap<&'static str, Vec<nftables::Element>> = BTreeMap::new();
    for element in elements {
        let bytes = element.bytes();
        let raw = nftables::Element {
            key_end: bytes.key_end,
            data: bytes.data.map(Data::Value),
            ..nftables::Element::key(bytes.key)
        };
        by_set.entry(element.set()).or_default().push(raw);
    }
    by_set.into_iter()
}

/// Whether anything of a family is to be delivered.
pub(super) fn has_family(frontends: &Frontends, ipv4: bool) -> bool {
    frontends.cidrs.iter().any(|c| c.is_ipv4() == ipv4)
}

fn index(ipv4: bool) -> usize {
    usize::from(!ipv4)
}

/// The elements that one frontend brings. `node_servers` are its virtual servers on addresses of the node.
pub(super) fn elements_of(
    key: &FrontendKey,
    frontend: &Frontend,
    marks: &Marks,
    node_servers: Vec<VirtualAddress>,
) -> Vec<Element> {
    let mark = marks.get(key).filter(|_| frontend.keep_source);
    match key {
        FrontendKey::Address(at) => {
            let mut elements: Vec<Element> = mark.map(|mark| Element::Mark(*at, mark)).into_iter().collect();
            if let Some(ranges) = &frontend.source_ranges {
                elements.push(Element::Restricted(*at));
                // Of nested ranges the outer says it all, and nft refuses overlaps.
                let outer = |r: &&flannel_model::IpSubnet| !ranges.iter().any(|o| o != *r && o.contains(r));
                elements.extend(ranges.iter().filter(outer).map(|r| Element::Allowed(*at, *r)));
            }
            let nobody = frontend.inside.is_empty() && frontend.outside.is_empty();
            if nobody && at.protocol == ServiceProtocol::Tcp {
                elements.push(Element::Unserved(*at));
            }
            elements
        }
        FrontendKey::NodePort(at) => {
            let port = Element::NodePort(at.ipv4, at.protocol, at.port);
            let mark = mark.map(|mark| Element::NodePortMark(at.ipv4, at.protocol, at.port, mark));
            let servers = node_servers.into_iter().map(Element::NodeServer);
            [port].into_iter().chain(mark).chain(servers).collect()
        }
    }
}

/// The elements that do not belong to one frontend alone.
pub(super) fn shared_elements(frontends: &Frontends) -> impl Iterator<Item = Element> {
    let external = frontends.external_ips.iter().map(|ip| Element::External(*ip));
    let local = frontends.local_endpoints.iter().map(|ip| Element::Hairpin(*ip));
    external.chain(local)
}

/// What came and what went of these.
pub(super) fn shared_changes(
    frontends: &Frontends,
    changes: &FrontendChanges,
) -> (BTreeSet<Element>, BTreeSet<Element>) {
    let external = |ip: &IpAddr| (Element::External(*ip), frontends.external_ips.contains(ip));
    let local = |ip: &IpAddr| (Element::Hairpin(*ip), frontends.local_endpoints.contains(ip));
    let all = changes.external_ips.iter().map(external);
    let all = all.chain(changes.local_endpoints.iter().map(local));
    let (come, gone): (Vec<_>, Vec<_>) = all.partition(|(_, present)| *present);
    let elements = |list: Vec<(Element, bool)>| list.into_iter().map(|(e, _)| e).collect();
    (elements(come), elements(gone))
}
