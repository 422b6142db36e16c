//! The programmer against a kernel, each test in a network namespace of its own; `nft` is the second opinion.

use std::collections::BTreeMap;
use std::process::Command;

use flannel_model::{ServiceKey, ServiceRecord};
use flannel_plan::{ServiceFacts, ServiceNode, ServiceTable};

use super::*;

/// Runs `work` on a fresh thread in a network namespace of its own, which vanishes with the thread.
fn in_fresh_netns(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let inside = || {
            // SAFETY: only the network namespace is unshared; descriptors stay common to all threads.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .expect("these tests make network namespaces: run them as root");
            run("ip link set lo up");
            work();
        };
        if let Err(panic) = scope.spawn(inside).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Services as records, and a programmer of them.
struct Bench {
    table: ServiceTable,
    programmer: NftProgrammer,
}

impl Bench {
    fn new() -> Self {
        let node = ServiceNode {
            name: "n1".into(),
            primary: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            addresses: ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap()).into(),
            networks: vec!["10.5.0.0/16".parse().unwrap(), "fd00:5::/48".parse().unwrap()],
            pods: vec!["10.5.1.0/24".parse().unwrap(), "fd00:5:0:1::/64".parse().unwrap()],
            ..ServiceNode::default()
        };
        let mut bench = Self {
            table: ServiceTable::new(ServiceFacts::new(node)),
            programmer: NftProgrammer::default(),
        };
        bench.set(
            "config",
            r#"{"cidrs":["10.96.0.0/16","fd00:96::/112"],"externalCidrs":["203.0.113.0/24"]}"#,
        );
        bench
    }

    fn set(&mut self, key: &str, value: &str) {
        let key = ServiceKey::parse(key).unwrap();
        let record = ServiceRecord::parse(&key, value.as_bytes()).unwrap();
        self.table.set(key, Some((record, 1)));
    }

    fn remove(&mut self, key: &str) {
        self.table.set(ServiceKey::parse(key).unwrap(), None);
    }

    /// A Service number `n` with so many endpoints of both families.
    fn service(&mut self, n: u16, endpoints: &[u8]) {
        let [high, low] = n.to_be_bytes();
        self.set(
            &format!("spec/shop/s{n}"),
            &format!(r#"{{"clusterIPs":["10.96.{high}.{low}","fd00:96::{n:x}"],"ports":[{{"name":"http","port":80}},{{"name":"dns","protocol":"UDP","port":53}}]}}"#),
        );
        self.endpoints(n, endpoints);
    }

    fn endpoints(&mut self, n: u16, endpoints: &[u8]) {
        let [high, low] = n.to_be_bytes();
        for (family, kind) in [("a", "IPv4"), ("b", "IPv6")] {
            let list: Vec<String> = endpoints
                .iter()
                .map(|e| {
                    let ip = if family == "a" {
                        format!("10.5.{high}.{}", u16::from(low) % 200 + u16::from(*e))
                    } else {
                        format!("fd00:5:0:1::{n:x}:{e:x}")
                    };
                    format!(r#"{{"addresses":["{ip}"]}}"#)
                })
                .collect();
            self.set(
                &format!("slices/shop/s{n}/{family}"),
                &format!(
                    r#"{{"addressType":"{kind}","ports":[{{"name":"http","port":8080}},{{"name":"dns","protocol":"UDP","port":5353}}],"endpoints":[{}]}}"#,
                    list.join(",")
                ),
            );
        }
    }

    fn pass(&mut self, all: bool) -> Status {
        let changes = self.table.refresh();
        let view = View {
            frontends: self.table.frontends(),
            node: &self.table.facts().node,
        };
        let mut status = Status::default();
        let scope = if all { Scope::All } else { Scope::Changed(&changes) };
        self.programmer.programme(&view, scope, &mut status);
        assert_eq!(status.failed, Vec::<String>::new());
        status
    }

    /// A look at everything when it is time for one, to its end.
    fn audit(&mut self) -> Status {
        self.programmer.compared = None;
        let view = View {
            frontends: self.table.frontends(),
            node: &self.table.facts().node,
        };
        let mut status = Status::default();
        self.programmer.programme(&view, Scope::Audit, &mut status);
        while self.programmer.look.as_ref().is_some_and(|look| !look.is_over()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.programmer.programme(&view, Scope::Audit, &mut status);
        assert_eq!(status.failed, Vec::<String>::new());
        assert!(self.programmer.look.is_none() && self.programmer.compared.is_some());
        status
    }

    /// As after a start of the process.
    fn restart(&mut self) -> Status {
        self.programmer = NftProgrammer::default();
        self.pass(true)
    }
}

/// Elements of the table by their set, as nft lists them.
fn listed() -> BTreeMap<String, Vec<String>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for family in ["ip", "ip6"] {
        let listing = run(&format!(
            "nft list table {family} flannel-services-nat | tr -d '\\n\\t'"
        ));
        for part in listing.split("map ").chain(listing.split("set ")) {
            let Some((name, rest)) = part.split_once(' ') else {
                continue;
            };
            let Some((_, elements)) = rest.split_once("elements = {") else {
                continue;
            };
            if rest
                .find('}')
                .is_some_and(|end| end < rest.find("elements").unwrap_or(0))
            {
                continue;
            }
            let elements = elements.split('}').next().unwrap_or_default();
            let mut elements: Vec<String> = elements.split(',').map(|e| e.trim().to_owned()).collect();
            elements.sort();
            out.insert(format!("{family} {name}"), elements);
        }
    }
    out
}

#[test]
fn what_stands_is_adopted_and_what_others_take_away_comes_back() {
    in_fresh_netns(|| {
        let mut bench = Bench::new();
        for n in 1..=50 {
            bench.service(n, &[1, 2, 3]);
        }
        assert!(bench.pass(true).added > 0);
        let whole = listed();
        assert_eq!(whole["ip frontends"].len(), 100);
        assert_eq!(whole["ip6 backends"].len(), 300);
        assert_eq!(whole["ip cidrs"], ["10.96.0.0/16"]);
        let again = bench.pass(true);
        assert_eq!(
            (again.added, again.removed),
            (0, 0),
            "nothing is written without need"
        );
        let adopted = bench.restart();
        assert_eq!((adopted.added, adopted.removed), (0, 0), "what stands is adopted");
        assert!(
            !bench.programmer.disturbed(),
            "our own changes are no disturbance"
        );
        for harm in [
            "nft flush map ip flannel-services-nat backends",
            "nft delete element ip6 flannel-services-nat frontends '{ fd00:96::1 . tcp . 80 }'",
            "nft add element ip flannel-services-nat refused '{ 203.0.113.9 . tcp . 80 }'",
            "nft flush chain ip flannel-services-nat services",
            "nft delete table ip flannel-services-nat",
            "nft flush ruleset",
        ] {
            run(harm);
            assert!(bench.programmer.disturbed(), "{harm}: not noticed");
            bench.pass(false);
            assert_eq!(listed(), whole, "after: {harm}");
            let rules = run("nft list chain ip flannel-services-nat services");
            assert!(rules.contains("vmap @frontends"), "after {harm}: {rules}");
            assert!(!bench.programmer.disturbed(), "after: {harm}");
        }
    });
}

#[test]
fn a_change_is_a_few_elements_and_nothing_of_others_is_touched() {
    in_fresh_netns(|| {
        run(
            "nft add table ip kube-proxy; nft add chain ip kube-proxy services; nft add rule ip kube-proxy services counter",
        );
        let foreign = || run("nft list table ip kube-proxy");
        let before = foreign();
        let mut bench = Bench::new();
        for n in 1..=20 {
            bench.service(n, &[1, 2, 3]);
        }
        bench.pass(true);
        bench.endpoints(7, &[1, 2, 9]);
        let status = bench.pass(false);
        assert_eq!(
            (status.added, status.removed),
            (5, 1),
            "a slot of two ports in two families, and who is here"
        );
        bench.service(21, &[1, 2, 3]);
        let status = bench.pass(false);
        assert_eq!(
            (status.added, status.removed),
            (27, 0),
            "a frontend, its two counters and three slots, four times, and who is here"
        );
        bench.remove("spec/shop/s21");
        bench.pass(false);
        assert_eq!(listed()["ip frontends"].len(), 40);
        // more endpoints than there are chains for
        let many: Vec<u8> = (1..40).collect();
        bench.endpoints(3, &many);
        bench.pass(false);
        let text = run("nft list map ip flannel-services-nat frontends");
        assert_eq!(text.matches("goto pick-39").count(), 2, "{text}");
        bench.endpoints(3, &[1]);
        bench.pass(false);
        bench.pass(true);
        let text = run("nft list table ip flannel-services-nat");
        assert!(!text.contains("pick-39"), "chains that nothing names are removed");
        assert_eq!(foreign(), before);
        for n in 1..=20 {
            bench.remove(&format!("spec/shop/s{n}"));
        }
        bench.set("config", "{}");
        bench.pass(false);
        assert_eq!(
            run("nft list tables"),
            "table ip kube-proxy\n",
            "without a service CIDR there is no table"
        );
    });
}

#[test]
fn a_look_beside_the_work_finds_what_no_notification_told() {
    in_fresh_netns(|| {
        let mut bench = Bench::new();
        for n in 1..=50 {
            bench.service(n, &[1, 2, 3]);
        }
        bench.pass(true);
        let whole = listed();
        assert_eq!(bench.audit(), Status::default(), "nothing was wrong");
        for harm in [
            "nft flush map ip flannel-services-nat backends",
            "nft delete element ip6 flannel-services-nat frontends '{ fd00:96::1 . tcp . 80 }'",
            "nft add element ip flannel-services-nat refused '{ 203.0.113.9 . tcp . 80 }'",
            "nft flush chain ip6 flannel-services-nat services",
        ] {
            run(harm);
            assert!(bench.programmer.disturbed());
            // as if it had been lost
            bench.programmer.disturbed = false;
            let status = bench.audit();
            assert!(status.added + status.removed > 0, "{harm}: {status:?}");
            assert_eq!(listed(), whole, "after: {harm}");
        }
    });
}

#[test]
fn a_look_at_what_changes_meanwhile_tells_nothing() {
    in_fresh_netns(|| {
        let mut bench = Bench::new();
        bench.service(1, &[1, 2, 3]);
        bench.pass(true);
        let contents = || {
            bench
                .programmer
                .tables
                .iter()
                .filter_map(FamilyTable::contents)
                .collect()
        };
        let watch = TableWatch::open(TABLE).unwrap();
        assert_eq!(
            compare::compare(contents(), &watch).unwrap(),
            compare::Found::Same
        );
        run("nft flush map ip flannel-services-nat backends");
        assert_eq!(
            compare::compare(contents(), &watch).unwrap(),
            compare::Found::Nothing
        );
        assert_eq!(
            compare::compare(contents(), &watch).unwrap(),
            compare::Found::Other
        );
    });
}
