//! The table of one family.

use std::collections::{BTreeMap, BTreeSet};

use flannel_model::IpSubnet;
use flannel_netlink::NetlinkError;
use flannel_netlink::nftables::{
    Draw, DrawBy, Family, NftConn, TableWatch, draw_chain, has_table, remember_chain,
};
use flannel_nft::{Applied, Nft, NftError, ServiceNat};
use flannel_plan::nft::{
    self, AFFINITY, KernelElements, NftElement, NftSet, OUTSIDE_SLOTS, PickChain, Place, Spread, TABLE,
    Translated, elements, general_elements, translate,
};
use flannel_plan::{Frontend, FrontendChanges, FrontendKey};

use super::super::programmer::{Status, View};
use super::batch::{Batch, convert_back};
use super::compare::Contents;
use super::stale::Stale;

/// The Service that everything else in the cluster waits for.
const FIRST: (&str, &str) = ("default", "kubernetes");

/// What a pass works with.
pub(super) struct Tools<'a> {
    pub(super) nft: &'a Nft,
    pub(super) conn: &'a mut NftConn,
    pub(super) watch: &'a TableWatch,
    /// Somebody else changed the table during the pass.
    pub(super) disturbed: bool,
    /// Frames between pods of this node pass by the packet filter.
    pub(super) bridged: bool,
}

impl Tools<'_> {
    /// Runs commands through `nft`, whose changes are not somebody else's.
    fn script(&mut self, what: &str, commands: &str) -> Result<(), NftError> {
        self.look();
        self.nft.run_script(what, commands)?;
        self.watch.touched(self.conn.port());
        Ok(())
    }

    fn commit(&mut self, batch: &mut Batch) -> Result<(), NetlinkError> {
        batch.commit(self.conn)?;
        self.look();
        Ok(())
    }

    fn look(&mut self) {
        self.disturbed |= self.watch.touched(self.conn.port());
    }
}

/// The table of one family, and what is known to stand in it.
#[derive(Debug)]
pub(super) struct FamilyTable {
    ipv4: bool,
    /// It was written or adopted by this process.
    stands: bool,
    /// What its rules were made from.
    made_from: Option<ServiceNat>,
    /// Its rules as the kernel showed them when they were written.
    rules: BTreeMap<String, Vec<Vec<u8>>>,
    known: BTreeMap<FrontendKey, Translated>,
    general: BTreeSet<NftElement>,
    chains: BTreeSet<PickChain>,
    /// Seconds of the chains that remember.
    remembering: BTreeSet<u32>,
}

impl FamilyTable {
    pub(super) fn new(ipv4: bool) -> Self {
        Self {
            ipv4,
            stands: false,
            made_from: None,
            rules: BTreeMap::new(),
            known: BTreeMap::new(),
            general: BTreeSet::new(),
            chains: BTreeSet::new(),
            remembering: BTreeSet::new(),
        }
    }

    /// The frontends that stand in it.
    pub(super) fn frontend_keys(&self) -> BTreeSet<FrontendKey> {
        self.known.keys().copied().collect()
    }

    /// Whether it is that of IPv4.
    pub(super) fn is_ipv4(&self) -> bool {
        self.ipv4
    }

    pub(super) fn family(&self) -> Family {
        if self.ipv4 { Family::Ipv4 } else { Family::Ipv6 }
    }

    fn frontends<'a>(
        &self,
        view: &'a View<'_>,
    ) -> impl Iterator<Item = (&'a FrontendKey, &'a Frontend)> + use<'a> {
        let ipv4 = self.ipv4;
        let all = view
            .frontends
            .by_key
            .iter()
            .map(|(key, frontend)| (key, &**frontend));
        all.filter(move |(key, _)| key.is_ipv4() == ipv4)
    }

    /// Whether a node of this view needs the table.
    fn is_wanted(&self, view: &View<'_>) -> bool {
        view.frontends.cidrs.iter().any(|c| c.is_ipv4() == self.ipv4) || self.frontends(view).next().is_some()
    }

    fn nat(&self, view: &View<'_>, bridged: bool) -> ServiceNat {
        let pods = view.node.pods.iter().find(|p| p.is_ipv4() == self.ipv4);
        ServiceNat {
            family: if self.ipv4 {
                flannel_nft::Family::Ip
            } else {
                flannel_nft::Family::Ip6
            },
            fully_random: true,
            bridged: pods.filter(|_| bridged).copied(),
        }
    }

    /// What should be there; `None` where nothing was written.
    pub(super) fn contents(&self) -> Option<Contents> {
        self.stands.then(|| Contents {
            family: self.family(),
            rules: self.rules.clone(),
            known: self.known.clone(),
            general: self.general.clone(),
        })
    }

    fn general_of(&self, view: &View<'_>) -> BTreeSet<NftElement> {
        let pods: &[IpSubnet] = &view.node.networks;
        general_elements(view.frontends, pods, self.ipv4)
    }

    /// Compares everything with the kernel, and corrects it.
    pub(super) fn verify(
        &mut self,
        tools: &mut Tools<'_>,
        view: &View<'_>,
        status: &mut Status,
    ) -> anyhow::Result<()> {
        if !self.is_wanted(view) {
            let name = self.nat(view, false).name();
            // asking the kernel spares a run of nft where there is nothing
            if has_table(self.family(), TABLE)? && tools.nft.remove(name)? == Applied::Written {
                status.removed += 1;
                tools.watch.touched(tools.conn.port());
            }
            *self = Self::new(self.ipv4);
            return Ok(());
        }
        let first = !self.stands;
        self.verify_rules(tools, view, status)?;
        let mut kernel = list(tools.conn, self.family())?;
        // Whoever changed the table meanwhile makes another pass look at it.
        tools.look();
        let mut known = BTreeMap::new();
        for (key, frontend) in self.frontends(view) {
            let before = kernel.frontend(key);
            known.insert(*key, translate(frontend, before.as_ref()));
        }
        self.provide_chains(tools, known.iter())?;
        let mut batch = Batch::new(self.family());
        let general = self.general_of(view);
        let mut objects = general.len();
        batch.push(kernel.settle(general.iter().cloned()), status);
        for (key, translated) in in_order(&known, view) {
            let wanted = elements(key, translated);
            objects += wanted.len();
            if batch.push(kernel.settle(wanted), status) {
                tools.commit(&mut batch)?;
            }
        }
        batch.push((kernel.rest(), Vec::new()), status);
        tools.commit(&mut batch)?;
        status.unchanged += objects.saturating_sub(status.added);
        (self.known, self.general, self.stands) = (known, general, true);
        self.prune(tools, view)?;
        if first || status.added + status.removed > 0 {
            Stale::everything(self.ipv4).clear(tools.conn, &self.known, view)?;
        }
        Ok(())
    }

    /// Carries out what changed since the last pass.
    pub(super) fn change(
        &mut self,
        tools: &mut Tools<'_>,
        view: &View<'_>,
        changes: &FrontendChanges,
        status: &mut Status,
    ) -> anyhow::Result<()> {
        let keys: Vec<&FrontendKey> = changes.keys.iter().filter(|k| k.is_ipv4() == self.ipv4).collect();
        let all_general = changes.general || !changes.local_endpoints.is_empty();
        if keys.is_empty() && !all_general {
            return Ok(());
        }
        if !self.stands || (changes.general && !self.is_wanted(view)) {
            return self.verify(tools, view, status);
        }
        let after: BTreeMap<FrontendKey, Translated> = keys
            .iter()
            .filter_map(|key| {
                let frontend = view.frontends.by_key.get(key)?;
                Some((**key, translate(frontend, self.known.get(key))))
            })
            .collect();
        self.provide_chains(tools, after.iter())?;
        let mut batch = Batch::new(self.family());
        if all_general {
            let general = self.general_of(view);
            let gone = self.general.difference(&general).cloned().collect();
            let new = general.difference(&self.general).cloned().collect();
            batch.push((gone, new), status);
            self.general = general;
        }
        let mut stale = Stale::nothing(self.ipv4);
        for key in keys {
            let (before, after) = (self.known.get(key), after.get(key));
            stale.note(key, before, after);
            if batch.push(nft::changes(key, before, after), status) {
                tools.commit(&mut batch)?;
            }
        }
        tools.commit(&mut batch)?;
        for key in changes.keys.iter().filter(|k| !after.contains_key(k)) {
            self.known.remove(key);
        }
        self.known.extend(after);
        stale.clear(tools.conn, &self.known, view)?;
        Ok(())
    }

    /// Sees to it that table and rules are what they should be. What a former process wrote is written again once, because
    /// nothing tells whether somebody changed it since; elements stay, and nothing is without rules for a moment.
    fn verify_rules(
        &mut self,
        tools: &mut Tools<'_>,
        view: &View<'_>,
        status: &mut Status,
    ) -> anyhow::Result<()> {
        let nat = self.nat(view, tools.bridged);
        let table = nat.table();
        let same_table = tools.nft.current_hash(nat.name())? == Some(table.hash());
        if same_table && self.made_from.as_ref() == Some(&nat) && self.is_whole(tools.conn)? {
            return Ok(());
        }
        let again = self.stands;
        let script = nat.script();
        let script = if same_table {
            script
        } else {
            table.removal() + &script
        };
        tools.script(&format!("write table {}", nat.name()), &script)?;
        if again || !same_table {
            status.added += 1;
        }
        self.made_from = Some(nat);
        // those that are needed are written again, too
        self.chains.clear();
        self.remembering.clear();
        self.rules = tools.conn.rules(self.family(), TABLE)?;
        Ok(())
    }

    fn is_whole(&self, conn: &mut NftConn) -> Result<bool, NetlinkError> {
        let sets: BTreeSet<String> = conn.sets(self.family(), TABLE)?.into_iter().collect();
        let has = |name: &str| sets.contains(name);
        let whole = NftSet::ALL.iter().all(|set| has(set.name())) && has(AFFINITY);
        Ok(whole && conn.rules(self.family(), TABLE)? == self.rules)
    }

    /// Makes the chains that these frontends name and that are not there yet.
    fn provide_chains<'a>(
        &mut self,
        tools: &mut Tools<'_>,
        frontends: impl Iterator<Item = (&'a FrontendKey, &'a Translated)>,
    ) -> anyhow::Result<()> {
        let (mut chains, mut remember) = (BTreeSet::new(), BTreeSet::new());
        for (key, translated) in frontends {
            chains.extend(translated.chains(key).filter(|c| !self.chains.contains(c)));
            remember.extend(translated.affinity().filter(|s| !self.remembering.contains(s)));
        }
        if chains.is_empty() && remember.is_empty() {
            return Ok(());
        }
        let family = self.family();
        let mut messages = Vec::new();
        for chain in &chains {
            messages.extend(draw_chain(family, TABLE, &chain.name(), &draw(chain)));
        }
        for seconds in &remember {
            let name = nft::remember_chain(*seconds);
            messages.extend(remember_chain(family, TABLE, &name, AFFINITY, *seconds));
        }
        let what = format!("write {} chains of table {TABLE}", chains.len() + remember.len());
        tools.conn.commit(family, &messages, &what)?;
        self.chains.append(&mut chains);
        self.remembering.append(&mut remember);
        self.rules = tools.conn.rules(family, TABLE)?;
        Ok(())
    }

    /// Removes chains that no frontend names: those of numbers of endpoints that no longer occur.
    fn prune(&mut self, tools: &mut Tools<'_>, view: &View<'_>) -> anyhow::Result<()> {
        let needed = || {
            self.known
                .iter()
                .flat_map(|(key, translated)| translated.chains(key))
        };
        self.chains = needed().filter(|c| self.chains.contains(c)).collect();
        self.remembering = self.known.values().filter_map(Translated::affinity).collect();
        let nat = self.nat(view, tools.bridged);
        let remember = self
            .remembering
            .iter()
            .map(|seconds| nft::remember_chain(*seconds));
        let mut kept: BTreeSet<String> = nat.chain_names().into_iter().chain(remember).collect();
        kept.extend(needed().map(|c| c.name()));
        let superfluous: Vec<String> = self
            .rules
            .keys()
            .filter(|name| !kept.contains(*name))
            .cloned()
            .collect();
        if superfluous.is_empty() {
            return Ok(());
        }
        let names = superfluous.iter().map(String::as_str);
        tools.script(
            &format!("remove chains of table {}", nat.name()),
            &nat.delete_chains(names),
        )?;
        self.made_from = Some(nat);
        self.rules = tools.conn.rules(self.family(), TABLE)?;
        Ok(())
    }
}

/// What stands in the sets of the table, as long as nobody changes them meanwhile.
pub(super) fn list(conn: &mut NftConn, family: Family) -> Result<KernelElements, NetlinkError> {
    let mut kernel = KernelElements::default();
    for set in NftSet::ALL {
        let listed = conn.elements(family, TABLE, set.name())?;
        for one in listed.unwrap_or_default() {
            kernel.add(convert_back(set, one.element));
        }
    }
    Ok(kernel)
}

/// What a chain's rules are.
fn draw(chain: &PickChain) -> Draw<'static> {
    let (map, by_address) = match chain.place {
        Place::Address => (NftSet::Backends.name(), true),
        Place::NodePort => (NftSet::NodePortBackends.name(), false),
    };
    Draw {
        map,
        by_address,
        by: match chain.spread {
            Spread::Random => DrawBy::Random,
            Spread::Source => DrawBy::Source,
            Spread::SourcePort => DrawBy::SourcePort,
            Spread::Destination => DrawBy::Destination,
        },
        slots: chain.slots,
        offset: if chain.outside { OUTSIDE_SLOTS } else { 0 },
        remembered: chain.sticky.then_some(AFFINITY),
    }
}

/// The API server's Service before all others.
fn in_order<'a>(
    known: &'a BTreeMap<FrontendKey, Translated>,
    view: &'a View<'_>,
) -> impl Iterator<Item = (&'a FrontendKey, &'a Translated)> {
    let is_first = |key: &FrontendKey| {
        let service = view.frontends.by_key.get(key).map(|f| &f.service);
        service.is_some_and(|s| (s.namespace(), s.name()) == FIRST)
    };
    let first = known.iter().filter(move |(key, _)| is_first(key));
    first.chain(known.iter().filter(move |(key, _)| !is_first(key)))
}
