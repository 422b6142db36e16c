//! Real servers that take no new connections and wait for their last one to end.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flannel_model::ServerKey;
use flannel_netlink::NetlinkError;
use flannel_netlink::generic::Ipvs;
use flannel_plan::ipvs::ServiceOp;

use super::drain_file::{Deadlines, DrainFile};
use crate::clock::since_boot;

/// How often the connections of draining real servers are counted.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// Virtual servers that are looked at in one go: listing the real servers of one costs some 40 µs.
const AT_ONCE: usize = 256;

/// Real servers on their way out, each with the time at which it goes in any case. A new process finds them by their weight of 0, and
/// their time in a file.
#[derive(Debug, Default)]
pub(super) struct Drains {
    by_server: BTreeMap<ServerKey, BTreeMap<SocketAddr, Instant>>,
    cursor: Option<ServerKey>,
    file: Option<DrainFile>,
    /// What an earlier process wrote.
    recorded: Deadlines,
    /// Something changed that the file does not say.
    changed: bool,
}

impl Drains {
    /// With what an earlier process left in `file`.
    pub(super) fn with_file(file: DrainFile) -> Self {
        Self {
            recorded: file.read(),
            file: Some(file),
            changed: true,
            ..Self::default()
        }
    }

    /// Notes a real server that an earlier process let drain: it has what is left of its time, and not more than all of it.
    pub(super) fn go_on(&mut self, server: ServerKey, real: SocketAddr, now: Instant, seconds: u32) {
        let recorded = self.recorded.remove(&(server.to_string(), real));
        let most = Duration::from_secs(seconds.into());
        let left = recorded.map_or(most, |end| end.saturating_sub(since_boot()).min(most));
        self.enter(server, real, now + left);
    }

    /// Brings the file up to date.
    pub(super) fn save(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        self.recorded.clear();
        let (now, booted) = (Instant::now(), since_boot());
        let all = self.by_server.iter();
        let all = all.flat_map(|(server, reals)| reals.iter().map(|(real, end)| (*server, *real, *end)));
        if let Some(file) = &self.file {
            file.write(
                all.map(|(server, real, end)| (server, real, booted + end.saturating_duration_since(now))),
            );
        }
    }

    /// Whether any real server drains.
    pub(super) fn is_empty(&self) -> bool {
        self.by_server.is_empty()
    }

    /// Notes a real server that drains, unless it is known already.
    pub(super) fn begin(&mut self, server: ServerKey, real: SocketAddr, now: Instant, seconds: u32) {
        self.enter(server, real, now + Duration::from_secs(seconds.into()));
    }

    fn enter(&mut self, server: ServerKey, real: SocketAddr, end: Instant) {
        let reals = self.by_server.entry(server).or_default();
        if let Entry::Vacant(vacant) = reals.entry(real) {
            vacant.insert(end);
            self.changed = true;
        }
    }

    /// It is back, or gone.
    pub(super) fn cancel(&mut self, server: &ServerKey, real: &SocketAddr) {
        if let Some(reals) = self.by_server.get_mut(server) {
            self.changed |= reals.remove(real).is_some();
            if reals.is_empty() {
                self.by_server.remove(server);
            }
        }
    }

    /// The virtual server is gone.
    pub(super) fn forget(&mut self, server: &ServerKey) {
        self.changed |= self.by_server.remove(server).is_some();
    }

    /// Takes note of a change that was carried out.
    pub(super) fn follow(&mut self, op: &ServiceOp, now: Instant, seconds: u32) {
        match op {
            ServiceOp::DrainReal(server, real) => self.begin(*server, *real, now, seconds),
            ServiceOp::AddReal(server, real, _)
            | ServiceOp::SetReal(server, real, _)
            | ServiceOp::RemoveReal(server, real) => self.cancel(server, real),
            ServiceOp::RemoveVirtual(server) => self.forget(server),
            ServiceOp::AddVirtual(..) | ServiceOp::SetVirtual(..) => {}
        }
    }

    /// The removals that are due among the next virtual servers: of real servers without a connection, and of those whose time is up.
    ///
    /// # Errors
    /// When the kernel does not list the real servers.
    pub(super) fn finished(&mut self, ipvs: &mut Ipvs, now: Instant) -> Result<Vec<ServiceOp>, NetlinkError> {
        let mut ops = Vec::new();
        for server in self.next() {
            let mut busy = BTreeSet::new();
            let mut present = BTreeSet::new();
            for real in ipvs.real_servers(&server)? {
                present.insert(real.address);
                if real.active + real.inactive > 0 {
                    busy.insert(real.address);
                }
            }
            let Some(reals) = self.by_server.get_mut(&server) else {
                continue;
            };
            let before = reals.len();
            reals.retain(|real, _| present.contains(real));
            self.changed |= reals.len() != before;
            let due = reals
                .iter()
                .filter(|(real, end)| !busy.contains(real) || **end <= now);
            ops.extend(due.map(|(real, _)| ServiceOp::RemoveReal(server, *real)));
            if reals.is_empty() {
                self.by_server.remove(&server);
            }
        }
        Ok(ops)
    }

    fn next(&mut self) -> Vec<ServerKey> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = self.cursor.map_or(Unbounded, Excluded);
        let servers = self.by_server.range((from, Unbounded));
        let servers: Vec<ServerKey> = servers.map(|(key, _)| *key).take(AT_ONCE).collect();
        self.cursor = servers.last().copied().filter(|_| servers.len() == AT_ONCE);
        servers
    }
}

#[cfg(test)]
mod tests {
    use flannel_model::{ServiceProtocol, VirtualAddress};

    use super::*;

    #[test]
    fn a_real_server_that_returns_drains_no_more_and_a_deadline_is_not_moved() {
        let server = ServerKey::Address(VirtualAddress {
            protocol: ServiceProtocol::Tcp,
            address: "10.96.0.10".parse().unwrap(),
            port: 80,
        });
        let real: SocketAddr = "10.5.1.2:8080".parse().unwrap();
        let (now, mut drains) = (Instant::now(), Drains::default());
        drains.follow(&ServiceOp::DrainReal(server, real), now, 30);
        let later = now + Duration::from_secs(20);
        drains.begin(server, real, later, 30);
        assert_eq!(drains.by_server[&server][&real], now + Duration::from_secs(30));
        drains.follow(&ServiceOp::SetReal(server, real, 1), later, 30);
        assert!(drains.is_empty());
        drains.begin(server, real, later, 30);
        drains.follow(&ServiceOp::RemoveVirtual(server), later, 30);
        assert!(drains.is_empty());
    }

    #[test]
    fn a_restart_does_not_move_a_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Drains::with_file(DrainFile::new(folder.path()));
        let server = ServerKey::Mark { ipv6: false, mark: 3 };
        let (real, other): (SocketAddr, SocketAddr) =
            ("10.5.1.2:80".parse().unwrap(), "10.5.1.3:80".parse().unwrap());
        let now = Instant::now();
        let mut drains = open();
        drains.begin(server, real, now, 30);
        drains.save();
        let mut again = open();
        again.go_on(server, real, now, 300);
        again.go_on(server, other, now, 300);
        let left = |real| again.by_server[&server][&real] - now;
        assert!(left(real) <= Duration::from_secs(31), "{:?}", left(real));
        assert!(left(real) >= Duration::from_secs(20), "{:?}", left(real));
        assert_eq!(left(other), Duration::from_secs(300), "of which nothing is known");
        again.go_on(server, real, now, 1);
        again.cancel(&server, &real);
        again.cancel(&server, &other);
        again.save();
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
    }

    #[test]
    fn the_look_goes_round() {
        let mut drains = Drains::default();
        let key = |mark| ServerKey::Mark { ipv6: false, mark };
        let count = u32::try_from(AT_ONCE).unwrap() + 10;
        for mark in 0..count {
            drains.begin(key(mark), "10.5.1.2:80".parse().unwrap(), Instant::now(), 30);
        }
        assert_eq!(drains.next().first(), Some(&key(0)));
        let rest = drains.next();
        assert_eq!((rest.len(), rest.last()), (10, Some(&key(count - 1))));
        assert_eq!(drains.next().len(), AT_ONCE);
    }
}
