//! Our nftables tables: rendered as text by pure functions, written whole in one transaction through the `nft` binary.
//!
//! A table carries a hash of its text in its comment, so that an unchanged table is not written again.

mod masquerade;
mod runner;
mod service_nat;
mod services;
mod table;

pub use masquerade::{MasqueradeTable, masquerade_table};
pub use runner::{Applied, Nft, NftError};
pub use service_nat::ServiceNat;
pub use services::{
    Element, ElementBytes, NODE_SERVERS, ServiceMarks, ServicesTable, read_node_server, services_table,
    services_table_name,
};
pub use table::{Family, Table, TableName};
