//! Changes of virtual and real servers: planned, sent and filed, some frontends at a time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use flannel_model::ServerKey;
use flannel_netlink::generic::{self, Ipvs, IpvsRequest};
use flannel_plan::ipvs::{
    RealServers, ServiceOp, Settings, Surroundings, carry_out, diff_server, drains, servers_of,
};
use flannel_plan::{Frontend, FrontendKey, Frontends};

use super::{Gone, Servers};
use crate::services::programmer::Status;

/// What everything else depends on.
const FIRST: (&str, &str) = ("default", "kubernetes");
/// Frontends that are planned and sent together. With ten endpoints each that is 930 requests of 140 bytes, which fill two sends of
/// 64 KiB: few system calls, what is planned is still in the processor's cache when it is sent, and no allocation is so large (128 KiB)
/// that malloc maps it anew each time.
const AT_ONCE: usize = 93;

/// What some frontends need.
#[derive(Debug, Default)]
struct Plan {
    ops: Vec<ServiceOp>,
    /// The real servers that their virtual servers are to have in the end.
    wanted: Vec<(ServerKey, RealServers)>,
}

impl Servers {
    /// Brings the virtual servers of `keys` to what `frontends` say, and removes `orphans`. Answers the endpoints whose clients must
    /// move at once.
    pub(in crate::services::ipvs) fn reconcile(
        &mut self,
        ipvs: &mut Ipvs,
        frontends: &Frontends,
        keys: &BTreeSet<FrontendKey>,
        orphans: &[ServerKey],
        status: &mut Status,
    ) -> Vec<Gone> {
        let now = Instant::now();
        let (urgent, others) = in_order(frontends, keys);
        let mut gone = Vec::new();
        for keys in [&*urgent].into_iter().chain(others.chunks(AT_ONCE)) {
            let plan = self.plan_all(frontends, keys, now);
            gone.extend(self.carry_out(ipvs, plan.ops, frontends, now, status));
            self.share(plan.wanted);
        }
        let orphans = orphans.iter().map(|key| ServiceOp::RemoveVirtual(*key));
        gone.extend(self.carry_out(ipvs, orphans.collect(), frontends, now, status));
        for key in keys.iter().filter(|key| !frontends.by_key.contains_key(key)) {
            self.of.remove(key);
            self.marks.release(key);
        }
        gone
    }

    /// The changes that these frontends need.
    fn plan_all(&mut self, frontends: &Frontends, keys: &[FrontendKey], now: Instant) -> Plan {
        let mut plan = Plan::default();
        for key in keys {
            let frontend = frontends.by_key.get(key).map(AsRef::as_ref);
            self.plan(key, frontend, frontends, now, &mut plan);
        }
        plan
    }

    /// What stands as it should be is remembered by the endpoints that the frontends have anyway.
    fn share(&mut self, wanted: Vec<(ServerKey, RealServers)>) {
        for (at, real) in wanted {
            if let Some(standing) = self.standing.get_mut(&at)
                && standing.real == real
            {
                standing.real = real;
            }
        }
    }

    /// The changes that one frontend needs.
    fn plan(
        &mut self,
        key: &FrontendKey,
        frontend: Option<&Frontend>,
        frontends: &Frontends,
        now: Instant,
        plan: &mut Plan,
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
        self.lacking.forget(key);
        for at in wanted.keys().filter(|at| self.foreign.contains(*at)) {
            let subject = frontend.map_or_else(|| key.to_string(), |f| f.service.to_string());
            self.clashes.insert(*at, (*key, subject));
        }
        wanted.retain(|at, _| !self.foreign.contains(at));
        let before = self.of.insert(*key, wanted.keys().copied().collect());
        for at in before.into_iter().flatten().filter(|at| !wanted.contains_key(at)) {
            diff_server(at, None, self.standing.get(&at), false, &mut plan.ops);
            self.owner.remove(&at);
        }
        for (at, server) in wanted {
            let found = self.standing.get(&at);
            diff_server(at, Some(&server), found, drain, &mut plan.ops);
            self.owner.insert(at, *key);
            // What a former process let drain, and what came back.
            for (real, found) in found.into_iter().flat_map(|f| f.real.iter()) {
                if server.real.contains(&real) {
                    self.drains.cancel(&at, &real);
                } else if drain && found.weight == 0 {
                    self.drains.go_on(at, real, now, frontends.drain_timeout);
                }
            }
            plan.wanted.push((at, server.real));
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
        let is_new = |op: &ServiceOp| matches!(op, ServiceOp::AddVirtual(..));
        let (new, mut rest): (Vec<_>, Vec<_>) = ops.into_iter().partition(is_new);
        self.send(ipvs, &new, frontends, &mut broken, status);
        carry_out(
            new.iter().filter(|op| !broken.contains(&op.server())),
            &mut self.standing,
        );
        rest.retain(|op| !broken.contains(&op.server()));
        let failed = self.send(ipvs, &rest, frontends, &mut broken, status);
        let done = || {
            rest.iter()
                .enumerate()
                .filter(|(place, _)| !failed.contains(place))
        };
        for (_, op) in done() {
            gone.extend(self.lost_endpoints(op));
            self.drains.follow(op, now, frontends.drain_timeout);
        }
        carry_out(done().map(|(_, op)| op), &mut self.standing);
        gone
    }

    /// Sends changes. Answers the places of those that failed, and adds their virtual servers to `broken`.
    fn send(
        &mut self,
        ipvs: &mut Ipvs,
        ops: &[ServiceOp],
        frontends: &Frontends,
        broken: &mut BTreeSet<ServerKey>,
        status: &mut Status,
    ) -> BTreeSet<usize> {
        let removals = ops.iter().filter(|op| op.is_removal()).count();
        status.removed += removals;
        status.added += ops.len() - removals;
        let mut failed = BTreeSet::new();
        for (place, error) in ipvs.apply_each(ops, request) {
            let Some(op) = ops.get(place) else { continue };
            match op.is_removal() {
                true => status.removed -= 1,
                false => status.added -= 1,
            }
            // Somebody else removed it between our look and our request.
            if op.is_removal() && error.is_missing() {
                continue;
            }
            failed.insert(place);
            let server = op.server();
            let owner = self.owner.get(&server).copied();
            if matches!(op, ServiceOp::AddVirtual(..)) {
                self.owner.remove(&server);
            }
            let service = owner.and_then(|owner| {
                let frontend = frontends.by_key.get(&owner)?;
                Some((owner, frontend.service.to_string()))
            });
            let is_known = self.lacking.note(op, &error, service);
            // One failure of a virtual server is told: those of its real servers follow from it.
            if broken.insert(server) && !is_known {
                status.fail(&error);
            }
        }
        failed
    }

    /// The endpoints that go with `op` and whose clients would go on sending to them.
    fn lost_endpoints(&self, op: &ServiceOp) -> Vec<Gone> {
        if !op.is_removal() {
            return Vec::new();
        }
        let server = op.server();
        let Some(frontend) = self.owner_of(&server).filter(|f| !drains(f.protocol())) else {
            return Vec::new();
        };
        let endpoints: Vec<SocketAddr> = match op {
            ServiceOp::RemoveReal(_, real) => vec![*real],
            ServiceOp::RemoveVirtual(at) => {
                let real = self.standing.get(at).into_iter();
                real.flat_map(|s| s.real.iter())
                    .map(|(address, _)| address)
                    .collect()
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
    pub(in crate::services::ipvs) fn tend_drains(
        &mut self,
        ipvs: &mut Ipvs,
        frontends: &Frontends,
        status: &mut Status,
    ) {
        let now = Instant::now();
        let ops = match self.drains.finished(ipvs, now) {
            Ok(ops) => ops,
            Err(error) => return status.fail(&error),
        };
        self.carry_out(ipvs, ops, frontends, now, status);
    }
}

/// The frontends of the Service on which everything else depends, and all others.
fn in_order(frontends: &Frontends, keys: &BTreeSet<FrontendKey>) -> (Vec<FrontendKey>, Vec<FrontendKey>) {
    let is_first = |key: &FrontendKey| {
        let frontend = frontends.by_key.get(key);
        frontend.is_some_and(|f| (f.service.namespace(), f.service.name()) == FIRST)
    };
    keys.iter().copied().partition(is_first)
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

    use flannel_model::{Scheduler, SchedulerFlags, ServiceName, ServiceProtocol, VirtualAddress};
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
        let (urgent, others) = in_order(&frontends, &keys);
        assert_eq!(urgent, [FrontendKey::Address(at("10.96.0.5"))]);
        assert_eq!(others.len(), 2);
        let plan = Servers::default().plan_all(&frontends, &urgent, Instant::now());
        assert_eq!(plan.ops.len(), 2, "with its endpoint: {plan:?}");
    }

    #[test]
    fn somebody_elses_virtual_server_is_named_until_the_service_goes() {
        let all = frontends(&[("shop", "web", "10.96.0.1")]);
        let key = FrontendKey::Address(at("10.96.0.1"));
        let mut servers = Servers::default();
        servers.foreign.insert(ServerKey::Address(at("10.96.0.1")));
        let plan = servers.plan_all(&all, &[key], Instant::now());
        assert_eq!(plan.ops, []);
        let told: Vec<(String, String)> = servers.clashes().collect();
        assert_eq!(told[0].0, "shop/web");
        assert!(told[0].1.contains("10.96.0.1:443"), "{told:?}");
        servers.plan_all(&Frontends::default(), &[key], Instant::now());
        assert_eq!(servers.clashes().count(), 0);
    }

    #[test]
    fn what_stands_as_it_should_be_shares_the_memory_of_its_endpoints() {
        let all = frontends(&[("shop", "web", "10.96.0.1")]);
        let key = FrontendKey::Address(at("10.96.0.1"));
        let server = ServerKey::Address(at("10.96.0.1"));
        let mut servers = Servers::default();
        let plan = servers.plan_all(&all, &[key], Instant::now());
        let is_shared =
            |servers: &Servers| matches!(servers.standing[&server].real, RealServers::Endpoints(_));
        carry_out(plan.ops[..1].iter(), &mut servers.standing);
        servers.share(plan.wanted.clone());
        assert!(!is_shared(&servers), "without its real server");
        carry_out(plan.ops[1..].iter(), &mut servers.standing);
        servers.share(plan.wanted);
        assert!(is_shared(&servers));
        assert_eq!(servers.plan_all(&all, &[key], Instant::now()).ops, []);
    }
}
