//! What a piece of work cost the thread that did it.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Place of `minflt` behind the command's closing parenthesis in `/proc/PID/stat` (proc_pid_stat(5): field 10, the third being the first there).
const MINOR_FAULTS: usize = 7;

/// What the calling thread has used up when some work began.
#[derive(Debug)]
pub struct Cost {
    began: Instant,
    processor: Duration,
    faults: u64,
}

impl Cost {
    /// Counts from now on, for this thread.
    pub fn begin() -> Self {
        Self {
            began: Instant::now(),
            processor: processor(),
            faults: faults(),
        }
    }

    /// The time that passed.
    pub fn took(&self) -> Duration {
        self.began.elapsed()
    }

    /// Processor time, the kernel's for this thread included: what `took` has more was waiting, for the kernel or for a processor.
    pub fn processor(&self) -> Duration {
        processor().saturating_sub(self.processor)
    }

    /// Pages of memory that were touched for the first time.
    pub fn faults(&self) -> u64 {
        faults().saturating_sub(self.faults)
    }
}

fn processor() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

fn faults() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    let behind = text.rsplit_once(')').map_or("", |(_, behind)| behind);
    let field = behind.split_whitespace().nth(MINOR_FAULTS);
    field.and_then(|f| f.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_is_counted() {
        let cost = Cost::begin();
        let before = cost.faults();
        // more than malloc maps at once (128 KiB), so that no page of it was there before
        let memory = vec![1_u8; 4 << 20];
        assert_eq!(memory.iter().map(|b| u64::from(*b)).sum::<u64>(), 4 << 20);
        assert!(cost.faults() > before, "{cost:?}");
        assert!(cost.processor() > Duration::ZERO && cost.took() > Duration::ZERO);
    }
}
