//! Network settings under /proc/sys/net, of the calling thread's namespace.

use std::cell::OnceCell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use flannel_netlink::sysctl;
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::{Errno, pread, pwrite};

use crate::protocol::{CniError, Code};

/// Where flanneld notes what its clean-up has to put back, unless it was told of another folder.
const NOTES: &str = "/run/flannel/sysctls";
const ROOT: &str = "/proc/sys/net";
/// Longer than any number that is set here.
const MOST: usize = 32;

/// The folders of both families, each opened once, when it is needed. Each namespace has folders of its own under the same name, between which the kernel
/// tells one by one (`proc_sys_compare`, fs/proc/proc_sysctl.c): the more pods there are, the longer a way from the root takes. They are
/// those of the namespace in which the calling thread is when it first needs one: a value belongs to one namespace.
#[derive(Debug, Default)]
pub struct Settings {
    v4: OnceCell<Option<OwnedFd>>,
    v6: OnceCell<Option<OwnedFd>>,
}

impl Settings {
    fn folder4(&self) -> Option<&OwnedFd> {
        self.v4.get_or_init(|| folder("ipv4")).as_ref()
    }

    fn folder6(&self) -> Option<&OwnedFd> {
        self.v6.get_or_init(|| folder("ipv6")).as_ref()
    }

    /// Sets a setting of IPv4, a path such as `conf/all/accept_redirects`, to `value`, unless it has it. A missing setting is left
    /// alone: the kernel or the node has no such family.
    ///
    /// # Errors
    /// Code 100 with the setting's name.
    pub fn v4(&self, name: &str, value: &str) -> Result<(), CniError> {
        set_in(self.folder4(), "ipv4", name, value)
    }

    /// The same for IPv6.
    ///
    /// # Errors
    /// Code 100 with the setting's name.
    pub fn v6(&self, name: &str, value: &str) -> Result<(), CniError> {
        set_in(self.folder6(), "ipv6", name, value)
    }

    /// The same for a setting of the whole host, `ipv4/` or `ipv6/` and its path, which outlives the container: what it was is noted
    /// for flanneld's clean-up.
    ///
    /// # Errors
    /// Code 100 with the setting's name.
    pub fn host(&self, name: &str, value: &str) -> Result<(), CniError> {
        let folder = match name.split_once('/') {
            Some(("ipv4", rest)) => self.folder4().zip(Some(rest)),
            Some(("ipv6", rest)) => self.folder6().zip(Some(rest)),
            _ => None,
        };
        let had = folder.and_then(|(folder, rest)| {
            let file = openat(folder, rest, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
            has(&file, value).ok()
        });
        if had == Some(true) {
            return Ok(());
        }
        match sysctl::set(&format!("net/{name}"), value, Some(Path::new(NOTES))) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(refused(name, value, &e)),
            Ok(_) => Ok(()),
        }
    }
}

fn folder(family: &str) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(format!("{ROOT}/{family}"), flags, Mode::empty()).ok()
}

fn set_in(folder: Option<&OwnedFd>, family: &str, name: &str, value: &str) -> Result<(), CniError> {
    match folder.map(|folder| change(folder, name, value)) {
        None | Some(Ok(()) | Err(Errno::NOENT)) => Ok(()),
        Some(Err(e)) => Err(refused(&format!("{family}/{name}"), value, &e.into())),
    }
}

fn refused(name: &str, value: &str, cause: &io::Error) -> CniError {
    CniError::caused(
        Code::Kernel,
        format!("cannot set {ROOT}/{name} to {value}"),
        cause,
    )
}

/// Opened once for both: an ADD looks at several settings.
fn change(folder: &OwnedFd, name: &str, value: &str) -> Result<(), Errno> {
    let opened = openat(folder, name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let (file, refused) = match opened {
        Ok(file) => (file, None),
        // Where the settings may only be read, it is enough that this one is right.
        Err(e @ (Errno::ROFS | Errno::ACCESS | Errno::PERM)) => {
            let file = openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            (file, Some(e))
        }
        Err(e) => return Err(e),
    };
    match (has(&file, value)?, refused) {
        (true, _) => Ok(()),
        (false, Some(e)) => Err(e),
        // From the beginning: anything else is ignored (`sysctl_writes_strict`).
        (false, None) => pwrite(&file, value.as_bytes(), 0).map(drop),
    }
}

fn has(file: &OwnedFd, value: &str) -> Result<bool, Errno> {
    let mut buffer = [0; MOST];
    let length = pread(file, &mut buffer, 0)?;
    let found = buffer.get(..length).unwrap_or_default().trim_ascii();
    Ok(found == value.as_bytes())
}
