//! Network settings under /proc/sys/net, of the calling thread's namespace.

use std::fs;
use std::io;
use std::path::Path;

use flannel_netlink::sysctl;

use crate::protocol::{CniError, Code};

/// Sets `/proc/sys/net/<name>` to `value`, unless it has it. A missing setting is left alone: the kernel or the node has no
/// such family.
///
/// # Errors
/// Code 100 with the setting's name.
pub fn set(name: &str, value: &str) -> Result<(), CniError> {
    let path = format!("/proc/sys/net/{name}");
    let written = match fs::read_to_string(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(old) if old.trim() == value => return Ok(()),
        Ok(_) | Err(_) => fs::write(&path, value),
    };
    written.map_err(|e| CniError::caused(Code::Kernel, format!("cannot set {path} to {value}"), &e))
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
