//! Situations in which the usual plugins, bridge and host-local, go wrong: each was seen with them.

use anyhow::{Context, Result, ensure};
use flannel_lab::pod::{CNI_CONFIG, CniCall, make_netns};
use flannel_lab::{Lab, LabOptions, Node, Output, eventually, limit};
use serde_json::{Value, json};

use super::common::{addresses, await_ping, link, list, text};

const ADDRESSES: &str = "/var/lib/cni/networks/cbr0";

/// A node with a subnet; the plugin masquerades when `masquerade` says so.
fn lab_with(subnet: &str, mtu: u32, masquerade: bool) -> Result<Lab> {
    let lab = Lab::new(&LabOptions::nodes(1).without_etcd())?;
    set_subnet(lab.node(1)?, subnet, mtu, masquerade)?;
    Ok(lab)
}

/// Whoever masquerades: the daemon says in the file that it does, and then the plugin does not.
fn set_subnet(node: &Node, subnet: &str, mtu: u32, masquerade: bool) -> Result<()> {
    let daemon = !masquerade;
    node.shell(&format!(
        "printf 'FLANNEL_NETWORK=10.5.0.0/16\\nFLANNEL_SUBNET={subnet}\\nFLANNEL_MTU={mtu}\\nFLANNEL_IPMASQ={daemon}\\n' > /run/flannel/subnet.env"
    ))
    .map(drop)
}

/// The usual configuration in version 1.0.0 with some keys more.
fn config(more: &Value) -> Result<Value> {
    let mut config: Value = serde_json::from_str(CNI_CONFIG)?;
    config["cniVersion"] = "1.0.0".into();
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    Ok(config)
}

fn call(node: &Node, verb: &str, pod: &str, more: &Value) -> Result<Output> {
    node.cni(&CniCall::new(verb, pod).stdin(config(more)?.to_string()))
}

/// ADD for a new pod; its result.
fn add(node: &Node, pod: &str, more: &Value) -> Result<Value> {
    make_netns(node, pod)?;
    call(node, "ADD", pod, more)?.json()
}

fn ip(result: &Value) -> String {
    let address = text(&result["ips"][0]["address"]);
    address.split('/').next().unwrap_or_default().to_owned()
}

fn del(node: &Node, pod: &str) -> Result<()> {
    call(node, "DEL", pod, &json!({}))?.ok().map(drop)
}

fn no_veth(node: &Node) -> Result<()> {
    eventually(limit(5), "no veth", || {
        let names = node.link_names()?;
        ensure!(!names.iter().any(|name| name.starts_with("veth")), "{names:?}");
        Ok(())
    })
}

/// The links inside of a pod, besides those that every namespace has.
fn links_inside(node: &Node, pod: &str) -> Result<Vec<String>> {
    let links = node.pod_place(pod).ip_json(&["link", "show"])?;
    let names = list(&links)
        .iter()
        .map(|link| text(&link["ifname"]))
        .collect::<Vec<_>>();
    Ok(names.into_iter().filter(|name| name.starts_with("eth")).collect())
}

/// bridge leaves the veth and the rules.
pub fn del_without_namespace_removes_veth_and_rules() -> Result<()> {
    let lab = lab_with("10.5.7.1/24", 1450, true)?;
    let node = lab.node(1)?;
    let result = add(node, "a", &json!({}))?;
    let rules = node.run(&["nft", "list", "ruleset"])?;
    ensure!(
        rules.contains(&ip(&result)),
        "no rule names {}: {rules}",
        ip(&result)
    );
    let stdin = config(&json!({ "prevResult": result }))?.to_string();
    node.cni(&CniCall::del("a").without_netns().stdin(stdin))?.ok()?;
    no_veth(node)?;
    let rules = node.run(&["nft", "list", "ruleset"])?;
    ensure!(!rules.contains(&ip(&result)), "left: {rules}");
    assert_eq!(
        node.shell(&format!("ls {ADDRESSES} | grep -c ^10 || true"))?
            .trim(),
        "0"
    );
    Ok(())
}

/// bridge's DEL then fails for want of a chain, and runtimes keep the pod for ever.
pub fn del_succeeds_after_an_add_that_never_masqueraded() -> Result<()> {
    let lab = lab_with("10.5.7.1/24", 1450, true)?;
    let node = lab.node(1)?;
    make_netns(node, "a")?;
    // No way leads to this gateway, which the kernel finds out after the pair is made and before any rule is.
    let routes = json!({ "ipam": { "routes": [{ "dst": "192.0.2.0/24", "gw": "198.51.100.1" }] } });
    let output = call(node, "ADD", "a", &routes)?;
    ensure!(
        !output.success(),
        "a route to nowhere was made: {}",
        output.stdout
    );
    call(node, "DEL", "a", &routes)?.ok()?;
    call(node, "DEL", "a", &routes)?.ok()?;
    no_veth(node)
}

/// bridge leaves eth0 in the pod and the veth on the node.
pub fn exhausted_pool_leaves_nothing_and_del_succeeds() -> Result<()> {
    let lab = lab_with("10.5.7.1/30", 1450, true)?;
    let node = lab.node(1)?;
    add(node, "a", &json!({}))?;
    make_netns(node, "b")?;
    let output = call(node, "ADD", "b", &json!({}))?;
    ensure!(!output.success(), "a second pod in a /30: {}", output.stdout);
    assert_eq!(links_inside(node, "b")?, Vec::<String>::new());
    let veths = node
        .link_names()?
        .iter()
        .filter(|name| name.starts_with("veth"))
        .count();
    assert_eq!(veths, 1);
    del(node, "b")?;
    del(node, "a")?;
    no_veth(node)
}

/// A bridge that lost its last port before it had an address has the hardware address 0, which bridge writes back for ever.
pub fn bridge_without_hardware_address_works() -> Result<()> {
    let lab = lab_with("10.5.7.1/24", 1450, false)?;
    let node = lab.node(1)?;
    node.shell(
        "ip link add cni0 type bridge; ip link add tmp0 type veth peer name tmp1; \
         ip link set tmp0 master cni0; ip link delete tmp0",
    )?;
    assert_eq!(
        link(node, "cni0")?["address"],
        "00:00:00:00:00:00",
        "the kernel no longer does this"
    );
    let pod = node.add_pod("a")?;
    await_ping(&pod, "10.5.7.1")?;
    let mac = link(node, "cni0")?["address"].clone();
    ensure!(mac != "00:00:00:00:00:00", "the bridge has no address still");
    node.add_pod("b")?;
    assert_eq!(
        link(node, "cni0")?["address"],
        mac,
        "the bridge's address changes with its ports"
    );
    Ok(())
}

/// bridge adds its own default route to the given one, and the kernel refuses the second.
pub fn given_default_route_and_default_gateway_agree() -> Result<()> {
    let lab = lab_with("10.5.7.1/24", 1450, false)?;
    let node = lab.node(1)?;
    add(
        node,
        "a",
        &json!({ "ipam": { "routes": [{ "dst": "0.0.0.0/0" }] } }),
    )?;
    let routes = node.pod_place("a").ip_json(&["-4", "route", "show", "default"])?;
    assert_eq!(list(&routes).len(), 1, "{routes}");
    assert_eq!(routes[0]["gateway"], "10.5.7.1");
    Ok(())
}

/// host-local never gives such an address again.
pub fn empty_lease_file_is_no_lost_address() -> Result<()> {
    let lab = lab_with("10.5.7.1/30", 1450, false)?;
    let node = lab.node(1)?;
    node.shell(&format!("mkdir -p {ADDRESSES}; : > {ADDRESSES}/10.5.7.2"))?;
    assert_eq!(ip(&add(node, "a", &json!({}))?), "10.5.7.2");
    Ok(())
}

/// bridge refuses every pod from then on, because of the old address.
pub fn changed_subnet_serves_new_pods_and_keeps_old_ones() -> Result<()> {
    let lab = lab_with("10.5.7.1/24", 1450, false)?;
    let node = lab.node(1)?;
    let old = node.add_pod("old")?;
    set_subnet(node, "10.5.9.1/24", 1450, false)?;
    let new = node.add_pod("new")?;
    ensure!(new.ip().starts_with("10.5.9."), "{}", new.ip());
    let bridge = addresses(&link(node, "cni0")?);
    ensure!(bridge.contains(&"10.5.9.1/24".into()), "{bridge:?}");
    await_ping(&new, "10.5.9.1")?;
    await_ping(&old, "10.5.7.1").context("the old pod's gateway")?;
    await_ping(&old, new.ip()).context("from the old pod to the new one")?;
    del(node, "old")?;
    del(node, "new")?;
    no_veth(node)
}

/// host-local frees the address while the pod still sends from it.
pub fn del_without_namespace_takes_the_address_from_a_living_pod() -> Result<()> {
    let lab = lab_with("10.5.7.1/30", 1450, false)?;
    let node = lab.node(1)?;
    let first = ip(&add(node, "a", &json!({}))?);
    node.cni(&CniCall::del("a").without_netns())?.ok()?;
    let second = eventually(limit(10), "the address to be free", || add_again(node, "b"))?;
    assert_eq!(first, second, "there is only one");
    assert_eq!(
        links_inside(node, "a")?,
        Vec::<String>::new(),
        "two pods have {first}"
    );
    Ok(())
}

fn add_again(node: &Node, pod: &str) -> Result<String> {
    node.shell(&format!("ip netns delete {pod} 2>/dev/null || true"))?;
    add(node, pod, &json!({})).map(|result| ip(&result))
}

/// host-local gives a living pod's address to another.
pub fn lost_leases_give_no_address_twice() -> Result<()> {
    let lab = lab_with("10.5.7.1/24", 1450, false)?;
    let node = lab.node(1)?;
    let old = ip(&add(node, "a", &json!({}))?);
    node.shell("rm -rf /var/lib/cni/networks")?;
    let new = ip(&add(node, "b", &json!({}))?);
    ensure!(old != new, "both pods have {old}");
    Ok(())
}

/// bridge's CHECK finds all well.
pub fn check_sees_lost_rules() -> Result<()> {
    let lab = lab_with("10.5.7.1/24", 1450, true)?;
    let node = lab.node(1)?;
    let previous = json!({ "prevResult": add(node, "a", &json!({}))? });
    call(node, "CHECK", "a", &previous)?
        .ok()
        .context("on a sound pod")?;
    node.run(&["nft", "flush", "ruleset"])?;
    let output = call(node, "CHECK", "a", &previous)?;
    ensure!(!output.success(), "CHECK is content without the masquerade rules");
    ensure!(output.stdout.contains("masq"), "not said: {}", output.stdout);
    Ok(())
}

/// bridge leaves cni0 at the old one, so that full packets of new pods vanish.
pub fn changed_mtu_reaches_the_bridge() -> Result<()> {
    let lab = lab_with("10.5.7.1/24", 1400, false)?;
    let node = lab.node(1)?;
    node.add_pod("old")?;
    set_subnet(node, "10.5.7.1/24", 1450, false)?;
    let new = node.add_pod("new")?;
    assert_eq!(new.ip_json(&["link", "show", "dev", "eth0"])?[0]["mtu"], 1450);
    assert_eq!(link(node, "cni0")?["mtu"], 1450);
    // 1450 less the headers of IPv4 and ICMP
    let full = [
        "ping", "-n", "-q", "-c", "1", "-W", "2", "-M", "do", "-s", "1422", "10.5.7.1",
    ];
    eventually(limit(10), "a full packet to the bridge", || {
        new.run(&full).map(drop)
    })
}

/// bridge deletes the node's own device: the container's namespace had been the path of a process id that is another's now.
pub fn own_namespace_is_never_touched() -> Result<()> {
    let lab = lab_with("10.5.7.1/24", 1450, false)?;
    let node = lab.node(1)?;
    let own = || CniCall {
        netns: "/proc/self/ns/net".into(),
        ..CniCall::new("DEL", "a")
    };
    let before = link(node, "eth0")?;
    node.cni(&own())?.ok()?;
    let refused = node.cni(&CniCall {
        command: "ADD".into(),
        interface: "eth5".into(),
        ..own()
    })?;
    ensure!(
        !refused.success(),
        "attached the node to itself: {}",
        refused.stdout
    );
    let error: Value = serde_json::from_str(&refused.stdout)?;
    assert_eq!(error["code"], 8, "{error}");
    let after = link(node, "eth0").context("the node's own device is gone")?;
    assert_eq!(before["ifindex"], after["ifindex"]);
    no_veth(node)?;
    assert_eq!(
        node.shell(&format!("ls {ADDRESSES} 2>/dev/null | grep -c ^10 || true"))?
            .trim(),
        "0"
    );
    Ok(())
}
