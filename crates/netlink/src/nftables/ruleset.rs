//! Reading the packet filter, of whomever: chains with their hooks, rules with what they look for.

use flannel_model::IpFamily;
use flannel_plan::packet_filter::{Base, Chain, Comparison, Field, Hook, Rule, Ruleset, Step, Verdict};

use super::conn::text_of;
use super::presence::GET_CHAIN;
use super::{Attributes, Family, GET_RULE, Kind, Message, Question, ask};
use crate::conn::DUMP;
use crate::error::NetlinkError;
use crate::wire;

/// NFT_REG_1 and NFT_REG32_00: four registers of 16 bytes, or sixteen of 4, over the same bytes.
const FIRST_WIDE: u32 = 1;
const FIRST: u32 = 8;

/// The chains that packets of a family meet: those of its own tables and of the tables for both families.
///
/// # Errors
/// When the kernel has no nf_tables or does not answer.
pub fn ruleset(family: IpFamily) -> Result<Ruleset, NetlinkError> {
    let word = match family {
        IpFamily::V4 => "ip",
        IpFamily::V6 => "ip6",
    };
    let mut all = Ruleset::default();
    for (family, word) in [(family.into(), word), (Family::Inet, "inet")] {
        let mut chains = chains(family, word)?;
        rules(family, word, &mut chains)?;
        all.chains.append(&mut chains);
    }
    Ok(all)
}

/// Messages that delete a chain of a table with all its rules, and before it the rules that lead there, each by its chain and
/// handle.
pub fn delete_chain(table: &str, name: &str, jumps: &[(String, u64)]) -> Vec<Message> {
    // NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE
    let jump = |(chain, handle): &(String, u64)| Message {
        kind: Kind::DeleteRule,
        attributes: Attributes::new()
            .text(1, table)
            .text(2, chain)
            .bytes(3, &handle.to_be_bytes()),
    };
    let mut messages: Vec<Message> = jumps.iter().map(jump).collect();
    messages.push(Message {
        kind: Kind::DeleteRule,
        attributes: Attributes::new().text(1, table).text(2, name),
    });
    // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
    messages.push(Message {
        kind: Kind::DeleteChain,
        attributes: Attributes::new().text(1, table).text(3, name),
    });
    messages
}

fn chains(family: Family, word: &str) -> Result<Vec<Chain>, NetlinkError> {
    let mut found = Vec::new();
    let nothing = Attributes::new();
    dump(family, GET_CHAIN, &nothing, "list chains", &mut |payload| {
        // NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
        let named = text_of(payload, 1).zip(text_of(payload, 3));
        found.extend(named.map(|(table, name)| Chain {
            table: format!("{word} {table}"),
            name,
            base: base(payload),
            rules: Vec::new(),
        }));
    })?;
    Ok(found)
}

fn base(payload: &[u8]) -> Option<Base> {
    let attributes = payload.get(4..)?;
    // NFTA_CHAIN_HOOK with NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY; NFTA_CHAIN_POLICY
    let hook = value(attributes, 4)?;
    let priority = number(hook, 2).unwrap_or(0);
    Some(Base {
        hook: match number(hook, 1)? {
            2 => Hook::Forward,
            4 => Hook::Postrouting,
            other => Hook::Other(other),
        },
        kind: text_of(payload, 7).unwrap_or_default(),
        priority: i32::from_ne_bytes(priority.to_ne_bytes()),
        drops: number(attributes, 5) == Some(0),
    })
}

/// Puts the rules into their chains; rules of chains that came meanwhile are left out.
fn rules(family: Family, word: &str, chains: &mut [Chain]) -> Result<(), NetlinkError> {
    let nothing = Attributes::new();
    dump(family, GET_RULE, &nothing, "list rules", &mut |payload| {
        // NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_EXPRESSIONS
        let (Some(table), Some(name)) = (text_of(payload, 1), text_of(payload, 2)) else {
            return;
        };
        let attributes = payload.get(4..).unwrap_or_default();
        let handle = value(attributes, 3).and_then(long).unwrap_or(0);
        let table = format!("{word} {table}");
        let chain = chains
            .iter_mut()
            .find(|chain| chain.table == table && chain.name == name);
        if let Some(chain) = chain {
            let expressions = value(attributes, 4).unwrap_or_default();
            chain.rules.push(rule(handle, expressions));
        }
    })
}

fn dump(
    family: Family,
    kind: u16,
    attributes: &Attributes,
    what: &str,
    take: &mut dyn FnMut(&[u8]),
) -> Result<(), NetlinkError> {
    let asked = Question {
        kind,
        flags: DUMP,
        attributes,
    };
    ask(family, &asked, what, take)
}

fn rule(handle: u64, expressions: &[u8]) -> Rule {
    let mut rule = Rule {
        handle,
        ..Rule::default()
    };
    // NFTA_LIST_ELEM with NFTA_EXPR_NAME, NFTA_EXPR_DATA
    for (_, expression) in wire::attributes(expressions).filter(|(kind, _)| *kind == 1) {
        let name = value(expression, 1).unwrap_or_default();
        let name = name.strip_suffix(&[0]).unwrap_or(name);
        let data = value(expression, 2).unwrap_or_default();
        if name == b"counter" {
            // NFTA_COUNTER_BYTES, NFTA_COUNTER_PACKETS
            rule.counter = value(data, 2).and_then(long).zip(value(data, 1).and_then(long));
        } else {
            rule.steps.extend(step(&String::from_utf8_lossy(name), data));
        }
    }
    rule
}

/// What an expression does; nothing where it neither decides nor looks at the packet.
fn step(name: &str, data: &[u8]) -> Option<Step> {
    match name {
        "payload" => load(data),
        "meta" => {
            // NFTA_META_DREG, NFTA_META_KEY; NFT_META_MARK, _IIFNAME, _OIFNAME, _NFPROTO
            let field = match number(data, 2)? {
                3 => Field::Mark,
                6 => Field::InputName,
                7 => Field::OutputName,
                15 => Field::Protocol,
                _ => Field::Other,
            };
            loaded(data, field)
        }
        "ct" => {
            // NFTA_CT_DREG, NFTA_CT_KEY; NFT_CT_STATE, NFT_CT_STATUS
            let field = match number(data, 2)? {
                0 => Field::State,
                2 => Field::Status,
                _ => Field::Other,
            };
            loaded(data, field)
        }
        "bitwise" => bitwise(data),
        "cmp" => compare(data),
        "immediate" => immediate(data),
        "reject" => Some(Step::Verdict(Verdict::Drop)),
        "masq" => Some(Step::Verdict(Verdict::Masquerade)),
        "nat" | "redir" | "tproxy" | "queue" | "fwd" => Some(Step::Verdict(Verdict::Other(name.to_owned()))),
        "match" => matching(data),
        "target" => target(data),
        // They look at nothing and decide nothing.
        "log" | "notrack" | "last" | "objref" | "flow_offload" | "secmark" => None,
        _ => Some(Step::Unknown),
    }
}

/// What sets something instead of loading it has no destination register, and decides nothing.
fn loaded(data: &[u8], field: Field) -> Option<Step> {
    Some(Step::Load {
        register: register(number(data, 1)?)?,
        field,
    })
}

fn load(data: &[u8]) -> Option<Step> {
    // NFTA_PAYLOAD_BASE, _OFFSET, _LEN; NFT_PAYLOAD_NETWORK_HEADER
    let field = match (number(data, 2)?, number(data, 3)?, number(data, 4)?) {
        (1, offset, length) => Field::Network {
            offset: usize::try_from(offset).ok()?,
            // A register file has 64 bytes.
            length: usize::try_from(length.min(64)).ok()?,
        },
        _ => Field::Other,
    };
    loaded(data, field)
}

fn bitwise(data: &[u8]) -> Option<Step> {
    // NFTA_BITWISE_SREG, _DREG, _MASK, _XOR with NFTA_DATA_VALUE; _OP: 0 for mask and xor
    let bytes = |kind| {
        value(data, kind)
            .and_then(|nested| value(nested, 1))
            .map(<[u8]>::to_vec)
    };
    match (bytes(4), bytes(5), number(data, 6).unwrap_or(0)) {
        (Some(mask), Some(xor), 0) => Some(Step::Mask {
            from: register(number(data, 1)?)?,
            to: register(number(data, 2)?)?,
            mask,
            xor,
        }),
        _ => Some(Step::Unknown),
    }
}

fn compare(data: &[u8]) -> Option<Step> {
    // NFTA_CMP_SREG, _OP, _DATA with NFTA_DATA_VALUE
    let how = match number(data, 2)? {
        0 => Comparison::Equal,
        1 => Comparison::Different,
        2 => Comparison::Less,
        3 => Comparison::LessOrEqual,
        4 => Comparison::Greater,
        _ => Comparison::GreaterOrEqual,
    };
    Some(Step::Compare {
        register: register(number(data, 1)?)?,
        how,
        value: value(value(data, 3)?, 1)?.to_vec(),
    })
}

fn immediate(data: &[u8]) -> Option<Step> {
    // NFTA_IMMEDIATE_DREG: the register of verdicts is 0; _DATA with NFTA_DATA_VERDICT, NFTA_VERDICT_CODE, _CHAIN
    if number(data, 1)? != 0 {
        return Some(Step::Unknown);
    }
    let verdict = value(value(data, 2)?, 2)?;
    let chain = || {
        let bytes = value(verdict, 2).unwrap_or_default();
        String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
    };
    // NF_DROP, NF_ACCEPT, NFT_CONTINUE, NFT_BREAK, NFT_JUMP, NFT_GOTO, NFT_RETURN
    Some(Step::Verdict(
        match i32::from_ne_bytes(number(verdict, 1)?.to_ne_bytes()) {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            -1 | -2 => return None,
            -3 => Verdict::Jump(chain()),
            -4 => Verdict::Goto(chain()),
            -5 => Verdict::Return,
            other => Verdict::Other(format!("verdict {other}")),
        },
    ))
}

/// A match of iptables-nft (NFTA_MATCH_NAME, NFTA_MATCH_INFO).
fn matching(data: &[u8]) -> Option<Step> {
    let name = value(data, 1).unwrap_or_default();
    match name.strip_suffix(&[0]).unwrap_or(name) {
        b"comment" => None,
        b"conntrack" => Some(tracked(value(data, 3).unwrap_or_default()).unwrap_or(Step::Unknown)),
        _ => Some(Step::Unknown),
    }
}

/// struct xt_conntrack_mtinfo2 and 3 (linux/netfilter/xt_conntrack.h): eight addresses of 16 bytes, two numbers of 4, five of 2,
/// then which of them count, which of them are inverted, and the states.
fn tracked(info: &[u8]) -> Option<Step> {
    const COUNTS: usize = 8 * 16 + 2 * 4 + 5 * 2;
    /// XT_CONNTRACK_STATE
    const STATE: u16 = 1;
    let short = |at: usize| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
    (short(COUNTS)? == STATE).then_some(())?;
    Some(Step::State {
        bits: u32::from(short(COUNTS + 4)?),
        inverted: short(COUNTS + 2)? & STATE != 0,
    })
}

/// A target of iptables-nft (NFTA_TARGET_NAME).
fn target(data: &[u8]) -> Option<Step> {
    let name = value(data, 1).unwrap_or_default();
    let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned();
    Some(Step::Verdict(match name.as_str() {
        "REJECT" => Verdict::Drop,
        "MASQUERADE" => Verdict::Masquerade,
        // They change or tell something, and the next rule follows.
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" | "CLASSIFY" | "TRACE" | "CT" | "CHECKSUM"
        | "SET" => return None,
        _ => Verdict::Other(name),
    }))
}

/// The first register of four bytes that a register stands for.
fn register(number: u32) -> Option<u32> {
    match number {
        FIRST_WIDE..FIRST => Some((number - FIRST_WIDE) * 4),
        _ => number.checked_sub(FIRST),
    }
}

fn value(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    wire::attributes(bytes)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

fn number(bytes: &[u8], wanted: u16) -> Option<u32> {
    Some(u32::from_be_bytes(value(bytes, wanted)?.try_into().ok()?))
}

fn long(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
