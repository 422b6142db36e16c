//! The store on a real etcd: one process for each test, on loopback.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "the lint's exception for tests does not reach helper functions"
)]

mod access;
mod lists;
mod outages;
mod streams;
mod support;
mod writes;
