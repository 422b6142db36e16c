//! When draining real servers must go at the latest, in a file that a restart finds: with a process that restarts often the bound would
//! never be reached otherwise.
//!
//! A line has the virtual server, the real server and a time since boot in seconds. The folder does not outlive a reboot, and neither
//! do connections.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_model::ServerKey;

/// Its name.
pub const FILE: &str = "service-drains";
/// Longest file that is read: more than 65,535 lines of 100 bytes.
const LONGEST: u64 = 16 * 1024 * 1024;

/// Deadlines, as times since boot.
pub(super) type Deadlines = BTreeMap<(String, SocketAddr), Duration>;

/// The file in its folder.
#[derive(Debug)]
pub(super) struct DrainFile(PathBuf);

impl DrainFile {
    /// That in `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self(folder.join(FILE))
    }

    /// What an earlier process wrote. A file that cannot be read means full time once more, which is said.
    pub(super) fn read(&self) -> Deadlines {
        let length = std::fs::metadata(&self.0).map_or(0, |file| file.len());
        let text = match std::fs::read_to_string(&self.0) {
            Ok(text) if length <= LONGEST => text,
            Ok(_) => return Deadlines::new(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Deadlines::new(),
            Err(error) => {
                tracing::warn!(file = %self.0.display(), %error, "endpoints that drain get their full time once more");
                return Deadlines::new();
            }
        };
        text.lines().filter_map(line).collect()
    }

    /// Puts these into the file in one step; without any there is no file.
    pub(super) fn write(&self, deadlines: impl Iterator<Item = (ServerKey, SocketAddr, Duration)>) {
        let mut text = String::new();
        for (server, real, end) in deadlines {
            // writing to a text cannot fail
            let _ = writeln!(text, "{server}\t{real}\t{}", end.as_secs());
        }
        if let Err(error) = self.put(&text) {
            tracing::warn!(file = %self.0.display(), %error, "after a restart endpoints that drain get their full time once more");
        }
    }

    fn put(&self, text: &str) -> std::io::Result<()> {
        if text.is_empty() {
            return match std::fs::remove_file(&self.0) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            };
        }
        if let Some(folder) = self.0.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let temporary = self.0.with_extension("new");
        std::fs::write(&temporary, text)?;
        std::fs::rename(&temporary, &self.0)
    }
}

fn line(text: &str) -> Option<((String, SocketAddr), Duration)> {
    let mut parts = text.split('\t');
    let (server, real, end) = (parts.next()?, parts.next()?, parts.next()?);
    Some((
        (server.to_owned(), real.parse().ok()?),
        Duration::from_secs(end.parse().ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = DrainFile::new(folder.path());
        assert_eq!(file.read(), Deadlines::new());
        let server = ServerKey::Mark { ipv6: true, mark: 7 };
        let real: SocketAddr = "[fd00:5::2]:8080".parse().unwrap();
        file.write([(server, real, Duration::from_secs(77))].into_iter());
        let read = file.read();
        assert_eq!(read[&(server.to_string(), real)], Duration::from_secs(77));
        std::fs::write(folder.path().join(FILE), "a\tb\tc\nnothing\n\n\t\t\t").unwrap();
        assert_eq!(
            file.read(),
            Deadlines::new(),
            "lines that say nothing are passed over"
        );
        file.write(std::iter::empty());
        assert!(!folder.path().join(FILE).exists());
    }
}
