//! What the overlay costs: thousands of peers in the kernel of one node, and a packet's way from pod to pod beside the same devices
//! set up by hand with `ip`, `bridge` and nothing else.

mod floor;
mod path;
mod scale;

use anyhow::Result;
use flannel_lab::{Lab, LabOptions};

/// Peers of the node that is measured.
const PEERS: usize = 10_000;
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

/// Runs the suite.
pub fn run() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1 + path::NODES).config(CONFIG))?;
    scale::run(&lab, peers()?)?;
    path::run(&lab)
}

/// `BENCH_PEERS`, or 10,000.
fn peers() -> Result<usize> {
    match std::env::var("BENCH_PEERS") {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(PEERS),
    }
}
