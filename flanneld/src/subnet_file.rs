//! subnet.env on disk: always absent or complete.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flannel_model::{Families, LeaseKey, SubnetEnv};

/// The subnets of an earlier run, from the file it left; `None` when there is none to go by. A file that cannot be read is
/// no reason not to start.
pub fn previous_lease(path: &Path) -> Option<LeaseKey> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the earlier subnet cannot be read; another one may be taken");
            return None;
        }
    };
    match SubnetEnv::parse(&text) {
        Ok(env) => {
            let (ipv4, ipv6) = (env.ipv4.map(|(_, s)| s), env.ipv6.map(|(_, s)| s));
            Families::new(ipv4, ipv6).map(LeaseKey::new)
        }
        Err(error) => {
            tracing::warn!("{} {error}; another subnet may be taken", path.display());
            None
        }
    }
}

/// Puts `env` into the file in one step: a reader sees the old text or the new one, also after a power cut.
///
/// # Errors
/// The operation that failed; the old file is intact then.
pub fn write(path: &Path, env: &SubnetEnv) -> io::Result<()> {
    let text = env.render();
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // flannel's modes: anybody may read the file, the CNI plugin of a container engine among them.
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let temporary = temporary_name(path);
    let result = write_new(&temporary, &text).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
        return result;
    }
    File::open(folder)?.sync_all()
}

/// Takes the file away, so that no pod is added. It is no error when there is none.
///
/// # Errors
/// The operation that failed.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    // A left-over of a killed run with our process id would stand in the way of create_new.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn env(subnet: &str) -> SubnetEnv {
        let networks = vec!["10.5.0.0/16".parse().unwrap()];
        SubnetEnv {
            ipv4: Some((networks, subnet.parse().unwrap())),
            ipv6: None,
            mtu: 1450,
            ip_masq: true,
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/subnet.env");
        assert_eq!(previous_lease(&path), None);
        write(&path, &env("10.5.7.0/24")).unwrap();
        write(&path, &env("10.5.8.0/24")).unwrap();
        assert_eq!(previous_lease(&path).unwrap().to_string(), "10.5.8.0-24");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(previous_lease(&path), None);
    }

    #[test]
    fn both_families_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let ipv6 = ("fd00:5::/48".parse().unwrap(), "fd00:5:0:7::/64".parse().unwrap());
        let mut env = SubnetEnv {
            ipv6: Some((vec![ipv6.0], ipv6.1)),
            ..env("10.5.7.0/24")
        };
        write(&path, &env).unwrap();
        assert_eq!(
            previous_lease(&path).unwrap().to_string(),
            "10.5.7.0-24&fd00:5:0:7::-64"
        );
        env.ipv4 = None;
        write(&path, &env).unwrap();
        assert_eq!(previous_lease(&path).unwrap().to_string(), "fd00:5:0:7::-64");
    }

    #[test]
    fn a_damaged_file_is_no_previous_lease() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        for text in ["", "FLANNEL_SUBNET=10.5.7.1/24\n", "\u{0}\u{0}"] {
            fs::write(&path, text).unwrap();
            assert_eq!(previous_lease(&path), None);
        }
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        write(&path, &env("10.5.7.0/24")).unwrap();
        let blocked = temporary_name(&path);
        fs::create_dir(&blocked).unwrap();
        assert!(write(&path, &env("10.5.8.0/24")).is_err());
        assert_eq!(previous_lease(&path).unwrap().to_string(), "10.5.7.0-24");
    }
}
