//! Network settings under /proc/sys/net, of the calling thread's namespace.

use std::io;
use std::path::Path;

use flannel_netlink::sysctl;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, pread, pwrite};

use crate::protocol::{CniError, Code};

/// Longer than any number that is set here.
const MOST: usize = 32;

/// Sets `/proc/sys/net/<name>` to `value`, unless it has it. A missing setting is left alone: the kernel or the node has no
/// such family.
///
/// # Errors
/// Code 100 with the setting's name.
pub fn set(name: &str, value: &str) -> Result<(), CniError> {
    let path = format!("/proc/sys/net/{name}");
    match change(&path, value) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(CniError::caused(
            Code::Kernel,
            format!("cannot set {path} to {value}"),
            &std::io::Error::from(e),
        )),
    }
}

/// Opened once for both: an ADD looks at more than a dozen settings.
fn change(path: &str, value: &str) -> Result<(), Errno> {
    let opened = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let (file, refused) = match opened {
        Ok(file) => (file, None),
        // Where the settings may only be read, it is enough that this one is right.
        Err(e @ (Errno::ROFS | Errno::ACCESS | Errno::PERM)) => {
            let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            (file, Some(e))
        }
        Err(e) => return Err(e),
    };
    let mut buffer = [0; MOST];
    let length = pread(&file, &mut buffer, 0)?;
    let has = buffer.get(..length).unwrap_or_default().trim_ascii();
    match refused {
        _ if has == value.as_bytes() => Ok(()),
        Some(e) => Err(e),
        // From the beginning: anything else is ignored (`sysctl_writes_strict`).
        None => pwrite(&file, value.as_bytes(), 0).map(drop),
    }
}

/// Where flanneld notes what its clean-up has to put back, unless it was told of another folder.
const NOTES: &str = "/run/flannel/sysctls";

/// The same for a setting of the whole host, which outlives the container: what it was is noted for flanneld's clean-up.
///
/// # Errors
/// Code 100 with the setting's name.
pub fn set_host(name: &str, value: &str) -> Result<(), CniError> {
    match sysctl::set(&format!("net/{name}"), value, Some(Path::new(NOTES))) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(CniError::caused(
            Code::Kernel,
            format!("cannot set net/{name} to {value}"),
            &e,
        )),
        Ok(_) => Ok(()),
    }
}
