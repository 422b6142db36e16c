//! Deadlines. Every wait in the lab has one, and says what it waited for when it passes.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// The environment variable that multiplies every deadline. The guest runner sets it: an emulated machine is several times slower.
pub const SLOW_VARIABLE: &str = "LAB_SLOW";

/// How often [`eventually`] looks again.
const POLL: Duration = Duration::from_millis(20);

/// How many times slower than usual this machine is, as [`SLOW_VARIABLE`] says; 1 when unset or unreadable, never below 1.
pub fn slowness() -> f64 {
    std::env::var(SLOW_VARIABLE)
        .ok()
        .and_then(|v| v.parse::<f64>().ok())
        .filter(|f| f.is_finite())
        .map_or(1.0, |f| f.max(1.0))
}

/// A time limit of `seconds` on an ordinary machine, longer on a slow one.
pub fn limit(seconds: u64) -> Duration {
    Duration::from_secs(seconds).mul_f64(slowness())
}

/// Calls `look` until it succeeds, for at most `within`. The error names `what` was awaited and carries the last observation.
pub fn eventually<T>(within: Duration, what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() >= within => {
                return Err(anyhow!(
                    "waited {:.1} s for {what}; last seen: {last:#}",
                    within.as_secs_f64()
                ));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Checks that `look` goes on succeeding for the whole of `period`: for what must *not* happen.
pub fn throughout(period: Duration, what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < period {
        look().map_err(|e| {
            anyhow!(
                "{what} did not hold after {:.1} s: {e:#}",
                start.elapsed().as_secs_f64()
            )
        })?;
        std::thread::sleep(POLL * 5);
    }
    Ok(())
}
