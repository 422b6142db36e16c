//! A queue without super-packets: one packet of at most the MTU a system call, as flannel's own proxy has it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use tun_tap::{Iface, Mode};

use super::{DeviceError, Tun, nothing_waits};
use crate::codec::coalesce::Takes;
use crate::codec::virtio::{self, VnetHeader};

/// A plain queue. tun-tap opens it; what an earlier process opened can only be adopted as a descriptor, which tun-tap cannot do.
#[derive(Debug)]
pub struct PlainTun {
    descriptor: OwnedFd,
}

impl PlainTun {
    /// Opens the device's only queue.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn open(name: &str) -> Result<Self, DeviceError> {
        let interface =
            Iface::without_packet_info(name, Mode::Tun).map_err(|cause| match cause.raw_os_error() {
                Some(libc::EBUSY) => DeviceError::Busy {
                    name: name.to_owned(),
                },
                Some(libc::ENOENT | libc::EACCES | libc::ENODEV) => DeviceError::NoTun(cause),
                _ => DeviceError::Refused {
                    name: name.to_owned(),
                    cause,
                },
            })?;
        // SAFETY: into_raw_fd gives the descriptor away, so nobody else closes it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(interface.into_raw_fd()) };
        rustix::io::ioctl_fionbio(&descriptor, true).map_err(|cause| DeviceError::Refused {
            name: name.to_owned(),
            cause: cause.into(),
        })?;
        Ok(Self::adopt(descriptor))
    }

    /// Takes an attached descriptor that does not block.
    #[must_use]
    pub fn adopt(descriptor: OwnedFd) -> Self {
        Self { descriptor }
    }
}

impl AsFd for PlainTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Tun for PlainTun {
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let (claims, packet) = buffer
            .split_at_mut_checked(virtio::LENGTH)
            .ok_or(io::ErrorKind::InvalidInput)?;
        claims.fill(0);
        nothing_waits(rustix::io::read(&self.descriptor, packet).map_err(io::Error::from))
    }

    fn send(&self, _: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.descriptor, parts)
            .map(|_| ())
            .map_err(io::Error::from)
    }

    fn takes(&self) -> Takes {
        Takes {
            tcp: false,
            udp: false,
        }
    }
}
