//! Many TCP connections that stay open and are used all the time, and an exact count of those that broke.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::clock::{eventually, limit};
use crate::command::Environment;
use crate::place::Place;
use crate::process::Process;
use crate::sandbox;

/// Time between two questions on one connection.
const GAP: Duration = Duration::from_millis(200);

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A server that answers every line with its name, as long as the client likes.
pub fn echo(place: &Place, name: &str, port: u16) -> Result<Process> {
    let program = format!("{}/lab-tool", sandbox::BINARIES);
    let argv = [program.as_str(), "echo", name, &port.to_string()];
    let mut process = place.spawn(&format!("echo-{name}-{port}"), &argv, &Environment::default())?;
    eventually(limit(5), &format!("the server {name}"), || {
        process.check_running()?;
        let listens = process.log_text()?.contains("listening");
        listens.then_some(()).context("it does not listen yet")
    })?;
    Ok(process)
}

/// What became of the connections.
#[derive(Debug, Clone)]
pub struct HeldReport {
    /// How many were opened.
    pub opened: u64,
    /// How many broke, or went without an answer for longer than the tool waits.
    pub broken: u64,
    /// How many answers came.
    pub answers: u64,
    /// Who answered, each name once.
    pub servers: Vec<String>,
}

/// Open connections.
#[derive(Debug)]
pub struct Held {
    process: Process,
    files: String,
}

impl Held {
    /// Opens `count` connections from `place` to `address` (`ip:port`) and waits until all are in use.
    pub fn open(place: &Place, address: &str, count: usize) -> Result<Self> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let files = format!("{}/held{number}", sandbox::SCRATCH);
        let program = format!("{}/lab-tool", sandbox::BINARIES);
        let argv = [program.as_str(), "hold", address, &count.to_string(), &files];
        let mut process = place.spawn(&format!("held{number}"), &argv, &Environment::default())?;
        eventually(limit(20), &format!("{count} connections to {address}"), || {
            process.check_running()?;
            ensure!(
                Path::new(&format!("{files}.open")).exists(),
                "not all are open yet"
            );
            Ok(())
        })?;
        Ok(Self { process, files })
    }

    /// Ends the use and counts.
    pub fn close(mut self) -> Result<HeldReport> {
        std::fs::write(format!("{}.stop", self.files), "")?;
        self.process.wait(limit(20))?;
        let text = std::fs::read_to_string(format!("{}.report", self.files))
            .with_context(|| format!("no report; {}", self.process.log_text().unwrap_or_default()))?;
        let report: serde_json::Value = serde_json::from_str(&text)?;
        let number = |name: &str| {
            report[name]
                .as_u64()
                .with_context(|| format!("no {name} in {report}"))
        };
        let servers = report["servers"].as_array().into_iter().flatten();
        Ok(HeldReport {
            opened: number("opened")?,
            broken: number("broken")?,
            answers: number("answers")?,
            servers: servers.filter_map(|s| s.as_str().map(str::to_owned)).collect(),
        })
    }
}

/// In the tool: serves lines until it is killed.
pub fn serve(name: &str, port: &str) -> Result<()> {
    let port: u16 = port.parse().context("bad port")?;
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    println!("listening");
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        std::thread::spawn(move || answer(&stream, &name).ok());
    }
    Ok(())
}

fn answer(stream: &TcpStream, name: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut out = stream;
    while let Some(line) = lines.next().transpose()? {
        writeln!(out, "{name} {line}")?;
    }
    Ok(())
}

struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    alive: bool,
}

impl Connection {
    fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, limit(3))?;
        stream.set_read_timeout(Some(limit(3)))?;
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self {
            stream,
            reader,
            alive: true,
        })
    }

    /// Who answered.
    fn ask(&mut self, number: usize) -> std::io::Result<String> {
        writeln!(self.stream, "{number}")?;
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.split(' ').next().unwrap_or_default().to_owned())
    }
}

/// In the tool: opens the connections, asks on each again and again until `FILES.stop` appears and once more then, and writes
/// `FILES.report`.
pub fn hold(address: &str, count: &str, files: &str) -> Result<()> {
    let address: SocketAddr = address.parse().context("bad address")?;
    let count: usize = count.parse().context("bad count")?;
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(Connection::open(address)?);
    }
    let (mut answers, mut rounds) = (0_u64, 0_usize);
    let mut servers = std::collections::BTreeSet::new();
    let mut ends = false;
    while !ends {
        ends = rounds > 0 && Path::new(&format!("{files}.stop")).exists();
        let next = Instant::now() + GAP;
        for connection in connections.iter_mut().filter(|c| c.alive) {
            match connection.ask(rounds) {
                Ok(server) => {
                    answers += 1;
                    servers.insert(server);
                }
                Err(error) => {
                    println!("round {rounds}: {error}");
                    connection.alive = false;
                }
            }
        }
        rounds += 1;
        if rounds == 1 {
            std::fs::write(format!("{files}.open"), "")?;
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let broken = connections.iter().filter(|c| !c.alive).count();
    let report =
        serde_json::json!({"opened": count, "broken": broken, "answers": answers, "servers": servers});
    std::fs::write(format!("{files}.report"), report.to_string())?;
    Ok(())
}
