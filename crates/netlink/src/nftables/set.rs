//! Elements of sets and maps, as bytes, many to a message.

use super::{Attributes, Kind, Message};
use crate::wire::attributes;

/// Most bytes of elements in one message: the length of an attribute has 16 bits.
const MESSAGE_BYTES: usize = 60_000;

/// What a key of a map stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Data {
    /// Bytes, each field of a concatenation padded to four.
    Value(Vec<u8>),
    /// `goto` of a chain.
    Goto(String),
    /// `accept`.
    Accept,
}

/// An element of a set or a map.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Element {
    /// The key, each field of a concatenation padded to four bytes.
    pub key: Vec<u8>,
    /// Upper end of a range, in sets of ranges of concatenations.
    pub key_end: Option<Vec<u8>>,
    /// Marks the first key behind a range, in sets of ranges of single fields.
    pub interval_end: bool,
    /// What it stands for, in a map.
    pub data: Option<Data>,
}

/// An element as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedElement {
    /// The element.
    pub element: Element,
    /// What its counter saw, where it has one.
    pub counter: Option<Counter>,
}

/// What a counter saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Their bytes, IP headers among them.
    pub bytes: u64,
}

impl Element {
    /// A key without more.
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.into(),
            key_end: None,
            interval_end: false,
            data: None,
        }
    }

    /// A key that stands for something.
    pub fn mapping(key: impl Into<Vec<u8>>, data: Data) -> Self {
        Self {
            data: Some(data),
            ..Self::key(key)
        }
    }

    /// With a counter's reading left out, as the kernel wants it. Of an element to delete the key is enough.
    fn attributes(&self, with_data: bool) -> Attributes {
        // NFTA_SET_ELEM_KEY, _DATA, _FLAGS, _KEY_END
        let mut out = Attributes::new().nest(1, &value(&self.key));
        if with_data {
            out = match &self.data {
                Some(Data::Value(bytes)) => out.nest(2, &value(bytes)),
                Some(Data::Goto(chain)) => out.nest(2, &verdict(GOTO, Some(chain))),
                Some(Data::Accept) => out.nest(2, &verdict(ACCEPT, None)),
                None => out,
            };
        }
        if self.interval_end {
            out = out.number(3, INTERVAL_END);
        }
        match &self.key_end {
            Some(end) => out.nest(10, &value(end)),
            None => out,
        }
    }
}

/// NFT_SET_ELEM_INTERVAL_END
const INTERVAL_END: u32 = 1;
/// NFT_GOTO (-4), NF_ACCEPT (1) and NF_DROP (0), as verdict codes.
pub(super) const GOTO: u32 = (-4_i32).cast_unsigned();
pub(super) const ACCEPT: u32 = 1;
pub(super) const DROP: u32 = 0;

fn value(bytes: &[u8]) -> Attributes {
    // NFTA_DATA_VALUE
    Attributes::new().bytes(1, bytes)
}

pub(super) fn verdict(code: u32, chain: Option<&str>) -> Attributes {
    // NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN in NFTA_DATA_VERDICT
    let inner = Attributes::new().number(1, code);
    let inner = match chain {
        Some(chain) => inner.text(2, chain),
        None => inner,
    };
    Attributes::new().nest(2, &inner)
}

/// Messages that add elements to a set or map.
pub fn add_elements<'a>(
    table: &str,
    set: &str,
    elements: impl IntoIterator<Item = &'a Element>,
) -> Vec<Message> {
    let list = elements.into_iter().map(|e| e.attributes(true));
    in_messages(Kind::NewElement, table, set, list)
}

/// Messages that take elements out of a set or map. One that is not there is an error.
pub fn delete_elements<'a>(
    table: &str,
    set: &str,
    elements: impl IntoIterator<Item = &'a Element>,
) -> Vec<Message> {
    let list = elements.into_iter().map(|e| e.attributes(false));
    in_messages(Kind::DeleteElement, table, set, list)
}

fn in_messages(
    kind: Kind,
    table: &str,
    set: &str,
    elements: impl Iterator<Item = Attributes>,
) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut list = Attributes::new();
    let flush = |list: Attributes, messages: &mut Vec<Message>| {
        // NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS
        let attributes = Attributes::new().text(1, table).text(2, set).nest(3, &list);
        messages.push(Message { kind, attributes });
    };
    for element in elements {
        // NFTA_LIST_ELEM
        list = list.nest(1, &element);
        if list.len() > MESSAGE_BYTES {
            flush(std::mem::take(&mut list), &mut messages);
        }
    }
    if !list.is_empty() {
        flush(list, &mut messages);
    }
    messages
}

/// The elements in one message of a listing. What cannot be read is left out.
pub(super) fn read_elements(payload: &[u8], out: &mut Vec<ListedElement>) {
    // behind struct nfgenmsg; NFTA_SET_ELEM_LIST_ELEMENTS
    let list = attributes(payload.get(4..).unwrap_or_default()).find(|(kind, _)| *kind == 3);
    let elements = list.into_iter().flat_map(|(_, list)| attributes(list));
    out.extend(elements.filter_map(|(_, element)| read_element(element)));
}

fn read_element(bytes: &[u8]) -> Option<ListedElement> {
    let mut element = Element::key(Vec::new());
    let mut counter = None;
    for (kind, value) in attributes(bytes) {
        match kind {
            1 => element.key = read_value(value)?,
            2 => element.data = Some(read_data(value)?),
            3 => element.interval_end = be32(value)? & INTERVAL_END != 0,
            // NFTA_SET_ELEM_EXPR; NFTA_SET_ELEM_EXPRESSIONS holds a list of them
            7 => counter = read_counter(value),
            10 => element.key_end = Some(read_value(value)?),
            11 => counter = attributes(value).find_map(|(_, one)| read_counter(one)),
            _ => {}
        }
    }
    (!element.key.is_empty()).then_some(ListedElement { element, counter })
}

fn read_value(bytes: &[u8]) -> Option<Vec<u8>> {
    attributes(bytes)
        .find(|(kind, _)| *kind == 1)
        .map(|(_, v)| v.to_vec())
}

fn read_data(bytes: &[u8]) -> Option<Data> {
    let (kind, value) = attributes(bytes).next()?;
    if kind == 1 {
        return Some(Data::Value(value.to_vec()));
    }
    let code = attributes(value)
        .find(|(kind, _)| *kind == 1)
        .and_then(|(_, v)| be32(v))?;
    match code {
        ACCEPT => Some(Data::Accept),
        GOTO => {
            let (_, chain) = attributes(value).find(|(kind, _)| *kind == 2)?;
            let chain = chain.strip_suffix(&[0]).unwrap_or(chain);
            Some(Data::Goto(String::from_utf8_lossy(chain).into_owned()))
        }
        _ => None,
    }
}

/// NFTA_COUNTER_BYTES and NFTA_COUNTER_PACKETS of an expression that is a counter.
fn read_counter(expression: &[u8]) -> Option<Counter> {
    let mut parts = attributes(expression);
    let (_, name) = parts.next()?;
    if name.strip_suffix(&[0]) != Some(b"counter") {
        return None;
    }
    let (_, data) = parts.next()?;
    let number = |wanted: u16| {
        let (_, value) = attributes(data).find(|(kind, _)| *kind == wanted)?;
        Some(u64::from_be_bytes(value.try_into().ok()?))
    };
    Some(Counter {
        bytes: number(1)?,
        packets: number(2)?,
    })
}

fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let elements = [
            Element::key([10, 96, 0, 0]),
            Element {
                interval_end: true,
                ..Element::key([10, 97, 0, 0])
            },
            Element {
                key_end: Some(vec![192, 0, 2, 255]),
                ..Element::key([192, 0, 2, 0])
            },
            Element::mapping(
                [1, 2, 3, 4, 6, 0, 0, 0],
                Data::Value(vec![10, 5, 1, 2, 0x1f, 0x90, 0, 0]),
            ),
            Element::mapping([1, 2, 3, 4], Data::Goto("pick-2".into())),
            Element::mapping([1, 2, 3, 5], Data::Accept),
        ];
        let messages = add_elements("t", "s", &elements);
        assert_eq!(messages.len(), 1);
        let mut payload = vec![2, 0, 0, 0];
        payload.extend_from_slice(messages[0].attributes.as_bytes());
        let mut read = Vec::new();
        read_elements(&payload, &mut read);
        let read: Vec<Element> = read.into_iter().map(|listed| listed.element).collect();
        assert_eq!(read, elements);
    }

    #[test]
    fn many_elements_fill_several_messages() {
        let elements: Vec<Element> = (0..5000_u32).map(|n| Element::key(n.to_be_bytes())).collect();
        let messages = delete_elements("t", "s", &elements);
        assert!(messages.len() > 1 && messages.iter().all(|m| m.attributes.len() < 65_000));
        let mut read = Vec::new();
        for message in &messages {
            read_elements(
                &[&[2, 0, 0, 0], message.attributes.as_bytes()].concat(),
                &mut read,
            );
        }
        assert_eq!(read.len(), elements.len());
    }
}
