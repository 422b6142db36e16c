//! Services through nftables, for kernels without IPVS: destination translation by maps.

mod batch;
mod compare;
mod counts;
mod settings;
mod stale;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use flannel_model::ServiceName;
use flannel_netlink::NetlinkError;
use flannel_netlink::nftables::{NftConn, TableWatch};
use flannel_nft::Nft;
use flannel_plan::FrontendKey;
use flannel_plan::nft::{TABLE, unfit_scheduler};

use super::counts::{FrontendCounts, Wanted};
use super::memory;
use super::programmer::{Programmer, Scope, Status, View};
use crate::said::Said;
use compare::{Found, Look};
use table::{FamilyTable, Tools};

/// The kernel tells of changes by others. Besides, what stands is compared this often, unless nothing was written at all.
const COMPARE: Duration = Duration::from_secs(300);

/// Programs nftables. It remembers what stands there, and notices when others change it.
#[derive(Debug)]
pub struct NftProgrammer {
    nft: Nft,
    link: Option<(NftConn, TableWatch)>,
    tables: [FamilyTable; 2],
    /// Addresses of the node that answered on node ports in the last pass.
    node_addresses: BTreeSet<IpAddr>,
    /// Somebody else changed a table: the next pass looks at everything.
    disturbed: bool,
    /// Schedulers that are something else here, by frontend.
    notes: BTreeMap<FrontendKey, (ServiceName, String)>,
    bridge_said: Said,
    /// When everything was compared with the kernel, and how many transactions that had seen by then.
    compared: Option<(Instant, Option<u32>)>,
    /// A look that goes on.
    look: Option<Look>,
    /// Where former values of kernel settings are noted.
    notes_file: Option<PathBuf>,
}

impl Default for NftProgrammer {
    fn default() -> Self {
        Self {
            nft: Nft::default(),
            link: None,
            tables: [FamilyTable::new(true), FamilyTable::new(false)],
            node_addresses: BTreeSet::new(),
            disturbed: false,
            notes: BTreeMap::new(),
            bridge_said: Said::default(),
            compared: None,
            look: None,
            notes_file: None,
        }
    }
}

impl Programmer for NftProgrammer {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn programme(&mut self, view: &View<'_>, scope: Scope<'_>, status: &mut Status) {
        if matches!(scope, Scope::Audit) && !self.disturbed() {
            // The pass before this one told the notes.
            return self.audit(view, status);
        }
        let all = self.disturbed() || !matches!(scope, Scope::Changed(_));
        let scope = if all { Scope::All } else { scope };
        self.take_notes(view, scope);
        self.node_addresses.clone_from(&view.frontends.node_addresses);
        if let Err(error) = self.pass(view, scope, status) {
            status.fail(&*error);
        }
        let notes = self
            .notes
            .values()
            .map(|(service, text)| (service.to_string(), text.clone()));
        status.rejects.extend(notes);
        status.rejects.dedup();
    }

    fn counts(&mut self, wanted: &Wanted) -> Result<BTreeMap<FrontendKey, FrontendCounts>, NetlinkError> {
        let mut out = BTreeMap::new();
        let Some((conn, _)) = &mut self.link else {
            return Ok(out); // nothing is programmed yet
        };
        for table in &self.tables {
            let keys = table.frontend_keys();
            if keys.is_empty() {
                continue;
            }
            let mut counts = counts::traffic(conn, table.family(), &keys)?;
            counts::connections(table.is_ipv4(), &self.node_addresses, wanted, &mut counts)?;
            out.append(&mut counts);
        }
        Ok(out)
    }

    fn disturbed(&mut self) -> bool {
        if let Some((conn, watch)) = &self.link {
            self.disturbed |= watch.touched(conn.port());
        }
        self.disturbed
    }
}

impl NftProgrammer {
    /// Former values of kernel settings go to the file `notes`.
    pub fn new(notes: Option<PathBuf>) -> Self {
        Self {
            notes_file: notes,
            ..Self::default()
        }
    }

    /// Compares everything if it is time for that and anything was written since the last time, by whomever.
    fn audit(&mut self, view: &View<'_>, status: &mut Status) {
        if let Some(look) = self.look.take_if(|look| look.is_over()) {
            self.end_look(look, view, status);
            memory::give_back();
            return;
        }
        let generation = self.generation();
        let settled = |(when, known): (Instant, Option<u32>)| {
            when.elapsed() < COMPARE || (generation.is_some() && known == generation)
        };
        if self.look.is_some() || self.compared.is_some_and(settled) {
            return;
        }
        for ipv4 in [true, false] {
            self.settle(view, ipv4, status);
        }
        let tables = self.tables.iter().filter_map(FamilyTable::contents).collect();
        match Look::begin(tables, generation) {
            Ok(look) => self.look = Some(look),
            Err(error) => {
                tracing::debug!(%error, "no thread for a look at the elements of Services");
                self.look_at_all(view, status);
            }
        }
    }

    fn end_look(&mut self, look: Look, view: &View<'_>, status: &mut Status) {
        let began = look.began;
        match look.found() {
            Found::Same => self.compared = Some(began),
            Found::Other => self.look_at_all(view, status),
            // the next one in its time
            Found::Nothing => self.compared = Some((Instant::now(), None)),
        }
    }

    fn look_at_all(&mut self, view: &View<'_>, status: &mut Status) {
        if let Err(error) = self.pass(view, Scope::All, status) {
            status.fail(&*error);
        }
    }

    /// How many transactions this network namespace has seen; `None` where the kernel does not tell.
    fn generation(&mut self) -> Option<u32> {
        let (conn, _) = self.link.as_mut()?;
        conn.generation().ok()
    }

    fn pass(&mut self, view: &View<'_>, scope: Scope<'_>, status: &mut Status) -> anyhow::Result<()> {
        if matches!(scope, Scope::Changed(changes) if changes.is_empty()) {
            return Ok(());
        }
        let bridged = [self.settle(view, true, status), self.settle(view, false, status)];
        let (conn, watch) = match self.link.take() {
            Some(link) => link,
            None => (NftConn::open()?, TableWatch::open(TABLE)?),
        };
        let (conn, watch) = self.link.insert((conn, watch));
        self.disturbed = false;
        for (table, bridged) in self.tables.iter_mut().zip(bridged) {
            let mut tools = Tools {
                nft: &self.nft,
                conn: &mut *conn,
                watch,
                disturbed: false,
                bridged,
            };
            let result = match scope {
                Scope::All | Scope::Audit => table.verify(&mut tools, view, status),
                Scope::Changed(changes) => table.change(&mut tools, view, changes, status),
            };
            self.disturbed |= tools.disturbed;
            result?;
        }
        if !matches!(scope, Scope::Changed(_)) {
            self.compared = Some((Instant::now(), self.generation()));
            self.look = None;
        }
        Ok(())
    }

    /// Kernel settings of a family that is in use. Answers whether bridged frames pass by the packet filter.
    fn settle(&mut self, view: &View<'_>, ipv4: bool, status: &mut Status) -> bool {
        if !view.frontends.cidrs.iter().any(|c| c.is_ipv4() == ipv4) {
            return false;
        }
        let bridged = settings::set(ipv4, self.notes_file.as_deref(), &mut status.failed);
        let text = "the kernel does not filter bridged packets, so a pod that another pod of this node reaches through a Service \
                    sees the node's address instead of the pod's: load it with `modprobe br_netfilter`";
        if bridged && self.bridge_said.is_news(text) {
            tracing::warn!("{text}");
        }
        bridged
    }

    fn take_notes(&mut self, view: &View<'_>, scope: Scope<'_>) {
        let frontends = &view.frontends.by_key;
        let text = |key: &FrontendKey| {
            let frontend = frontends.get(key)?;
            let text = unfit_scheduler(&frontend.scheduler)?;
            Some((*key, (frontend.service.clone(), text)))
        };
        match scope {
            Scope::All | Scope::Audit => self.notes = frontends.keys().filter_map(text).collect(),
            Scope::Changed(changes) => {
                self.notes.retain(|key, _| !changes.keys.contains(key));
                self.notes.extend(changes.keys.iter().filter_map(text));
            }
        }
    }
}
