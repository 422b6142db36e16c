//! The threads of the data path. They read a picture of the peers that is swapped as a whole, and wait for nobody.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::codec::coalesce::Takes;
use crate::counters::{Counters, Tally};
use crate::device::Tun;
use crate::egress::{Egress, Slots};
use crate::ingress::Ingress;
use crate::memory::{Mapping, Memory};
use crate::offloads::Offloads;
use crate::socket::{ReceiveBatch, Socket, path_mtu};
use crate::spin::Spin;
use crate::table::{Own, PeerSpec, Table};

/// The kernel's knowledge of paths is read this often. A path's MTU is forgotten after ten minutes (net.ipv4.route.mtu_expires).
const PATH_PERIOD: Duration = Duration::from_secs(1);

/// How the work is laid on threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One thread a queue, for both directions.
    Shared,
    /// Two threads a queue, one a direction.
    Separate,
}

#[derive(Debug)]
struct Shared {
    table: ArcSwap<Table>,
    stop: AtomicBool,
    broken: Mutex<Option<String>>,
    /// Readable once the threads are to end.
    wake: std::os::fd::OwnedFd,
}

/// The running data path. Dropping it ends the threads; the device and the socket are closed when nobody else holds them.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    counters: Vec<Arc<Counters>>,
    threads: Vec<JoinHandle<()>>,
    queues: usize,
    takes: Takes,
    sockets: Vec<Arc<Socket>>,
}

impl Engine {
    /// Starts the threads: each queue of the device is joined to a socket, in turn. There must be one of each. The peers must be known from
    /// the first packet on: what queued up while nobody read would be dropped otherwise. Without `memory` for [`queues`] of them, what the
    /// threads have in hand is lost when the process is killed.
    ///
    /// # Errors
    /// When a thread cannot be started, or there is no memory.
    pub fn start(
        tuns: Vec<Box<dyn Tun>>,
        sockets: Vec<Socket>,
        memory: Option<&Memory>,
        layout: Layout,
        table: Table,
    ) -> io::Result<Self> {
        let tuns: Vec<Arc<dyn Tun>> = tuns.into_iter().map(Arc::from).collect();
        let sockets: Vec<Arc<Socket>> = sockets.into_iter().map(Arc::new).collect();
        let local = sockets.first().ok_or(io::ErrorKind::InvalidInput)?.local();
        let mut engine = Self {
            shared: Arc::new(Shared {
                table: ArcSwap::from_pointee(table),
                stop: AtomicBool::new(false),
                broken: Mutex::new(None),
                wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            }),
            counters: Vec::new(),
            threads: Vec::new(),
            queues: tuns.len(),
            takes: tuns.first().ok_or(io::ErrorKind::InvalidInput)?.takes(),
            sockets: sockets.clone(),
        };
        for index in 0..queues(tuns.len(), sockets.len()) {
            let tun = &tuns[index % tuns.len().max(1)];
            let socket = &sockets[index % sockets.len()];
            let mut counters = || {
                let counters = Arc::new(Counters::default());
                engine.counters.push(Arc::clone(&counters));
                counters
            };
            let egress = match tuns.get(index) {
                Some(_) => {
                    let part = memory.map_or_else(
                        || Mapping::anonymous(Slots::LENGTH),
                        |memory| memory.outbound(index),
                    );
                    Some(Egress::new(
                        Arc::clone(tun),
                        Arc::clone(socket),
                        counters(),
                        part?,
                    ))
                }
                None => None,
            };
            let part = memory.map_or_else(
                || Mapping::anonymous(ReceiveBatch::LENGTH),
                |memory| memory.inbound(index),
            );
            let ingress = Ingress::new(Arc::clone(tun), Arc::clone(socket), counters(), part?);
            let workers = match layout {
                Layout::Shared => vec![Worker::new(egress, Some(ingress))],
                Layout::Separate => vec![Worker::new(egress, None), Worker::new(None, Some(ingress))],
            };
            engine.start_queue(index, workers, tun, socket)?;
        }
        let shared = Arc::clone(&engine.shared);
        engine.spawn("udp-paths".into(), move || learn_paths(&shared, local))?;
        Ok(engine)
    }

    fn start_queue(
        &mut self,
        index: usize,
        workers: Vec<Worker>,
        tun: &Arc<dyn Tun>,
        socket: &Arc<Socket>,
    ) -> io::Result<()> {
        for (part, mut worker) in workers.into_iter().enumerate() {
            let shared = Arc::clone(&self.shared);
            let (tun, socket) = (Arc::clone(tun), Arc::clone(socket));
            self.spawn(format!("udp-{index}-{part}"), move || {
                if let Err(error) = worker.run(&shared, &*tun, &socket) {
                    let mut broken = shared.broken.lock().unwrap_or_else(PoisonError::into_inner);
                    *broken = Some(error.to_string());
                }
            })?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads
            .push(std::thread::Builder::new().name(name).spawn(work)?);
        Ok(())
    }

    /// Replaces the picture of the peers.
    pub fn set_peers(&self, own: Own, specs: &[PeerSpec]) {
        let before = self.shared.table.load_full();
        self.shared.table.store(Arc::new(Table::new(own, specs, &before)));
    }

    /// What the threads count.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally::new(self.counters.clone())
    }

    /// Packets of each peer that were dropped because it sent more than its share, where there were any.
    #[must_use]
    pub fn kept_back(&self) -> Vec<(SocketAddr, u64)> {
        let table = self.shared.table.load();
        let counts = table.peers().iter().map(|peer| (peer.endpoint, peer.kept_back()));
        counts.filter(|(_, packets)| *packets > 0).collect()
    }

    /// What the kernel granted and is in use.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        Offloads {
            multi_queue: self.queues > 1,
            tso: self.takes.tcp,
            uso: self.takes.udp,
            udp_segment: self.sockets.iter().all(|socket| socket.has_trains()),
            udp_gro: self.sockets.iter().all(|socket| socket.receives_trains()),
        }
    }

    /// Queues of the device, each with a thread.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues
    }

    /// Why a thread ended, if one did: the device was deleted, most likely. The engine is to be started anew then.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        self.shared
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Queues of a data path with that many of the device and that many sockets.
#[must_use]
pub fn queues(devices: usize, sockets: usize) -> usize {
    devices.max(sockets)
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // An eventfd takes 8 bytes; it stays readable for every thread, as none reads it.
        rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes()).ok();
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

struct Worker {
    egress: Option<Egress>,
    ingress: Option<Ingress>,
    spin: Spin,
}

/// What there may be to do.
#[derive(Debug, Clone, Copy)]
struct Ready {
    tun: bool,
    socket: bool,
}

impl Ready {
    const BOTH: Self = Self {
        tun: true,
        socket: true,
    };
}

impl Worker {
    fn new(egress: Option<Egress>, ingress: Option<Ingress>) -> Self {
        Self {
            egress,
            ingress,
            spin: Spin::default(),
        }
    }

    fn run(&mut self, shared: &Shared, tun: &dyn Tun, socket: &Socket) -> io::Result<()> {
        let mut table = arc_swap::Cache::new(&shared.table);
        let mut ready = Ready::BOTH;
        let mut moved = 0;
        while !shared.stop.load(Ordering::Relaxed) {
            let table = table.load();
            let mut more = false;
            if ready.tun
                && let Some(egress) = &mut self.egress
            {
                more |= egress.pump(table)?;
                moved += egress.moved();
            }
            if ready.socket
                && let Some(ingress) = &mut self.ingress
            {
                more |= ingress.pump(table)?;
                moved += ingress.moved();
            }
            // A source that is busy all the time does not keep the other from its turn. One that was drained is looked at again only
            // once the kernel says that it is ready.
            ready = if more {
                Ready::BOTH
            } else {
                self.wait(shared, tun, socket, std::mem::take(&mut moved))?
            };
        }
        Ok(())
    }

    fn wait(&mut self, shared: &Shared, tun: &dyn Tun, socket: &Socket, moved: usize) -> io::Result<Ready> {
        // What is another thread's is not waited for.
        let wanted = |ours: bool| if ours { PollFlags::IN } else { PollFlags::empty() };
        let mut sources = [
            PollFd::new(&shared.wake, PollFlags::IN),
            PollFd::from_borrowed_fd(tun.as_fd(), wanted(self.egress.is_some())),
            PollFd::new(socket, wanted(self.ingress.is_some())),
        ];
        self.spin.wait(&mut sources, moved)?;
        let [_, tun, socket] = &sources;
        Ok(Ready {
            tun: !tun.revents().is_empty(),
            socket: !socket.revents().is_empty(),
        })
    }
}

/// Asks the kernel what it learned of the paths that are in use: routers' "fragmentation needed" reach the kernel, not us.
fn learn_paths(shared: &Shared, local: SocketAddr) {
    let period = rustix::time::Timespec::try_from(PATH_PERIOD).ok();
    while !shared.stop.load(Ordering::Relaxed) {
        let table = shared.table.load();
        for peer in table.peers().iter().filter(|peer| peer.take_in_use()) {
            if let Ok(mtu) = path_mtu(local, peer.endpoint) {
                peer.learn_path_mtu(mtu);
            }
        }
        drop(table);
        poll(&mut [PollFd::new(&shared.wake, PollFlags::IN)], period.as_ref()).ok();
    }
}
