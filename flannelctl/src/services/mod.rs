//! Services: showing, explaining, applying and deleting them.

mod apply;
mod conflicts;
pub mod daemon;
mod delete;
mod explain;
pub mod input;
mod local;
mod manifests;
mod node_table;
mod nodes;
mod register;
pub mod stored;
mod view;
mod write;

pub use apply::apply;
pub use delete::{delete_files, delete_named};
pub use explain::explain;
pub use register::register;
pub use view::show;
pub use write::Unfinished;

/// Where a command that shows Services asks.
pub struct Asker<'a, S> {
    /// The store.
    pub store: &'a S,
    /// Where our keys lie in it.
    pub prefix: &'a flannel_model::EtcdPrefix,
}
