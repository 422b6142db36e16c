//! Keeps the filter of encapsulated packets as the facts ask for: who may send what through the tunnel.

mod keeper;
mod tally;

use std::sync::Arc;
use std::time::Duration;

use flannel_nft::TableName;
use flannel_telemetry::Metrics;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::overlay::Facts;
use crate::said::{Said, chain};
use crate::table_changes::table_changes;
use keeper::{Keeper, Look};
use tally::DropLog;

/// The table of each family.
pub const TABLE: &str = TableName::ENCAP.name;
/// Everything is compared at least this often, whatever the notifications said.
const AUDIT: Duration = Duration::from_secs(60);
/// What failed is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// Shows at `/metrics` what the filter dropped.
pub fn publish(metrics: &Metrics) {
    metrics.ask(|| tally::family().into_iter().collect());
}

/// Starts the task, which ends when the facts' sender is gone. Without `enabled` it takes away what an earlier run left. Told is what
/// keeps packets from being filtered; a node without the filter does everything else.
pub fn start(enabled: bool, facts: watch::Receiver<Option<Arc<Facts>>>) -> watch::Receiver<Option<String>> {
    let (problems, receiver) = watch::channel(None);
    tokio::spawn(run(enabled, facts, problems));
    receiver
}

async fn run(
    enabled: bool,
    mut facts: watch::Receiver<Option<Arc<Facts>>>,
    problems: watch::Sender<Option<String>>,
) {
    let mut keeper = Keeper::new(enabled);
    let mut changes = table_changes(&[TABLE], Some(keeper.port()));
    let mut due = Instant::now() + AUDIT;
    let mut said = Said::default();
    let mut drops = DropLog::default();
    loop {
        let look = tokio::select! {
            changed = facts.changed() => match changed {
                Ok(()) => Look::AtNews,
                Err(_) => return,
            },
            word = changes.recv(), if !changes.is_closed() => match word {
                Some(()) => Look::AtEverything,
                None => continue,
            },
            () = sleep_until(due) => Look::AtEverything,
        };
        due = Instant::now() + AUDIT;
        let Some(now) = facts.borrow_and_update().clone() else {
            continue;
        };
        let pass = tokio::task::spawn_blocking(move || {
            let result = keeper.pass(&now, look);
            (result, keeper.dropped(), keeper)
        });
        let (result, dropped);
        (result, dropped, keeper) = match pass.await {
            Ok((result, dropped, keeper)) => (result.map_err(|error| chain(&error)), dropped, keeper),
            Err(error) => (Err(error.to_string()), None, Keeper::new(enabled)),
        };
        if let Some(dropped) = dropped {
            drops.take(dropped, Instant::now());
        }
        let problem = result.err();
        match &problem {
            None => drop(said.clear()),
            Some(problem) => {
                due = Instant::now() + RETRY;
                if said.is_news(problem) {
                    tracing::error!("encapsulated packets are not filtered as they should be: {problem}");
                }
            }
        }
        problems.send_if_modified(|old| std::mem::replace(old, problem.clone()) != problem);
    }
}
