//! Keeps the masquerade and forward rules as the facts ask for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flannel_model::{IpFamily, IpSubnet};
use flannel_netlink::nftables::has_table;
use flannel_nft::{MasqueradeTable, Nft, NftError, Table, TableName, masquerade_table};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::flags::Options;
use crate::old_chains;
use crate::overlay::Facts;
use crate::said::{Said, chain};
use crate::table_changes::table_changes;

/// The table of each family.
const TABLES: [(IpFamily, TableName); 2] = [
    (IpFamily::V4, TableName::MASQUERADE),
    (IpFamily::V6, TableName::MASQUERADE_V6),
];

/// What the operator wants of the packet filter.
#[derive(Debug, Clone)]
pub struct Wanted {
    masquerade: bool,
    exempt: Vec<IpSubnet>,
    fully_random: bool,
    forward: bool,
    resync: Duration,
}

impl From<&Options> for Wanted {
    fn from(options: &Options) -> Self {
        Self {
            masquerade: options.ip_masq,
            exempt: options.masq_exempt.clone(),
            fully_random: options.fully_random,
            forward: options.forward_rules,
            resync: options.nft_resync,
        }
    }
}

/// How the rules stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterState {
    /// Nothing was tried yet.
    Pending,
    /// They are as wanted.
    Done,
    /// The last try failed.
    Failed(String),
}

/// Starts the task. It ends when the facts' sender is gone.
pub fn start(wanted: Wanted, facts: watch::Receiver<Option<Arc<Facts>>>) -> watch::Receiver<FilterState> {
    let (states, receiver) = watch::channel(FilterState::Pending);
    tokio::spawn(run(wanted, facts, states));
    receiver
}

async fn run(
    wanted: Wanted,
    mut facts: watch::Receiver<Option<Arc<Facts>>>,
    states: watch::Sender<FilterState>,
) {
    let mut changes = table_changes(&TABLES.map(|(_, table)| table.name), None);
    let mut due = Instant::now() + wanted.resync;
    let mut said = Said::default();
    let mut tables = Tables::new(wanted.clone());
    loop {
        let news = tokio::select! {
            changed = facts.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
            word = changes.recv(), if !changes.is_closed() => match word {
                Some(()) => false,
                None => continue,
            },
            () = sleep_until(due) => false,
        };
        let Some(now) = facts.borrow_and_update().clone() else {
            continue;
        };
        // Peers come and go, and the rules know none of them.
        if news && tables.are_for(&now) {
            continue;
        }
        due = Instant::now() + wanted.resync;
        let pass = tokio::task::spawn_blocking(move || {
            let result = tables.apply(&now);
            (result, tables)
        });
        let result;
        (result, tables) = match pass.await {
            Ok((result, tables)) => (result.map_err(|error| chain(&error)), tables),
            Err(error) => (Err(error.to_string()), Tables::new(wanted.clone())),
        };
        let state = match result {
            Ok(written) => {
                for table in written {
                    tracing::info!(%table, "the rules are written");
                }
                said.clear();
                FilterState::Done
            }
            Err(problem) => FilterState::Failed(problem),
        };
        if let FilterState::Failed(problem) = &state
            && said.is_news(problem)
        {
            tracing::error!(
                "masquerade rules: {problem}; trying again every {} s",
                wanted.resync.as_secs()
            );
        }
        states.send_if_modified(|old| std::mem::replace(old, state.clone()) != state);
    }
}

/// What stands in a table: what it was made from, and how nft lists it.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    hash: String,
    listing: Option<String>,
}

/// The tables of both families, and what is known of them.
#[derive(Debug)]
struct Tables {
    wanted: Wanted,
    nft: Nft,
    standing: BTreeMap<&'static str, Standing>,
    /// What an earlier run left in families without a table has been removed, and flannel's iptables chains.
    leftovers_gone: bool,
    /// The network and the own subnet of each family for which all this was brought about.
    made_for: Option<[Option<(IpSubnet, IpSubnet)>; 2]>,
}

/// All that the tables take from the facts.
fn subnets(facts: &Facts) -> [Option<(IpSubnet, IpSubnet)>; 2] {
    TABLES.map(|(family, _)| {
        let overlay = facts.overlay(family);
        overlay.map(|overlay| (overlay.network, overlay.own_subnet))
    })
}

impl Tables {
    fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            nft: Nft::default(),
            standing: BTreeMap::new(),
            leftovers_gone: false,
            made_for: None,
        }
    }

    /// Whether the last pass succeeded and was for the same as these facts ask for.
    fn are_for(&self, facts: &Facts) -> bool {
        self.made_for == Some(subnets(facts))
    }

    /// With `--ip-masq` the table of each family stands; without it, or without the family, what an earlier run left is removed
    /// once, at the start. Answers the tables that were written.
    fn apply(&mut self, facts: &Facts) -> Result<Vec<TableName>, NftError> {
        let mut written = Vec::new();
        self.made_for = None;
        for (family, name) in TABLES {
            match facts.overlay(family).filter(|_| self.wanted.masquerade) {
                Some(overlay) => {
                    let table = masquerade_table(&MasqueradeTable {
                        network: overlay.network,
                        subnet: overlay.own_subnet,
                        masquerade: true,
                        exempt: self.wanted.exempt.clone(),
                        fully_random: self.wanted.fully_random,
                        accept_forward: self.wanted.forward,
                    });
                    written.extend(self.settle(&table)?.then_some(name));
                }
                None if !self.leftovers_gone => match self.nft.remove(name) {
                    // A host without nft has no table of ours.
                    Err(NftError::Missing { .. }) | Ok(_) => {}
                    Err(error) => return Err(error),
                },
                None => {}
            }
        }
        if !self.leftovers_gone {
            old_chains::remove(facts, self.wanted.forward);
        }
        self.leftovers_gone = true;
        self.made_for = Some(subnets(facts));
        Ok(written)
    }

    /// Writes the table unless it stands as it was written last, to the last rule: the hash in its comment does not tell of a rule
    /// that somebody took out. What an earlier run wrote is replaced, in one transaction, for the same reason; translations that are
    /// under way do not depend on the table.
    fn settle(&mut self, table: &Table) -> Result<bool, NftError> {
        let name = table.name();
        let known = self.standing.get(name.name);
        // One that is gone is written again without the time that a start of nft takes to say so.
        let now = match known.is_some() && is_gone(name) {
            true => None,
            false => self.nft.listing(name)?,
        };
        let stands =
            known.is_some_and(|known| known.hash == table.hash() && known.listing == now && now.is_some());
        if stands {
            return Ok(false);
        }
        self.nft.replace(table)?;
        let standing = Standing {
            hash: table.hash(),
            listing: self.nft.listing(name)?,
        };
        self.standing.insert(name.name, standing);
        Ok(true)
    }
}

/// Whether the kernel says that there is no such table.
fn is_gone(name: TableName) -> bool {
    let family = TABLES.iter().find(|(_, table)| *table == name);
    family.is_some_and(|(family, _)| has_table((*family).into(), name.name).is_ok_and(|there| !there))
}
