//! The rendered configuration of a container's delegate, kept in flannel's place and form.
//!
//! We never need it: DEL works from network, container id and interface name. It is there so that flannel's own plugin can
//! remove a container that we attached, and so that we know where flannel put the leases of one that it attached.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::address::{read_small, write_plain};
use crate::config::render;
use crate::protocol::{CniError, Code, ContainerId, NetworkName};

/// A rendered configuration is a few hundred bytes, but may repeat all of a configuration from stdin.
const MAX_SCRATCH: u64 = 2 << 20;

/// The file of one container.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    temporary: PathBuf,
}

impl Scratch {
    /// The file of `container` under `data_dir`.
    pub fn new(data_dir: &Path, container: &ContainerId) -> Self {
        Self {
            path: data_dir.join(container.as_str()),
            // A container's id begins with a letter or digit.
            temporary: data_dir.join(format!(".{container}")),
        }
    }

    /// Puts the rendered delegate in place, whole or not at all, and gives back what was there.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn save(&self, delegate: &Map<String, Value>) -> Result<Previous, CniError> {
        let previous = Previous(fs::read(&self.path).ok());
        self.replace(render::text(delegate).as_bytes())?;
        Ok(previous)
    }

    fn replace(&self, content: &[u8]) -> Result<(), CniError> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let written = made
            .and_then(|()| write_plain(&self.temporary, content, 0o600))
            .and_then(|_| fs::rename(&self.temporary, &self.path));
        written.map_err(|e| CniError::caused(Code::Io, format!("cannot write {}", self.path.display()), &e))
    }

    /// What was saved for this container and `network`. A file of another network of the same container is not ours to use;
    /// a damaged one is nobody's.
    pub fn load(&self, network: &NetworkName) -> Saved {
        read(&self.path, network)
    }

    /// Removes the file.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn remove(&self) -> Result<(), CniError> {
        self.remove_rest()?;
        unlink(&self.path)
    }

    /// Removes what a killed ADD left of a file that never came to be.
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn remove_rest(&self) -> Result<(), CniError> {
        unlink(&self.temporary)
    }

    /// Puts back what was there before [`Scratch::save`].
    ///
    /// # Errors
    /// Code 5 with the path.
    pub fn restore(&self, previous: &Previous) -> Result<(), CniError> {
        match &previous.0 {
            Some(content) => self.replace(content),
            None => self.remove(),
        }
    }
}

fn read(path: &Path, network: &NetworkName) -> Saved {
    let bytes = match read_small(path, MAX_SCRATCH) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Saved::Absent,
        Err(_) => return Saved::Damaged,
    };
    match serde_json::from_slice::<Map<String, Value>>(&bytes) {
        Ok(object) if object.get("name").and_then(Value::as_str) == Some(network.as_str()) => {
            Saved::Ours(object)
        }
        Ok(_) => Saved::Foreign,
        Err(_) => Saved::Damaged,
    }
}

fn unlink(path: &Path) -> Result<(), CniError> {
    match fs::remove_file(path) {
        Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            let msg = format!("cannot remove {}", path.display());
            Err(CniError::caused(Code::Io, msg, &e))
        }
        _ => Ok(()),
    }
}

/// Removes the files of `network` for containers that are not to `stay`. Files of other networks, and damaged ones, are left.
///
/// # Errors
/// Code 5 with the path of the last that could not be removed.
pub fn retain(data_dir: &Path, network: &NetworkName, stay: &dyn Fn(&str) -> bool) -> Result<(), CniError> {
    let Ok(items) = fs::read_dir(data_dir) else {
        // There is none, or it is of no use to anybody.
        return Ok(());
    };
    let mut result = Ok(());
    for item in items.flatten() {
        let name = item.file_name();
        let name = name.to_str().unwrap_or_default();
        // What a killed ADD left of a file that never came to be has a dot before the container's id.
        let (id, unfinished) = name.strip_prefix('.').map_or((name, false), |id| (id, true));
        let container = ContainerId::parse(id).ok().filter(|id| !stay(id.as_str()));
        let Some(scratch) = container.map(|container| Scratch::new(data_dir, &container)) else {
            continue;
        };
        let removed = match (read(&item.path(), network), unfinished) {
            (Saved::Ours(_), false) => scratch.remove(),
            // Nobody is writing it: a runtime starts no ADD beside GC.
            (Saved::Ours(_) | Saved::Damaged, true) => scratch.remove_rest(),
            _ => Ok(()),
        };
        result = removed.and(result);
    }
    result
}

/// A file's former content.
#[derive(Debug)]
pub struct Previous(Option<Vec<u8>>);

/// What a scratch file holds.
#[derive(Debug, PartialEq)]
pub enum Saved {
    /// There is none.
    Absent,
    /// It cannot be read.
    Damaged,
    /// It belongs to another network.
    Foreign,
    /// The delegate of this network.
    Ours(Map<String, Value>),
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    fn name(text: &str) -> NetworkName {
        NetworkName::parse(text).unwrap()
    }

    #[test]
    fn save_load_remove() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("flannel");
        let scratch = Scratch::new(&data, &ContainerId::parse("c1").unwrap());
        assert_eq!(scratch.load(&name("n")), Saved::Absent);
        let previous = scratch.save(&object(r#"{"name":"n","mtu":1450}"#)).unwrap();
        assert_eq!(
            fs::read_to_string(data.join("c1")).unwrap(),
            r#"{"mtu":1450,"name":"n"}"#
        );
        assert!(matches!(scratch.load(&name("n")), Saved::Ours(_)));
        assert_eq!(scratch.load(&name("other")), Saved::Foreign);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&data), mode(&data.join("c1"))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
        scratch.restore(&previous).unwrap();
        assert_eq!(scratch.load(&name("n")), Saved::Absent);
        scratch.remove().unwrap();
    }

    #[test]
    fn a_second_network_of_the_container_is_put_back() {
        let root = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(root.path(), &ContainerId::parse("c1").unwrap());
        scratch.save(&object(r#"{"name":"a"}"#)).unwrap();
        let previous = scratch.save(&object(r#"{"name":"b"}"#)).unwrap();
        scratch.restore(&previous).unwrap();
        assert!(matches!(scratch.load(&name("a")), Saved::Ours(_)));
    }

    #[test]
    fn what_a_killed_add_left_goes_with_its_network() {
        let root = tempfile::tempdir().unwrap();
        for (file, content) in [
            (".whole", r#"{"name":"n"}"#),
            (".half", r#"{"na"#),
            (".other", r#"{"name":"m"}"#),
            (".stays", ""),
            ("done", r#"{"name":"n"}"#),
        ] {
            fs::write(root.path().join(file), content).unwrap();
        }
        retain(root.path(), &name("n"), &|container| container == "stays").unwrap();
        let mut left: Vec<_> = fs::read_dir(root.path())
            .unwrap()
            .map(|item| item.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [".other", ".stays"]);
    }

    #[test]
    fn damage_is_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(root.path(), &ContainerId::parse("c1").unwrap());
        for content in ["", "{", "[]", "\u{0}"] {
            fs::write(root.path().join("c1"), content).unwrap();
            assert_eq!(scratch.load(&name("n")), Saved::Damaged, "{content:?}");
        }
    }
}
