//! A queue with IFF_VNET_HDR: super-packets in both directions, and as many queues as are wanted.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::tuntap_ioctl;
use super::{DeviceError, Tun, nothing_waits};
use crate::codec::coalesce::Takes;
use crate::codec::virtio::{self, VnetHeader};
use crate::offloads::Offloads;

const FLAGS: i32 = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// Parts of a packet that are written without asking the allocator.
const FEW_PARTS: usize = 2;

/// A queue with super-packets.
#[derive(Debug)]
pub struct OffloadTun {
    descriptor: OwnedFd,
    granted: Takes,
}

impl OffloadTun {
    /// Opens `queues` queues, one where the kernel has no more.
    ///
    /// # Errors
    /// When the kernel knows no vnet_hdr or the device cannot be had.
    pub fn open(name: &str, queues: usize, wanted: Offloads) -> Result<Vec<Self>, DeviceError> {
        let several = if wanted.multi_queue {
            attach(name, FLAGS | libc::IFF_MULTI_QUEUE).map(|first| (first, true))
        } else {
            attach(name, FLAGS).map(|first| (first, false))
        };
        let (first, several) = match several {
            Err(DeviceError::Refused { .. }) if wanted.multi_queue => (attach(name, FLAGS)?, false),
            several => several?,
        };
        let mut opened = vec![Self::asking_for(wanted, first, name)?];
        while several && opened.len() < queues.max(1) {
            // A device has 256 queues at the most (MAX_TAP_QUEUES); fewer do as well.
            let Ok(next) = attach(name, FLAGS | libc::IFF_MULTI_QUEUE) else {
                break;
            };
            opened.push(Self::asking_for(wanted, next, name)?);
        }
        Ok(opened)
    }

    /// Takes an attached descriptor and asks for super-packets.
    ///
    /// # Errors
    /// When the descriptor takes no settings.
    pub fn asking_for(wanted: Offloads, descriptor: OwnedFd, name: &str) -> Result<Self, DeviceError> {
        let refused = |cause: io::Error| DeviceError::Refused {
            name: name.to_owned(),
            cause,
        };
        rustix::io::ioctl_fionbio(&descriptor, true).map_err(|error| refused(error.into()))?;
        let granted = tuntap_ioctl::offload(&descriptor, wanted).map_err(refused)?;
        Ok(Self { descriptor, granted })
    }
}

fn attach(name: &str, flags: i32) -> Result<OwnedFd, DeviceError> {
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(DeviceError::NoTun)?;
    match tuntap_ioctl::attach(&file, name, flags) {
        Ok(()) => Ok(file.into()),
        Err(cause) if cause.raw_os_error() == Some(libc::EBUSY) => Err(DeviceError::Busy {
            name: name.to_owned(),
        }),
        Err(cause) => Err(DeviceError::Refused {
            name: name.to_owned(),
            cause,
        }),
    }
}

impl AsFd for OffloadTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Tun for OffloadTun {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        // libc's read(2) is a point where a thread may be cancelled, which costs 48 of its 421 ns: much for small packets, which are read
        // one by one.
        // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_read,
                self.descriptor.as_raw_fd(),
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        let read = usize::try_from(result).map_err(|_| io::Error::last_os_error());
        Ok(nothing_waits(read)?.map(|read| read.saturating_sub(virtio::LENGTH)))
    }

    fn send(&self, vnet: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let header = vnet.bytes();
        let written = if let [only] = parts {
            let all: [IoSlice<'_>; FEW_PARTS] = [IoSlice::new(&header), *only];
            rustix::io::writev(&self.descriptor, &all)
        } else {
            let mut all = Vec::with_capacity(parts.len() + 1);
            all.push(IoSlice::new(&header));
            all.extend_from_slice(parts);
            rustix::io::writev(&self.descriptor, &all)
        };
        written.map(|_| ()).map_err(io::Error::from)
    }

    fn takes(&self) -> Takes {
        self.granted
    }
}
