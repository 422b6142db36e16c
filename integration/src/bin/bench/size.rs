//! Numbers that the environment may change: a short form of a suite.

use anyhow::{Context, Result};

/// Such a number.
pub struct Size {
    variable: &'static str,
    usual: usize,
}

impl Size {
    /// The one in this environment variable, and what it is without it.
    pub const fn new(variable: &'static str, usual: usize) -> Self {
        Self { variable, usual }
    }

    /// What the environment says, or the usual.
    pub fn get(&self) -> Result<usize> {
        match std::env::var(self.variable) {
            Ok(text) => text
                .parse()
                .with_context(|| format!("{} is {text:?}; expected a number", self.variable)),
            Err(_) => Ok(self.usual),
        }
    }
}

/// Numbers of Services: all that are usual, or the one in `BENCH_SERVICES`.
pub fn services(usual: &[usize]) -> Result<Vec<usize>> {
    let one = Size::new("BENCH_SERVICES", 0);
    Ok(match one.get()? {
        0 => usual.to_vec(),
        count => vec![count],
    })
}
