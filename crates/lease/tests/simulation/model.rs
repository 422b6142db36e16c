//! A model check: not a sample of the histories but each of them, as far as three nodes, two subnets and a few mishaps go.
//!
//! The same machine and the same store as in the simulation. Time goes in steps of two thirds of a lease's lifetime; between
//! two steps everything that can happen happens in every order.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use flannel_lease::{
    Event, Expected, Holding, Identity, LeaseMachine, LeaseTerms, Op, OwnPut, PeerTable, Settings, Situation,
    Standing, Touched,
};
use flannel_model::{LeaseKey, LeaseValue, NetworkConfig, NodeId};

use crate::node::{PATIENCE, Pools, TTL};
use crate::store::{Store, Time};

const CONFIG: &str =
    r#"{"Network":"10.5.0.0/28","SubnetLen":30,"SubnetMin":"10.5.0.4","SubnetMax":"10.5.0.8"}"#;
const DUAL: &str = r#"{"Network":"10.5.0.0/28","SubnetLen":30,"SubnetMin":"10.5.0.4","SubnetMax":"10.5.0.8",
    "EnableIPv6":true,"IPv6Network":"fd00:5::/62","IPv6SubnetMin":"fd00:5:0:1::","IPv6SubnetMax":"fd00:5:0:2::"}"#;
const KEYS: [&str; 2] = ["10.5.0.4-30", "10.5.0.8-30"];
/// Two thirds of a lease's lifetime: after one step it is due for renewal, after two it is over.
const STEP: Time = 40_000;
const SETTINGS: Settings = Settings {
    ttl: TTL,
    renew_margin: Duration::from_secs(20),
    grace: PATIENCE.grace,
};

/// How much may happen in one history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Nodes that want one of the two subnets.
    pub nodes: u8,
    /// Steps of time.
    pub steps: u8,
    /// Calls whose answer the node never sees.
    pub losses: u8,
    /// Calls that arrive after the node gave them up, and answers that take their time.
    pub late: u8,
    /// Nodes that die and come back.
    pub crashes: u8,
    /// Records that an operator deletes.
    pub deletions: u8,
    /// Records that get another address in the name of their owner.
    pub forgeries: u8,
    /// Beside the two IPv4 subnets there are two of IPv6, and a node takes any one of each.
    pub dual: bool,
}

/// One thing that may happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Start(usize),
    /// A call reaches the store, and its answer the node.
    Call(usize),
    /// A call reaches the store; its answer is under way.
    Arrive(usize),
    Answer(usize),
    /// The node gives its call up.
    Fail(usize),
    /// A call that was given up reaches the store after all.
    ArriveAfterAll(usize),
    Timer(usize),
    /// The watch tells the node what stands under its key.
    News(usize),
    /// The node dies and comes back, with or without what its disk knew.
    Crash(usize, bool),
    Delete(usize),
    Forge(usize),
    Step,
}

#[derive(Debug, Clone)]
struct Call {
    op: Op,
    answer: Option<Event>,
}

#[derive(Debug, Clone)]
struct Member {
    machine: LeaseMachine,
    started: bool,
    life: u8,
    call: Option<Call>,
    /// A call that was given up before it arrived.
    given_up: Option<Op>,
}

/// A moment of a history.
#[derive(Debug, Clone)]
pub struct State {
    store: Store,
    members: Vec<Member>,
    now: Time,
    left: Bounds,
    tampered: bool,
}

fn pools(dual: bool) -> Pools {
    let config = if dual { DUAL } else { CONFIG };
    NetworkConfig::parse(config.as_bytes()).unwrap().pools
}

fn identity(node: usize) -> Identity {
    Identity {
        public_ip: std::net::Ipv4Addr::new(192, 168, 50, 11 + u8::try_from(node).unwrap()),
        public_ipv6: None,
        node: Some(NodeId::new(node as u128 + 1)),
    }
}

fn value(node: usize) -> String {
    let identity = identity(node);
    format!(
        r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","NodeID":"{}"}}"#,
        identity.public_ip,
        identity.node.unwrap()
    )
}

fn machine(node: usize, dual: bool) -> LeaseMachine {
    LeaseMachine::new(SETTINGS, pools(dual), identity(node), None)
}

impl State {
    pub fn first(bounds: Bounds, fences: bool) -> Self {
        let mut store = Store::new();
        store.fences = fences;
        let member = |node| Member {
            machine: machine(node, bounds.dual),
            started: false,
            life: 0,
            call: None,
            given_up: None,
        };
        Self {
            store,
            members: (0..usize::from(bounds.nodes)).map(member).collect(),
            now: 0,
            left: bounds,
            tampered: bounds.deletions + bounds.forgeries > 0,
        }
    }

    /// Everything that may happen next.
    pub fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        // The nodes are alike, so they start in one order.
        let waiting = self.members.iter().position(|member| !member.started);
        actions.extend(waiting.map(Action::Start));
        for (node, member) in self.members.iter().enumerate().filter(|(_, m)| m.started) {
            self.actions_of(node, member, &mut actions);
        }
        if self.left.deletions > 0 {
            let there = (0..KEYS.len()).filter(|key| self.store.get(KEYS[*key]).is_some());
            actions.extend(there.map(Action::Delete));
        }
        if self.left.forgeries > 0 {
            let genuine = (0..KEYS.len()).filter(|key| self.genuine(*key).is_some());
            actions.extend(genuine.map(Action::Forge));
        }
        if self.left.steps > 0 && waiting.is_none() {
            actions.push(Action::Step);
        }
        actions
    }

    fn actions_of(&self, node: usize, member: &Member, actions: &mut Vec<Action>) {
        let mut add = |possible: bool, action| actions.extend(possible.then_some(action));
        let waits = member.call.as_ref().is_some_and(|call| call.answer.is_none());
        add(waits, Action::Call(node));
        add(waits && self.left.late > 0, Action::Arrive(node));
        add(member.call.is_some() && !waits, Action::Answer(node));
        add(member.call.is_some() && self.left.losses > 0, Action::Fail(node));
        let late = member.given_up.is_some() && self.left.late > 0;
        add(late, Action::ArriveAfterAll(node));
        let due = member.machine.wake_at(self.clock());
        add(due.is_some_and(|at| at <= self.clock()), Action::Timer(node));
        add(self.news(member).is_some(), Action::News(node));
        let may_die = self.left.crashes > 0;
        add(may_die, Action::Crash(node, false));
        add(
            may_die && member.machine.holding().is_some(),
            Action::Crash(node, true),
        );
    }

    /// What becomes of it; more than one when a node may choose.
    pub fn after(&self, action: Action) -> Result<Vec<Self>, String> {
        let mut next = self.clone();
        match action {
            Action::Start(node) => {
                next.members[node].started = true;
                return Ok(next.hand(node, &Event::Start));
            }
            Action::Call(node) => {
                let event = next.arrive(node)?;
                next.members[node].call = None;
                return Ok(next.hand(node, &event));
            }
            Action::Arrive(node) => {
                next.left.late -= 1;
                let event = next.arrive(node)?;
                next.members[node].call.as_mut().unwrap().answer = Some(event);
            }
            Action::Answer(node) => {
                let event = next.members[node].call.take().unwrap().answer.unwrap();
                return Ok(next.hand(node, &event));
            }
            Action::Fail(node) => {
                next.left.losses -= 1;
                next.give_up(node);
                return Ok(next.hand(node, &Event::Failed));
            }
            Action::ArriveAfterAll(node) => {
                next.left.late -= 1;
                let op = next.members[node].given_up.take().unwrap();
                next.carry_out(node, &op)?;
            }
            Action::Timer(node) => return Ok(next.hand(node, &Event::Timer)),
            Action::News(node) => {
                let news = next.news(&next.members[node]).unwrap();
                return Ok(next.hand(node, &news));
            }
            Action::Crash(node, keeps_disk) => {
                next.left.crashes -= 1;
                next.crash(node, keeps_disk);
                return Ok(next.hand(node, &Event::Start));
            }
            Action::Delete(key) => {
                next.left.deletions -= 1;
                next.store.delete(KEYS[key]);
                next.store.history.clear();
            }
            Action::Forge(key) => {
                next.left.forgeries -= 1;
                let (node, lease) = next.genuine(key).unwrap();
                let forged = value(node).replace("192.168.50.", "192.168.51.");
                next.store.put(KEYS[key], &forged, lease);
                next.store.history.clear();
            }
            Action::Step => {
                next.left.steps -= 1;
                next.now += STEP;
                next.store.expire(next.now);
                next.store.history.clear();
            }
        }
        Ok(vec![next])
    }

    fn clock(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    /// Whose record that is, and on which lease, if it says what its owner published.
    fn genuine(&self, key: usize) -> Option<(usize, i64)> {
        let record = self.store.get(KEYS[key])?;
        let node = (0..self.members.len()).find(|node| value(*node).as_bytes() == record.value)?;
        Some((node, record.lease))
    }

    fn carry_out(&mut self, node: usize, op: &Op) -> Result<Event, String> {
        let event = self
            .store
            .carry_out(op, &identity(node), &value(node), self.now)?;
        self.store.history.clear();
        Ok(event)
    }

    fn arrive(&mut self, node: usize) -> Result<Event, String> {
        let op = self.members[node].call.as_ref().unwrap().op.clone();
        self.carry_out(node, &op)
    }

    /// The call may be on its way still; one that changes nothing is of no interest.
    fn give_up(&mut self, node: usize) {
        let member = &mut self.members[node];
        let call = member.call.take().filter(|call| call.answer.is_none());
        let op = call.map(|call| call.op).filter(|op| !matches!(op, Op::List));
        if op.is_some() && self.left.late > 0 {
            member.given_up = op;
        }
    }

    fn crash(&mut self, node: usize, keeps_disk: bool) {
        self.give_up(node);
        let member = &mut self.members[node];
        let disk = member.machine.holding().copied().filter(|_| keeps_disk);
        member.life += 1;
        member.machine = match disk {
            Some(holding) => machine(node, self.left.dual).resuming(holding),
            None => machine(node, self.left.dual),
        };
    }

    /// Hands an event to a node and begins the call that it asks for.
    fn hand(mut self, node: usize, event: &Event) -> Vec<Self> {
        let now = self.clock();
        let mut choices = Vec::new();
        let machine = self.members[node].machine.clone();
        for pick in 0..if self.left.dual { 4 } else { 2 } {
            // The upper bits make the number of the etcd lease, the lowest of each half the choice among free subnets.
            let choice = (pick >> 1) << 32 | pick & 1;
            let random = (node as u64 + 1) << 40 | u64::from(self.members[node].life) << 36 | choice;
            let mut machine = machine.clone();
            let mut op = machine.handle(event.clone(), now, random);
            let chooses = matches!(op, Some(Op::ReadUsed));
            if chooses {
                op = machine.handle(Event::UsedRead(Vec::new()), now, random);
            }
            choices.push((machine, op));
            if !chooses {
                break;
            }
        }
        if choices.iter().any(|(_, op)| op.is_some()) {
            self.give_up(node);
        }
        let state = |(machine, op): (LeaseMachine, Option<Op>)| {
            let mut next = self.clone();
            let member = &mut next.members[node];
            member.machine = machine;
            if let Some(op) = op {
                member.call = Some(Call { op, answer: None });
            }
            next
        };
        choices.into_iter().map(state).collect()
    }

    fn news(&self, member: &Member) -> Option<Event> {
        let held: &Holding = member.machine.holding()?;
        match self.store.get(&held.key.to_string()) {
            Some(record) if record.revisions.modified > held.modified => {
                let owner = LeaseValue::parse(&record.value).map(|value| Identity::of(&value));
                Some(Event::OwnPut(OwnPut {
                    owner: owner.ok(),
                    lease: record.lease,
                    modified: record.revisions.modified,
                }))
            }
            None if self.store.revision > held.modified => Some(Event::OwnDeleted(self.store.revision)),
            _ if self.left.dual => self.clash(member, &held.key),
            _ => None,
        }
    }

    fn clash(&self, member: &Member, held: &LeaseKey) -> Option<Event> {
        let mut table = PeerTable::new(PATIENCE);
        table.reset(self.store.list(), self.store.revision, self.clock());
        let clash = table.clash(
            member.machine.identity(),
            held,
            &pools(true),
            &Touched::Everything,
        );
        clash.map(|_| Event::Clash)
    }

    /// What must hold at every moment.
    pub fn check(&self) -> Result<(), String> {
        let now = self.clock();
        let mut owned: Vec<LeaseKey> = Vec::new();
        for (n, member) in self.members.iter().enumerate().filter(|(_, m)| m.started) {
            self.goes_on(n, member)?;
            self.says_what_it_published(n, member)?;
            if self.tampered || member.machine.standing(now) != Standing::Confirmed {
                continue;
            }
            let key = member.machine.holding().unwrap().key;
            self.is_its_own(n, &key)?;
            owned.push(key);
        }
        for (n, one) in owned.iter().enumerate() {
            if let Some(other) = owned[..n].iter().find(|other| one.overlaps(other)) {
                return Err(format!("two nodes add pods to {one} and {other}"));
            }
        }
        Ok(())
    }

    /// I1: who adds pods has the record, so two never add pods to one subnet.
    fn is_its_own(&self, node: usize, key: &LeaseKey) -> Result<(), String> {
        let record = self.store.get(&key.to_string());
        let owner = record.map(|record| LeaseValue::parse(&record.value).map(|value| Identity::of(&value)));
        match owner {
            Some(Ok(owner)) if owner.is_surely(&identity(node)) => Ok(()),
            other => Err(format!(
                "node {node} adds pods to {key}, which belongs to {other:?}"
            )),
        }
    }

    /// A node that adds pods and knows no news has a record that leads to it.
    fn says_what_it_published(&self, node: usize, member: &Member) -> Result<(), String> {
        let settled = member.call.is_none() && self.news(member).is_none();
        if !settled || member.machine.standing(self.clock()) != Standing::Confirmed {
            return Ok(());
        }
        let key = member.machine.holding().unwrap().key.to_string();
        match self.store.get(&key) {
            Some(record) if record.value != value(node).as_bytes() => Err(format!(
                "node {node} adds pods to {key}, and its record says {}",
                String::from_utf8_lossy(&record.value)
            )),
            _ => Ok(()),
        }
    }

    /// A node that waits for nothing waits for ever.
    fn goes_on(&self, node: usize, member: &Member) -> Result<(), String> {
        let waits = member.call.is_some() || member.machine.wake_at(self.clock()).is_some();
        match member.machine.situation() == Situation::Revoked || waits {
            true => Ok(()),
            false => Err(format!("node {node} waits for nothing: {:?}", member.machine)),
        }
    }

    /// What makes two moments one: everything that may matter later.
    pub fn fingerprint(&self) -> u128 {
        let mut halves = [DefaultHasher::new(), DefaultHasher::new()];
        halves[1].write_u8(1);
        for half in &mut halves {
            self.store.hash_into(half);
            (self.now, self.left).hash(half);
            for member in &self.members {
                (&member.machine, member.started, member.life).hash(half);
                member.call.is_some().hash(half);
                if let Some(call) = &member.call {
                    hash_op(&call.op, half);
                    call.answer.as_ref().map(|event| format!("{event:?}")).hash(half);
                }
                member.given_up.is_some().hash(half);
                if let Some(op) = &member.given_up {
                    hash_op(op, half);
                }
            }
        }
        u128::from(halves[0].finish()) << 64 | u128::from(halves[1].finish())
    }
}

fn hash_op(op: &Op, into: &mut impl Hasher) {
    std::mem::discriminant(op).hash(into);
    let terms: Option<(LeaseKey, Expected, LeaseTerms)> = match op {
        Op::Claim {
            key,
            expected,
            terms,
            published,
        } => {
            published.as_ref().map(|p| p.rewrite).hash(into);
            Some((*key, *expected, *terms))
        }
        Op::Drop { key, modified, why } => {
            (key, modified, why).hash(into);
            None
        }
        Op::KeepAlive(lease) => {
            lease.hash(into);
            None
        }
        Op::List | Op::ReadUsed => None,
    };
    terms.hash(into);
}
