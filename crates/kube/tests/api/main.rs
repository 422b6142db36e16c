//! The client and the follower against the API server of the test tree.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod access;
mod follow;
mod objects;
mod patience;
mod support;
