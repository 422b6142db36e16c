//! Our readers beside those of the crate cni-plugin, which was written by others from the same specification: what it accepts, we
//! accept and understand alike, or refuse for a reason that is written down with the value.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

mod calls;
mod choice;
mod configs;
mod results;
