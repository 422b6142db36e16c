//! The lab: nodes as network namespaces on one underlay, a real etcd, the real binaries, real packets.
//!
//! A [`Lab`] lives in a [`sandbox`]: a process with PID, mount and network namespaces of its own. When that process ends, for whatever
//! reason, the kernel ends everything in it. Nothing outside is touched, and any number of labs may run side by side.

pub mod asked;
pub mod binaries;
pub mod capture;
pub mod clock;
pub mod command;
pub mod datagrams;
pub mod etcd;
pub mod flanneld;
pub mod flood;
pub mod held;
pub mod http;
pub mod kernel;
pub mod kubectl;
pub mod lab;
pub mod node;
pub mod notify;
pub mod pinger;
pub mod place;
pub mod pod;
pub mod process;
pub mod runtime;
pub mod sandbox;
pub mod stillness;
pub mod supervise;
pub mod transfer;

pub use asked::Asked;
pub use clock::{eventually, limit};
pub use command::{Environment, Output};
pub use etcd::Etcd;
pub use flanneld::Flanneld;
pub use kubectl::Kubectl;
pub use lab::{Lab, LabOptions};
pub use node::Node;
pub use pinger::{Pinger, PingerReport};
pub use place::Place;
pub use pod::Pod;
pub use process::Process;
pub use stillness::Stillness;
pub use transfer::transfer;
