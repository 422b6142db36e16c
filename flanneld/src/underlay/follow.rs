//! Follows the interface of the tunnels while the node runs: the kernel tells of a change, and what it means is decided purely
//! ([`flannel_plan::follow_underlay`]).

use std::time::Duration;

use anyhow::Context;
use flannel_model::Families;
use flannel_netlink::monitor::{Change, watch_interfaces};
use flannel_plan::{Followed, Host, Underlay, follow_underlay};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::Seen;
use crate::flags::Options;
use crate::said::Said;

/// The interface is looked at this often, whatever the kernel told.
const AUDIT: Duration = Duration::from_secs(60);
/// The same while something is missing: of routes, which `--iface-can-reach` asks for, nothing is told here.
const AGAIN: Duration = Duration::from_millis(250);
/// Addresses are changed several at a time; a look waits this long for the rest.
const SETTLE: Duration = Duration::from_millis(2);
/// Changes that are taken at once.
const BURST: usize = 256;

/// Starts the task. It ends when the receiver is gone.
pub fn follow(
    options: &Options,
    families: Families<(), ()>,
    underlay: Underlay,
) -> watch::Receiver<Followed> {
    let now = Followed {
        underlay,
        missing: None,
        other: None,
    };
    let (followed, receiver) = watch::channel(now);
    let changes = match watch_interfaces() {
        Ok((driver, changes)) => {
            tokio::spawn(driver);
            changes
        }
        Err(error) => {
            let seconds = AUDIT.as_secs();
            tracing::warn!(%error, "the kernel does not tell of changed addresses; they are found every {seconds} s");
            mpsc::channel(1).1
        }
    };
    let follower = Follower {
        options: options.clone(),
        families,
        followed,
        lost_since: None,
        problems: Said::default(),
    };
    tokio::spawn(follower.run(changes));
    receiver
}

struct Follower {
    options: Options,
    families: Families<(), ()>,
    followed: watch::Sender<Followed>,
    /// Since when something is missing.
    lost_since: Option<Instant>,
    /// What keeps the kernel from being asked.
    problems: Said,
}

impl Follower {
    async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut burst = Vec::new();
        // What changed between the choice and now was not told.
        let mut due = Instant::now();
        loop {
            tokio::select! {
                _ = changes.recv_many(&mut burst, BURST), if !changes.is_closed() => {
                    if !burst.drain(..).any(|change| self.concerns(&change)) {
                        continue;
                    }
                    tokio::time::sleep(SETTLE).await;
                    while changes.try_recv().is_ok() {}
                }
                () = sleep_until(due) => {}
                () = self.followed.closed() => return,
            }
            self.look().await;
            due = Instant::now() + self.lost_since.map_or(AUDIT, |_| AGAIN);
        }
    }

    /// Devices of pods come and go all the time; none of them is the interface.
    fn concerns(&self, change: &Change) -> bool {
        if self.lost_since.is_some() {
            return true;
        }
        let now = self.followed.borrow();
        match change {
            Change::Link { ifindex, name, .. } => {
                *ifindex == now.underlay.ifindex || *name == now.underlay.name
            }
            Change::Address { ifindex, .. } => *ifindex == now.underlay.ifindex,
            Change::Overrun => true,
            Change::Route { .. } | Change::Neighbour { .. } | Change::Fdb { .. } => false,
        }
    }

    async fn look(&mut self) {
        let (options, families) = (self.options.clone(), self.families);
        let look = move || Seen::look(&options, families).context("the host's interfaces cannot be listed");
        let seen = match tokio::task::spawn_blocking(look).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(error)) => return self.cannot(&format!("{error:#}")),
            Err(error) => return self.cannot(&error.to_string()),
        };
        self.problems.clear();
        let lost_for = self.lost_since.map_or(Duration::ZERO, |since| since.elapsed());
        let host = Host {
            interfaces: &seen.interfaces,
            defaults: &seen.defaults,
            options: &seen.wanted,
        };
        let next = follow_underlay(&self.followed.borrow().underlay, &host, lost_for);
        self.lost_since = next
            .missing
            .as_ref()
            .map(|_| self.lost_since.unwrap_or_else(Instant::now));
        self.followed
            .send_if_modified(|old| std::mem::replace(old, next.clone()) != next);
    }

    fn cannot(&mut self, problem: &str) {
        if self.problems.is_news(problem) {
            tracing::warn!("{problem}; the interface of the tunnels stays as it was");
        }
    }
}
