//! Cuts a list answer into its items while it arrives.
//!
//! An API server may send a list in one piece whatever `limit` was asked for (it does when it answers from its watch cache), and
//! one of a large cluster has tens of megabytes. Only one item is held at a time here.

/// Longest single item: etcd takes requests of 1.5 MB, and JSON is at most a few times as long as what is stored.
pub(crate) const MAX_ITEM: usize = 8 << 20;
/// Longest envelope: metadata of the list without its items.
const MAX_ENVELOPE: usize = 64 << 10;

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SplitError {
    ItemTooLong,
    EnvelopeTooLong,
    Unfinished,
}

impl SplitError {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::ItemTooLong => "a list with an item of more than 8 MiB",
            Self::EnvelopeTooLong => "no list of the API: its head has more than 64 KiB",
            Self::Unfinished => "cut off",
        }
    }
}

/// Where the scanner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Envelope,
    /// Inside of the top-level array `items`, between items.
    Between,
    Item,
}

/// Splits one answer. Bytes go in as they come; whole items come out, and in the end the envelope with an empty `items`.
#[derive(Debug)]
pub(crate) struct Splitter {
    place: Place,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last complete string at depth 1, which is a key when a colon follows.
    last_string: Vec<u8>,
    /// The key whose value comes next, at depth 1, is `items`.
    items_next: bool,
    item: Vec<u8>,
    envelope: Vec<u8>,
}

impl Splitter {
    pub(crate) fn new() -> Self {
        Self {
            place: Place::Envelope,
            depth: 0,
            in_string: false,
            escaped: false,
            last_string: Vec::new(),
            items_next: false,
            item: Vec::new(),
            envelope: Vec::new(),
        }
    }

    /// Takes the next bytes and hands every item that they complete to `take`.
    pub(crate) fn push(&mut self, bytes: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), SplitError> {
        for &byte in bytes {
            match self.place {
                Place::Envelope => self.envelope_byte(byte)?,
                Place::Between => self.between(byte)?,
                Place::Item => self.item_byte(byte, &mut take)?,
            }
        }
        Ok(())
    }

    /// The envelope, once everything was taken.
    pub(crate) fn finish(self) -> Result<Vec<u8>, SplitError> {
        if self.place != Place::Envelope || self.depth != 0 || self.envelope.is_empty() {
            return Err(SplitError::Unfinished);
        }
        Ok(self.envelope)
    }

    fn envelope_byte(&mut self, byte: u8) -> Result<(), SplitError> {
        if self.envelope.len() >= MAX_ENVELOPE {
            return Err(SplitError::EnvelopeTooLong);
        }
        self.envelope.push(byte);
        if self.in_string {
            if self.string_byte(byte) && self.depth == 1 {
                self.last_string.push(byte);
            }
            return Ok(());
        }
        match byte {
            b'"' => {
                self.in_string = true;
                self.last_string.clear();
            }
            b'{' => self.depth += 1,
            b'}' => self.depth = self.depth.saturating_sub(1),
            b'[' => {
                if self.depth == 1 && self.items_next {
                    self.place = Place::Between;
                }
                self.depth += 1;
            }
            b']' => self.depth = self.depth.saturating_sub(1),
            b':' if self.depth == 1 => {
                self.items_next = self.last_string == b"items";
                return Ok(());
            }
            b' ' | b'\t' | b'\r' | b'\n' => return Ok(()),
            _ => {}
        }
        self.items_next = false;
        Ok(())
    }

    fn between(&mut self, byte: u8) -> Result<(), SplitError> {
        match byte {
            b']' => {
                self.place = Place::Envelope;
                self.envelope_byte(byte)
            }
            b',' | b' ' | b'\t' | b'\r' | b'\n' => Ok(()),
            _ => {
                self.item.clear();
                self.place = Place::Item;
                self.item.push(byte);
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    _ => {}
                }
                Ok(())
            }
        }
    }

    fn item_byte(&mut self, byte: u8, take: &mut impl FnMut(&[u8])) -> Result<(), SplitError> {
        if !self.in_string && self.depth == 2 && matches!(byte, b',' | b']') {
            take(&self.item);
            self.place = Place::Between;
            return self.between(byte);
        }
        if self.item.len() >= MAX_ITEM {
            return Err(SplitError::ItemTooLong);
        }
        self.item.push(byte);
        if self.in_string {
            self.string_byte(byte);
            return Ok(());
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        Ok(())
    }

    /// Follows a string; whether `byte` belongs to its content.
    fn string_byte(&mut self, byte: u8) -> bool {
        if self.escaped {
            self.escaped = false;
        } else if byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.in_string = false;
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn split(text: &[u8], chunk: usize) -> Result<(Vec<Value>, Value), SplitError> {
        let mut splitter = Splitter::new();
        let mut items = Vec::new();
        for part in text.chunks(chunk.max(1)) {
            splitter.push(part, |item| items.push(serde_json::from_slice(item).unwrap()))?;
        }
        let envelope = splitter.finish()?;
        Ok((items, serde_json::from_slice(&envelope).unwrap()))
    }

    #[test]
    fn items_of_a_list_and_of_nothing() {
        let text = br#"{"kind":"ServiceList","metadata":{"items":[1],"continue":"a\"b"},"items":[{"a":[{"b":"]},{"}]}, {}],"x":1}"#;
        let (items, envelope) = split(text, 7).unwrap();
        assert_eq!(items, [json!({"a":[{"b":"]},{"}]}), json!({})]);
        assert_eq!(envelope["metadata"]["continue"], "a\"b");
        assert_eq!((&envelope["items"], &envelope["x"]), (&json!([]), &json!(1)));
        for empty in [
            r#"{"items":null,"metadata":{}}"#,
            r#"{"items":[],"metadata":{}}"#,
            "{}",
        ] {
            assert_eq!(split(empty.as_bytes(), 3).unwrap().0.len(), 0, "{empty}");
        }
    }

    #[test]
    fn what_is_cut_off_or_endless_is_refused() {
        assert_eq!(split(br#"{"items":[{"a":1},{"#, 4), Err(SplitError::Unfinished));
        assert_eq!(split(b"", 4), Err(SplitError::Unfinished));
        let endless = vec![b' '; MAX_ENVELOPE + 1];
        assert_eq!(split(&endless, 4096), Err(SplitError::EnvelopeTooLong));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
            Just(json!("items")),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("(items|[a-c\"\\\\{}\\[\\]])", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_list_comes_out_as_it_went_in(items in prop::collection::vec(any_json(), 0..6), metadata in any_json(), chunk in 1usize..40) {
            let text = json!({"a": metadata, "items": items, "metadata": metadata}).to_string();
            let (found, envelope) = split(text.as_bytes(), chunk).unwrap();
            prop_assert_eq!(found, items);
            prop_assert_eq!(&envelope["metadata"], &metadata);
            prop_assert_eq!(&envelope["items"], &json!([]));
        }
    }
}
