//! Socket addresses and control messages as the kernel has them.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Room for the control messages of one datagram, aligned as CMSG_FIRSTHDR wants it.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub struct Control(pub [u8; 96]);

impl Control {
    pub const EMPTY: Self = Self([0; 96]);
}

/// An address as the kernel reads and writes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub union Address {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Address {
    /// All zero.
    pub fn empty() -> Self {
        // SAFETY: every field of both structures is a number or an array of numbers, for which zero bytes are valid.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    /// The kernel's form of an address, and its length.
    pub fn of(address: SocketAddr) -> (Self, libc::socklen_t) {
        let mut raw = Self::empty();
        match address {
            SocketAddr::V4(address) => {
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*address.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                };
                (raw, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(address) => {
                raw.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr {
                        s6_addr: address.ip().octets(),
                    },
                    sin6_scope_id: address.scope_id(),
                };
                (raw, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    /// The address that the kernel wrote.
    pub fn get(&self) -> Option<SocketAddr> {
        // SAFETY: the family is the first field of both structures, and every byte was at least zeroed.
        let family = i32::from(unsafe { self.v4.sin_family });
        if family == libc::AF_INET {
            // SAFETY: the kernel says that it wrote a sockaddr_in.
            let v4 = unsafe { self.v4 };
            let address = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            return Some((address, u16::from_be(v4.sin_port)).into());
        }
        if family == libc::AF_INET6 {
            // SAFETY: the kernel says that it wrote a sockaddr_in6.
            let v6 = unsafe { self.v6 };
            let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            return Some(SocketAddrV6::new(address, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into());
        }
        None
    }
}

/// An empty message.
pub fn empty_message() -> libc::mmsghdr {
    // SAFETY: every field is a number or a pointer, for which zero bytes are valid.
    unsafe { MaybeUninit::zeroed().assume_init() }
}
