//! One rule on one packet: conditions that hold, do not hold, or cannot be told.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Comparison, Field, NEW, Packet, Rule, Step, Verdict};

/// Bytes of a register.
const WIDTH: usize = 4;
/// IFNAMSIZ: names of interfaces are compared with zeros behind them.
const NAME: usize = 16;

/// What a rule does with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Applied {
    /// It does nothing that decides.
    Passes,
    /// It decides.
    Decides(Verdict),
    /// It decides, or not: a condition cannot be told.
    MayDecide(Verdict),
}

/// Bytes by the register that they are in; `None` for those that are not known.
#[derive(Debug, Default)]
struct Registers(BTreeMap<u32, [Option<u8>; WIDTH]>);

impl Registers {
    fn put(&mut self, register: u32, bytes: &[Option<u8>]) {
        for (i, part) in bytes.chunks(WIDTH).enumerate() {
            let mut word = [Some(0); WIDTH];
            word[..part.len()].copy_from_slice(part);
            self.0
                .insert(register + u32::try_from(i).unwrap_or(u32::MAX), word);
        }
    }

    fn take(&self, register: u32, length: usize) -> Vec<Option<u8>> {
        let words = (register..).map(|number| self.0.get(&number).copied().unwrap_or([None; WIDTH]));
        words.flatten().take(length).collect()
    }
}

/// Runs the rule. A condition that cannot be told makes all of it uncertain.
pub(super) fn apply(rule: &Rule, packet: &Packet) -> Applied {
    let mut registers = Registers::default();
    let mut certain = true;
    for step in &rule.steps {
        let holds = match step {
            Step::Load { register, field } => {
                registers.put(*register, &load(*field, packet));
                Some(true)
            }
            Step::Mask { from, to, mask, xor } => {
                let bytes = registers.take(*from, mask.len());
                let turned = bytes
                    .iter()
                    .zip(mask)
                    .zip(xor)
                    .map(|((byte, mask), xor)| match (byte, mask) {
                        // A bit that is cut off needs not be known.
                        (_, 0) => Some(*xor),
                        (Some(byte), mask) => Some((byte & mask) ^ xor),
                        (None, _) => None,
                    });
                registers.put(*to, &turned.collect::<Vec<_>>());
                Some(true)
            }
            Step::Compare { register, how, value } => {
                compare(&registers.take(*register, value.len()), *how, value)
            }
            Step::State { bits, inverted } => Some((bits & NEW != 0) != *inverted),
            Step::Unknown => None,
            Step::Verdict(verdict) => {
                return match certain {
                    true => Applied::Decides(verdict.clone()),
                    false => Applied::MayDecide(verdict.clone()),
                };
            }
        };
        match holds {
            Some(true) => {}
            Some(false) => return Applied::Passes,
            None => certain = false,
        }
    }
    Applied::Passes
}

fn compare(bytes: &[Option<u8>], how: Comparison, value: &[u8]) -> Option<bool> {
    let known: Option<Vec<u8>> = bytes.iter().copied().collect();
    let Some(known) = known else {
        // One byte that differs is enough to tell.
        let differs = bytes
            .iter()
            .zip(value)
            .any(|(byte, value)| byte.is_some_and(|byte| byte != *value));
        return match (how, differs) {
            (Comparison::Equal, true) => Some(false),
            (Comparison::Different, true) => Some(true),
            _ => None,
        };
    };
    let order = known.as_slice().cmp(value);
    Some(match how {
        Comparison::Equal => order.is_eq(),
        Comparison::Different => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::LessOrEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterOrEqual => order.is_ge(),
    })
}

fn load(field: Field, packet: &Packet) -> Vec<Option<u8>> {
    let word = |number: u32| number.to_ne_bytes().map(Some).to_vec();
    match field {
        Field::Network { offset, length } => {
            let header = header(packet);
            (offset..offset + length)
                .map(|at| header.get(at).copied().flatten())
                .collect()
        }
        Field::InputName => name(packet.input.as_deref()),
        Field::OutputName => name(packet.output.as_deref()),
        Field::State => word(NEW),
        Field::Status | Field::Mark => word(0),
        // NFPROTO_IPV4, NFPROTO_IPV6
        Field::Protocol => vec![Some(if packet.source.is_ipv4() { 2 } else { 10 })],
        Field::Other => vec![None; NAME],
    }
}

fn name(name: Option<&str>) -> Vec<Option<u8>> {
    let Some(name) = name else { return vec![None; NAME] };
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(NAME, 0);
    bytes.into_iter().map(Some).collect()
}

/// The network header as far as it is known: its addresses (RFC 791, RFC 8200).
fn header(packet: &Packet) -> Vec<Option<u8>> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let before = if packet.source.is_ipv4() { 12 } else { 8 };
    let addresses = [octets(packet.source), octets(packet.destination)].concat();
    let unknown = std::iter::repeat_n(None, before);
    unknown.chain(addresses.into_iter().map(Some)).collect()
}
