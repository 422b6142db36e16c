//! What an unfinished ADD has made so far, to be taken back in reverse.

use std::path::PathBuf;

use flannel_netlink::RouteConn;

use crate::protocol::{Attachment, CniError, IfName, NetworkName};
use crate::release::release;
use crate::scratch::{Previous, Scratch};
use crate::wiring::plan::HostEnd;
use crate::wiring::{live, veth};

/// Steps done, each filled in when it is done.
#[derive(Debug, Default)]
pub struct Undo {
    /// Addresses reserved.
    pub reserved: Option<Reserved>,
    /// The scratch file written, and what was there before.
    pub scratch: Option<(Scratch, Previous)>,
    /// The veth pair made.
    pub veth: Option<HostEnd>,
}

/// Where the record of a reservation is.
#[derive(Debug)]
pub struct Reserved {
    /// Where leases are.
    pub root: PathBuf,
    /// Of which network.
    pub network: NetworkName,
    /// For whom.
    pub attachment: Attachment,
    /// The network's bridge.
    pub bridge: IfName,
}

impl Undo {
    /// Takes everything back. What cannot be is told to `warn` and left to DEL; an address stays reserved while its veth lives.
    pub fn run(self, conn: &mut RouteConn, warn: &mut dyn FnMut(String)) {
        let failed = |e: CniError| format!("cannot be taken back: {e}");
        let veth = self.veth.map_or(Ok(false), |end| veth::remove(conn, &end));
        if let Some((scratch, previous)) = self.scratch {
            let _ = scratch.restore(&previous).map_err(|e| warn(failed(e)));
        }
        if let Err(e) = veth {
            return warn(failed(e));
        }
        if let Some(reserved) = self.reserved {
            let mut look = || live(conn, &reserved.network, reserved.bridge.as_str());
            let released = release(
                &reserved.root,
                &reserved.network,
                &reserved.attachment,
                &mut look,
                warn,
            );
            let _ = released.map_err(|e| warn(failed(e)));
        }
    }
}
