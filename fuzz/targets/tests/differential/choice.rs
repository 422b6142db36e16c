//! Texts made of values of which each says whether we take it.

use flannel_fuzz::Mutator;
use serde_json::Value;

/// A value for a key; none leaves the key out.
pub struct Choice {
    pub value: Option<Value>,
    /// A word of our refusal, for a value that we refuse and the other reader may take.
    pub refused: Option<&'static str>,
}

/// The key is left out.
pub fn absent() -> Choice {
    Choice {
        value: None,
        refused: None,
    }
}

/// Both should take it.
pub fn fine(value: impl Into<Value>) -> Choice {
    Choice {
        value: Some(value.into()),
        refused: None,
    }
}

/// We refuse it, and `word` is in the refusal.
pub fn refused(value: impl Into<Value>, word: &'static str) -> Choice {
    Choice {
        value: Some(value.into()),
        refused: Some(word),
    }
}

/// An object with one choice a key, most of them fine, and the words of the refusals it must meet.
pub fn object(keys: &[(&str, Vec<Choice>)], random: &mut Mutator) -> (Value, Vec<&'static str>) {
    let mut object = serde_json::Map::new();
    let mut words = Vec::new();
    for (key, choices) in keys {
        let mut choice = &choices[random.below(choices.len())];
        // Otherwise hardly any object would be without one.
        if choice.refused.is_some() && random.below(3) != 0 {
            choice = &choices[0];
        }
        words.extend(choice.refused);
        object.extend(choice.value.clone().map(|value| ((*key).to_owned(), value)));
    }
    (Value::Object(object), words)
}

/// How often both read the same, and how often we refused with reason.
#[derive(Debug, Default)]
pub struct Tally {
    pub alike: usize,
    pub stricter: usize,
    /// What the other reader refuses says nothing about ours.
    pub unsaid: usize,
}

impl Tally {
    /// A comparison that hardly ever compares proves nothing.
    pub fn check(&self) {
        println!("{self:?}");
        assert!(self.alike > 100 && self.stricter > 100, "{self:?}");
    }
}
