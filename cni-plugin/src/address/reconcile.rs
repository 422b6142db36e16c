//! What to do about leases and records that do not agree with each other or with the kernel. A pure decision.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::lease_file::{Holder, Lease};
use super::record::{Record, Stage, Stored};
use crate::protocol::Attachment;

/// Pods of this network as the kernel has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Live {
    /// Host ends of our veth pairs.
    pub ends: Vec<LiveEnd>,
    /// Whether the bridge has ports that are not ours: pods of another plugin live.
    pub strangers: bool,
}

/// A host end, as its alias tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveEnd {
    /// Device name.
    pub name: String,
    /// Whose it is; `None` where the alias was too long to say.
    pub attachment: Option<Attachment>,
    /// The container's addresses.
    pub addresses: Vec<IpAddr>,
}

/// What was found.
#[derive(Debug)]
pub struct Facts<'a> {
    /// This boot's id.
    pub boot: &'a str,
    /// Whether we were here in an earlier boot, and now for the first time in this one.
    pub first_of_boot: bool,
    /// Every file named by an address.
    pub leases: BTreeMap<IpAddr, Lease>,
    /// Every record that could be read.
    pub records: Vec<Stored>,
    /// The kernel's pods.
    pub live: &'a Live,
}

/// One thing to put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Put a file that is no lease aside; the address becomes free.
    Quarantine(IpAddr, String),
    /// Nobody has the address any more.
    Free(IpAddr),
    /// The attachment is gone.
    Forget(Record),
    /// The lease is lost, but the container lives.
    Restore(IpAddr, Holder),
    /// The record is lost, but the container lives.
    Adopt(LiveEnd),
}

/// What to do, in order, and the leases of other plugins that stay.
pub fn plan(facts: &Facts<'_>) -> (Vec<Repair>, Vec<(IpAddr, String)>) {
    let mut plan = Plan {
        facts,
        repairs: Vec::new(),
        settled: BTreeSet::new(),
    };
    for stored in &facts.records {
        match plan.is_dead(stored) {
            true => plan.bury(&stored.record),
            false => plan.keep(stored),
        }
    }
    plan.adopt();
    let strangers = plan.strangers();
    (plan.repairs, strangers)
}

struct Plan<'a> {
    facts: &'a Facts<'a>,
    repairs: Vec<Repair>,
    /// Addresses on which a record or the kernel has spoken.
    settled: BTreeSet<IpAddr>,
}

impl Plan<'_> {
    /// A namespace does not survive a boot, and a veth not its namespace.
    fn is_dead(&self, stored: &Stored) -> bool {
        let lives = || {
            let mut ends = self.facts.live.ends.iter();
            ends.any(|end| end.name == stored.record.host_end)
        };
        stored.record.boot != self.facts.boot || (stored.stage != Stage::Working && !lives())
    }

    fn bury(&mut self, record: &Record) {
        let holder = record.holder();
        for (ip, _) in &record.addresses {
            if self
                .facts
                .leases
                .get(ip)
                .is_some_and(|lease| lease.is_of(&holder))
            {
                self.settled.insert(*ip);
                self.repairs.push(Repair::Free(*ip));
            }
        }
        self.repairs.push(Repair::Forget(record.clone()));
    }

    fn keep(&mut self, stored: &Stored) {
        // A working ADD writes its leases itself; an abandoned one may never have come to it.
        let restore = stored.stage == Stage::Done;
        let holder = stored.record.holder();
        for (ip, _) in &stored.record.addresses {
            self.hold(*ip, &holder, restore);
        }
    }

    /// Sees to it that `holder` has `ip`, unless somebody else's lease says that he does not.
    fn hold(&mut self, ip: IpAddr, holder: &Holder, restore: bool) {
        self.settled.insert(ip);
        match self.facts.leases.get(&ip) {
            Some(Lease::Held(_)) => return,
            Some(Lease::Unreadable(reason)) => {
                self.repairs.push(Repair::Quarantine(ip, reason.clone()));
            }
            Some(Lease::Empty) => self.repairs.push(Repair::Quarantine(ip, "is empty".to_owned())),
            Some(Lease::Absent) | None => {}
        }
        if restore {
            self.repairs.push(Repair::Restore(ip, holder.clone()));
        }
    }

    fn adopt(&mut self) {
        let known: BTreeSet<&str> = self
            .facts
            .records
            .iter()
            .filter(|stored| stored.record.boot == self.facts.boot)
            .map(|stored| stored.record.host_end.as_str())
            .collect();
        for end in &self.facts.live.ends {
            let Some(attachment) = end
                .attachment
                .as_ref()
                .filter(|_| !known.contains(end.name.as_str()))
            else {
                continue;
            };
            for ip in &end.addresses {
                self.hold(*ip, &Holder::from(attachment), true);
            }
            self.repairs.push(Repair::Adopt(end.clone()));
        }
    }

    /// Leases that neither a record nor a device of ours explains.
    fn strangers(&mut self) -> Vec<(IpAddr, String)> {
        // Where no device of a stranger is left after a boot, none of the strangers' pods is.
        let all_gone = self.facts.first_of_boot && !self.facts.live.strangers;
        let mut staying = Vec::new();
        for (ip, lease) in &self.facts.leases {
            if self.settled.contains(ip) {
                continue;
            }
            match lease {
                Lease::Absent => {}
                Lease::Empty => self.repairs.push(Repair::Quarantine(*ip, "is empty".to_owned())),
                Lease::Unreadable(reason) => self.repairs.push(Repair::Quarantine(*ip, reason.clone())),
                Lease::Held(_) if all_gone => self.repairs.push(Repair::Free(*ip)),
                Lease::Held(text) => staying.push((*ip, text.clone())),
            }
        }
        staying
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::sample;
    use super::*;

    struct Case {
        leases: Vec<(&'static str, Lease)>,
        records: Vec<(Record, Stage)>,
        live: Live,
        first_of_boot: bool,
    }

    impl Case {
        fn new() -> Self {
            Self {
                leases: Vec::new(),
                records: Vec::new(),
                live: Live::default(),
                first_of_boot: false,
            }
        }

        fn lease(mut self, ip: &'static str, text: &str) -> Self {
            self.leases.push((ip, Lease::Held(text.to_owned())));
            self
        }

        fn record(mut self, record: Record, stage: Stage) -> Self {
            self.records.push((record, stage));
            self
        }

        fn alive(mut self, id: &str, addresses: &[&str]) -> Self {
            self.live.ends.push(LiveEnd {
                name: format!("veth-{id}"),
                attachment: Some(sample(id, &[]).attachment),
                addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            });
            self
        }

        fn plan(&self) -> (Vec<Repair>, Vec<(IpAddr, String)>) {
            let leases = self.leases.iter();
            let records = self.records.iter();
            plan(&Facts {
                boot: "this",
                first_of_boot: self.first_of_boot,
                leases: leases
                    .map(|(ip, lease)| (ip.parse().unwrap(), lease.clone()))
                    .collect(),
                records: records
                    .map(|(record, stage)| Stored {
                        record: record.clone(),
                        stage: *stage,
                    })
                    .collect(),
                live: &self.live,
            })
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_agrees_is_left_alone() {
        let case = Case::new()
            .lease("10.0.0.2", "c1\r\neth0")
            .lease("10.0.0.3", "c2\r\neth0")
            .lease("10.0.0.9", "stranger\r\neth0")
            .record(sample("c1", &["10.0.0.2"]), Stage::Done)
            .record(sample("c2", &["10.0.0.3"]), Stage::Working)
            .alive("c1", &["10.0.0.2"]);
        let expected = vec![(ip("10.0.0.9"), "stranger\r\neth0".to_owned())];
        assert_eq!(case.plan(), (vec![], expected));
    }

    #[test]
    fn records_of_an_earlier_boot_and_of_dead_pods_go_with_their_leases() {
        let mut earlier = sample("c1", &["10.0.0.2"]);
        earlier.boot = "earlier".to_owned();
        let killed = sample("c2", &["10.0.0.3"]);
        let case = Case::new()
            .lease("10.0.0.2", "c1\r\neth0")
            .lease("10.0.0.3", "c2\r\neth0")
            .record(earlier.clone(), Stage::Done)
            .record(killed.clone(), Stage::Abandoned);
        let expected = vec![
            Repair::Free(ip("10.0.0.2")),
            Repair::Forget(earlier),
            Repair::Free(ip("10.0.0.3")),
            Repair::Forget(killed),
        ];
        assert_eq!(case.plan(), (expected, vec![]));
    }

    #[test]
    fn an_address_that_passed_to_another_stays_his() {
        let mut earlier = sample("c1", &["10.0.0.2"]);
        earlier.boot = "earlier".to_owned();
        let case = Case::new()
            .lease("10.0.0.2", "c9\r\neth0")
            .record(earlier.clone(), Stage::Done);
        let (repairs, strangers) = case.plan();
        assert_eq!(repairs, [Repair::Forget(earlier)]);
        assert_eq!(strangers.len(), 1);
    }

    #[test]
    fn lost_leases_of_living_pods_come_back() {
        let mut case = Case::new()
            .record(sample("c1", &["10.0.0.2", "10.0.0.3"]), Stage::Done)
            .alive("c1", &[])
            .alive("c2", &["10.0.0.4"]);
        case.leases
            .push(("10.0.0.3", Lease::Unreadable("is a link".to_owned())));
        let holder = |id: &str| sample(id, &[]).holder();
        let (repairs, _) = case.plan();
        let expected = vec![
            Repair::Restore(ip("10.0.0.2"), holder("c1")),
            Repair::Quarantine(ip("10.0.0.3"), "is a link".to_owned()),
            Repair::Restore(ip("10.0.0.3"), holder("c1")),
            Repair::Restore(ip("10.0.0.4"), holder("c2")),
            Repair::Adopt(case.live.ends[1].clone()),
        ];
        assert_eq!(repairs, expected);
    }

    #[test]
    fn leases_of_other_plugins_go_after_a_boot_when_none_of_their_pods_lives() {
        let mut case = Case::new().lease("10.0.0.9", "stranger\r\neth0");
        case.first_of_boot = true;
        assert_eq!(case.plan().0, [Repair::Free(ip("10.0.0.9"))]);
        case.live.strangers = true;
        assert_eq!(case.plan().0, []);
    }

    #[test]
    fn what_is_no_lease_is_put_aside() {
        let mut case = Case::new();
        case.leases.push(("10.0.0.2", Lease::Empty));
        case.leases
            .push(("10.0.0.3", Lease::Unreadable("is not text".to_owned())));
        let (repairs, strangers) = case.plan();
        assert!(matches!(
            &repairs[..],
            [Repair::Quarantine(..), Repair::Quarantine(..)]
        ));
        assert!(strangers.is_empty());
    }
}
