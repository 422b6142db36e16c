//! Somebody who changes the same object again and again: we give way for a while, and say so.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_plan::Op;
use tokio::time::Instant;

/// Repairs of one object are counted over this time.
const WINDOW: Duration = Duration::from_secs(60);
/// More repairs of one object than this within the window are a fight.
const PATIENCE: u32 = 10;
/// The first pause of a fight; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Fights that are told one by one; of the rest only the number.
const TOLD: usize = 5;

#[derive(Debug, Clone, Copy)]
struct Bout {
    since: Instant,
    repairs: u32,
    pause: Duration,
    /// Nothing is written before; `None` as long as it is no fight.
    until: Option<Instant>,
}

/// Repairs by the object that they were of.
#[derive(Debug, Default)]
pub struct Fights {
    bouts: BTreeMap<String, Bout>,
}

impl Fights {
    /// Whether a repair may be made now.
    pub fn admits(&self, op: &Op, now: Instant) -> bool {
        let bout = self.bouts.get(&op.to_string());
        bout.and_then(|bout| bout.until).is_none_or(|until| until <= now)
    }

    /// A repair was made. Answers whether it turned out to be a fight just now.
    pub fn repaired(&mut self, op: &Op, now: Instant) -> bool {
        let fresh = Bout {
            since: now,
            repairs: 0,
            pause: FIRST_PAUSE,
            until: None,
        };
        let bout = self.bouts.entry(op.to_string()).or_insert(fresh);
        if bout.until.is_none() && now.duration_since(bout.since) > WINDOW {
            *bout = fresh;
        }
        bout.repairs += 1;
        if bout.repairs <= PATIENCE {
            return false;
        }
        let first = bout.until.is_none();
        bout.until = Some(now + bout.pause);
        bout.pause = (bout.pause * 2).min(LONGEST_PAUSE);
        first
    }

    /// Forgets what has been left in peace for a whole window.
    pub fn forget_old(&mut self, now: Instant) {
        self.bouts.retain(|_, bout| {
            let last = bout.until.unwrap_or(bout.since);
            now.saturating_duration_since(last) <= WINDOW
        });
    }

    /// When the next pause ends.
    pub fn wake(&self, now: Instant) -> Option<Instant> {
        let ends = self.bouts.values().filter_map(|bout| bout.until);
        ends.filter(|until| *until > now).min()
    }

    /// The fights that are on, one sentence each.
    pub fn told(&self) -> Vec<String> {
        let fights = self.bouts.iter().filter(|(_, bout)| bout.until.is_some());
        let mut told: Vec<String> = fights
            .map(|(what, bout)| {
                format!(
                    "somebody undoes `{what}` again and again ({} times so far)",
                    bout.repairs
                )
            })
            .collect();
        if told.len() > TOLD {
            let more = told.len() - TOLD;
            told.truncate(TOLD);
            told.push(format!("and {more} more objects"));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_plan::Device;

    fn op() -> Op {
        Op::LinkSetMtu {
            device: Device::Ipip,
            mtu: 1480,
        }
    }

    #[test]
    fn a_fight_is_one_of_many_repairs_in_short_time() {
        let mut fights = Fights::default();
        let start = Instant::now();
        // One repair every ten seconds is no fight, however long it goes on.
        for n in 0..100 {
            let now = start + Duration::from_secs(10 * n);
            fights.forget_old(now);
            assert!(fights.admits(&op(), now) && !fights.repaired(&op(), now), "{n}");
        }
        assert!(fights.told().is_empty());
    }

    #[test]
    fn we_give_way_longer_and_longer_and_forget_it_when_it_is_over() {
        let mut fights = Fights::default();
        let mut now = Instant::now();
        for n in 0..=PATIENCE {
            assert_eq!(fights.repaired(&op(), now), n == PATIENCE);
        }
        assert!(fights.told()[0].contains("link set flannel.ipip mtu 1480"));
        let mut pauses = Vec::new();
        for _ in 0..6 {
            assert!(!fights.admits(&op(), now));
            let end = fights.wake(now).unwrap();
            pauses.push((end - now).as_secs());
            now = end;
            assert!(fights.admits(&op(), now));
            assert!(!fights.repaired(&op(), now), "said again");
        }
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60]);
        fights.forget_old(now + LONGEST_PAUSE + WINDOW + Duration::from_secs(1));
        assert!(fights.told().is_empty());
    }
}
