//! Which chain draws the endpoint: one a number of slots and a way of drawing, shared by all frontends that fit it.

use flannel_model::{Scheduler, SchedulerFlags};

/// How an endpoint is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Spread {
    /// At random.
    Random,
    /// By the client's address.
    Source,
    /// By the client's address and port.
    SourcePort,
    /// By the address that the client talks to.
    Destination,
}

impl Spread {
    /// What comes closest to a scheduler of IPVS.
    pub fn of(scheduler: &Scheduler, flags: SchedulerFlags) -> Self {
        let port = flags.bits() & SchedulerFlags::HASH_PORT.bits() != 0;
        match (scheduler.as_str(), port) {
            ("sh" | "mh", false) => Self::Source,
            ("sh" | "mh", true) => Self::SourcePort,
            ("dh", _) => Self::Destination,
            _ => Self::Random,
        }
    }
}

/// Why a scheduler is not what it is in IPVS; `None` where it is as good.
pub fn unfit_scheduler(scheduler: &Scheduler) -> Option<String> {
    let instead = match scheduler.as_str() {
        "lc" => "spread at random in equal shares",
        "wlc" | "sed" | "nq" | "lblc" | "lblcr" | "ovf" | "twos" => "spread at random by weight",
        _ => return None,
    };
    Some(format!(
        "scheduler {scheduler} counts connections, which nftables cannot: connections are {instead}"
    ))
}

/// What a frontend is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Address, protocol and port.
    Address,
    /// Protocol and port, on the chosen addresses of the node.
    NodePort,
}

/// A chain that draws a slot and translates the packet's destination to what stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PickChain {
    /// What its frontends are found by.
    pub place: Place,
    /// Whether it is for clients outside alone.
    pub outside: bool,
    /// How it draws.
    pub spread: Spread,
    /// Whether a client that was here before gets the endpoint that it had.
    pub sticky: bool,
    /// How many slots there are.
    pub slots: u32,
}

impl PickChain {
    /// Its name, such as `pick-3` or `port-sticky-source-3-outside`.
    pub fn name(&self) -> String {
        let place = match self.place {
            Place::Address => "",
            Place::NodePort => "port-",
        };
        let sticky = if self.sticky { "sticky-" } else { "" };
        let spread = match self.spread {
            Spread::Random => "pick",
            Spread::Source => "source",
            Spread::SourcePort => "source-port",
            Spread::Destination => "destination",
        };
        let outside = if self.outside { "-outside" } else { "" };
        format!("{place}{sticky}{spread}-{}{outside}", self.slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_become_ways_of_drawing() {
        let of = |name: &str| {
            let scheduler: Scheduler = name.parse().unwrap();
            Spread::of(&scheduler, SchedulerFlags::usual(&scheduler))
        };
        assert_eq!(of("wrr"), Spread::Random);
        assert_eq!(of("sh"), Spread::Source);
        assert_eq!(of("mh"), Spread::SourcePort);
        assert_eq!(of("dh"), Spread::Destination);
        assert!(unfit_scheduler(&"rr".parse().unwrap()).is_none());
        let text = unfit_scheduler(&"lc".parse().unwrap()).unwrap();
        assert!(text.starts_with("scheduler lc counts connections"), "{text}");
    }

    #[test]
    fn names_are_their_own() {
        let mut names = std::collections::BTreeSet::new();
        let mut count = 0;
        for place in [Place::Address, Place::NodePort] {
            for spread in [
                Spread::Random,
                Spread::Source,
                Spread::SourcePort,
                Spread::Destination,
            ] {
                for (outside, sticky) in [(false, false), (false, true), (true, false), (true, true)] {
                    let chain = PickChain {
                        place,
                        outside,
                        spread,
                        sticky,
                        slots: 3,
                    };
                    names.insert(chain.name());
                    count += 1;
                }
            }
        }
        assert_eq!(names.len(), count);
    }
}
