//! From the TUN device to the peers.

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
use crate::socket::{Outgoing, Socket, send_all};
use crate::table::Table;

/// Packets and super-packets that are read before anything is sent.
const BATCH: usize = 32;
/// Bytes that are read before anything is sent: more would only wait in our memory and leave the cache.
const BATCH_BYTES: usize = 256 << 10;
/// The longest that the device hands over.
const SLOT: usize = 65_536;

/// One queue of the device and the socket through which its packets leave.
pub struct Egress {
    tun: Arc<dyn Tun>,
    socket: Arc<Socket>,
    counters: Arc<Counters>,
    slots: Vec<Box<[u8]>>,
    read: Vec<(VnetHeader, usize)>,
    headers: Vec<u8>,
    trains: Vec<Train>,
    answer: Vec<u8>,
    bucket: Bucket,
    started: Instant,
}

impl Egress {
    /// A pump that has not begun.
    pub fn new(tun: Arc<dyn Tun>, socket: Arc<Socket>, counters: Arc<Counters>) -> Self {
        Self {
            tun,
            socket,
            counters,
            slots: (0..BATCH).map(|_| vec![0; SLOT].into_boxed_slice()).collect(),
            read: Vec::with_capacity(BATCH),
            headers: Vec::new(),
            trains: Vec::new(),
            answer: Vec::new(),
            bucket: Bucket::new(0),
            started: Instant::now(),
        }
    }

    /// Forwards what waits, at most one batch: whether there may be more.
    ///
    /// # Errors
    /// The device's, once it is gone.
    pub fn pump(&mut self, table: &Table) -> io::Result<bool> {
        let more = self.read_batch()?;
        if !self.read.is_empty() {
            let verdicts = self.judge(table);
            self.send(table, &verdicts);
        }
        Ok(more)
    }

    fn read_batch(&mut self) -> io::Result<bool> {
        self.read.clear();
        let mut bytes = 0;
        for slot in &mut self.slots {
            let Some((vnet, length)) = self.tun.receive(slot)? else {
                return Ok(false);
            };
            self.read.push((vnet, length));
            bytes += length;
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(true)
    }

    fn judge(&mut self, table: &Table) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(self.read.len());
        for index in 0..self.read.len() {
            let (vnet, length) = self.read[index];
            let verdict = forward::outbound(&mut self.slots[index][..length], &vnet, table);
            match verdict {
                Verdict::Send { .. } => {}
                Verdict::Answer {
                    problem,
                    header,
                    reason,
                } => {
                    self.counters.dropped(reason, 1);
                    self.tell_sender(index, problem, &header, table);
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
        let packet = &self.slots[index][..self.read[index].1];
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
        let mut pieces = Vec::with_capacity(verdicts.len());
        for ((verdict, slot), (vnet, _)) in verdicts.iter().zip(&self.slots).zip(&self.read) {
            let Verdict::Send { peer, tos, header } = *verdict else {
                continue;
            };
            if let Some(peer) = table.get(peer) {
                peer.touch();
            }
            let packet = &slot[..header.total];
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
            let Ok(split) = Split::new(vnet, packet, &header) else {
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
