//! What we know of an attachment beyond the lease: enough to remove everything of it later, whatever happened to us.
//!
//! A record is written before the first lease and removed after the last, so that no crash leaves anything that no record
//! names. Its file is locked while ADD works; a record without a lock that never became `done` is the rest of a killed ADD.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use flannel_model::Mac;
use serde_json::{Map, Value, json};

use super::lease_file::{Holder, read_small, remove};
use crate::protocol::{Attachment, ContainerId, IfName};

/// A record is about a kilobyte: a container id, a path, a few addresses.
const MAX_RECORD: u64 = 64 << 10;
/// First line of a record whose ADD is not finished, and of one whose ADD is. Of one length, so that one write in place turns
/// the one into the other.
const ADDING: &[u8; 7] = b"adding\n";
const DONE: &[u8; 7] = b"done  \n";

/// An attachment and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Container and interface.
    pub attachment: Attachment,
    /// Name of the host's end of the veth pair; also the record's file name.
    pub host_end: String,
    /// `CNI_NETNS` of ADD.
    pub netns: String,
    /// Device and inode of that namespace.
    pub netns_identity: (u64, u64),
    /// The boot in which it was made.
    pub boot: String,
    /// The process that made it.
    pub pid: u32,
    /// Hardware address of the container's end.
    pub mac: Option<Mac>,
    /// Addresses with the length of their subnets.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// How far an attachment came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// ADD ended well.
    Done,
    /// ADD is at work right now.
    Working,
    /// ADD was killed.
    Abandoned,
}

/// A record on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// What it says.
    pub record: Record,
    /// How far it came.
    pub stage: Stage,
}

/// A record whose ADD is at work. The kernel drops the lock with the value, also when we are killed.
#[derive(Debug)]
pub struct Pending(File);

impl Pending {
    /// Marks the record as done.
    ///
    /// # Errors
    /// Those of the system.
    pub fn finish(&self) -> io::Result<()> {
        self.0.write_all_at(DONE, 0)
    }
}

impl Record {
    /// Who holds the addresses.
    pub fn holder(&self) -> Holder {
        Holder::from(&self.attachment)
    }

    fn text(&self) -> Vec<u8> {
        let addresses: Vec<String> = self
            .addresses
            .iter()
            .map(|(ip, length)| format!("{ip}/{length}"))
            .collect();
        let object = json!({
            "container": self.attachment.container.as_str(),
            "ifname": self.attachment.ifname.as_str(),
            "hostEnd": self.host_end,
            "netns": self.netns,
            "netnsId": [self.netns_identity.0, self.netns_identity.1],
            "boot": self.boot,
            "pid": self.pid,
            "mac": self.mac.map(|mac| mac.to_string()),
            "addresses": addresses,
        });
        [ADDING.as_slice(), object.to_string().as_bytes(), b"\n"].concat()
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let object: Map<String, Value> = serde_json::from_slice(text).ok()?;
        let word = |name: &str| object.get(name).and_then(Value::as_str);
        let identity = object.get("netnsId")?.as_array()?;
        let addresses = object.get("addresses")?.as_array()?.iter().map(|item| {
            let (ip, length) = item.as_str()?.split_once('/')?;
            Some((ip.parse().ok()?, length.parse().ok()?))
        });
        Some(Self {
            attachment: Attachment {
                container: ContainerId::parse(word("container")?).ok()?,
                ifname: IfName::parse(word("ifname")?).ok()?,
            },
            host_end: word("hostEnd")?.to_owned(),
            netns: word("netns")?.to_owned(),
            netns_identity: (identity.first()?.as_u64()?, identity.get(1)?.as_u64()?),
            boot: word("boot")?.to_owned(),
            pid: u32::try_from(object.get("pid")?.as_u64()?).ok()?,
            mac: word("mac").and_then(|text| text.parse().ok()),
            addresses: addresses.collect::<Option<_>>()?,
        })
    }
}

/// Writes a record in one step, locked. Losing it to a power cut costs nothing: no namespace survives one either.
///
/// # Errors
/// Those of the system.
pub fn write(path: &Path, temporary: &Path, record: &Record) -> io::Result<Pending> {
    remove(temporary)?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    file.lock()?;
    file.write_all_at(&record.text(), 0)?;
    std::fs::rename(temporary, path)?;
    Ok(Pending(file))
}

/// Reads the record at `path`; `None` where there is none.
///
/// # Errors
/// Those of the system, or that it is damaged.
pub fn read(path: &Path) -> io::Result<Option<Stored>> {
    let bytes = match read_small(path, MAX_RECORD) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let (first, rest) = bytes.split_at(ADDING.len().min(bytes.len()));
    let done = first == DONE;
    let record = Record::parse(rest)
        .filter(|_| done || first == ADDING)
        .ok_or_else(|| io::Error::other("is damaged"))?;
    let stage = match done {
        true => Stage::Done,
        false if is_locked(path)? => Stage::Working,
        false => Stage::Abandoned,
    };
    Ok(Some(Stored { record, stage }))
}

fn is_locked(path: &Path) -> io::Result<bool> {
    match File::open(path)?.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(std::fs::TryLockError::WouldBlock) => Ok(true),
        Err(std::fs::TryLockError::Error(e)) => Err(e),
    }
}

/// A record for tests.
#[cfg(test)]
pub fn sample(id: &str, addresses: &[&str]) -> Record {
    let parse = |text: &&str| (text.parse().unwrap(), 24);
    Record {
        attachment: Attachment {
            container: ContainerId::parse(id).unwrap(),
            ifname: IfName::parse("eth0").unwrap(),
        },
        host_end: format!("veth-{id}"),
        netns: "/run/netns/a b\n".to_owned(),
        netns_identity: (4, 1),
        boot: "this".to_owned(),
        pid: 7,
        mac: "02:00:00:00:00:01".parse().ok(),
        addresses: addresses.iter().map(parse).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_working_then_done_or_abandoned() {
        let dir = tempfile::tempdir().unwrap();
        let (path, temporary) = (dir.path().join("r"), dir.path().join("t"));
        let record = sample("c1", &["10.1.17.2", "fc00::2"]);
        assert_eq!(read(&path).unwrap(), None);
        let pending = write(&path, &temporary, &record).unwrap();
        let stage = |path: &Path| read(path).unwrap().unwrap().stage;
        assert_eq!(read(&path).unwrap().unwrap().record, record);
        assert_eq!(stage(&path), Stage::Working);
        drop(pending);
        assert_eq!(stage(&path), Stage::Abandoned);
        let pending = write(&path, &temporary, &record).unwrap();
        pending.finish().unwrap();
        assert_eq!(stage(&path), Stage::Done);
        drop(pending);
        assert_eq!(stage(&path), Stage::Done);
        assert_eq!(read(&path).unwrap().unwrap().record, record);
    }

    #[test]
    fn damage_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let (path, temporary) = (dir.path().join("r"), dir.path().join("t"));
        drop(write(&path, &temporary, &sample("c1", &["10.1.17.2"])).unwrap());
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() - 2 {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path).is_err(), "{length}");
        }
        for change in [(0, b'x'), (9, b'"'), (20, 0xff)] {
            let mut bytes = whole.clone();
            bytes[change.0] = change.1;
            std::fs::write(&path, bytes).unwrap();
            assert!(read(&path).is_err(), "{change:?}");
        }
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(read(&path).is_err());
    }
}
