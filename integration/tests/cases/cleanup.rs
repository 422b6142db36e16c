//! What a clean-up leaves: the host as it was before, byte for byte.

use anyhow::{Context, Result, ensure};
use flannel_lab::{Lab, LabOptions, Node, eventually, limit, sandbox};

use super::backend::config;
use super::common::await_ping;

/// Everything that tells how the host's network is set up, as the system's own tools show it. What the kernel learns by itself
/// (neighbours that are not permanent) and counts is left out.
const STATE: &str = "ip -d link | sed 's/[a-z_]*timer *[0-9.]*//g'; ip address; ip -4 route show table all; ip -6 route show table all; ip rule; ip -6 rule; \
     ip neigh show nud permanent; bridge fdb; nft list ruleset; (ipvsadm -Sn 2>/dev/null || true); \
     sysctl -a 2>/dev/null | grep '^net\\.' | grep -v -e nf_conntrack_count -e '\\.neigh\\.' -e stable_secret | sort; \
     find /run/flannel /var/lib/flannel | sort; find /var/lib/cni -type f 2>/dev/null | sort";

fn state(node: &Node) -> Result<String> {
    node.shell(STATE)
}

fn compare(before: &str, after: &str) -> Result<()> {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (old, new) = (lines(before), lines(after));
    let extra: Vec<_> = new.iter().filter(|line| !old.contains(line)).collect();
    let missing: Vec<_> = old.iter().filter(|line| !new.contains(line)).collect();
    ensure!(
        before == after,
        "there is more: {extra:#?}, there is less: {missing:#?}"
    );
    Ok(())
}

/// What there is once the kernel has checked the addresses, which it shows as tentative until then.
fn settled(node: &Node) -> Result<String> {
    eventually(limit(10), "addresses that have settled", || {
        let state = state(node)?;
        ensure!(!state.contains("tentative"), "not yet");
        Ok(state)
    })
}

fn clean_up(node: &Node, program: &str, flags: &[&str]) -> Result<flannel_lab::Output> {
    let program = format!("{}/{program}", sandbox::BINARIES);
    node.exec(&[&[program.as_str(), "cleanup"], flags].concat())
}

/// A node that had pods, masquerading and Services of nftables and is then cleaned up.
fn leaves_a_virgin_host(options: LabOptions, arguments: &[&str]) -> Result<()> {
    let lab = Lab::new(&options)?;
    let [one, two] = [lab.node(1)?, lab.node(2)?];
    // What is somebody else's stays, too.
    one.shell(
        "ip route add 172.30.0.0/16 via 192.168.50.1; ip route add blackhole 10.99.0.0/24; nft add table ip theirs; \
         ip neigh add 192.168.50.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
    )?;
    let before = settled(one)?;
    let daemons = [
        one.start_ready_flanneld(arguments)?,
        two.start_ready_flanneld(arguments)?,
    ];
    let pods = [one.add_pod("one")?, two.add_pod("two")?];
    await_ping(&pods[0], pods[1].ip())?;
    ensure!(state(one)? != before, "nothing was made");

    let refused = clean_up(one, "flanneld", &[])?;
    ensure!(
        !refused.success() && refused.stderr.contains("stop it first"),
        "a running daemon is cleaned up under: {refused:?}"
    );
    let [daemon, _other] = daemons;
    ensure!(daemon.terminate()?.success(), "SIGTERM is a clean end");
    let standing = settled(one)?;
    let shown = clean_up(one, "flannelctl", &["--dry-run", "--state"])?.ok()?;
    ensure!(shown.contains("would remove /run/flannel/subnet.env"), "{shown}");
    compare(&standing, &state(one)?).context("a dry run")?;

    let attached = clean_up(one, "flanneld", &["--cni"])?;
    ensure!(
        !attached.success() && attached.stderr.contains("containers are attached to cni0"),
        "{attached:?}"
    );
    compare(&standing, &state(one)?).context("a refused clean-up")?;
    let [pod, _far] = pods;
    one.del_pod(pod)?;
    clean_up(one, "flannelctl", &["--all"])?.ok()?;
    eventually(limit(5), "a virgin host", || compare(&before, &state(one)?))?;
    let again = clean_up(one, "flanneld", &["--all"])?.ok()?;
    ensure!(
        again.lines().all(|line| line.ends_with("if it is empty")),
        "{again}"
    );
    Ok(())
}

fn with_backend(backend: &str) -> LabOptions {
    LabOptions::nodes(2).config(&config(backend))
}

pub fn vxlan_leaves_a_virgin_host() -> Result<()> {
    let dual = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
    leaves_a_virgin_host(LabOptions::nodes(2).ipv6().config(dual), &["--ip-masq"])
}

/// Without --ip-masq the CNI plugin masquerades, in a table of its own.
pub fn host_gw_leaves_a_virgin_host() -> Result<()> {
    leaves_a_virgin_host(with_backend(r#"{"Type":"host-gw"}"#), &[])
}

pub fn udp_leaves_a_virgin_host() -> Result<()> {
    leaves_a_virgin_host(with_backend(r#"{"Type":"udp"}"#), &["--ip-masq"])
}

pub fn ipip_leaves_a_virgin_host() -> Result<()> {
    leaves_a_virgin_host(with_backend(r#"{"Type":"ipip"}"#), &["--ip-masq"])
}

pub fn wireguard_leaves_a_virgin_host() -> Result<()> {
    leaves_a_virgin_host(with_backend(r#"{"Type":"wireguard"}"#), &["--ip-masq"])
}
