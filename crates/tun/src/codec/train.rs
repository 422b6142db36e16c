//! Packets for one peer into trains: what UDP_SEGMENT sends in one call (udp(7), net/ipv4/udp.c udp_send_skb).

use std::ops::Range;

use crate::table::PeerIndex;

/// Packets of a train at the most (UDP_MAX_SEGMENTS in include/linux/udp.h, before 6.9).
pub const MOST: usize = 64;
/// Bytes of a train at the most: the longest UDP payload over IPv4.
pub const LONGEST: usize = 65_507;

/// One packet: new headers, if any, and bytes that are where they were.
#[derive(Debug, Clone)]
pub struct Piece<'a> {
    /// To whom.
    pub peer: PeerIndex,
    /// The outer TOS or traffic class.
    pub tos: u8,
    /// Where its headers are in the batch's new headers; empty when they are in `body`.
    pub headers: Range<usize>,
    /// The rest.
    pub body: &'a [u8],
}

impl Piece<'_> {
    fn length(&self) -> usize {
        self.headers.len() + self.body.len()
    }
}

/// Pieces that go out together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Train {
    /// To whom.
    pub peer: PeerIndex,
    /// The outer TOS or traffic class.
    pub tos: u8,
    /// Bytes of each packet but the last.
    pub segment: usize,
    /// Bytes in all.
    pub bytes: usize,
    /// Which pieces.
    pub pieces: Range<usize>,
}

/// Groups pieces. The order of what goes to one peer stays; peers are brought together.
pub fn couple(pieces: &mut [Piece<'_>], trains: &mut Vec<Train>) {
    trains.clear();
    // A stable sort: packets of one flow have one peer, and stay in order.
    if !pieces.is_sorted_by_key(|piece| piece.peer) {
        pieces.sort_by_key(|piece| piece.peer);
    }
    let mut open = false;
    for (index, piece) in pieces.iter().enumerate() {
        let length = piece.length();
        match trains.last_mut() {
            Some(train) if open && joins(train, piece) => {
                train.bytes += length;
                train.pieces.end = index + 1;
                // A shorter packet can only be the last.
                open = length == train.segment;
            }
            _ => {
                trains.push(Train {
                    peer: piece.peer,
                    tos: piece.tos,
                    segment: length,
                    bytes: length,
                    pieces: index..index + 1,
                });
                open = true;
            }
        }
    }
}

fn joins(train: &Train, piece: &Piece<'_>) -> bool {
    train.peer == piece.peer
        && train.tos == piece.tos
        && piece.length() <= train.segment
        && train.pieces.len() < MOST
        && train.bytes + piece.length() <= LONGEST
}
