//! `flannelctl subnets`: who holds which subnet, what is free, and what an operator does about it.

mod key;
mod list;
mod map;
mod one;
mod record;
mod reserve;
mod state;
mod watch;

pub use list::show as list;
pub use map::show as map;
pub use map::usage;
pub use one::show as one;
pub use record::{Listing, Record, read};
pub use reserve::{Reservation, release, reserve};
pub use state::{State, offers, states};
pub use watch::watch;
