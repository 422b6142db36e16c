//! What a check found out, and how it is shown.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::failure::Failure;
use crate::output::{Output, printable};

/// How bad it is, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing to look at here.
    Skipped,
    /// As it should be.
    Ok,
    /// It works, but maybe not as it was meant, or not for long.
    Warning,
    /// Something does not work.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skipped => "skipped",
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "ERROR",
        })
    }
}

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check; it does not change between versions.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, text, None)
    }

    /// Nothing to check.
    pub fn skipped(check: &'static str, text: impl Into<String>) -> Self {
        Self::new(check, Level::Skipped, text, None)
    }

    /// Worth a look.
    pub fn warning(check: &'static str, text: impl Into<String>, fix: &str) -> Self {
        Self::new(check, Level::Warning, text, Some(fix.to_owned()))
    }

    /// Broken.
    pub fn error(check: &'static str, text: impl Into<String>, fix: &str) -> Self {
        Self::new(check, Level::Error, text, Some(fix.to_owned()))
    }

    fn new(check: &'static str, level: Level, text: impl Into<String>, fix: Option<String>) -> Self {
        Self {
            check,
            level,
            text: text.into(),
            fix,
        }
    }
}

#[derive(Debug, Serialize)]
struct View<'a> {
    /// The worst level of all.
    result: Level,
    findings: &'a [Finding],
}

/// Shows the findings; errors among them are a failure, which `failure` makes of their number.
pub fn show(
    findings: &[Finding],
    output: &mut Output,
    failure: impl FnOnce(usize) -> Failure,
) -> Result<(), Failure> {
    let worst = findings
        .iter()
        .map(|finding| finding.level)
        .max()
        .unwrap_or(Level::Ok);
    let view = View {
        result: worst,
        findings,
    };
    output.show(&view, table)?;
    match count(findings, Level::Error) {
        0 => Ok(()),
        errors => Err(failure(errors)),
    }
}

fn count(findings: &[Finding], level: Level) -> usize {
    findings.iter().filter(|finding| finding.level == level).count()
}

fn table(view: &View<'_>) -> String {
    let mut text = String::new();
    let width = view
        .findings
        .iter()
        .map(|finding| finding.check.len())
        .max()
        .unwrap_or(0);
    for finding in view.findings {
        let (level, what) = (finding.level.to_string(), printable(&finding.text));
        let _ = writeln!(text, "{level:<7}  {:<width$}  {what}", finding.check);
        if let Some(fix) = &finding.fix {
            let _ = writeln!(text, "{:<7}  {:<width$}  → {}", "", "", printable(fix));
        }
    }
    let (errors, warnings) = (
        count(view.findings, Level::Error),
        count(view.findings, Level::Warning),
    );
    let _ = writeln!(
        text,
        "{}, {}",
        number(errors, "error"),
        number(warnings, "warning")
    );
    text
}

/// A number with its noun: `1 error`, `2 errors`.
pub fn number(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// Some of many names, and how many there are besides.
pub fn some<T: fmt::Display>(names: &[T]) -> String {
    const NAMED: usize = 5;
    let named: Vec<String> = names
        .iter()
        .take(NAMED)
        .map(|name| printable(&name.to_string()))
        .collect();
    match names.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Format;

    #[test]
    fn the_worst_level_decides_and_every_fix_is_shown() {
        let findings = [
            Finding::ok("one", "fine"),
            Finding::warning("two", "odd\u{1b}", "look"),
            Finding::error("three", "broken", "mend"),
        ];
        let mut output = Output::new(Format::Table);
        let failure = show(&findings, &mut output, |errors| {
            Failure::Findings(format!("{errors}"))
        })
        .unwrap_err();
        assert!(matches!(failure, Failure::Findings(text) if text == "1"));
        let text = format!("{output:?}");
        for part in ["ok       one    fine", "→ mend", "1 error, 1 warning"] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
        show(&findings[..2], &mut output, |_| unreachable!()).unwrap();
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(some(&["a", "b"]), "a, b");
        assert_eq!(some(&[1, 2, 3, 4, 5, 6, 7]), "1, 2, 3, 4, 5 and 2 more");
    }
}
