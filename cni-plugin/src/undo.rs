//! What an unfinished ADD has made so far, to be taken back in reverse.

use std::net::IpAddr;
use std::path::PathBuf;

use flannel_netlink::RouteConn;

use crate::address::{Holder, release};
use crate::masq;
use crate::protocol::{CniError, NetworkName};
use crate::scratch::{Previous, Scratch};
use crate::wiring::plan::HostEnd;
use crate::wiring::veth;

/// Steps done, each filled in when it is done.
#[derive(Debug, Default)]
pub struct Undo {
    /// Leases written, for this holder.
    pub leases: Option<(PathBuf, NetworkName, Holder)>,
    /// The scratch file written, and what was there before.
    pub scratch: Option<(Scratch, Previous)>,
    /// The veth pair made.
    pub veth: Option<HostEnd>,
    /// Addresses masqueraded.
    pub masq: Vec<IpAddr>,
}

impl Undo {
    /// Takes everything back. What cannot be is told to `warn` and left to DEL; an address stays reserved while its veth lives.
    pub fn run(self, conn: &mut RouteConn, warn: &mut dyn FnMut(String)) {
        let mut note = |result: Result<(), CniError>| match result {
            Ok(()) => true,
            Err(e) => {
                warn(format!("cannot be taken back: {e}"));
                false
            }
        };
        note(masq::remove(&self.masq));
        let detached = self
            .veth
            .is_none_or(|end| note(veth::remove(conn, &end).map(|_| ())));
        if let Some((scratch, previous)) = self.scratch {
            note(scratch.restore(&previous));
        }
        if let Some((root, network, holder)) = self.leases.filter(|_| detached) {
            note(release(&root, &network, &holder, &mut |_| Ok(())).map(|_| ()));
        }
    }
}
