//! Changes of virtual and real servers: planned, sent and filed, some frontends at a time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use flannel_model::ServerKey;
use flannel_netlink::generic::{self, Ipvs, IpvsRequest};
use flannel_plan::ipvs::{
    ServiceOp, Settings, Surroundings, VirtualServer, VirtualServers, carry_out, diff_server, drains,
    servers_of,
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
    /// Virtual servers that are new.
    new: Vec<ServiceOp>,
    /// All other changes.
    rest: Vec<ServiceOp>,
    /// The virtual servers that they are to have in the end.
    wanted: Vec<(ServerKey, VirtualServer)>,
    /// Something goes, or stays for a while: what stands in the end is not just what is wanted.
    leaves_more: bool,
}

impl Plan {
    fn of(ops: Vec<ServiceOp>) -> Self {
        Self {
            rest: ops,
            leaves_more: true,
            ..Self::default()
        }
    }

    /// With what brings one virtual server to what it should be.
    fn diff(
        &mut self,
        at: ServerKey,
        wanted: Option<&VirtualServer>,
        found: Option<&VirtualServer>,
        drain: bool,
    ) {
        let begin = self.rest.len();
        diff_server(at, wanted, found, drain, &mut self.rest);
        if found.is_none() && wanted.is_some() {
            self.new.push(self.rest.remove(begin));
        }
        let stays = |address| wanted.is_some_and(|wanted| wanted.real.contains(&address));
        self.leaves_more |= found.is_some_and(|found| found.real.is_empty() && wanted.is_none());
        self.leaves_more |= found.is_some_and(|found| found.real.iter().any(|(address, _)| !stays(address)));
    }
}

impl Servers {
    /// Brings the virtual servers of `keys` to what `frontends` say, and removes `orphans`. Answers the endpoints whose clients must
    /// move at once.
    pub(in crate::services::ipvs) fn reconcile(
        &mut self,
        ipvs: &mut Ipvs,
        frontends: &Frontends,
        keys: impl Iterator<Item = FrontendKey> + Clone,
        orphans: &[ServerKey],
        status: &mut Status,
    ) -> Vec<Gone> {
        let now = Instant::now();
        let mut gone = Vec::new();
        let mut keys = urgent(frontends, keys.clone()).into_iter().chain(keys);
        let (mut plan, mut chunk) = (Plan::default(), Vec::with_capacity(AT_ONCE));
        loop {
            chunk.clear();
            chunk.extend(keys.by_ref().take(AT_ONCE));
            if chunk.is_empty() {
                break;
            }
            self.plan_all(frontends, &chunk, now, &mut plan);
            gone.extend(self.carry_out(ipvs, &mut plan, frontends, now, status));
            for key in chunk.iter().filter(|key| !frontends.by_key.contains_key(key)) {
                self.owners.forget(key);
                self.marks.release(key);
            }
        }
        let orphans = orphans.iter().map(|key| ServiceOp::RemoveVirtual(*key));
        let mut plan = Plan::of(orphans.collect());
        gone.extend(self.carry_out(ipvs, &mut plan, frontends, now, status));
        gone
    }

    /// The changes that these frontends need.
    fn plan_all(&mut self, frontends: &Frontends, keys: &[FrontendKey], now: Instant, plan: &mut Plan) {
        for key in keys {
            let frontend = frontends.by_key.get(key).map(AsRef::as_ref);
            self.plan(key, frontend, frontends, now, plan);
        }
    }

    /// What stands as it should be is remembered by the endpoints that the frontends have anyway.
    fn share(&mut self, wanted: impl Iterator<Item = (ServerKey, VirtualServer)>) {
        for (at, wanted) in wanted {
            if let Some(standing) = self.standing.get_mut(&at)
                && standing.real == wanted.real
            {
                standing.real = wanted.real;
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
        let wanted = self.wanted(key, frontend, frontends);
        for at in self.owners.set(*key, &wanted) {
            plan.diff(at, None, self.standing.get(&at), false);
        }
        for (at, server) in wanted {
            let found = self.standing.get(&at);
            plan.diff(at, Some(&server), found, drain);
            // What a former process let drain, and what came back.
            for (real, found) in found.into_iter().flat_map(|f| f.real.iter()) {
                if server.real.contains(&real) {
                    self.drains.cancel(&at, &real);
                } else if drain && found.weight == 0 {
                    self.drains.go_on(at, real, now, frontends.drain_timeout);
                }
            }
            plan.wanted.push((at, server));
        }
    }

    /// The virtual servers that a frontend is to have, without those places that somebody else has: these are noted.
    fn wanted(
        &mut self,
        key: &FrontendKey,
        frontend: Option<&Frontend>,
        frontends: &Frontends,
    ) -> VirtualServers {
        self.clashes.retain(|_, (owner, _)| owner != key);
        self.lacking.forget(key);
        let Some(frontend) = frontend else {
            return VirtualServers::default();
        };
        let around = Surroundings {
            node_addresses: &frontends.node_addresses,
            mark: frontend.keep_source.then(|| self.marks.assign(*key)),
        };
        if !frontend.keep_source {
            self.marks.release(key);
        }
        let mut wanted = servers_of(key, frontend, around);
        for at in wanted.keys().filter(|at| self.foreign.contains(*at)) {
            self.clashes.insert(*at, (*key, frontend.service.to_string()));
        }
        wanted.retain(|at, _| !self.foreign.contains(at));
        wanted
    }

    /// Sends the changes and files the results: new virtual servers first, so that a real server never goes into one that is not ours.
    /// The plan is empty then.
    fn carry_out(
        &mut self,
        ipvs: &mut Ipvs,
        plan: &mut Plan,
        frontends: &Frontends,
        now: Instant,
        status: &mut Status,
    ) -> Vec<Gone> {
        let mut gone = Vec::new();
        let mut broken: BTreeSet<ServerKey> = BTreeSet::new();
        self.send(ipvs, &plan.new, frontends, &mut broken, status);
        let refused = broken.clone();
        if !refused.is_empty() {
            plan.rest.retain(|op| !refused.contains(&op.server()));
        }
        let failed = self.send(ipvs, &plan.rest, frontends, &mut broken, status);
        let done = || {
            let all = plan.rest.iter().enumerate();
            all.filter(|(place, _)| !failed.contains(place)).map(|(_, op)| op)
        };
        for op in done() {
            gone.extend(self.lost_endpoints(op));
            self.drains.follow(op, now, frontends.drain_timeout);
        }
        if broken.is_empty() && !plan.leaves_more {
            self.standing.extend(plan.wanted.drain(..));
        } else {
            let new = plan.new.iter().filter(|op| !refused.contains(&op.server()));
            carry_out(new, &mut self.standing);
            carry_out(done(), &mut self.standing);
            self.share(plan.wanted.drain(..));
        }
        plan.new.clear();
        plan.rest.clear();
        plan.leaves_more = false;
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
            let owner = self.owners.owner(&server);
            if matches!(op, ServiceOp::AddVirtual(..)) {
                self.owners.refused(&server);
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
        let owner = self.owners.owner(server);
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
        self.carry_out(ipvs, &mut Plan::of(ops), frontends, now, status);
    }
}

/// The frontends of the Service on which everything else depends: they come first.
fn urgent(frontends: &Frontends, keys: impl Iterator<Item = FrontendKey>) -> Vec<FrontendKey> {
    let is_first = |key: &FrontendKey| {
        let frontend = frontends.by_key.get(key);
        frontend.is_some_and(|f| (f.service.namespace(), f.service.name()) == FIRST)
    };
    keys.filter(is_first).collect()
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
    use flannel_plan::ipvs::{RealServer, RealServers};
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
        let urgent = urgent(&frontends, frontends.by_key.keys().copied());
        assert_eq!(urgent, [FrontendKey::Address(at("10.96.0.5"))]);
        let plan = planned(&mut Servers::default(), &frontends, &urgent);
        assert_eq!(
            (plan.new.len(), plan.rest.len()),
            (1, 1),
            "with its endpoint: {plan:?}"
        );
    }

    fn planned(servers: &mut Servers, frontends: &Frontends, keys: &[FrontendKey]) -> Plan {
        let mut plan = Plan::default();
        servers.plan_all(frontends, keys, Instant::now(), &mut plan);
        plan
    }

    #[test]
    fn somebody_elses_virtual_server_is_named_until_the_service_goes() {
        let all = frontends(&[("shop", "web", "10.96.0.1")]);
        let key = FrontendKey::Address(at("10.96.0.1"));
        let mut servers = Servers::default();
        servers.foreign.insert(ServerKey::Address(at("10.96.0.1")));
        let plan = planned(&mut servers, &all, &[key]);
        assert_eq!((plan.new, plan.rest), (vec![], vec![]));
        let told: Vec<(String, String)> = servers.clashes().collect();
        assert_eq!(told[0].0, "shop/web");
        assert!(told[0].1.contains("10.96.0.1:443"), "{told:?}");
        planned(&mut servers, &Frontends::default(), &[key]);
        assert_eq!(servers.clashes().count(), 0);
    }

    #[test]
    fn what_stands_as_it_should_be_shares_the_memory_of_its_endpoints() {
        let all = frontends(&[("shop", "web", "10.96.0.1")]);
        let key = FrontendKey::Address(at("10.96.0.1"));
        let server = ServerKey::Address(at("10.96.0.1"));
        let mut servers = Servers::default();
        let plan = planned(&mut servers, &all, &[key]);
        let is_shared =
            |servers: &Servers| matches!(servers.standing[&server].real, RealServers::Endpoints(_));
        carry_out(plan.new.iter(), &mut servers.standing);
        servers.share(plan.wanted.iter().cloned());
        assert!(!is_shared(&servers), "without its real server");
        carry_out(plan.rest.iter(), &mut servers.standing);
        servers.share(plan.wanted.into_iter());
        assert!(is_shared(&servers));
        let again = planned(&mut servers, &all, &[key]);
        assert_eq!(
            (again.new, again.rest, again.leaves_more),
            (vec![], vec![], false)
        );
    }

    #[test]
    fn a_plan_knows_whether_more_stands_in_the_end_than_is_wanted() {
        let server = ServerKey::Address(at("10.96.0.1"));
        let with = |endpoints: &[&str]| {
            let real = endpoints.iter().map(|e| {
                (
                    e.parse().unwrap(),
                    RealServer {
                        weight: 1,
                        masquerade: true,
                    },
                )
            });
            VirtualServer {
                scheduler: "rr".into(),
                flags: 0,
                timeout: 0,
                real: real.collect(),
            }
        };
        let (one, two) = (with(&["10.5.1.2:80"]), with(&["10.5.1.2:80", "10.5.1.3:80"]));
        for (wanted, found, drain, leaves_more) in [
            (Some(&one), None, true, false),
            (Some(&two), Some(&one), true, false),
            (Some(&one), Some(&two), true, true),
            (Some(&one), Some(&two), false, true),
            (None, Some(&two), false, true),
            (None, Some(&with(&[])), false, true),
            (None, None, false, false),
        ] {
            let mut plan = Plan::default();
            plan.diff(server, wanted, found, drain);
            assert_eq!(plan.leaves_more, leaves_more, "{plan:?}");
            let is_new = |op: &ServiceOp| matches!(op, ServiceOp::AddVirtual(..));
            assert_eq!(plan.new.len(), usize::from(found.is_none() && wanted.is_some()));
            assert!(
                plan.new.iter().all(is_new) && !plan.rest.iter().any(is_new),
                "{plan:?}"
            );
        }
    }
}
