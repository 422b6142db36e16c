//! The TUN device: the trait that the pump needs, and how a device with the best path that the kernel has is opened or adopted.

mod offload;
mod plain;
mod tuntap_ioctl;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use offload::OffloadTun;
pub use plain::PlainTun;

use crate::codec::coalesce::Takes;
use crate::codec::virtio::VnetHeader;
use crate::offloads::Offloads;

/// One queue of a TUN device. Reads and writes never block.
pub trait Tun: AsFd + Send + Sync {
    /// Reads a packet or super-packet into `buffer`, behind the [`crate::codec::virtio::LENGTH`] bytes that the kernel says of it: the packet's length;
    /// `None` when nothing waits.
    ///
    /// # Errors
    /// The kernel's; EBADFD once the device is gone.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>>;

    /// Writes a packet or super-packet that consists of `parts`.
    ///
    /// # Errors
    /// The kernel's.
    fn send(&self, vnet: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// What may be written as a super-packet.
    fn takes(&self) -> Takes;
}

/// A device cannot be opened or adopted.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// /dev/net/tun is not there or not permitted.
    #[error("cannot open /dev/net/tun; the kernel needs the module tun, and the process CAP_NET_ADMIN")]
    NoTun(#[source] io::Error),
    /// Somebody else has the device.
    #[error("TUN device {name} is in use by another process; stop it (a running flanneld?) and start again")]
    Busy {
        /// Its name.
        name: String,
    },
    /// The kernel refuses for another reason.
    #[error("TUN device {name} cannot be made")]
    Refused {
        /// Its name.
        name: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// The descriptor is not a queue of that device.
    #[error("an inherited descriptor is no queue of TUN device {name}")]
    Foreign {
        /// The name that was expected.
        name: String,
    },
}

/// Opens `queues` queues of a device called `name`, fewer where the kernel has no more; of `wanted` each is tried, from the best down.
///
/// # Errors
/// When not even a plain device can be made.
pub fn open(name: &str, queues: usize, wanted: Offloads) -> Result<Vec<Box<dyn Tun>>, DeviceError> {
    if wanted.of_device() {
        match OffloadTun::open(name, queues, wanted) {
            Ok(opened) => {
                return Ok(opened
                    .into_iter()
                    .map(|queue| Box::new(queue) as Box<dyn Tun>)
                    .collect());
            }
            Err(error @ (DeviceError::NoTun(_) | DeviceError::Busy { .. })) => return Err(error),
            // An old kernel knows no IFF_VNET_HDR.
            Err(DeviceError::Refused { .. } | DeviceError::Foreign { .. }) => {}
        }
    }
    PlainTun::open(name).map(|queue| vec![Box::new(queue) as Box<dyn Tun>])
}

/// Packets and super-packets that a queue holds while nobody reads it: two and a half seconds of 800 packets a second, which are 400 requests
/// and 400 answers. The kernel's default for TUN is 500 (TUN_READQ_SIZE), for tunnels of its own 1000.
const QUEUE_LENGTH: i32 = 2000;

/// Makes the queues long enough for a restart of their reader. Without it they are what the kernel makes them.
///
/// # Errors
/// The kernel's.
pub fn lengthen_queues(name: &str) -> io::Result<()> {
    tuntap_ioctl::set_queue_length(name, QUEUE_LENGTH)
}

/// Takes over a queue that an earlier process opened, and asks for what is `wanted` now.
///
/// # Errors
/// [`DeviceError::Foreign`] when it is none of the device `name`, or the device is gone.
pub fn adopt(descriptor: OwnedFd, name: &str, wanted: Offloads) -> Result<Box<dyn Tun>, DeviceError> {
    let foreign = || DeviceError::Foreign {
        name: name.to_owned(),
    };
    let (found, flags) = tuntap_ioctl::interface(descriptor.as_fd()).map_err(|_| foreign())?;
    if found != name {
        return Err(foreign());
    }
    if flags & libc::IFF_VNET_HDR != 0 {
        Ok(Box::new(OffloadTun::asking_for(wanted, descriptor, name)?))
    } else {
        Ok(Box::new(PlainTun::adopt(descriptor)))
    }
}

/// The name of the device that a descriptor is a queue of.
///
/// # Errors
/// When it is no TUN descriptor, or its device is gone.
pub fn name_of(descriptor: BorrowedFd<'_>) -> io::Result<String> {
    tuntap_ioctl::interface(descriptor).map(|(name, _)| name)
}

fn nothing_waits<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
