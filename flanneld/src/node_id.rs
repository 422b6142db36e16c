//! The identity of this node on disk.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use flannel_model::NodeId;

/// Name of the file in the state folder.
pub const FILE: &str = "node-id";

/// Reads the identity that an earlier run drew, or draws one with `random` bits and keeps it. Without a place to keep it
/// there is none: the node is known by its address alone then, as a node of flannel is.
pub fn load_or_create(folder: &Path, random: u128) -> Option<NodeId> {
    let path = folder.join(FILE);
    let problem = match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(id) => return Some(id),
            Err(error) => io::Error::other(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = NodeId::new(random);
            match create(folder, &path, id) {
                Ok(()) => return Some(id),
                Err(error) => error,
            }
        }
        Err(error) => error,
    };
    tracing::warn!(
        file = %path.display(), error = %problem,
        "this node has no identity of its own and is known by its address alone, as in flannel; \
         mend or delete the file, or give another folder with --state-dir"
    );
    None
}

fn create(folder: &Path, path: &Path, id: NodeId) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    // A crash may leave this one behind; the file itself is complete or absent.
    let temporary = folder.join(format!(".{FILE}.{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&temporary)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_drawn_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        let first = load_or_create(&folder, 7).unwrap();
        assert_eq!(first, NodeId::new(7));
        assert_eq!(load_or_create(&folder, 8), Some(first));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "junk").unwrap();
        assert_eq!(load_or_create(dir.path(), 7), None);
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), "junk");
    }
}
