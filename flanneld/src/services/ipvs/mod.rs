//! Services through IPVS: tables that guard and masquerade, local routes that deliver, and virtual servers.

mod counts;
mod drain;
mod drain_file;
mod flows;
mod lacking;
mod leftovers;
mod routes;
mod servers;
mod sysctls;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flannel_model::{ServerKey, VirtualAddress};
use flannel_netlink::generic::{Ipvs, IpvsTimeouts};
use flannel_netlink::{NetlinkError, RouteConn, sysctl};
use flannel_nft::Element;
use flannel_plan::ipvs::{KEEP_SOURCE, MARK_MASK};
use flannel_plan::{FrontendChanges, FrontendKey};

use super::counts::{FrontendCounts, Wanted};
use super::host::HostSettings;
use super::programmer::{Programmer, Scope, Status, View};
use crate::said::Said;
use drain::Drains;
use drain_file::DrainFile;
pub use drain_file::FILE as DRAINS;
pub use leftovers::leftovers;
use routes::Routes;
use servers::Servers;
use tables::{Tables, elements_of, shared_changes, shared_elements};

/// How often a kernel without IPVS is asked again.
const PROBE_AGAIN: Duration = Duration::from_secs(60);
/// Virtual servers whose real servers are looked at in one audit: at some 40 µs each that is 2 ms, for which a change may have to wait.
const LOOKED_AT: usize = 50;
/// So many audits look at real servers before one looks at everything else: the list of virtual servers takes 20 ms where there are 10,000.
const AUDITS: u32 = 10;

/// Programs IPVS.
#[derive(Debug, Default)]
pub struct IpvsProgrammer {
    tables: Tables,
    servers: Servers,
    /// The elements of each frontend that has some.
    elements: BTreeMap<FrontendKey, Vec<Element>>,
    routes: Routes,
    /// Virtual servers on addresses of the node that a former process had, read once.
    recorded: Option<BTreeSet<VirtualAddress>>,
    /// What can be written before everything is known was looked at.
    prepared: bool,
    absent_since: Option<Instant>,
    /// Audits since the last one that looked at everything but real servers.
    audits: u32,
    sysctls_said: Said,
    /// Where former values of kernel settings are noted.
    notes: Option<PathBuf>,
    /// What the timeouts of IPVS are to be.
    timeouts: IpvsTimeouts,
    strict_arp: bool,
}

impl Programmer for IpvsProgrammer {
    fn name(&self) -> &'static str {
        "ipvs"
    }

    fn programme(&mut self, view: &View<'_>, scope: Scope<'_>, status: &mut Status) {
        if let Err(error) = self.pass(view, scope, status) {
            status.fail(&error);
        }
    }

    fn counts(&mut self, wanted: &Wanted) -> Result<BTreeMap<FrontendKey, FrontendCounts>, NetlinkError> {
        match Ipvs::open()? {
            Some(mut ipvs) => counts::counts(&mut ipvs, &self.servers.owners, wanted),
            None => Ok(BTreeMap::new()),
        }
    }

    fn prepare(&mut self, view: &View<'_>) {
        if self.recorded.is_some() || self.prepared || view.frontends.cidrs.is_empty() {
            return;
        }
        self.prepared = true;
        if let Err(error) = self.write_first(view) {
            tracing::debug!(%error, "the tables of Services wait for the first pass");
        }
    }

    fn disturbed(&mut self) -> bool {
        self.tables.touched()
    }

    fn wake(&self) -> Option<Duration> {
        (!self.servers.drains.is_empty()).then_some(drain::LOOK)
    }
}

impl IpvsProgrammer {
    /// With what the host is to be set to, and the folder for what a restart or a clean-up should find.
    pub fn new(host: &HostSettings, run_dir: Option<&Path>) -> Self {
        let mut programmer = Self {
            timeouts: host.ipvs_timeouts,
            strict_arp: host.strict_arp,
            notes: run_dir.map(|folder| folder.join(sysctl::NOTES)),
            ..Self::default()
        };
        programmer.tables.fully_random = true;
        if let Some(folder) = run_dir {
            programmer.servers.drains = Drains::with_file(DrainFile::new(folder));
        }
        programmer
    }

    fn pass(&mut self, view: &View<'_>, scope: Scope<'_>, status: &mut Status) -> Result<(), NetlinkError> {
        let mut conn = RouteConn::open()?;
        if matches!(scope, Scope::Audit) {
            self.audits = (self.audits + 1) % AUDITS;
        }
        let is_thorough = match scope {
            Scope::All => true,
            Scope::Audit => self.audits == 0,
            Scope::Changed(_) => false,
        };
        if is_thorough {
            self.routes = routes::observe(&mut conn)?;
        }
        if view.frontends.cidrs.is_empty() && self.routes.is_empty() {
            return Ok(());
        }
        let Some(mut ipvs) = self.ipvs()? else {
            return Ok(());
        };
        if !matches!(scope, Scope::All) && self.tables.touched() {
            self.write_tables(view, true, status);
        }
        match scope {
            Scope::Changed(changes) if !changes.general => {
                self.change(&mut conn, &mut ipvs, view, changes, status)?
            }
            Scope::Audit => self.audit(&mut conn, &mut ipvs, view, status)?,
            Scope::All | Scope::Changed(_) => self.everything(&mut conn, &mut ipvs, view, status)?,
        }
        self.servers.tend_drains(&mut ipvs, view.frontends, status);
        self.servers.drains.save();
        status.rejects.extend(self.servers.clashes());
        status.rejects.extend(self.servers.lacking.notes());
        Ok(())
    }

    /// On a node without tables these come as soon as it is known what to guard: running `nft` takes as long as some hundred Services.
    /// They change nothing before there are routes. Where a table stands its elements count, which only the first pass knows.
    fn write_first(&mut self, view: &View<'_>) -> Result<(), NetlinkError> {
        if !self.tables.are_absent() || self.ipvs()?.is_none() {
            return Ok(());
        }
        self.recorded = Some(BTreeSet::new());
        self.tables.watch();
        // what fails is written, and told, by the first pass
        self.tables
            .write(view, &BTreeSet::new(), false, &mut Status::default());
        Ok(())
    }

    /// The order of the steps: the guard before the routes that it guards, and both before the virtual servers; on the way out the
    /// other way round.
    fn everything(
        &mut self,
        conn: &mut RouteConn,
        ipvs: &mut Ipvs,
        view: &View<'_>,
        status: &mut Status,
    ) -> Result<(), NetlinkError> {
        let begin = Instant::now();
        let wanted = routes::wanted(view);
        self.observe(conn, ipvs, &wanted, status)?;
        let observed = begin.elapsed();
        self.make_way(conn, ipvs, view, &wanted, status)?;
        let (before, written) = (status.added, begin.elapsed());
        self.reconcile_all(ipvs, view, status);
        let reconciled = begin.elapsed();
        status.unchanged += self.servers.len().saturating_sub(status.added - before);
        if status.failed.is_empty() {
            routes::remove_stale(conn, &wanted, &mut self.routes, status);
            self.tables.remove_unused(view.frontends, status);
        }
        self.tables.watch();
        tracing::debug!(
            observe_us = observed.as_micros(),
            tables_us = (written - observed).as_micros(),
            servers_us = (reconciled - written).as_micros(),
            rest_us = (begin.elapsed() - reconciled).as_micros(),
            "the parts of a look at everything in IPVS"
        );
        Ok(())
    }

    /// What stands and is ours: routes and virtual servers.
    fn observe(
        &mut self,
        conn: &mut RouteConn,
        ipvs: &mut Ipvs,
        wanted: &Routes,
        status: &mut Status,
    ) -> Result<(), NetlinkError> {
        self.routes = routes::observe(conn)?;
        let recorded = match self.recorded.take() {
            Some(recorded) => recorded,
            None => self.tables.recorded_node_servers(status),
        };
        let ours = |key: &ServerKey| is_ours(key, &self.routes, wanted, &recorded);
        let observed = self.servers.observe(ipvs, ours);
        self.recorded = Some(recorded);
        observed
    }

    /// What virtual servers need to stand before them: kernel settings, tables, routes.
    fn make_way(
        &mut self,
        conn: &mut RouteConn,
        ipvs: &mut Ipvs,
        view: &View<'_>,
        wanted: &Routes,
        status: &mut Status,
    ) -> Result<(), NetlinkError> {
        if !view.frontends.cidrs.is_empty() {
            self.set_sysctls(view, status);
            self.set_timeouts(ipvs)?;
        }
        // what was there is among those that stand by now
        self.recorded = Some(BTreeSet::new());
        let touched = self.tables.touched();
        self.write_tables(view, touched, status);
        let guarded = |ipv4| self.tables.stands(ipv4);
        routes::add(conn, wanted, &mut self.routes, guarded, status)
    }

    fn reconcile_all(&mut self, ipvs: &mut Ipvs, view: &View<'_>, status: &mut Status) {
        let frontends = view.frontends;
        let known = self.servers.owners.frontends();
        let vanished: Vec<FrontendKey> = known.filter(|key| !frontends.by_key.contains_key(key)).collect();
        let keys = frontends.by_key.keys().chain(&vanished).copied();
        let gone = self.servers.reconcile(ipvs, frontends, keys, &[], status);
        let orphans = self.servers.orphans();
        let none = std::iter::empty();
        let more = self.servers.reconcile(ipvs, frontends, none, &orphans, status);
        flows::end(&[gone, more].concat(), frontends, status);
    }

    /// What changed, and nothing else: the work does not grow with the number of Services.
    fn change(
        &mut self,
        conn: &mut RouteConn,
        ipvs: &mut Ipvs,
        view: &View<'_>,
        changes: &FrontendChanges,
        status: &mut Status,
    ) -> Result<(), NetlinkError> {
        if changes.is_empty() {
            return Ok(());
        }
        let frontends = view.frontends;
        let (mut come, mut gone) = shared_changes(frontends, changes);
        for key in &changes.keys {
            gone.extend(self.elements.remove(key).into_iter().flatten());
            if let Some(frontend) = frontends.by_key.get(key) {
                if frontend.keep_source {
                    self.servers.marks.assign(*key);
                }
                let node_servers = self.servers.on_node(key, frontends);
                let elements = elements_of(key, frontend, &self.servers.marks, node_servers);
                come.extend(elements.iter().copied());
                if !elements.is_empty() {
                    self.elements.insert(*key, elements);
                }
            }
        }
        gone.retain(|e| !come.contains(e));
        self.tables.change(&come, &BTreeSet::new(), status);
        if !changes.external_ips.is_empty() {
            let wanted = routes::wanted(view);
            let guarded = |ipv4| self.tables.stands(ipv4);
            routes::add(conn, &wanted, &mut self.routes, guarded, status)?;
        }
        let lost = self
            .servers
            .reconcile(ipvs, frontends, changes.keys.iter().copied(), &[], status);
        flows::end(&lost, frontends, status);
        if !changes.external_ips.is_empty() {
            let wanted = routes::wanted(view);
            routes::remove_stale(conn, &wanted, &mut self.routes, status);
        }
        self.tables.change(&BTreeSet::new(), &gone, status);
        Ok(())
    }

    /// IPVS has no notifications: a cheap look at what others may have done to ours.
    fn audit(
        &mut self,
        conn: &mut RouteConn,
        ipvs: &mut Ipvs,
        view: &View<'_>,
        status: &mut Status,
    ) -> Result<(), NetlinkError> {
        let (changed, orphans) = if self.audits == 0 {
            self.set_sysctls(view, status);
            let wanted = routes::wanted(view);
            let guarded = |ipv4| self.tables.stands(ipv4);
            routes::add(conn, &wanted, &mut self.routes, guarded, status)?;
            routes::remove_stale(conn, &wanted, &mut self.routes, status);
            let none = BTreeSet::new();
            let ours = |key: &ServerKey| is_ours(key, &self.routes, &wanted, &none);
            self.servers.look_at_all(ipvs, ours)?
        } else {
            self.servers.look_at_some(ipvs, LOOKED_AT)?
        };
        if !orphans.is_empty() {
            let none = std::iter::empty();
            let gone = self
                .servers
                .reconcile(ipvs, view.frontends, none, &orphans, status);
            flows::end(&gone, view.frontends, status);
        }
        let changes = FrontendChanges {
            keys: changed,
            ..FrontendChanges::default()
        };
        self.change(conn, ipvs, view, &changes, status)
    }

    fn write_tables(&mut self, view: &View<'_>, touched: bool, status: &mut Status) {
        self.elements.clear();
        let mut all: BTreeSet<Element> = shared_elements(view.frontends).collect();
        for (key, frontend) in &view.frontends.by_key {
            if frontend.keep_source {
                self.servers.marks.assign(*key);
            }
            let node_servers = self.servers.on_node(key, view.frontends);
            let elements = elements_of(key, frontend, &self.servers.marks, node_servers);
            all.extend(elements.iter().copied());
            if !elements.is_empty() {
                self.elements.insert(*key, elements);
            }
        }
        self.tables.write(view, &all, touched, status);
    }

    /// IPVS, unless the kernel has none, which is said once and asked again every minute.
    fn ipvs(&mut self) -> Result<Option<Ipvs>, NetlinkError> {
        if self
            .absent_since
            .is_some_and(|since| since.elapsed() < PROBE_AGAIN)
        {
            return Ok(None);
        }
        let ipvs = Ipvs::open()?;
        match (&ipvs, self.absent_since) {
            (None, None) => tracing::warn!(
                "the kernel has no IPVS, so Services are not programmed and everything else goes on: load it with \
                 `modprobe ip_vs`, or run a kernel with CONFIG_IP_VS; it is looked for again every {} s",
                PROBE_AGAIN.as_secs()
            ),
            (Some(_), Some(_)) => tracing::info!("the kernel has IPVS now; Services are programmed"),
            _ => {}
        }
        self.absent_since = ipvs.is_none().then(Instant::now);
        Ok(ipvs)
    }

    /// Those that are asked for; the others stay as they are.
    fn set_timeouts(&mut self, ipvs: &mut Ipvs) -> Result<(), NetlinkError> {
        let asked = self.timeouts;
        if asked == IpvsTimeouts::default() {
            return Ok(());
        }
        let now = ipvs.timeouts()?;
        let wanted = IpvsTimeouts {
            tcp: asked.tcp.or(now.tcp),
            tcp_fin: asked.tcp_fin.or(now.tcp_fin),
            udp: asked.udp.or(now.udp),
        };
        if wanted != now {
            ipvs.set_timeouts(&asked)?;
            tracing::info!(before = ?now, now = ?wanted, "the timeouts of IPVS are set as the flags ask for");
        }
        Ok(())
    }

    fn set_sysctls(&mut self, view: &View<'_>, status: &mut Status) {
        let ipv6 = tables::has_family(view.frontends, false);
        let notes = self.notes.as_deref();
        let mut missing = sysctls::set(ipv6, notes, &mut status.failed);
        if self.strict_arp {
            missing.extend(sysctls::strict_arp(notes));
        }
        if missing.is_empty() {
            self.sysctls_said.clear();
        } else if self.sysctls_said.is_news(&missing.join("; ")) {
            for sentence in missing {
                tracing::warn!("{sentence}");
            }
        }
    }
}

/// Whether a virtual server is ours: its address is delivered by a route of ours, its mark is one of ours, or a former process
/// noted it in its table before it made it.
fn is_ours(key: &ServerKey, present: &Routes, wanted: &Routes, recorded: &BTreeSet<VirtualAddress>) -> bool {
    match key {
        ServerKey::Mark { mark, .. } => mark & MARK_MASK == KEEP_SOURCE,
        ServerKey::Address(at) => {
            let delivered = |routes: &Routes| routes.keys().any(|range| range.holds(at.address));
            delivered(present) || delivered(wanted) || recorded.contains(at)
        }
    }
}
