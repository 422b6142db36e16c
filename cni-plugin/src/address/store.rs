//! A network's addresses on disk.
//!
//! `<root>/<network>/` is host-local's directory, byte for byte, so that a node can change from one plugin to the other and
//! back with pods running: `<address>` holds `<container id>\r\n<interface>`, `last_reserved_ip.<set>` the address given last,
//! and `lock` is locked by flock for each operation. host-local reads every file in there and removes those that match, so
//! that nothing else may ever appear. What we know besides is in `<root>/.flannel-<network>/`: `records`, one an attachment;
//! `index`; `announce`; `quarantine`. A network's name begins with a letter or digit, so that this is no network's directory.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::index::{Changed, Index, Mark};
use super::lease_file::{self, Holder, Lease};
use super::range::RangeSet;
use super::reconcile::{self, Facts, Live, LiveEnd, Repair};
use super::record::{self, Pending, Record, Stored};
use crate::protocol::{CniError, Code, NetworkName};

/// Who asks the kernel which of our pods live.
pub type Look<'a> = &'a mut dyn FnMut() -> Result<Live, CniError>;

/// A network's directories, locked until the value is dropped.
#[derive(Debug)]
pub struct Store {
    leases: PathBuf,
    private: PathBuf,
    boot: String,
    index: Option<Index>,
    /// What the index was good for when we came.
    found: Option<Mark>,
    /// Whether the index tells the truth now.
    fresh: bool,
    /// Holds the lock; the kernel frees it when the file is closed, also when we are killed.
    _lock: File,
}

impl Store {
    /// Makes the directories where they are missing and waits for the lock.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn open(root: &Path, network: &NetworkName) -> Result<Self, CniError> {
        let leases = root.join(network.as_str());
        match lock(&leases) {
            Ok(file) => Self::locked(root, network, file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_dir(&leases)?;
                let file = lock(&leases).map_err(|e| fault("lock", &leases, &e))?;
                Self::locked(root, network, file)
            }
            Err(e) => Err(fault("lock", &leases, &e)),
        }
    }

    /// The store, or `None` where there is none: then nothing was ever given.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn open_existing(root: &Path, network: &NetworkName) -> Result<Option<Self>, CniError> {
        let leases = root.join(network.as_str());
        let missing = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
        match lock(&leases) {
            Ok(file) => Self::locked(root, network, file).map(Some),
            // The leases may be lost while records are not.
            Err(e) if missing.contains(&e.kind()) && private(root, network).is_dir() => {
                Self::open(root, network).map(Some)
            }
            Err(e) if missing.contains(&e.kind()) => Ok(None),
            Err(e) => Err(fault("lock", &leases, &e)),
        }
    }

    fn locked(root: &Path, network: &NetworkName, lock: File) -> Result<Self, CniError> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|e| CniError::caused(Code::Io, "no boot id from the kernel", &e))?;
        let private = private(root, network);
        let (index, found) = Index::open(&private.join("index")).unzip();
        Ok(Self {
            leases: root.join(network.as_str()),
            private,
            boot: boot.trim().to_owned(),
            index,
            found,
            fresh: false,
            _lock: lock,
        })
    }

    /// This boot's id.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Puts in order what a crash, a boot or somebody else's hand left. Does nothing as long as only we were here, in this
    /// boot. Gives the attachments that turned out to be gone; what they had besides addresses is the caller's to remove.
    ///
    /// # Errors
    /// Code 5 when a directory cannot be listed, and those of `look`. A single bad file is no error; it is told to `warn`.
    pub fn refresh(&mut self, look: Look<'_>, warn: &mut dyn FnMut(String)) -> Result<Vec<Record>, CniError> {
        let now = Mark {
            boot: self.boot.clone(),
            changed: self.changed()?,
        };
        self.fresh = self.index.is_some() && self.found.as_ref() == Some(&now);
        match self.fresh {
            true => Ok(Vec::new()),
            false => self.reclaim(look, warn),
        }
    }

    /// The same, whatever the index says.
    ///
    /// # Errors
    /// As [`Store::refresh`].
    pub fn reclaim(&mut self, look: Look<'_>, warn: &mut dyn FnMut(String)) -> Result<Vec<Record>, CniError> {
        make_dir(&self.private.join("records"))?;
        let live = look()?;
        let facts = Facts {
            boot: &self.boot,
            first_of_boot: self.found.as_ref().is_some_and(|mark| mark.boot != self.boot),
            leases: self.lease_files()?,
            records: self.records(warn)?,
            live: &live,
        };
        let (repairs, strangers) = reconcile::plan(&facts);
        let mut gone = Vec::new();
        for repair in repairs {
            if let Err(e) = self.repair(&repair, warn) {
                warn(e.to_string());
            }
            if let Repair::Forget(record) = repair {
                gone.push(record);
            }
        }
        let entries = strangers.iter().map(|(ip, text)| (text.as_str(), *ip));
        let path = self.private.join("index");
        let made = Index::create(&path, &self.temporary(), entries);
        self.index = Some(made.map_err(|e| fault("write", &path, &e))?);
        self.fresh = true;
        Ok(gone)
    }

    fn repair(&self, repair: &Repair, warn: &mut dyn FnMut(String)) -> Result<(), CniError> {
        match repair {
            Repair::Quarantine(ip, reason) => {
                warn(format!(
                    "the lease file of {ip} {reason}; it is put aside in {}",
                    self.private.join("quarantine").display()
                ));
                self.quarantine(&self.lease_path(*ip), &ip.to_string())
            }
            Repair::Free(ip) => self.unlink(&self.lease_path(*ip)),
            Repair::Forget(record) => self.forget(&record.host_end),
            Repair::Restore(ip, holder) => {
                warn(format!(
                    "the lease of {ip} was lost while its pod lives; it is written anew"
                ));
                self.place(*ip, holder)
            }
            Repair::Adopt(end) => self.adopt(end),
        }
    }

    fn adopt(&self, end: &LiveEnd) -> Result<(), CniError> {
        let Some(attachment) = &end.attachment else {
            return Ok(());
        };
        let length = |ip: &IpAddr| if ip.is_ipv4() { 32 } else { 128 };
        let record = Record {
            attachment: attachment.clone(),
            host_end: end.name.clone(),
            netns: String::new(),
            netns_identity: (0, 0),
            boot: self.boot.clone(),
            pid: 0,
            mac: None,
            addresses: end.addresses.iter().map(|ip| (*ip, length(ip))).collect(),
        };
        let path = self.record_path(&end.name);
        let written = record::write(&path, &self.temporary(), &record);
        written
            .and_then(|pending| pending.finish())
            .map_err(|e| fault("write", &path, &e))
    }

    /// The record of the attachment whose host end is called `host_end`. A damaged one is put aside.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn record(&self, host_end: &str, warn: &mut dyn FnMut(String)) -> Result<Option<Stored>, CniError> {
        let path = self.record_path(host_end);
        match record::read(&path) {
            Ok(found) => Ok(found),
            Err(e) => {
                let why = lease_file::why(&e);
                warn(format!("the record {} {why}; it is put aside", path.display()));
                self.quarantine(&path, host_end).map(|()| None)
            }
        }
    }

    /// All records that can be read.
    ///
    /// # Errors
    /// Code 5 when they cannot be listed.
    pub fn records(&self, warn: &mut dyn FnMut(String)) -> Result<Vec<Stored>, CniError> {
        let dir = self.private.join("records");
        let items = match fs::read_dir(&dir) {
            Ok(items) => items,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(fault("list", &dir, &e)),
        };
        let mut records = Vec::new();
        for item in items {
            let name = item.map_err(|e| fault("list", &dir, &e))?.file_name();
            let found = match name.to_str() {
                Some(name) => self.record(name, warn)?,
                None => None,
            };
            // A file that calls itself otherwise was put there by somebody.
            records.extend(found.filter(|stored| Some(stored.record.host_end.as_str()) == name.to_str()));
        }
        Ok(records)
    }

    /// Writes the record of an ADD that begins.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn begin(&self, record: &Record) -> Result<Pending, CniError> {
        let path = self.record_path(&record.host_end);
        record::write(&path, &self.temporary(), record).map_err(|e| fault("write", &path, &e))
    }

    /// Removes a record. What it names must be gone before.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn forget(&self, host_end: &str) -> Result<(), CniError> {
        self.unlink(&self.record_path(host_end))
    }

    /// The addresses of `holder` that another plugin gave him.
    pub fn given_by_others(&self, holder: &Holder) -> Vec<IpAddr> {
        let Some(index) = &self.index else {
            return Vec::new();
        };
        let mut found = index.find(&holder.content());
        found.retain(|ip| {
            self.lease(*ip)
                .holder_text()
                .is_some_and(|text| holder.owns(text))
        });
        if found.is_empty() {
            found = index.find(holder.container());
            found.retain(|ip| {
                let lease = self.lease(*ip);
                lease
                    .holder_text()
                    .is_some_and(|text| holder.owns_by_container(text))
            });
        }
        found
    }

    /// What the lease file of `ip` says.
    pub fn lease(&self, ip: IpAddr) -> Lease {
        lease_file::read(&self.lease_path(ip))
    }

    /// Whether `ip` has a lease file, whatever it says.
    pub fn is_taken(&self, ip: IpAddr) -> bool {
        fs::symlink_metadata(self.lease_path(ip)).is_ok()
    }

    /// The addresses that have a lease file, whatever it says.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be listed.
    pub fn taken(&self) -> Result<Vec<IpAddr>, CniError> {
        let mut taken = Vec::new();
        for item in fs::read_dir(&self.leases).map_err(|e| fault("list", &self.leases, &e))? {
            let item = item.map_err(|e| fault("list", &self.leases, &e))?;
            let name = item.file_name();
            taken.extend(name.to_str().and_then(|name| name.parse::<IpAddr>().ok()));
        }
        Ok(taken)
    }

    fn lease_files(&self) -> Result<BTreeMap<IpAddr, Lease>, CniError> {
        Ok(self.taken()?.into_iter().map(|ip| (ip, self.lease(ip))).collect())
    }

    /// Whether an address of `set` has no file.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be listed.
    pub fn has_room(&self, set: &RangeSet) -> Result<bool, CniError> {
        let gives = |ip: &&IpAddr| set.range_of(**ip).is_some_and(|range| range.gateway() != **ip);
        let taken = self.taken()?.iter().filter(gives).count();
        Ok((taken as u128) < set.capacity())
    }

    /// The error that all addresses of `set` are taken, naming some of the holders.
    pub fn exhausted(&self, set: &RangeSet) -> CniError {
        let mut held: Vec<String> = Vec::new();
        let mut count = 0;
        for ip in self.taken().unwrap_or_default() {
            if set.range_of(ip).is_none() {
                continue;
            }
            count += 1;
            if held.len() < 3 {
                let lease = self.lease(ip);
                let text = lease.holder_text().unwrap_or("nobody").trim();
                held.push(format!("{ip} by {}", text.replace("\r\n", " ")));
            }
        }
        let advice = format!(
            "{count} addresses are held, among them {}; remove pods, or lease files in {} of containers that no longer exist",
            held.join(", "),
            self.leases.display()
        );
        let msg = format!("no IP addresses available in range set: {set}");
        CniError::new(Code::NoAddress, msg).with(advice)
    }

    /// The address given last from the set `index`. A missing or damaged file only means that the order begins anew.
    pub fn last(&self, index: usize) -> Option<IpAddr> {
        let bytes = lease_file::read_small(&self.last_path(index), 64).ok()?;
        std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
    }

    /// Whether neighbours may know an address with another hardware address than the one that follows from it: since the node's start,
    /// there was a container of another plugin, or `odd`, one that has or may take a hardware address of its own. Once so, it is
    /// until the next start: the kernel may keep what it knows of a neighbour for ever.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn announces(&self, odd: bool) -> Result<bool, CniError> {
        let path = self.private.join("announce");
        let told = lease_file::read_small(&path, 64);
        if told.is_ok_and(|text| text == self.boot.as_bytes()) {
            return Ok(true);
        }
        if !odd && self.index.as_ref().is_some_and(Index::is_empty) {
            return Ok(false);
        }
        let temporary = self.temporary();
        lease_file::write_plain(&temporary, self.boot.as_bytes(), 0o600)
            .and_then(|_| fs::rename(&temporary, &path))
            .map_err(|e| fault("write", &path, &e))?;
        Ok(true)
    }

    /// Gives `ip` to `holder`, on the disk before it can be seen.
    ///
    /// # Errors
    /// Code 5 with the path, also when the address has a file.
    pub fn place(&self, ip: IpAddr, holder: &Holder) -> Result<(), CniError> {
        let (path, temporary) = (self.lease_path(ip), self.temporary());
        lease_file::write_synced(&temporary, holder.content().as_bytes(), 0o600)
            .and_then(|()| lease_file::rename_new(&temporary, &path))
            .map_err(|e| fault("write", &path, &e))
    }

    /// Gets the names of new leases onto the disk.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn sync(&self) -> Result<(), CniError> {
        let synced = File::open(&self.leases).and_then(|dir| dir.sync_all());
        synced.map_err(|e| fault("sync", &self.leases, &e))
    }

    /// Remembers `ip` as the one given last from the set `index`.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn set_last(&self, index: usize, ip: IpAddr) -> Result<(), CniError> {
        let (path, temporary) = (self.last_path(index), self.temporary());
        // Not worth a wait for the disk: losing it costs the order, not an address.
        lease_file::write_plain(&temporary, ip.to_string().as_bytes(), 0o600)
            .and_then(|_| fs::rename(&temporary, &path))
            .map_err(|e| fault("write", &path, &e))
    }

    /// Frees `ip` if `holder` has it. A file that is damaged is put aside.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn free(&self, ip: IpAddr, holder: &Holder) -> Result<(), CniError> {
        let path = self.lease_path(ip);
        match lease_file::read(&path) {
            Lease::Absent => Ok(()),
            lease if lease.is_of(holder) => self.unlink(&path),
            // Somebody else's by now.
            Lease::Held(_) => Ok(()),
            Lease::Empty | Lease::Unreadable(_) => self.quarantine(&path, &ip.to_string()),
        }
    }

    /// Frees `ip` if its lease still says `text`.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn free_from(&self, ip: IpAddr, text: &str) -> Result<(), CniError> {
        let path = self.lease_path(ip);
        match lease_file::read(&path).holder_text().map(str::trim) == Some(text) {
            true => self.unlink(&path),
            false => Ok(()),
        }
    }

    fn quarantine(&self, path: &Path, name: &str) -> Result<(), CniError> {
        let dir = self.private.join("quarantine");
        make_dir(&dir)?;
        // The newest of a name is kept; a directory is not replaced by a rename, so that it gets a name of its own.
        let target = dir.join(name);
        let moved = fs::rename(path, &target).or_else(|_| {
            let stamp = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |time| time.as_nanos());
            fs::rename(path, dir.join(format!("{name}.{stamp}")))
        });
        match moved {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fault("put aside", path, &e)),
            _ => Ok(()),
        }
    }

    fn unlink(&self, path: &Path) -> Result<(), CniError> {
        lease_file::remove(path).map_err(|e| fault("remove", path, &e))
    }

    fn changed(&self) -> Result<Changed, CniError> {
        let seen = fs::metadata(&self.leases).map_err(|e| fault("read", &self.leases, &e))?;
        Ok((seen.mtime(), seen.mtime_nsec()))
    }

    fn lease_path(&self, ip: IpAddr) -> PathBuf {
        self.leases.join(ip.to_string())
    }

    fn last_path(&self, index: usize) -> PathBuf {
        self.leases.join(format!("last_reserved_ip.{index}"))
    }

    fn record_path(&self, host_end: &str) -> PathBuf {
        self.private.join("records").join(host_end)
    }

    /// A file under construction. We have the lock, so one name is enough; the rest of a killed writer is replaced.
    fn temporary(&self) -> PathBuf {
        self.private.join("new")
    }
}

impl Drop for Store {
    /// What we changed ourselves does not make the index stale.
    fn drop(&mut self) {
        let Some((index, changed)) = self.index.as_ref().zip(self.changed().ok()) else {
            return;
        };
        let mark = Mark {
            boot: self.boot.clone(),
            changed,
        };
        // An index that was stale when we came, and was not made anew, stays stale.
        if self.fresh {
            // Without it, the next call only takes longer.
            let _ = index.set(&mark);
        }
    }
}

fn private(root: &Path, network: &NetworkName) -> PathBuf {
    root.join(format!(".flannel-{network}"))
}

/// Waits for host-local's lock; 0750 is its mode there.
fn lock(leases: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o750)
        .custom_flags(lease_file::careful())
        .open(leases.join("lock"))?;
    file.lock()?;
    Ok(file)
}

fn make_dir(path: &Path) -> Result<(), CniError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| fault("make", path, &e))
}

fn fault(verb: &str, path: &Path, cause: &io::Error) -> CniError {
    CniError::caused(Code::Io, format!("cannot {verb} {}", path.display()), cause)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
