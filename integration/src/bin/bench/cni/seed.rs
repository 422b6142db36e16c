//! Leases of pods that were there before, in host-local's layout.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};

/// Writes `count` leases into the folder of a network, from the first address of 10.77.0.0/16 that a pod can have.
pub fn leases(folder: &Path, count: u32) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    fs::create_dir_all(folder)?;
    let first = u32::from(Ipv4Addr::new(10, 77, 0, 2));
    for index in 0..count {
        let address = Ipv4Addr::from(first + index);
        fs::write(
            folder.join(address.to_string()),
            format!("seed{index:054}\r\neth0"),
        )
        .with_context(|| format!("lease {address}"))?;
    }
    let last = Ipv4Addr::from(first + count.saturating_sub(1));
    Ok(fs::write(folder.join("last_reserved_ip.0"), last.to_string())?)
}
