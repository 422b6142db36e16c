//! Datagrams of any bytes, as somebody sends them who wants to forge what nodes send each other.

use std::io::{BufRead, stdin};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType, sendto, socket};

use crate::command::Environment;
use crate::place::Place;
use crate::sandbox;

/// One packet and how often it is sent.
#[derive(Debug, Clone)]
pub struct Datagram {
    /// To where: `udp 192.168.50.11:8472`, or `ipip 192.168.50.11` for what follows an outer IPv4 header.
    pub target: String,
    /// How often.
    pub count: u32,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// Sends all of them from a place.
pub fn send(from: &Place, datagrams: &[Datagram]) -> Result<()> {
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines = datagrams
        .iter()
        .map(|d| format!("{} {} {}\n", d.target, d.count, hexadecimal(&d.bytes)));
    let program = format!("{}/lab-tool", sandbox::BINARIES);
    let input: String = lines.collect();
    let sent = from.exec_with(
        &[&program, "datagrams"],
        input.as_bytes(),
        &Environment::default(),
    )?;
    sent.ok().map(drop)
}

/// Sends what the lines of the standard input ask for, in the form of [`send`].
pub fn send_all() -> Result<()> {
    for line in stdin().lock().lines() {
        let line = line?;
        let fields: Vec<&str> = line.split(' ').collect();
        let [transport, address, count, bytes] = fields[..] else {
            bail!("expected a transport, an address, a number and bytes: {line}");
        };
        let bytes = read_bytes(bytes)?;
        let count: u32 = count.parse().context("bad number")?;
        match transport {
            "udp" => over_udp(address.parse().context("bad address")?, count, &bytes)?,
            "ipip" => over_ipip(address.parse().context("bad address")?, count, &bytes)?,
            other => bail!("{other} is neither udp nor ipip"),
        }
    }
    Ok(())
}

fn read_bytes(text: &str) -> Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(std::str::from_utf8);
    pairs.map(|pair| Ok(u8::from_str_radix(pair?, 16)?)).collect()
}

/// So fast that they are soon sent, and so slow that no queue overflows.
fn pause() {
    std::thread::sleep(Duration::from_micros(300));
}

fn over_udp(address: SocketAddr, count: u32, bytes: &[u8]) -> Result<()> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_broadcast(address.is_ipv4())?;
    for _ in 0..count {
        socket.send_to(bytes, address)?;
        pause();
    }
    Ok(())
}

fn over_ipip(address: IpAddr, count: u32, bytes: &[u8]) -> Result<()> {
    /// IPPROTO_IPIP
    const IPIP: u32 = 4;
    let protocol = NonZeroU32::new(IPIP).map(Protocol::from_raw);
    let socket = socket(AddressFamily::INET, SocketType::RAW, protocol)?;
    for _ in 0..count {
        sendto(&socket, bytes, SendFlags::empty(), &SocketAddr::new(address, 0))?;
        pause();
    }
    Ok(())
}
