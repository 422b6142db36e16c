//! `flannelctl diff` and `flannelctl plan`: how this node's kernel differs from what flanneld wants, and what it would write.

use flannel_model::IpFamily;
use flannel_netlink::nftables::has_table;
use flannel_netlink::overlay::encap;
use flannel_nft::TableName;
use flannel_plan::DifferenceKind;
use flannel_store::Store;
use serde::Serialize;

use crate::failure::Failure;
use crate::findings::number;
use crate::node::filter::{self, FilterDifference, Sender};
use crate::node::{Asked, NodeView, RuleDifference, Sources, compare_rules, read};
use crate::output::{Output, columns, with_causes};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DiffView {
    /// Whether anything differs.
    different: bool,
    differences: Vec<Line>,
    sources: Sources,
}

/// One difference.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Line {
    /// `missing`, `wrong`, `extra` or `foreign`.
    kind: String,
    /// What differs.
    object: String,
    /// What it should be; `null` where it should not be there.
    wanted: Option<String>,
    /// What it is; `null` where it is not there.
    found: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PlanView {
    operations: Vec<Operation>,
    sources: Sources,
}

#[derive(Debug, Serialize)]
struct Operation {
    /// `ipv4` or `ipv6`.
    family: &'static str,
    /// As an argument of `ip`, `bridge`, `wg` or `nft`.
    operation: String,
}

/// Shows how the kernel differs; a difference is a failure.
pub async fn diff<S: Store>(asked: Asked<'_, S>, output: &mut Output) -> Result<(), Failure> {
    let mut node = read(asked).await?;
    let tables = tables(&mut node)?;
    let of_overlays = node.overlays.iter().flat_map(|overlay| &overlay.differences);
    let mut differences: Vec<Line> = of_overlays
        .map(|difference| Line {
            kind: difference.kind.to_string(),
            object: difference.object.to_string(),
            wanted: difference.wanted.clone(),
            found: difference.found.clone(),
        })
        .collect();
    differences.extend(tables.into_iter().flat_map(RulesTable::lines));
    for (name, filter) in filters(&mut node) {
        differences.extend(filter_lines(name, filter));
    }
    let count = differences.len();
    let view = DiffView {
        different: count > 0,
        differences,
        sources: node.sources,
    };
    output.show(&view, diff_text)?;
    match count {
        0 => Ok(()),
        count => Err(Failure::Findings(format!(
            "{} (above)",
            number(count, "difference")
        ))),
    }
}

fn diff_text(view: &DiffView) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let lines = match view.differences.as_slice() {
        [] => "The kernel has what flanneld wants.\n".to_owned(),
        lines => columns(
            ["DIFFERENCE", "OBJECT", "WANTED", "FOUND"],
            lines.iter().map(|line| {
                [
                    line.kind.clone(),
                    line.object.clone(),
                    or_dash(&line.wanted),
                    or_dash(&line.found),
                ]
            }),
        ),
    };
    lines + &view.sources.lines()
}

/// Shows what flanneld would write now; nothing is written.
pub async fn plan<S: Store>(asked: Asked<'_, S>, output: &mut Output) -> Result<(), Failure> {
    let mut node = read(asked).await?;
    let tables = tables(&mut node)?;
    let mut operations: Vec<Operation> = Vec::new();
    for overlay in &node.overlays {
        let family = overlay.family();
        operations.extend(overlay.ops.iter().map(|op| Operation {
            family: word(family),
            operation: with_names(&op.to_string(), |index| node.seen.name(index)),
        }));
    }
    operations.extend(tables.iter().filter_map(RulesTable::operation));
    for (name, filter) in filters(&mut node) {
        operations.extend(filter_operations(name, &filter));
    }
    let view = PlanView {
        operations,
        sources: node.sources,
    };
    output.show(&view, plan_text)
}

fn plan_text(view: &PlanView) -> String {
    let mut text = String::new();
    for operation in &view.operations {
        text += &operation.operation;
        text += "\n";
    }
    if text.is_empty() {
        text += "flanneld would write nothing.\n";
    }
    text + &view.sources.lines()
}

fn word(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "ipv4",
        IpFamily::V6 => "ipv6",
    }
}

/// Operations name interfaces by their index, as `dev if3`.
fn with_names(operation: &str, name: impl Fn(u32) -> String) -> String {
    let mut words: Vec<String> = operation.split(' ').map(str::to_owned).collect();
    for i in 1..words.len() {
        let index = words[i].strip_prefix("if").and_then(|digits| digits.parse().ok());
        if let (Some(index), "dev") = (index, words[i - 1].as_str()) {
            words[i] = name(index);
        }
    }
    words.join(" ")
}

/// A table of rules that subnet.env says to be there.
#[derive(Debug)]
struct RulesTable {
    name: TableName,
    family: IpFamily,
    /// How its rules differ; `None` where there is no table.
    rules: Option<Vec<RuleDifference>>,
}

impl RulesTable {
    fn lines(self) -> Vec<Line> {
        let name = self.name;
        let Some(rules) = self.rules else {
            return vec![Line {
                kind: DifferenceKind::Missing.to_string(),
                object: format!("nft table {name}"),
                wanted: Some("the rules of --ip-masq".to_owned()),
                found: None,
            }];
        };
        rules.into_iter().map(|rule| rule_line(name, rule)).collect()
    }

    /// flanneld writes a table whole.
    fn operation(&self) -> Option<Operation> {
        let verb = match &self.rules {
            None => "add",
            Some(rules) if !rules.is_empty() => "replace",
            Some(_) => return None,
        };
        Some(Operation {
            family: word(self.family),
            operation: format!("{verb} table {} with the rules of --ip-masq", self.name),
        })
    }
}

/// The filters of encapsulated packets that differ, compared as far as that can be.
fn filters(node: &mut NodeView) -> Vec<(TableName, FilterDifference)> {
    let mut out = Vec::new();
    for overlay in &node.overlays {
        let name = filter::name(overlay.family());
        match filter::compare(&overlay.desired) {
            Ok(Some(filter)) => out.push((name, filter)),
            Ok(None) if encap::filter(&overlay.desired).is_none() => {}
            Ok(None) => node.sources.add(&format!(
                "--encap-filter: taken for off, because there is no nft table {name}"
            )),
            Err(error) => node
                .sources
                .add(&format!("nft table {name}: not compared, because {error:#}")),
        }
    }
    out
}

fn filter_lines(name: TableName, filter: FilterDifference) -> Vec<Line> {
    if filter.unwanted {
        return vec![Line {
            kind: DifferenceKind::Extra.to_string(),
            object: format!("nft table {name}"),
            wanted: None,
            found: Some("a filter that this backend does not need".to_owned()),
        }];
    }
    let rules = filter.rules.into_iter().map(|rule| rule_line(name, rule));
    let object = |sender: &Sender| format!("element of set {} in nft table {name}", sender.set.name());
    let missing = filter.missing.iter().map(|sender| Line {
        kind: DifferenceKind::Missing.to_string(),
        object: object(sender),
        wanted: Some(sender.to_string()),
        found: None,
    });
    let extra = filter.extra.iter().map(|sender| Line {
        kind: DifferenceKind::Extra.to_string(),
        object: object(sender),
        wanted: None,
        found: Some(sender.to_string()),
    });
    rules.chain(missing).chain(extra).collect()
}

/// In flanneld's order: who may send comes before the rules that ask for it, and goes after them.
fn filter_operations(name: TableName, filter: &FilterDifference) -> Vec<Operation> {
    let element =
        |verb: &str, sender: &Sender| format!("{verb} element {name} {} {{ {sender} }}", sender.set.name());
    let mut all: Vec<String> = Vec::new();
    if filter.unwanted {
        all.push(format!("delete table {name}"));
    }
    all.extend(filter.missing.iter().map(|sender| element("add", sender)));
    if !filter.rules.is_empty() {
        all.push(format!(
            "replace the chains of table {name} with the filter of encapsulated packets"
        ));
    }
    all.extend(filter.extra.iter().map(|sender| element("delete", sender)));
    let family = match name.family {
        flannel_nft::Family::Ip => word(IpFamily::V4),
        flannel_nft::Family::Ip6 => word(IpFamily::V6),
    };
    let operation = |operation| Operation { family, operation };
    all.into_iter().map(operation).collect()
}

fn rule_line(name: TableName, rule: RuleDifference) -> Line {
    Line {
        kind: rule.kind.to_string(),
        object: match rule.chain {
            Some(chain) => format!("rule of chain {chain} in nft table {name}"),
            None => format!("nft table {name}"),
        },
        wanted: rule.wanted,
        found: rule.found,
    }
}

/// The tables of rules, compared as far as that can be.
fn tables(node: &mut NodeView) -> Result<Vec<RulesTable>, Failure> {
    match node.masquerades {
        Some(true) => {}
        Some(false) => return Ok(Vec::new()),
        None => {
            node.sources
                .add("--ip-masq: without subnet.env not known, so the tables of rules are not compared");
            return Ok(Vec::new());
        }
    }
    let mut out = Vec::new();
    for overlay in &node.overlays {
        let family = overlay.family();
        let name = match family {
            IpFamily::V4 => TableName::MASQUERADE,
            IpFamily::V6 => TableName::MASQUERADE_V6,
        };
        let rules = match has_table(family.into(), name.name) {
            Ok(false) => None,
            Ok(true) => match compare_rules(name, &overlay.desired) {
                Ok(rules) => rules,
                Err(error) => {
                    let why = with_causes(&error);
                    node.sources
                        .add(&format!("rules of nft table {name}: not compared, because {why}"));
                    continue;
                }
            },
            Err(error) => {
                node.sources.add(&format!("nf_tables: {}", with_causes(&error)));
                continue;
            }
        };
        out.push(RulesTable { name, family, rules });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_have_their_names() {
        let name = |index| format!("eth{index}");
        assert_eq!(
            with_names("route add 10.5.2.0/24 via 192.0.2.12 dev if2", name),
            "route add 10.5.2.0/24 via 192.0.2.12 dev eth2"
        );
        assert_eq!(with_names("link set if7 up", name), "link set if7 up");
    }
}
