//! Loads for benchmarks between two pods: a stream of UDP packets that loses none, and a ping-pong.
//!
//! `echo PORT` answers both. The stream is clocked by its receiver: at most WINDOW packets are under way, so that no queue on the way
//! overflows, and the rate is what the path carries without loss. Both ends take many packets a system call, so that it is the path that is
//! measured and not its ends; on the way each is a packet of its own, as nothing asks the kernel for trains.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};

/// Packets under way at the most: half of what the shortest queue on the way holds (500 packets of a TUN device).
const WINDOW: u64 = 256;
/// The receiver says how far it is at least this often.
const ACK_EVERY: u64 = 32;
/// Packets a system call at the most.
const BURST: usize = 32;
/// Room for each packet that is received.
const ROOM: usize = 2048;
/// Nothing for this long means that packets or the answer were lost.
const SILENCE: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["echo", port] => echo(port),
        ["stream", address, size, milliseconds] => stream(address, size, milliseconds),
        ["pingpong", address, count] => pingpong(address, count),
        ["segments", bytes, devices @ ..] => segments(bytes, devices),
        _ => Err(anyhow::anyhow!(
            "usage: net-load echo PORT | stream ADDRESS BYTES MILLISECONDS | pingpong ADDRESS COUNT | segments BYTES DEVICE…"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("net-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A packet begins with its kind and, in a stream, its number.
fn echo(port: &str) -> Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", port.parse::<u16>().context("bad port")?))?;
    println!("listening");
    let mut packets = Packets::new(ROOM, 0);
    let (mut received, mut told) = (0_u64, 0_u64);
    loop {
        let count = packets.receive(&socket)?;
        for index in 0..count {
            let (packet, from) = packets.get(index);
            match packet.first() {
                Some(b'p') => drop(socket.send_to(packet, from)),
                Some(b'0') => (received, told) = (0, 0),
                Some(_) => received += 1,
                None => {}
            }
            // What waits is counted before anything is said.
            if index + 1 == count && received - told >= ACK_EVERY {
                told = received;
                socket.send_to(&received.to_be_bytes(), from).ok();
            }
        }
    }
}

fn stream(address: &str, size: &str, milliseconds: &str) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address.parse::<SocketAddr>().context("bad address")?)?;
    let size = size.parse::<usize>().context("bad size")?.clamp(18, ROOM);
    let mut packets = Packets::new(size, b's');
    let time = Duration::from_millis(milliseconds.parse().context("bad time")?);
    socket.send(b"0")?;
    std::thread::sleep(Duration::from_millis(20));
    let (mut sent, mut acknowledged, mut lost) = (0_u64, 0_u64, 0_u64);
    let mut answer = [0; 8];
    let start = Instant::now();
    while start.elapsed() < time {
        while sent - acknowledged - lost <= WINDOW - BURST as u64 {
            sent += packets.send(&socket)? as u64;
        }
        socket.set_read_timeout(Some(SILENCE))?;
        match socket.recv(&mut answer) {
            Ok(8) => acknowledged = acknowledged.max(u64::from_be_bytes(answer)),
            Ok(_) => {}
            // Fewer than ACK_EVERY packets may be unacknowledged without a loss.
            Err(_) => lost = sent - acknowledged,
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} {}",
        acknowledged as f64 / seconds,
        lost.saturating_sub(ACK_EVERY)
    );
    Ok(())
}

/// [`BURST`] packets in memory that does not move, and what the kernel is told of them.
struct Packets {
    size: usize,
    bytes: Vec<u8>,
    _parts: Vec<libc::iovec>,
    addresses: Vec<libc::sockaddr_in>,
    messages: Vec<libc::mmsghdr>,
}

impl Packets {
    fn new(size: usize, fill: u8) -> Self {
        let mut bytes = vec![fill; BURST * size];
        let part = |packet: &mut [u8]| libc::iovec {
            iov_base: packet.as_mut_ptr().cast(),
            iov_len: packet.len(),
        };
        let mut parts: Vec<_> = bytes.chunks_exact_mut(size).map(part).collect();
        // SAFETY: every field is a number, for which zero bytes are valid.
        let addresses: Vec<libc::sockaddr_in> = vec![unsafe { std::mem::zeroed() }; BURST];
        let message = |part: &mut libc::iovec| {
            // SAFETY: every field is a number or a pointer, for which zero bytes are valid.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        };
        let messages = parts.iter_mut().map(message).collect();
        Self {
            size,
            bytes,
            _parts: parts,
            addresses,
            messages,
        }
    }

    /// Sends all of them to whom the socket is connected to: how many went.
    fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let (messages, count) = (self.messages.as_mut_ptr(), BURST as libc::c_uint);
        // SAFETY: the messages point to memory of `self`, which the kernel only reads.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages, count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Waits for one and takes what waits behind it: how many came.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for (message, address) in self.messages.iter_mut().zip(&mut self.addresses) {
            message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        }
        let (messages, count) = (self.messages.as_mut_ptr(), BURST as libc::c_uint);
        let flags = libc::MSG_WAITFORONE as _;
        // SAFETY: the messages point to memory of `self`, as long as they say, that nobody else uses meanwhile.
        let got = unsafe { libc::recvmmsg(socket.as_raw_fd(), messages, count, flags, std::ptr::null_mut()) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// One that came, and who sent it.
    fn get(&self, index: usize) -> (&[u8], SocketAddr) {
        let length = (self.messages[index].msg_len as usize).min(self.size);
        let address = self.addresses[index];
        let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
        let from = SocketAddr::from((ip, u16::from_be(address.sin_port)));
        (&self.bytes[index * self.size..][..length], from)
    }
}

fn pingpong(address: &str, count: &str) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address.parse::<SocketAddr>().context("bad address")?)?;
    socket.set_read_timeout(Some(SILENCE))?;
    let mut times = Vec::new();
    let mut buffer = [b'p'; 64];
    for _ in 0..count.parse::<u32>().context("bad count")? {
        let start = Instant::now();
        buffer.fill(b'p');
        socket.send(&buffer)?;
        if socket.recv(&mut buffer).is_ok() {
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100);
    let (Some(middle), Some(high)) = (at(50), at(99)) else {
        bail!("no answer from {address}")
    };
    println!("{} {}", middle.as_secs_f64() * 1e6, high.as_secs_f64() * 1e6);
    Ok(())
}

/// Sets the longest super-packets that devices send and receive (BIG TCP), for IPv4 too, which Debian 12's iproute2 cannot.
fn segments(bytes: &str, devices: &[&str]) -> Result<()> {
    /// linux/if_link.h: IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE
    const LIMITS: [u16; 4] = [41, 58, 63, 64];
    let bytes: u32 = bytes.parse().context("bad size")?;
    // Protocol 0 is NETLINK_ROUTE.
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    for device in devices {
        // struct ifinfomsg: no family, and no index because the name says it.
        let mut body = vec![0; 16];
        attribute(&mut body, libc::IFLA_IFNAME, format!("{device}\0").as_bytes());
        for limit in LIMITS {
            attribute(&mut body, limit, &bytes.to_ne_bytes());
        }
        let mut message = Vec::new();
        message.extend((16 + body.len() as u32).to_ne_bytes());
        message.extend(libc::RTM_SETLINK.to_ne_bytes());
        message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        rustix::net::send(&socket, &message, SendFlags::empty())?;
        let mut answer = [0; 4096];
        rustix::net::recv(&socket, &mut answer, RecvFlags::empty())?;
        // NLMSG_ERROR: behind the header the negative error, 0 for none.
        let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
        if error != 0 {
            let cause = io::Error::from_raw_os_error(-error);
            return Err(cause).with_context(|| format!("{device} takes no super-packets of {bytes} bytes"));
        }
    }
    Ok(())
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}
