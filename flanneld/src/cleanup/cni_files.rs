//! Files that the CNI plugin keeps beyond containers: saved configurations, and the addresses of our network in host-local's folders,
//! which other networks of the host use as well.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use flannel_model::{IpSubnet, SubnetEnv};

use super::item::Item;

/// The plugin's saved configurations (`dataDir`).
const SAVED: &str = "/var/lib/cni/flannel";
/// host-local's folders, one for each network.
const LEASES: &str = "/var/lib/cni/networks";
/// Begins the names of the plugin's own folders beside them.
const INDEX: &str = ".flannel-";
/// Beside the addresses in such a folder.
const BESIDE: [&str; 2] = ["lock", "last_reserved_ip."];

/// Those of them that are there. Whose addresses are ours is told by the file that flanneld wrote.
pub fn find(subnet_file: &Path) -> Vec<Item> {
    let mut items = folder(Path::new(SAVED), |_| true);
    let networks = networks(subnet_file);
    let folders = fs::read_dir(LEASES).into_iter().flatten().flatten();
    for found in folders.map(|entry| entry.path()).filter(|path| path.is_dir()) {
        let is_index = found
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(INDEX));
        items.extend(match is_index {
            true => tree(&found),
            false => of_network(&found, &networks),
        });
    }
    items
}

fn networks(subnet_file: &Path) -> Vec<IpSubnet> {
    let env = fs::read_to_string(subnet_file)
        .ok()
        .and_then(|text| SubnetEnv::parse(&text).ok());
    let Some(env) = env else { return Vec::new() };
    let ipv4 = env
        .ipv4
        .into_iter()
        .flat_map(|(networks, _)| networks)
        .map(IpSubnet::from);
    let ipv6 = env
        .ipv6
        .into_iter()
        .flat_map(|(networks, _)| networks)
        .map(IpSubnet::from);
    ipv4.chain(ipv6).collect()
}

/// A folder is ours when all addresses in it are of our network, and there is one.
fn of_network(path: &Path, networks: &[IpSubnet]) -> Vec<Item> {
    let mut addresses = names(path)
        .into_iter()
        .filter_map(|name| match name.starts_with(BESIDE[1]) {
            true => fs::read_to_string(path.join(&name)).ok()?.trim().parse().ok(),
            false => name.parse::<IpAddr>().ok(),
        })
        .peekable();
    let is_ours = |address: IpAddr| networks.iter().any(|network| network.holds(address));
    if addresses.peek().is_none() || !addresses.all(is_ours) {
        return Vec::new();
    }
    folder(path, |name| {
        name.parse::<IpAddr>().is_ok() || name == BESIDE[0] || name.starts_with(BESIDE[1])
    })
}

/// All files of a folder and of those in it, and then the folders. Links are not followed.
fn tree(path: &Path) -> Vec<Item> {
    let inside = names(path).into_iter().map(|name| path.join(name));
    let is_folder = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let mut items: Vec<Item> = inside
        .filter(is_folder)
        .flat_map(|folder| tree(&folder))
        .collect();
    items.extend(folder(path, |_| true));
    items
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn folder(path: &Path, ours: impl Fn(&str) -> bool) -> Vec<Item> {
    if !path.is_dir() {
        return Vec::new();
    }
    let files = names(path)
        .into_iter()
        .filter(|name| ours(name))
        .map(|name| path.join(name));
    let files: Vec<PathBuf> = files.filter(|file| !file.is_dir()).collect();
    files
        .into_iter()
        .map(Item::File)
        .chain([Item::Folder(path.to_owned())])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_other_networks_stay() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (name, text) in [
            ("ours/10.5.1.2", "id"),
            ("ours/last_reserved_ip.0", "10.5.1.2"),
            ("ours/lock", ""),
            ("ours/notes", "somebody's"),
            ("theirs/10.88.0.2", "id"),
            ("theirs/lock", ""),
            ("mixed/10.5.1.3", "id"),
            ("mixed/10.88.0.3", "id"),
            ("empty/lock", ""),
        ] {
            put(name, text);
        }
        let networks = ["10.5.0.0/16".parse().unwrap()];
        put("index/.flannel-n/records/veth-c1", "");
        put("index/.flannel-n/index", "");
        let all = tree(&root.path().join("index/.flannel-n"));
        assert_eq!(all.len(), 4, "two files and two folders: {all:?}");
        assert!(all[0].to_string().ends_with("records/veth-c1") && all[1].to_string().contains("records if"));
        let shown = |name: &str| {
            let items = of_network(&root.path().join(name), &networks);
            let text = |item: &Item| {
                item.to_string()
                    .replace(&format!("{}/", root.path().display()), "")
            };
            items.iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(
            shown("ours"),
            [
                "remove ours/10.5.1.2",
                "remove ours/last_reserved_ip.0",
                "remove ours/lock",
                "remove ours if it is empty"
            ]
        );
        for name in ["theirs", "mixed", "empty"] {
            assert!(shown(name).is_empty(), "{name}");
        }
    }
}
