//! `flannel`, the CNI plugin: attaches containers to the node's subnet.
//!
//! It stands alone: it executes nothing but a delegate of another type than `bridge`, has no runtime, and works while the
//! daemon is down. It is a library so that tests can reach its parts; the program is [`run::main`].

pub mod add;
pub mod address;
pub mod check;
pub mod config;
pub mod del;
pub mod delegate;
pub mod expression;
pub mod gc;
pub mod guard;
pub mod masq;
pub mod order;
pub mod protocol;
pub mod release;
pub mod reserve;
pub mod run;
pub mod scratch;
pub mod status;
pub mod subnet_file;
pub mod undo;
pub mod wiring;
