//! Files named on the command line.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use crate::failure::Failure;

/// Largest input, in bytes: many times what etcd takes in one transaction.
const LIMIT: u64 = 16 << 20;

/// Says at the beginning of a text that it is one of UTF-8; no part of it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// One file and what it holds.
#[derive(Debug)]
pub struct Input {
    /// As it was named; `standard input` for `-`.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// The text of a file, or of standard input for `-`.
pub fn read_text(file: &str) -> Result<String, Failure> {
    if file == "-" {
        return Ok(limited(io::stdin().lock(), "standard input")?);
    }
    let open = std::fs::File::open(file).with_context(|| format!("cannot open {file}"))?;
    Ok(limited(open, file)?)
}

/// Every file that `names` mean: a directory means its manifests in the order of their names.
pub fn read_all(names: &[String]) -> Result<Vec<Input>, Failure> {
    let mut inputs = Vec::new();
    for name in names {
        if name != "-" && Path::new(name).is_dir() {
            for path in manifests_in(Path::new(name))? {
                let name = path.display().to_string();
                let text = read_text(&name)?;
                inputs.push(Input { name, text });
            }
        } else {
            let text = read_text(name)?;
            let name = if name == "-" { "standard input" } else { name };
            inputs.push(Input {
                name: name.to_owned(),
                text,
            });
        }
    }
    Ok(inputs)
}

fn manifests_in(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let story = || format!("cannot read the directory {}", dir.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(story)? {
        let path = entry.with_context(story)?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if matches!(extension, "yaml" | "yml" | "json") && path.is_file() {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(anyhow!(
            "there is no *.yaml, *.yml or *.json file in {}",
            dir.display()
        ));
    }
    paths.sort();
    Ok(paths)
}

fn limited(source: impl Read, name: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    source
        .take(LIMIT + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > LIMIT {
        return Err(anyhow!("{name} is larger than {} MiB", LIMIT >> 20));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        anyhow!(
            "{name} is not UTF-8 text (byte {})",
            error.utf8_error().valid_up_to()
        )
    })?;
    // editors of Windows put one there
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_its_manifests_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("b.yml", "2"), ("a.yaml", "1"), ("c.json", "3"), ("README", "x")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let inputs = read_all(&[dir.path().display().to_string()]).unwrap();
        let texts: Vec<&str> = inputs.iter().map(|input| input.text.as_str()).collect();
        assert_eq!(texts, ["1", "2", "3"]);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_text() {
        assert_eq!(
            limited(&b"\xef\xbb\xbfkind: List"[..], "x").unwrap(),
            "kind: List"
        );
        assert_eq!(limited(&b"\xef\xbb\xbf"[..], "x").unwrap(), "");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let junk = dir.path().join("junk.yaml");
        std::fs::write(&junk, b"a\xff").unwrap();
        for (name, part) in [
            (dir.path().join("none"), "cannot open"),
            (junk, "not UTF-8 text (byte 1)"),
        ] {
            let Err(Failure::Usage(error)) = read_all(&[name.display().to_string()]) else {
                panic!("taken");
            };
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
        assert!(matches!(limited(io::repeat(b'x'), "x"), Err(error) if error.to_string().contains("16 MiB")));
    }
}
