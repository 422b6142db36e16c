//! The course of one history.

mod checks;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};

use flannel_lease::{ClaimOutcome, Event, Op, Situation, Standing, Touched, Useless};
use flannel_model::NetworkConfig;

use crate::faults::{Fault, Kind};
use crate::mirror::Mirror;
use crate::node::{Node, Pools};
use crate::rng::Rng;
use crate::store::{Change, Store, Time};

/// Faults begin within this time.
const TROUBLE: Time = 400_000;
/// After the last of them everything is repaired; a lease's lifetime, the grace and a while later all must be well.
const SETTLE: Time = 220_000;
/// The deadline of a call.
const DEADLINE: Time = 5_000;
const DAY: Time = 86_400_000;

/// How long a calm history is.
pub enum Calm {
    Day,
}

/// What a history may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// A lease expired, and its subnet went to another node.
    Taken,
    /// The answer to a claim that had been given up came late, of a node that had been cut off.
    LateAnswer,
    /// A claim succeeded, and nobody ever heard of it.
    LostAnswer,
    /// A backup took the store's place.
    Restored,
    /// The store was emptied.
    Wiped,
    /// A node had not seen what was compacted.
    Compacted,
    /// Two nodes with one address.
    SharedAddress,
    /// A node let go what an older record had a part of.
    Younger,
}

/// What happens next.
#[derive(Debug, Clone)]
enum What {
    Arrive {
        node: usize,
        life: u32,
        op: u64,
        call: Box<Op>,
    },
    Answer {
        node: usize,
        life: u32,
        op: u64,
        event: Event,
    },
    Timer {
        node: usize,
        life: u32,
    },
    Watch {
        node: usize,
        life: u32,
    },
    Start {
        node: usize,
    },
    Fault(Box<Fault>),
    StoreStarts,
    Repair,
}

pub struct World {
    kind: Kind,
    rng: Rng,
    now: Time,
    end: Time,
    store: Store,
    nodes: Vec<Node>,
    pools: Pools,
    queue: BTreeMap<(Time, u64), What>,
    sequence: u64,
    slow_until: Time,
    lossy_until: Time,
    strangers: i64,
    forged: u32,
    claims: u64,
    digest: u64,
    tell: bool,
    /// What happened that not every history has.
    found: BTreeSet<Found>,
    /// A real etcd to which everything is done as well.
    etcd: Option<Mirror>,
}

impl World {
    pub fn new(seed: u64, tell: bool) -> Self {
        Self::of_kind(seed, Kind::of(seed), TROUBLE + SETTLE, tell)
    }

    pub fn calm(seed: u64, length: Calm) -> Self {
        let Calm::Day = length;
        Self::of_kind(seed, Kind::Calm, DAY, false)
    }

    fn of_kind(seed: u64, kind: Kind, end: Time, tell: bool) -> Self {
        let mut rng = Rng::new(seed);
        // /27 has seven subnets of /30 to hand out, /28 three: there some node may find none
        let small = rng.chance(25) && kind != Kind::Calm;
        // and as many of IPv6, of which each node picks one by itself
        let config = match (small, rng.chance(30)) {
            (true, false) => r#"{"Network":"10.5.0.0/28"}"#,
            (false, false) => r#"{"Network":"10.5.0.0/27","SubnetLen":30}"#,
            (true, true) => r#"{"Network":"10.5.0.0/28","EnableIPv6":true,"IPv6Network":"fd00:5::/62"}"#,
            (false, true) => {
                r#"{"Network":"10.5.0.0/27","SubnetLen":30,"EnableIPv6":true,"IPv6Network":"fd00:5::/61"}"#
            }
        };
        let pools = NetworkConfig::parse(config.as_bytes()).unwrap().pools;
        let count = usize::try_from(rng.range(2, 5)).unwrap();
        // sometimes two nodes have one address, as machines behind the same NAT do
        let shared = rng.chance(20);
        let address = |n: usize| {
            if shared && n == 1 {
                11
            } else {
                11 + u8::try_from(n).unwrap()
            }
        };
        let nodes = (0..count).map(|n| Node::new(n, address(n), pools)).collect();
        let mut world = Self {
            kind,
            now: 0,
            end,
            store: Store::new(),
            nodes,
            pools,
            queue: BTreeMap::new(),
            sequence: 0,
            slow_until: 0,
            lossy_until: 0,
            strangers: 0,
            forged: 0,
            claims: 0,
            digest: seed,
            tell,
            rng,
            found: shared.then_some(Found::SharedAddress).into_iter().collect(),
            etcd: None,
        };
        world.store.keep_deeds(true);
        world.plan(count);
        world
    }

    fn plan(&mut self, count: usize) {
        if self.rng.chance(20) {
            let value = r#"{"PublicIP":"192.168.50.11"}"#;
            let key = format!("{}-30", self.pools.ipv4().unwrap().subnet_max.network());
            self.store.put_by_others(&key, value);
        }
        for node in 0..count {
            let at = if self.rng.chance(50) {
                0
            } else {
                self.rng.range(0, 5_000)
            };
            self.at(at, What::Start { node });
        }
        for (at, fault) in self.kind.plan(&mut self.rng, count, TROUBLE) {
            self.at(at, What::Fault(Box::new(fault)));
        }
        if self.kind != Kind::Calm {
            self.at(TROUBLE, What::Repair);
        }
    }

    #[must_use]
    pub fn without_fences(mut self) -> Self {
        self.store.fences = false;
        self
    }

    /// Does everything to a real etcd as well, whose answers the nodes get.
    #[must_use]
    pub fn on(mut self, etcd: Mirror) -> Self {
        self.etcd = Some(etcd);
        self
    }

    /// The real etcd, when the history is over.
    pub fn into_etcd(self) -> Option<Mirror> {
        self.etcd
    }

    /// What it held that not every history holds.
    pub fn found(&self) -> &BTreeSet<Found> {
        &self.found
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    pub fn claims(&self) -> u64 {
        self.claims
    }

    pub fn nodes(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// Runs it to its end.
    pub fn run(&mut self) -> Result<(), String> {
        if self.etcd.is_none() {
            self.store.keep_deeds(false);
        }
        while let Some(((at, _), what)) = self.queue.pop_first() {
            if at > self.end {
                break;
            }
            self.now = at;
            self.store.expire(at);
            self.step(what)
                .and_then(|()| self.mirror())
                .map_err(|problem| format!("at {} ms: {problem}", self.now))?;
            self.one_owner()?;
        }
        self.now = self.end;
        self.in_the_end()?;
        match &mut self.etcd {
            Some(etcd) => etcd.is_as(&self.store),
            None => Ok(()),
        }
    }

    /// Does to the real etcd what was done to the store.
    fn mirror(&mut self) -> Result<(), String> {
        let Some(etcd) = &mut self.etcd else { return Ok(()) };
        for deed in self.store.take_deeds() {
            etcd.repeat(&deed)?;
        }
        Ok(())
    }

    fn at(&mut self, time: Time, what: What) {
        self.sequence += 1;
        self.queue.insert((time, self.sequence), what);
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.tell {
            println!("{:>9} {}", self.now, text());
        }
    }

    fn step(&mut self, what: What) -> Result<(), String> {
        match what {
            What::Start { node } => self.start(node),
            What::Arrive { node, life, op, call } => return self.arrive(node, life, op, &call),
            What::Answer {
                node,
                life,
                op,
                event,
            } => self.answer(node, life, op, event),
            What::Timer { node, life } => {
                let (timer, now) = (self.nodes[node].timer, self.now);
                // One that an earlier one replaced is not due.
                if timer.is_some_and(|at| at <= now)
                    && self.is_awake(node, life, || What::Timer { node, life })
                {
                    self.nodes[node].timer = None;
                    self.hand(node, Event::Timer);
                }
            }
            What::Watch { node, life } => {
                if self.is_awake(node, life, || What::Watch { node, life }) {
                    self.mirror()?;
                    return self.watch(node);
                }
            }
            What::Fault(fault) => self.trouble(&fault),
            What::StoreStarts => {
                if !self.store.up {
                    self.say(|| "the store is back".into());
                    self.store.start(self.now);
                }
            }
            What::Repair => self.repair(),
        }
        Ok(())
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].alive {
            return;
        }
        self.nodes[node].start(self.now);
        self.say(|| format!("node {node} starts"));
        self.hand(node, Event::Start);
        let life = self.nodes[node].life;
        self.at(self.now, What::Watch { node, life });
    }

    /// Whether the node of that life is there to take it; a sleeping one takes it when it wakes.
    fn is_awake(&mut self, node: usize, life: u32, later: impl FnOnce() -> What) -> bool {
        let (alive, until) = {
            let node = &self.nodes[node];
            (node.alive && node.life == life, node.asleep_until)
        };
        if alive && until > self.now {
            self.at(until, later());
            return false;
        }
        alive
    }

    fn reaches_store(&self, node: usize) -> bool {
        self.store.up && self.nodes[node].cut_until <= self.now
    }

    /// Hands an event to a node's machine and begins what it asks for.
    fn hand(&mut self, node: usize, event: Event) {
        let (now, random) = (self.now, self.rng.bits());
        self.say(|| format!("node {node} ← {}", brief(&event)));
        self.digest = (self.digest ^ now ^ node as u64).wrapping_mul(0x0100_0000_01b3);
        let it = &mut self.nodes[node];
        let clock = it.clock(now);
        let op = it.machine.handle(event, clock, random);
        if it.first_key.is_none() && it.machine.situation() == Situation::Held {
            it.first_key = it.machine.holding().map(|held| held.key);
        }
        it.save();
        let taken = matches!(it.machine.standing(clock), Standing::Taken(_));
        if taken && self.kind == Kind::Rough {
            self.found.insert(Found::Taken);
        }
        let wake = it.machine.wake_at(clock).map(|at| it.true_time(at));
        let (life, timer) = (it.life, it.timer);
        if let Some(op) = op {
            self.begin(node, op);
        }
        if let Some(wake) = wake.filter(|wake| timer.is_none_or(|timer| *wake < timer || timer <= now)) {
            self.nodes[node].timer = Some(wake);
            self.at(wake.max(now), What::Timer { node, life });
        }
    }

    fn begin(&mut self, node: usize, call: Op) {
        let slow = self.now < self.slow_until;
        let delay = if slow {
            self.rng.range(500, 9_000)
        } else {
            self.rng.range(1, 80)
        };
        let refused = !self.reaches_store(node) && self.rng.chance(70);
        self.say(|| format!("node {node} → {}", brief_op(&call)));
        let younger = matches!(
            call,
            Op::Drop {
                why: Useless::Younger,
                ..
            }
        );
        self.found.extend(younger.then_some(Found::Younger));
        let it = &mut self.nodes[node];
        it.op += 1;
        it.op_open = true;
        it.calls += 1;
        let (life, op) = (it.life, it.op);
        let failed = What::Answer {
            node,
            life,
            op,
            event: Event::Failed,
        };
        if refused {
            self.at(self.now + 2, failed);
            return;
        }
        self.at(self.now + DEADLINE, failed);
        let call = Box::new(call);
        self.at(self.now + delay, What::Arrive { node, life, op, call });
    }

    /// A call that reached the store has its effect, whether or not anybody waits for it any more.
    fn arrive(&mut self, node: usize, life: u32, op: u64, call: &Op) -> Result<(), String> {
        if !self.reaches_store(node) {
            return Ok(());
        }
        let (identity, value) = (self.nodes[node].identity, self.nodes[node].value());
        if matches!(call, Op::Claim { .. }) {
            self.claims += 1;
        }
        self.mirror()?;
        let mut event = self.store.carry_out(call, &identity, &value, self.now)?;
        self.mirror()?;
        if let Some(etcd) = &mut self.etcd {
            event = etcd.carry_out(call, &value, event)?;
        }
        let lost = self.rng.chance(if self.now < self.lossy_until { 33 } else { 1 });
        if lost && won(&event) {
            self.found.insert(Found::LostAnswer);
        }
        if !lost {
            let delay = self.rng.range(1, 80);
            self.at(
                self.now + delay,
                What::Answer {
                    node,
                    life,
                    op,
                    event,
                },
            );
        }
        Ok(())
    }

    fn answer(&mut self, node: usize, life: u32, op: u64, event: Event) {
        let resend = event.clone();
        let again = || What::Answer {
            node,
            life,
            op,
            event: resend,
        };
        if !self.is_awake(node, life, again) {
            return;
        }
        let failed = matches!(event, Event::Failed);
        let it = &mut self.nodes[node];
        let wanted = it.op_open && it.op == op;
        if !wanted && won(&event) {
            self.found.insert(Found::LateAnswer);
        }
        if !wanted || it.cut_until > self.now && !failed {
            return;
        }
        it.op_open = false;
        self.hand(node, event);
    }

    /// The node looks at its watch: what the store has to say, and what time has done to its peers.
    fn watch(&mut self, node: usize) -> Result<(), String> {
        let clock = self.nodes[node].clock(self.now);
        self.nodes[node].table.settle(clock);
        if self.reaches_store(node) {
            self.hear(node)?;
        }
        let pause = if self.kind == Kind::Calm {
            60_000
        } else {
            self.rng.range(100, 900)
        };
        let life = self.nodes[node].life;
        self.at(self.now + pause, What::Watch { node, life });
        Ok(())
    }

    fn hear(&mut self, node: usize) -> Result<(), String> {
        let it = &mut self.nodes[node];
        let clock = it.clock(self.now);
        let first = it.watch.revision == 0;
        let back = !first && it.watch.epoch != self.store.epoch;
        let complete = it.watch.synced && !back && it.watch.revision >= self.store.compacted;
        if let Some(etcd) = &mut self.etcd {
            match complete {
                true => etcd.told(&self.store)?,
                false => etcd.lists(&self.store)?,
            }
        }
        if it.watch.synced && !back && !complete {
            self.found.insert(Found::Compacted);
            if let Some(etcd) = &mut self.etcd {
                etcd.has_no_history_from(it.watch.revision + 1, &self.store)?;
            }
        }
        let mut freed = false;
        if back {
            it.table.distrust(clock);
        }
        if complete {
            let seen = it.watch.revision;
            let from = self
                .store
                .history
                .partition_point(|change| change.revision() <= seen);
            for change in &self.store.history[from..] {
                match change {
                    Change::Put(record) => drop(it.table.put(record)),
                    Change::Delete { key, revision } => {
                        it.table.delete(key, *revision, clock);
                        freed = true;
                    }
                }
            }
        } else {
            it.table.reset(self.store.list(), self.store.revision, clock);
            freed = true;
        }
        it.watch.epoch = self.store.epoch;
        it.watch.revision = self.store.revision;
        it.watch.synced = true;
        if back {
            self.hand(node, Event::StoreReset);
        }
        if freed {
            self.hand(node, Event::Freed);
        }
        let it = &self.nodes[node];
        let Some(held) = it.machine.holding() else {
            return Ok(());
        };
        let clash = || {
            it.table
                .clash(&it.identity, &held.key, &self.pools, &Touched::Everything)
        };
        let news = it.table.own_news(held).or_else(|| clash().map(|_| Event::Clash));
        if let Some(news) = news {
            self.hand(node, news);
        }
        Ok(())
    }
}

fn won(event: &Event) -> bool {
    matches!(event, Event::Claimed(ClaimOutcome::Won { .. }))
}

fn brief(event: &Event) -> String {
    match event {
        Event::Listed(records) => {
            let keys: Vec<&str> = records.iter().map(|r| r.key.as_str()).collect();
            format!("Listed {keys:?}")
        }
        other => format!("{other:?}"),
    }
}

fn brief_op(op: &Op) -> String {
    match op {
        Op::Claim {
            key, expected, terms, ..
        } => format!("Claim {key} {expected:?} {terms:?}"),
        other => format!("{other:?}"),
    }
}
