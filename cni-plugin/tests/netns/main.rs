//! The built binary in real network namespaces, checked by what the kernel shows and by packets.

#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

mod announce;
mod bridge_cases;
mod call_cases;
mod chain;
mod delegate;
mod duplicate;
mod failure;
mod frames;
mod guard;
mod handover;
mod lab;
mod lease_cases;
mod redirects;
mod takeover;
mod verbs;
mod wiring;

const V6: &str = "FLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const V4: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const DUAL: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
