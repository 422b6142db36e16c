//! `flannelctl explain ADDRESS`: what a packet to an address meets on this host: route, neighbour, forwarding entry, devices, rules and
//! counters.

mod answers;
mod filter;
mod place;
mod way;

use std::fmt::Write as _;
use std::net::IpAddr;

use flannel_netlink::RouteConn;
use flannel_store::Store;
use serde::Serialize;

use crate::failure::Failure;
use crate::node::{Asked, NodeView, look, read};
use crate::output::{Output, columns, printable, with_causes};
use answers::Answers;
use filter::Rule;
use place::Place;
use way::Way;

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    address: IpAddr,
    /// What the address is; `null` where etcd could not be asked, or this host is no node.
    place: Option<Place>,
    way: Way,
    /// What the packet filter does with the first packet of a connection that a pod of this node opens.
    rules: Vec<Rule>,
    /// What comes back from a pod elsewhere; `null` where no filter of flanneld's is between.
    answers: Option<Answers>,
    /// What keeps packets from the address, or may.
    problems: Vec<String>,
    /// What could not be asked.
    unknown: Vec<String>,
}

/// Looks and shows.
pub async fn run<S: Store>(asked: Asked<'_, S>, address: IpAddr, output: &mut Output) -> Result<(), Failure> {
    let mut unknown = Vec::new();
    let node = match read(asked).await {
        Ok(node) => Some(node),
        // The kernel's part can be told all the same.
        Err(Failure::Etcd(error)) => {
            unknown.push(format!("whose the address is: {}", with_causes(&error)));
            None
        }
        Err(Failure::NotFound(reason) | Failure::Content(reason)) => {
            unknown.push(format!("whose the address is: {reason}"));
            None
        }
        Err(other) => return Err(other),
    };
    let view = view(node, address, unknown).map_err(|error| {
        Failure::Usage(anyhow::anyhow!(
            "the kernel cannot be asked: {}",
            with_causes(&error)
        ))
    })?;
    output.show(&view, text)
}

fn view(
    node: Option<NodeView>,
    address: IpAddr,
    mut unknown: Vec<String>,
) -> Result<View, flannel_netlink::NetlinkError> {
    let mut conn = RouteConn::open()?;
    let seen = match &node {
        Some(node) => node.seen.clone(),
        None => look(&[])?,
    };
    let way = way::find(&mut conn, &seen, node.as_ref(), address)?;
    let place = node.as_ref().map(|node| place::of(node, address));
    let rules = match &node {
        Some(node) => filter::rules(node, &way, address, &mut unknown),
        None => Vec::new(),
    };
    let answers = node
        .as_ref()
        .zip(place.as_ref())
        .and_then(|(node, place)| answers::find(node, place, &mut unknown));
    let mut problems = way.problems(place.as_ref());
    let of_peer = node.as_ref().zip(place.as_ref());
    problems.extend(of_peer.into_iter().flat_map(|(node, place)| place.problems(node)));
    let drops = rules.iter().filter(|rule| rule.verdict == "drop");
    problems.extend(drops.map(|rule| {
        format!(
            "chain {} of table {} drops it, by {}",
            rule.chain, rule.table, rule.by
        )
    }));
    problems.extend(answers.iter().flat_map(Answers::problems));
    problems.dedup();
    Ok(View {
        address,
        place,
        way,
        rules,
        answers,
        problems,
        unknown,
    })
}

fn text(view: &View) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}  {}", printable(value));
    };
    line("Address", &view.address.to_string());
    if let Some(place) = &view.place {
        line("Is", &place.text);
    }
    for (name, value) in view.way.lines() {
        line(name, &value);
    }
    if let Some(answers) = &view.answers {
        line("Answers", &answers.text());
    }
    if !view.way.devices.is_empty() {
        text += "\n";
        text += &columns(
            [
                "DEVICE",
                "KIND",
                "STATE",
                "MTU",
                "RECEIVED",
                "SENT",
                "RECEIVED LOST",
                "SENT LOST",
            ],
            view.way.devices.iter().map(way::Device::row),
        );
    }
    if !view.rules.is_empty() {
        text += "\nThe first packet of a connection that a pod of this node opens there meets:\n";
        text += &columns(
            ["HOOK", "TABLE", "CHAIN", "VERDICT", "BY", "COUNTED", "UNLESS"],
            view.rules.iter().map(Rule::row),
        );
    }
    for (heading, lines) in [("Problems", &view.problems), ("Not known", &view.unknown)] {
        for (i, found) in lines.iter().enumerate() {
            if i == 0 {
                let _ = writeln!(text, "\n{heading}:");
            }
            let _ = writeln!(text, "  {}", printable(found));
        }
    }
    text
}
