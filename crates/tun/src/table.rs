//! Who is where: longest-prefix lookup, the check of who sends, and what is known of the path to each peer.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use rustc_hash::FxHashMap as HashMap;

use crate::codec::header::Header;
use crate::counters::DropReason;

/// Addresses with a common prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Net {
    address: IpAddr,
    length: u8,
}

impl Net {
    /// The network of `address` with a prefix of `length` bits; host bits are cleared, a longer prefix is that of one address.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Self {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length.min(most);
        Self {
            address: masked(address, length),
            length,
        }
    }

    /// Whether `address` is inside.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && masked(address, self.length) == self.address
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            Ipv4Addr::from(u32::from(address) & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            Ipv6Addr::from(u128::from(address) & mask).into()
        }
    }
}

/// A peer as the table is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSpec {
    /// Where its datagrams come from and go to.
    pub endpoint: SocketAddr,
    /// Its subnets.
    pub subnets: Vec<Net>,
    /// It is behind a NAT: its datagrams come from any port of its address.
    pub any_port: bool,
    /// It reads the outer ECN bits (RFC 6040); flannel does not, and gets Not-ECT.
    pub ecn: bool,
}

/// What the path needs to know of a peer. It outlives the tables, as what was learned does.
#[derive(Debug)]
pub struct Peer {
    /// Where its datagrams come from and go to.
    pub endpoint: SocketAddr,
    /// Its datagrams come from any port of its address.
    pub any_port: bool,
    /// It reads the outer ECN bits.
    pub ecn: bool,
    path_mtu: AtomicU16,
    in_use: AtomicBool,
    kept_back: AtomicU64,
}

impl Peer {
    fn new(spec: &PeerSpec) -> Self {
        Self {
            endpoint: spec.endpoint,
            any_port: spec.any_port,
            ecn: spec.ecn,
            path_mtu: AtomicU16::new(u16::MAX),
            in_use: AtomicBool::new(false),
            kept_back: AtomicU64::new(0),
        }
    }

    /// Bytes that IP and UDP put in front of an inner packet on the way to it.
    #[must_use]
    pub fn overhead(&self) -> u16 {
        if self.endpoint.is_ipv4() { 28 } else { 48 }
    }

    /// Longest inner packet that the path carries in one piece, as far as is known.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.path_mtu
            .load(Ordering::Relaxed)
            .saturating_sub(self.overhead())
            .into()
    }

    /// Notes what the kernel knows of the path: the longest outer packet, in bytes.
    pub fn learn_path_mtu(&self, mtu: u16) {
        self.path_mtu.store(mtu, Ordering::Relaxed);
    }

    /// Notes that a packet of it was dropped because it sent more than its share.
    pub fn keep_back(&self) {
        self.kept_back.fetch_add(1, Ordering::Relaxed);
    }

    /// Packets of it that were dropped for that reason, as long as its address stays what it is.
    #[must_use]
    pub fn kept_back(&self) -> u64 {
        self.kept_back.load(Ordering::Relaxed)
    }

    /// Notes that something was sent to it.
    pub fn touch(&self) {
        if !self.in_use.load(Ordering::Relaxed) {
            self.in_use.store(true, Ordering::Relaxed);
        }
    }

    /// Whether something was sent to it since the last call.
    pub fn take_in_use(&self) -> bool {
        self.in_use.swap(false, Ordering::Relaxed)
    }
}

/// What is this node's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Its subnets.
    pub subnets: Vec<Net>,
    /// From where its ICMP errors come.
    pub v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub v6: Option<Ipv6Addr>,
}

/// Index of a peer in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerIndex(u32);

impl PeerIndex {
    /// As an index of an array.
    #[must_use]
    pub fn get(self) -> usize {
        self.0 as usize
    }
}

/// A complete picture: it is replaced as a whole, never changed.
#[derive(Debug, Default)]
pub struct Table {
    own: Own,
    peers: Vec<Arc<Peer>>,
    by_endpoint: HashMap<SocketAddr, PeerIndex>,
    /// One of the peers behind each NAT.
    by_address: HashMap<IpAddr, PeerIndex>,
    /// Networks of one length, longest first.
    v4: Vec<(u8, HashMap<u32, PeerIndex>)>,
    v6: Vec<(u8, HashMap<u128, PeerIndex>)>,
}

impl Table {
    /// A table of these peers for a node that has the subnets `own`. Of two peers with one subnet the first has it. What `before`
    /// learned of a path is kept.
    #[must_use]
    pub fn new(own: Own, specs: &[PeerSpec], before: &Self) -> Self {
        let mut table = Self {
            own,
            ..Self::default()
        };
        let mut v4: HashMap<u8, HashMap<u32, PeerIndex>> = HashMap::default();
        let mut v6: HashMap<u8, HashMap<u128, PeerIndex>> = HashMap::default();
        for spec in specs {
            let Some(index) = table.peer(spec, before) else {
                continue;
            };
            for net in &spec.subnets {
                match net.address {
                    IpAddr::V4(address) => {
                        v4.entry(net.length)
                            .or_default()
                            .entry(address.into())
                            .or_insert(index);
                    }
                    IpAddr::V6(address) => {
                        v6.entry(net.length)
                            .or_default()
                            .entry(address.into())
                            .or_insert(index);
                    }
                }
            }
        }
        table.v4 = v4.into_iter().collect();
        table.v6 = v6.into_iter().collect();
        table
            .v4
            .sort_unstable_by_key(|(length, _)| std::cmp::Reverse(*length));
        table
            .v6
            .sort_unstable_by_key(|(length, _)| std::cmp::Reverse(*length));
        table
    }

    fn peer(&mut self, spec: &PeerSpec, before: &Self) -> Option<PeerIndex> {
        if let Some(index) = self.by_endpoint.get(&spec.endpoint) {
            return Some(*index);
        }
        let kept = before
            .sender(spec.endpoint)
            .and_then(|index| before.get(index))
            .filter(|peer| {
                (peer.endpoint, peer.ecn, peer.any_port) == (spec.endpoint, spec.ecn, spec.any_port)
            });
        let peer = kept.map_or_else(|| Arc::new(Peer::new(spec)), Arc::clone);
        let index = PeerIndex(u32::try_from(self.peers.len()).ok()?);
        self.peers.push(peer);
        self.by_endpoint.insert(spec.endpoint, index);
        if spec.any_port {
            self.by_address.entry(spec.endpoint.ip()).or_insert(index);
        }
        Some(index)
    }

    /// What is this node's own.
    #[must_use]
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// Every peer.
    #[must_use]
    pub fn peers(&self) -> &[Arc<Peer>] {
        &self.peers
    }

    /// The peer of that index.
    #[must_use]
    pub fn get(&self, index: PeerIndex) -> Option<&Arc<Peer>> {
        self.peers.get(index.get())
    }

    /// Whose datagrams come from there.
    #[must_use]
    pub fn sender(&self, endpoint: SocketAddr) -> Option<PeerIndex> {
        let exact = self.by_endpoint.get(&endpoint);
        exact.or_else(|| self.by_address.get(&endpoint.ip())).copied()
    }

    /// The peer with the longest prefix of `address`.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<PeerIndex> {
        match address {
            IpAddr::V4(address) => {
                let bits = u32::from(address);
                self.v4.iter().find_map(|(length, nets)| {
                    let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
                    nets.get(&(bits & mask)).copied()
                })
            }
            IpAddr::V6(address) => {
                let bits = u128::from(address);
                self.v6.iter().find_map(|(length, nets)| {
                    let mask = u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0);
                    nets.get(&(bits & mask)).copied()
                })
            }
        }
    }

    /// Whether `address` is in a subnet of this node.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.subnets.iter().any(|net| net.contains(address))
    }

    /// Whether the ports of two peers cannot tell them apart.
    fn behind_one_nat(&self, owner: Option<PeerIndex>, sender: PeerIndex) -> bool {
        let peer = |index: PeerIndex| self.get(index).filter(|peer| peer.any_port);
        match (owner.and_then(peer), peer(sender)) {
            (Some(owner), Some(sender)) => owner.endpoint.ip() == sender.endpoint.ip(),
            _ => false,
        }
    }

    /// Whether a packet that came from `sender` may go on: its source belongs to the sender, its destination to this node.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(&self, sender: PeerIndex, header: &Header) -> Result<(), DropReason> {
        let owner = self.lookup(header.source);
        if owner != Some(sender) && !self.behind_one_nat(owner, sender) {
            return Err(DropReason::SourceNotOfSender);
        }
        if !self.is_own(header.destination) {
            return Err(DropReason::DestinationNotOurs);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Net {
        let (address, length) = text.split_once('/').unwrap();
        Net::new(address.parse().unwrap(), length.parse().unwrap())
    }

    fn spec(endpoint: &str, subnets: &[&str]) -> PeerSpec {
        PeerSpec {
            endpoint: endpoint.parse().unwrap(),
            subnets: subnets.iter().map(|s| net(s)).collect(),
            any_port: false,
            ecn: false,
        }
    }

    fn table() -> Table {
        let specs = [
            spec("192.0.2.1:8285", &["10.5.0.0/16", "fd00:5::/48"]),
            spec("192.0.2.2:8285", &["10.5.2.0/24", "fd00:5:0:2::/64"]),
            spec("192.0.2.3:9000", &["10.5.2.128/25", "10.5.2.0/24"]),
        ];
        let own = Own {
            subnets: vec![net("10.5.1.0/24"), net("fd00:5:0:1::/64")],
            ..Own::default()
        };
        Table::new(own, &specs, &Table::default())
    }

    fn at(table: &Table, address: &str) -> Option<String> {
        let index = table.lookup(address.parse().unwrap())?;
        table.get(index).map(|peer| peer.endpoint.to_string())
    }

    #[test]
    fn the_longest_prefix_wins_and_of_two_claims_the_first() {
        let table = table();
        assert_eq!(at(&table, "10.5.9.9").unwrap(), "192.0.2.1:8285");
        assert_eq!(at(&table, "10.5.2.9").unwrap(), "192.0.2.2:8285");
        assert_eq!(at(&table, "10.5.2.200").unwrap(), "192.0.2.3:9000");
        assert_eq!(at(&table, "fd00:5:0:2::7").unwrap(), "192.0.2.2:8285");
        assert_eq!(at(&table, "fd00:5:0:9::7").unwrap(), "192.0.2.1:8285");
        assert_eq!(at(&table, "10.6.0.1"), None);
        assert_eq!(at(&table, "fd01::1"), None);
    }

    #[test]
    fn who_may_send_what() {
        let table = table();
        let header = |source: &str, destination: &str| Header {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            length: 20,
            total: 20,
            ttl: 64,
            tos: 0,
            protocol: 17,
            dont_fragment: false,
            fragment: false,
            later_fragment: false,
        };
        let second = table.sender("192.0.2.2:8285".parse().unwrap()).unwrap();
        assert_eq!(table.admit(second, &header("10.5.2.9", "10.5.1.9")), Ok(()));
        assert_eq!(
            table.admit(second, &header("10.5.9.9", "10.5.1.9")),
            Err(DropReason::SourceNotOfSender)
        );
        assert_eq!(
            table.admit(second, &header("10.5.2.9", "10.5.3.9")),
            Err(DropReason::DestinationNotOurs)
        );
        // The address is known, the port is not.
        assert_eq!(table.sender("192.0.2.2:8286".parse().unwrap()), None);
    }

    #[test]
    fn peers_behind_one_nat_send_from_any_port() {
        let nat = |port: u16, subnet: &str| PeerSpec {
            any_port: true,
            ..spec(&format!("192.0.2.9:{port}"), &[subnet])
        };
        let specs = [
            nat(9001, "10.5.8.0/24"),
            nat(9002, "10.5.9.0/24"),
            spec("192.0.2.3:8285", &["10.5.3.0/24"]),
        ];
        let own = Own {
            subnets: vec![net("10.5.1.0/24")],
            ..Own::default()
        };
        let table = Table::new(own, &specs, &Table::default());
        let mut packet = [0; 20];
        packet[0] = 0x45;
        packet[3] = 20;
        packet[16..].copy_from_slice(&[10, 5, 1, 9]);
        let mut admitted = |from: &str, third: u8| {
            packet[12..16].copy_from_slice(&[10, 5, third, 9]);
            let sender = table.sender(from.parse().unwrap())?;
            Some(table.admit(sender, &Header::parse(&packet).unwrap()).is_ok())
        };
        for from in ["192.0.2.9:9001", "192.0.2.9:9002", "192.0.2.9:40000"] {
            assert_eq!(
                (admitted(from, 8), admitted(from, 9), admitted(from, 3)),
                (Some(true), Some(true), Some(false)),
                "{from}"
            );
        }
        assert_eq!(admitted("192.0.2.3:40000", 3), None);
        assert_eq!(at(&table, "10.5.9.9").unwrap(), "192.0.2.9:9002");
    }

    #[test]
    fn what_was_learned_survives_a_new_table() {
        let first = table();
        let peer = &first.peers()[1];
        peer.learn_path_mtu(1400);
        assert_eq!(peer.longest(), 1372);
        let again = Table::new(
            Own::default(),
            &[spec("192.0.2.2:8285", &["10.5.2.0/24"])],
            &first,
        );
        assert_eq!(again.peers()[0].longest(), 1372);
    }

    proptest! {
        #[test]
        fn lookup_as_a_search_through_all(
            nets in prop::collection::vec((any::<u32>(), 0_u8..=32), 0..40),
            queries in prop::collection::vec(any::<u32>(), 40),
        ) {
            // Few addresses, so that prefixes nest.
            let nets: Vec<Net> = nets.iter().map(|(bits, length)| Net::new(Ipv4Addr::from(bits & 0xc030_0c03).into(), *length)).collect();
            let specs: Vec<PeerSpec> = nets.iter().enumerate().map(|(n, net)| PeerSpec {
                endpoint: SocketAddr::new(Ipv4Addr::from(n as u32).into(), 8285),
                subnets: vec![*net],
                any_port: false,
                ecn: false,
            }).collect();
            let table = Table::new(Own::default(), &specs, &Table::default());
            for bits in queries {
                let address = IpAddr::from(Ipv4Addr::from(bits & 0xc030_0c03));
                let mut best: Option<(u8, usize)> = None;
                for (n, net) in nets.iter().enumerate() {
                    if net.contains(address) && best.is_none_or(|(length, _)| net.length > length) {
                        best = Some((net.length, n));
                    }
                }
                prop_assert_eq!(table.lookup(address).map(PeerIndex::get), best.map(|(_, n)| n));
            }
        }
    }
}
