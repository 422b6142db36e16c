//! What is read and not yet sent when the process ends is sent by the next one, with the bytes that it would have had.

use super::*;
use crate::fake::{self, Scene, scene};

const FROM: [u8; 4] = [10, 5, 1, 9];
const TO: [u8; 4] = [10, 5, 2, 9];

impl Scene {
    fn egress(&self) -> Egress {
        let memory = self.memory.outbound(0).unwrap();
        Egress::new(self.tun.clone(), Arc::clone(&self.socket), Arc::default(), memory)
    }

    /// A complete packet, and one whose checksum the kernel left to us.
    fn fill(&self) -> [Vec<u8>; 2] {
        let plain = fake::packet(FROM, TO, 9, 1);
        let whole = fake::packet(FROM, TO, 9, 2);
        let mut partial = whole.clone();
        let sum = fake::pseudo(&whole).folded();
        partial[26..28].copy_from_slice(&sum.to_be_bytes());
        let vnet = VnetHeader {
            needs_checksum: true,
            checksum_start: 20,
            checksum_offset: 6,
            ..VnetHeader::PLAIN
        };
        let mut waiting = self.tun.waiting.lock().unwrap();
        waiting.push_back((VnetHeader::PLAIN, plain));
        waiting.push_back((vnet, partial));
        [fake::packet(FROM, TO, 8, 1), fake::packet(FROM, TO, 8, 2)]
    }

    fn arrived(&self) -> Vec<u8> {
        let mut bytes = vec![0; 2000];
        let length = self.peer.recv(&mut bytes).unwrap();
        bytes.truncate(length);
        bytes
    }

    fn nothing_more_arrives(&self) {
        self.peer.set_nonblocking(true).unwrap();
        assert!(self.peer.recv(&mut [0; 10]).is_err());
        self.peer.set_nonblocking(false).unwrap();
    }
}

#[test]
fn killed_after_the_read() {
    let scene = scene();
    let expected = scene.fill();
    let mut first = scene.egress();
    first.slots.fill(&*scene.tun).unwrap();
    drop(first);
    scene.egress().pump(&scene.table).unwrap();
    assert_eq!([scene.arrived(), scene.arrived()], expected);
}

#[test]
fn killed_with_packets_that_were_made_ready() {
    let scene = scene();
    let expected = scene.fill();
    let mut first = scene.egress();
    first.slots.fill(&*scene.tun).unwrap();
    first.judge(&scene.table);
    drop(first);
    scene.egress().pump(&scene.table).unwrap();
    assert_eq!([scene.arrived(), scene.arrived()], expected);
}

#[test]
fn what_was_sent_is_not_sent_again() {
    let scene = scene();
    let expected = scene.fill();
    scene.egress().pump(&scene.table).unwrap();
    assert_eq!([scene.arrived(), scene.arrived()], expected);
    scene.egress().pump(&scene.table).unwrap();
    scene.nothing_more_arrives();
}

#[test]
fn memory_full_of_nonsense_is_no_packet() {
    let scene = scene();
    for byte in [0x11, 0x45, 0x60, 0xff] {
        scene.memory.outbound(0).unwrap().bytes_mut().fill(byte);
        let mut next = scene.egress();
        let expected = scene.fill();
        while next.pump(&scene.table).unwrap() {}
        assert_eq!([scene.arrived(), scene.arrived()], expected);
    }
}
