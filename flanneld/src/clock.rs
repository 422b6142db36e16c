//! The time since boot, suspend included.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Now, as time since boot. A wall clock may jump, and the monotonic clock stops while the machine sleeps; a lease in etcd
/// does neither.
pub fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Random bits to break ties with; never a secret.
pub fn random_bits() -> u64 {
    let mut bytes = [0; 8];
    // Before the kernel's pool is ready the clock's low bits must do.
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(8) => u64::from_ne_bytes(bytes),
        Ok(_) | Err(_) => since_boot().as_nanos() as u64,
    }
}
