//! What is received and not yet passed on when the process ends is passed on by the next one.

use super::*;
use crate::fake::{self, Scene, scene};

impl Scene {
    fn ingress(&self) -> Ingress {
        let memory = self.memory.inbound(0).unwrap();
        Ingress::new(self.tun.clone(), Arc::clone(&self.socket), Arc::default(), memory)
    }

    /// Three packets in datagrams that do not merge.
    fn send(&self) -> Vec<Vec<u8>> {
        let packets: Vec<_> = [7, 3, 5]
            .map(|id| fake::packet([10, 5, 2, 9], [10, 5, 1, 9], 9, id))
            .into();
        for packet in &packets {
            self.peer.send(packet).unwrap();
        }
        packets
    }
}

#[test]
fn killed_after_the_read() {
    let scene = scene();
    let expected = scene.send();
    let mut first = scene.ingress();
    assert!(first.batch.receive(&scene.socket).unwrap().0 > 0);
    drop(first);
    let mut next = scene.ingress();
    next.pump(&scene.table).unwrap();
    next.pump(&scene.table).unwrap();
    assert_eq!(*scene.tun.written.lock().unwrap(), expected);
}

#[test]
fn what_was_passed_on_is_not_passed_on_again() {
    let scene = scene();
    let expected = scene.send();
    let mut first = scene.ingress();
    for _ in 0..3 {
        first.pump(&scene.table).unwrap();
    }
    drop(first);
    scene.ingress().pump(&scene.table).unwrap();
    assert_eq!(*scene.tun.written.lock().unwrap(), expected);
}

#[test]
fn memory_full_of_nonsense_is_no_packet() {
    let scene = scene();
    for byte in [0x02, 0x45, 0xff] {
        scene.memory.inbound(0).unwrap().bytes_mut().fill(byte);
        let mut next = scene.ingress();
        let expected = scene.send();
        for _ in 0..4 {
            next.pump(&scene.table).unwrap();
        }
        assert_eq!(std::mem::take(&mut *scene.tun.written.lock().unwrap()), expected);
    }
}
