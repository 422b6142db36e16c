//! docs/conformance.md names every case once, and tests that there are.

#![expect(clippy::unwrap_used, reason = "what cannot be read fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The cases of each letter.
const CASES: &[(&str, usize)] = &[
    ("B", 28),
    ("H", 11),
    ("A", 8),
    ("R", 6),
    ("C", 2),
    ("D", 1),
    ("L", 1),
    ("F", 8),
    ("S", 13),
    ("X", 7),
    ("P", 12),
    ("T", 9),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The table's rows: the case, and the rest.
fn rows() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("docs/conformance.md")).unwrap();
    let row = |line: &str| {
        let (case, rest) = line.strip_prefix("| ")?.split_once(' ')?;
        let number = case.get(1..)?.parse::<usize>();
        number.is_ok().then(|| (case.to_owned(), rest.to_owned()))
    };
    text.lines().filter_map(row).collect()
}

/// The text of every module by its name; two of one name are one.
fn modules(folder: &Path, found: &mut BTreeMap<String, String>) {
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            modules(&path, found);
            continue;
        }
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let name = match stem.as_str() {
            "mod" => folder.file_name().unwrap().to_string_lossy().into_owned(),
            _ => stem,
        };
        *found.entry(name).or_default() += &fs::read_to_string(&path).unwrap();
    }
}

#[test]
fn every_case_has_its_row() {
    let mut cases: Vec<String> = rows().into_iter().map(|(case, _)| case).collect();
    cases.sort();
    let one = |(letter, count): &(&str, usize)| -> Vec<String> {
        (1..=*count).map(|number| format!("{letter}{number}")).collect()
    };
    let mut expected: Vec<String> = CASES.iter().flat_map(one).collect();
    expected.sort();
    assert_eq!(cases, expected);
}

#[test]
fn every_row_names_tests_that_there_are_or_a_reason() {
    let mut found = BTreeMap::new();
    for folder in ["cni-plugin/src", "cni-plugin/tests", "integration/tests/cases"] {
        modules(&root().join(folder), &mut found);
    }
    for (case, rest) in rows() {
        let mut tests = 0;
        for name in rest.split('`').skip(1).step_by(2) {
            let Some((module, test)) = name.split_once("::") else {
                continue;
            };
            let text = found.get(module).map(String::as_str).unwrap_or_default();
            assert!(text.contains(&format!("fn {test}()")), "{case} names {name}");
            tests += 1;
        }
        let reason = ["does not apply", "not built", "the table below"]
            .iter()
            .any(|reason| rest.contains(reason));
        assert!(tests > 0 || reason, "{case} names neither a test nor a reason");
    }
}
