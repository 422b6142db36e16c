//! Keeps the masquerade and forward rules as the facts ask for.

use std::sync::Arc;
use std::time::Duration;

use flannel_model::IpFamily;
use flannel_nft::{Applied, MasqueradeTable, Nft, NftError, TableName, masquerade_table};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::flags::Options;
use crate::overlay::Facts;
use crate::said::{Said, chain};

/// What the operator wants of the packet filter.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    masquerade: bool,
    fully_random: bool,
    forward: bool,
    resync: Duration,
}

impl From<&Options> for Wanted {
    fn from(options: &Options) -> Self {
        Self {
            masquerade: options.ip_masq,
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
    let mut due = Instant::now() + wanted.resync;
    let mut said = Said::default();
    loop {
        tokio::select! {
            changed = facts.changed() => if changed.is_err() { return },
            () = sleep_until(due) => {}
        }
        due = Instant::now() + wanted.resync;
        let Some(now) = facts.borrow_and_update().clone() else {
            continue;
        };
        let first = *states.borrow() == FilterState::Pending;
        let state = match tokio::task::spawn_blocking(move || apply(wanted, &now, first)).await {
            Ok(Ok(applied)) => {
                for table in applied {
                    tracing::info!(%table, "the rules are written");
                }
                said.clear();
                FilterState::Done
            }
            Ok(Err(error)) => FilterState::Failed(chain(&error)),
            Err(error) => FilterState::Failed(error.to_string()),
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

/// With `--ip-masq` the table of each family stands; without it, or without the family, what an earlier run left is removed
/// once, at the start. Answers the tables that were written.
fn apply(wanted: Wanted, facts: &Facts, first: bool) -> Result<Vec<TableName>, NftError> {
    let nft = Nft::default();
    let mut written = Vec::new();
    for (family, name) in [
        (IpFamily::V4, TableName::MASQUERADE),
        (IpFamily::V6, TableName::MASQUERADE_V6),
    ] {
        match facts.overlay(family).filter(|_| wanted.masquerade) {
            Some(overlay) => {
                let applied = nft.apply(&masquerade_table(&MasqueradeTable {
                    network: overlay.network,
                    subnet: overlay.own_subnet,
                    masquerade: true,
                    fully_random: wanted.fully_random,
                    accept_forward: wanted.forward,
                }))?;
                written.extend((applied == Applied::Written).then_some(name));
            }
            None if first => match nft.remove(name) {
                // A host without nft has no table of ours.
                Err(NftError::Missing { .. }) | Ok(_) => {}
                Err(error) => return Err(error),
            },
            None => {}
        }
    }
    Ok(written)
}
