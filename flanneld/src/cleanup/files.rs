//! Files of ours, and what is written in them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use flannel_netlink::link::released;
use flannel_netlink::sysctl;

use super::item::Item;
use super::options::Options;
use crate::services::DRAINS;
use crate::{cache, node_id, udp, wireguard_key};

/// Where the CNI plugin notes settings, and where flannel kept its WireGuard key.
const DEFAULT_RUN_DIR: &str = "/run/flannel";
/// The default of `--status-socket`.
const STATUS_SOCKET: &str = "flanneld.sock";

fn run_dirs(options: &Options) -> Vec<PathBuf> {
    let own = options.subnet_file.parent().unwrap_or(Path::new("/"));
    let mut dirs = vec![own.to_owned()];
    if own != Path::new(DEFAULT_RUN_DIR) {
        dirs.push(DEFAULT_RUN_DIR.into());
    }
    dirs
}

/// The holder of the udp backend's descriptors, if one may be there.
pub fn holder(options: &Options) -> Option<Item> {
    let folder = options.subnet_file.parent()?;
    folder
        .join(udp::HOLDER_SOCKET)
        .exists()
        .then(|| Item::Holder(folder.to_owned()))
}

/// The settings that have still the value that one of us gave them.
///
/// # Errors
/// When the notes cannot be read.
pub fn sysctls(options: &Options) -> anyhow::Result<Vec<sysctl::Changed>> {
    let mut all = Vec::new();
    for dir in run_dirs(options) {
        let notes = dir.join(sysctl::NOTES);
        let changed = sysctl::changed(&notes).with_context(|| format!("cannot read {}", notes.display()))?;
        all.extend(changed.into_iter().filter(sysctl::Changed::stands));
    }
    Ok(all)
}

/// The note of endpoints that drain, if there is one.
pub fn drains(options: &Options) -> Option<Item> {
    let file = options.subnet_file.parent()?.join(DRAINS);
    file.exists().then_some(Item::File(file))
}

/// The files that are there, by names that are ours.
pub fn files(options: &Options) -> Vec<Item> {
    let mut paths = vec![options.subnet_file.clone()];
    let dirs = run_dirs(options);
    for dir in &dirs {
        for name in [released::SOCKET, udp::HOLDER_SOCKET, STATUS_SOCKET, DRAINS] {
            paths.push(dir.join(name));
        }
        if !options.keep_sysctls {
            paths.push(dir.join(sysctl::NOTES));
        }
    }
    let mut folders = dirs;
    if options.state {
        let state = &options.state_dir;
        paths.extend([cache::FILE, node_id::FILE, wireguard_key::FILE].map(|name| state.join(name)));
        paths.push(wireguard_key::FLANNELS.into());
        folders.push(state.clone());
    }
    if let (true, Some(named)) = (options.state, &options.wireguard_key) {
        paths.push(named.clone());
    }
    paths.sort();
    paths.dedup();
    let there = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
    let files: Vec<Item> = paths.into_iter().filter(there).map(Item::File).collect();
    let folders = folders.into_iter().filter(there).map(Item::Folder);
    files.into_iter().chain(folders).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(folder: &Path, state: bool) -> Options {
        Options {
            dry_run: false,
            services: false,
            bridge: None,
            state,
            wireguard_key: Some(folder.join("named/key")),
            keep_sysctls: false,
            subnet_file: folder.join("run/subnet.env"),
            state_dir: folder.join("state"),
        }
    }

    #[test]
    fn files_go_by_name_and_the_state_only_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "run/subnet.env",
            "run/sysctls",
            "run/theirs",
            "state/node-id",
            "state/wgkey",
            "named/key",
        ] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let shown = |state| {
            let items = files(&options(folder.path(), state));
            let of_test = |item: &&Item| item.to_string().contains(&folder.path().display().to_string());
            items
                .iter()
                .filter(of_test)
                .map(Item::to_string)
                .collect::<Vec<_>>()
        };
        let (few, all) = (shown(false), shown(true));
        assert_eq!((few.len(), all.len()), (3, 7), "{all:?}");
        assert!(!all.iter().any(|text| text.contains("theirs")), "{all:?}");
    }
}
