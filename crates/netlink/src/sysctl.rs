//! Kernel settings under /proc/sys that outlive whoever set them: what they were before is noted, so that a clean-up can put them back.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[cfg(feature = "monitor")]
mod follow;

#[cfg(feature = "monitor")]
pub use follow::Follow;

/// Name of the file with the notes. It lies beside subnet.env, where a reboot takes it away together with the settings.
pub const NOTES: &str = "sysctls";

const ROOT: &str = "/proc/sys";

/// What `name`, a path below /proc/sys, has.
///
/// # Errors
/// When it cannot be read; `NotFound` when this kernel has none of that name.
pub fn get(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path_of(name))?.trim().to_owned())
}

/// Sets `name`, a path below /proc/sys such as `net/ipv4/ip_forward`, to `value` unless it has it; what it was goes to the file
/// `notes` before. Answers whether anything was written.
///
/// # Errors
/// When the setting cannot be read or written; `NotFound` when this kernel has none of that name. Notes that cannot be written are
/// no error: the setting matters more than its way back.
pub fn set(name: &str, value: &str, notes: Option<&Path>) -> io::Result<bool> {
    let path = path_of(name);
    let before = fs::read_to_string(&path)?;
    if before.trim() == value {
        return Ok(false);
    }
    if let Some(notes) = notes {
        let _ = note(notes, name, before.trim(), value);
    }
    fs::write(&path, value).map(|()| true)
}

/// Notes that `name` is about to be set to `value` and was `before`.
///
/// # Errors
/// When the file cannot be written.
pub fn note(notes: &Path, name: &str, before: &str, value: &str) -> io::Result<()> {
    // One line in one write: the daemon and the CNI plugin may note at the same time.
    let mut file = OpenOptions::new().append(true).create(true).open(notes)?;
    file.write_all(format!("{name} {before} {value}\n").as_bytes())
}

fn path_of(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

/// A setting that was changed, and what it was before the first change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Its path below /proc/sys.
    pub name: String,
    /// What it was.
    pub before: String,
    /// What it was set to last.
    pub set: String,
}

/// What the file `notes` says; nothing when there is none. Lines that make no sense are passed over.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn changed(notes: &Path) -> io::Result<Vec<Changed>> {
    match fs::read_to_string(notes) {
        Ok(text) => Ok(read_notes(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn read_notes(text: &str) -> Vec<Changed> {
    let mut by_name: BTreeMap<&str, Changed> = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, before, set] = fields[..] else { continue };
        // The file is root's own, but whatever it says, nothing outside the settings is written.
        if !name.starts_with("net/") || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            continue;
        }
        by_name
            .entry(name)
            .and_modify(|known| known.set = set.to_owned())
            .or_insert_with(|| Changed {
                name: name.to_owned(),
                before: before.to_owned(),
                set: set.to_owned(),
            });
    }
    by_name.into_values().collect()
}

impl Changed {
    /// Whether the setting still has the value that was set. Otherwise somebody else has changed it since, and it is theirs.
    pub fn stands(&self) -> bool {
        fs::read_to_string(path_of(&self.name)).is_ok_and(|now| now.trim() == self.set)
    }

    /// Gives the setting back what it had before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_back(&self) -> io::Result<()> {
        fs::write(path_of(&self.name), &self.before)
    }
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (was set to {})", self.name, self.before, self.set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_is_the_one_to_go_back_to() {
        let text = "net/ipv4/ip_forward 0 1\nnet/ipv4/vs/conntrack 0 1\nnet/ipv4/ip_forward 2 1\n";
        let changed = read_notes(text);
        assert_eq!(changed.len(), 2);
        assert_eq!(changed[0].to_string(), "net/ipv4/ip_forward 0 (was set to 1)");
    }

    #[test]
    fn nothing_but_network_settings_is_read() {
        for line in [
            "",
            "net/ipv4/ip_forward 0",
            "net/../kernel/panic 0 1",
            "kernel/panic 0 1",
            "net//x 0 1",
        ] {
            assert_eq!(read_notes(line), [], "{line}");
        }
    }

    #[test]
    fn a_missing_setting_is_told_as_such() {
        let error = set("net/ipv4/no_such_setting", "1", None).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
