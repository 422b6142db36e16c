//! The rules that remember which endpoint a client got.
//!
//! They are made here and not by the nft program because some versions of it cannot write them for IPv6 (1.0.6 runs out of
//! registers), while all of them can show them.

use super::expression::{FIRST, Rule, chain};
use super::{Family, Message};

/// TCP, UDP, SCTP: nft shows the port of a tracked packet only behind a match of its protocol.
const PROTOCOLS: [u8; 3] = [6, 17, 132];

/// Messages that make a chain remember for `seconds` what a translated packet was translated to: in `map`, whose key is source,
/// original destination, protocol and original port, and whose data is destination and port.
pub fn remember_chain(family: Family, table: &str, name: &str, map: &str, seconds: u32) -> Vec<Message> {
    let rule = |protocol: u8| {
        let rule = Rule::new(family);
        let width = rule.address_registers();
        let (original, number) = (FIRST + width, FIRST + 2 * width);
        let endpoint = number + 2;
        rule.protocol(FIRST)
            .equals(FIRST, &[protocol])
            .source(FIRST)
            .original_destination(original)
            .protocol(number)
            .original_port(number + 1)
            .destination(endpoint)
            .destination_port(endpoint + width)
            .update(map, FIRST, endpoint, u64::from(seconds) * 1000)
    };
    chain(table, name, &PROTOCOLS.map(rule))
}
