//! The first step of ADD: addresses for an attachment, on record before anything else of it exists.

use std::net::IpAddr;
use std::path::Path;

use flannel_netlink::RouteConn;

use crate::address::{Given, Holder, Pending, RangeSet, Record, Stage, Store, choose};
use crate::config::Network;
use crate::protocol::{Attachment, CniError, Code};
use crate::release;
use crate::wiring::plan::{HostEnd, mac_of};
use crate::wiring::{Target, live, veth};
use flannel_model::Mac;

/// What is wanted.
#[derive(Debug)]
pub struct Wish<'a> {
    /// The network.
    pub network: &'a Network,
    /// Its bridge, which shows whose pods live.
    pub bridge: &'a str,
    /// Where leases are.
    pub root: &'a Path,
    /// For whom.
    pub attachment: &'a Attachment,
    /// His host end.
    pub end: &'a HostEnd,
    /// `CNI_NETNS`.
    pub netns: &'a str,
    /// The namespace itself.
    pub target: &'a Target,
    /// Hardware address that somebody asked for; without one, it follows from the addresses.
    pub mac: Option<Mac>,
    /// Whether the container can only send from its own hardware address.
    pub guarded: bool,
    /// One address is taken from each.
    pub sets: &'a [RangeSet],
    /// Addresses that must be among them.
    pub requested: &'a [IpAddr],
}

/// Addresses that are the attachment's.
#[derive(Debug)]
pub struct Reservation {
    /// One of each set.
    pub given: Vec<Given>,
    /// Hardware address of the container's end.
    pub mac: Mac,
    /// Neighbours may know the addresses with another hardware address, from a container that had them before.
    pub announce: bool,
    /// Marks the record as done.
    pub pending: Pending,
}

/// Reserves addresses. Devices that had them may not have gone yet: that is not waited for here, as everybody's ADD and DEL wait for
/// who is in here.
///
/// # Errors
/// Code 102 when the attachment exists, 11 when another ADD of it is at work, 101 when no address is free or a requested one
/// is not, 5 for the disk. Nothing is kept then.
pub fn reserve(
    wish: &Wish<'_>,
    conn: &mut RouteConn,
    warn: &mut dyn FnMut(String),
) -> Result<Reservation, CniError> {
    let mut store = Store::open(wish.root, &wish.network.name)?;
    let gone = store.refresh(&mut || live(conn, &wish.network.name, wish.bridge), warn)?;
    release::residue(&gone, warn);
    make_way(wish, &store, conn, warn)?;
    let given = match choose(&store, wish.sets, wish.requested) {
        Err(e) if e.code == Code::NoAddress => {
            let gone = store.reclaim(&mut || live(conn, &wish.network.name, wish.bridge), warn)?;
            release::residue(&gone, warn);
            choose(&store, wish.sets, wish.requested)
        }
        chosen => chosen,
    }?;
    let mac = wish.mac.unwrap_or_else(|| mac_of(&given));
    // Who may have another hardware address, or take one, can have it known with an address that others get after him.
    let announce = store.announces(wish.mac.is_some() || !wish.guarded)?;
    let record = record(wish, &store, &given, mac);
    let pending = store.begin(&record)?;
    match place(&store, &record, &given, warn) {
        Ok(()) => Ok(Reservation {
            given,
            mac,
            announce,
            pending,
        }),
        Err(e) => {
            release::free(&store, &record, warn);
            Err(e)
        }
    }
}

/// An attachment is made once. What a killed ADD left of it is removed first.
fn make_way(
    wish: &Wish<'_>,
    store: &Store,
    conn: &mut RouteConn,
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let exists = |addresses: &[IpAddr]| {
        let msg = format!(
            "{} of container {} is attached to {} already",
            wish.attachment.ifname, wish.attachment.container, wish.network.name
        );
        let advice = "an attachment is made once; call DEL before another ADD";
        Err(CniError::new(Code::Exists, msg).with(format!("it has {addresses:?}; {advice}")))
    };
    let Some(stored) = store.record(&wish.end.name, warn)? else {
        let others = store.given_by_others(&Holder::from(wish.attachment));
        return match others.is_empty() {
            true => Ok(()),
            false => exists(&others),
        };
    };
    match stored.stage {
        Stage::Done => {
            let addresses: Vec<IpAddr> = stored.record.addresses.iter().map(|(ip, _)| *ip).collect();
            exists(&addresses)
        }
        Stage::Working => Err(CniError::new(
            Code::TryAgain,
            format!(
                "another ADD of container {} is at work",
                wish.attachment.container
            ),
        )
        .with("a runtime calls one at a time; wait for it, or call DEL")),
        Stage::Abandoned => {
            warn(format!(
                "{} was left by an ADD that did not end; it is replaced",
                wish.end.name
            ));
            veth::remove(conn, wish.end)?;
            release::residue(std::slice::from_ref(&stored.record), warn);
            release::free(store, &stored.record, warn);
            Ok(())
        }
    }
}

fn record(wish: &Wish<'_>, store: &Store, given: &[Given], mac: Mac) -> Record {
    Record {
        attachment: wish.attachment.clone(),
        host_end: wish.end.name.clone(),
        netns: wish.netns.to_owned(),
        netns_identity: wish.target.identity(),
        boot: store.boot().to_owned(),
        pid: std::process::id(),
        mac: Some(mac),
        addresses: given
            .iter()
            .map(|one| (one.address, one.range.length()))
            .collect(),
    }
}

fn place(
    store: &Store,
    record: &Record,
    given: &[Given],
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let holder = record.holder();
    for one in given {
        store.place(one.address, &holder)?;
    }
    store.sync()?;
    for (index, one) in given.iter().enumerate() {
        if let Err(e) = store.set_last(index, one.address) {
            warn(format!("{e}; the order of addresses begins anew"));
        }
    }
    Ok(())
}
