//! Which tables and chains there are, of whomever.

use std::collections::BTreeMap;

use super::conn::{attribute, text_of};
use super::{Attributes, Family, Question, ask};
use crate::conn::{ACK, DUMP};
use crate::error::NetlinkError;
use crate::wire;

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

/// Where a chain stands to which the kernel itself sends packets, and what becomes of those that it does not decide about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// NF_INET_*
    pub hook: u32,
    /// Those with a lower one come before.
    pub priority: i32,
    /// They are dropped.
    pub drops: bool,
}

/// The base chains of a table, by name; none where there is no such table.
///
/// # Errors
/// When the kernel has no nf_tables or does not answer.
pub fn base_chains(family: Family, table: &str) -> Result<BTreeMap<String, BaseChain>, NetlinkError> {
    let asked = Question {
        kind: GET_CHAIN,
        flags: DUMP,
        attributes: &Attributes::new(),
    };
    let mut found = BTreeMap::new();
    ask(
        family,
        &asked,
        &format!("list chains of table {table}"),
        &mut |payload| {
            // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
            if text_of(payload, 1).as_deref() == Some(table) {
                found.extend(text_of(payload, 3).zip(base(payload)));
            }
        },
    )?;
    Ok(found)
}

fn base(payload: &[u8]) -> Option<BaseChain> {
    let number = |bytes: &[u8]| Some(u32::from_be_bytes(bytes.try_into().ok()?));
    // NFTA_CHAIN_HOOK with NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY
    let hook = attribute(payload, 4)?;
    let of_hook = |wanted| {
        let (_, value) = wire::attributes(hook).find(|(kind, _)| *kind == wanted)?;
        number(value)
    };
    Some(BaseChain {
        // NFTA_CHAIN_TYPE
        kind: text_of(payload, 7).unwrap_or_default(),
        hook: of_hook(1)?,
        priority: of_hook(2)?.cast_signed(),
        // NFTA_CHAIN_POLICY: NF_DROP is 0
        drops: attribute(payload, 5).and_then(number) == Some(0),
    })
}
