//! Network settings under /proc/sys/net, of the calling thread's namespace.

use std::fs;
use std::io;

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
