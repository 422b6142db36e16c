//! The figures of one pair in one round.

use std::collections::HashMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use flannel_lab::{eventually, limit, sandbox};
use serde_json::Value;

use super::pair::{Pair, SECOND};

/// Seconds of each TCP run, milliseconds of each UDP stream, exchanges of the ping-pong.
const TCP_SECONDS: u32 = 1;
const STREAM_MS: u32 = 500;
const EXCHANGES: &str = "4000";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Figure {
    /// TCP, one stream, bits a second.
    Tcp1,
    /// TCP, four streams, bits a second.
    Tcp4,
    /// TCP, one stream, with the host's congestion control, bits a second.
    TcpOfHost,
    /// UDP payloads of 64 bytes without loss, packets a second.
    Udp64,
    /// UDP payloads of 1400 bytes without loss, packets a second.
    Udp1400,
    /// Ping-pong, median, microseconds.
    Half,
    /// Ping-pong, 99th percentile, microseconds.
    High,
    /// Processor seconds of the whole machine for a gigabyte of the single TCP stream.
    Cpu,
    /// Of these, what the forwarders in user space used.
    OwnCpu,
    /// What the forwarders used for each packet of 64 bytes, microseconds.
    OwnCpu64,
}

impl Figure {
    /// What is looked at when one setting of a path is changed.
    pub const FEW: &[Self] = &[
        Self::Tcp1,
        Self::Udp64,
        Self::Udp1400,
        Self::Half,
        Self::High,
        Self::Cpu,
    ];

    /// In the order in which they are printed.
    pub const ALL: &[Self] = &[
        Self::Tcp1,
        Self::Tcp4,
        Self::TcpOfHost,
        Self::Udp64,
        Self::Udp1400,
        Self::Half,
        Self::High,
        Self::Cpu,
        Self::OwnCpu,
        Self::OwnCpu64,
    ];

    /// As it is printed, with its unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP 1 stream, Gbit/s",
            Self::Tcp4 => "TCP 4 streams, Gbit/s",
            Self::TcpOfHost => "TCP 1, host's CC, Gbit/s",
            Self::Udp64 => "UDP 64 B no loss, kpps",
            Self::Udp1400 => "UDP 1400 B no loss, kpps",
            Self::Half => "ping-pong p50, µs",
            Self::High => "ping-pong p99, µs",
            Self::Cpu => "CPU s per GB",
            Self::OwnCpu => "of it the forwarders'",
            Self::OwnCpu64 => "forwarders, µs per 64 B",
        }
    }

    /// Whether a smaller value is the better one.
    pub fn less_is_better(self) -> bool {
        matches!(self, Self::Half | Self::High | Self::Cpu) || self.is_of_forwarders()
    }

    /// Whether only paths with a forwarder in user space have it.
    pub fn is_of_forwarders(self) -> bool {
        matches!(self, Self::OwnCpu | Self::OwnCpu64)
    }

    /// A value in the unit of its name.
    pub fn text(self, value: Option<f64>) -> String {
        let Some(value) = value else { return "–".into() };
        match self {
            Self::Tcp1 | Self::Tcp4 | Self::TcpOfHost => format!("{:.2}", value / 1e9),
            Self::Udp64 | Self::Udp1400 => format!("{:.0}", value / 1e3),
            Self::Half | Self::High => format!("{value:.1}"),
            Self::Cpu | Self::OwnCpu | Self::OwnCpu64 => format!("{value:.2}"),
        }
    }
}

/// Every value of one pair, round by round.
#[derive(Debug, Default)]
pub struct Figures {
    rounds: Vec<HashMap<Figure, f64>>,
}

impl Figures {
    /// The middle one.
    pub fn median(&self, figure: Figure) -> Option<f64> {
        middle(self.rounds.iter().filter_map(|round| round.get(&figure).copied()))
    }

    /// How many times better these are than the rival's: the middle of the rounds' ratios, because the machine may be slower in one round
    /// than in another, for both.
    pub fn times(&self, rival: &Self, figure: Figure) -> Option<f64> {
        let ratio = |(ours, theirs): (&HashMap<_, _>, &HashMap<_, _>)| {
            let (ours, theirs): (f64, f64) = (*ours.get(&figure)?, *theirs.get(&figure)?);
            let times = if figure.less_is_better() {
                theirs / ours
            } else {
                ours / theirs
            };
            times.is_finite().then_some(times)
        };
        middle(self.rounds.iter().zip(&rival.rounds).filter_map(ratio))
    }
}

fn middle(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// What decides how fast TCP sends. Distributions leave it at the kernel's default, CUBIC; a host may have another, and what paces its
/// packets and what only counts losses meet the queues on the way differently. Pods have what their host has.
#[derive(Debug)]
pub struct Congestion {
    /// The kernel's default, unless the kernel was built without it.
    usual: Option<&'static str>,
    of_host: String,
}

impl Congestion {
    const USUAL: &str = "cubic";

    /// What this machine has.
    pub fn of_machine() -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/sys/net/ipv4/{name}");
            std::fs::read_to_string(&path).with_context(|| path)
        };
        let of_host = read("tcp_congestion_control")?.trim().to_owned();
        let available = read("tcp_available_congestion_control")?;
        let has = available.split_whitespace().any(|name| name == Self::USUAL);
        Ok(Self {
            usual: (has && of_host != Self::USUAL).then_some(Self::USUAL),
            of_host,
        })
    }
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.usual {
            Some(usual) => write!(f, "{usual}, and the host's: {}", self.of_host),
            None => write!(f, "{}, which is the host's", self.of_host),
        }
    }
}

/// Measures everything that is `wanted` once.
pub fn round(pair: &Pair, wanted: &[Figure], congestion: &Congestion, figures: &mut Figures) -> Result<()> {
    let mut round = HashMap::new();
    let (before, own_before) = (busy_seconds()?, own_seconds(pair)?);
    let (rate, bytes) = tcp(pair, 1, congestion.usual)?;
    let (busy, own) = (busy_seconds()? - before, own_seconds(pair)? - own_before);
    if !pair.forwarders.is_empty() {
        round.insert(Figure::OwnCpu, own / (bytes / 1e9));
    }
    round.insert(Figure::Tcp1, rate);
    round.insert(Figure::Cpu, busy / (bytes / 1e9));
    if wanted.contains(&Figure::Tcp4) {
        round.insert(Figure::Tcp4, tcp(pair, 4, congestion.usual)?.0);
    }
    if wanted.contains(&Figure::TcpOfHost) && congestion.usual.is_some() {
        round.insert(Figure::TcpOfHost, tcp(pair, 1, None)?.0);
    }
    for (figure, size) in [(Figure::Udp64, 64), (Figure::Udp1400, 1400)] {
        let own_before = own_seconds(pair)?;
        let (size, time) = (size.to_string(), STREAM_MS.to_string());
        let (rate, lost) = load(pair, &["stream", "ADDRESS", &size, &time])?;
        // The window fits every queue on the way; a loss is a fault of the path, and such a round does not count.
        if lost != 0.0 {
            println!("{}: {} lost {lost} packets", pair.path.name(), figure.name());
            continue;
        }
        round.insert(figure, rate);
        if figure == Figure::Udp64 && !pair.forwarders.is_empty() {
            let packets = rate * f64::from(STREAM_MS) / 1e3;
            round.insert(
                Figure::OwnCpu64,
                (own_seconds(pair)? - own_before) * 1e6 / packets,
            );
        }
    }
    let (half, high) = load(pair, &["pingpong", "ADDRESS", EXCHANGES])?;
    round.insert(Figure::Half, half);
    round.insert(Figure::High, high);
    figures.rounds.push(round);
    Ok(())
}

/// Bits a second and bytes of a TCP run, with the host's congestion control unless another is named.
fn tcp(pair: &Pair, streams: u32, congestion: Option<&str>) -> Result<(f64, f64)> {
    let (seconds, streams) = (TCP_SECONDS.to_string(), streams.to_string());
    let mut argv = vec!["iperf3", "-J", "-t", &seconds, "-P", &streams, "-c", SECOND];
    argv.extend(congestion.into_iter().flat_map(|name| ["-C", name]));
    // The server may be busy with the end of the run before.
    eventually(limit(20), "iperf3", || {
        let report: Value = pair.first.exec_within(&argv, 20)?.json()?;
        ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
        let sum = &report["end"]["sum_received"];
        let number = |name: &str| {
            sum[name]
                .as_f64()
                .with_context(|| format!("iperf3 named no {name}"))
        };
        Ok((number("bits_per_second")?, number("bytes")?))
    })
}

/// The two numbers that a load prints.
fn load(pair: &Pair, arguments: &[&str]) -> Result<(f64, f64)> {
    let program = format!("{}/net-load", sandbox::BINARIES);
    let address = format!("{SECOND}:7777");
    let arguments = arguments.iter().map(|argument| match *argument {
        "ADDRESS" => address.as_str(),
        other => other,
    });
    let argv: Vec<&str> = std::iter::once(program.as_str()).chain(arguments).collect();
    let output = pair.first.exec_within(&argv, 30)?.ok()?;
    let mut numbers = output.split_whitespace().map(str::parse::<f64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(second))) => Ok((first, second)),
        _ => anyhow::bail!("net-load printed {output:?}"),
    }
}

/// Seconds that the threads of the forwarders ran so far, the kernel's work for them included (the first number of schedstat, nanoseconds).
fn own_seconds(pair: &Pair) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for forwarder in &pair.forwarders {
        for task in std::fs::read_dir(format!("/proc/{}/task", forwarder.pid()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split_whitespace().next().context("an empty schedstat")?;
            nanoseconds += first.parse::<f64>()?;
        }
    }
    Ok(nanoseconds / 1e9)
}

/// Seconds that the processors were busy since boot, of all programs (proc(5), USER_HZ is 100).
fn busy_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let fields: Vec<f64> = text
        .lines()
        .next()
        .into_iter()
        .flat_map(|line| line.split_whitespace().skip(1))
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq
    let sum = [0, 1, 2, 5, 6]
        .iter()
        .filter_map(|at| fields.get(*at))
        .sum::<f64>();
    Ok(sum / 100.0)
}
