//! What the kernel counts of Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use flannel_model::Traffic;
use flannel_plan::FrontendKey;

/// What is to be counted.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// What every frontend has carried: cheap.
    Traffic,
    /// That, and the connections of every endpoint of these frontends, or of all.
    Connections(Option<BTreeSet<FrontendKey>>),
}

impl Wanted {
    /// Whether connections of a frontend are to be counted.
    pub fn connections_of(&self, key: &FrontendKey) -> bool {
        match self {
            Self::Traffic => false,
            Self::Connections(None) => true,
            Self::Connections(Some(keys)) => keys.contains(key),
        }
    }
}

/// What is known of one frontend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrontendCounts {
    /// What it has carried.
    pub traffic: Option<Traffic>,
    /// The connections of its endpoints, where they were counted. An endpoint that is not listed has none.
    pub endpoints: Option<BTreeMap<SocketAddr, EndpointCounts>>,
}

/// Connections of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndpointCounts {
    /// Established.
    pub active: u64,
    /// Remembered otherwise.
    pub inactive: u64,
}

/// Adds up what several kernel objects of one frontend carried.
pub fn add(sum: &mut Option<Traffic>, more: Traffic) {
    let both = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
    *sum = Some(match *sum {
        None => more,
        Some(sum) => Traffic {
            connections: sum.connections.saturating_add(more.connections),
            packets_in: both(sum.packets_in, more.packets_in),
            packets_out: both(sum.packets_out, more.packets_out),
            bytes_in: both(sum.bytes_in, more.bytes_in),
            bytes_out: both(sum.bytes_out, more.bytes_out),
        },
    });
}
