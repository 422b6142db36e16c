//! What of ours stands in IPVS, asked by a process that programs nothing.

use std::collections::BTreeSet;

use flannel_model::{IpSubnet, ServerKey};
use flannel_netlink::generic::Ipvs;
use flannel_netlink::{NetlinkError, RouteConn};

use super::routes::{self, Routes};
use super::tables::Tables;
use crate::services::programmer::Status;

/// Objects of ours.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Virtual servers, with their real servers.
    pub servers: Vec<ServerKey>,
    /// Local routes.
    pub routes: Vec<IpSubnet>,
    /// What could not be asked.
    pub failed: Vec<String>,
}

/// Looks for them; the same rule as while running says which virtual servers are ours.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn leftovers(conn: &mut RouteConn) -> Result<Leftovers, NetlinkError> {
    let routes = routes::observe(conn)?;
    let mut servers = Vec::new();
    let mut status = Status::default();
    if let Some(mut ipvs) = Ipvs::open()? {
        let keys: Vec<ServerKey> = ipvs.virtual_servers()?.into_iter().map(|s| s.key).collect();
        let recorded = match keys.is_empty() {
            true => BTreeSet::new(),
            false => Tables::default().recorded_node_servers(&mut status),
        };
        let ours = |key: &ServerKey| super::is_ours(key, &routes, &Routes::new(), &recorded);
        servers = keys.into_iter().filter(ours).collect();
    }
    Ok(Leftovers {
        servers,
        routes: routes.into_keys().collect(),
        failed: status.failed,
    })
}
