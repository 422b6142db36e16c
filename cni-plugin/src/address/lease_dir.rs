//! host-local's directory of leases, byte for byte: a node can change from one plugin to the other and back with pods running.
//!
//! `<root>/<network>/<address>` holds `<container id>\r\n<interface>`; `last_reserved_ip.<set>` the address given last; `lock` is
//! locked by flock for each operation. host-local reads every file in there and removes those that match, so nothing else may
//! ever appear: temporary files live one level up.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::lease_file::{self, Holder, Lease};
use super::range::RangeSet;
use crate::protocol::{CniError, Code, NetworkName};

/// A network's directory, locked until the value is dropped.
#[derive(Debug)]
pub struct LeaseDir {
    path: PathBuf,
    temporary: PathBuf,
    /// Holds the lock; the kernel frees it when the file is closed, also when we are killed.
    _lock: File,
}

/// An address and what its file says.
pub type Entry = (IpAddr, Lease);

impl LeaseDir {
    /// Makes the directory where it is missing and waits for its lock.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn open(root: &Path, network: &NetworkName) -> Result<Self, CniError> {
        let path = root.join(network.as_str());
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&path);
        made.map_err(|e| fault("make", &path, &e))?;
        Self::lock(root, path, network)
    }

    /// The directory, or `None` where there is none: then nothing was ever given.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn open_existing(root: &Path, network: &NetworkName) -> Result<Option<Self>, CniError> {
        let path = root.join(network.as_str());
        match fs::symlink_metadata(&path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(fault("read", &path, &e)),
            Ok(_) => Self::lock(root, path, network).map(Some),
        }
    }

    fn lock(root: &Path, path: PathBuf, network: &NetworkName) -> Result<Self, CniError> {
        let name = path.join("lock");
        // 0750 is host-local's mode.
        let opened = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o750)
            .open(&name);
        let lock = opened.map_err(|e| fault("open", &name, &e))?;
        lock.lock().map_err(|e| fault("lock", &name, &e))?;
        // A network's name begins with a letter or digit, so this is none's directory.
        let temporary = root.join(format!(".flannel-{network}.tmp"));
        Ok(Self {
            path,
            temporary,
            _lock: lock,
        })
    }

    /// All leases.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be listed; a single bad file is told as [`Lease::Unreadable`].
    pub fn entries(&self) -> Result<Vec<Entry>, CniError> {
        let mut entries = Vec::new();
        for item in fs::read_dir(&self.path).map_err(|e| fault("list", &self.path, &e))? {
            let item = item.map_err(|e| fault("list", &self.path, &e))?;
            let ip: Option<IpAddr> = item.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(ip) = ip {
                entries.push((ip, lease_file::read(&item.path())));
            }
        }
        Ok(entries)
    }

    /// The address given last from the set `index`. A missing or damaged file only means that the order begins anew.
    pub fn last(&self, index: usize) -> Option<IpAddr> {
        match lease_file::read(&self.last_path(index)) {
            Lease::Held(text) => text.trim().parse().ok(),
            Lease::Absent | Lease::Empty | Lease::Unreadable(_) => None,
        }
    }

    /// Gives `ip` to `holder`. An empty file in its place is replaced; any other makes this fail.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn reserve(&self, ip: IpAddr, holder: &Holder, replace: bool) -> Result<(), CniError> {
        let path = self.lease_path(ip);
        let written = lease_file::write_synced(&self.temporary, holder.content().as_bytes(), 0o600);
        // link(2) never overwrites: two plugins cannot both get the address, whatever else goes wrong.
        let placed = written.and_then(|()| match replace {
            true => fs::rename(&self.temporary, &path),
            false => fs::hard_link(&self.temporary, &path).and_then(|()| fs::remove_file(&self.temporary)),
        });
        placed.map_err(|e| fault("write", &path, &e))
    }

    /// Remembers `ip` as the one given last from the set `index`.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn set_last(&self, index: usize, ip: IpAddr) -> Result<(), CniError> {
        let path = self.last_path(index);
        // Not worth a wait for the disk: losing it costs the order, not an address.
        let written = lease_file::remove(&self.temporary)
            .and_then(|()| fs::write(&self.temporary, ip.to_string()))
            .and_then(|()| fs::rename(&self.temporary, &path));
        written.map_err(|e| fault("write", &path, &e))
    }

    /// Frees `ip`.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn free(&self, ip: IpAddr) -> Result<(), CniError> {
        let path = self.lease_path(ip);
        lease_file::remove(&path).map_err(|e| fault("remove", &path, &e))
    }

    /// The addresses that `holder` has; where there are none, those of files that name the container alone.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be listed.
    pub fn held_by(&self, holder: &Holder) -> Result<Vec<IpAddr>, CniError> {
        let entries = self.entries()?;
        let matching = |owns: &dyn Fn(&str) -> bool| -> Vec<IpAddr> {
            let held = entries
                .iter()
                .filter(|(_, lease)| matches!(lease, Lease::Held(text) if owns(text)));
            held.map(|(ip, _)| *ip).collect()
        };
        let exact = matching(&|text| holder.owns(text));
        Ok(match exact.is_empty() {
            true => matching(&|text| holder.owns_by_container(text)),
            false => exact,
        })
    }

    /// Whether `holder` has `ip`.
    pub fn is_held_by(&self, ip: IpAddr, holder: &Holder) -> bool {
        let lease = lease_file::read(&self.lease_path(ip));
        let text = lease.holder_text();
        text.is_some_and(|text| holder.owns(text) || holder.owns_by_container(text))
    }

    /// Whether an address of `set` has no file.
    pub fn has_room(&self, set: &RangeSet) -> bool {
        let taken = self.taken().map_or(0, |taken| {
            let ours = |ip: &&IpAddr| set.range_of(**ip).is_some_and(|range| range.gateway() != **ip);
            taken.iter().filter(ours).count()
        });
        (taken as u128) < set.capacity()
    }

    /// The addresses that have a file, whatever it says.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be listed.
    pub fn taken(&self) -> Result<Vec<IpAddr>, CniError> {
        let mut taken = Vec::new();
        for item in fs::read_dir(&self.path).map_err(|e| fault("list", &self.path, &e))? {
            let item = item.map_err(|e| fault("list", &self.path, &e))?;
            taken.extend(
                item.file_name()
                    .to_str()
                    .and_then(|name| name.parse::<IpAddr>().ok()),
            );
        }
        Ok(taken)
    }

    /// The error that all addresses of `set` are taken.
    pub fn exhausted(&self, set: &RangeSet) -> CniError {
        let msg = format!("no IP addresses available in range set: {set}");
        let advice = format!(
            "every address has a lease file in {}; remove pods, or files of containers that no longer exist",
            self.path.display()
        );
        CniError::new(Code::NoAddress, msg).with(advice)
    }

    /// Removes what a killed ADD left of a lease that never came to be. We have the lock, so that nobody is writing it.
    fn remove_rest(&self) -> Result<(), CniError> {
        lease_file::remove(&self.temporary).map_err(|e| fault("remove", &self.temporary, &e))
    }

    fn lease_path(&self, ip: IpAddr) -> PathBuf {
        self.path.join(ip.to_string())
    }

    fn last_path(&self, index: usize) -> PathBuf {
        self.path.join(format!("last_reserved_ip.{index}"))
    }
}

/// Frees every address of `holder` in the network's directory under `root` and says which they were. `before` gets them while
/// they are still reserved: as soon as they are free, another pod can have them.
///
/// # Errors
/// That of `before`, with nothing freed; code 5, after all that could be freed was freed.
pub fn release(
    root: &Path,
    network: &NetworkName,
    holder: &Holder,
    before: &mut dyn FnMut(&[IpAddr]) -> Result<(), CniError>,
) -> Result<Vec<IpAddr>, CniError> {
    let Some(dir) = LeaseDir::open_existing(root, network)? else {
        return Ok(Vec::new());
    };
    let held = dir.held_by(holder)?;
    before(&held)?;
    dir.remove_rest()?;
    let results: Vec<Result<(), CniError>> = held.iter().map(|ip| dir.free(*ip)).collect();
    results.into_iter().collect::<Result<(), _>>()?;
    Ok(held)
}

fn fault(verb: &str, path: &Path, cause: &io::Error) -> CniError {
    CniError::caused(Code::Io, format!("cannot {verb} {}", path.display()), cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Attachment, ContainerId, IfName};

    fn holder(id: &str, ifname: &str) -> Holder {
        Holder::from(&Attachment {
            container: ContainerId::parse(id).unwrap(),
            ifname: IfName::parse(ifname).unwrap(),
        })
    }

    fn release(root: &Path, network: &NetworkName, holder: &Holder) -> Result<Vec<IpAddr>, CniError> {
        super::release(root, network, holder, &mut |_| Ok(()))
    }

    fn network() -> NetworkName {
        NetworkName::parse("cbr0").unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_layout_is_host_locals() {
        let root = tempfile::tempdir().unwrap();
        let dir = LeaseDir::open(root.path(), &network()).unwrap();
        dir.reserve(ip("10.1.17.2"), &holder("c1", "eth0"), false)
            .unwrap();
        dir.reserve(ip("fc00::2"), &holder("c1", "eth0"), false).unwrap();
        dir.set_last(0, ip("10.1.17.2")).unwrap();
        let mut names: Vec<String> = fs::read_dir(root.path().join("cbr0"))
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["10.1.17.2", "fc00::2", "last_reserved_ip.0", "lock"]);
        assert_eq!(
            fs::read(root.path().join("cbr0/10.1.17.2")).unwrap(),
            b"c1\r\neth0"
        );
        assert_eq!(
            fs::read(root.path().join("cbr0/last_reserved_ip.0")).unwrap(),
            b"10.1.17.2"
        );
        assert_eq!(
            fs::read_dir(root.path()).unwrap().count(),
            1,
            "no temporary file stays"
        );
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(root.path().join("cbr0/10.1.17.2"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_held_address_is_never_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let dir = LeaseDir::open(root.path(), &network()).unwrap();
        dir.reserve(ip("10.1.17.2"), &holder("c1", "eth0"), false)
            .unwrap();
        assert_eq!(
            dir.reserve(ip("10.1.17.2"), &holder("c2", "eth0"), false)
                .unwrap_err()
                .code,
            Code::Io
        );
        assert_eq!(dir.held_by(&holder("c1", "eth0")).unwrap(), [ip("10.1.17.2")]);
    }

    #[test]
    fn release_is_by_container_and_interface() {
        let root = tempfile::tempdir().unwrap();
        let dir = LeaseDir::open(root.path(), &network()).unwrap();
        for (address, ifname) in [("10.1.17.2", "eth0"), ("fc00::2", "eth0"), ("10.1.17.3", "net1")] {
            dir.reserve(ip(address), &holder("c1", ifname), false).unwrap();
        }
        drop(dir);
        let mut freed = release(root.path(), &network(), &holder("c1", "eth0")).unwrap();
        freed.sort();
        assert_eq!(freed, [ip("10.1.17.2"), ip("fc00::2")]);
        assert!(
            release(root.path(), &network(), &holder("c1", "eth0"))
                .unwrap()
                .is_empty()
        );
        assert!(root.path().join("cbr0/10.1.17.3").exists());
    }

    #[test]
    fn files_of_old_plugins_are_released() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("cbr0")).unwrap();
        fs::write(root.path().join("cbr0/10.1.17.9"), " c1 \n").unwrap();
        fs::write(root.path().join("cbr0/10.1.17.8"), "c1\r\nnet1\r\n").unwrap();
        assert_eq!(
            release(root.path(), &network(), &holder("c1", "net1")).unwrap(),
            [ip("10.1.17.8")]
        );
        assert_eq!(
            release(root.path(), &network(), &holder("c1", "eth0")).unwrap(),
            [ip("10.1.17.9")]
        );
    }

    #[test]
    fn nothing_to_release_makes_nothing() {
        let root = tempfile::tempdir().unwrap();
        assert!(
            release(root.path(), &network(), &holder("c1", "eth0"))
                .unwrap()
                .is_empty()
        );
        assert!(!root.path().join("cbr0").exists());
        assert!(
            release(Path::new("/nonexistent/x"), &network(), &holder("c1", "eth0"))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_second_locker_waits() {
        let root = tempfile::tempdir().unwrap();
        let first = LeaseDir::open(root.path(), &network()).unwrap();
        let other = File::open(root.path().join("cbr0/lock")).unwrap();
        assert!(other.try_lock().is_err());
        drop(first);
        assert!(other.try_lock().is_ok());
    }
}
