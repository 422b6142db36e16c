//! The rules that draw an endpoint and translate a packet's destination to it.
//!
//! They are made here and not by the nft program because 1.0.6 restricts the first of them to TCP when the map's data is named by
//! a port of TCP, and takes no other name for it. It shows them as they are.

use super::expression::{FIRST, Rule, chain};
use super::{Family, Message};

/// The same on all nodes, so that they agree about what is drawn by a hash.
const SEED: u32 = 0x666c_616e;

/// What a number is drawn by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrawBy {
    /// Chance.
    Random,
    /// A hash of the source address.
    Source,
    /// A hash of the source address and port.
    SourcePort,
    /// A hash of the destination address.
    Destination,
}

/// How an endpoint is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw<'a> {
    /// The map from (destination address,) protocol, destination port and number to address and port.
    pub map: &'a str,
    /// Whether the destination address is part of its key.
    pub by_address: bool,
    /// What the number is drawn by.
    pub by: DrawBy,
    /// How many numbers there are.
    pub slots: u32,
    /// The first of them.
    pub offset: u32,
    /// The map from source, destination, protocol and port to the address and port that the client got before, if it is asked
    /// first.
    pub remembered: Option<&'a str>,
}

/// Messages that make a chain which draws. Its last rule is for a packet that comes between two numbers of slots: the first slot is
/// one of any number.
pub fn draw_chain(family: Family, table: &str, name: &str, draw: &Draw<'_>) -> Vec<Message> {
    let mut rules = Vec::new();
    if let Some(map) = draw.remembered {
        let rule = Rule::new(family);
        let width = rule.address_registers();
        let number = FIRST + 2 * width;
        let rule = rule.source(FIRST).destination(FIRST + width);
        let rule = rule.protocol(number).destination_port(number + 1);
        rules.push(rule.look_up(map, FIRST).translate(FIRST));
    }
    rules.push(draw_rule(family, draw));
    if draw.slots > 1 {
        let first = Draw { slots: 1, ..*draw };
        rules.push(draw_rule(family, &first));
    }
    chain(table, name, &rules)
}

fn draw_rule(family: Family, draw: &Draw<'_>) -> Rule {
    let rule = Rule::new(family);
    let width = rule.address_registers();
    let (rule, number) = if draw.by_address {
        (rule.destination(FIRST), FIRST + width)
    } else {
        (rule, FIRST)
    };
    let rule = rule.protocol(number).destination_port(number + 1);
    let (slot, spare) = (number + 2, number + 3);
    let range = (draw.slots, draw.offset);
    let rule = match draw.by {
        DrawBy::Random => rule.random(draw.slots, draw.offset, slot),
        // nothing to choose from
        _ if draw.slots == 1 => rule.random(1, draw.offset, slot),
        DrawBy::Source => rule.source(spare).hash((spare, 4 * width), SEED, range, slot),
        DrawBy::SourcePort => {
            let rule = rule.source(spare).source_port(spare + width);
            rule.hash((spare, 4 * width + 4), SEED, range, slot)
        }
        DrawBy::Destination => rule
            .destination(spare)
            .hash((spare, 4 * width), SEED, range, slot),
    };
    rule.look_up(draw.map, FIRST).translate(FIRST)
}
