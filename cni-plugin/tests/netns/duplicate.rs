//! `enabledad`: IPv6 addresses that somebody else has.

use serde_json::json;

use crate::lab::{Node, Space, root};
use crate::{DUAL, V6};

fn disabled(pod: &Space) -> String {
    pod.sysctl("ipv6/conf/eth0/accept_dad")
}

#[test]
fn addresses_serve_at_once_or_after_the_question() {
    if !root() {
        return;
    }
    for (delegate, accept) in [(json!({}), "0"), (json!({ "enabledad": true }), "1")] {
        let node = Node::new(DUAL, delegate);
        let pod = Space::new();
        node.add("c1", &pod);
        let shown = pod.ok("ip", "-6 address show dev eth0 scope global");
        assert!(
            shown.contains("fd00:244:0:1::2") && !shown.contains("tentative"),
            "{shown}"
        );
        assert_eq!(shown.contains("nodad"), accept == "0", "{shown}");
        assert_eq!(disabled(&pod), accept);
        assert!(pod.pings("fd00:244:0:1::1"));
        node.del("c1", "");
    }
}

#[test]
fn an_address_that_somebody_has_is_refused_and_given_back() {
    if !root() {
        return;
    }
    let node = Node::new(V6, json!({ "enabledad": true, "antiSpoof": false }));
    let (first, second) = (Space::new(), Space::new());
    node.add("c1", &first);
    // By hand, as no lease says.
    first.ok("ip", "address add fd00:244:0:1::3/64 dev eth0 nodad");
    let answer = node.call("ADD", "c2", &second.path());
    assert_eq!(answer.code(), 102, "{}", answer.json);
    let msg = answer.json["msg"].as_str().unwrap();
    assert!(msg.contains("fd00:244:0:1::3"), "{msg}");
    assert_eq!(second.devices(), ["lo"]);
    assert_eq!(node.leases(), ["fd00:244:0:1::2"]);
    node.del("c1", "");
    node.assert_clean();
}
