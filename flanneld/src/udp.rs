//! The udp backend's data path in the daemon: descriptors that outlive it, the engine's threads, and the peers that they know.
//!
//! The engine's threads never wait for anything here. The device's address, MTU and route are the reconciler's, as for every backend.

mod keeper;
mod opened;
mod report;
mod tally;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_model::{BackendSettings, IpSubnet, NodeReport, UdpReport};
use flannel_plan::backend::UdpPeer;
use flannel_tun::engine::Engine;
use flannel_tun::offloads::Offloads;
use flannel_tun::table::{Net, Own, PeerSpec, Table};
use tokio::sync::watch;

use crate::flags::Options;
use crate::overlay::Facts;
use crate::said::Said;
use keeper::Keeper;
use tally::DropLog;

pub use keeper::{HOLDER_COMMAND, HOLDER_SOCKET, hold};
pub use tally::Current;

/// flannel's name of the device.
pub const DEVICE: &str = "flannel0";
/// How often it is looked whether the device is still there.
const WATCH: Duration = Duration::from_secs(1);

/// What the data path follows from, beside the node's own subnets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpFacts {
    /// Where datagrams arrive and leave.
    pub listen: SocketAddr,
    /// All other nodes; one with pods of both families is there twice.
    pub peers: Vec<UdpPeer>,
}

/// Ends the holder in `folder`, and with it the device of a daemon that does not run.
pub fn forget(folder: &std::path::Path) {
    Keeper::new(folder.to_owned()).forget();
}

/// Starts the task; it runs until the facts' sender is gone. What it gives back is what keeps the data path from working: nothing, with
/// another backend. How the data path stands goes into what is `told` of the node.
pub fn start(
    backend: &BackendSettings,
    facts: watch::Receiver<Option<Arc<Facts>>>,
    options: &Options,
    counted: Current,
    told: watch::Sender<Option<NodeReport>>,
) -> watch::Receiver<Option<String>> {
    let keeper = Keeper::new(options.run_dir());
    if matches!(backend, BackendSettings::Udp(_)) {
        let (problems, receiver) = watch::channel(Some(format!("opening {DEVICE}")));
        tokio::spawn(run(
            facts,
            DataPath::new(keeper, options.udp_offloads, counted),
            problems,
            told,
        ));
        receiver
    } else {
        let (problems, receiver) = watch::channel(None);
        // An earlier run may have had this backend: its device goes with its descriptors.
        tokio::task::spawn_blocking(move || keeper.forget());
        // The daemon waits for changes as long as it runs.
        tokio::spawn(async move { problems.closed().await });
        receiver
    }
}

async fn run(
    mut facts: watch::Receiver<Option<Arc<Facts>>>,
    mut data_path: DataPath,
    problems: watch::Sender<Option<String>>,
    told: watch::Sender<Option<NodeReport>>,
) {
    let mut said = Said::default();
    loop {
        let now = facts.borrow_and_update().clone();
        if let Some(now) = now {
            let step = tokio::task::spawn_blocking(move || {
                let result = data_path.apply(&now);
                (data_path, result)
            });
            let result;
            (data_path, result) = match step.await {
                Ok(done) => done,
                Err(error) => {
                    tracing::error!(%error, "the udp data path ended early");
                    return;
                }
            };
            let report = data_path.report();
            told.send_if_modified(|told| told.as_mut().is_some_and(|told| replace(&mut told.udp, &report)));
            let problem = result.err().map(|error| format!("{error:#}"));
            tell(&mut said, problem.as_deref());
            problems.send_if_modified(|old| std::mem::replace(old, problem.clone()) != problem);
        }
        // The time-out looks after the device.
        if let Ok(Err(_)) = tokio::time::timeout(WATCH, facts.changed()).await {
            return;
        }
    }
}

fn replace(old: &mut Option<UdpReport>, new: &Option<UdpReport>) -> bool {
    let news = old != new;
    old.clone_from(new);
    news
}

fn tell(said: &mut Said, problem: Option<&str>) {
    match problem {
        Some(text) => {
            if said.is_news(text) {
                tracing::error!("{text}; trying again");
            }
        }
        None => {
            if said.clear() {
                tracing::info!("the udp data path works again");
            }
        }
    }
}

struct DataPath {
    keeper: Keeper,
    wanted: Offloads,
    running: Option<(SocketAddr, Engine)>,
    known: Option<(Own, Vec<PeerSpec>)>,
    counted: Current,
    drops: DropLog,
}

impl DataPath {
    fn new(keeper: Keeper, wanted: Offloads, counted: Current) -> Self {
        Self {
            keeper,
            wanted,
            running: None,
            known: None,
            counted,
            drops: DropLog::default(),
        }
    }

    fn apply(&mut self, all: &Facts) -> anyhow::Result<()> {
        let Some(facts) = &all.udp else { return Ok(()) };
        if let Some((listen, engine)) = &self.running {
            let broken = engine.broken();
            if let Some(reason) = &broken {
                tracing::warn!("the data path of {DEVICE} ended ({reason}); it is opened anew");
            }
            if broken.is_some() || *listen != facts.listen {
                self.running = None;
                self.known = None;
                self.keeper.forget();
            }
        }
        let wanted = (own(all), facts.peers.iter().map(spec).collect::<Vec<_>>());
        let news = self.known.as_ref() != Some(&wanted);
        match &self.running {
            Some((_, engine)) if news => engine.set_peers(wanted.0.clone(), &wanted.1),
            Some(_) => {}
            None => {
                let table = Table::new(wanted.0.clone(), &wanted.1, &Table::default());
                let engine = opened::open(&self.keeper, facts.listen, self.wanted, table)?;
                self.counted.set(engine.tally());
                self.running = Some((facts.listen, engine));
            }
        }
        if news {
            tracing::info!(subnets = wanted.1.len(), "the udp data path knows the peers");
            self.known = Some(wanted);
        }
        self.drops.look(&self.counted, Instant::now());
        Ok(())
    }

    /// How it stands; nothing while it is not open.
    fn report(&self) -> Option<UdpReport> {
        let (listen, engine) = self.running.as_ref()?;
        let peers = self.known.as_ref().map_or(&[][..], |(_, peers)| peers);
        Some(report::of(*listen, engine, peers))
    }
}

/// What is this node's own: its subnets, and the addresses of its device.
fn own(all: &Facts) -> Own {
    let mut own = Own::default();
    for overlay in all.overlays() {
        own.subnets.push(net(overlay.own_subnet));
        match overlay.own_subnet.network() {
            IpAddr::V4(address) => own.v4 = Some(address),
            IpAddr::V6(address) => own.v6 = Some(address),
        }
    }
    own
}

fn spec(peer: &UdpPeer) -> PeerSpec {
    PeerSpec {
        endpoint: peer.endpoint,
        subnets: vec![net(peer.subnet)],
        any_port: peer.any_port,
        ecn: peer.ecn,
    }
}

fn net(subnet: IpSubnet) -> Net {
    Net::new(subnet.network(), subnet.length())
}
