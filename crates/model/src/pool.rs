//! The address space of one family and how it is cut into subnets, by flannel's rules.

use crate::config_error::Reader;
use crate::{Ipv4Subnet, Ipv6Subnet, Subnet};

/// The address space of the pods of one family and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pool<S> {
    /// The whole address space.
    pub network: S,
    /// First subnet that is handed out.
    pub subnet_min: S,
    /// Last one.
    pub subnet_max: S,
}

/// The IPv4 pool.
pub type Ipv4Pool = Pool<Ipv4Subnet>;
/// The IPv6 pool.
pub type Ipv6Pool = Pool<Ipv6Subnet>;

impl<S: Subnet> Pool<S> {
    /// Length of every subnet, in bits.
    pub fn subnet_len(&self) -> u8 {
        self.subnet_min.length()
    }

    /// Whether `subnet` is one that this pool hands out.
    pub fn offers(&self, subnet: &S) -> bool {
        subnet.length() == self.subnet_len() && (self.subnet_min..=self.subnet_max).contains(subnet)
    }

    /// Every subnet of the pool in ascending order. An IPv6 pool may have more than anybody can walk through.
    pub fn subnets(&self) -> impl Iterator<Item = S> + use<S> {
        let last = self.subnet_max;
        std::iter::successors(Some(self.subnet_min), Subnet::next).take_while(move |s| *s <= last)
    }

    /// How many subnets there are to hand out.
    pub fn count(&self) -> u128 {
        self.subnet_min.steps_to(&self.subnet_max) + 1
    }
}

/// The names and limits of one family in the network config. The numbers are flannel's.
pub(crate) struct Rules {
    network: &'static str,
    length: &'static str,
    min: &'static str,
    max: &'static str,
    /// A network, for messages.
    example: &'static str,
    /// Family, for messages.
    family: &'static str,
    /// A longer subnet has no room for pods.
    longest_subnet: u8,
    /// Longest network for which SubnetLen is derived.
    longest_network: u8,
    /// Networks up to this length are cut into subnets of `usual_subnet`, longer ones into four.
    roomy_network: u8,
    usual_subnet: u8,
}

pub(crate) const IPV4: Rules = Rules {
    network: "Network",
    length: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    example: "10.5.0.0/16",
    family: "IPv4",
    longest_subnet: 30,
    longest_network: 28,
    roomy_network: 22,
    usual_subnet: 24,
};

pub(crate) const IPV6: Rules = Rules {
    network: "IPv6Network",
    length: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    example: "fd00:5::/48",
    family: "IPv6",
    longest_subnet: 126,
    longest_network: 124,
    roomy_network: 62,
    usual_subnet: 64,
};

/// Reads the pool of one family. A field that is bad hides nothing that is wrong with another one.
pub(crate) fn read<S: Subnet>(reader: &mut Reader<'_>, rules: &Rules) -> Option<Pool<S>> {
    let network: Option<S> = read_network(reader, rules);
    let length = subnet_len(reader, rules, network);
    let min = boundary(reader, rules, rules.min, network, length);
    let max = boundary(reader, rules, rules.max, network, length);
    let (network, length) = (network?, length?);
    let first = S::new(network.network(), length)?;
    // The first subnet is skipped: flannel keeps the network's own address out of use.
    let subnet_min = min.ok()?.or_else(|| first.next())?;
    let subnet_max = max.ok()?.or_else(|| S::new(network.last(), length))?;
    if subnet_min > subnet_max {
        let problem = format!(
            "lies behind {} {}, so there is no subnet to hand out",
            rules.max,
            subnet_max.network()
        );
        reader.error(rules.min, &subnet_min.network().to_string(), problem);
        return None;
    }
    Some(Pool {
        network,
        subnet_min,
        subnet_max,
    })
}

fn read_network<S: Subnet>(reader: &mut Reader<'_>, rules: &Rules) -> Option<S> {
    let problem = format!(
        "please define a correct {} parameter, such as {:?}",
        rules.network, rules.example
    );
    let Some(raw) = reader.raw(rules.network) else {
        reader.error(rules.network, "missing", problem);
        return None;
    };
    let text = serde_json::from_str::<String>(raw).ok();
    match text.and_then(|text| text.parse::<S>().ok()) {
        // flannel takes the whole address space for an empty Network.
        Some(network) if network.length() > 0 => Some(network),
        Some(_) => {
            reader.error(
                rules.network,
                raw,
                format!("is the whole address space; {problem}"),
            );
            None
        }
        None => {
            reader.error(
                rules.network,
                raw,
                format!("is no {} network; {problem}", rules.family),
            );
            None
        }
    }
}

fn subnet_len<S: Subnet>(reader: &mut Reader<'_>, rules: &Rules, network: Option<S>) -> Option<u8> {
    let longest = rules.longest_subnet;
    let raw = reader.raw(rules.length);
    let given = match raw.map(|raw| (raw, serde_json::from_str::<u8>(raw))) {
        // flannel takes 0 for absent.
        None | Some((_, Ok(0))) => return default_subnet_len(reader, rules, network?),
        Some((raw, Err(_))) => {
            reader.error(
                rules.length,
                raw,
                format!("expected a whole number of bits, at most {longest}"),
            );
            return None;
        }
        Some((_, Ok(length))) => length,
    };
    if given > longest {
        let problem = format!(
            "must be less than /{}: the longest subnet is /{longest}",
            longest + 1
        );
        reader.error(rules.length, &given.to_string(), problem);
        return None;
    }
    let shortest = network?.length() + 2;
    if given < shortest {
        let problem = format!(
            "{} {} must hold at least four subnets: expected {}",
            rules.network,
            network?,
            if shortest <= longest {
                format!("{shortest} to {longest}")
            } else {
                "a larger network".to_owned()
            }
        );
        reader.error(rules.length, &given.to_string(), problem);
        return None;
    }
    Some(given)
}

fn default_subnet_len<S: Subnet>(reader: &mut Reader<'_>, rules: &Rules, network: S) -> Option<u8> {
    match network.length() {
        length if length > rules.longest_network => {
            let problem = format!(
                "is too small: the minimum is /{}, which holds four subnets",
                rules.longest_network
            );
            reader.error(rules.network, &network.to_string(), problem);
            None
        }
        length if length <= rules.roomy_network => Some(rules.usual_subnet),
        length => Some(length + 2),
    }
}

/// SubnetMin or SubnetMax: `Ok(None)` when it is not set. Without a sound network or length, what can be checked is checked.
fn boundary<S: Subnet>(
    reader: &mut Reader<'_>,
    rules: &Rules,
    field: &str,
    network: Option<S>,
    length: Option<u8>,
) -> Result<Option<S>, ()> {
    let Some(raw) = reader.raw(field) else {
        return Ok(None);
    };
    let Ok(address) = serde_json::from_str::<S::Address>(raw) else {
        reader.error(field, raw, format!("expected an {} address", rules.family));
        return Err(());
    };
    // flannel takes the unspecified address for absent.
    if S::new(address, 0).is_some_and(|all| all.network() == address) {
        return Ok(None);
    }
    if let Some(network) = network.filter(|network| !network.holds(address)) {
        reader.error(
            field,
            raw,
            format!("is not in the range of {} {network}", rules.network),
        );
        return Err(());
    }
    let Some(subnet) = length.and_then(|length| S::new(address, length)) else {
        return Err(());
    };
    if subnet.network() != address {
        let problem = format!(
            "is on no {} boundary: the /{} around it begins at {}",
            rules.length,
            subnet.length(),
            subnet.network()
        );
        reader.error(field, raw, problem);
        return Err(());
    }
    Ok(Some(subnet))
}
