//! How facts follow from earlier ones: by single peers, or anew. Whoever knows how they stood can take the same steps.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use flannel_model::Families;
use flannel_plan::{DesiredOverlay, Exchange};

use super::Facts;

/// Steps that are kept. Whoever is further behind looks at everything.
const KEPT: usize = 64;

/// What became of single peers.
#[derive(Debug, Default)]
pub struct Step {
    /// Their part of each family's overlay.
    pub exchanges: Vec<Exchange>,
    /// Addresses of nodes that no peer has any more.
    pub gone: Vec<IpAddr>,
    /// Addresses of nodes that nobody had before.
    pub new: Vec<IpAddr>,
}

/// Where facts stand: as long as a process lives, the same stand means the same facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stand {
    /// How often they were made anew.
    anew: u64,
    /// Steps since then.
    steps: usize,
}

/// The last steps.
#[derive(Debug, Clone, Default)]
pub struct Steps {
    anew: u64,
    /// Steps that are not kept any more.
    dropped: usize,
    kept: VecDeque<Arc<Step>>,
}

impl PartialEq for Steps {
    /// Facts are the same however they came about.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Steps {}

impl Steps {
    /// Of facts that are made anew in the place of these.
    pub fn made_anew(&self) -> Self {
        Self {
            anew: self.anew.wrapping_add(1),
            ..Self::default()
        }
    }

    /// Where the facts stand.
    pub fn stand(&self) -> Stand {
        Stand {
            anew: self.anew,
            steps: self.dropped + self.kept.len(),
        }
    }

    /// The steps that lead from an earlier stand to now; `None` where no kept steps do.
    pub fn since(&self, earlier: Stand) -> Option<impl Iterator<Item = &Step>> {
        let skipped = earlier.steps.checked_sub(self.dropped)?;
        (earlier.anew == self.anew && skipped <= self.kept.len())
            .then(|| self.kept.iter().skip(skipped).map(Arc::as_ref))
    }
}

impl Step {
    /// Whether it changes anything.
    pub fn is_idle(&self) -> bool {
        let idle = |exchange: &Exchange| exchange.before == exchange.after;
        self.exchanges.iter().all(idle) && self.gone.is_empty() && self.new.is_empty()
    }
}

impl Facts {
    /// Whether the peers of a step can be exchanged without a look at the others.
    pub fn admit(&self, step: &Step) -> bool {
        let overlays: Vec<_> = self.overlays().collect();
        let each = overlays.iter().zip(&step.exchanges);
        overlays.len() == step.exchanges.len()
            && each.clone().all(|(overlay, exchange)| overlay.admits(exchange))
    }

    /// Takes a step that they [`admit`](Self::admit).
    pub fn take(&mut self, step: Arc<Step>) {
        for (overlay, exchange) in overlays_mut(&mut self.overlays).zip(&step.exchanges) {
            overlay.exchange(exchange);
        }
        for address in &step.gone {
            self.nodes.remove(address);
        }
        self.nodes.extend(&step.new);
        self.steps.kept.push_back(step);
        if self.steps.kept.len() > KEPT {
            self.steps.kept.pop_front();
            self.steps.dropped += 1;
        }
    }
}

/// IPv4 first, as everywhere.
fn overlays_mut(
    overlays: &mut Families<DesiredOverlay, DesiredOverlay>,
) -> impl Iterator<Item = &mut DesiredOverlay> {
    let (ipv4, ipv6) = match overlays {
        Families::Ipv4(ipv4) => (Some(ipv4), None),
        Families::Ipv6(ipv6) => (None, Some(ipv6)),
        Families::Dual(ipv4, ipv6) => (Some(ipv4), Some(ipv6)),
    };
    ipv4.into_iter().chain(ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stepped(mut steps: Steps, count: usize) -> Steps {
        for _ in 0..count {
            steps.kept.push_back(Arc::default());
        }
        steps
    }

    #[test]
    fn steps_lead_from_every_stand_that_is_kept() {
        let steps = stepped(Steps::default(), 3);
        let counts: Vec<_> = (0..5)
            .map(|earlier| {
                let earlier = Stand {
                    anew: 0,
                    steps: earlier,
                };
                steps.since(earlier).map(Iterator::count)
            })
            .collect();
        assert_eq!(counts, [Some(3), Some(2), Some(1), Some(0), None]);
    }

    #[test]
    fn none_lead_to_facts_made_anew_or_from_what_is_forgotten() {
        let before = stepped(Steps::default(), 3);
        assert!(before.made_anew().since(before.stand()).is_none());
        let mut later = stepped(Steps::default(), 3);
        later.kept.pop_front();
        later.dropped = 1;
        assert_eq!(later.stand(), before.stand());
        assert!(later.since(Stand { anew: 0, steps: 0 }).is_none());
        assert!(later.since(Stand { anew: 0, steps: 1 }).is_some());
    }
}
