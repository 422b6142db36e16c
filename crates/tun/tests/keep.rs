//! A holder and its clients, with pipes in the place of devices.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flannel_tun::keep::{self, Descriptors};

fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("flannel-tun-{}-{name}", std::process::id()))
}

fn start(path: &Path) -> std::thread::JoinHandle<()> {
    let path = path.to_owned();
    std::thread::spawn(move || keep::hold(&path).unwrap())
}

/// The holder may not listen yet.
fn patient<T>(mut call: impl FnMut() -> std::io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) if start.elapsed() > Duration::from_secs(10) => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn pipe() -> (File, OwnedFd) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    (File::from(read), write)
}

#[test]
fn what_is_kept_outlives_who_gave_it() {
    let path = place("outlives");
    let holder = start(&path);
    let (mut first, device) = pipe();
    let (mut second, socket) = pipe();
    patient(|| keep::keep(&path, &[device.as_fd()], &[socket.as_fd()], None));
    drop((device, socket));
    for _ in 0..2 {
        let Descriptors { devices, sockets, .. } = keep::take(&path).unwrap();
        assert_eq!((devices.len(), sockets.len()), (1, 1));
        File::from(devices.into_iter().next().unwrap())
            .write_all(b"d")
            .unwrap();
        File::from(sockets.into_iter().next().unwrap())
            .write_all(b"s")
            .unwrap();
    }
    keep::forget(&path).unwrap();
    holder.join().unwrap();
    let mut text = String::new();
    first.read_to_string(&mut text).unwrap();
    assert_eq!(text, "dd");
    text.clear();
    second.read_to_string(&mut text).unwrap();
    assert_eq!(text, "ss");
    assert!(keep::take(&path).is_err());
}

#[test]
fn new_descriptors_take_the_place_of_old_ones() {
    let path = place("replace");
    let holder = start(&path);
    let (mut first, old) = pipe();
    patient(|| keep::keep(&path, &[old.as_fd()], &[], None));
    let (_second, new) = pipe();
    let (_third, memory) = pipe();
    keep::keep(&path, &[], &[new.as_fd()], Some(memory.as_fd())).unwrap();
    drop(old);
    let mut text = String::new();
    // The holder closed its copy.
    first.read_to_string(&mut text).unwrap();
    let kept = keep::take(&path).unwrap();
    assert_eq!((kept.devices.len(), kept.sockets.len()), (0, 1));
    assert!(!kept.is_empty() && kept.memory.is_some());
    keep::forget(&path).unwrap();
    holder.join().unwrap();
}

#[test]
fn a_client_that_makes_no_sense_harms_nobody() {
    let path = place("nonsense");
    let holder = start(&path);
    let (_read, write) = pipe();
    patient(|| keep::keep(&path, &[write.as_fd()], &[], None));
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        None,
    )
    .unwrap();
    rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::send(&socket, b"xyz", rustix::net::SendFlags::NOSIGNAL).unwrap();
    drop(socket);
    assert_eq!(keep::take(&path).unwrap().devices.len(), 1);
    keep::forget(&path).unwrap();
    holder.join().unwrap();
}
