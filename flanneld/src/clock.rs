//! The time since boot, suspend included.

use std::time::{Duration, SystemTime};

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

/// Now, as seconds since 1970. It may jump; nothing that has to be right hangs on it.
pub fn wall_seconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Which boot this is: a time since boot means something only within one.
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}
