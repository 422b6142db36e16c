//! The members of the etcd cluster: whether they answer, their versions, and what they complain about.

use flannel_store::{MemberStatus, StoreError};

use super::judge;
use crate::findings::{Finding, Level, number, some};

/// Before it, etcd does not answer requests for progress on a watch (CHANGELOG-3.4), and an idle watch is taken for dead.
const OLDEST: Version = Version(3, 4, 0);

/// The first release of each line in which a user may not read by a transaction what his roles keep from him
/// (GHSA-x35m-3gp4-4fh5, May 2026).
const SOUND: [Version; 3] = [Version(3, 4, 44), Version(3, 5, 30), Version(3, 6, 11)];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    /// What stands behind a third number, as in 3.6.0-rc.1, does not count.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.');
        let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let patch: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
        Some(Self(major, minor, patch.parse().ok()?))
    }

    fn is_sound(self) -> bool {
        let of_line = SOUND.iter().find(|sound| (sound.0, sound.1) == (self.0, self.1));
        of_line.map_or(self > SOUND[2], |sound| self >= *sound)
    }
}

/// An endpoint and what it said.
pub type Asked = (String, Result<MemberStatus, StoreError>);

/// What there is to say of the endpoints that were given.
pub fn findings(asked: &[Asked]) -> Vec<Finding> {
    let answered = |port: &str| {
        asked
            .iter()
            .any(|(e, answer)| answer.is_ok() && e.ends_with(port))
    };
    // flannel's default endpoints hold etcd's port of before 2015, where nobody listens any more.
    let by_default = |endpoint: &str| endpoint == "http://127.0.0.1:4001" && answered("//127.0.0.1:2379");
    let silent: Vec<String> = asked
        .iter()
        .filter(|(endpoint, _)| !by_default(endpoint))
        .filter_map(|(_, answer)| answer.as_ref().err().map(ToString::to_string))
        .collect();
    let members: Vec<(&str, &MemberStatus)> = asked
        .iter()
        .filter_map(|(endpoint, answer)| Some((endpoint.as_str(), answer.as_ref().ok()?)))
        .collect();
    vec![
        judge(
            "etcd-endpoints",
            Level::Warning,
            &silent,
            "endpoints that do not say how they are",
            format!("{} of etcd answering", number(members.len(), "endpoint")),
            "is etcd running there? Leave out endpoints that are no more: calls pass them over, but late",
        ),
        versions(&members),
        alarms(&members),
    ]
}

fn versions(members: &[(&str, &MemberStatus)]) -> Finding {
    let check = "etcd-version";
    if members.is_empty() {
        return Finding::skipped(check, "no endpoint said its version");
    }
    let all: Vec<String> = members
        .iter()
        .map(|(endpoint, status)| format!("{} at {endpoint}", status.version))
        .collect();
    let read = || {
        members
            .iter()
            .filter_map(|(_, status)| Version::parse(&status.version))
    };
    if read().any(|version| version < OLDEST) {
        let fix = "upgrade etcd to 3.5 or later: watches cannot be kept alive on older ones";
        return Finding::error(check, format!("too old: {}", some(&all)), fix);
    }
    if read().any(|version| read().any(|other| (other.0, other.1) != (version.0, version.1))) {
        let fix = "finish the upgrade: until then the cluster offers what its oldest member can";
        return Finding::warning(check, format!("members of several versions: {}", some(&all)), fix);
    }
    if !read().all(Version::is_sound) {
        let fix = "upgrade to 3.4.44, 3.5.30, 3.6.11 or later, unless your distribution has mended its own: a user of etcd can \
                   read what his roles keep from him (GHSA-x35m-3gp4-4fh5)";
        return Finding::warning(check, format!("with a known weakness: {}", some(&all)), fix);
    }
    Finding::ok(check, some(&all))
}

fn alarms(members: &[(&str, &MemberStatus)]) -> Finding {
    if members.is_empty() {
        return Finding::skipped("etcd-alarms", "no endpoint said how it is");
    }
    let mut bad: Vec<String> = Vec::new();
    for (endpoint, status) in members {
        bad.extend(
            status
                .complaints
                .iter()
                .map(|alarm| format!("{endpoint}: {alarm}")),
        );
        if status.leader == 0 {
            bad.push(format!("{endpoint}: it follows no leader"));
        }
    }
    let largest = members
        .iter()
        .map(|(_, status)| status.database)
        .max()
        .unwrap_or(0);
    judge(
        "etcd-alarms",
        Level::Error,
        &bad,
        "etcd complains",
        format!(
            "no member complains; the largest database has {} MiB",
            largest >> 20
        ),
        "NOSPACE stops all writes: compact and defragment, then etcdctl alarm disarm; without a leader there is no majority",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(version: &str) -> Asked {
        let status = MemberStatus {
            version: version.to_owned(),
            leader: 1,
            database: 20 << 20,
            complaints: Vec::new(),
        };
        (format!("http://{version}:2379"), Ok(status))
    }

    fn levels(asked: &[Asked]) -> Vec<Level> {
        findings(asked).iter().map(|found| found.level).collect()
    }

    #[test]
    fn versions_are_judged_by_their_line() {
        use Level::{Error, Ok, Warning};
        for (version, level) in [
            ("3.3.27", Error),
            ("3.4.43", Warning),
            ("3.4.44", Ok),
            ("3.5.9", Warning),
            ("3.5.30", Ok),
            ("3.6.0-rc.1", Warning),
            ("3.6.11", Ok),
            ("3.7.0", Ok),
            ("4.0.0", Ok),
        ] {
            assert_eq!(levels(&[member(version)])[1], level, "{version}");
        }
        let mixed = findings(&[member("3.5.30"), member("3.6.11")]);
        assert_eq!(mixed[1].level, Warning);
        assert!(
            mixed[1].text.contains("3.5.30 at http://3.5.30:2379, 3.6.11 at"),
            "{}",
            mixed[1].text
        );
    }

    #[test]
    fn endpoints_that_are_silent_are_named_but_for_flannels_old_one() {
        let silent = |endpoint: &str| -> Asked {
            let options = flannel_store::EtcdOptions {
                endpoints: vec!["ftp://x".to_owned()],
                ..flannel_store::EtcdOptions::default()
            };
            (
                endpoint.to_owned(),
                Err(flannel_store::EtcdStore::connect(options).unwrap_err()),
            )
        };
        let (_, status) = member("3.6.11");
        let here = ("http://127.0.0.1:2379".to_owned(), status);
        assert_eq!(levels(&[silent("http://127.0.0.1:4001"), here])[0], Level::Ok);
        let other = member("3.6.11");
        assert_eq!(
            levels(&[silent("http://127.0.0.1:4001"), other])[0],
            Level::Warning
        );
        let skipped = [Level::Warning, Level::Skipped, Level::Skipped];
        assert_eq!(levels(&[silent("http://127.0.0.1:4001")]), skipped);
    }

    #[test]
    fn alarms_and_members_without_a_leader_are_errors() {
        let complains = |change: fn(&mut MemberStatus)| {
            let (endpoint, status) = member("3.6.11");
            let mut status = status.unwrap();
            change(&mut status);
            levels(&[(endpoint, Ok(status))])
        };
        assert_eq!(complains(|_| {}), [Level::Ok; 3]);
        assert_eq!(complains(|status| status.leader = 0)[2], Level::Error);
        let full = complains(|status| {
            status
                .complaints
                .push("etcdserver: mvcc: database space exceeded".to_owned())
        });
        assert_eq!(full[2], Level::Error);
    }
}
