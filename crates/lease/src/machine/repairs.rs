//! How often our own record is put right.

use std::time::Duration;

/// First and longest time between two corrections: two nodes that think to be one must not fight over the record.
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

/// Corrections of our own record, and what is left to look at.
#[derive(Debug, Clone, Copy, Default, Hash)]
pub(super) struct Repairs {
    /// A list was asked for because the record may not say what we published.
    pub checking: bool,
    /// Revision of what is being corrected.
    pub over: Option<i64>,
    /// The record is looked at again then.
    pub check_at: Option<Duration>,
    last: Option<Duration>,
    /// How many there were with less than twice [`LONGEST`] between them.
    count: u32,
}

impl Repairs {
    /// Time until the next correction may be made.
    pub fn wait(&self, now: Duration) -> Duration {
        let Some(last) = self.last else {
            return Duration::ZERO;
        };
        let pause = FIRST * 2u32.saturating_pow(self.count.saturating_sub(1).min(16));
        (last + pause.min(LONGEST)).saturating_sub(now)
    }

    /// The record is ours and stands at `modified`.
    pub fn claimed(&mut self, modified: i64, now: Duration) {
        self.checking = false;
        self.check_at = None;
        // Where nothing was wrong nothing was written.
        if self.over.take().is_some_and(|over| over != modified) {
            let recent = self.last.is_some_and(|last| now < last + LONGEST * 2);
            self.count = if recent { self.count + 1 } else { 1 };
            self.last = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn corrections_become_rarer_and_a_quiet_time_forgets_them() {
        let mut repairs = Repairs::default();
        let mut now = secs(100);
        assert!(repairs.wait(now).is_zero());
        for expected in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
            repairs.over = Some(1);
            repairs.claimed(2, now);
            assert_eq!(repairs.wait(now), secs(expected));
            now += repairs.wait(now);
            assert!(repairs.wait(now).is_zero());
        }
        now += LONGEST * 2;
        repairs.over = Some(1);
        repairs.claimed(2, now);
        assert_eq!(repairs.wait(now), secs(60));
    }

    #[test]
    fn a_record_that_was_right_is_no_correction() {
        let mut repairs = Repairs {
            checking: true,
            over: Some(7),
            ..Repairs::default()
        };
        repairs.claimed(7, secs(1));
        assert!(repairs.wait(secs(1)).is_zero() && !repairs.checking);
    }
}
