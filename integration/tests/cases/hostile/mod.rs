//! Calls that no sane runtime makes. Each is refused with a code that says what kind of fault it is and a text that names the field,
//! or taken without harm: then DEL leaves the node as it was.

mod inputs;
mod raw;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use flannel_lab::pod::{CniCall, make_netns};
use flannel_lab::{Lab, LabOptions, Node, eventually, limit};
use serde_json::Value;

use super::common::{addresses, link};
use inputs::{Input, POD};

const KEEPER: &str = "keeper";
/// What the issue of this test is: fewer would be another test.
const FEWEST: usize = 1_000;
/// A sane call takes milliseconds.
const SECONDS: u64 = 5;
/// Codes that belong to the situation and not to the input are no answer to it.
const GENERIC: [u64; 2] = [999, 100];

pub fn a_thousand_inputs_do_no_harm() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).without_etcd())?;
    let node = lab.node(1)?;
    node.shell(
        "printf 'FLANNEL_NETWORK=10.5.0.0/16\\nFLANNEL_SUBNET=10.5.7.1/24\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=true\\n' > /run/flannel/subnet.env",
    )?;
    let keeper = node.add_pod(KEEPER)?;
    make_netns(node, POD)?;
    let before = State::of(node)?;
    let inputs = inputs::all();
    ensure!(inputs.len() >= FEWEST, "only {} inputs", inputs.len());
    let mut faults = Vec::new();
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for (number, input) in inputs.iter().enumerate() {
        match judge(node, input) {
            Ok(outcome) => *outcomes.entry(outcome).or_default() += 1,
            Err(error) => faults.push(format!("{}: {error:#}", input.what)),
        }
        if number % 100 == 99 {
            before
                .compare(node)
                .with_context(|| format!("one of the 100 inputs up to {}", input.what))?;
        }
    }
    before.compare(node)?;
    keeper.ping("10.5.7.1")?;
    println!("{} inputs: {outcomes:?}", inputs.len());
    if !faults.is_empty() {
        bail!(
            "{} of {} inputs:\n{}",
            faults.len(),
            inputs.len(),
            faults.join("\n")
        );
    }
    Ok(())
}

/// What became of one input, in a word.
fn judge(node: &Node, input: &Input) -> Result<String> {
    let start = Instant::now();
    let output = node.cni(&input.call)?;
    ensure!(start.elapsed() < limit(SECONDS), "it took {:?}", start.elapsed());
    ensure!(!output.stderr.contains("panicked"), "a panic: {}", output.stderr);
    let taken = output.success();
    ensure!(
        taken || output.status.code() == Some(1),
        "it ended with {}",
        output.status
    );
    if taken {
        undo(node, &input.call)?;
        return Ok("taken".into());
    }
    ensure!(
        output.stdout.len() < 8_192,
        "an error of {} bytes",
        output.stdout.len()
    );
    let error: Value = serde_json::from_str(&output.stdout).context("the error is no JSON")?;
    let code = error["code"].as_u64().context("no code")?;
    ensure!(!GENERIC.contains(&code), "a code without meaning: {error}");
    ensure!(
        input.codes.contains(&code),
        "code {code}, expected one of {:?}: {error}",
        input.codes
    );
    ensure!(
        error["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
        "no message: {error}"
    );
    // What CHECK finds otherwise on the node is told by the device, not by the key.
    if let Some(name) = input.names.as_ref().filter(|_| code != 103) {
        let text = format!("{} {}", error["msg"], error["details"]);
        ensure!(text.contains(name.as_str()), "{name} is not named: {error}");
    }
    Ok(format!("code {code}"))
}

/// Takes back what an accepted call made: an ordinary DEL must be enough.
fn undo(node: &Node, call: &CniCall) -> Result<()> {
    let plain = CniCall {
        command: "DEL".into(),
        stdin: inputs::whole().to_string().into(),
        ..call.clone()
    };
    // As it was configured, then as the next configuration would have it.
    for del in [
        CniCall {
            command: "DEL".into(),
            ..call.clone()
        },
        plain,
    ] {
        let output = node.cni(&del)?;
        ensure!(
            output.success(),
            "it was taken, and then DEL fails: {}",
            output.stdout
        );
    }
    Ok(())
}

/// What must be the same afterwards.
#[derive(Debug, PartialEq)]
struct State {
    links: Vec<String>,
    uplink: Vec<String>,
    routes: String,
    elements: Vec<String>,
    inside: String,
    files: Vec<String>,
}

impl State {
    fn of(node: &Node) -> Result<Self> {
        let mut links = node.link_names()?;
        links.sort();
        let files = node.shell(
            "find /run/flannel /run/netns /var/lib /tmp /etc/cni -xdev \\( -type f -o -type d \\) 2>/dev/null | grep -v -e /lock -e last_reserved | sort",
        )?;
        Ok(Self {
            links,
            uplink: addresses(&link(node, "eth0")?),
            routes: node.run(&["ip", "route"])?,
            elements: node
                .run(&["nft", "-s", "list", "ruleset"])?
                .lines()
                .filter(|line| line.contains("elements"))
                .map(str::to_owned)
                .collect(),
            inside: node.pod_place(POD).run(&["ip", "-br", "link"])?,
            files: files.lines().map(str::to_owned).collect(),
        })
    }

    /// A deletion that was handed on may take a moment. Bridges, tables
    /// and folders that a taken call named stay by design; what belongs to its container does not.
    fn compare(&self, node: &Node) -> Result<()> {
        eventually(limit(10), "the node to be as before", || {
            let now = Self::of(node)?;
            let more: Vec<&String> = now
                .links
                .iter()
                .filter(|name| !self.links.contains(name))
                .collect();
            ensure!(
                more.iter()
                    .all(|name| !name.starts_with("veth") && !name.starts_with("eth")),
                "new links {more:?}"
            );
            ensure!(
                self.links.iter().all(|name| now.links.contains(name)),
                "links are gone: {:?}",
                now.links
            );
            ensure!(now.uplink == self.uplink, "eth0 has {:?}", now.uplink);
            ensure!(now.elements == self.elements, "nft has {:?}", now.elements);
            ensure!(now.inside == self.inside, "in the pod: {}", now.inside);
            let leases = |state: &Self| -> Vec<String> {
                let is_address = |file: &&String| {
                    file.rsplit('/')
                        .next()
                        .is_some_and(|name| name.parse::<std::net::IpAddr>().is_ok())
                };
                state.files.iter().filter(is_address).cloned().collect()
            };
            ensure!(leases(&now) == leases(self), "leases: {:?}", leases(&now));
            Ok(())
        })
    }
}
