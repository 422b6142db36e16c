//! Which of the leases is this host's.

use std::io;
use std::path::Path;

use flannel_model::{Families, LeaseKey, SubnetEnv};

use super::kernel::Seen;
use crate::failure::Failure;
use crate::subnets::{Listing, Record};

/// The lease that subnet.env tells of.
pub fn own_key(env: &SubnetEnv) -> Option<LeaseKey> {
    let subnets = Families::new(
        env.ipv4.as_ref().map(|(_, own)| *own),
        env.ipv6.as_ref().map(|(_, own)| *own),
    );
    subnets.map(LeaseKey::new)
}

/// The lease of this host.
pub struct Own {
    /// The lease.
    pub record: Record,
    /// By what it was told.
    pub by: String,
    /// Whether flanneld masquerades; `None` without subnet.env.
    pub masquerades: Option<bool>,
}

/// The lease of this host: told by subnet.env, and where there is none, by the address of an interface.
pub fn find(subnet_file: &Path, listing: &Listing, seen: &Seen) -> Result<Own, Failure> {
    let shown = subnet_file.display();
    let env = match std::fs::read_to_string(subnet_file) {
        Ok(text) => SubnetEnv::parse(&text).map_err(|error| {
            Failure::Content(format!("{shown} {error}; flanneld writes it anew at its start"))
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return by_address(&shown.to_string(), listing, seen);
        }
        Err(error) => return Err(Failure::Usage(anyhow::anyhow!("{shown} cannot be read: {error}"))),
    };
    let key = own_key(&env).ok_or_else(|| {
        Failure::Content(format!(
            "{shown} names no subnet; flanneld writes it anew at its start"
        ))
    })?;
    let own = listing.records.iter().find(|record| record.key == key);
    let own = own.ok_or_else(|| {
        Failure::NotFound(format!(
            "{shown} says {key}, but there is no such lease; is flanneld running? It writes its lease anew"
        ))
    })?;
    Ok(Own {
        record: own.clone(),
        by: shown.to_string(),
        masquerades: Some(env.ip_masq),
    })
}

fn by_address(shown: &str, listing: &Listing, seen: &Seen) -> Result<Own, Failure> {
    let ours = listing
        .records
        .iter()
        .find_map(|record| Some((record, seen.holder(record.address())?)));
    let (own, interface) = ours.ok_or_else(|| {
        Failure::NotFound(format!(
            "there is no {shown}, and no lease has an address of this host: run this on a node of the network"
        ))
    })?;
    Ok(Own {
        record: own.clone(),
        by: format!("the address {} of {}", own.address(), interface.name),
        masquerades: None,
    })
}
