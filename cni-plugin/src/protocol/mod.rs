//! The CNI protocol: what a runtime sends by environment and stdin, and the forms of what it reads from stdout.

pub mod args;
mod call;
mod error;
pub mod keys;
pub mod name;
mod previous;
mod result;
mod stdin;
mod strict;
pub mod version;

pub use args::CniArgs;
pub use call::{Attachment, Call, from_environment};
pub use error::{CniError, Code, chain};
pub use name::{ContainerId, IfName, NetworkName, excerpt, is_identifier};
pub use previous::previous;
pub use result::{AddResult, Dns, Interface, IpConfig, Route, RouteOptions};
pub use stdin::read_object;
pub use version::SpecVersion;
