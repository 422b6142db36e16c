//! Which tables and chains there are, of whomever.

use super::conn::text_of;
use super::{Attributes, Family, Question, ask};
use crate::conn::{ACK, DUMP};
use crate::error::NetlinkError;

/// NFT_MSG_GETTABLE
const GET_TABLE: u16 = 1;
/// NFT_MSG_GETCHAIN
pub(super) const GET_CHAIN: u16 = 4;

/// Whether there is a table of this name.
///
/// # Errors
/// When the kernel has no nf_tables or does not answer.
pub fn has_table(family: Family, table: &str) -> Result<bool, NetlinkError> {
    // NFTA_TABLE_NAME
    let attributes = Attributes::new().text(1, table);
    let asked = Question {
        kind: GET_TABLE,
        flags: ACK,
        attributes: &attributes,
    };
    let mut found = false;
    ask(family, &asked, &format!("look for table {table}"), &mut |_| {
        found = true
    })?;
    Ok(found)
}

/// The names of all chains of a family, each with its table.
///
/// # Errors
/// When the kernel has no nf_tables or does not answer.
pub fn chains(family: Family) -> Result<Vec<(String, String)>, NetlinkError> {
    let asked = Question {
        kind: GET_CHAIN,
        flags: DUMP,
        attributes: &Attributes::new(),
    };
    let mut found = Vec::new();
    ask(family, &asked, "list chains", &mut |payload| {
        // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
        found.extend(text_of(payload, 1).zip(text_of(payload, 3)));
    })?;
    Ok(found)
}
