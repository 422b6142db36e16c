//! VLANs of the bridge: which frames arrive where, and what the kernel says of its ports.

use anyhow::{Context, Result, ensure};
use flannel_lab::pod::{CniCall, make_netns};
use flannel_lab::{Lab, LabOptions, Node, Place};
use serde_json::{Value, json};

use super::common::{addresses, await_ping, link, list, text};

const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.5.0.0/16\\nFLANNEL_SUBNET=10.5.7.1/24\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=true\\n";

fn lab() -> Result<Lab> {
    let lab = Lab::new(&LabOptions::nodes(1).without_etcd())?;
    lab.node(1)?
        .shell(&format!("printf '{SUBNET_ENV}' > /run/flannel/subnet.env"))?;
    Ok(lab)
}

fn config(delegate: &Value) -> Value {
    json!({ "name": "cbr0", "cniVersion": "1.0.0", "type": "flannel", "delegate": delegate })
}

fn add(node: &Node, name: &str, delegate: &Value) -> Result<flannel_lab::Pod> {
    node.add_pod_with(name, &config(delegate).to_string())
}

/// What CHECK answers to the result of ADD.
fn check(node: &Node, pod: &flannel_lab::Pod, delegate: &Value) -> Result<Value> {
    let mut config = config(delegate);
    config["prevResult"] = pod.result().clone();
    let call = CniCall::new("CHECK", pod.name()).stdin(config.to_string());
    let output = node.cni(&call)?;
    Ok(serde_json::from_str(&output.stdout).unwrap_or(Value::Null))
}

fn port(pod: &flannel_lab::Pod) -> String {
    text(&pod.result()["interfaces"][1]["name"])
}

/// `number flags` of each VLAN of a port, as `bridge` shows them.
fn vlans(node: &Node, port: &str) -> Result<Vec<String>> {
    let shown = node.bridge_json(&["-compressvlans", "vlan", "show", "dev", port])?;
    let entries = list(&shown[0]["vlans"]);
    let of = |entry: &Value| {
        let mut words = vec![entry["vlan"].to_string()];
        words.extend(entry["vlanEnd"].as_u64().map(|end| format!("to {end}")));
        words.extend(list(&entry["flags"]).iter().map(text));
        words.join(" ")
    };
    Ok(entries.iter().map(of).collect())
}

fn unreachable(from: &Place, to: &str) -> Result<()> {
    let output = from.exec(&["ping", "-c", "2", "-W", "1", to])?;
    ensure!(!output.success(), "{to} answers");
    Ok(())
}

pub fn containers_are_in_their_vlan_with_a_gateway_of_its_own() -> Result<()> {
    let lab = lab()?;
    let node = lab.node(1)?;
    let own = json!({ "isDefaultGateway": true, "vlan": 100 });
    let keeping = json!({ "isDefaultGateway": true, "vlan": 100, "preserveDefaultVlan": true });
    let other = json!({ "isGateway": false, "vlan": 200 });
    let a = add(node, "a", &own)?;
    let b = add(node, "b", &keeping)?;
    let c = add(node, "c", &other)?;

    let names: Vec<String> = list(&a.result()["interfaces"])
        .iter()
        .map(|interface| text(&interface["name"]))
        .collect();
    assert_eq!(names, ["cni0", &port(&a), "eth0", "cni0.100"]);
    assert_eq!(addresses(&link(node, "cni0.100")?), ["10.5.7.1/24"]);
    assert_eq!(addresses(&link(node, "cni0")?), Vec::<String>::new());
    let mac = &a.result()["interfaces"][3]["mac"];
    assert_eq!(link(node, "cni0.100")?["address"], *mac);
    for name in ["cni0", "cni0.100"] {
        assert_eq!(
            node.read_file(&format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"))?,
            "0\n"
        );
    }
    assert_eq!(vlans(node, &port(&a))?, ["100 PVID Egress Untagged"]);
    assert_eq!(
        vlans(node, &port(&b))?,
        ["1 Egress Untagged", "100 PVID Egress Untagged"]
    );
    assert_eq!(vlans(node, &port(&c))?, ["200 PVID Egress Untagged"]);

    a.ping(b.ip())?;
    a.ping("10.5.7.1")?;
    node.ping(a.ip())?;
    unreachable(&c, a.ip())?;
    unreachable(&c, "10.5.7.1")?;

    for (pod, delegate) in [(&a, &own), (&b, &keeping), (&c, &other)] {
        assert_eq!(check(node, pod, delegate)?, Value::Null);
    }
    let tampered = [
        (
            format!("bridge vlan add vid 300 dev {}", port(&a)),
            format!("bridge vlan del vid 300 dev {}", port(&a)),
        ),
        (
            "ip link set cni0 type bridge vlan_filtering 0".into(),
            "ip link set cni0 type bridge vlan_filtering 1".into(),
        ),
        (
            "ip address del 10.5.7.1/24 dev cni0.100".into(),
            "ip address add 10.5.7.1/24 dev cni0.100".into(),
        ),
    ];
    for (change, back) in tampered {
        node.shell(&change)?;
        assert_eq!(check(node, &a, &own)?["code"], 103, "{change}");
        node.shell(&back)?;
        assert_eq!(check(node, &a, &own)?, Value::Null, "{back}");
    }

    // A gateway that was left half made is finished by the next ADD.
    let gateway_port = text(&link(node, "cni0.100")?["link"]);
    node.shell(&format!(
        "ip link set cni0.100 down && bridge vlan del vid 100 dev {gateway_port}"
    ))?;
    let d = add(node, "d", &own)?;
    d.ping("10.5.7.1")?;
    for pod in [a, b, c, d] {
        let host = port(&pod);
        node.del_pod(pod)?;
        ensure!(!node.link_names()?.contains(&host), "{host} is left");
    }
    assert_eq!(
        node.shell("ls /var/lib/cni/networks/cbr0 | grep -c ^10 || true")?
            .trim(),
        "0"
    );
    Ok(())
}

pub fn a_trunk_carries_its_tags_and_no_others() -> Result<()> {
    let lab = lab()?;
    let node = lab.node(1)?;
    let plain = json!({ "isGateway": false, "vlan": 100 });
    let trunk = json!({ "isGateway": false, "vlanTrunk": [{ "id": 100 }, { "minID": 200, "maxID": 202 }] });
    let a = add(node, "a", &plain)?;
    let t = add(node, "t", &trunk)?;
    assert_eq!(
        vlans(node, &port(&t))?,
        ["1 PVID Egress Untagged", "100", "200 to 202"]
    );
    assert_eq!(check(node, &t, &trunk)?, Value::Null);
    // Untagged, it is in VLAN 1, and the other is not.
    unreachable(&t, a.ip())?;
    for (id, address) in [(100, "10.5.7.240"), (300, "10.5.7.241")] {
        t.shell(&format!(
            "ip link add link eth0 name eth0.{id} type vlan id {id} && ip address add {address}/32 dev eth0.{id} && ip link set eth0.{id} up"
        ))?;
    }
    t.shell(&format!("ip route add {}/32 dev eth0.100 src 10.5.7.240", a.ip()))?;
    a.shell("ip route replace 10.5.7.240/32 dev eth0")?;
    await_ping(&t, a.ip())?;
    t.shell(&format!(
        "ip route replace {}/32 dev eth0.300 src 10.5.7.241",
        a.ip()
    ))?;
    unreachable(&t, a.ip())?;
    let dropped = node.shell("nft list chain bridge flannel-cni-guard trunk")?;
    ensure!(
        !dropped.contains("counter packets 0 "),
        "the guard let the tag 300 pass: {dropped}"
    );
    // Tags 0 and 1 would carry an address of somebody else's past the guard into the VLAN of untagged frames.
    let before = node.shell("nft list set bridge flannel-cni-guard tagged")?;
    ensure!(before.contains(&port(&t)), "no tags of {}: {before}", port(&t));
    node.del_pod(t)?;
    node.del_pod(a)?;
    let rules = node.shell("nft list table bridge flannel-cni-guard")?;
    let dynamic = rules
        .replace("elements = { 8285, 8472 }", "")
        .replace("elements = { 8472, 8285 }", "");
    ensure!(!dynamic.contains("elements"), "left: {rules}");
    Ok(())
}

pub fn a_subnet_is_in_one_vlan() -> Result<()> {
    let lab = lab()?;
    let node = lab.node(1)?;
    let a = add(node, "a", &json!({ "isDefaultGateway": true, "vlan": 100 }))?;
    for (number, delegate) in [
        json!({ "isDefaultGateway": true }),
        json!({ "isDefaultGateway": true, "vlan": 200 }),
    ]
    .iter()
    .enumerate()
    {
        let name = format!("x{number}");
        make_netns(node, &name)?;
        let output = node.cni(&CniCall::add(&name).stdin(config(delegate).to_string()))?;
        let answer: Value = serde_json::from_str(&output.stdout).context("no answer")?;
        assert_eq!(answer["code"], 7, "{answer}");
        ensure!(
            text(&answer["msg"]).contains("cni0.100 bears already"),
            "{answer}"
        );
    }
    a.ping("10.5.7.1")?;
    let leases = node.shell("ls /var/lib/cni/networks/cbr0 | grep ^10")?;
    assert_eq!(leases.trim(), a.ip());
    // An address that is on the bridge itself, as before VLANs were configured.
    node.del_pod(a)?;
    node.shell("ip link del cni0.100 && ip address add 10.5.7.1/24 dev cni0")?;
    make_netns(node, "y")?;
    let call = CniCall::add("y").stdin(config(&json!({ "isDefaultGateway": true, "vlan": 100 })).to_string());
    let answer: Value = serde_json::from_str(&node.cni(&call)?.stdout).context("no answer")?;
    assert_eq!(answer["code"], 7, "{answer}");
    ensure!(
        text(&answer["msg"]).contains("which cni0 bears already"),
        "{answer}"
    );
    Ok(())
}

pub fn a_kernel_without_them_is_named() -> Result<()> {
    let lab = lab()?;
    let node = lab.node(1)?;
    for (number, delegate) in [
        json!({ "isDefaultGateway": true, "vlan": 100 }),
        json!({ "vlanTrunk": [{ "id": 5 }] }),
    ]
    .iter()
    .enumerate()
    {
        let name = format!("x{number}");
        let pod = make_netns(node, &name)?;
        let output = node.cni(&CniCall::add(&name).stdin(config(delegate).to_string()))?;
        let answer: Value = serde_json::from_str(&output.stdout).context("no answer")?;
        assert_eq!(answer["code"], 100, "{answer}");
        ensure!(
            text(&answer["details"]).contains("CONFIG_BRIDGE_VLAN_FILTERING"),
            "{answer}"
        );
        ensure!(!pod.shell("ip -o link")?.contains("eth0"), "eth0 is left");
        assert_eq!(
            node.shell("ls /var/lib/cni/networks/cbr0 | grep -c ^10 || true")?
                .trim(),
            "0"
        );
    }
    Ok(())
}
