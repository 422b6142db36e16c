//! The few lines of HTTP that the lab needs to look at health probes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result};

use crate::clock::limit;

/// The status code and body of `GET path` from `address`, such as `192.168.50.11:9009`.
pub fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let within = limit(3);
    let target: SocketAddr = address
        .parse()
        .with_context(|| format!("bad address {address}"))?;
    let mut stream = TcpStream::connect_timeout(&target, within)
        .with_context(|| format!("cannot reach http://{address}"))?;
    stream.set_read_timeout(Some(within))?;
    // Not 1.1: its answers may come in chunks.
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("no answer from http://{address}{path}"))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("not HTTP: {answer}"))?;
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|c| c.parse().ok())
        .with_context(|| format!("not HTTP: {head}"))?;
    Ok((code, body.to_owned()))
}
