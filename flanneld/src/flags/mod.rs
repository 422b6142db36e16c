//! From what was typed to what it means.

mod host;
#[cfg(test)]
mod man;
mod options;
mod parse;
mod services;
mod table;

pub use options::Options;
pub use parse::{Parsed, Typed, parse};
pub use services::ServiceSource;
pub use table::help;
