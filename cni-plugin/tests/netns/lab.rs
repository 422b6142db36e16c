//! A node and its pods as fresh network namespaces, and a directory for all files. Nothing outlives the value.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use flannel_netlink::Netns;
use serde_json::{Value, json};

/// Whether namespaces can be made. Without root the test is passed over, loudly, and fails where CI is set.
pub fn root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "these tests need root");
    eprintln!("SKIPPED: needs root to make network namespaces");
    false
}

/// A namespace of its own, reachable by a path as long as the value lives.
pub struct Space(Netns);

impl Space {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            // SAFETY: only the network namespace of this thread changes, which ends right after; no descriptor table is
            // unshared.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
            Netns::own().unwrap()
        });
        let space = Self(made.join().unwrap());
        space.ok("ip", "link set lo up");
        space
    }

    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_fd().as_raw_fd())
    }

    /// Does something inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.run(work).unwrap()
    }

    /// Runs a program inside.
    pub fn run(&self, command: &mut Command) -> Output {
        self.0.run(|| command.output()).unwrap().unwrap()
    }

    /// Runs a program with arguments parted by blanks, and expects success.
    pub fn ok(&self, program: &str, arguments: &str) -> String {
        let output = self.run(Command::new(program).args(arguments.split_whitespace()));
        assert!(output.status.success(), "{program} {arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, program: &str, arguments: &str) -> Value {
        let text = self.ok(program, arguments);
        serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
    }

    pub fn pings(&self, address: &str) -> bool {
        let mut ping = Command::new("ping");
        self.run(ping.args(["-c", "1", "-W", "2", address]))
            .status
            .success()
    }

    /// `network via gateway` of all routes that have a gateway.
    pub fn routes(&self, family: &str) -> Vec<String> {
        let routes = self.json("ip", &format!("-j {family} route"));
        let text = |route: &Value| {
            Some(format!(
                "{} via {}",
                route["dst"].as_str()?,
                route["gateway"].as_str()?
            ))
        };
        let mut list: Vec<String> = routes.as_array().unwrap().iter().filter_map(text).collect();
        list.sort();
        list
    }

    /// `address/length` of all addresses of a device that are not link-local.
    pub fn addresses(&self, device: &str) -> Vec<String> {
        let shown = self.json("ip", &format!("-j address show dev {device}"));
        let infos = shown[0]["addr_info"].as_array().unwrap();
        let global = infos.iter().filter(|info| info["scope"] == "global");
        let mut list: Vec<String> = global
            .map(|info| format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"]))
            .collect();
        list.sort();
        list
    }

    pub fn devices(&self) -> Vec<String> {
        let links = self.json("ip", "-j link");
        links
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .collect()
    }

    pub fn veths(&self) -> Vec<String> {
        self.devices()
            .into_iter()
            .filter(|name| name.starts_with("veth"))
            .collect()
    }

    pub fn sysctl(&self, name: &str) -> String {
        self.ok("cat", &format!("/proc/sys/net/{name}")).trim().to_owned()
    }
}

/// Calls another plugin for container `id`, as a runtime of the machine would, and answers what it said.
pub fn call_other(plugin: &str, verb: &str, id: &str, conf: &Value) -> Output {
    let mut child = Command::new(plugin)
        .env_clear()
        .envs([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", "/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/usr/lib/cni"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(conf.to_string().as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// A node: its namespace, and its files in a temporary directory.
pub struct Node {
    pub space: Space,
    pub dir: tempfile::TempDir,
    pub conf: Value,
    /// Variables of each call that win over the usual ones.
    pub variables: Vec<(&'static str, String)>,
    /// `CNI_PATH`
    pub search: String,
}

/// An answer of the plugin.
pub struct Answer {
    pub ok: bool,
    pub json: Value,
    pub stderr: String,
}

impl Answer {
    pub fn code(&self) -> u64 {
        assert!(!self.ok, "expected an error: {}", self.json);
        self.json["code"].as_u64().unwrap()
    }

    /// Every address with its length, whatever the layout.
    pub fn ips(&self) -> Vec<String> {
        let old = ["ip4", "ip6"].map(|family| &self.json[family]["ip"]);
        let new = self.json["ips"].as_array().into_iter().flatten();
        let all = old.into_iter().chain(new.map(|ip| &ip["address"]));
        all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    }

    /// The address of the pod without its length.
    pub fn ip(&self, index: usize) -> String {
        let text = self.json["ips"][index]["address"].as_str().unwrap();
        text.split('/').next().unwrap().to_owned()
    }
}

impl Node {
    pub fn new(subnet_env: &str, delegate: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("subnet.env"), subnet_env).unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let conf = json!({
            "name": "cbr0", "cniVersion": "1.0.0", "type": "flannel",
            "subnetFile": path("subnet.env"), "dataDir": path("flannel"),
            "ipam": { "dataDir": path("networks") },
            "delegate": delegate,
        });
        Self {
            space: Space::new(),
            dir,
            conf,
            variables: Vec::new(),
            search: String::new(),
        }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, verb: &str, (id, ifname): (&str, &str), netns: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannel"));
        command
            .env_clear()
            .envs([
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", id),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", ifname),
                ("CNI_PATH", &self.search),
            ])
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts the plugin in the node's namespace, its configuration on stdin.
    pub fn start(&self, verb: &str, id: &str, netns: &str) -> Child {
        self.start_as(verb, (id, "eth0"), netns)
    }

    fn start_as(&self, verb: &str, whose: (&str, &str), netns: &str) -> Child {
        let mut command = self.command(verb, whose, netns);
        let mut child = self.space.0.run(|| command.spawn()).unwrap().unwrap();
        let _ = child
            .stdin
            .take()
            .unwrap()
            .write_all(self.conf.to_string().as_bytes());
        child
    }

    pub fn call(&self, verb: &str, id: &str, netns: &str) -> Answer {
        self.call_as(verb, (id, "eth0"), netns)
    }

    /// A call for an interface of another name.
    pub fn call_as(&self, verb: &str, whose: (&str, &str), netns: &str) -> Answer {
        let output = self.start_as(verb, whose, netns).wait_with_output().unwrap();
        let json = match output.stdout.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&output.stdout).unwrap(),
        };
        Answer {
            ok: output.status.success(),
            json,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// CHECK against `result`, which is what ADD answered or is to be refused.
    pub fn check(&mut self, id: &str, pod: &Space, result: &Value) -> Answer {
        self.conf["prevResult"] = result.clone();
        let answer = self.call("CHECK", id, &pod.path());
        self.conf.as_object_mut().unwrap().remove("prevResult");
        answer
    }

    pub fn add(&self, id: &str, pod: &Space) -> Answer {
        let answer = self.call("ADD", id, &pod.path());
        assert!(answer.ok, "ADD {id}: {}", answer.json);
        answer
    }

    pub fn add_as(&self, id: &str, ifname: &str, pod: &Space) -> Answer {
        let answer = self.call_as("ADD", (id, ifname), &pod.path());
        assert!(answer.ok, "ADD {id} {ifname}: {}", answer.json);
        answer
    }

    pub fn del_as(&self, id: &str, ifname: &str, pod: &Space) {
        let answer = self.call_as("DEL", (id, ifname), &pod.path());
        assert!(answer.ok, "DEL {id} {ifname}: {}", answer.json);
    }

    pub fn del(&self, id: &str, netns: &str) -> Answer {
        let answer = self.call("DEL", id, netns);
        assert!(answer.ok && answer.json.is_null(), "DEL {id}: {}", answer.json);
        answer
    }

    /// Names of the lease files.
    pub fn leases(&self) -> Vec<String> {
        let is_lease = |name: &String| name.parse::<std::net::IpAddr>().is_ok();
        list(&self.file("networks/cbr0"))
            .into_iter()
            .filter(is_lease)
            .collect()
    }

    /// That nothing of any pod is left.
    pub fn assert_clean(&self) {
        eventually("a veth is left", || self.space.veths().is_empty());
        assert_eq!(self.leases(), Vec::<String>::new());
        assert_eq!(list(&self.file("flannel")), Vec::<String>::new());
    }
}

/// Every cniVersion.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Waits for what may take the kernel a moment, ten seconds at the most.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !holds() {
        assert!(std::time::Instant::now() < end, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Names in a directory, sorted; none where there is none.
pub fn list(dir: &Path) -> Vec<String> {
    let Ok(items) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = items
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
