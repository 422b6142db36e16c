//! From the peers to the TUN device.

#[cfg(test)]
mod crash;

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::codec::coalesce::{Coalescer, Group};
use crate::codec::header::Header;
use crate::counters::{Counters, DropReason};
use crate::device::Tun;
use crate::fair::{Shares, Strain};
use crate::forward;
use crate::memory::Mapping;
use crate::socket::{ReceiveBatch, Socket};
use crate::table::{PeerIndex, Table};

/// A packet of the batch that may go on: which datagram, where in it.
struct Admitted {
    datagram: usize,
    start: usize,
    header: Header,
}

/// A socket and the queue of the device into which its packets go.
pub struct Ingress {
    tun: Arc<dyn Tun>,
    socket: Arc<Socket>,
    counters: Arc<Counters>,
    batch: ReceiveBatch,
    shares: Shares,
    senders: Vec<Option<PeerIndex>>,
    admitted: Vec<Admitted>,
    headers: Vec<u8>,
    /// Bytes that the last pump had in hand.
    moved: usize,
}

impl Ingress {
    /// A pump that has not begun; what an earlier process left in `memory` goes first.
    pub fn new(tun: Arc<dyn Tun>, socket: Arc<Socket>, counters: Arc<Counters>, memory: Mapping) -> Self {
        Self {
            tun,
            socket,
            counters,
            batch: ReceiveBatch::new(memory),
            shares: Shares::default(),
            senders: Vec::with_capacity(ReceiveBatch::SLOTS),
            admitted: Vec::new(),
            headers: Vec::new(),
            moved: 0,
        }
    }

    /// Forwards what waits, at most one batch: whether there may be more.
    ///
    /// # Errors
    /// The socket's, and the device's once it is gone.
    pub fn pump(&mut self, table: &Table) -> io::Result<bool> {
        let (received, lost) = self.batch.receive(&self.socket)?;
        self.moved = self.batch.bytes();
        if received > 0 {
            // Asked only where more may wait.
            let waiting = self.batch.is_full();
            let strain = Strain {
                lost,
                filling: waiting && self.socket.is_filling(),
                waiting,
            };
            self.identify(strain, table);
            self.admit(table);
            self.write()?;
            self.batch.done();
        }
        Ok(self.batch.is_full())
    }

    /// Bytes that the last pump had in hand.
    pub fn moved(&self) -> usize {
        self.moved
    }

    fn identify(&mut self, strain: Strain, table: &Table) {
        self.senders.clear();
        self.senders.extend(
            self.batch
                .datagrams()
                .map(|(datagram, _)| table.sender(datagram.from)),
        );
        let counted = self.senders.iter().zip(self.batch.datagrams());
        self.shares.begin(
            strain,
            counted.filter_map(|(sender, (datagram, _))| {
                let packets = datagram.length.div_ceil(datagram.segment).max(1);
                Some(((*sender)?, packets as u32))
            }),
        );
    }

    fn admit(&mut self, table: &Table) {
        self.admitted.clear();
        for (index, (datagram, bytes)) in self.batch.datagrams_mut().enumerate() {
            let packets = datagram.length.div_ceil(datagram.segment).max(1);
            let Some(Some(sender)) = self.senders.get(index).copied() else {
                self.counters.dropped(DropReason::UnknownSender, packets as u64);
                continue;
            };
            for (part, packet) in bytes.chunks_mut(datagram.segment).enumerate() {
                if !self.shares.admit(sender) {
                    self.counters.dropped(DropReason::Overload, 1);
                    if let Some(peer) = table.get(sender) {
                        peer.keep_back();
                    }
                    continue;
                }
                match forward::inbound(packet, sender, datagram.tos, table) {
                    Ok(header) => self.admitted.push(Admitted {
                        datagram: index,
                        start: part * datagram.segment,
                        header,
                    }),
                    Err(reason) => self.counters.dropped(reason, 1),
                }
            }
            if datagram.length == 0 {
                self.counters.dropped(DropReason::Malformed, 1);
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let mut coalescer = Coalescer::new(self.tun.takes(), self.admitted.len());
        let mut admitted = self.admitted.iter().peekable();
        for (index, (_, bytes)) in self.batch.datagrams().enumerate() {
            while let Some(next) = admitted.next_if(|next| next.datagram == index) {
                coalescer.push(&bytes[next.start..next.start + next.header.total], &next.header);
            }
        }
        for group in coalescer.groups() {
            match write_group(&*self.tun, group, &mut self.headers) {
                Ok(bytes) => self.counters.received(group.count() as u64, bytes),
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => return Err(error),
                // The device may be down, or its memory used up; the next packet may do better.
                Err(_) => self
                    .counters
                    .dropped(DropReason::DeviceRefused, group.count() as u64),
            }
        }
        Ok(())
    }
}

fn write_group(tun: &dyn Tun, group: &Group<'_>, headers: &mut Vec<u8>) -> io::Result<u64> {
    let vnet = group.finish(headers);
    if let Some(packet) = group.alone_packet() {
        tun.send(&vnet, &[IoSlice::new(packet)])?;
        return Ok(packet.len() as u64);
    }
    let mut parts = Vec::with_capacity(group.payloads().len() + 1);
    parts.push(IoSlice::new(headers));
    parts.extend(group.payloads().iter().map(|payload| IoSlice::new(payload)));
    tun.send(&vnet, &parts)?;
    let payload: usize = group.payloads().iter().map(|payload| payload.len()).sum();
    Ok((headers.len() + payload) as u64)
}
