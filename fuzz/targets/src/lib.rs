//! What is fuzzed: each target takes any bytes, and panics when something that must hold does not.
//!
//! Two ways to run them. `cargo test -p flannel-fuzz` replays the committed corpora and some thousand mutations of them, on any compiler.
//! With a nightly compiler, `cargo fuzz run TARGET` in the folder above lets libFuzzer search.

pub mod cni;
pub mod model;
mod mutate;
pub mod udp;

pub use mutate::Mutator;

/// A target.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("cni_stdin", cni::stdin),
    ("cni_environment", cni::environment),
    ("cni_arguments", cni::arguments),
    ("cni_previous", cni::previous),
    ("cni_records", cni::records),
    ("subnet_env", model::subnet_env),
    ("lease_key", model::lease_key),
    ("lease_value", model::lease_value),
    ("network_config", model::network_config),
    ("udp_cut", udp::cut),
    ("udp_claims", udp::claims),
    ("udp_merge", udp::merge),
    ("udp_admit", udp::admit),
];
