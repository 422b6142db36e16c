//! The device, its sockets and the threads' memory: as an earlier run left them, or new.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use anyhow::Context;
use flannel_tun::device::{self, Tun};
use flannel_tun::engine::{self, Engine, Layout};
use flannel_tun::keep::Descriptors;
use flannel_tun::memory::Memory;
use flannel_tun::offloads::Offloads;
use flannel_tun::socket::Socket;
use flannel_tun::table::Table;

use super::DEVICE;
use super::keeper::Keeper;

/// Processors for each queue: pods need them too. On two processors two queues were no faster than one with TCP, and slower with small packets
/// (docs/benchmarks.md).
const CORES_A_QUEUE: usize = 2;
/// Queues at the most. More threads than that only share the one socket that a busy peer's datagrams arrive at.
const MOST_QUEUES: usize = 4;

/// Everything that the threads work on.
struct Opened {
    tuns: Vec<Box<dyn Tun>>,
    sockets: Vec<Socket>,
    memory: Option<Memory>,
}

/// Starts the data path where the last one ended, or from nothing.
pub fn open(keeper: &Keeper, listen: SocketAddr, wanted: Offloads, table: Table) -> anyhow::Result<Engine> {
    let inherited = Opened::adopt(keeper.inherited(), listen, wanted);
    let opened = if inherited.is_whole() {
        let (queues, sockets) = (inherited.tuns.len(), inherited.sockets.len());
        tracing::info!(
            queues,
            sockets,
            "{DEVICE} and its socket are taken over as they are"
        );
        if inherited.memory.is_some() {
            inherited
        } else {
            let opened = inherited.with_memory();
            opened.give_to(keeper);
            opened
        }
    } else {
        // Half of a data path is none; what nobody reads would swallow packets.
        drop(inherited);
        keeper.forget();
        let opened = Opened::new(listen, wanted)?.with_memory();
        opened.give_to(keeper);
        opened
    };
    let Opened {
        tuns,
        sockets,
        memory,
    } = opened;
    let engine = Engine::start(tuns, sockets, memory.as_ref(), Layout::Shared, table)
        .context("cannot start the threads of the data path")?;
    let (queues, offloads) = (engine.queues(), engine.offloads());
    tracing::info!(queues, %offloads, "{DEVICE} is open");
    Ok(engine)
}

impl Opened {
    /// What an earlier run left, as far as it is of use.
    fn adopt(inherited: Descriptors, listen: SocketAddr, wanted: Offloads) -> Self {
        let tuns = inherited
            .devices
            .into_iter()
            .filter_map(|descriptor| device::adopt(descriptor, DEVICE, wanted).ok());
        let sockets = inherited
            .sockets
            .into_iter()
            .filter_map(|descriptor| Socket::adopt(descriptor, wanted).ok())
            .filter(|socket| socket.local() == listen);
        let (tuns, sockets): (Vec<_>, Vec<_>) = (tuns.collect(), sockets.collect());
        let queues = engine::queues(tuns.len(), sockets.len());
        let memory = inherited
            .memory
            .and_then(|descriptor| Memory::adopt(descriptor, queues).ok());
        Self {
            tuns,
            sockets,
            memory,
        }
    }

    fn new(listen: SocketAddr, wanted: Offloads) -> anyhow::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let tuns = device::open(DEVICE, queues(cores), wanted)?;
        let sockets = Socket::bind(listen, tuns.len(), wanted).with_context(|| {
            format!("cannot bind UDP {listen}; is another flanneld or tunnel running on this port?")
        })?;
        if let Err(error) = device::lengthen_queues(DEVICE) {
            tracing::warn!(%error, "the queues of {DEVICE} stay short: a slow restart may lose packets");
        }
        Ok(Self {
            tuns,
            sockets,
            memory: None,
        })
    }

    fn is_whole(&self) -> bool {
        !self.tuns.is_empty() && !self.sockets.is_empty()
    }

    fn with_memory(self) -> Self {
        let memory = Memory::new(engine::queues(self.tuns.len(), self.sockets.len()));
        if let Err(error) = &memory {
            tracing::warn!(%error, "what the threads of {DEVICE} have in hand is lost in a crash");
        }
        Self {
            memory: memory.ok(),
            ..self
        }
    }

    /// A restart interrupts traffic without it, so it is worth a word.
    fn give_to(&self, keeper: &Keeper) {
        let devices: Vec<_> = self.tuns.iter().map(|tun| tun.as_fd()).collect();
        let sockets: Vec<_> = self.sockets.iter().map(AsFd::as_fd).collect();
        let memory = self.memory.as_ref().map(AsFd::as_fd);
        if let Err(error) = keeper.keep(&devices, &sockets, memory) {
            tracing::warn!(
                "nobody keeps the descriptors of {DEVICE} ({error:#}): a restart interrupts pods' traffic"
            );
        }
    }
}

fn queues(cores: usize) -> usize {
    (cores / CORES_A_QUEUE).clamp(1, MOST_QUEUES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_for_every_two_processors_and_four_at_the_most() {
        assert_eq!([1, 2, 3, 4, 7, 8, 64].map(queues), [1, 1, 1, 2, 3, 4, 4]);
    }
}
