//! Tables in a kernel: every call runs in a network namespace of its own, never in the machine's.
//!
//! Needs root, `unshare` and `nft`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flannel_model::{ServiceProtocol, VirtualAddress};
use flannel_netlink::Netns;
use flannel_netlink::nftables::{self, Data, NftConn};
use flannel_nft::{
    Applied, Element, Family, MasqueradeTable, Nft, ServiceMarks, ServiceNat, ServicesTable, TableName,
    masquerade_table, services_table, services_table_name,
};

/// A network namespace that lives as long as this value, and an `nft` that works inside it.
struct Namespace {
    holder: Child,
    script: PathBuf,
}

impl Namespace {
    fn new(name: &str) -> Self {
        let mut holder = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo; exec sleep 120"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // the empty line says that the namespace exists
        let mut byte = [0];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut byte).unwrap();
        let script = std::env::temp_dir().join(format!("flannel-nft-kernel-{}-{name}", std::process::id()));
        // Another process writes the file: a thread of this one that forks meanwhile would hold it open (ETXTBSY).
        let text = format!("exec nsenter -t {} -n nft \"$@\"", holder.id());
        let write = "printf '#!/bin/sh\n%s\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let status = Command::new("sh")
            .args(["-c", write, "sh", &text])
            .arg(&script)
            .status()
            .unwrap();
        assert!(status.success());
        Self { holder, script }
    }

    /// Puts elements in the place of others by netlink, in one transaction.
    fn exchange(&self, ipv4: bool, old: &BTreeSet<Element>, new: &BTreeSet<Element>) {
        let netns = Netns::open(format!("/proc/{}/ns/net", self.holder.id())).unwrap();
        let mut conn = netns.run(NftConn::open).unwrap().unwrap();
        let name = services_table_name(ipv4).name;
        let raw = |element: &Element| {
            let bytes = element.bytes();
            nftables::Element {
                key_end: bytes.key_end,
                data: bytes.data.map(Data::Value),
                ..nftables::Element::key(bytes.key)
            }
        };
        let gone = old
            .iter()
            .flat_map(|e| nftables::delete_elements(name, e.set(), [&raw(e)]));
        let come = new
            .iter()
            .flat_map(|e| nftables::add_elements(name, e.set(), [&raw(e)]));
        let messages: Vec<_> = gone.chain(come).collect();
        let family = if ipv4 {
            nftables::Family::Ipv4
        } else {
            nftables::Family::Ipv6
        };
        conn.commit(family, &messages, "change elements").unwrap();
    }

    fn nft(&self) -> Nft {
        Nft::new(&self.script, Duration::from_secs(20))
    }

    fn run(&self, arguments: &[&str]) -> String {
        let out = Command::new(&self.script).args(arguments).output().unwrap();
        assert!(
            out.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = std::fs::remove_file(&self.script);
    }
}

fn masquerade() -> MasqueradeTable {
    MasqueradeTable {
        network: "10.5.0.0/16".parse().unwrap(),
        subnet: "10.5.1.0/24".parse().unwrap(),
        masquerade: true,
        exempt: vec!["192.168.0.0/16".parse().unwrap()],
        fully_random: true,
        accept_forward: true,
    }
}

#[test]
fn a_table_is_written_once_and_again_when_it_changes() {
    let ns = Namespace::new("once");
    let nft = ns.nft();
    let table = masquerade_table(&masquerade());
    assert_eq!(nft.current_hash(TableName::MASQUERADE).unwrap(), None);
    assert_eq!(nft.apply(&table).unwrap(), Applied::Written);
    assert_eq!(
        nft.current_hash(TableName::MASQUERADE).unwrap(),
        Some(table.hash())
    );
    assert_eq!(nft.apply(&table).unwrap(), Applied::Unchanged);
    let plain = masquerade_table(&MasqueradeTable {
        fully_random: false,
        ..masquerade()
    });
    assert_eq!(nft.apply(&plain).unwrap(), Applied::Written);
    let listing = ns.run(&["-s", "list", "table", "ip", "flannel-ipv4"]);
    assert!(
        !listing.contains("fully-random") && listing.contains("masquerade"),
        "{listing}"
    );
    assert_eq!(
        listing.matches("chain postrtg").count(),
        1,
        "replaced, not added to"
    );
}

#[test]
fn a_table_of_another_is_taken_over_and_others_stay() {
    let ns = Namespace::new("takeover");
    ns.run(&["add", "table", "ip", "flannel-ipv4"]);
    ns.run(&["add", "chain", "ip", "flannel-ipv4", "old"]);
    ns.run(&["add", "table", "ip", "kube-proxy"]);
    assert_eq!(
        ns.nft().apply(&masquerade_table(&masquerade())).unwrap(),
        Applied::Written
    );
    let listing = ns.run(&["list", "ruleset"]);
    assert!(
        !listing.contains("chain old") && listing.contains("table ip kube-proxy"),
        "{listing}"
    );
}

/// Every kind of element, of one family.
fn elements(ipv4: bool, n: u8) -> BTreeSet<Element> {
    let address = |n: u8| -> IpAddr {
        if ipv4 {
            Ipv4Addr::new(203, 0, 113, n).into()
        } else {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into()
        }
    };
    let range = if ipv4 {
        "198.51.100.0/24"
    } else {
        "2001:db8:7::/64"
    };
    let at = VirtualAddress {
        protocol: ServiceProtocol::Sctp,
        address: address(n),
        port: 443,
    };
    let port = 30000 + u16::from(n);
    [
        Element::External(address(n)),
        Element::Hairpin(address(n)),
        Element::Restricted(at),
        Element::Allowed(at, range.parse().unwrap()),
        Element::Mark(at, 0xf180_0001),
        Element::NodePortMark(ipv4, ServiceProtocol::Tcp, port, 0xf100_7580),
        Element::NodePort(ipv4, ServiceProtocol::Tcp, port),
        Element::NodeServer(at),
        Element::Unserved(at),
    ]
    .into()
}

#[test]
fn the_services_tables_of_both_families_are_accepted_changed_and_removed() {
    let ns = Namespace::new("services");
    let nft = ns.nft();
    for (ipv4, family) in [(true, "ip"), (false, "ip6")] {
        let empty = ServicesTable {
            ipv4,
            cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
            networks: vec!["10.5.0.0/16".parse().unwrap(), "fd00:5::/64".parse().unwrap()],
            node_addresses: BTreeSet::new(),
            marks: ServiceMarks {
                keep_source: 0xf100_0000,
                masquerade: 0xf200_0000,
                mask: 0xff00_0000,
            },
            elements: BTreeSet::new(),
            fully_random: true,
        };
        assert_eq!(nft.apply(&services_table(&empty)).unwrap(), Applied::Written);
        let full = ServicesTable {
            node_addresses: ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()].into(),
            elements: elements(ipv4, 8),
            ..empty
        };
        assert_eq!(nft.apply(&services_table(&full)).unwrap(), Applied::Written);
        assert_eq!(nft.apply(&services_table(&full)).unwrap(), Applied::Unchanged);
        let next = elements(ipv4, 9);
        ns.exchange(ipv4, &full.elements, &next);
        let changed = ns.run(&["list", "table", family, "flannel-services"]);
        // the same as if it had been written whole, but for the hash
        let whole = services_table(&ServicesTable {
            elements: next,
            ..full
        });
        assert_eq!(nft.apply(&whole).unwrap(), Applied::Written);
        let written = ns.run(&["list", "table", family, "flannel-services"]);
        let without_hash = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|l| !l.contains("flannel-hash="));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(without_hash(&changed), without_hash(&written));
        assert!(
            written.contains(". 443 . ") && written.contains("priority 101"),
            "{written}"
        );
        let name = services_table_name(ipv4);
        assert_eq!(nft.remove(name).unwrap(), Applied::Written);
        assert_eq!(nft.remove(name).unwrap(), Applied::Unchanged);
    }
}

#[test]
fn a_table_that_is_not_ours_is_not_removed() {
    let ns = Namespace::new("foreign");
    ns.run(&["add", "table", "ip", "flannel-services"]);
    assert_eq!(ns.nft().remove(TableName::SERVICES).unwrap(), Applied::Unchanged);
    ns.run(&["list", "table", "ip", "flannel-services"]);
}

fn service_nat(family: Family) -> ServiceNat {
    let bridged = match family {
        Family::Ip => "10.5.1.0/24",
        Family::Ip6 => "fd00:5:1::/64",
    };
    ServiceNat {
        family,
        fully_random: true,
        bridged: Some(bridged.parse().unwrap()),
    }
}

#[test]
fn the_service_nat_tables_are_accepted_and_listed_and_written_again_over_their_elements() {
    let ns = Namespace::new("nat");
    let nft = ns.nft();
    for (family, address) in [(Family::Ip, "10.96.0.10"), (Family::Ip6, "fd00:96::a")] {
        let nat = service_nat(family);
        nft.run_script("write", &nat.script()).unwrap();
        assert_eq!(nft.current_hash(nat.name()).unwrap(), Some(nat.table().hash()));
        let (family, table) = (family.to_string(), nat.name().name);
        for (set, element) in [
            ("frontends", format!("{{ {address} . tcp . 80 : goto remember }}")),
            (
                "backends",
                format!("{{ {address} . tcp . 80 . 0 : {address} . 8080 }}"),
            ),
        ] {
            ns.run(&["add", "element", &family, table, set, &element]);
        }
        let before = ns.run(&["list", "table", &family, table]);
        for part in [
            "priority dstnat - 5",
            "priority srcnat - 5",
            "tcp . 80",
            "goto remember",
            ". 8080",
        ] {
            assert!(before.contains(part), "{part}\n{before}");
        }
        nft.run_script("write again", &nat.script()).unwrap();
        let after = ns.run(&["list", "table", &family, table]);
        assert_eq!(before, after, "nothing was doubled, and elements stay");
        ns.run(&["-j", "list", "table", &family, table]);
    }
}

/// No packet may be translated because of its port alone (CVE-2025-67499).
#[test]
fn node_ports_are_for_addresses_of_the_node_alone() {
    for family in [Family::Ip, Family::Ip6] {
        let script = service_nat(family).script();
        let by_port = script
            .lines()
            .filter(|l| l.contains("@node-ports") || l.contains("@refused-ports"));
        let expected = format!("fib daddr type local {family} daddr @node-addresses");
        assert!(by_port.clone().count() >= 4);
        for rule in by_port {
            assert!(rule.contains(&expected), "{rule}");
        }
    }
}
