//! Memory that outlives the process as the descriptors do: what a thread has read and not yet passed on is still there after a crash,
//! and the next process passes it on. Each direction of each queue has a part of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::egress::Slots;
use crate::socket::ReceiveBatch;

/// What the memory begins with. Another layout gets another number: what cannot be read is left alone.
const MAGIC: [u8; 16] = *b"flannel-udp-3\0\0\0";
/// Parts begin at pages, the largest that Linux has without huge ones.
const PAGE: usize = 64 << 10;
/// The part of one queue's packets from the device.
const OUTBOUND: usize = Slots::LENGTH.next_multiple_of(PAGE);

/// The parts of one data path.
#[derive(Debug)]
pub struct Memory {
    descriptor: OwnedFd,
    queues: usize,
}

impl Memory {
    /// New memory for that many queues.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(queues: usize) -> io::Result<Self> {
        let descriptor =
            rustix::fs::memfd_create("flannel-udp", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&descriptor, Self::length(queues) as u64)?;
        // Nobody may take away what is mapped here.
        rustix::fs::fcntl_add_seals(&descriptor, SealFlags::SHRINK | SealFlags::GROW)?;
        rustix::io::pwrite(&descriptor, &MAGIC, 0)?;
        Ok(Self { descriptor, queues })
    }

    /// Takes over what an earlier process had.
    ///
    /// # Errors
    /// When it has another layout.
    pub fn adopt(descriptor: OwnedFd, queues: usize) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        rustix::io::pread(&descriptor, &mut magic, 0)?;
        let length = rustix::fs::fstat(&descriptor)?.st_size;
        let sealed = rustix::fs::fcntl_get_seals(&descriptor)?.contains(SealFlags::SHRINK);
        if magic != MAGIC || !sealed || usize::try_from(length) != Ok(Self::length(queues)) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self { descriptor, queues })
    }

    fn length(queues: usize) -> usize {
        PAGE + queues * (OUTBOUND + ReceiveBatch::LENGTH.next_multiple_of(PAGE))
    }

    /// The part of the packets that a queue's thread read from the device.
    pub(crate) fn outbound(&self, queue: usize) -> io::Result<Mapping> {
        self.part(queue, 0, Slots::LENGTH)
    }

    /// The part of the datagrams that a queue's thread received.
    pub(crate) fn inbound(&self, queue: usize) -> io::Result<Mapping> {
        self.part(queue, OUTBOUND, ReceiveBatch::LENGTH)
    }

    fn part(&self, queue: usize, offset: usize, length: usize) -> io::Result<Mapping> {
        if queue >= self.queues {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Mapping::of(&self.descriptor, Self::length(queue) + offset, length)
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Mapped memory of one thread. The process maps each part once, so nobody else writes to it.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: it owns its pages as a Vec owns its memory.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Memory that ends with the process.
    pub fn anonymous(length: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new pages at a place of the kernel's choice.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, access, MapFlags::PRIVATE)? };
        Self::at(start, length)
    }

    fn of(descriptor: &OwnedFd, offset: usize, length: usize) -> io::Result<Self> {
        let (access, offset) = (ProtFlags::READ | ProtFlags::WRITE, offset as u64);
        // SAFETY: new pages at a place of the kernel's choice; the file is sealed against becoming shorter than the mapping.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                access,
                MapFlags::SHARED,
                descriptor,
                offset,
            )?
        };
        Self::at(start, length)
    }

    fn at(start: *mut std::ffi::c_void, length: usize) -> io::Result<Self> {
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// All of it; zero where nobody has written yet.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped as long as `self` is there, initialised by the kernel, and only written to through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// The same, to be written to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }

    /// Where it begins: at a page.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and nobody borrows from it any more.
        unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length).ok() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_for_the_next_and_another_layout_is_not_taken() {
        let memory = Memory::new(2).unwrap();
        let mut first = memory.inbound(1).unwrap();
        first.bytes_mut()[..3].copy_from_slice(b"yes");
        drop(first);
        let copy = |memory: &Memory| memory.as_fd().try_clone_to_owned().unwrap();
        let next = Memory::adopt(copy(&memory), 2).unwrap();
        assert_eq!(&next.inbound(1).unwrap().bytes()[..3], b"yes");
        assert_eq!(&next.outbound(1).unwrap().bytes()[..3], [0; 3]);
        assert!(next.inbound(2).is_err());
        assert!(Memory::adopt(copy(&memory), 3).is_err());
        rustix::io::pwrite(&memory, b"flannel-udp-0", 0).unwrap();
        assert!(Memory::adopt(copy(&memory), 2).is_err());
    }
}
