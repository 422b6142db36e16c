//! Tables in a kernel: every call runs in a network namespace of its own, never in the machine's.
//!
//! Needs root, `unshare` and `nft`.
#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flannel_nft::{
    Applied, Family, MasqueradeTable, Nft, ServiceNat, ServicesTable, TableName, masquerade_table,
    services_table,
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

#[test]
fn the_services_table_is_accepted_and_removed() {
    let ns = Namespace::new("services");
    let nft = ns.nft();
    let mut input = ServicesTable {
        cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        network: "10.5.0.0/16".parse().unwrap(),
        local_endpoints: BTreeSet::new(),
        fully_random: true,
    };
    assert_eq!(nft.apply(&services_table(&input)).unwrap(), Applied::Written);
    input.local_endpoints.insert("10.5.1.2".parse().unwrap());
    assert_eq!(nft.apply(&services_table(&input)).unwrap(), Applied::Written);
    let listing = ns.run(&["list", "table", "ip", "flannel-services"]);
    for part in [
        "10.96.0.0/16",
        "10.5.1.2 . 10.5.1.2",
        "priority 101",
        "reject with tcp reset",
    ] {
        assert!(listing.contains(part), "{part}\n{listing}");
    }
    assert_eq!(nft.remove(TableName::SERVICES).unwrap(), Applied::Written);
    assert_eq!(nft.remove(TableName::SERVICES).unwrap(), Applied::Unchanged);
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
