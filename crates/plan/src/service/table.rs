//! All frontends, kept up to date Service by Service: the work of a change does not grow with the number of Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use flannel_model::{ServiceKey, ServiceName, ServiceRecord};

use super::build::{Built, Claim, Surroundings, build};
use super::facts::{EndpointFacts, ServiceFacts};
use super::frontend::{Frontend, FrontendKey, FrontendKind, Frontends, ServiceNote};
use super::node::ServiceNode;
use super::ranges::sound_cidrs;

/// What a refresh changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrontendChanges {
    /// Frontends that are new, different or gone.
    pub keys: BTreeSet<FrontendKey>,
    /// Addresses of which it changed whether they have an external frontend.
    pub external_ips: BTreeSet<IpAddr>,
    /// Addresses of which it changed whether they are endpoints on this node.
    pub local_endpoints: BTreeSet<IpAddr>,
    /// Whether service CIDRs, node addresses or the drain changed: what holds for all.
    pub general: bool,
    /// Whether a health check changed.
    pub health_checks: bool,
}

impl FrontendChanges {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes the changes of a later refresh in.
    pub fn merge(&mut self, later: Self) {
        self.keys.extend(later.keys);
        self.external_ips.extend(later.external_ips);
        self.local_endpoints.extend(later.local_endpoints);
        self.general |= later.general;
        self.health_checks |= later.health_checks;
    }
}

/// Facts in, frontends out.
#[derive(Debug, Default)]
pub struct ServiceTable {
    facts: ServiceFacts,
    /// Services whose facts changed since the last refresh.
    touched: BTreeSet<ServiceName>,
    /// Node or config changed since then.
    all_touched: bool,
    built: BTreeMap<ServiceName, Built>,
    /// Who claims what, the oldest first. Nearly always one.
    claims: BTreeMap<Claim, Vec<(i64, ServiceName)>>,
    contested: BTreeSet<Claim>,
    general_notes: Vec<ServiceNote>,
    noted: BTreeSet<ServiceName>,
    frontends: Frontends,
}

/// The frontends that follow from `facts`, with what is left out.
pub fn frontends(facts: ServiceFacts) -> (Frontends, Vec<ServiceNote>) {
    let mut table = ServiceTable::new(facts);
    table.refresh();
    let notes = table.notes();
    (table.frontends, notes)
}

impl ServiceTable {
    /// With these facts; nothing is built before the first [`Self::refresh`].
    pub fn new(facts: ServiceFacts) -> Self {
        Self {
            facts,
            all_touched: true,
            ..Self::default()
        }
    }

    /// What is known.
    pub fn facts(&self) -> &ServiceFacts {
        &self.facts
    }

    /// What a node should do, as of the last refresh.
    pub fn frontends(&self) -> &Frontends {
        &self.frontends
    }

    /// Another node, or the same with other addresses or neighbours.
    pub fn set_node(&mut self, node: ServiceNode) {
        if self.facts.node != node {
            self.facts.node = node;
            self.all_touched = true;
        }
    }

    /// Replaces everything but the node.
    pub fn set_facts(&mut self, facts: ServiceFacts) {
        let node = std::mem::take(&mut self.facts.node);
        self.facts = ServiceFacts { node, ..facts };
        self.all_touched = true;
    }

    /// A record came or changed (`Some`, with its age as in [`super::SpecFact`]), or went (`None`).
    pub fn set(&mut self, key: ServiceKey, record: Option<(ServiceRecord, i64)>) {
        match key.service() {
            None => self.all_touched = true,
            Some(service) => drop(self.touched.insert(service.clone())),
        }
        match record {
            Some((record, created)) => self.facts.add(key, record, created),
            None => self.facts.remove(&key),
        }
    }

    /// Builds anew what changed since the last refresh.
    pub fn refresh(&mut self) -> FrontendChanges {
        let mut changes = FrontendChanges::default();
        let touched = std::mem::take(&mut self.touched);
        let touched = if std::mem::take(&mut self.all_touched) {
            self.refresh_general(&mut changes);
            let known = self.facts.specs.keys().chain(self.facts.endpoints.keys());
            let known = known.chain(self.built.keys()).cloned();
            known.chain(touched).collect()
        } else {
            touched
        };
        let mut claims: BTreeMap<Claim, Vec<FrontendKey>> = BTreeMap::new();
        for name in touched {
            self.rebuild(name, &mut claims);
        }
        for (claim, keys) in claims {
            self.settle(claim, keys, &mut changes);
        }
        changes
    }

    /// Everything that is left out, and why.
    pub fn notes(&self) -> Vec<ServiceNote> {
        let mut notes = self.general_notes.clone();
        for name in &self.noted {
            let texts: &[String] = self.built.get(name).map_or(&[], |b| &b.notes);
            notes.extend(texts.iter().map(|text| note(name, text.clone())));
            if !self.facts.specs.contains_key(name) {
                let text = "it has endpoints, but there is no spec of that name";
                notes.push(note(name, text.to_owned()));
            }
        }
        for claim in &self.contested {
            let mut claimants = self.claims.get(claim).into_iter().flatten();
            let Some((_, owner)) = claimants.next() else {
                continue;
            };
            let subject = claim.subject();
            notes.extend(claimants.map(|(_, loser)| {
                note(
                    loser,
                    format!("{subject} is refused: it belongs to the older Service {owner}"),
                )
            }));
        }
        notes.sort();
        notes.dedup();
        notes
    }

    fn refresh_general(&mut self, changes: &mut FrontendChanges) {
        self.general_notes.clear();
        let (node, config) = (&self.facts.node, &self.facts.config);
        let cidrs = sound_cidrs(config, node, &mut self.general_notes);
        let addresses = node.node_port_addresses(&config.node_port_addresses);
        let drain = config.drain_timeout;
        let now = &mut self.frontends;
        changes.general = now.cidrs != cidrs || now.node_addresses != addresses || now.drain_timeout != drain;
        (now.cidrs, now.node_addresses, now.drain_timeout) = (cidrs, addresses, drain);
    }

    /// Builds one Service. What it claimed before or claims now goes into `claims`, with the frontends that stood there.
    fn rebuild(&mut self, name: ServiceName, claims: &mut BTreeMap<Claim, Vec<FrontendKey>>) {
        let old = self.built.remove(&name).unwrap_or_default();
        for (claim, key, _) in &old.frontends {
            claims.entry(*claim).or_default().push(*key);
        }
        for claim in old.claims() {
            claims.entry(claim).or_default();
            self.withdraw(claim, &name);
        }
        let endpoints = self.facts.endpoints.get(&name);
        let Some(fact) = self.facts.specs.get(&name) else {
            self.remember_note(endpoints.is_some(), name);
            return;
        };
        const NONE: &EndpointFacts = &EndpointFacts {
            slices: Vec::new(),
            single: BTreeMap::new(),
        };
        let around = Surroundings {
            node: &self.facts.node,
            config: &self.facts.config,
            cidrs: &self.frontends.cidrs,
        };
        let built = build(&around, &name, &fact.spec, endpoints.unwrap_or(NONE));
        let created = fact.created;
        for claim in built.claims() {
            self.stake(claim, created, &name, claims);
        }
        self.remember_note(!built.notes.is_empty(), name.clone());
        self.built.insert(name, built);
    }

    fn remember_note(&mut self, any: bool, name: ServiceName) {
        if any {
            self.noted.insert(name);
        } else {
            self.noted.remove(&name);
        }
    }

    fn withdraw(&mut self, claim: Claim, name: &ServiceName) {
        if let Some(claimants) = self.claims.get_mut(&claim) {
            claimants.retain(|(_, claimant)| claimant != name);
            if claimants.is_empty() {
                self.claims.remove(&claim);
            }
        }
    }

    /// Enters a claim. What the present owner has there may have to give way.
    fn stake(
        &mut self,
        claim: Claim,
        created: i64,
        name: &ServiceName,
        claims: &mut BTreeMap<Claim, Vec<FrontendKey>>,
    ) {
        let keys = claims.entry(claim).or_default();
        let claimants = self.claims.entry(claim).or_default();
        if let Some((_, owner)) = claimants.first()
            && let Some(built) = self.built.get(owner)
        {
            keys.extend(keys_of(built, claim));
        }
        let claimant = (created, name.clone());
        if let Err(place) = claimants.binary_search(&claimant) {
            claimants.reserve_exact(1);
            claimants.insert(place, claimant);
        }
    }

    /// Puts what the owner of a claim has there in the place of `before`.
    fn settle(&mut self, claim: Claim, before: Vec<FrontendKey>, changes: &mut FrontendChanges) {
        let claimants = self.claims.get(&claim);
        if claimants.is_some_and(|c| c.len() > 1) {
            self.contested.insert(claim);
        } else {
            self.contested.remove(&claim);
        }
        let owner = claimants.and_then(|c| c.first());
        let built = owner.and_then(|(_, name)| self.built.get(name));
        if let Claim::HealthCheck(port) = claim {
            let check = built
                .and_then(|b| b.health.as_ref())
                .map(|(_, check)| check.clone());
            let checks = &mut self.frontends.health_checks;
            let old = match check.clone() {
                Some(check) => checks.insert(port, check),
                None => checks.remove(&port),
            };
            changes.health_checks |= old != check;
            return;
        }
        let mut wanted: BTreeMap<FrontendKey, Option<Arc<Frontend>>> =
            before.into_iter().map(|key| (key, None)).collect();
        let present = built.into_iter().flat_map(|b| &b.frontends);
        let present = present.filter(|(c, _, _)| *c == claim);
        wanted.extend(present.map(|(_, key, frontend)| (*key, Some(frontend.clone()))));
        for (key, frontend) in wanted {
            self.frontends.replace(key, frontend, changes);
        }
    }
}

fn keys_of(built: &Built, claim: Claim) -> impl Iterator<Item = FrontendKey> {
    let of_claim = built.frontends.iter().filter(move |(c, _, _)| *c == claim);
    of_claim.map(|(_, key, _)| *key)
}

fn note(name: &ServiceName, text: String) -> ServiceNote {
    ServiceNote {
        subject: name.to_string(),
        text,
    }
}

impl Frontends {
    /// Puts a frontend in its place or takes it away, and keeps count of what follows from it.
    fn replace(&mut self, key: FrontendKey, new: Option<Arc<Frontend>>, changes: &mut FrontendChanges) {
        if self.by_key.get(&key) == new.as_ref() {
            return;
        }
        let old = match &new {
            Some(frontend) => self.by_key.insert(key, frontend.clone()),
            None => self.by_key.remove(&key),
        };
        changes.keys.insert(key);
        let (gone, come) = (follows(key, old.as_deref()), follows(key, new.as_deref()));
        // first what comes, so that what stays is never without a count
        if let Some(ip) = come.external {
            track(&mut changes.external_ips, ip, !self.external_ips.contains(&ip));
            self.external_ips.add(ip);
        }
        for ip in come.local {
            track(
                &mut changes.local_endpoints,
                ip,
                !self.local_endpoints.contains(&ip),
            );
            self.local_endpoints.add(ip);
        }
        if let Some(ip) = gone.external {
            self.external_ips.remove(&ip);
            track(&mut changes.external_ips, ip, !self.external_ips.contains(&ip));
        }
        for ip in gone.local {
            self.local_endpoints.remove(&ip);
            track(
                &mut changes.local_endpoints,
                ip,
                !self.local_endpoints.contains(&ip),
            );
        }
    }
}

/// Notes a member whose presence flipped; twice flipped is not changed.
fn track(set: &mut BTreeSet<IpAddr>, ip: IpAddr, flipped: bool) {
    if flipped && !set.insert(ip) {
        set.remove(&ip);
    }
}

#[derive(Default)]
struct Following {
    external: Option<IpAddr>,
    local: BTreeSet<IpAddr>,
}

/// The addresses that a frontend brings with it.
fn follows(key: FrontendKey, frontend: Option<&Frontend>) -> Following {
    let Some(frontend) = frontend else {
        return Following::default();
    };
    let local = frontend.inside.iter().chain(&*frontend.outside);
    Following {
        external: match key {
            FrontendKey::Address(at) if frontend.kind != FrontendKind::ClusterIp => Some(at.address),
            FrontendKey::Address(_) | FrontendKey::NodePort(_) => None,
        },
        local: local.filter(|b| b.local).map(|b| b.address.ip()).collect(),
    }
}
