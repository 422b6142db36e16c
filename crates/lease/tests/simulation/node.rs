//! One node: its lease, its peers, its watch, and what its disk keeps.

use std::time::Duration;

use flannel_lease::{
    Holding, Identity, LeaseMachine, Limits, Patience, Peer, PeerTable, PeerView, Settings, Standing,
};
use flannel_model::{Families, Ipv4Pool, Ipv6Pool, LeaseKey, NodeId};

use crate::store::Time;

pub const TTL: Duration = Duration::from_secs(60);
pub const PATIENCE: Patience = Patience {
    hold: Duration::from_secs(5),
    grace: Duration::from_secs(40),
};

pub type Pools = Families<Ipv4Pool, Ipv6Pool>;

/// Where a watch stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Watch {
    pub epoch: u32,
    pub revision: i64,
    pub synced: bool,
}

/// What survives a crash.
#[derive(Debug, Clone)]
pub struct Disk {
    holding: Holding,
    /// In true time; the file has it by the wall clock.
    valid_until: Option<Time>,
    peers: Vec<Peer>,
    watch: Watch,
}

#[derive(Debug, Clone)]
pub struct Node {
    pub identity: Identity,
    pub machine: LeaseMachine,
    pub table: PeerTable,
    pub watch: Watch,
    pub disk: Option<Disk>,
    /// Grows with each start; what belongs to an earlier life is dropped.
    pub life: u32,
    pub alive: bool,
    pub asleep_until: Time,
    pub cut_until: Time,
    /// Number of the operation whose answer counts.
    pub op: u64,
    pub op_open: bool,
    pub timer: Option<Time>,
    pub first_key: Option<LeaseKey>,
    pub calls: u64,
    boot: Time,
    pools: Pools,
}

impl Node {
    pub fn new(number: usize, address: u8, pools: Pools) -> Self {
        let identity = Identity {
            public_ip: std::net::Ipv4Addr::new(192, 168, 50, address),
            public_ipv6: pools
                .ipv6()
                .map(|_| std::net::Ipv6Addr::new(0xfd00, 50, 0, 0, 0, 0, 0, address.into())),
            node: Some(NodeId::new(number as u128 + 1)),
        };
        Self {
            identity,
            machine: machine(pools, identity),
            table: PeerTable::new(PATIENCE),
            watch: Watch::default(),
            disk: None,
            life: 0,
            alive: false,
            asleep_until: 0,
            cut_until: 0,
            op: 0,
            op_open: false,
            timer: None,
            first_key: None,
            calls: 0,
            boot: 0,
            pools,
        }
    }

    /// The node's own clock, which begins at its boot.
    pub fn clock(&self, now: Time) -> Duration {
        Duration::from_millis(now - self.boot)
    }

    pub fn true_time(&self, clock: Duration) -> Time {
        self.boot + u64::try_from(clock.as_millis()).unwrap()
    }

    /// What it publishes.
    pub fn value(&self) -> String {
        let last = self.identity.public_ip.octets()[3];
        let id = self.identity.node.unwrap();
        let number = id.to_string();
        let mac = format!("02:00:00:00:{}:{last:02x}", &number[30..]);
        let public_ipv6 = self
            .identity
            .public_ipv6
            .map_or("null".into(), |ip| format!("\"{ip}\""));
        format!(
            r#"{{"PublicIP":"{}","PublicIPv6":{public_ipv6},"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"NodeID":"{id}"}}"#,
            self.identity.public_ip
        )
    }

    /// A new process. Only the disk is left of the earlier one.
    pub fn start(&mut self, now: Time) {
        self.life += 1;
        self.alive = true;
        self.op_open = false;
        self.timer = None;
        self.watch = Watch::default();
        self.table = PeerTable::new(PATIENCE);
        self.machine = machine(self.pools, self.identity);
        let Some(disk) = self.disk.clone() else { return };
        let left = disk
            .valid_until
            .map(|until| Duration::from_millis(until.saturating_sub(now)));
        let holding = Holding {
            valid_until: left.map(|left| self.clock(now) + left),
            ..disk.holding
        };
        self.machine = machine(self.pools, self.identity).resuming(holding);
        self.table.preload(disk.peers);
        self.watch = Watch {
            synced: false,
            ..disk.watch
        };
    }

    pub fn reboot(&mut self, now: Time) {
        self.boot = now;
    }

    /// Writes the cache.
    pub fn save(&mut self) {
        let Some(holding) = self.machine.holding().copied() else {
            return;
        };
        self.disk = Some(Disk {
            holding,
            valid_until: holding.valid_until.map(|at| self.true_time(at)),
            peers: self.table.snapshot().cloned().collect(),
            watch: self.watch,
        });
    }

    /// Whether it would add a pod now.
    pub fn acts_as_owner(&self, now: Time) -> Option<LeaseKey> {
        let confirmed = self.alive && self.machine.standing(self.clock(now)) == Standing::Confirmed;
        self.machine.holding().filter(|_| confirmed).map(|held| held.key)
    }

    pub fn view(&self) -> Option<PeerView> {
        self.view_of(&self.table)
    }

    pub fn view_of(&self, table: &PeerTable) -> Option<PeerView> {
        let own = self.machine.holding()?.key;
        Some(table.view(&Limits {
            pools: &self.pools,
            own: &own,
            identity: &self.identity,
            stranded: &[],
            protected: &[],
        }))
    }
}

fn machine(pools: Pools, identity: Identity) -> LeaseMachine {
    let settings = Settings {
        ttl: TTL,
        renew_margin: Duration::from_secs(20),
        grace: PATIENCE.grace,
    };
    LeaseMachine::new(settings, pools, identity, None)
}
