//! Whether what a pod elsewhere answers is let out of the tunnel.

use std::collections::BTreeMap;

use flannel_model::{IpFamily, IpSubnet};
use serde::Serialize;

use super::place::Place;
use crate::node::NodeView;
use crate::node::filter::{self, Admission, Sender};
use crate::output::with_causes;

/// How the filter of encapsulated packets meets what comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answers {
    /// The filter's table with its family.
    pub table: String,
    /// The elements of its sets that let them in.
    pub by: Vec<String>,
    /// Elements that are not there, so that all is dropped.
    pub missing: Vec<String>,
    /// Packets that it dropped, of whomever, by the reasons for which some were.
    pub dropped: BTreeMap<String, u64>,
}

impl Answers {
    fn new(table: String, admission: Admission) -> Self {
        let named = |senders: Vec<Sender>| {
            let named = senders.iter().map(|one| format!("{} {one}", one.set.name()));
            named.collect()
        };
        Self {
            table,
            by: named(admission.present),
            missing: named(admission.missing),
            dropped: admission.dropped,
        }
    }

    /// As a line.
    pub fn text(&self) -> String {
        let let_in = match self.missing.as_slice() {
            [] => format!("let in by element {} of table {}", self.by.join(", "), self.table),
            missing => format!(
                "dropped: table {} has no element {}",
                self.table,
                missing.join(", ")
            ),
        };
        let dropped: Vec<String> = self
            .dropped
            .iter()
            .map(|(reason, packets)| format!("{packets} for {reason}"))
            .collect();
        match dropped.is_empty() {
            true => let_in,
            false => format!("{let_in}; of all senders it dropped {}", dropped.join(", ")),
        }
    }

    /// What keeps them out.
    pub fn problems(&self) -> Vec<String> {
        let missing = self.missing.iter();
        let told = missing.map(|element| {
            format!(
                "answers are dropped: element {element} is not in table {}; `flannelctl plan --dry-run` tells what flanneld would do",
                self.table
            )
        });
        told.collect()
    }
}

/// Asks the kernel; `None` where no filter is between.
pub fn find(node: &NodeView, place: &Place, unknown: &mut Vec<String>) -> Option<Answers> {
    if place.kind != "podElsewhere" {
        return None;
    }
    let subnet: IpSubnet = place.subnet.as_ref()?.parse().ok()?;
    let family = IpFamily::of(subnet.network());
    let overlay = node.overlays.iter().find(|overlay| overlay.family() == family)?;
    match filter::admission(&overlay.desired, &subnet) {
        Ok(admission) => admission.map(|found| Answers::new(filter::name(family).to_string(), found)),
        Err(error) => {
            unknown.push(format!(
                "the filter of encapsulated packets: {}",
                with_causes(&error)
            ));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_by_what_they_come_in_or_what_is_missing() {
        let mut answers = Answers {
            table: "ip flannel-encap".to_owned(),
            by: vec!["paths 192.0.2.2 . 10.5.2.0 . 10.5.1.0".to_owned()],
            missing: Vec::new(),
            dropped: BTreeMap::new(),
        };
        assert_eq!(
            answers.text(),
            "let in by element paths 192.0.2.2 . 10.5.2.0 . 10.5.1.0 of table ip flannel-encap"
        );
        assert!(answers.problems().is_empty());
        answers.missing = std::mem::take(&mut answers.by);
        answers.dropped.insert("inner_source".to_owned(), 3);
        assert_eq!(
            answers.text(),
            "dropped: table ip flannel-encap has no element paths 192.0.2.2 . 10.5.2.0 . 10.5.1.0; of all senders it dropped 3 for \
             inner_source"
        );
        assert!(answers.problems()[0].contains("plan --dry-run"));
    }
}
