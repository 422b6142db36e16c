//! The built binary against a real etcd.
#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "the lint's exception for tests does not reach helper functions"
)]

mod subnets;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flannel_store::fixture::{BlackHole, EtcdProcess};
use flannel_store::{Created, EtcdStore, NewLease, Store};

const PREFIX: &str = "/coreos.com/network";

/// What one run said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

fn run_with(endpoints: &str, arguments: &[&str], input: &str) -> Said {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flannelctl"))
        .args(arguments)
        .env_clear()
        .env("FLANNELD_ETCD_ENDPOINTS", endpoints)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A run that ends before it has read everything closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

struct Setup {
    etcd: EtcdProcess,
    runtime: tokio::runtime::Runtime,
    store: EtcdStore,
}

impl Setup {
    fn new() -> Self {
        let etcd = EtcdProcess::start().unwrap_or_else(|error| panic!("{error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let store = EtcdStore::connect(etcd.options()).unwrap();
        Self { etcd, runtime, store }
    }

    fn run(&self, arguments: &[&str]) -> Said {
        run_with(&self.etcd.endpoint(), arguments, "")
    }

    fn feed(&self, arguments: &[&str], input: &str) -> Said {
        run_with(&self.etcd.endpoint(), arguments, input)
    }

    fn put(&self, key: &str, value: &str) {
        let key = format!("{PREFIX}/{key}");
        self.runtime.block_on(self.store.put(&key, value)).unwrap();
    }

    fn lease(&self, key: &str, value: &str) {
        self.lease_for(key, value, 86_400);
    }

    fn lease_for(&self, key: &str, value: &str, ttl: u32) {
        let key = format!("{PREFIX}/subnets/{key}");
        let lease = NewLease::any(ttl);
        let created = self.runtime.block_on(self.store.create(&key, value, lease, &[]));
        assert!(matches!(created.unwrap(), Created::Won { .. }));
    }

    fn value(&self, key: &str) -> Option<String> {
        let key = format!("{PREFIX}/{key}");
        let kv = self.runtime.block_on(self.store.get(&key)).unwrap().0;
        kv.map(|kv| String::from_utf8(kv.value).unwrap())
    }
}

const VXLAN: &str = r#"{"PublicIP":"192.168.50.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:55:6f:01:02:03"}}"#;

#[test]
fn subnets_good_and_bad() {
    let setup = Setup::new();
    assert_eq!(
        setup.run(&["subnets"]).ok(),
        "SUBNET   PUBLIC IP   NODE   BACKEND   STATE   AGE   RENEWED   EXPIRES   DATA\n"
    );
    setup.lease("10.5.1.0-24", VXLAN);
    setup.put(
        "subnets/10.5.2.0-24",
        &VXLAN.replace("192.168.50.11", "192.168.50.12"),
    );
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() - 7_500;
    let note = format!(r#"{{"LastHeld":{since},"HeldSince":{since},"PublicIP":"192.168.50.11"}}"#);
    setup.put("used/10.5.1.0-24", &note);
    setup.put("subnets/0.0.0.0-0", VXLAN);
    setup.put("subnets/10.5.3.0-24", &"j".repeat(1 << 20));
    let text = setup.run(&["subnets"]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "SUBNET        PUBLIC IP       NODE   BACKEND   STATE   AGE    RENEWED   EXPIRES   DATA"
    );
    assert!(
        lines[1].starts_with("10.5.1.0/24   192.168.50.11   -      vxlan     held    2h5m   ")
            && lines[1].ends_with("   VNI 1 8a:55:6f:01:02:03"),
        "{text}"
    );
    assert!(
        lines[2].starts_with("10.5.2.0/24") && lines[2].contains(" -      -         never     VNI 1"),
        "{text}"
    );
    assert_eq!(lines[4], "Rejected records:");
    assert_eq!(lines.len(), 7, "{text}");

    let json = setup.run(&["-o", "json", "subnets"]).json();
    let subnet = &json["subnets"][0];
    assert_eq!(subnet["subnet"], "10.5.1.0/24");
    assert_eq!(subnet["publicIP"], "192.168.50.11");
    assert_eq!(subnet["backendData"]["VtepMAC"], "8a:55:6f:01:02:03");
    assert!((86_000..=86_400).contains(&subnet["expiresInSeconds"].as_u64().unwrap()));
    assert_eq!(subnet["heldSince"], since);
    assert!((7_500..7_600).contains(&subnet["ageSeconds"].as_u64().unwrap()));
    assert_eq!(json["subnets"][1]["ageSeconds"], serde_json::Value::Null);
    assert_eq!(json["subnets"][1]["reservation"], true);
    assert_eq!(json["subnets"][1]["expiresInSeconds"], serde_json::Value::Null);
    assert_eq!(json["rejected"].as_array().unwrap().len(), 2);
    let yaml = setup.run(&["-o", "yaml", "subnets"]).ok();
    let yaml: serde_json::Value = serde_norway::from_str(&yaml).unwrap();
    assert_eq!(yaml["rejected"], json["rejected"]);
}

#[test]
fn config_is_shown_checked_and_set() {
    let setup = Setup::new();
    let missing = setup.run(&["config"]);
    assert_eq!(missing.code, 4);
    assert!(
        missing.err.contains("/coreos.com/network/config"),
        "{}",
        missing.err
    );

    let good = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let set = ["config", "set", "-f", "-"];
    assert_eq!(setup.feed(&set, good).ok(), "config created\n");
    assert_eq!(setup.feed(&set, good).ok(), "config unchanged\n");
    assert_eq!(setup.value("config").unwrap(), good);
    assert!(setup.run(&["config"]).ok().contains("Subnets   255\n"));
    let json = setup.run(&["config", "-o", "json"]).json();
    assert_eq!(
        (&json["subnetMin"], &json["backend"]["vxlan"]["port"]),
        (&"10.5.1.0".into(), &8472.into())
    );

    let bad = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0","SubnetMax":"x"}"#;
    let refused = setup.feed(&set, bad);
    assert_eq!(refused.code, 3);
    for part in ["SubnetMin", "SubnetMax", "Nothing was written"] {
        assert!(refused.err.contains(part), "{}", refused.err);
    }
    assert_eq!(setup.value("config").unwrap(), good);
    let forced = setup.feed(&["config", "set", "--force", "-f", "-"], bad);
    assert_eq!((forced.code, forced.out.as_str()), (0, "config configured\n"));
    let shown = setup.run(&["config"]);
    assert_eq!((shown.code, shown.out.as_str()), (3, ""));
    assert!(
        shown.err.contains("SubnetMin") && shown.err.contains("SubnetMax"),
        "{}",
        shown.err
    );
    let shown = setup.run(&["config", "-o", "json"]);
    assert_eq!(shown.code, 3);
    let fields: Vec<_> = shown.json()["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["field"].clone())
        .collect();
    assert_eq!(fields, ["SubnetMin", "SubnetMax"]);
}

const MANIFESTS: &str = r#"---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.5.1.2]}
- {addresses: [10.5.2.2]}
"#;

#[test]
fn services_are_applied_shown_and_deleted() {
    let setup = Setup::new();
    let apply = ["service", "apply", "-f", "-"];
    assert_eq!(
        setup.feed(&apply, MANIFESTS).ok(),
        "servicecidr/10.96.0.0/16 created\nservice/shop/web created\nendpointslice/shop/web-1 created\n"
    );
    assert!(!setup.feed(&apply, MANIFESTS).ok().contains("created"));
    assert!(
        setup
            .value("services/v1/spec/shop/web")
            .unwrap()
            .contains("selector"),
        "unknown fields are kept"
    );
    let more = MANIFESTS.replace("port: 80,", "port: 81,");
    assert_eq!(
        setup.feed(&apply, &more).ok(),
        "servicecidr/10.96.0.0/16 unchanged\nservice/shop/web configured\nendpointslice/shop/web-1 unchanged\n"
    );
    setup.put("services/v1/spec/shop/bad", "{");
    let table = setup.run(&["services"]).ok();
    for part in [
        "NAMESPACE/NAME   TYPE        CLUSTER-IP   PORTS    ENDPOINTS",
        "shop/web         ClusterIP   10.96.0.10   81/TCP   10.5.1.2:8080,10.5.2.2:8080",
        "/coreos.com/network/services/v1/spec/shop/bad: ",
    ] {
        assert!(table.contains(part), "{part}\n{table}");
    }
    for (name, code) in [
        ("shop", 0),
        ("shop/web", 0),
        ("shop/bad", 0),
        ("shop/none", 4),
        ("web", 4),
    ] {
        let told = setup.run(&["services", name]);
        assert_eq!(told.code, code, "{name}: {}{}", told.out, told.err);
        assert!(
            code == 0 || told.err.contains(name) && told.out.is_empty(),
            "{}",
            told.err
        );
    }
    let json = setup.run(&["services", "-o", "json"]).json();
    assert_eq!(json["services"][0]["endpoints"][1]["address"], "10.5.2.2:8080");
    assert_eq!(
        setup.run(&["service", "delete", "shop/web"]).ok(),
        "service/shop/web deleted\n"
    );
    assert_eq!(setup.value("services/v1/slices/shop/web/web-1"), None);
    let again = setup.feed(&["service", "delete", "-f", "-"], MANIFESTS);
    assert_eq!(
        (again.code, again.out.as_str()),
        (4, "servicecidr/10.96.0.0/16 deleted\n")
    );
    assert!(again.err.contains("service/shop/web"), "{}", again.err);
}

#[test]
fn nothing_is_written_when_one_document_is_bad() {
    let setup = Setup::new();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), MANIFESTS).unwrap();
    let bad =
        "kind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: x, ports: [{port: 0}]}\n";
    std::fs::write(dir.path().join("b.yml"), format!("---\n{bad}")).unwrap();
    let path = dir.path().to_str().unwrap();
    let refused = setup.run(&["service", "apply", "-f", path]);
    assert_eq!(refused.code, 3);
    for part in [
        "b.yml, document 1: Service shop/db: spec.clusterIP: \"x\"",
        "spec.ports[0].port: 0",
    ] {
        assert!(refused.err.contains(part), "{}", refused.err);
    }
    assert_eq!(setup.value("services/v1/spec/shop/web"), None);
    let broken = setup.feed(&["service", "apply", "-f", "-"], "kind: [");
    assert_eq!(broken.code, 3);
    assert!(
        broken.err.contains("standard input, document 1: not YAML"),
        "{}",
        broken.err
    );
}

#[test]
fn etcd_away_or_frozen_is_told_in_time() {
    let mut setup = Setup::new();
    let endpoint = setup.etcd.endpoint();
    setup.etcd.freeze();
    for command in [
        &["subnets"][..],
        &["config"],
        &["services"],
        &["service", "delete", "a/b"],
    ] {
        let start = Instant::now();
        let said = setup.run(command);
        assert_eq!(said.code, 2, "{}", said.err);
        assert!(
            said.err.contains(&endpoint) && said.err.contains("no answer within 5 s"),
            "{}",
            said.err
        );
        assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    }
    setup.etcd.kill();
    let start = Instant::now();
    let said = setup.run(&["subnets"]);
    assert_eq!(said.code, 2);
    assert!(
        said.err.contains("connection refused; is etcd running"),
        "{}",
        said.err
    );
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let hole = BlackHole::open().unwrap();
    let start = Instant::now();
    let said = run_with(&hole.endpoint().unwrap(), &["subnets"], "");
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(said.err.contains("no connection in time"), "{}", said.err);
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}

#[test]
fn wrong_usage_is_code_1_and_help_is_not() {
    let nowhere = "http://127.0.0.1:1";
    for wrong in [
        &["--nonsense"][..],
        &[],
        &["service", "apply", "-f", "/nonexistent.yaml"],
        &["--etcd-cafile", "/nonexistent.pem", "subnets"],
        &["--etcd-endpoints", "ftp://x", "subnets"],
        &["--etcd-username", "u", "subnets"],
        &["service", "delete", "A/b"],
    ] {
        let said = run_with(nowhere, wrong, "");
        assert_eq!(said.code, 1, "{wrong:?}: {}", said.err);
        assert!(!said.err.is_empty());
    }
    let help = run_with(nowhere, &["--help"], "").ok();
    for part in [
        "Exit codes:",
        "FLANNELD_ETCD_ENDPOINTS",
        "etcd, or flanneld on this node, cannot be reached",
    ] {
        assert!(help.contains(part), "{help}");
    }
    run_with(nowhere, &["--version"], "").ok();
}

#[test]
fn completions_and_man_pages_are_made_without_etcd() {
    let nowhere = "http://127.0.0.1:1";
    for shell in ["bash", "zsh", "fish"] {
        let script = run_with(nowhere, &["completions", shell], "").ok();
        assert!(script.contains("flannelctl"), "{script}");
    }
    let page = run_with(nowhere, &["man"], "").ok();
    assert!(
        page.contains(".TH flannelctl") && page.contains("4  not found"),
        "{page}"
    );
    let dir = tempfile::tempdir().unwrap();
    run_with(nowhere, &["man", "--dir", dir.path().to_str().unwrap()], "").ok();
    for name in ["service-apply", "subnets-reserve", "check-config", "doctor"] {
        let page = std::fs::read_to_string(dir.path().join(format!("flannelctl-{name}.1"))).unwrap();
        assert!(page.contains("6  doctor found"), "{name}");
    }
}
