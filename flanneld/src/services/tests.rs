//! The whole programmer against a kernel with IPVS, checked with packets and with `ipvsadm`.

use std::collections::BTreeMap;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use flannel_netlink::Netns;

use flannel_plan::ServiceNode;

use super::{IpvsProgrammer, Record, Services, Status};
use crate::service_feed::etcd_record;

/// A node with two pods on a bridge and a neighbour outside, as network namespaces that go away with this value.
struct Lab {
    prefix: String,
    children: Vec<Child>,
}

const SETUP: &str = r#"
set -e
for n in node out p2 p3; do ip netns add $P-$n; ip -n $P-$n link set lo up; done
ip link add ${P}u type veth peer name ${P}o
ip link set ${P}u netns $P-node name eth0
ip link set ${P}o netns $P-out name eth0
ip -n $P-node addr add 192.0.2.1/24 dev eth0; ip -n $P-node link set eth0 up
ip -n $P-out addr add 192.0.2.2/24 dev eth0; ip -n $P-out link set eth0 up
ip -n $P-out route add 10.96.0.0/16 via 192.0.2.1
ip -n $P-node link add cni0 type bridge
ip -n $P-node addr add 10.5.1.1/24 dev cni0; ip -n $P-node link set cni0 up
for i in 2 3; do
  ip link add ${P}v$i type veth peer name ${P}w$i
  ip link set ${P}v$i netns $P-node name veth$i
  ip link set ${P}w$i netns $P-p$i name eth0
  ip -n $P-node link set veth$i master cni0 up; bridge -n $P-node link set dev veth$i hairpin on
  ip -n $P-p$i addr add 10.5.1.$i/24 dev eth0; ip -n $P-p$i link set eth0 up
  ip -n $P-p$i route add default via 10.5.1.1
done
"#;

impl Lab {
    fn new() -> Self {
        // interface names have 15 bytes at most
        let lab = Self {
            prefix: format!("s{}", std::process::id() % 10_000_000),
            children: Vec::new(),
        };
        let out = Command::new("sh")
            .args(["-c", SETUP])
            .env("P", &lab.prefix)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out));
        lab
    }

    fn netns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Runs a command in a namespace, for at most ten seconds.
    fn run(&self, ns: &str, command: &str) -> Output {
        let arguments = [
            "netns",
            "exec",
            &self.netns(ns),
            "timeout",
            "10",
            "sh",
            "-c",
            command,
        ];
        Command::new("ip").args(arguments).output().unwrap()
    }

    /// The same, where it must succeed.
    fn read(&self, ns: &str, command: &str) -> String {
        let out = self.run(ns, command);
        assert!(out.status.success(), "{ns}: {command}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    /// A server that tells its name and who asks. It reads the question first: socat gives up when nobody does.
    fn serve(&mut self, ns: &str, listen: &str) {
        let answer = format!("SYSTEM:read question; echo {ns} sees $SOCAT_PEERADDR");
        let arguments = ["netns", "exec", &self.netns(ns), "socat", listen, &answer];
        self.children.push(
            Command::new("ip")
                .args(arguments)
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
    }

    /// Asks `address` from a namespace until an answer holds `wanted`, for at most 15 s: real servers take turns.
    fn answers(&self, ns: &str, address: &str, wanted: &str) {
        let begin = Instant::now();
        let mut seen = Vec::new();
        while begin.elapsed() < Duration::from_secs(15) {
            let answer = text(&self.run(
                ns,
                &format!("echo x | socat -t2 -T3 - {address},connect-timeout=3"),
            ));
            if answer.contains(wanted) {
                return;
            }
            seen.push(answer);
        }
        panic!("{ns} → {address}: no answer with {wanted:?} among {seen:?}");
    }

    fn sync(&self, programmer: &mut Services, records: &BTreeMap<String, Record>) -> Status {
        let node = ServiceNode {
            name: "n1".into(),
            primary: vec!["192.0.2.1".parse().unwrap()],
            networks: vec!["10.5.0.0/16".parse().unwrap()],
            pods: vec!["10.5.1.0/24".parse().unwrap()],
            ..ServiceNode::default()
        };
        let netns = Netns::open(format!("/run/netns/{}", self.netns("node"))).unwrap();
        let known: Vec<String> = programmer.names();
        known
            .iter()
            .filter(|name| !records.contains_key(*name))
            .for_each(|name| programmer.gone(name));
        records.values().for_each(|record| programmer.put(record.clone()));
        netns.run(|| programmer.pass(&node)).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in ["node", "out", "p2", "p3"] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.netns(name)])
                .output();
        }
    }
}

fn text(out: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

fn records(list: &[(&str, String)]) -> BTreeMap<String, Record> {
    list.iter()
        .map(|(key, value)| ((*key).to_owned(), etcd_record(key, value.as_bytes(), 1)))
        .collect()
}

fn programmer() -> Services {
    Services::new(Box::new(IpvsProgrammer::new(true)))
}

fn cluster(endpoints: &[u8]) -> BTreeMap<String, Record> {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|n| format!(r#"{{"addresses":["10.5.1.{n}"]}}"#))
        .collect();
    let slice = format!(
        r#"{{"addressType":"IPv4","ports":[{{"name":"http","port":8080}},{{"name":"ask","protocol":"UDP","port":5353}}],"endpoints":[{}]}}"#,
        endpoints.join(",")
    );
    let spec = r#"{"clusterIP":"10.96.0.10","ports":[{"name":"http","port":80},{"name":"ask","protocol":"UDP","port":53}]}"#;
    records(&[
        ("config", r#"{"cidrs":["10.96.0.0/16"]}"#.to_owned()),
        ("spec/shop/web", spec.to_owned()),
        ("slices/shop/web/a", slice),
    ])
}

#[test]
#[ignore = "needs a kernel with IPVS; the lab runs it in a guest"]
fn services_from_nothing_to_packets_and_back() {
    let mut lab = Lab::new();
    // A thief of the virtual address on the host itself: without the guard it would answer on every Service address.
    lab.serve("node", "TCP-LISTEN:9090,fork,reuseaddr");
    for pod in ["p2", "p3"] {
        lab.serve(pod, "TCP-LISTEN:8080,fork,reuseaddr");
        lab.serve(pod, "UDP-RECVFROM:5353,fork");
    }
    let mut services = programmer();

    let nothing = lab.sync(&mut services, &BTreeMap::new());
    assert_eq!(nothing, Status::default());
    assert!(
        !lab.read("node", "nft list tables").contains("flannel"),
        "no CIDR, nothing touched"
    );
    lab.read(
        "node",
        "ipvsadm -A -t 203.0.113.9:443 -s wlc; ipvsadm -a -t 203.0.113.9:443 -r 192.0.2.2:443 -m",
    );

    let first = lab.sync(&mut services, &cluster(&[2, 3]));
    assert_eq!(
        (first.added, first.removed, &first.failed),
        (7, 0, &Vec::new()),
        "a route, two virtual, four real: {first:?}"
    );
    assert_eq!(first.rejects, []);
    let listing = lab.read("node", "ipvsadm -Ln | tr -s ' '");
    for line in [
        "TCP 10.96.0.10:80 rr",
        "UDP 10.96.0.10:53 rr",
        "-> 10.5.1.2:8080 Masq 1",
        "-> 10.5.1.3:5353 Masq 1",
    ] {
        assert!(listing.contains(line), "{line}\n{listing}");
    }

    packets(&lab);

    // Another process: it adopts.
    let again = lab.sync(&mut programmer(), &cluster(&[2, 3]));
    assert_eq!(
        (again.added, again.removed, again.unchanged),
        (0, 0, 7),
        "{again:?}"
    );

    let fewer = lab.sync(&mut services, &cluster(&[3]));
    assert_eq!(
        (fewer.added, fewer.removed, fewer.failed.len()),
        (1, 1, 0),
        "TCP drains, UDP goes at once: {fewer:?}"
    );
    lab.answers("p2", "TCP4:10.96.0.10:80", "p3 sees 10.5.1.2");

    let mut without = cluster(&[3]);
    without.remove("config");
    let gone = lab.sync(&mut programmer(), &without);
    assert_eq!(
        (gone.added, gone.removed, gone.failed.len()),
        (0, 3, 0),
        "two virtual servers and the route: {gone:?}"
    );
    let listing = lab.read("node", "ipvsadm -Ln");
    assert!(
        !listing.contains("10.96.0.10") && listing.contains("203.0.113.9:443 wlc"),
        "{listing}"
    );
    assert!(!lab.read("node", "nft list tables").contains("flannel"));
    assert_eq!(lab.read("node", "ip route show table local proto 70"), "");
}

/// Who reaches a Service, and as whom; and that nothing else of the range answers.
fn packets(lab: &Lab) {
    lab.answers("p2", "TCP4:10.96.0.10:80", "p3 sees 10.5.1.2");
    lab.answers("p2", "TCP4:10.96.0.10:80", "p2 sees 10.5.1.1");
    lab.answers("p3", "UDP4:10.96.0.10:53", "p2 sees 10.5.1.3");
    lab.answers("node", "TCP4:10.96.0.10:80", "p2 sees");
    lab.answers("node", "UDP4:10.96.0.10:53", "p3 sees");
    lab.answers("out", "TCP4:10.96.0.10:80", "p3 sees 10.5.1.1");
    for ns in ["node", "p2", "out"] {
        lab.answers(ns, "TCP4:10.96.0.10:9090", "Connection refused");
        lab.answers(ns, "TCP4:10.96.77.7:80", "Connection refused");
    }
    lab.answers("p2", "TCP4:192.0.2.1:9090", "node sees");
}
