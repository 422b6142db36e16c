//! This host beside etcd: its clock, and what it keeps on disk for a boot without etcd.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::judge;
use crate::findings::{Finding, Level};
use crate::output::span;
use crate::subnets::{Listing, Record};

/// Clocks of nodes that a time service keeps are apart by less than this.
const APART: u64 = 60;

/// Name of the file in the state folder.
const CACHE: &str = "peers.cache";

/// Whether a clock shows another time than this host's: the nodes write into their notes when they had their subnet.
pub fn clock(listing: &Listing, now: u64) -> Finding {
    let ahead: Vec<String> = listing
        .notes
        .iter()
        .filter(|(_, note)| note.last_held > now + APART)
        .map(|(key, note)| {
            let by = span(note.last_held - now);
            format!("the note about {key}, of {}, is {by} ahead", note.public_ip)
        })
        .collect();
    judge(
        "clock",
        Level::Warning,
        &ahead,
        "clocks that do not agree",
        "no node's clock is ahead of this one".to_owned(),
        "set the clocks of these nodes, or of this one (timedatectl, chronyc tracking): subnets are in hold-down by them, and a \
         boot without etcd asks them whether the lease still lives",
    )
}

/// Whether a boot without etcd would have connectivity.
pub fn cache(folder: &Path, own: Option<&Record>, now: SystemTime) -> Finding {
    let check = "peer-cache";
    let file = folder.join(CACHE);
    let shown = file.display();
    let written = match std::fs::metadata(&file).and_then(|metadata| metadata.modified()) {
        Ok(written) => written,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let fix = "is flanneld running, with this --state-dir? Without the file, a boot while etcd is away has no connectivity";
            return Finding::warning(check, format!("there is no {shown}"), fix);
        }
        Err(error) => {
            return Finding::warning(
                check,
                format!("{shown} cannot be looked at: {error}"),
                "run this as root",
            );
        }
    };
    let Ok(age) = now.duration_since(written) else {
        let at = written.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let fix = "set the clock of this host: a boot without etcd would add no pod, because the file is from a time to come";
        return Finding::warning(
            check,
            format!("{shown} was written at {at} s since 1970, later than now"),
            fix,
        );
    };
    let text = format!("{shown} was written {} ago", span(age.as_secs()));
    let granted = own
        .and_then(|record| record.lifetime)
        .map(|life| u64::from(life.granted));
    match granted.is_some_and(|granted| age > Duration::from_secs(granted)) {
        true => {
            let fix = "restart flanneld, and look for `kept on disk` in its log: a boot without etcd would use old peers and add no pod";
            Finding::warning(check, text, fix)
        }
        false => Finding::ok(check, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_model::UsedNote;
    use std::collections::BTreeMap;

    #[test]
    fn a_clock_that_is_ahead_is_named() {
        let note = |last_held| UsedNote {
            last_held,
            held_since: None,
            public_ip: [192, 168, 50, 11].into(),
            public_ipv6: None,
        };
        let with = |held: u64| Listing {
            records: Vec::new(),
            rejected: Vec::new(),
            pools: None,
            notes: BTreeMap::from([("10.5.1.0-24".parse().unwrap(), note(held))]),
        };
        assert_eq!(clock(&with(1_050), 1_000).level, Level::Ok);
        let found = clock(&with(8_600), 1_000);
        assert_eq!(found.level, Level::Warning);
        assert!(
            found.text.contains("192.168.50.11, is 2h6m ahead"),
            "{}",
            found.text
        );
    }

    #[test]
    fn the_age_of_the_cache_is_judged() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        assert_eq!(cache(dir.path(), None, now).level, Level::Warning);
        std::fs::write(dir.path().join(CACHE), "x").unwrap();
        assert_eq!(
            cache(dir.path(), None, now + Duration::from_secs(1)).level,
            Level::Ok
        );
        let before = cache(dir.path(), None, now - Duration::from_secs(3600));
        assert!(before.text.contains("later than now"), "{}", before.text);
    }
}
