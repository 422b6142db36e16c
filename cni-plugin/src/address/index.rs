//! Which leases are not ours, so that finding a container's addresses takes the same time with ten leases and with ten thousand.
//!
//! Our own attachments have records. Other plugins (flannel's own, before or after us) leave only lease files, named by address;
//! to find a container in them, each must be read. That is done once, and the outcome kept here, for as long as the directory's
//! time of change says that nobody else was there. Lost or stale, it is made anew; what decides is always the lease file.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::lease_file::{careful, remove};

/// `flannel` and the layout's number.
const MAGIC: [u8; 8] = *b"flannel1";
/// Magic, boot id as text, seconds and nanoseconds of the directory's last change.
const HEADER: usize = 8 + 36 + 8 + 8;
/// Hash of the content, then the address as IPv6.
const ENTRY: usize = 8 + 16;

/// When the directory was changed last: seconds and nanoseconds.
pub type Changed = (i64, i64);

/// The file, open.
#[derive(Debug)]
pub struct Index {
    file: File,
    entries: u64,
}

/// What must hold for the index to be of use: the same boot, and nobody else in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Boot id.
    pub boot: String,
    /// The directory's last change.
    pub changed: Changed,
}

impl Mark {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.boot.bytes().chain(std::iter::repeat(b' ')).take(36));
        bytes.extend(self.changed.0.to_be_bytes());
        bytes.extend(self.changed.1.to_be_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (boot, times) = rest.split_at_checked(36)?;
        let (seconds, nanoseconds) = times.split_at_checked(8)?;
        Some(Self {
            boot: std::str::from_utf8(boot).ok()?.trim_end().to_owned(),
            changed: (
                i64::from_be_bytes(seconds.try_into().ok()?),
                i64::from_be_bytes(nanoseconds.try_into().ok()?),
            ),
        })
    }
}

impl Index {
    /// Opens the index at `path` and says what it is good for. `None` when there is none, or it is damaged.
    pub fn open(path: &Path) -> Option<(Self, Mark)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(careful())
            .open(path)
            .ok()?;
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).ok()?;
        let mark = Mark::parse(&header)?;
        let length = file.metadata().ok()?.len().checked_sub(HEADER as u64)?;
        let entries = length / ENTRY as u64;
        Some((Self { file, entries }, mark))
    }

    /// Makes the index anew: the content of each lease that has no record, with its address. The mark follows with
    /// [`Index::set`].
    ///
    /// # Errors
    /// Those of the system.
    pub fn create<'a>(
        path: &Path,
        temporary: &Path,
        leases: impl Iterator<Item = (&'a str, IpAddr)>,
    ) -> io::Result<Self> {
        let mut sorted: Vec<[u8; ENTRY]> = leases.map(|(text, ip)| entry(text, ip)).collect();
        sorted.sort_unstable();
        remove(temporary)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(temporary)?;
        let mut bytes = vec![0; HEADER];
        bytes.extend(sorted.iter().flatten());
        file.write_all_at(&bytes, 0)?;
        std::fs::rename(temporary, path)?;
        let entries = sorted.len() as u64;
        Ok(Self { file, entries })
    }

    /// Says what the index is good for from now on.
    ///
    /// # Errors
    /// Those of the system.
    pub fn set(&self, mark: &Mark) -> io::Result<()> {
        self.file.write_all_at(&mark.bytes(), 0)
    }

    /// Whether there are no leases in it.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Addresses of leases that may have this content. The lease file has the last word.
    pub fn find(&self, text: &str) -> Vec<IpAddr> {
        let hash = hash(text).to_be_bytes();
        let mut found = Vec::new();
        let mut at = self.first_not_below(hash);
        while let Some(entry) = self.entry(at).filter(|entry| entry[..8] == hash) {
            found.extend(address(&entry));
            at += 1;
        }
        found
    }

    /// The place of the first entry whose hash is `hash` or greater.
    fn first_not_below(&self, hash: [u8; 8]) -> u64 {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry(middle) {
                Some(entry) if entry[..8] < hash[..] => low = middle + 1,
                Some(_) | None => high = middle,
            }
        }
        low
    }

    fn entry(&self, at: u64) -> Option<[u8; ENTRY]> {
        if at >= self.entries {
            return None;
        }
        let mut entry = [0; ENTRY];
        let offset = HEADER as u64 + at * ENTRY as u64;
        self.file.read_exact_at(&mut entry, offset).ok()?;
        Some(entry)
    }
}

fn entry(text: &str, ip: IpAddr) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..8].copy_from_slice(&hash(text).to_be_bytes());
    let v6 = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    bytes[8..].copy_from_slice(&v6.octets());
    bytes
}

fn address(entry: &[u8; ENTRY]) -> Option<IpAddr> {
    let octets = <[u8; 16]>::try_from(&entry[8..]).ok()?;
    Some(Ipv6Addr::from(octets).to_canonical())
}

/// FNV-1a of a lease's content, white space around it aside.
fn hash(text: &str) -> u64 {
    crate::wiring::plan::fnv1a(text.trim().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(changed: Changed) -> Mark {
        Mark {
            boot: "0e9c1e2a-1111-2222-3333-444455556666".to_owned(),
            changed,
        }
    }

    #[test]
    fn every_lease_is_found_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (path, temporary) = (dir.path().join("i"), dir.path().join("t"));
        let texts: Vec<String> = (0..1000).map(|n| format!("c{n}\r\neth0")).collect();
        let ip = |n: usize| IpAddr::from([10, 0, u8::try_from(n / 256).unwrap(), n.to_le_bytes()[0]]);
        let leases = texts.iter().enumerate().map(|(n, text)| (text.as_str(), ip(n)));
        let more = [("c7\r\neth0", "fc00::7".parse().unwrap())];
        let index = Index::create(&path, &temporary, leases.chain(more)).unwrap();
        index.set(&mark((5, 6))).unwrap();
        let (index, found) = Index::open(&path).unwrap();
        assert_eq!(found, mark((5, 6)));
        for n in [0, 1, 500, 999] {
            assert_eq!(index.find(&texts[n]), [ip(n)], "{n}");
        }
        assert_eq!(index.find(" c7\r\neth0\n").len(), 2);
        assert!(index.find("c1000\r\neth0").is_empty() && index.find("").is_empty());
        index.set(&mark((9, 0))).unwrap();
        assert_eq!(Index::open(&path).unwrap().1.changed, (9, 0));
    }

    #[test]
    fn damage_means_none() {
        let dir = tempfile::tempdir().unwrap();
        let (path, temporary) = (dir.path().join("i"), dir.path().join("t"));
        assert!(Index::open(&path).is_none());
        drop(Index::create(&path, &temporary, std::iter::empty()).unwrap());
        assert!(Index::open(&path).is_none(), "not marked yet");
        for bytes in [&b""[..], b"flannel1", &[0xff; 100]] {
            std::fs::write(&path, bytes).unwrap();
            assert!(Index::open(&path).is_none());
        }
    }
}
