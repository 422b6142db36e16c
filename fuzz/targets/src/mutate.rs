//! Changes to known inputs, the same on every run: for compilers without libFuzzer.

/// What formats are made of; a random byte rarely hits them.
const WORDS: &[&str] = &[
    "\"",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "0",
    "65536",
    "1e99",
    "\\u0000",
    "\\ud800",
    "../",
    "/",
    "\r\n",
    "\n",
    "=",
    ";",
    "10.5.7.2",
    "fd00::1",
    "255.255.255.255",
    "::",
    "/33",
    "/129",
    "0.3.1",
    "1.1.0",
    "eth0",
    "veth%d",
    "CNI_",
    "prevResult",
    "delegate",
    "ipam",
    "done  \n",
    "adding\n",
    "\u{feff}",
    "\u{202e}",
    "\0",
];

/// A source of changed inputs.
#[derive(Debug)]
pub struct Mutator(u64);

impl Mutator {
    /// The same `seed` gives the same changes.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// `input` with one to eight changes; `other` is what parts may be taken from.
    pub fn change(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=self.below(8) {
            self.once(&mut bytes, other);
        }
        bytes.truncate(1 << 16);
        bytes
    }

    fn once(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(bytes.len() + 1);
        let end = at + self.below((bytes.len() - at).min(32) + 1);
        let random = u8::try_from(self.below(256)).unwrap_or_default();
        match self.below(7) {
            0 if at < bytes.len() => bytes[at] = random,
            1 if at < bytes.len() => bytes[at] ^= 1 << (random % 8),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            5 if !other.is_empty() => {
                let from = self.below(other.len());
                let to = from + self.below((other.len() - from).min(64) + 1);
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => {
                let word = WORDS[self.below(WORDS.len())];
                bytes.splice(at..end, word.bytes());
            }
        }
    }

    /// A number below `bound`, 0 for 0. The generator is Marsaglia's xorshift64.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.0 % bound).unwrap_or_default()
    }
}
