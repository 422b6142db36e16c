//! Virtual and real servers: what stands in the kernel as far as it is known, and the changes carried out.

mod owners;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use flannel_model::{ServerKey, VirtualAddress};
use flannel_netlink::NetlinkError;
use flannel_netlink::generic::{self, Forward, Ipvs};
use flannel_plan::ipvs::{Marks, RealServer, RealServers, VirtualServer, VirtualServers};
use flannel_plan::{FrontendKey, Frontends};

use super::drain::Drains;
use super::lacking::Lacking;
pub(super) use owners::Owners;

/// `IP_VS_SVC_F_PERSISTENT`: the timeout counts only with it.
const PERSISTENT: u32 = 1;

/// An endpoint of a frontend that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Gone {
    pub frontend: FrontendKey,
    pub endpoint: SocketAddr,
}

/// What is known of the kernel's virtual servers that are ours.
#[derive(Debug, Default)]
pub(super) struct Servers {
    standing: VirtualServers,
    pub owners: Owners,
    pub marks: Marks,
    pub drains: Drains,
    pub lacking: Lacking,
    /// Those of others.
    foreign: BTreeSet<ServerKey>,
    /// Which of them stand where a frontend should have one, with the frontend and its Service.
    clashes: BTreeMap<ServerKey, (FrontendKey, String)>,
    /// Where the rotating look at real servers goes on.
    cursor: Option<ServerKey>,
}

impl Servers {
    /// Reads everything from the kernel. Only virtual servers that `ours` picks are looked at.
    pub(super) fn observe(
        &mut self,
        ipvs: &mut Ipvs,
        ours: impl Fn(&ServerKey) -> bool,
    ) -> Result<(), NetlinkError> {
        self.standing.clear();
        self.foreign.clear();
        for server in ipvs.virtual_servers()? {
            if self.owners.owner(&server.key).is_none() && !ours(&server.key) {
                self.foreign.insert(server.key);
                continue;
            }
            let real = read_real(ipvs, &server.key)?;
            self.standing.insert(server.key, virtual_server(server, real));
        }
        Ok(())
    }

    /// A cheap look at all virtual servers. Answers the frontends of which something is not as it is known, and the virtual servers of
    /// nobody, and takes the kernel's word.
    pub(super) fn look_at_all(
        &mut self,
        ipvs: &mut Ipvs,
        ours: impl Fn(&ServerKey) -> bool,
    ) -> Result<(BTreeSet<FrontendKey>, Vec<ServerKey>), NetlinkError> {
        let mut changed = BTreeSet::new();
        let listed = ipvs.virtual_servers()?;
        let mut found = 0;
        self.foreign.clear();
        for server in &listed {
            if self.owners.owner(&server.key).is_none() && !ours(&server.key) {
                self.foreign.insert(server.key);
                continue;
            }
            found += 1;
            let known = self.standing.get(&server.key);
            if !known.is_some_and(|known| is_as_known(server, known)) {
                let real = read_real(ipvs, &server.key)?;
                changed.insert(server.key);
                self.standing
                    .insert(server.key, virtual_server(server.clone(), real));
            }
        }
        if self.standing.len() > found {
            changed.extend(self.forget_all_but(&listed));
        }
        let cleared = self.clashes.iter().filter(|(at, _)| !self.foreign.contains(at));
        let cleared: Vec<FrontendKey> = cleared.map(|(_, (frontend, _))| *frontend).collect();
        let (mut owners, orphans) = self.owners(&changed);
        owners.extend(cleared);
        owners.extend(self.lacking.due());
        Ok((owners, orphans))
    }

    /// A look at the real servers of the next `count` virtual servers. Answers the same.
    pub(super) fn look_at_some(
        &mut self,
        ipvs: &mut Ipvs,
        count: usize,
    ) -> Result<(BTreeSet<FrontendKey>, Vec<ServerKey>), NetlinkError> {
        let mut changed = BTreeSet::new();
        for key in self.next_slice(count) {
            let real = read_real(ipvs, &key)?;
            if let Some(server) = self.standing.get_mut(&key)
                && server.real != real
            {
                server.real = real;
                changed.insert(key);
            }
        }
        Ok(self.owners(&changed))
    }

    /// Those that somebody removed.
    fn forget_all_but(&mut self, listed: &[generic::VirtualServer]) -> Vec<ServerKey> {
        let listed: BTreeSet<ServerKey> = listed.iter().map(|server| server.key).collect();
        let missing = self.standing.keys().filter(|key| !listed.contains(key));
        let missing: Vec<ServerKey> = missing.copied().collect();
        for key in &missing {
            self.standing.remove(key);
            self.drains.forget(key);
        }
        missing
    }

    /// Whose these are, and those that are nobody's.
    fn owners(&self, servers: &BTreeSet<ServerKey>) -> (BTreeSet<FrontendKey>, Vec<ServerKey>) {
        let orphans = servers.iter().filter(|key| self.owners.owner(key).is_none());
        let owners = servers.iter().filter_map(|key| self.owners.owner(key));
        (owners.collect(), orphans.copied().collect())
    }

    fn next_slice(&mut self, count: usize) -> Vec<ServerKey> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = self.cursor.map_or(Unbounded, Excluded);
        let slice: Vec<ServerKey> = self
            .standing
            .range((from, Unbounded))
            .map(|(key, _)| *key)
            .take(count)
            .collect();
        // at the end it begins anew
        self.cursor = slice.last().copied().filter(|_| slice.len() == count);
        slice
    }

    /// The virtual servers that stand and belong to no frontend.
    pub(super) fn orphans(&self) -> Vec<ServerKey> {
        let keys = self.standing.keys().filter(|k| self.owners.owner(k).is_none());
        keys.copied().collect()
    }

    /// The virtual servers of a node port on addresses of the node, without those places that somebody else has.
    pub(super) fn on_node(&self, key: &FrontendKey, frontends: &Frontends) -> Vec<VirtualAddress> {
        let FrontendKey::NodePort(port) = key else {
            return Vec::new();
        };
        let addresses = frontends.node_addresses.iter();
        let at = addresses
            .filter(|ip| ip.is_ipv4() == port.ipv4)
            .map(|ip| VirtualAddress {
                protocol: port.protocol,
                address: *ip,
                port: port.port,
            });
        at.filter(|at| !self.foreign.contains(&ServerKey::Address(*at)))
            .collect()
    }

    /// Which Services lack a virtual server because somebody else has it, and which.
    pub(super) fn clashes(&self) -> impl Iterator<Item = (String, String)> {
        let told = |(at, (_, service)): (&ServerKey, &(FrontendKey, String))| {
            let reason = format!("{at} is the virtual server of somebody else and stays his");
            (service.clone(), reason)
        };
        self.clashes.iter().map(told)
    }

    /// How many virtual and real servers stand.
    pub(super) fn len(&self) -> usize {
        self.standing.values().map(|s| 1 + s.real.len()).sum()
    }
}

fn read_real(ipvs: &mut Ipvs, key: &ServerKey) -> Result<RealServers, NetlinkError> {
    let real = ipvs.real_servers(key)?.into_iter().map(|real| {
        let masquerade = real.forward == Forward::Masquerade;
        let server = RealServer {
            weight: real.weight,
            masquerade,
        };
        (real.address, server)
    });
    Ok(real.collect())
}

/// Whether what the kernel lists is what is known of it.
fn is_as_known(server: &generic::VirtualServer, known: &VirtualServer) -> bool {
    let timeout = if server.flags & PERSISTENT == 0 {
        0
    } else {
        server.timeout
    };
    (&server.scheduler, server.flags, timeout) == (&known.scheduler, known.flags, known.timeout)
}

fn virtual_server(server: generic::VirtualServer, real: RealServers) -> VirtualServer {
    VirtualServer {
        timeout: if server.flags & PERSISTENT == 0 {
            0
        } else {
            server.timeout
        },
        scheduler: server.scheduler,
        flags: server.flags,
        real,
    }
}
