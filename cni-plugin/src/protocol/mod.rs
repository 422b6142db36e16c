//! The CNI protocol: what a runtime sends by environment and stdin, and the forms of what it reads from stdout.

pub mod args;
mod call;
mod error;
pub mod name;
mod result;
mod stdin;
pub mod version;

pub use args::CniArgs;
pub use call::{Attachment, Call, from_environment};
pub use error::{CniError, Code, chain};
pub use name::{ContainerId, IfName, NetworkName};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use stdin::read_object;
pub use version::SpecVersion;
