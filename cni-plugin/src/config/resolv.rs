//! `resolvConf`: name service settings from a file in the form of resolv.conf(5).

use std::path::Path;

use crate::address::read_named;
use crate::protocol::{CniError, Code, Dns};

/// Largest file in bytes; the C library reads no more than some lines.
const MOST: u64 = 64 << 10;

/// Reads the file at `path`.
///
/// # Errors
/// Code 5 when it cannot be read.
pub fn read_resolv_conf(path: &Path) -> Result<Dns, CniError> {
    let text = read_named(path, MOST).map_err(|e| {
        let msg = format!("ipam.resolvConf {} cannot be read", path.display());
        CniError::caused(Code::Io, msg, &e)
    })?;
    Ok(parse(&text))
}

/// `#` and `;` begin comments; the last `domain` wins, lists add up.
fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        let keyword = words.next();
        match keyword.as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_file() {
        let dns = parse(
            "; c\n# c\ndomain a\ndomain b\nnameserver 10.0.0.1\nnameserver ::1\nsearch x y\nsearch z\noptions ndots:5\njunk\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.1", "::1"]);
        assert_eq!(dns.domain, "b");
        assert_eq!(dns.search, ["x", "y", "z"]);
        assert_eq!(dns.options, ["ndots:5"]);
    }

    #[test]
    fn a_missing_file_is_code_5() {
        assert_eq!(
            read_resolv_conf(Path::new("/nonexistent/resolv.conf"))
                .unwrap_err()
                .code,
            Code::Io
        );
    }
}
