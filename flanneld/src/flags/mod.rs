//! From what was typed to what it means.

#[cfg(test)]
mod man;
mod options;
mod parse;
mod table;

pub use options::{Options, ServiceSource};
pub use parse::{Parsed, Typed, parse};
pub use table::help;
