//! docs/man/flannel-cni.8 names every key that is read.

#![expect(clippy::unwrap_used, reason = "what cannot be read fails the test")]

use std::fs;
use std::path::Path;

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The keys are the texts of the lists in the module that knows them all.
fn keys() -> Vec<String> {
    let source = file("src/config/known.rs");
    let lists = source.split("/// One sentence for each key").next().unwrap();
    let quoted = lists.split('"').skip(1).step_by(2);
    quoted
        .filter(|key| !key.contains('/'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_man_page_names_every_key() {
    let page = file("../docs/man/flannel-cni.8");
    let keys = keys();
    assert!(keys.len() > 30, "{keys:?}");
    let words: Vec<&str> = page
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .collect();
    for key in keys {
        assert!(words.contains(&key.as_str()), "{key} is not in flannel-cni.8");
    }
}
