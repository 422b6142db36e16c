//! What passes an interface, every byte of it.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::clock::{eventually, limit};
use crate::command::Environment;
use crate::place::Place;
use crate::process::Process;
use crate::sandbox;

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    place: Place,
    process: Process,
    file: String,
}

/// The header of a pcap file and of each record (pcap-savefile(5)).
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
/// Ethernet, and IP without anything before it (LINKTYPE_ETHERNET, LINKTYPE_RAW).
const ETHERNET: u32 = 1;
const RAW: u32 = 101;

impl Capture {
    /// Of everything that matches, from when it returns.
    pub fn start(place: &Place, interface: &str, filter: &str) -> Result<Self> {
        Self::of(place, interface, filter, "0")
    }

    /// Of the beginning of every packet, which is enough to count them.
    pub fn headers(place: &Place, interface: &str) -> Result<Self> {
        Self::of(place, interface, "ip or ip6 or arp", "200")
    }

    fn of(place: &Place, interface: &str, filter: &str, bytes: &str) -> Result<Self> {
        let name = format!("{}-{interface}", place.name());
        let file = format!("{}/{name}.pcap", sandbox::SCRATCH);
        // KiB; with its 2 MiB a burst would go by unseen.
        let argv = [
            "tcpdump",
            "-B",
            "32768",
            "-i",
            interface,
            "-s",
            bytes,
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-w",
            &file,
            filter,
        ];
        let process = place.spawn(&format!("{name}-tcpdump"), &argv, &Environment::default())?;
        eventually(limit(10), "the capture", || {
            ensure!(process.log_text()?.contains("listening on"), "not yet");
            Ok(())
        })?;
        Ok(Self {
            place: place.clone(),
            process,
            file,
        })
    }

    /// Ends it and counts the packets that match, for each of the filters.
    pub fn count(mut self, filters: &[&str]) -> Result<Vec<usize>> {
        self.end()?;
        filters
            .iter()
            .map(|filter| {
                let lines = self
                    .place
                    .run(&["tcpdump", "-n", "-r", &self.file, filter])
                    .with_context(|| format!("reading the capture with {filter}"))?;
                Ok(lines.lines().count())
            })
            .collect()
    }

    fn end(&mut self) -> Result<()> {
        self.process.signal(Signal::INT)?;
        self.process.wait(limit(10)).map(drop)
    }

    /// Ends it: the IP packets, in order, nothing missing.
    pub fn stop(mut self) -> Result<Vec<Vec<u8>>> {
        self.end()?;
        let log = self.process.log_text()?;
        ensure!(
            log.contains("\n0 packets dropped by kernel"),
            "the capture is not whole: {log}"
        );
        packets(&std::fs::read(&self.file)?).context("the capture cannot be read")
    }
}

fn packets(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let before = match word(20)? {
        ETHERNET => 14,
        RAW => 0,
        _ => return None,
    };
    let (mut packets, mut at) = (Vec::new(), FILE_HEADER);
    while at < bytes.len() {
        let length = word(at + 8)? as usize;
        let start = at + RECORD_HEADER;
        packets.push(bytes.get(start..start + length)?.get(before..)?.to_vec());
        at = start + length;
    }
    Some(packets)
}
