//! From the TUN device to the peers.

#[cfg(test)]
mod crash;
mod slots;

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::codec::header::Header;
use crate::codec::icmp::{self, Bucket, Problem};
use crate::codec::split::Split;
use crate::codec::train::{self, Piece, Train};
use crate::codec::virtio::{Gso, VnetHeader};
use crate::counters::{Counters, DropReason};
use crate::device::Tun;
use crate::forward::{self, Verdict};
use crate::memory::Mapping;
use crate::socket::{Outgoing, Socket, send_all};
use crate::table::Table;
pub use slots::Slots;

/// About what a super-packet is cut into, so that the list of pieces need not grow step by step.
const COMMON_PIECE: usize = 1024;

/// One queue of the device and the socket through which its packets leave.
pub struct Egress {
    tun: Arc<dyn Tun>,
    socket: Arc<Socket>,
    counters: Arc<Counters>,
    slots: Slots,
    headers: Vec<u8>,
    trains: Vec<Train>,
    answer: Vec<u8>,
    bucket: Bucket,
    started: Instant,
    /// Bytes that the last pump had in hand.
    moved: usize,
}

impl Egress {
    /// A pump that has not begun; what an earlier process left in `memory` goes first.
    pub fn new(tun: Arc<dyn Tun>, socket: Arc<Socket>, counters: Arc<Counters>, memory: Mapping) -> Self {
        Self {
            tun,
            socket,
            counters,
            slots: Slots::new(memory),
            headers: Vec::new(),
            trains: Vec::new(),
            answer: Vec::new(),
            bucket: Bucket::new(0),
            started: Instant::now(),
            moved: 0,
        }
    }

    /// Forwards what waits, at most one batch: whether there may be more.
    ///
    /// # Errors
    /// The device's, once it is gone.
    pub fn pump(&mut self, table: &Table) -> io::Result<bool> {
        let more = self.slots.fill(&*self.tun)?;
        self.moved = self.slots.bytes();
        if self.slots.len() > 0 {
            let verdicts = self.judge(table);
            self.send(table, &verdicts);
            self.slots.done();
        }
        Ok(more)
    }

    /// Bytes that the last pump had in hand.
    pub fn moved(&self) -> usize {
        self.moved
    }

    fn judge(&mut self, table: &Table) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(self.slots.len());
        while let Some((vnet, packet)) = self.slots.get_mut(verdicts.len()) {
            let verdict = forward::outbound(packet, &vnet, table);
            match verdict {
                Verdict::Send { .. } => {}
                Verdict::Answer {
                    problem,
                    header,
                    reason,
                } => {
                    self.counters.dropped(reason, 1);
                    self.tell_sender(verdicts.len(), problem, &header, table);
                }
                Verdict::Malformed(_) => self.counters.dropped(DropReason::Malformed, 1),
            }
            verdicts.push(verdict);
        }
        verdicts
    }

    fn tell_sender(&mut self, index: usize, problem: Problem, header: &Header, table: &Table) {
        let from = if header.is_v4() {
            table.own().v4.map(IpAddr::V4)
        } else {
            table.own().v6.map(IpAddr::V6)
        };
        let Some(from) = from else { return };
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Some((_, packet)) = self.slots.get(index) else {
            return;
        };
        if icmp::build(problem, packet, header, from, &mut self.answer)
            && self.bucket.take(now)
            && self
                .tun
                .send(&VnetHeader::PLAIN, &[IoSlice::new(&self.answer)])
                .is_err()
        {
            self.counters.dropped(DropReason::DeviceRefused, 1);
        }
    }

    fn send(&mut self, table: &Table, verdicts: &[Verdict]) {
        self.headers.clear();
        let mut pieces = Vec::with_capacity(verdicts.len() + self.slots.bytes() / COMMON_PIECE);
        for (index, verdict) in verdicts.iter().enumerate() {
            let (Verdict::Send { peer, tos, header }, Some((vnet, packet))) =
                (*verdict, self.slots.get(index))
            else {
                continue;
            };
            if let Some(peer) = table.get(peer) {
                peer.touch();
            }
            let packet = &packet[..header.total];
            if vnet.gso == Gso::None {
                let headers = self.headers.len()..self.headers.len();
                pieces.push(Piece {
                    peer,
                    tos,
                    headers,
                    body: packet,
                });
                continue;
            }
            let Ok(split) = Split::new(&vnet, packet, &header) else {
                self.counters.dropped(DropReason::Malformed, 1);
                continue;
            };
            for part in 0..split.count() {
                let start = self.headers.len();
                let body = split.packet(part, &mut self.headers);
                let headers = start..self.headers.len();
                pieces.push(Piece {
                    peer,
                    tos,
                    headers,
                    body,
                });
            }
        }
        train::couple(&mut pieces, &mut self.trains);
        transmit(
            &self.socket,
            &self.counters,
            table,
            &self.headers,
            &pieces,
            &self.trains,
        );
    }
}

fn transmit(
    socket: &Socket,
    counters: &Counters,
    table: &Table,
    headers: &[u8],
    pieces: &[Piece<'_>],
    trains: &[Train],
) {
    let mut parts: Vec<IoSlice<'_>> = Vec::with_capacity(pieces.len() * 2);
    let mut ends = Vec::with_capacity(trains.len());
    for train in trains {
        for piece in &pieces[train.pieces.clone()] {
            let of_piece = [&headers[piece.headers.clone()], piece.body];
            parts.extend(
                of_piece
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .map(IoSlice::new),
            );
        }
        ends.push(parts.len());
    }
    let mut outgoing = Vec::with_capacity(trains.len());
    let (mut start, mut packets, mut bytes) = (0, 0, 0);
    for (train, end) in trains.iter().zip(ends) {
        let of_train = &parts[start..end];
        start = end;
        let Some(peer) = table.get(train.peer) else {
            continue;
        };
        packets += train.pieces.len() as u64;
        bytes += train.bytes as u64;
        outgoing.push(Outgoing {
            to: peer.endpoint,
            tos: train.tos,
            segment: train.segment,
            count: train.pieces.len(),
            parts: of_train,
        });
    }
    let mut lost = 0;
    send_all(socket, &outgoing, &mut |failed, _| lost += failed.count as u64);
    counters.dropped(DropReason::SendFailed, lost);
    counters.sent(packets.saturating_sub(lost), bytes);
}
