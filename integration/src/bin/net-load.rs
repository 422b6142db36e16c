//! Loads for benchmarks between two pods: a stream of UDP packets that loses none, and a ping-pong.
//!
//! `echo PORT` answers both. The stream is clocked by its receiver: at most WINDOW packets are under way, so that no queue on the way
//! overflows, and the rate is what the path carries without loss.

use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Packets under way at the most: half of what the shortest queue on the way holds (500 packets of a TUN device).
const WINDOW: u64 = 256;
/// The receiver says how far it is at least this often.
const ACK_EVERY: u64 = 32;
/// Nothing for this long means that packets or the answer were lost.
const SILENCE: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["echo", port] => echo(port),
        ["stream", address, size, milliseconds] => stream(address, size, milliseconds),
        ["pingpong", address, count] => pingpong(address, count),
        _ => Err(anyhow::anyhow!(
            "usage: net-load echo PORT | stream ADDRESS BYTES MILLISECONDS | pingpong ADDRESS COUNT"
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
    let mut buffer = [0; 2048];
    let (mut received, mut told) = (0_u64, 0_u64);
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        match buffer.first() {
            Some(b'p') => drop(socket.send_to(&buffer[..length], from)),
            Some(b'0') => (received, told) = (0, 0),
            Some(_) => {
                received += 1;
                // What waits is counted before anything is said.
                if received - told >= ACK_EVERY {
                    told = received;
                    socket.send_to(&received.to_be_bytes(), from).ok();
                }
            }
            None => {}
        }
    }
}

fn stream(address: &str, size: &str, milliseconds: &str) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address.parse::<SocketAddr>().context("bad address")?)?;
    let packet = vec![b's'; size.parse::<usize>().context("bad size")?.clamp(18, 65_000)];
    let time = Duration::from_millis(milliseconds.parse().context("bad time")?);
    socket.send(b"0")?;
    std::thread::sleep(Duration::from_millis(20));
    let (mut sent, mut acknowledged, mut lost) = (0_u64, 0_u64, 0_u64);
    let mut answer = [0; 8];
    let start = Instant::now();
    while start.elapsed() < time {
        while sent - acknowledged - lost < WINDOW {
            socket.send(&packet)?;
            sent += 1;
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
