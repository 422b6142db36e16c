//! One lease as a file: named by the address, holding the attachment in host-local's form.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::protocol::{Attachment, ContainerId, IfName};

/// Far more than any lease holds; what is longer is none of ours.
const MAX_LEASE: u64 = 4096;

/// The attachment that holds an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    container: String,
    ifname: String,
}

impl From<&Attachment> for Holder {
    fn from(attachment: &Attachment) -> Self {
        Self {
            container: attachment.container.to_string(),
            ifname: attachment.ifname.to_string(),
        }
    }
}

impl Holder {
    /// The file's content. host-local writes the same bytes, with no end of line behind the interface name.
    pub fn content(&self) -> String {
        format!("{}\r\n{}", self.container, self.ifname)
    }

    /// The container's id.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// Whether a file's content names this attachment.
    pub fn owns(&self, content: &str) -> bool {
        content.trim() == self.content()
    }

    /// Whether it names the container alone, as host-local before 0.7 wrote it.
    pub fn owns_by_container(&self, content: &str) -> bool {
        content.trim() == self.container
    }
}

/// What a file in the place of a lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    /// There is none.
    Absent,
    /// It is empty: a plugin died between creating and writing it, and nobody has the address.
    Empty,
    /// Somebody holds the address.
    Held(String),
    /// It cannot be understood, so the address is left alone.
    Unreadable(String),
}

impl Lease {
    /// Its text, where somebody holds the address.
    pub fn holder_text(&self) -> Option<&str> {
        match self {
            Self::Held(text) => Some(text),
            Self::Absent | Self::Empty | Self::Unreadable(_) => None,
        }
    }

    /// Whether it is `holder`'s.
    pub fn is_of(&self, holder: &Holder) -> bool {
        let text = self.holder_text();
        text.is_some_and(|text| holder.owns(text) || holder.owns_by_container(text))
    }
}

/// Reads the file at `path`. Links are not followed: the directory may hold anything.
pub fn read(path: &Path) -> Lease {
    match read_small(path, MAX_LEASE) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Lease::Absent,
        Err(e) => Lease::Unreadable(why(&e)),
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) if text.trim().is_empty() => Lease::Empty,
            Ok(text) if names_a_container(&text) => Lease::Held(text),
            Ok(_) => Lease::Unreadable("does not name a container".to_owned()),
            Err(_) => Lease::Unreadable("is not text".to_owned()),
        },
    }
}

/// What is wrong with a file, to be said behind its name. Where a link is not followed, the system speaks of a loop (open(2), ELOOP).
pub fn why(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) if number == Errno::LOOP.raw_os_error() => "is a symbolic link".to_owned(),
        Some(_) => format!("cannot be read: {error}"),
        None => error.to_string(),
    }
}

/// `<id>\r\n<interface>`, or the id alone.
fn names_a_container(text: &str) -> bool {
    let (id, ifname) = match text.trim().split_once("\r\n") {
        Some((id, ifname)) => (id, Some(ifname)),
        None => (text.trim(), None),
    };
    ContainerId::parse(id).is_ok() && ifname.is_none_or(|name| IfName::parse(name).is_ok())
}

/// The content of a plain file of at most `most` bytes. Links are not followed, and a FIFO does not hang us.
///
/// # Errors
/// Those of the system, or that the file is of another kind or larger.
pub fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_plain(path, most, careful())
}

/// The text of a file that the configuration names, of at most `most` bytes. Links lead there; a device or a FIFO does not.
///
/// # Errors
/// Those of the system, or that the file is of another kind, larger, or no UTF-8.
pub fn read_named(path: &Path, most: u64) -> io::Result<String> {
    // The bits of open(2) fit into an int by definition.
    let bytes = read_plain(path, most, OFlags::NONBLOCK.bits().cast_signed())?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

fn read_plain(path: &Path, most: u64, flags: i32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    regular(file)?.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(io::Error::other(format!("is larger than {most} bytes"))),
        false => Ok(bytes),
    }
}

fn regular(file: File) -> io::Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("is not a plain file")),
    }
}

/// Flags of open(2) for a place where anything may lie: links are not followed, and a FIFO does not hang us.
pub fn careful() -> i32 {
    // The bits of open(2) fit into an int by definition.
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// Writes `content` to a new file `temporary` and gets it onto the disk.
///
/// # Errors
/// Those of the system.
pub fn write_synced(temporary: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write_plain(temporary, content, mode)?.sync_all()
}

/// Writes `content` to a new file `temporary`.
///
/// # Errors
/// Those of the system.
pub fn write_plain(temporary: &Path, content: &[u8], mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut file = match options.open(temporary) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            // The rest of a write that never ended; making the file anew also rules out a link.
            remove(temporary)?;
            options.open(temporary)
        }
        opened => opened,
    }?;
    file.write_all(content)?;
    Ok(file)
}

/// Moves `from` to `to`, which must not exist: two plugins cannot both get an address, whatever else goes wrong.
///
/// # Errors
/// Those of the system.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems without it; link(2) never overwrites either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            std::fs::hard_link(from, to).and_then(|()| std::fs::remove_file(from))
        }
        result => Ok(result?),
    }
}

/// Removes the file at `path`, if there is one.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_may_be_linked_but_must_be_a_plain_one() {
        let root = tempfile::tempdir().unwrap();
        let (file, link) = (root.path().join("file"), root.path().join("link"));
        std::fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_named(&link, 4).unwrap(), "text");
        assert!(read_named(&link, 3).is_err());
        assert!(read_named(Path::new("/dev/zero"), 4).is_err());
        assert!(read_named(root.path(), 4).is_err());
    }

    #[test]
    fn every_kind_of_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("empty"), "").unwrap();
        std::fs::write(path("blank"), " \r\n").unwrap();
        std::fs::write(path("held"), "c1\r\neth0").unwrap();
        std::fs::write(path("binary"), [0xff, 0xfe]).unwrap();
        std::fs::write(path("long"), "x".repeat(5000)).unwrap();
        std::fs::create_dir(path("dir")).unwrap();
        std::os::unix::fs::symlink(path("held"), path("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("fifo"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert_eq!(read(&path("absent")), Lease::Absent);
        assert_eq!(read(&path("empty")), Lease::Empty);
        assert_eq!(read(&path("blank")), Lease::Empty);
        assert_eq!(read(&path("held")), Lease::Held("c1\r\neth0".to_owned()));
        std::fs::write(path("odd"), "a b\r\neth0").unwrap();
        std::fs::write(path("more"), "c1\r\neth0\r\nx").unwrap();
        for (name, why) in [
            ("binary", "is not text"),
            ("long", "is larger than 4096 bytes"),
            ("dir", "is not a plain file"),
            ("link", "is a symbolic link"),
            ("fifo", "is not a plain file"),
            ("odd", "does not name a container"),
            ("more", "does not name a container"),
        ] {
            assert_eq!(read(&path(name)), Lease::Unreadable(why.to_owned()), "{name}");
        }
    }

    #[test]
    fn a_left_over_temporary_file_or_link_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (temporary, victim) = (dir.path().join("t"), dir.path().join("v"));
        std::fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, &temporary).unwrap();
        write_synced(&temporary, b"c", 0o600).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
        assert_eq!(std::fs::read_to_string(&temporary).unwrap(), "c");
    }
}
