//! The parts of the daemon that touch no kernel object: a node's own lease, and what it publishes. The daemon runs them, and so do the
//! benchmarks, a thousand times at once.

pub mod clock;
pub mod lease_driver;
pub mod publish;
pub mod said;
