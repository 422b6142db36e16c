//! What runs inside the lab's hosts and pods: a responder, a questioner and a steady sender.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::RecvFlags;

/// Answers that a late sender takes between two packets.
const AT_ONCE: usize = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["respond", name, port] => respond(name, port),
        ["ask", protocol, address, count, patience] => ask(protocol, address, count, patience),
        ["ping", address, rate, files] => ping(address, rate, files),
        ["echo", name, port] => flannel_lab::held::serve(name, port),
        ["hold", address, count, files] => flannel_lab::held::hold(address, count, files),
        ["supervise", pause, files, argv @ ..] if !argv.is_empty() => {
            flannel_lab::supervise::supervise(pause, files, argv)
        }
        ["datagrams"] => flannel_lab::datagrams::send_all(),
        ["train", address, segment, count] => train(address, segment, count),
        ["send", local, address, source, target] => send_once(local, address, source, target),
        ["flood", local, address, source, target, milliseconds] => {
            flannel_lab::flood::flood(local, address, source, target, milliseconds)
        }
        ["hostile", local, address, target, source, count] => hostile(local, address, target, source, count),
        _ => Err(anyhow::anyhow!(
            "usage: lab-tool respond NAME PORT | ask tcp|udp ADDRESS COUNT MILLISECONDS | ping ADDRESS RATE FILES | echo NAME PORT | \
             hold ADDRESS COUNT FILES | datagrams | train ADDRESS SEGMENT COUNT | send LOCAL ADDRESS SOURCE TARGET | hostile LOCAL ADDRESS TARGET SOURCE COUNT | \
             flood LOCAL ADDRESS SOURCE TARGET MILLISECONDS | \
             supervise MILLISECONDS FILES PROGRAM ARGUMENT…"
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-tool: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Answers every TCP connection and UDP packet with `NAME SOURCE`; a UDP answer also carries what was asked.
fn respond(name: &str, port: &str) -> Result<()> {
    let port: u16 = port.parse().context("bad port")?;
    // One socket for both families, unless the host has no IPv6.
    let tcp = TcpListener::bind(("::", port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", port)))
        .context("cannot listen on TCP")?;
    let udp = UdpSocket::bind(("::", port))
        .or_else(|_| UdpSocket::bind(("0.0.0.0", port)))
        .context("cannot listen on UDP")?;
    make_room(&udp)?;
    println!("listening");
    let own_name = name.to_owned();
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            answer_tcp(stream, &own_name).ok(); // the asker may have gone away
        }
    });
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = udp.recv_from(&mut buffer)?;
        let asked = String::from_utf8_lossy(&buffer[..length]);
        udp.send_to(
            format!("{name} {} {asked}", from.ip().to_canonical()).as_bytes(),
            from,
        )
        .ok();
    }
}

/// What was queued while a node's reader was away arrives in one burst: more than the kernel's default of 212,992 bytes, at 768 and more
/// a packet, has room for. It is the network's losses that are counted.
fn make_room(socket: &UdpSocket) -> Result<()> {
    rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, 4 << 20).context("no room for a burst")
}

fn answer_tcp(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    let from = stream.peer_addr()?;
    writeln!(stream, "{name} {}", from.ip().to_canonical())
}

/// Prints one line an attempt: the answer, or `error: ` and why.
fn ask(protocol: &str, address: &str, count: &str, patience: &str) -> Result<()> {
    let address: SocketAddr = address.parse().context("bad address")?;
    let patience = Duration::from_millis(patience.parse().context("bad number of milliseconds")?);
    for _ in 0..count.parse::<u32>().context("bad count")? {
        let answer = match protocol {
            "tcp" => ask_tcp(address, patience),
            "udp" => ask_udp(address, patience),
            other => bail!("protocol {other} is neither tcp nor udp"),
        };
        match answer {
            Ok(text) => println!("{}", text.trim()),
            Err(error) => println!("error: {}", describe(&error)),
        }
    }
    Ok(())
}

/// A blocking socket's time-out arrives as EAGAIN.
fn describe(error: &std::io::Error) -> String {
    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) {
        "timed out".into()
    } else {
        error.to_string()
    }
}

fn ask_tcp(address: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A new socket, and so a new source port, each time: a load balancer sees a new flow.
fn ask_udp(address: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let socket = socket_to(address)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A new UDP socket that sends to `address`.
fn socket_to(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    Ok(socket)
}

/// Packets that follow a mark at the least, however slow the machine is.
const BEHIND_MARK: usize = 50;

/// Sends numbered packets until `FILES.stop` appears, then waits for late answers and writes `FILES.report`.
fn ping(address: &str, rate: &str, files: &str) -> Result<()> {
    let socket = socket_to(address.parse().context("bad address")?)?;
    make_room(&socket)?;
    let gap = Duration::from_secs(1) / rate.parse::<u32>().context("bad rate")?.max(1);
    let (stop, mark) = (format!("{files}.stop"), format!("{files}.mark"));
    let mut answers = Answers::new();
    let start = Instant::now();
    loop {
        let number = answers.seen.len();
        if answers.mark.is_none() && Path::new(&mark).exists() {
            answers.mark = Some(number);
        }
        // a mark says nothing without packets behind it
        let enough = answers.mark.is_none_or(|mark| number > mark + BEHIND_MARK);
        if enough && Path::new(&stop).exists() {
            break;
        }
        // A refused or unroutable packet counts as lost; the stream goes on.
        socket.send(number.to_string().as_bytes()).ok();
        answers.seen.push(false);
        let next = start + gap * u32::try_from(number + 1)?;
        answers.take(&socket, next)?;
    }
    answers.take_late(&socket)?;
    std::fs::write(format!("{files}.report"), answers.report())?;
    Ok(())
}

/// Which packets came back, and the longest wait between two of them.
struct Answers {
    seen: Vec<bool>,
    last: Instant,
    silence: Duration,
    /// The first packet after the mark.
    mark: Option<usize>,
}

impl Answers {
    fn new() -> Self {
        Self {
            seen: Vec::new(),
            last: Instant::now(),
            silence: Duration::ZERO,
            mark: None,
        }
    }

    /// Takes answers until `until`; where that has passed, those that are there. Who is late with sending on a slow machine must not leave
    /// them in the queue, which is full after some 3,600 (8 MiB at 2,304 bytes a packet): they would count as the network's losses.
    fn take(&mut self, socket: &UdpSocket, until: Instant) -> Result<()> {
        let mut buffer = [0; 2048];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.take_waiting(socket);
                return Ok(());
            }
            socket.set_read_timeout(Some(left))?;
            if let Ok(length) = socket.recv(&mut buffer) {
                self.note(&String::from_utf8_lossy(&buffer[..length]));
            }
        }
    }

    fn take_waiting(&mut self, socket: &UdpSocket) {
        let mut buffer = [0; 2048];
        for _ in 0..AT_ONCE {
            match rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => self.note(&String::from_utf8_lossy(&buffer[..length])),
                Err(_) => return,
            }
        }
    }

    /// Takes late answers until none has come for a while.
    fn take_late(&mut self, socket: &UdpSocket) -> Result<()> {
        let end = Instant::now() + flannel_lab::limit(20);
        let mut grace = Instant::now() + flannel_lab::limit(1);
        let mut missing = self.missing();
        while missing > 0 && Instant::now() < grace.min(end) {
            self.take(socket, Instant::now() + Duration::from_millis(10))?;
            if self.missing() < missing {
                grace = Instant::now() + flannel_lab::limit(1);
            }
            missing = self.missing();
        }
        Ok(())
    }

    fn missing(&self) -> usize {
        self.seen.iter().filter(|seen| !**seen).count()
    }

    fn note(&mut self, answer: &str) {
        let number = answer.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok());
        if let Some(seen) = number.and_then(|n| self.seen.get_mut(n)) {
            *seen = true;
            self.silence = self.silence.max(self.last.elapsed());
            self.last = Instant::now();
        }
    }

    fn report(&self) -> String {
        let lost: Vec<usize> = self
            .seen
            .iter()
            .enumerate()
            .filter(|(_, seen)| !**seen)
            .map(|(n, _)| n)
            .collect();
        let silence = u64::try_from(self.silence.as_millis()).unwrap_or(u64::MAX);
        serde_json::json!({"sent": self.seen.len(), "lost": lost, "longest_silence_ms": silence, "mark": self.mark}).to_string()
    }
}

/// Sends `count` datagrams to a node's udp port: by turns random bytes, a right packet from `source` to `target`, and the same with
/// one byte changed.
fn hostile(local: &str, address: &str, target: &str, source: &str, count: &str) -> Result<()> {
    let socket = UdpSocket::bind(local).context("bad local address")?;
    socket.connect(address).context("bad address")?;
    let (target, source): (Ipv4Addr, Ipv4Addr) = (target.parse()?, source.parse()?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        // xorshift64 (Marsaglia, 2003): the same datagrams in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for number in 0..count.parse::<u32>().context("bad count")? {
        let mut packet = icmp_echo(source, target);
        match number % 3 {
            0 => {
                let length = usize::try_from(random() % 1400)?;
                packet = (0..length).map(|_| (random() >> 32) as u8).collect();
            }
            1 => {}
            _ => {
                let at = usize::try_from(random())? % packet.len();
                packet[at] ^= (random() | 1) as u8;
            }
        }
        // A refused datagram is no concern of the sender.
        socket.send(&packet).ok();
        if number % 100 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

/// One whole inner packet in a datagram, with any source and destination.
fn send_once(local: &str, address: &str, source: &str, target: &str) -> Result<()> {
    let socket = UdpSocket::bind(local).context("bad local address")?;
    let packet = icmp_echo(source.parse()?, target.parse()?);
    socket.send_to(&packet, address)?;
    Ok(())
}

/// Trains of UDP datagrams (UDP_SEGMENT): each call has twenty of `segment` bytes and a shorter one. Every four bytes are their own number.
fn train(address: &str, segment: &str, count: &str) -> Result<()> {
    let segment: u16 = segment.parse().context("bad length of a segment")?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    let value = i32::from(segment);
    // SAFETY: the descriptor is open; the kernel reads one int, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    ensure!(result == 0, "UDP_SEGMENT: {}", std::io::Error::last_os_error());
    let words = (usize::from(segment) * 20 + 100) / 4;
    let mut next = 0_u32;
    for _ in 0..count.parse::<u32>().context("bad count")? {
        let bytes: Vec<u8> = (0..words)
            .flat_map(|_| {
                next += 1;
                next.to_be_bytes()
            })
            .collect();
        socket.send(&bytes)?;
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A whole ICMP echo request.
fn icmp_echo(source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend(source.octets());
    packet.extend(target.octets());
    let sum = internet_checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    packet
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum + (sum >> 16)) as u16)
}
