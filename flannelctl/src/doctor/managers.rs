//! Services of the host that configure the network as well, and whether they leave the devices and routes of pods alone.

use std::fs;
use std::path::Path;

use crate::findings::{Finding, some};

const CHECK: &str = "network-managers";
/// The bridge of pods, as flannel calls it.
const BRIDGE: &str = "cni0";
/// Where systemd looks for files of networkd, and where NetworkManager looks (networkd.conf(5), NetworkManager.conf(5)).
const NETWORKD: [&str; 4] = ["etc", "run", "usr/local/lib", "usr/lib"];
const NETWORK_MANAGER: [&str; 3] = ["etc", "run", "usr/lib"];

/// What there is of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    networkd: bool,
    network_manager: bool,
    /// Texts of `*.network` files.
    networks: Vec<String>,
    /// Texts of networkd's own configuration, the least important first.
    networkd_conf: Vec<String>,
    /// The same of NetworkManager.
    manager_conf: Vec<String>,
}

/// Looks at this host, whose devices these are.
pub fn finding<'a>(devices: impl Iterator<Item = &'a str>) -> Finding {
    let devices: Vec<&str> = devices.chain([BRIDGE]).collect();
    judge(&Seen::look(Path::new("/")), &devices)
}

impl Seen {
    fn look(root: &Path) -> Self {
        let running = running(&root.join("proc"));
        let is_running = |name: &str| running.iter().any(|other| other == name);
        let mut networkd_conf: Vec<String> = NETWORKD
            .iter()
            .rev()
            .filter_map(|place| read(&root.join(place).join("systemd/networkd.conf")))
            .collect();
        networkd_conf.extend(texts(root, &NETWORKD, "systemd/networkd.conf.d", "conf"));
        let manager = root.join("etc/NetworkManager/NetworkManager.conf");
        let mut manager_conf = texts(root, &NETWORK_MANAGER, "NetworkManager/conf.d", "conf");
        manager_conf.extend(read(&manager));
        Self {
            // A process shows 15 bytes of its name.
            networkd: is_running("systemd-network"),
            network_manager: is_running("NetworkManager"),
            networks: texts(root, &NETWORKD, "systemd/network", "network"),
            networkd_conf,
            manager_conf,
        }
    }
}

/// The names of the processes.
fn running(proc: &Path) -> Vec<String> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| read(&entry.path().join("comm")));
    names.map(|name| name.trim_end().to_owned()).collect()
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The files of a folder that is below several places, in the order of their names; of one name, the first place counts.
fn texts(root: &Path, places: &[&str], folder: &str, extension: &str) -> Vec<String> {
    let mut found = std::collections::BTreeMap::new();
    for place in places {
        let entries = fs::read_dir(root.join(place).join(folder));
        for path in entries.into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|e| e == extension)
                && let Some(name) = path.file_name().map(ToOwned::to_owned)
                && let Some(text) = read(&path)
            {
                found.entry(name).or_insert(text);
            }
        }
    }
    found.into_values().collect()
}

fn judge(seen: &Seen, devices: &[&str]) -> Finding {
    let mut problems = Vec::new();
    if seen.networkd {
        let taken: Vec<&str> = devices
            .iter()
            .copied()
            .filter(|device| !seen.networks.iter().any(|text| leaves(text, device)))
            .collect();
        if !taken.is_empty() {
            problems.push(format!("systemd-networkd may configure {}", taken.join(", ")));
        }
        let foreign = ["ManageForeignRoutes", "ManageForeignRoutingPolicyRules"];
        if foreign.iter().any(|key| !is_off(&seen.networkd_conf, key)) {
            problems.push("systemd-networkd deletes routes of pods when it starts".to_owned());
        }
    }
    if seen.network_manager {
        let taken: Vec<&str> = devices
            .iter()
            .copied()
            .filter(|device| !seen.manager_conf.iter().any(|text| is_unmanaged(text, device)))
            .collect();
        if !taken.is_empty() {
            problems.push(format!("NetworkManager may configure {}", taken.join(", ")));
        }
    }
    match (problems.as_slice(), seen.networkd, seen.network_manager) {
        ([], false, false) => {
            Finding::skipped(CHECK, "neither systemd-networkd nor NetworkManager runs here")
        }
        ([], networkd, _) => {
            let service = if networkd {
                "systemd-networkd"
            } else {
                "NetworkManager"
            };
            Finding::ok(CHECK, format!("{service} leaves the devices of pods alone"))
        }
        (problems, ..) => Finding::warning(
            CHECK,
            some(problems),
            "install the files of etc/networkd and etc/NetworkManager and have the services reload (docs/host.md); until then \
             flanneld puts back what they change",
        ),
    }
}

/// The values of a key, anywhere in a file of sections, keys and values.
fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| {
        let (name, value) = line.split_once('=')?;
        let name = name.trim().trim_end_matches('+');
        name.eq_ignore_ascii_case(key).then_some(value.trim())
    })
}

fn is_no(value: &str) -> bool {
    ["no", "false", "off", "0"]
        .iter()
        .any(|no| value.eq_ignore_ascii_case(no))
}

/// Whether a file of networkd names a device and leaves it unmanaged.
fn leaves(text: &str, device: &str) -> bool {
    let named = values(text, "Name").any(|names| names.split_whitespace().any(|glob| fits(glob, device)));
    named && values(text, "Unmanaged").any(|value| !value.is_empty() && !is_no(value))
}

/// Whether a setting that is on by default is off. The last word counts.
fn is_off(texts: &[String], key: &str) -> bool {
    let last = texts.iter().flat_map(|text| values(text, key)).last();
    last.is_some_and(is_no)
}

fn is_unmanaged(text: &str, device: &str) -> bool {
    values(text, "unmanaged-devices").any(|list| {
        let names = list.split([';', ',']).filter_map(|item| {
            let item = item.trim();
            item.strip_prefix("interface-name:")
                .or((item == "*").then_some("*"))
        });
        names
            .into_iter()
            .any(|glob| fits(glob.trim_start_matches('='), device))
    })
}

/// Whether a name fits a pattern in which `*` stands for any text and `?` for one character.
fn fits(pattern: &str, name: &str) -> bool {
    let Some(first) = pattern.chars().next() else {
        return name.is_empty();
    };
    let rest = pattern.get(first.len_utf8()..).unwrap_or_default();
    let mut after = name.chars();
    match first {
        '*' => fits(rest, name) || (after.next().is_some() && fits(pattern, after.as_str())),
        '?' => after.next().is_some() && fits(rest, after.as_str()),
        other => after.next() == Some(other) && fits(rest, after.as_str()),
    }
}

#[cfg(test)]
mod tests;
