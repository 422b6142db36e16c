//! Words of changes to nftables tables, for those who keep them.

use flannel_netlink::nftables::follow_tables;
use tokio::sync::mpsc;

/// Changes by others than the socket with the port `own`; by anybody with `None`. Where the kernel does not tell, the timer of who
/// asks is all there is.
pub fn table_changes(tables: &[&'static str], own: Option<u32>) -> mpsc::Receiver<()> {
    match follow_tables(tables, own) {
        Ok((driver, changes)) => {
            tokio::spawn(driver);
            changes
        }
        Err(error) => {
            tracing::warn!(%error, "the kernel does not tell of changes to packet filter tables; they are found later");
            mpsc::channel(1).1
        }
    }
}
