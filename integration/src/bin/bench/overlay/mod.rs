//! What the overlay costs: thousands of peers in the kernel of one node, and a packet's way from pod to pod beside the same devices
//! set up by hand with `ip`, `bridge` and nothing else.

mod floor;
mod path;
mod scale;

use anyhow::{Result, bail};
use flannel_lab::{Lab, LabOptions};

/// Peers of the node that is measured.
const PEERS: usize = 10_000;
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

/// Runs the suite, or of its two parts the one that `BENCH_PART` names.
pub fn run() -> Result<()> {
    let part = std::env::var("BENCH_PART").unwrap_or_default();
    let (with_scale, with_path) = match part.as_str() {
        "" => (true, true),
        "scale" => (true, false),
        "path" => (false, true),
        other => bail!("BENCH_PART is {other:?}; expected scale or path"),
    };
    let lab = Lab::new(&LabOptions::nodes(1 + path::NODES).config(CONFIG))?;
    if with_scale {
        scale::run(&lab, peers()?)?;
    }
    if with_path {
        path::run(&lab)?;
    }
    Ok(())
}

/// `BENCH_PEERS`, or 10,000.
fn peers() -> Result<usize> {
    match std::env::var("BENCH_PEERS") {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(PEERS),
    }
}
