//! Virtual and real servers: what stands in the kernel as far as it is known, and the changes carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use flannel_model::{ServerKey, ServiceName, VirtualAddress};
use flannel_netlink::NetlinkError;
use flannel_netlink::generic::{self, Forward, Ipvs, IpvsRequest};
use flannel_plan::ipvs::{
    Marks, RealServer, ServiceOp, Settings, Surroundings, VirtualServer, VirtualServers, diff_server, drains,
    servers_of,
};
use flannel_plan::{Frontend, FrontendKey, Frontends};

use super::drain::Drains;
use crate::services::programmer::Status;

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
    /// Which virtual servers a frontend has.
    of: BTreeMap<FrontendKey, Vec<ServerKey>>,
    owner: BTreeMap<ServerKey, FrontendKey>,
    pub marks: Marks,
    pub drains: Drains,
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
            if !self.owner.contains_key(&server.key) && !ours(&server.key) {
                self.foreign.insert(server.key);
                continue;
            }
            let real = read_real(ipvs, &server.key)?;
            self.standing.insert(server.key, virtual_server(server, real));
        }
        Ok(())
    }

    /// A cheap look: all virtual servers, and the real servers of the next `count` of them. Answers the frontends of which something
    /// is not as it is known, and takes the kernel's word.
    pub(super) fn look(
        &mut self,
        ipvs: &mut Ipvs,
        ours: impl Fn(&ServerKey) -> bool,
        count: usize,
    ) -> Result<(BTreeSet<FrontendKey>, Vec<ServerKey>), NetlinkError> {
        let mut changed = BTreeSet::new();
        let mut missing: BTreeSet<ServerKey> = self.standing.keys().copied().collect();
        self.foreign.clear();
        for server in ipvs.virtual_servers()? {
            if !self.owner.contains_key(&server.key) && !ours(&server.key) {
                self.foreign.insert(server.key);
                continue;
            }
            missing.remove(&server.key);
            let settings = settings_of(&server);
            let known = self.standing.get(&server.key);
            if known.map(Settings::from).as_ref() != Some(&settings) {
                let real = read_real(ipvs, &server.key)?;
                changed.insert(server.key);
                self.standing.insert(server.key, virtual_server(server, real));
            }
        }
        for key in missing {
            self.standing.remove(&key);
            self.drains.forget(&key);
            changed.insert(key);
        }
        for key in self.next_slice(count) {
            let real = read_real(ipvs, &key)?;
            if let Some(server) = self.standing.get_mut(&key)
                && server.real != real
            {
                server.real = real;
                changed.insert(key);
            }
        }
        let orphans = changed.iter().filter(|key| !self.owner.contains_key(key));
        let orphans = orphans.copied().collect();
        let owners = changed.iter().filter_map(|key| self.owner.get(key).copied());
        let cleared = self.clashes.iter().filter(|(at, _)| !self.foreign.contains(at));
        let cleared = cleared.map(|(_, (frontend, _))| *frontend);
        Ok((owners.chain(cleared).collect(), orphans))
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
        let keys = self.standing.keys().filter(|k| !self.owner.contains_key(k));
        keys.copied().collect()
    }

    /// Which virtual servers each frontend has.
    pub(super) fn by_frontend(&self) -> &BTreeMap<FrontendKey, Vec<ServerKey>> {
        &self.of
    }

    /// The frontends that have virtual servers.
    pub(super) fn frontends(&self) -> impl Iterator<Item = FrontendKey> {
        self.of.keys().copied()
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

    /// Brings the virtual servers of `keys` to what `frontends` say, and removes `orphans`. Answers the endpoints whose clients must
    /// move at once.
    pub(super) fn reconcile(
        &mut self,
        ipvs: &mut Ipvs,
        frontends: &Frontends,
        keys: &BTreeSet<FrontendKey>,
        orphans: &[ServerKey],
        status: &mut Status,
    ) -> Vec<Gone> {
        let now = Instant::now();
        let (urgent, mut ops) = self.plan_all(frontends, keys, now);
        ops.extend(orphans.iter().map(|key| ServiceOp::RemoveVirtual(*key)));
        let mut gone = self.carry_out(ipvs, urgent, frontends, now, status);
        gone.extend(self.carry_out(ipvs, ops, frontends, now, status));
        for key in keys.iter().filter(|key| !frontends.by_key.contains_key(key)) {
            self.of.remove(key);
            self.marks.release(key);
        }
        gone
    }

    /// The changes that these frontends need: first those of the Service on which everything else depends.
    fn plan_all(
        &mut self,
        frontends: &Frontends,
        keys: &BTreeSet<FrontendKey>,
        now: Instant,
    ) -> (Vec<ServiceOp>, Vec<ServiceOp>) {
        let (mut urgent, mut others) = (Vec::new(), Vec::new());
        for key in keys {
            let frontend = frontends.by_key.get(key).map(AsRef::as_ref);
            let list = if frontend.is_some_and(is_urgent) {
                &mut urgent
            } else {
                &mut others
            };
            self.plan(key, frontend, frontends, now, list);
        }
        (urgent, others)
    }

    /// The changes that one frontend needs.
    fn plan(
        &mut self,
        key: &FrontendKey,
        frontend: Option<&Frontend>,
        frontends: &Frontends,
        now: Instant,
        ops: &mut Vec<ServiceOp>,
    ) {
        let drain = drains(key.protocol()) && frontends.drain_timeout > 0;
        let wanted = frontend.map(|frontend| {
            let around = Surroundings {
                node_addresses: &frontends.node_addresses,
                mark: frontend.keep_source.then(|| self.marks.assign(*key)),
            };
            servers_of(key, frontend, around)
        });
        if frontend.is_some_and(|f| !f.keep_source) {
            self.marks.release(key);
        }
        let mut wanted = wanted.unwrap_or_default();
        self.clashes.retain(|_, (owner, _)| owner != key);
        for at in wanted.keys().filter(|at| self.foreign.contains(*at)) {
            let subject = frontend.map_or_else(|| key.to_string(), |f| f.service.to_string());
            self.clashes.insert(*at, (*key, subject));
        }
        wanted.retain(|at, _| !self.foreign.contains(at));
        let before = self.of.insert(*key, wanted.keys().copied().collect());
        for at in before.into_iter().flatten().filter(|at| !wanted.contains_key(at)) {
            diff_server(at, None, self.standing.get(&at), false, ops);
            self.owner.remove(&at);
        }
        for (at, server) in &wanted {
            let found = self.standing.get(at);
            diff_server(*at, Some(server), found, drain, ops);
            self.owner.insert(*at, *key);
            // What a former process let drain, and what came back.
            for (real, found) in found.into_iter().flat_map(|f| &f.real) {
                if server.real.contains_key(real) {
                    self.drains.cancel(at, real);
                } else if drain && found.weight == 0 {
                    self.drains.begin(*at, *real, now, frontends.drain_timeout);
                }
            }
        }
    }

    /// Sends the changes and files the results: new virtual servers first, so that a real server never goes into one that is not ours.
    fn carry_out(
        &mut self,
        ipvs: &mut Ipvs,
        ops: Vec<ServiceOp>,
        frontends: &Frontends,
        now: Instant,
        status: &mut Status,
    ) -> Vec<Gone> {
        let mut gone = Vec::new();
        let mut broken: BTreeSet<ServerKey> = BTreeSet::new();
        let (new, rest): (Vec<_>, Vec<_>) = ops
            .into_iter()
            .partition(|op| matches!(op, ServiceOp::AddVirtual(..)));
        for ops in [new, rest] {
            let ops: Vec<ServiceOp> = ops
                .into_iter()
                .filter(|op| !broken.contains(&op.server()))
                .collect();
            let requests: Vec<IpvsRequest> = ops.iter().map(request).collect();
            for (op, result) in ops.iter().zip(ipvs.apply(&requests)) {
                match result {
                    Ok(()) if op.is_removal() => status.removed += 1,
                    Ok(()) => status.added += 1,
                    // Somebody else removed it between our look and our request.
                    Err(error) if op.is_removal() && error.is_missing() => {}
                    Err(error) => {
                        if matches!(op, ServiceOp::AddVirtual(..)) {
                            self.owner.remove(&op.server());
                        }
                        // One failure of a virtual server is told: those of its real servers follow from it.
                        if broken.insert(op.server()) {
                            status.fail(&error);
                        }
                        continue;
                    }
                }
                gone.extend(self.lost_endpoints(op));
                op.carry_out(&mut self.standing);
                self.drains.follow(op, now, frontends.drain_timeout);
            }
        }
        gone
    }

    /// The endpoints that go with `op` and whose clients would go on sending to them.
    fn lost_endpoints(&self, op: &ServiceOp) -> Vec<Gone> {
        let server = op.server();
        let Some(frontend) = self.owner_of(&server).filter(|f| !drains(f.protocol())) else {
            return Vec::new();
        };
        let endpoints: Vec<SocketAddr> = match op {
            ServiceOp::RemoveReal(_, real) => vec![*real],
            ServiceOp::RemoveVirtual(at) => {
                let real = self.standing.get(at).map(|s| s.real.keys().copied());
                real.into_iter().flatten().collect()
            }
            ServiceOp::AddVirtual(..)
            | ServiceOp::SetVirtual(..)
            | ServiceOp::AddReal(..)
            | ServiceOp::SetReal(..)
            | ServiceOp::DrainReal(..) => Vec::new(),
        };
        let gone = |endpoint| Gone { frontend, endpoint };
        endpoints.into_iter().map(gone).collect()
    }

    /// The frontend of a virtual server; one whose frontend is gone already is its own.
    fn owner_of(&self, server: &ServerKey) -> Option<FrontendKey> {
        let owner = self.owner.get(server).copied();
        owner.or(match server {
            ServerKey::Address(at) => Some(FrontendKey::Address(*at)),
            ServerKey::Mark { .. } => None,
        })
    }

    /// Looks at real servers that drain and removes those that have no connection any more or have had their time.
    pub(super) fn tend_drains(&mut self, ipvs: &mut Ipvs, frontends: &Frontends, status: &mut Status) {
        let now = Instant::now();
        let ops = match self.drains.finished(ipvs, now) {
            Ok(ops) => ops,
            Err(error) => return status.fail(&error),
        };
        self.carry_out(ipvs, ops, frontends, now, status);
    }
}

/// What everything else depends on.
fn is_urgent(frontend: &Frontend) -> bool {
    ServiceName::new("default", "kubernetes").is_ok_and(|name| frontend.service == name)
}

fn read_real(ipvs: &mut Ipvs, key: &ServerKey) -> Result<BTreeMap<SocketAddr, RealServer>, NetlinkError> {
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

fn settings_of(server: &generic::VirtualServer) -> Settings {
    Settings {
        scheduler: server.scheduler.clone(),
        flags: server.flags,
        timeout: if server.flags & PERSISTENT == 0 {
            0
        } else {
            server.timeout
        },
    }
}

fn virtual_server(server: generic::VirtualServer, real: BTreeMap<SocketAddr, RealServer>) -> VirtualServer {
    let settings = settings_of(&server);
    VirtualServer {
        scheduler: settings.scheduler,
        flags: settings.flags,
        timeout: settings.timeout,
        real,
    }
}

fn request(op: &ServiceOp) -> IpvsRequest {
    let server = |key: &ServerKey, settings: &Settings| generic::VirtualServer {
        key: *key,
        scheduler: settings.scheduler.clone(),
        flags: settings.flags,
        timeout: settings.timeout,
    };
    let real = |address: &SocketAddr, weight| generic::RealServer::masquerade(*address, weight);
    match op {
        ServiceOp::AddVirtual(key, settings) => IpvsRequest::AddVirtual(server(key, settings)),
        ServiceOp::SetVirtual(key, settings) => IpvsRequest::SetVirtual(server(key, settings)),
        ServiceOp::RemoveVirtual(key) => IpvsRequest::RemoveVirtual(*key),
        ServiceOp::AddReal(key, address, weight) => IpvsRequest::AddReal(*key, real(address, *weight)),
        ServiceOp::SetReal(key, address, weight) => IpvsRequest::SetReal(*key, real(address, *weight)),
        ServiceOp::DrainReal(key, address) => IpvsRequest::SetReal(*key, real(address, 0)),
        ServiceOp::RemoveReal(key, address) => IpvsRequest::RemoveReal(*key, *address),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use flannel_model::{Scheduler, SchedulerFlags, ServiceProtocol};
    use flannel_plan::{Backend, FrontendKind};

    use super::*;

    fn at(address: &str) -> VirtualAddress {
        VirtualAddress {
            protocol: ServiceProtocol::Tcp,
            address: address.parse::<IpAddr>().unwrap(),
            port: 443,
        }
    }

    fn frontends(services: &[(&str, &str, &str)]) -> Frontends {
        let endpoint = Backend {
            address: "10.5.1.2:6443".parse().unwrap(),
            weight: 1,
            local: false,
        };
        let mut out = Frontends::default();
        for (namespace, name, address) in services {
            let frontend = Frontend {
                service: ServiceName::new(namespace, name).unwrap(),
                port_name: String::new(),
                kind: FrontendKind::ClusterIp,
                scheduler: Scheduler::default(),
                flags: SchedulerFlags::default(),
                affinity: None,
                source_ranges: None,
                inside: [endpoint].into(),
                outside: [endpoint].into(),
                keep_source: false,
            };
            out.by_key
                .insert(FrontendKey::Address(at(address)), Arc::new(frontend));
        }
        out
    }

    #[test]
    fn what_everything_depends_on_comes_before_all_others() {
        let frontends = frontends(&[
            ("a", "first", "10.96.0.1"),
            ("default", "kubernetes", "10.96.0.5"),
            ("shop", "kubernetes", "10.96.0.7"),
        ]);
        let keys = frontends.by_key.keys().copied().collect();
        let (urgent, others) = Servers::default().plan_all(&frontends, &keys, Instant::now());
        let servers =
            |ops: &[ServiceOp]| -> BTreeSet<ServerKey> { ops.iter().map(ServiceOp::server).collect() };
        assert_eq!(servers(&urgent), [ServerKey::Address(at("10.96.0.5"))].into());
        assert_eq!(urgent.len(), 2, "with its endpoint: {urgent:?}");
        assert_eq!(servers(&others).len(), 2);
    }

    #[test]
    fn somebody_elses_virtual_server_is_named_until_the_service_goes() {
        let all = frontends(&[("shop", "web", "10.96.0.1")]);
        let key = FrontendKey::Address(at("10.96.0.1"));
        let mut servers = Servers::default();
        servers.foreign.insert(ServerKey::Address(at("10.96.0.1")));
        let (_, ops) = servers.plan_all(&all, &[key].into(), Instant::now());
        assert_eq!(ops, []);
        let told: Vec<(String, String)> = servers.clashes().collect();
        assert_eq!(told[0].0, "shop/web");
        assert!(told[0].1.contains("10.96.0.1:443"), "{told:?}");
        servers.plan_all(&Frontends::default(), &[key].into(), Instant::now());
        assert_eq!(servers.clashes().count(), 0);
    }
}
