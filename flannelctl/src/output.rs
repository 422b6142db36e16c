//! Everything that goes to standard output, gathered and written once.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use comfy_table::{Row, Table, presets};
use serde::Serialize;

use crate::cli::Format;
use crate::failure::Failure;

/// What a command has to show.
#[derive(Debug)]
pub struct Output {
    format: Format,
    text: String,
}

impl Output {
    /// Nothing yet, to be shown in this form.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            text: String::new(),
        }
    }

    /// Shows `view` as JSON or YAML, or what `table` makes of it.
    pub fn show<T: Serialize>(&mut self, view: &T, table: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        self.text += &match self.format {
            Format::Table => table(view),
            Format::Json => serde_json::to_string_pretty(view).context("cannot write JSON")? + "\n",
            Format::Yaml => serde_norway::to_string(view).context("cannot write YAML")?,
        };
        Ok(())
    }

    /// Adds text as it is.
    pub fn push(&mut self, text: &str) {
        self.text += text;
    }

    /// Writes it. A reader that has seen enough (`| head`) is no error.
    pub fn write(&self) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout
            .write_all(self.text.as_bytes())
            .and_then(|()| stdout.flush())
        {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}

/// A table in columns, without lines, as `kubectl get` shows it.
pub fn columns<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(Row::from(header.to_vec()));
    for row in rows {
        table.add_row(Row::from(
            row.iter().map(|cell| printable(cell)).collect::<Vec<_>>(),
        ));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.lines() {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// One record that cannot be used.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Rejected {
    /// Its whole key.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// The lines about rejected records; nothing when there are none.
pub fn rejected_lines(rejected: &[Rejected]) -> String {
    let mut text = String::new();
    for (i, record) in rejected.iter().enumerate() {
        if i == 0 {
            let _ = writeln!(text, "\nRejected records:");
        }
        let _ = writeln!(
            text,
            "  {}: {}",
            printable(&record.key),
            printable(&record.reason)
        );
    }
    text
}

/// Text from elsewhere made harmless for a terminal: control characters are escaped, and it is cut at 300 characters.
pub fn printable(text: &str) -> String {
    const LONGEST: usize = 300;
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == LONGEST {
            out.push('…');
            break;
        }
        match c {
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// An error and all its causes in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A time span in its two largest units: `12d3h`, `23h12m`, `4m5s`, `7s`. Up to three days are told in hours, as leases are.
pub fn span(secs: u64) -> String {
    let (hours, minutes, seconds) = (secs / 3600, secs / 60 % 60, secs % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        (0..72, _) => format!("{hours}h{minutes}m"),
        (_, _) => format!("{}d{}h", hours / 24, hours % 24),
    }
}

/// Seconds since 1970 by this machine's clock.
pub fn wall_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let text = columns(
            ["A", "B"],
            [
                ["1".to_owned(), "x".to_owned()],
                ["222".to_owned(), String::new()],
            ],
        );
        assert_eq!(text, "A     B\n1     x\n222\n");
        assert_eq!(columns(["A", "B"], []), "A   B\n");
    }

    #[test]
    fn hostile_text_cannot_drive_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(printable(&"x".repeat(1000)).chars().count(), 301);
    }

    #[test]
    fn spans() {
        assert_eq!(
            [span(7), span(245), span(83_520), span(0), span(1_047_600)],
            ["7s", "4m5s", "23h12m", "0s", "12d3h"]
        );
    }
}
