//! subnet.env, as the daemon leaves it for us.

use std::io;
use std::path::Path;

use flannel_model::SubnetEnv;

use crate::address::read_named;
use crate::protocol::{CniError, Code};

/// Largest file in bytes; a real one has six lines.
const MOST: u64 = 64 << 10;

/// Reads the file at `path`.
///
/// # Errors
/// Code 11 when the daemon has not written it yet, or not all of it; code 5 when it cannot be read.
pub fn read(path: &Path) -> Result<SubnetEnv, CniError> {
    let text = read_named(path, MOST).map_err(|e| unreadable(path, &e))?;
    SubnetEnv::parse(&text).map_err(|e| {
        let advice =
            "flanneld writes the file whole; look whether something else wrote it, and at flanneld's log";
        CniError::new(Code::TryAgain, format!("{} {e}", path.display())).with(advice)
    })
}

fn unreadable(path: &Path, error: &io::Error) -> CniError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => CniError::new(
            Code::TryAgain,
            format!("flanneld has not written {} yet, so this node has no subnet", path.display()),
        )
        .with("check that flanneld runs on this node and reaches etcd (its log names what it waits for), and that it writes this very file (--subnet-file)"),
        _ => CniError::caused(Code::Io, format!("cannot read {}", path.display()), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_incomplete_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let error = read(&path).unwrap_err();
        assert_eq!(error.code, Code::TryAgain);
        assert!(
            error.msg.contains(path.to_str().unwrap()) && error.details.contains("flanneld"),
            "{error}"
        );
        std::fs::write(&path, "foo=bar\n").unwrap();
        let error = read(&path).unwrap_err();
        assert_eq!(error.code, Code::TryAgain);
        assert!(
            error
                .msg
                .contains("FLANNEL_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_NETWORK"),
            "{error}"
        );
        assert_eq!(read(dir.path()).unwrap_err().code, Code::Io);
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read(&path).unwrap_err().code, Code::Io);
    }
}
