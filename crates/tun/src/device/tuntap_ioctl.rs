//! The ioctls of /dev/net/tun (linux/if_tun.h). rustix has no wrappers for them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::codec::coalesce::Takes;
use crate::offloads::Offloads;

/// What the kernel may hand over in one piece (linux/if_tun.h TUN_F_*), best first. An unknown bit is refused with EINVAL.
const CSUM: u32 = 0x01;
const TSO4: u32 = 0x02;
const TSO6: u32 = 0x04;
const TSO_ECN: u32 = 0x08;
const USO4: u32 = 0x20;
const USO6: u32 = 0x40;

/// Attaches a descriptor of /dev/net/tun to the device `name`, which is made if it is not there.
pub fn attach(descriptor: impl AsFd, name: &str, flags: i32) -> io::Result<()> {
    let mut request = named_request(name)?;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    let raw = descriptor.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    check(unsafe { libc::ioctl(raw, libc::TUNSETIFF as libc::Ioctl, &raw mut request) })
}

/// Name and flags of the device that a descriptor is attached to.
pub fn interface(descriptor: BorrowedFd<'_>) -> io::Result<(String, i32)> {
    let mut request = empty_request();
    // SAFETY: as above; TUNGETIFF writes one ifreq.
    check(unsafe {
        libc::ioctl(
            descriptor.as_raw_fd(),
            libc::TUNGETIFF as libc::Ioctl,
            &raw mut request,
        )
    })?;
    let bytes: Vec<u8> = request
        .ifr_name
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| *byte as u8)
        .collect();
    // SAFETY: TUNGETIFF filled the flags of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((
        String::from_utf8_lossy(&bytes).into_owned(),
        i32::from(flags as u16),
    ))
}

/// Asks for super-packets, from all that is wanted down to none.
pub fn offload(descriptor: impl AsFd, wanted: Offloads) -> io::Result<Takes> {
    let all = Takes {
        tcp: wanted.tso,
        udp: wanted.uso,
    };
    let steps = [
        all,
        Takes { udp: false, ..all },
        Takes {
            tcp: false,
            udp: false,
        },
    ];
    let raw = descriptor.as_fd().as_raw_fd();
    let mut last = Ok(());
    for granted in steps {
        // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
        last = check(unsafe {
            libc::ioctl(
                raw,
                libc::TUNSETOFFLOAD as libc::Ioctl,
                libc::c_ulong::from(bits(granted)),
            )
        });
        if last.is_ok() {
            return Ok(granted);
        }
    }
    last.map(|()| Takes {
        tcp: false,
        udp: false,
    })
}

fn bits(takes: Takes) -> u32 {
    let tcp = if takes.tcp { TSO4 | TSO6 | TSO_ECN } else { 0 };
    let udp = if takes.udp { USO4 | USO6 } else { 0 };
    // Who takes a super-packet completes checksums.
    if tcp | udp == 0 { 0 } else { CSUM | tcp | udp }
}

/// Sets how many packets and super-packets a queue of the device holds while nobody reads it.
pub fn set_queue_length(name: &str, packets: i32) -> io::Result<()> {
    let mut request = named_request(name)?;
    // ifr_qlen is the int of the union, as ifr_metric is.
    request.ifr_ifru.ifru_metric = packets;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    // SAFETY: the descriptor is open, and SIOCSIFTXQLEN reads one ifreq, which lives until the call returns.
    check(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFTXQLEN as libc::Ioctl,
            &raw mut request,
        )
    })
}

fn named_request(name: &str) -> io::Result<libc::ifreq> {
    let mut request = empty_request();
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    Ok(request)
}

fn empty_request() -> libc::ifreq {
    libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
