//! Leases: what is shown, reserved, released, watched and checked.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::{PREFIX, Setup, VXLAN, run_with};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// The value of node `n`.
fn vxlan(n: u8) -> String {
    VXLAN
        .replace("192.168.50.11", &format!("192.168.50.{n}"))
        .replace("8a:55:6f:01:02:03", &format!("8a:55:6f:01:02:{n:02x}"))
}

#[test]
fn the_map_counts_and_draws() {
    let setup = Setup::new();
    let none = setup.run(&["subnets", "map"]);
    assert_eq!(none.code, 4, "{}", none.err);
    setup.put("config", CONFIG);
    setup.lease("10.5.1.0-24", &vxlan(11));
    setup.lease("10.5.2.0-24", &vxlan(12));
    setup
        .run(&[
            "subnets",
            "reserve",
            "10.5.65.0/24",
            "--public-ip",
            "192.168.50.20",
        ])
        .ok();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let note = |held: u64| format!(r#"{{"LastHeld":{held},"PublicIP":"192.168.50.9"}}"#);
    setup.put("used/10.5.3.0-24", &note(now - 60));
    setup.put("used/10.5.4.0-24", &note(now - 100_000));
    let text = setup.run(&["subnets", "map"]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "10.5.0.0/16 in subnets of /24: 2 used, 1 reserved, 1 in hold-down, 251 free of 255; 11 ‰ full"
    );
    assert!(lines[1].starts_with("  10.5.1.0    ##h."), "{text}");
    assert!(lines[2].starts_with("  10.5.65.0   R."), "{text}");
    let json = setup.run(&["subnets", "map", "-o", "json"]).json();
    let ipv4 = &json["networks"][0];
    assert_eq!(
        (&ipv4["used"], &ipv4["holdDown"], &ipv4["perMille"]),
        (&2.into(), &1.into(), &11.into())
    );
}

#[test]
fn one_lease_is_shown_by_any_of_its_names() {
    let setup = Setup::new();
    setup.put("config", CONFIG);
    setup.lease("10.5.1.0-24", &vxlan(11));
    for name in ["10.5.1.0/24", "10.5.1.0-24", "10.5.1.77"] {
        let text = setup.run(&["subnets", "show", name]).ok();
        for part in ["Public IP   192.168.50.11", "State       held", "VtepMAC"] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
    let yaml = setup.run(&["subnets", "show", "10.5.1.77", "-o", "yaml"]).ok();
    let yaml: serde_json::Value = serde_norway::from_str(&yaml).unwrap();
    assert_eq!(
        (&yaml["state"], &yaml["key"]),
        (&"held".into(), &format!("{PREFIX}/subnets/10.5.1.0-24").into())
    );
    assert_eq!(setup.run(&["subnets", "show", "10.5.9.9"]).code, 4);
}

#[test]
fn reservations_come_and_go_and_leases_in_use_stay() {
    let setup = Setup::new();
    let reserve = [
        "subnets",
        "reserve",
        "10.5.7.0/24",
        "--public-ip",
        "192.168.50.20",
    ];
    assert_eq!(setup.run(&reserve).code, 4, "without a config");
    setup.put("config", CONFIG);
    setup.lease("10.5.1.0-24", &vxlan(11));
    assert_eq!(setup.run(&reserve).ok(), "10.5.7.0-24 reserved\n");
    let value = setup.value("subnets/10.5.7.0-24").unwrap();
    assert_eq!(
        value,
        r#"{"PublicIP":"192.168.50.20","PublicIPv6":null,"Reserved":true}"#
    );
    let json = setup.run(&["subnets", "-o", "json"]).json();
    assert_eq!(
        (&json["subnets"][1]["state"], &json["subnets"][1]["reservation"]),
        (&"reserved".into(), &true.into())
    );
    assert_eq!(setup.run(&reserve).code, 5, "twice");
    for (subnet, code) in [
        ("10.5.1.0/24", 5),
        ("10.5.1.128/25", 1),
        ("10.6.1.0/24", 1),
        ("10.5.8.0", 1),
    ] {
        let refused = setup.run(&["subnets", "reserve", subnet, "--public-ip", "192.168.50.21"]);
        assert_eq!(refused.code, code, "{subnet}: {}", refused.err);
    }
    assert_eq!(
        setup.run(&["subnets", "release", "10.5.7.0/24"]).ok(),
        "10.5.7.0-24 released\n"
    );
    assert_eq!(setup.value("subnets/10.5.7.0-24"), None);
    let refused = setup.run(&["subnets", "release", "10.5.1.0/24"]);
    assert_eq!(refused.code, 5);
    assert!(
        refused.err.contains("in use by 192.168.50.11, renewed"),
        "{}",
        refused.err
    );
    assert!(setup.value("subnets/10.5.1.0-24").is_some());
    setup.run(&["subnets", "release", "--force", "10.5.1.0/24"]).ok();
    assert_eq!(setup.value("subnets/10.5.1.0-24"), None);
    assert_eq!(setup.run(&["subnets", "release", "10.5.1.0/24"]).code, 4);
}

#[test]
fn what_happens_is_told_line_by_line() {
    let setup = Setup::new();
    setup.put("config", CONFIG);
    setup.lease("10.5.1.0-24", &vxlan(11));
    let mut watch = Command::new(env!("CARGO_BIN_EXE_flannelctl"))
        .args(["subnets", "watch", "--timeout", "20s", "-o", "json"])
        .env_clear()
        .env("FLANNELD_ETCD_ENDPOINTS", setup.etcd.endpoint())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || -> (String, serde_json::Value) {
        let line: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        (line["event"].as_str().unwrap().to_owned(), line)
    };
    assert_eq!(next().0, "listed");
    setup.lease("10.5.2.0-24", &vxlan(12));
    let (event, line) = next();
    assert_eq!(
        (event.as_str(), &line["publicIP"]),
        ("added", &"192.168.50.12".into())
    );
    setup.put("subnets/10.5.2.0-24", &vxlan(13));
    assert_eq!(next().0, "moved");
    setup.put("subnets/10.5.3.0-24", "junk");
    let (event, line) = next();
    assert_eq!(
        (event.as_str(), &line["subnet"]),
        ("rejected", &"10.5.3.0-24".into())
    );
    setup.run(&["subnets", "release", "--force", "10.5.1.0/24"]).ok();
    assert_eq!(next().0, "removed");
    watch.kill().unwrap();
    watch.wait().unwrap();
    let ended = setup.run(&["subnets", "watch", "--timeout", "300ms"]).ok();
    assert!(ended.starts_with("listed   10.5.2.0/24"), "{ended}");
}

#[test]
fn a_config_is_checked_by_itself_and_beside_the_leases() {
    let setup = Setup::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("net-conf.json");
    let path = file.to_str().unwrap();
    let nowhere = "http://127.0.0.1:1";
    std::fs::write(&file, CONFIG).unwrap();
    let text = run_with(nowhere, &["check-config", path], "").ok();
    assert!(
        text.starts_with("ok       config  10.5.0.0/16 in 255 subnets of /24; backend vxlan\n"),
        "{text}"
    );
    let bad = r#"{"Network":"10.5.0.0/16","SubnetLen":99,"Subnetmaxx":"x","Backend":{"Type":"ipsec"}}"#;
    let said = run_with(nowhere, &["check-config", "-"], bad);
    assert_eq!(said.code, 3);
    for part in [
        "SubnetLen is 99",
        "Backend.Type",
        "Subnetmaxx is no field",
        "2 errors, 1 warning",
    ] {
        assert!(said.out.contains(part), "{part}\n{}", said.out);
    }
    assert_eq!(run_with(nowhere, &["check-config"], "").code, 1);
    assert_eq!(run_with(nowhere, &["check-config", "/nonexistent"], "").code, 1);

    let check = ["check-config", "--etcd", "-o", "json"];
    assert_eq!(setup.run(&check).code, 4);
    setup.put("config", CONFIG);
    setup.lease("10.5.1.0-24", &vxlan(11));
    let said = setup.run(&check);
    assert_eq!((said.code, &said.json()["result"]), (0, &"ok".into()));
    // What is to take its place does not fit the lease that is there.
    std::fs::write(
        &file,
        CONFIG
            .replace("10.5.0.0/16", "10.9.0.0/16")
            .replace("vxlan", "host-gw"),
    )
    .unwrap();
    let said = setup.run(&["check-config", "--etcd", path]);
    assert_eq!(said.code, 3, "{}", said.out);
    for part in [
        "warning  lease-fit",
        "ERROR    lease-backends",
        "10.5.1.0-24 of 192.168.50.11",
    ] {
        assert!(said.out.contains(part), "{part}\n{}", said.out);
    }
}

#[test]
fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    let setup = Setup::new();
    let doctor = ["doctor", "--subnet-file", "/nonexistent/subnet.env"];
    let said = setup.run(&doctor);
    assert_eq!(said.code, 6, "{}", said.out);
    assert!(said.out.contains("there is no network config"), "{}", said.out);
    setup.put("config", CONFIG);
    setup.lease("10.5.1.0-24", &vxlan(11));
    setup.lease("10.5.2.0-24", &vxlan(12));
    let text = setup.run(&doctor).ok();
    assert!(text.contains("\n0 errors, "), "{text}");
    // The machine's etcd may be one with a known weakness.
    let warned = |line: &&str| line.starts_with("warning") && !line.contains("etcd-version");
    assert_eq!(text.lines().find(warned), None, "{text}");
    assert!(text.contains("skipped  node"), "{text}");

    let ahead = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() + 7_500;
    setup.put(
        "used/10.5.1.0-24",
        &format!(r#"{{"LastHeld":{ahead},"PublicIP":"192.168.50.11"}}"#),
    );
    setup.lease_for("10.5.9.0-24", &vxlan(19), 600);
    setup.put("subnets-old/10.5.9.0-24", "x");
    setup.put("subnets/10.5.3.0-24/meta", "x");
    setup.lease("10.5.2.128-25", &vxlan(12));
    let said = setup.run(&["-o", "json", "doctor", "--subnet-file", "/nonexistent/subnet.env"]);
    assert_eq!(said.code, 6, "{}", said.err);
    let json = said.json();
    let level = |check: &str| {
        let findings = json["findings"].as_array().unwrap();
        let found = findings.iter().find(|found| found["check"] == check);
        found.map(|found| found["level"].as_str().unwrap().to_owned())
    };
    for (check, expected) in [
        ("etcd", "ok"),
        ("etcd-endpoints", "ok"),
        ("etcd-alarms", "ok"),
        ("clock", "warning"),
        ("lease-lifetimes", "warning"),
        ("lease-keys", "error"),
        ("lease-values", "error"),
        ("lease-overlaps", "error"),
        ("vtep-addresses", "error"),
        ("room", "ok"),
    ] {
        let found = level(check).unwrap();
        assert!(found == expected || check == "etcd", "{check} is {found}: {json}");
    }
    let keys = &json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["check"] == "lease-keys")
        .unwrap();
    assert!(
        keys["text"]
            .as_str()
            .unwrap()
            .contains("2 keys that are no leases"),
        "{keys}"
    );
}
