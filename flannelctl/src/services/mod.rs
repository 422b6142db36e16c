//! Services: showing, applying and deleting them.

mod apply;
mod conflicts;
mod delete;
pub mod input;
mod manifests;
mod register;
pub mod stored;
mod view;

pub use apply::apply;
pub use delete::{delete_files, delete_named};
pub use register::register;
pub use view::show;
