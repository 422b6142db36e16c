//! The CNI plugin, called as a runtime calls it. No daemon: subnet.env is all that the plugin needs.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use flannel_lab::pod::{CNI_CONFIG, CniCall, container_id, make_netns};
use flannel_lab::{Lab, LabOptions, Node, eventually, limit};
use serde_json::Value;

use super::backend::Pair;
use super::common::{addresses, await_ping, await_reaper, link, list, text};

const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.5.0.0/16\\nFLANNEL_SUBNET=10.5.7.1/24\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=true\\n";
const ADDRESSES: &str = "/var/lib/cni/networks/cbr0";

fn lab_with_subnet() -> Result<Lab> {
    let lab = Lab::new(&LabOptions::nodes(1).without_etcd())?;
    lab.node(1)?
        .shell(&format!("printf '{SUBNET_ENV}' > /run/flannel/subnet.env"))?;
    Ok(lab)
}

fn version_call(version: &str) -> String {
    CNI_CONFIG.replace("0.3.1", version)
}

pub fn add_wires_a_pod() -> Result<()> {
    let lab = lab_with_subnet()?;
    let node = lab.node(1)?;
    let pod = node.add_pod("a")?;
    let bridge = link(node, "cni0")?;
    assert_eq!(addresses(&bridge), ["10.5.7.1/24"]);
    assert_eq!(bridge["mtu"], 1450);
    assert_eq!(node.read_file("/proc/sys/net/ipv4/ip_forward")?, "1\n");

    let inside = pod.ip_json(&["address", "show", "dev", "eth0"])?[0].clone();
    assert_eq!(addresses(&inside), [format!("{}/24", pod.ip())]);
    assert_eq!(inside["mtu"], 1450);
    let routes = pod.ip_json(&["-4", "route", "show"])?;
    let default = list(&routes)
        .into_iter()
        .find(|r| r["dst"] == "default")
        .context("no default route")?;
    assert_eq!(default["gateway"], "10.5.7.1");
    ensure!(
        list(&routes)
            .iter()
            .any(|r| r["dst"] == "10.5.0.0/16" && r["gateway"] == "10.5.7.1"),
        "no route to the pod network: {routes}"
    );

    let host = text(&pod.result()["interfaces"][1]["name"]);
    let port = list(&node.ip_json(&["link", "show", "dev", &host])?)[0].clone();
    assert_eq!(port["master"], "cni0");
    assert_eq!(port["linkinfo"]["info_slave_data"]["hairpin"], true);
    pod.ping("10.5.7.1")
}

pub fn results_have_the_layout_of_their_version() -> Result<()> {
    let lab = lab_with_subnet()?;
    let node = lab.node(1)?;
    for (number, version) in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"].iter().enumerate() {
        let name = format!("v{number}");
        make_netns(node, &name)?;
        let result = node
            .cni(&CniCall::add(&name).stdin(version_call(version)))?
            .json()?;
        assert_eq!(result["cniVersion"], *version);
        let names: Vec<String> = list(&result["interfaces"])
            .iter()
            .map(|i| text(&i["name"]))
            .collect();
        ensure!(
            names.len() == 3 && names[0] == "cni0" && names[2] == "eth0",
            "interfaces: {result}"
        );
        assert_eq!(result["interfaces"][2]["sandbox"], format!("/run/netns/{name}"));
        assert_eq!(result["ips"][0]["interface"], 2);
        assert_eq!(result["ips"][0]["gateway"], "10.5.7.1");
        let old = version.starts_with("0.");
        assert_eq!(
            result["ips"][0]["version"],
            if old { Value::from("4") } else { Value::Null }
        );
    }
    let call = CniCall::new("VERSION", "any").stdin(r#"{"cniVersion":"1.0.0"}"#);
    let answer = node.cni(&call)?.json()?;
    let supported: Vec<String> = list(&answer["supportedVersions"]).iter().map(text).collect();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        ensure!(
            supported.contains(&version.to_owned()),
            "{version} is not in {supported:?}"
        );
    }
    Ok(())
}

/// So that pods of an earlier flannel keep their addresses, and that it could take over again.
pub fn addresses_are_kept_as_host_local_keeps_them() -> Result<()> {
    let lab = lab_with_subnet()?;
    let node = lab.node(1)?;
    node.shell(&format!(
        "mkdir -p {ADDRESSES}; printf 'old-pod\\r\\neth0' > {ADDRESSES}/10.5.7.2; printf 10.5.7.2 > {ADDRESSES}/last_reserved_ip.0"
    ))?;
    let pod = node.add_pod("a")?;
    assert_eq!(
        pod.ip(),
        "10.5.7.3",
        "the one after the last; .2 is an earlier pod's"
    );
    let file = node.read_file(&format!("{ADDRESSES}/10.5.7.3"))?;
    assert_eq!(file, format!("{}\r\neth0", container_id("a")));
    assert_eq!(
        node.read_file(&format!("{ADDRESSES}/last_reserved_ip.0"))?,
        "10.5.7.3"
    );
    node.del_pod(pod)?;
    ensure!(
        node.read_file(&format!("{ADDRESSES}/10.5.7.3")).is_err(),
        "the address was not given back"
    );
    assert_eq!(
        node.read_file(&format!("{ADDRESSES}/10.5.7.2"))?,
        "old-pod\r\neth0"
    );
    Ok(())
}

pub fn del_is_repeatable_and_needs_no_namespace() -> Result<()> {
    let lab = lab_with_subnet()?;
    let node = lab.node(1)?;
    node.add_pod("a")?;
    node.cni(&CniCall::del("a"))?.ok()?;
    node.cni(&CniCall::del("a"))?.ok()?;
    node.cni(&CniCall::del("never-was"))?.ok()?;
    check_nothing_of_pods(node)?;

    node.add_pod("b")?;
    node.cni(&CniCall {
        netns: String::new(),
        ..CniCall::del("b")
    })?
    .ok()?;
    check_nothing_of_pods(node)?;

    node.add_pod("c")?;
    node.run(&["ip", "netns", "delete", "c"])?;
    node.cni(&CniCall::del("c"))?.ok()?;
    node.shell("rm /run/flannel/subnet.env")?;
    node.cni(&CniCall::del("c"))?.ok()?;
    check_nothing_of_pods(node)
}

fn check_nothing_of_pods(node: &Node) -> Result<()> {
    // a link may go a moment after the plugin has ended
    eventually(limit(5), "no pod's link", || {
        let ports = node.ip_json(&["link", "show", "master", "cni0"])?;
        ensure!(list(&ports).is_empty(), "{ports}");
        Ok(())
    })?;
    let left = node.shell(&format!(
        "ls {ADDRESSES} | grep -v -e lock -e last_reserved || true"
    ))?;
    ensure!(left.is_empty(), "addresses left: {left}");
    Ok(())
}

pub fn missing_subnet_file_says_try_again() -> Result<()> {
    let lab = Lab::new(&LabOptions::nodes(1).without_etcd())?;
    let node = lab.node(1)?;
    make_netns(node, "a")?;
    let error = refused(node, &CniCall::add("a"), 11)?;
    ensure!(
        error.contains("/run/flannel/subnet.env") && error.contains("flanneld"),
        "{error}"
    );
    ensure!(
        node.ip_json(&["link", "show", "dev", "cni0"]).is_err(),
        "a bridge was made"
    );
    Ok(())
}

/// The plugin refuses with this code, in JSON, and quickly; the text of the error.
fn refused(node: &Node, call: &CniCall, code: u32) -> Result<String> {
    let start = Instant::now();
    let output = node.cni(call)?;
    ensure!(!output.success(), "accepted: {}", output.stdout);
    let error: Value = serde_json::from_str(&output.stdout)
        .with_context(|| format!("no JSON: {:?} {}", output.stdout, output.stderr))?;
    ensure!(error["code"] == code, "code {code} expected: {error}");
    ensure!(!text(&error["msg"]).is_empty(), "no message: {error}");
    ensure!(start.elapsed() < limit(3), "it took {:?}", start.elapsed());
    ensure!(
        output.stdout.len() < 10_000,
        "an error of {} bytes",
        output.stdout.len()
    );
    Ok(error.to_string())
}

pub fn bad_calls_are_refused_by_code() -> Result<()> {
    let lab = lab_with_subnet()?;
    let node = lab.node(1)?;
    make_netns(node, "a")?;
    let add = || CniCall::add("a");
    let huge = format!("{{\"name\":\"{}\"", "x".repeat(8 * 1024 * 1024));
    refused(node, &add().stdin(""), 6)?;
    refused(node, &add().stdin(huge), 6)?;
    refused(node, &add().stdin("name = cbr0"), 6)?;
    refused(node, &add().stdin(version_call("9.9.9")), 1)?;
    refused(
        node,
        &CniCall {
            container: "../../etc".into(),
            ..add()
        },
        4,
    )?;
    refused(
        node,
        &CniCall {
            container: String::new(),
            ..add()
        },
        4,
    )?;
    refused(
        node,
        &CniCall {
            interface: "a-name-too-long-for-linux".into(),
            ..add()
        },
        4,
    )?;
    refused(
        node,
        &CniCall {
            interface: "a/b".into(),
            ..add()
        },
        4,
    )?;
    refused(
        node,
        &CniCall {
            command: "FROB".into(),
            ..add()
        },
        4,
    )?;
    refused(
        node,
        &CniCall {
            netns: String::new(),
            ..add()
        },
        4,
    )?;
    let error = refused(
        node,
        &CniCall {
            netns: "/run/netns/not-there".into(),
            ..add()
        },
        8,
    )?;
    ensure!(
        error.contains("not-there"),
        "does not name the namespace: {error}"
    );
    assert_eq!(node.shell("ls -A /var/lib/cni")?, "", "a refused call left files");
    ensure!(
        node.ip_json(&["link", "show", "dev", "cni0"]).is_err(),
        "a refused call made the bridge"
    );
    // and after all that a good one works
    node.add_pod("b")?.ping("10.5.7.1")
}

pub fn second_add_is_refused_and_harms_nothing() -> Result<()> {
    let lab = lab_with_subnet()?;
    let node = lab.node(1)?;
    let pod = node.add_pod("a")?;
    let again = node.cni(&CniCall::add("a"))?;
    ensure!(!again.success(), "a second ADD was accepted: {}", again.stdout);
    pod.ping("10.5.7.1")?;
    let kept = node.shell(&format!("ls {ADDRESSES} | grep -c ^10"))?;
    assert_eq!(kept.trim(), "1", "addresses kept for one pod");
    Ok(())
}

pub fn exhausted_subnet_is_said() -> Result<()> {
    let lab = lab_with_subnet()?;
    let node = lab.node(1)?;
    // /29: six hosts, one of them the bridge
    node.shell("sed -i 's,10.5.7.1/24,10.5.7.1/29,' /run/flannel/subnet.env")?;
    for number in 0..5 {
        node.add_pod(&format!("p{number}"))?;
    }
    make_netns(node, "late")?;
    let output = node.cni(&CniCall::add("late"))?;
    ensure!(
        !output.success() && output.stdout.contains("10.5.7"),
        "{}",
        output.stdout
    );
    node.cni(&CniCall::del("p3"))?.ok()?;
    node.cni(&CniCall::add("late"))?.ok().map(drop)
}

/// What a kubelet does when a node comes up: many at once. Each gets its own address and works.
pub fn many_adds_at_once() -> Result<()> {
    let lab = lab_with_subnet()?;
    let node = lab.node(1)?;
    let names: Vec<String> = (0..16).map(|n| format!("p{n}")).collect();
    let pods = std::thread::scope(|scope| {
        let running: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(|| node.add_pod(name)))
            .collect();
        running
            .into_iter()
            .map(|r| r.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let mut addresses: Vec<&str> = pods.iter().map(|p| p.ip()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), pods.len(), "pods share an address");
    for pod in &pods {
        await_ping(pod, pods[0].ip())?;
    }
    std::thread::scope(|scope| {
        let running: Vec<_> = names
            .iter()
            .map(|n| scope.spawn(|| node.cni(&CniCall::del(n))?.ok()))
            .collect();
        running.into_iter().try_for_each(|r| {
            r.join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?
                .map(drop)
        })
    })?;
    check_nothing_of_pods(node)
}

/// With a daemon beside it DEL only cuts the pod off. What a daemon that stood still or died left is deleted by its successor.
pub fn del_is_finished_by_the_daemon() -> Result<()> {
    let lab = lab_with_subnet()?;
    let node = lab.node(1)?;
    // It waits for etcd, and takes deletions over meanwhile.
    let daemon = node.start_flanneld(&[])?;
    await_reaper(node)?;
    let pod = node.add_pod("a")?;
    node.cni(&CniCall::del("a"))?.ok()?;
    await_no_pod(node, &pod)?;

    let pod = node.add_pod("b")?;
    node.shell(&format!("kill -STOP {}", daemon.pid()))?;
    node.cni(&CniCall::del("b"))?.ok()?;
    let left = pod_ends(node)?;
    assert_eq!(left.len(), 1, "{left:?}");
    let end = link(node, &left[0])?;
    ensure!(
        end["master"].is_null() && end["operstate"] == "DOWN",
        "not cut off: {end}"
    );
    let leases = node.shell(&format!("ls {ADDRESSES}"))?;
    ensure!(!leases.contains(pod.ip()), "{} is still reserved", pod.ip());
    daemon.kill()?;

    let _daemon = node.start_flanneld(&[])?;
    await_no_pod(node, &pod)
}

fn pod_ends(node: &Node) -> Result<Vec<String>> {
    let mut names = node.link_names()?;
    names.retain(|name| name.starts_with("veth"));
    Ok(names)
}

fn await_no_pod(node: &Node, pod: &flannel_lab::Pod) -> Result<()> {
    eventually(limit(10), "the pod's devices to be gone", || {
        let (ends, inside) = (pod_ends(node)?, pod.ip_json(&["link", "show"])?);
        ensure!(ends.is_empty(), "{ends:?}");
        ensure!(list(&inside).len() == 1, "{inside}");
        Ok(())
    })
}

/// A container that could send to the port at which nodes take packets of pods would send as any other container. flanneld tells the
/// plugin's guard of a port that is not flannel's default.
pub fn pods_cannot_send_to_tunnels_on_other_ports() -> Result<()> {
    const PORT: u16 = 9472;
    let pair = Pair::start(&format!(r#"{{"Type":"vxlan","Port":{PORT}}}"#))?;
    let [one, two] = &pair.pods;
    let node = pair.lab.node(1)?;
    let guarded = || node.shell("nft list set bridge flannel-cni-guard tunnels");
    eventually(limit(10), "the port to be guarded", || {
        let set = guarded()?;
        for port in [PORT, 8472, 8285] {
            ensure!(set.contains(&port.to_string()), "{port} is not in {set}");
        }
        Ok(())
    })?;
    let asked = |port: u16| one.ask("udp", &format!("{}:{port}", two.ip()));
    let _responders = [two.respond(PORT)?, two.respond(PORT + 1)?];
    asked(PORT + 1).context("a port beside it")?;
    ensure!(asked(PORT).is_err(), "the tunnel's port was reached");
    // TCP is something else.
    one.ask("tcp", &format!("{}:{PORT}", two.ip()))?;
    // Who removes the table finds it made anew, with that port in it.
    node.shell("nft delete table bridge flannel-cni-guard")?;
    node.add_pod("three")?;
    eventually(limit(10), "the port to be guarded again", || {
        let set = guarded()?;
        ensure!(set.contains(&PORT.to_string()), "{set}");
        Ok(())
    })
}
