//! The file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::Cache;

/// Name of the file in the state folder.
pub const FILE: &str = "peers.cache";
/// First word of the file; the number grows when an older daemon could not read it.
const MAGIC: &str = "flannel-peers-1";

/// Reads the cache; `None` when there is none that can be used. Why not is logged, for a file that is there.
pub fn load(folder: &Path) -> Option<Cache> {
    let path = folder.join(FILE);
    let problem = match fs::read(&path) {
        Ok(bytes) => match parse(&bytes) {
            Ok(cache) => return Some(cache),
            Err(problem) => problem,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => error.to_string(),
    };
    tracing::warn!(file = %path.display(), problem, "the peers of the earlier run are not used");
    None
}

/// Replaces the file in one step.
///
/// # Errors
/// The operation that failed; the old file is intact then.
pub(super) fn store(folder: &Path, cache: &Cache) -> io::Result<()> {
    let body = serde_json::to_vec(cache)?;
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let temporary = folder.join(format!(".{FILE}"));
    // Only root reads where every node of the network is.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    writeln!(file, "{MAGIC} {:016x}", checksum(&body))?;
    file.write_all(&body)?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(FILE))?;
    File::open(folder)?.sync_all()
}

fn parse(bytes: &[u8]) -> Result<Cache, String> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or("it has no first line")?;
    let (head, body) = (&bytes[..end], &bytes[end + 1..]);
    let head = String::from_utf8_lossy(head);
    let (magic, sum) = head.split_once(' ').ok_or("its first line is not ours")?;
    if magic != MAGIC {
        return Err(format!("its format is {magic:?}; this version reads {MAGIC:?}"));
    }
    if u64::from_str_radix(sum, 16) != Ok(checksum(body)) {
        return Err("its checksum is wrong: it is damaged".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// FNV-1a of 64 bits (draft-eastlake-fnv): it finds a damaged file, not a forged one.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_written_in_one_step_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        assert_eq!(load(&folder), None);
        store(&folder, &sample()).unwrap();
        store(&folder, &sample()).unwrap();
        assert!(load(&folder).is_some());
        let file = folder.join(FILE);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), &sample()).unwrap();
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for cut in [0, 1, MAGIC.len(), whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(load(dir.path()), None, "{cut} bytes");
        }
        for flip in [0, MAGIC.len() + 3, whole.len() / 2, whole.len() - 2] {
            let mut bytes = whole.clone();
            bytes[flip] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(load(dir.path()), None, "byte {flip}");
        }
        let next = String::from_utf8(whole)
            .unwrap()
            .replacen(MAGIC, "flannel-peers-2", 1);
        fs::write(&path, next).unwrap();
        assert_eq!(load(dir.path()), None);
    }
}
