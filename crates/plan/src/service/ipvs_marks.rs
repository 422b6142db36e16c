//! Firewall marks that tell packets from outside from those of pods.

use std::collections::{BTreeMap, BTreeSet};

use flannel_model::VirtualAddress;

use super::frontend::FrontendKey;

/// The first byte of the marks of frontends whose endpoints see who asks.
pub const KEEP_SOURCE: u32 = 0xf100_0000;
/// The mark of packets to be masqueraded.
pub const MASQUERADE: u32 = 0xf200_0000;
/// The bits that tell the two apart from marks of others.
pub const MARK_MASK: u32 = 0xff00_0000;
/// Tells marks of addresses from those of node ports.
const OF_ADDRESS: u32 = 1 << 20;
/// Bits for a hash.
const HASH_BITS: u32 = OF_ADDRESS - 1;

/// A mark that carries `number`, of 21 bits. Bits 13 to 15 stay clear: portmap (0x2000) and kube-proxy (0x4000, 0x8000) look at
/// them alone, in hook postrouting, where the mark is still on the packet.
const fn mark(number: u32) -> u32 {
    KEEP_SOURCE | (number >> 13) << 16 | number & 0x1fff
}

/// Which frontend has which mark.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Numbers in use, each with its family: the two have virtual servers of their own.
    used: BTreeSet<(bool, u32)>,
    /// The number of each.
    numbers: BTreeMap<FrontendKey, u32>,
}

impl Marks {
    /// The mark of a frontend; a new one where it has none. A node port's follows from its number, that of an address from a hash,
    /// with the next free one where two meet: so a restart finds the same marks.
    pub fn assign(&mut self, key: FrontendKey) -> u32 {
        if let Some(mark) = self.get(&key) {
            return mark;
        }
        let mut number = match &key {
            FrontendKey::NodePort(at) => u32::from(at.protocol.number() & 3) << 16 | u32::from(at.port),
            FrontendKey::Address(at) => OF_ADDRESS | hash(at) & HASH_BITS,
        };
        while !self.used.insert((key.is_ipv4(), number)) {
            number = OF_ADDRESS | number.wrapping_add(1) & HASH_BITS;
        }
        self.numbers.insert(key, number);
        mark(number)
    }

    /// The mark of a frontend, if it has one.
    pub fn get(&self, key: &FrontendKey) -> Option<u32> {
        self.numbers.get(key).map(|number| mark(*number))
    }

    /// Takes a frontend's mark away.
    pub fn release(&mut self, key: &FrontendKey) {
        if let Some(number) = self.numbers.remove(key) {
            self.used.remove(&(key.is_ipv4(), number));
        }
    }
}

/// FNV-1a of 32 bits over protocol, address and port.
fn hash(at: &VirtualAddress) -> u32 {
    let address = match at.address {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let bytes = [
        address,
        at.port.to_be_bytes().to_vec(),
        vec![at.protocol.number()],
    ]
    .concat();
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use flannel_model::ServiceProtocol;

    use super::super::NodePort;
    use super::*;

    #[test]
    fn marks_are_ours_distinct_and_the_same_again() {
        let address = |n: u32, protocol| {
            FrontendKey::Address(VirtualAddress {
                protocol,
                address: std::net::Ipv4Addr::from(0xcb00_7100 + n).into(),
                port: 443,
            })
        };
        let node_port = |port, protocol| {
            FrontendKey::NodePort(NodePort {
                ipv4: true,
                protocol,
                port,
            })
        };
        let protocols = [ServiceProtocol::Tcp, ServiceProtocol::Udp, ServiceProtocol::Sctp];
        let keys: Vec<FrontendKey> = (0..5000)
            .map(|n| address(n, protocols[(n % 3) as usize]))
            .chain((30000..32768).flat_map(|p| protocols.map(|protocol| node_port(p, protocol))))
            .collect();
        let mut marks = Marks::default();
        let first: Vec<u32> = keys.iter().map(|k| marks.assign(*k)).collect();
        assert!(
            first
                .iter()
                .all(|m| m & MARK_MASK == KEEP_SOURCE && m & 0xe000 == 0)
        );
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), keys.len());
        let mut again = Marks::default();
        assert_eq!(keys.iter().map(|k| again.assign(*k)).collect::<Vec<_>>(), first);
        marks.release(&keys[0]);
        assert_eq!(marks.get(&keys[0]), None);
        assert_eq!(marks.assign(keys[0]), first[0]);
    }
}
