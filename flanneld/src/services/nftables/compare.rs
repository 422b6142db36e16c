//! The look at all that stands, now and then, beside the work on changes: the kernel walks a set from its begin for every 32 KiB that it
//! lists (`nft_rhash_walk`), which with 10,000 Services of ten endpoints is 3 seconds, for which no Service should wait.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use flannel_netlink::NetlinkError;
use flannel_netlink::nftables::{Family, NftConn, TableWatch};
use flannel_plan::FrontendKey;
use flannel_plan::nft::{NftElement, TABLE, Translated, elements};

use super::table::list;
use crate::said::chain;

/// What the table of a family should hold.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) family: Family,
    /// As the kernel showed them when they were written.
    pub(super) rules: BTreeMap<String, Vec<Vec<u8>>>,
    pub(super) known: BTreeMap<FrontendKey, Translated>,
    pub(super) general: BTreeSet<NftElement>,
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// What should be there, and nothing else.
    Same,
    /// Something else.
    Other,
    /// Tables that changed while they were looked at, by us or by others, or a kernel that did not answer.
    Nothing,
}

/// A look that goes on.
#[derive(Debug)]
pub(super) struct Look {
    thread: JoinHandle<Found>,
    /// When it began, and how many transactions the network namespace had seen by then.
    pub(super) began: (Instant, Option<u32>),
}

impl Look {
    /// Begins to look, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn begin(tables: Vec<Contents>, generation: Option<u32>) -> io::Result<Self> {
        let began = (Instant::now(), generation);
        let thread = Builder::new().name("nft-compare".to_owned()).spawn(move || {
            let watch = TableWatch::open(TABLE);
            watch
                .and_then(|watch| compare(tables, &watch))
                .unwrap_or_else(|error| {
                    tracing::debug!(error = chain(&error), "the elements of Services are not compared");
                    Found::Nothing
                })
        })?;
        Ok(Self { thread, began })
    }

    /// Whether it has found something. Never blocks.
    pub(super) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// What it found. Blocks until it is over.
    pub(super) fn found(self) -> Found {
        self.thread.join().unwrap_or(Found::Nothing)
    }
}

/// Compares the tables, which `watch` has in view from before on.
///
/// # Errors
/// When the kernel refuses or does not answer in time.
pub(super) fn compare(tables: Vec<Contents>, watch: &TableWatch) -> Result<Found, NetlinkError> {
    let mut conn = NftConn::open()?;
    let mut same = true;
    for contents in tables {
        same = same && contents.are_in(&mut conn)?;
    }
    // Port 0 is the kernel's: whoever wrote, and were it ourselves, it was meanwhile.
    Ok(match (watch.touched(0), same) {
        (true, _) => Found::Nothing,
        (false, true) => Found::Same,
        (false, false) => Found::Other,
    })
}

impl Contents {
    fn are_in(self, conn: &mut NftConn) -> Result<bool, NetlinkError> {
        if conn.rules(self.family, TABLE)? != self.rules {
            return Ok(false);
        }
        let mut kernel = list(conn, self.family)?;
        let mut is_there = |wanted| kernel.settle(wanted) == (Vec::new(), Vec::new());
        let all = is_there(self.general)
            && self
                .known
                .iter()
                .all(|(key, translated)| is_there(elements(key, translated)));
        Ok(all && kernel.rest().is_empty())
    }
}
