//! What the bridge plugin does, case by case and for every cniVersion. docs/conformance.md tells which is which.

use serde_json::{Value, json};

use crate::lab::{Node, Space, VERSIONS, eventually, root};
use crate::{DUAL, V4, V6};

fn versions(subnet_env: &str, delegate: &Value, mut case: impl FnMut(&mut Node, &str)) {
    if !root() {
        return;
    }
    for version in VERSIONS {
        let mut node = Node::new(subnet_env, delegate.clone());
        node.conf["cniVersion"] = json!(version);
        case(&mut node, version);
    }
}

fn device(space: &Space, name: &str) -> Value {
    space.json("ip", &format!("-j -d link show dev {name}"))[0].clone()
}

/// The port of the bridge; it is the only one.
fn port(node: &Node) -> Value {
    let name = node.space.veths().remove(0);
    node.space.json("bridge", &format!("-j -d link show dev {name}"))[0].clone()
}

#[test]
fn b1_b2_the_bridge_is_made_and_used_again() {
    let delegate = json!({ "bridge": "bridge0", "mtu": 5000 });
    versions(V4, &delegate, |node, version| {
        // A bridge without ports goes back to the kernel's MTU.
        let (one, two) = (Space::new(), Space::new());
        node.add("c1", &one);
        let made = device(&node.space, "bridge0");
        assert_eq!(made["linkinfo"]["info_kind"], "bridge", "{version}");
        assert_eq!((&made["mtu"], &made["promiscuity"]), (&json!(5000), &json!(0)));
        node.add("c2", &two);
        assert_eq!(device(&node.space, "bridge0")["ifindex"], made["ifindex"]);
    });
}

/// One family or both: gateway on the bridge, routes of the container, and all of it away again.
fn layer_3(subnet_env: &str, gateways: &[&str], addresses: &[&str]) {
    versions(
        subnet_env,
        &json!({ "isDefaultGateway": true }),
        |node, version| {
            let pod = Space::new();
            let answer = node.add("c1", &pod);
            assert_eq!(answer.ips(), addresses, "{version}");
            assert_eq!(pod.addresses("eth0"), addresses);
            assert_eq!(node.space.addresses("cni0"), gateways);
            let mac = device(&node.space, "cni0")["address"].clone();
            for gateway in gateways {
                let family = if gateway.contains(':') { "-6" } else { "-4" };
                let gateway = gateway.split('/').next().unwrap();
                let routes = pod.json("ip", &format!("-j {family} route show default"));
                assert_eq!(routes.as_array().unwrap().len(), 1, "{routes}");
                assert_eq!(routes[0]["gateway"], gateway);
                assert_eq!(routes[0].get("prefsrc"), None);
                assert!(pod.pings(gateway), "{gateway}");
            }
            // B10: the bridge has a hardware address of its own that stays.
            let ports = node.space.veths();
            assert!(
                ports
                    .iter()
                    .all(|name| device(&node.space, name)["address"] != mac)
            );
            node.del("c1", &pod.path());
            eventually("a veth is left", || {
                node.space.veths().is_empty() && pod.veths().is_empty()
            });
            assert_eq!(pod.devices(), ["lo"]);
            assert_eq!(device(&node.space, "cni0")["address"], mac, "{version}");
            node.assert_clean();
        },
    );
}

/// Containers know the gateway by the bridge's hardware address, and nobody tells them of another.
#[test]
fn b10_a_bridge_made_anew_is_found_where_it_was() {
    let node = Node::new(V4, json!({ "isDefaultGateway": true }));
    let (one, two) = (Space::new(), Space::new());
    node.add("c1", &one);
    let mac = || device(&node.space, "cni0")["address"].clone();
    assert_eq!(mac(), "0a:58:0a:f4:01:01");
    node.space.ok("ip", "link delete cni0");
    node.add("c2", &two);
    assert_eq!(mac(), "0a:58:0a:f4:01:01");
    node.space
        .ok("ip", &format!("link set {} master cni0", node.space.veths()[0]));
    assert!(one.pings("10.244.1.1") && two.pings("10.244.1.1"));
}

#[test]
fn b3_b10_ipv4() {
    layer_3(V4, &["10.244.1.1/24"], &["10.244.1.2/24"]);
}

#[test]
fn b4_b10_ipv6_alone() {
    layer_3(V6, &["fd00:244:0:1::1/64"], &["fd00:244:0:1::2/64"]);
}

#[test]
fn b5_c2_both_families() {
    layer_3(
        DUAL,
        &["10.244.1.1/24", "fd00:244:0:1::1/64"],
        &["10.244.1.2/24", "fd00:244:0:1::2/64"],
    );
}

#[test]
fn b7_name_service_of_a_file() {
    versions(V4, &json!({}), |node, version| {
        let file = node.file("resolv.conf");
        std::fs::write(&file, "nameserver 192.0.2.53\nsearch example.net\n").unwrap();
        node.conf["ipam"]["resolvConf"] = json!(file);
        let dns = node.add("c1", &Space::new()).json["dns"].clone();
        assert_eq!(
            dns,
            json!({ "nameservers": ["192.0.2.53"], "search": ["example.net"] }),
            "{version}"
        );
    });
}

#[test]
fn b9_the_shape_of_the_result() {
    versions(V4, &json!({}), |node, version| {
        let pod = Space::new();
        let result = node.add("c1", &pod).json;
        if version < "0.3.0" {
            assert!(result.get("interfaces").is_none(), "{result}");
            return;
        }
        let list = result["interfaces"].as_array().unwrap();
        let names: Vec<_> = list.iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert!(names.len() == 3 && names[1].starts_with("veth"), "{names:?}");
        assert_eq!((names[0], names[2]), ("cni0", "eth0"));
        assert!(list.iter().all(|one| one["mac"].as_str().unwrap().len() == 17));
        assert_eq!(list[2]["sandbox"], json!(pod.path()));
    });
}

#[test]
fn b11_h5_del_of_what_never_was() {
    versions(V4, &json!({}), |node, version| {
        let pod = Space::new();
        assert_eq!(node.del("never", &pod.path()).stderr, "", "{version}");
        node.add("c1", &pod);
        node.del("never", "");
        assert_eq!(node.leases(), ["10.244.1.2"]);
    });
}

#[test]
fn b15_b16_other_addresses_of_the_bridge() {
    versions(DUAL, &json!({ "isGateway": true }), |node, version| {
        let foreign = ["10.0.0.1/8", "fd00:244:0:1::f/48", "2001:db8::1/64"];
        node.space.ok("ip", "link add cni0 type bridge");
        for address in foreign {
            node.space
                .ok("ip", &format!("address add {address} dev cni0 nodad"));
        }
        node.add("c1", &Space::new());
        let own = ["10.244.1.1/24", "fd00:244:0:1::1/64"];
        let has = |wanted: &[&str]| {
            let found = node.space.addresses("cni0");
            wanted
                .iter()
                .all(|address| found.contains(&(*address).to_owned()))
        };
        assert!(
            has(&own) && has(&foreign),
            "{version}: {:?}",
            node.space.addresses("cni0")
        );
        node.conf["delegate"]["forceAddress"] = json!(true);
        node.add("c2", &Space::new());
        // An IPv6 address of another subnet is none of ours to judge: nodes have several.
        assert_eq!(
            node.space.addresses("cni0"),
            ["10.244.1.1/24", "2001:db8::1/64", "fd00:244:0:1::1/64"],
            "{version}"
        );
    });
}

#[test]
fn b17_promiscuous() {
    versions(V4, &json!({ "promiscMode": true }), |node, version| {
        node.add("c1", &Space::new());
        assert_eq!(device(&node.space, "cni0")["promiscuity"], 1, "{version}");
    });
}

#[test]
fn b18_who_gives_the_hardware_address() {
    versions(V4, &json!({}), |node, version| {
        let pod = Space::new();
        node.variables = vec![("CNI_ARGS", "IgnoreUnknown=1;MAC=02:00:00:00:00:01".to_owned())];
        node.add("c1", &pod);
        assert_eq!(device(&pod, "eth0")["address"], "02:00:00:00:00:01", "{version}");
        let pod = Space::new();
        node.conf["delegate"]["args"] = json!({ "cni": { "mac": "02:00:00:00:00:03" } });
        node.add("c3", &pod);
        assert_eq!(device(&pod, "eth0")["address"], "02:00:00:00:00:03", "{version}");
        let pod = Space::new();
        node.conf["RuntimeConfig"] = json!({ "Mac": "02:00:00:00:00:02" });
        node.add("c2", &pod);
        assert_eq!(device(&pod, "eth0")["address"], "02:00:00:00:00:02", "{version}");
    });
}

#[test]
fn b19_a_failure_after_the_address_gives_it_back() {
    versions(V4, &json!({}), |node, version| {
        let pod = Space::new();
        node.add("c1", &pod);
        // No way leads to this gateway, which only the kernel finds out.
        node.conf["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "198.51.100.1" }]);
        assert_eq!(
            node.call("ADD", "c2", &Space::new().path()).code(),
            100,
            "{version}"
        );
        assert_eq!(node.leases(), ["10.244.1.2"]);
        eventually("the veth of c2 is left", || node.space.veths().len() == 1);
    });
}

#[test]
fn b21_check_in_each_family() {
    for subnet_env in [V4, V6, DUAL] {
        versions(
            subnet_env,
            &json!({ "isDefaultGateway": true }),
            |node, version| {
                let pod = Space::new();
                let result = node.add("c1", &pod).json;
                let state = |node: &Node| {
                    let texts = [&node.space, &pod].map(|space| {
                        space.ok("ip", "address") + &space.ok("ip", "route") + &space.ok("ip", "-6 route")
                    });
                    (texts.map(|text| without_ages(&text)), node.leases())
                };
                // The kernel tells of carriers a moment later.
                let is_up = |name: &str| device(&node.space, name)["operstate"] == "UP";
                eventually("a device is not up", || {
                    is_up("cni0") && node.space.veths().iter().all(|name| is_up(name))
                });
                let before = state(node);
                let answer = node.check("c1", &pod, &result);
                match version < "0.4.0" {
                    true => assert_eq!(answer.code(), 1, "{version}"),
                    false => assert!(answer.ok && answer.json.is_null(), "{version}: {}", answer.json),
                }
                assert_eq!(state(node), before, "CHECK changed something");
                node.del("c1", &pod.path());
                node.assert_clean();
            },
        );
    }
}

/// Without what comes and goes by itself: lifetimes, and addresses still looked at by the kernel.
fn without_ages(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .filter(|line| !line.contains("valid_lft") && !line.contains("fe80::"));
    lines.map(|line| line.replace(" tentative", "")).collect()
}

#[test]
fn b25_isolated_ports() {
    for isolated in [false, true] {
        versions(V4, &json!({ "portIsolation": isolated }), |node, version| {
            let pod = Space::new();
            node.add("c1", &pod);
            assert_eq!(port(node)["isolated"], json!(isolated), "{version}");
        });
    }
}

#[test]
fn b27_del_of_a_container_whose_interface_is_gone() {
    versions(V4, &json!({}), |node, version| {
        let pod = Space::new();
        node.add("c1", &pod);
        pod.ok("ip", "link delete eth0");
        let answer = node.del("c1", &pod.path());
        assert_eq!(answer.stderr, "", "{version}");
        node.assert_clean();
    });
}

#[test]
fn b28_check_of_what_is_gone_or_of_another_kind() {
    if !root() {
        return;
    }
    let mut node = Node::new(V4, json!({ "isDefaultGateway": true, "promiscMode": true }));
    let pod = Space::new();
    let result = node.add("c1", &pod).json;
    let port = node.space.veths().remove(0);
    let mut refused = |breakage: &str, words: &[&str]| {
        for line in breakage.split(';') {
            node.space.ok("ip", line);
        }
        let answer = node.check("c1", &pod, &result);
        assert_eq!(answer.code(), 103, "{breakage}");
        let msg = answer.json["msg"].as_str().unwrap();
        assert!(words.iter().all(|word| msg.contains(word)), "{breakage}: {msg}");
    };
    refused("link set cni0 promisc off", &["cni0", "promiscuous"]);
    refused(
        "link set cni0 promisc on;link set cni0 address 02:00:00:00:00:55",
        &["cni0", "MAC"],
    );
    refused("link set cni0 down", &["cni0", "up"]);
    refused("link delete cni0", &["cni0", "gone"]);
    refused("link add cni0 type veth peer name other0", &["cni0", "kind"]);
    refused(
        "link delete cni0;link add cni0 type bridge;link set cni0 up promisc on",
        &["cni0", "MAC"],
    );
    refused(&format!("link set {port} name elsewhere"), &[]);
}

#[test]
fn b28_check_of_another_veth() {
    if !root() {
        return;
    }
    let mut node = Node::new(V4, json!({ "isDefaultGateway": true }));
    let (pod, other) = (Space::new(), Space::new());
    let result = node.add("c1", &pod).json;
    node.add("c2", &other);
    // The container's end has its name, address and routes, but it is c2's.
    let mut told = result.clone();
    told["interfaces"][2]["sandbox"] = json!(other.path());
    node.conf["prevResult"] = told;
    assert_eq!(node.call("CHECK", "c1", &other.path()).code(), 103);
    node.conf["prevResult"] = result;
    assert_eq!(
        node.call("CHECK", "c1", &other.path()).code(),
        103,
        "the sandbox is another"
    );
}
