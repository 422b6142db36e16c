//! What goes wrong, and when.

use crate::rng::Rng;
use crate::store::Time;

#[derive(Debug, Clone)]
pub enum Fault {
    /// A node and the store do not hear each other.
    Cut {
        node: usize,
        lasts: Time,
    },
    /// The whole store is down; its leases do not run meanwhile.
    StoreDown {
        lasts: Time,
    },
    /// A node dies; after a reboot its clock begins anew, and its disk may be lost.
    Crash {
        node: usize,
        lasts: Time,
        reboot: bool,
        keep_disk: bool,
    },
    /// A node sleeps; its clock goes on.
    Sleep {
        node: usize,
        lasts: Time,
    },
    /// Calls take seconds, some longer than their deadline, and arrive all the same.
    Slow {
        lasts: Time,
    },
    /// Every third answer is lost.
    Lossy {
        lasts: Time,
    },
    /// History is compacted away.
    Compact,
    /// A node of another make takes a free subnet and never renews it.
    Stranger,
    /// Keys and values that make no sense.
    Junk,
    /// An operator deletes a lease.
    DeleteKey,
    /// Somebody writes over a lease.
    Overwrite,
    /// Somebody changes what a lease says, but not whose it is.
    Forge,
    BackUp,
    Restore,
    Wipe,
}

impl Fault {
    fn any(rng: &mut Rng, nodes: usize, longest: Time) -> Self {
        let node = usize::try_from(rng.range(0, nodes as u64 - 1)).unwrap();
        let lasts = rng.range(100, longest);
        match rng.range(0, 11) {
            0..=2 => Self::Cut { node, lasts },
            3 => Self::StoreDown { lasts },
            4 | 5 => Self::Crash {
                node,
                lasts,
                reboot: rng.chance(50),
                keep_disk: rng.chance(70),
            },
            6 => Self::Sleep { node, lasts },
            7 => Self::Slow { lasts },
            8 => Self::Lossy { lasts },
            9 => Self::Compact,
            10 => Self::Stranger,
            _ => Self::Junk,
        }
    }

    fn tampering(rng: &mut Rng) -> Self {
        match rng.range(0, 6) {
            0 | 1 => Self::DeleteKey,
            2 => Self::Overwrite,
            3 => Self::BackUp,
            4 => Self::Restore,
            5 => Self::Forge,
            _ => Self::Wipe,
        }
    }
}

/// What kind of history a seed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Faults that are short against a lease's lifetime: nobody may lose a subnet.
    Gentle,
    /// Long ones: leases expire, but never do two nodes act as owner at one time.
    Rough,
    /// Somebody deletes and overwrites records, or the store goes back: nobody overwrites somebody else's record, and in
    /// the end all is well.
    Tampered,
    /// Nothing goes wrong.
    Calm,
}

impl Kind {
    pub fn of(seed: u64) -> Self {
        match seed % 4 {
            0 => Self::Gentle,
            1 | 2 => Self::Rough,
            _ => Self::Tampered,
        }
    }

    /// The faults with their times.
    pub fn plan(self, rng: &mut Rng, nodes: usize, span: Time) -> Vec<(Time, Fault)> {
        let (count, longest) = match self {
            Self::Calm => return Vec::new(),
            Self::Gentle => (rng.range(2, 8), 8_000),
            Self::Rough | Self::Tampered => (rng.range(3, 14), 150_000),
        };
        let mut plan = Vec::new();
        for _ in 0..count {
            let at = rng.range(0, span);
            let fault = match self {
                Self::Tampered if rng.chance(40) => Fault::tampering(rng),
                _ => Fault::any(rng, nodes, longest),
            };
            plan.push((at, fault));
        }
        plan
    }
}
