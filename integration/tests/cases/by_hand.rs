//! A node that is set up by hand, with the commands that come to what flannel does, beside a node of ours.

use anyhow::{Context, Result, ensure};
use flannel_lab::lab::SUBNETS_PREFIX;
use flannel_lab::{Lab, LabOptions, Node, eventually, limit};

use super::backend::{Pair, config, way};
use super::common::await_ping;

/// The subnet of the node that is set up by hand.
const SUBNET: &str = "10.5.77.0/24";
const MAC: &str = "8a:00:00:00:00:77";
const OTHER_MAC: &str = "8a:00:00:00:00:78";
/// An address that it gets later.
const OTHER_ADDRESS: &str = "192.168.50.112";

/// What flannel writes into etcd for the node.
fn put_lease(lab: &Lab, address: &str, backend: &str) -> Result<()> {
    let value = format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,{backend}}}"#);
    let key = format!("{SUBNETS_PREFIX}{}", SUBNET.replace('/', "-"));
    lab.etcd().put_leased(&key, &value, 86_400).map(drop)
}

fn vxlan_data(mac: &str) -> String {
    format!(r#""BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}"#)
}

/// What flannel tells the plugin.
fn write_subnet_env(node: &Node, mtu: u32) -> Result<()> {
    node.shell(&format!(
        "printf 'FLANNEL_NETWORK=10.5.0.0/16\\nFLANNEL_SUBNET=10.5.77.1/24\\nFLANNEL_MTU={mtu}\\nFLANNEL_IPMASQ=true\\n' \
         > /run/flannel/subnet.env"
    ))
    .map(drop)
}

/// Our node, with the lease that it took.
struct Ours {
    subnet: String,
    address: String,
    /// Ethernet address of its VTEP.
    mac: String,
}

impl Ours {
    fn of(lab: &Lab) -> Result<Self> {
        let node = lab.node(1)?;
        let holder = format!(r#""PublicIP":"{}""#, node.address());
        let leases = lab.etcd().list(SUBNETS_PREFIX)?;
        let own = leases.into_iter().find(|entry| entry.value.contains(&holder));
        let own = own.context("our node has no lease")?;
        let value: serde_json::Value = serde_json::from_str(&own.value)?;
        let key = own.key.strip_prefix(SUBNETS_PREFIX).unwrap_or_default();
        Ok(Self {
            subnet: key.replace('-', "/"),
            address: node.address().to_owned(),
            mac: value["BackendData"]["VtepMAC"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        })
    }

    fn base(&self) -> &str {
        self.subnet.split('/').next().unwrap_or_default()
    }
}

/// The device and, for one peer, the neighbour, the FDB entry and the route.
fn make_vtep(node: &Node, address: &str, mac: &str, ours: &Ours) -> Result<()> {
    let base = ours.base();
    node.shell(&format!(
        "ip link del flannel.1 2>/dev/null || true; \
         ip link add flannel.1 address {mac} mtu 1450 type vxlan id 1 dev eth0 local {address} dstport 8472 nolearning; \
         echo 0 > /proc/sys/net/ipv6/conf/flannel.1/accept_ra; ip address add 10.5.77.0/32 dev flannel.1; ip link set flannel.1 up; \
         ip neigh replace {base} lladdr {} dev flannel.1 nud permanent; \
         bridge fdb replace {} dev flannel.1 dst {} self permanent; \
         ip route replace {} via {base} dev flannel.1 onlink",
        ours.mac, ours.mac, ours.address, ours.subnet
    ))
    .map(drop)
}

/// The node's address on the underlay becomes another.
fn move_node(node: &Node) -> Result<()> {
    node.shell(&format!(
        "ip address add {OTHER_ADDRESS}/24 dev eth0; ip address del {}/24 dev eth0; \
         ip address show dev eth0 | grep -q {OTHER_ADDRESS} || ip address add {OTHER_ADDRESS}/24 dev eth0; \
         ip route replace default via 192.168.50.1",
        node.address()
    ))
    .map(drop)
}

/// Our daemon on node 1, and a pod on each, once node 2 stands.
fn start(
    backend: &str,
    lease: &str,
    mtu: u32,
    by_hand: impl Fn(&Node, &Ours) -> Result<()>,
) -> Result<(Pair, Ours)> {
    let lab = Lab::new(&LabOptions::nodes(2).config(&config(backend)))?;
    put_lease(&lab, lab.node(2)?.address(), lease)?;
    let daemons = vec![lab.node(1)?.start_ready_flanneld(&["--ip-masq"])?];
    let ours = Ours::of(&lab)?;
    let node = lab.node(2)?;
    by_hand(node, &ours)?;
    write_subnet_env(node, mtu)?;
    let pods = [lab.node(1)?.add_pod("one")?, node.add_pod("two")?];
    let pair = Pair { lab, daemons, pods };
    reach_each_other(&pair)?;
    Ok((pair, ours))
}

fn reach_each_other(pair: &Pair) -> Result<()> {
    let [one, two] = &pair.pods;
    await_ping(one, two.ip())?;
    await_ping(two, one.ip())
}

pub fn vxlan_beside_a_node_set_up_by_hand() -> Result<()> {
    let address = flannel_lab::lab::node_address(2);
    let (pair, ours) = start(r#"{"Type":"vxlan"}"#, &vxlan_data(MAC), 1450, |node, ours| {
        make_vtep(node, &address, MAC, ours)
    })?;
    pair.carries(1450)?;
    let node = pair.lab.node(2)?;
    // As after a restart of flannel: a device with another Ethernet address.
    make_vtep(node, &address, OTHER_MAC, &ours)?;
    put_lease(&pair.lab, &address, &vxlan_data(OTHER_MAC))?;
    reach_each_other(&pair).context("with another Ethernet address")?;
    // And with another address on the underlay.
    move_node(node)?;
    make_vtep(node, OTHER_ADDRESS, OTHER_MAC, &ours)?;
    put_lease(&pair.lab, OTHER_ADDRESS, &vxlan_data(OTHER_MAC))?;
    reach_each_other(&pair).context("with another address")?;
    pair.carries(1450)?;
    let entries = pair
        .lab
        .node(1)?
        .run(&["bridge", "fdb", "show", "dev", "flannel.1"])?;
    ensure!(
        !entries.contains(MAC) && entries.contains(&format!("{OTHER_MAC} dst {OTHER_ADDRESS}")),
        "{entries}"
    );
    Ok(())
}

/// As the host-gw backend of flannel does, and vxlan's with DirectRouting.
fn route_directly(node: &Node, ours: &Ours) -> Result<()> {
    let route = [
        "ip",
        "route",
        "replace",
        &ours.subnet,
        "via",
        &ours.address,
        "dev",
        "eth0",
    ];
    node.run(&route).map(drop)
}

/// Ours sends directly, the other one through the tunnel; then both directly.
pub fn direct_routing_beside_a_node_set_up_by_hand() -> Result<()> {
    let address = flannel_lab::lab::node_address(2);
    let backend = r#"{"Type":"vxlan","DirectRouting":true}"#;
    let (pair, ours) = start(backend, &vxlan_data(MAC), 1450, |node, ours| {
        make_vtep(node, &address, MAC, ours)
    })?;
    let node = pair.lab.node(1)?;
    assert_eq!(way(node, "10.5.77.9")?, ("eth0".to_owned(), address.clone()));
    pair.carries(1450)?;
    route_directly(pair.lab.node(2)?, &ours)?;
    reach_each_other(&pair)?;
    pair.carries(1450)
}

pub fn host_gw_beside_a_node_set_up_by_hand() -> Result<()> {
    let lease = r#""BackendType":"host-gw""#;
    let (pair, ours) = start(r#"{"Type":"host-gw"}"#, lease, 1500, route_directly)?;
    pair.carries(1500)?;
    let node = pair.lab.node(2)?;
    move_node(node)?;
    route_directly(node, &ours)?;
    put_lease(&pair.lab, OTHER_ADDRESS, lease)?;
    eventually(limit(10), "the way to another address", || {
        let now = way(pair.lab.node(1)?, "10.5.77.9")?;
        ensure!(now == ("eth0".to_owned(), OTHER_ADDRESS.to_owned()), "{now:?}");
        Ok(())
    })?;
    reach_each_other(&pair)?;
    pair.carries(1500)
}
