//! Giving back what an attachment has: rules first, then addresses, the record last.

use std::net::IpAddr;
use std::path::Path;

use crate::address::{Holder, Look, Record, Store};
use crate::guard;
use crate::masq;
use crate::protocol::{Attachment, CniError, NetworkName};
use crate::wiring::plan::HostEnd;

/// Gives back what `attachment` has of the leases under `root`. Its device must be gone: as soon as an address is free, another
/// pod can have it.
///
/// # Errors
/// Code 5 or 100, after all that could be given back was.
pub fn release(
    root: &Path,
    network: &NetworkName,
    attachment: &Attachment,
    look: Look<'_>,
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let Some(mut store) = Store::open_existing(root, network)? else {
        return Ok(());
    };
    let gone = store.refresh(look, warn)?;
    residue(&gone, warn);
    let end = HostEnd::of(network, attachment);
    let holder = Holder::from(attachment);
    if let Some(stored) = store.record(&end.name, warn)? {
        let addresses = addresses(&stored.record);
        rules(&stored.record)?;
        free_all(&store, &addresses, &holder)?;
    }
    let others = store.given_by_others(&holder);
    masq::remove(&others)?;
    free_all(&store, &others, &holder)?;
    store.forget(&end.name)
}

/// What records of attachments that are gone name besides addresses. What cannot be removed is told to `warn`.
pub fn residue(gone: &[Record], warn: &mut dyn FnMut(String)) {
    for record in gone {
        if let Err(e) = rules(record) {
            warn(format!("of {}: {e}", record.host_end));
        }
    }
}

/// Frees the addresses of `record`, and the record with the last. What cannot be freed is told to `warn` and left to DEL.
pub fn free(store: &Store, record: &Record, warn: &mut dyn FnMut(String)) {
    let freed =
        free_all(store, &addresses(record), &record.holder()).and_then(|()| store.forget(&record.host_end));
    if let Err(e) = freed {
        warn(format!("stays reserved: {e}"));
    }
}

/// What nftables has of an attachment.
fn rules(record: &Record) -> Result<(), CniError> {
    let addresses = addresses(record);
    let masq = masq::remove(&addresses);
    guard::remove(&record.host_end, record.mac, &addresses).and(masq)
}

fn free_all(store: &Store, addresses: &[IpAddr], holder: &Holder) -> Result<(), CniError> {
    let results: Vec<Result<(), CniError>> = addresses.iter().map(|ip| store.free(*ip, holder)).collect();
    results.into_iter().collect()
}

fn addresses(record: &Record) -> Vec<IpAddr> {
    record.addresses.iter().map(|(ip, _)| *ip).collect()
}
