//! Ranges of addresses and the order in which they are given out: host-local's, so that either plugin can follow the other.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::protocol::{CniError, Code};

/// The addresses of a subnet that containers can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    v4: bool,
    /// First and last address to give, as numbers.
    first: u128,
    last: u128,
    gateway: u128,
    /// Prefix length of the subnet.
    length: u8,
}

impl Range {
    /// host-local's defaults for a subnet: the gateway is the first host; neither it, nor the network's address, nor the IPv4
    /// broadcast address is ever given.
    ///
    /// # Errors
    /// Code 7 for a subnet too small to hold a gateway and a container.
    pub fn of_subnet(network: IpAddr, length: u8) -> Result<Self, CniError> {
        let v4 = network.is_ipv4();
        let bits: u8 = if v4 { 32 } else { 128 };
        if length > bits.saturating_sub(2) {
            let msg = format!("the subnet {network}/{length} is too small to allocate from");
            return Err(CniError::new(Code::BadConfig, msg).with(format!(
                "a node's subnet needs a length of {} or less",
                bits.saturating_sub(2)
            )));
        }
        let base = number(network);
        let size = host_mask(bits, length);
        Ok(Self {
            v4,
            first: base + 1,
            last: if v4 { base + size - 1 } else { base + size },
            gateway: base + 1,
            length,
        })
    }

    /// The same subnet with another gateway, and only the addresses from `start` to `end`. `None` when those are not in it, or
    /// not in that order.
    pub fn narrowed(
        mut self,
        start: Option<IpAddr>,
        end: Option<IpAddr>,
        gateway: Option<IpAddr>,
    ) -> Option<Self> {
        let within = self.first..=self.last;
        let bounds = (start.map_or(self.first, number), end.map_or(self.last, number));
        self.gateway = gateway.map_or(self.gateway, number);
        (self.first, self.last) = bounds;
        let fits = within.contains(&self.first) && within.contains(&self.last) && self.first <= self.last;
        fits.then_some(self)
    }

    /// Whether its addresses are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.v4
    }

    /// Whether an address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.v4 == other.v4 && self.first <= other.last && other.first <= self.last
    }

    /// Length of the subnet in bits.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// The subnet's gateway.
    pub fn gateway(&self) -> IpAddr {
        self.address(self.gateway)
    }

    /// The subnet's first address.
    pub fn network(&self) -> IpAddr {
        let bits: u8 = if self.v4 { 32 } else { 128 };
        self.address(self.gateway & !host_mask(bits, self.length))
    }

    fn holds(&self, ip: IpAddr) -> bool {
        self.v4 == ip.is_ipv4() && (self.first..=self.last).contains(&number(ip))
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.v4 {
            true => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            false => Ipv6Addr::from(number).into(),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.address(self.first), self.address(self.last))
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The bits of an address that tell hosts of one subnet apart.
fn host_mask(bits: u8, length: u8) -> u128 {
    let host_bits = u32::from(bits.saturating_sub(length));
    1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1)
}

/// Ranges that give one address together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// The set of these ranges, tried in order.
    pub fn new(ranges: Vec<Range>) -> Self {
        Self(ranges)
    }

    /// Whether its addresses are IPv4: a set has one family.
    pub fn is_ipv4(&self) -> bool {
        self.0.first().is_some_and(|range| range.v4)
    }

    /// Its ranges.
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// How many addresses it can give.
    pub fn capacity(&self) -> u128 {
        let one = |range: &Range| {
            let gateway = u128::from((range.first..=range.last).contains(&range.gateway));
            (range.last - range.first)
                .saturating_add(1)
                .saturating_sub(gateway)
        };
        self.0.iter().map(one).fold(0, u128::saturating_add)
    }

    /// The range that holds `ip`.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.holds(ip))
    }

    /// All addresses that can be given, round robin: from the one behind `last` around to `last` itself. A `last` outside the
    /// set means the beginning.
    pub fn candidates(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> + '_ {
        let place = last.and_then(|ip| {
            let index = self.0.iter().position(|range| range.holds(ip))?;
            Some((index, number(ip)))
        });
        let (start, after) = place.unwrap_or((0, 0));
        let ranges = self.0.len();
        (0..=ranges).flat_map(move |turn| {
            let range = self.0.get((start + turn) % ranges.max(1));
            range.into_iter().flat_map(move |range| {
                let (from, to) = match (place, turn) {
                    // Without a last address one full turn is enough.
                    (None, turn) if turn == ranges => (1, 0),
                    (None, _) => (range.first, range.last),
                    (Some(_), 0) => (after + 1, range.last),
                    (Some(_), turn) if turn == ranges => (range.first, after),
                    (Some(_), _) => (range.first, range.last),
                };
                (from..=to)
                    .filter(|n| *n != range.gateway)
                    .map(|n| range.address(n))
            })
        })
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(subnets: &[&str]) -> RangeSet {
        let range = |text: &&str| {
            let (address, length) = text.split_once('/').unwrap();
            Range::of_subnet(address.parse().unwrap(), length.parse().unwrap()).unwrap()
        };
        RangeSet::new(subnets.iter().map(range).collect())
    }

    fn order(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        let last = last.map(|text| text.parse().unwrap());
        set.candidates(last)
            .map(|ip| ip.to_string().rsplit('.').next().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a1_a_fresh_29_skips_gateway_and_broadcast() {
        assert_eq!(order(&set(&["192.168.1.0/29"]), None), ["2", "3", "4", "5", "6"]);
    }

    #[test]
    fn a2_round_robin_ends_with_the_last_one() {
        let set = set(&["192.168.1.0/29"]);
        assert_eq!(order(&set, Some("192.168.1.6")), ["2", "3", "4", "5", "6"]);
        assert_eq!(order(&set, Some("192.168.1.3")), ["4", "5", "6", "2", "3"]);
    }

    #[test]
    fn a3_first_free_address() {
        let first = |subnets: &[&str], last: Option<&str>, taken: &[&str]| {
            let last = last.map(|text| text.parse().unwrap());
            let found = set(subnets)
                .candidates(last)
                .find(|ip| !taken.contains(&ip.to_string().as_str()));
            found.map(|ip| ip.to_string())
        };
        let some = |text: &str| Some(text.to_owned());
        let net = &["10.0.0.0/29"][..];
        assert_eq!(first(net, None, &[]), some("10.0.0.2"));
        assert_eq!(first(&["2001:db8:1::/64"], None, &[]), some("2001:db8:1::2"));
        assert_eq!(first(&["10.0.0.0/30"], None, &[]), some("10.0.0.2"));
        assert_eq!(first(net, None, &["10.0.0.2"]), some("10.0.0.3"));
        assert_eq!(first(net, Some("10.0.0.5"), &[]), some("10.0.0.6"));
        assert_eq!(
            first(net, Some("10.0.0.3"), &["10.0.0.4", "10.0.0.5"]),
            some("10.0.0.6")
        );
        assert_eq!(first(net, Some("10.0.0.5"), &["10.0.0.6"]), some("10.0.0.2"));
        assert_eq!(first(net, Some("10.9.9.9"), &[]), some("10.0.0.2"));
        let all_but_last = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
        assert_eq!(first(net, Some("10.0.0.6"), &all_but_last), some("10.0.0.6"));
        let two = &["10.0.0.0/30", "10.0.1.0/30"][..];
        assert_eq!(first(two, None, &[]), some("10.0.0.2"));
        assert_eq!(first(two, Some("10.0.0.2"), &[]), some("10.0.1.2"));
        let three = &["10.0.0.0/30", "10.0.1.0/30", "10.0.2.0/30"][..];
        assert_eq!(first(three, Some("10.0.2.2"), &[]), some("10.0.0.2"));
    }

    #[test]
    fn a7_exhausted() {
        assert_eq!(
            set(&["10.0.0.0/30"])
                .candidates(Some("10.0.0.2".parse().unwrap()))
                .count(),
            1
        );
        assert_eq!(set(&["10.0.0.0/30", "10.0.1.0/30"]).candidates(None).count(), 2);
        assert_eq!(set(&[]).candidates(None).count(), 0);
    }

    #[test]
    fn defaults_of_a_subnet() {
        let v4 = set(&["10.1.17.0/25"]);
        assert_eq!(v4.to_string(), "10.1.17.1-10.1.17.126");
        let v6 = Range::of_subnet("fc00:7::".parse().unwrap(), 64).unwrap();
        assert_eq!(v6.to_string(), "fc00:7::1-fc00:7::ffff:ffff:ffff:ffff");
        assert_eq!(
            (v6.gateway().to_string(), v6.network().to_string()),
            ("fc00:7::1".into(), "fc00:7::".into())
        );
        for (net, length) in [
            ("10.0.0.0", 31),
            ("10.0.0.0", 32),
            ("fc00::", 127),
            ("fc00::", 128),
        ] {
            assert!(
                Range::of_subnet(net.parse().unwrap(), length).is_err(),
                "{net}/{length}"
            );
        }
        assert!(Range::of_subnet("0.0.0.0".parse().unwrap(), 0).is_ok());
        assert!(Range::of_subnet("::".parse().unwrap(), 0).is_ok());
    }

    #[test]
    fn membership_is_by_family() {
        let set = set(&["10.0.0.0/29"]);
        assert!(set.range_of("10.0.0.6".parse().unwrap()).is_some());
        assert!(set.range_of("10.0.0.7".parse().unwrap()).is_none());
        assert!(set.range_of("::a00:2".parse().unwrap()).is_none());
    }
}
