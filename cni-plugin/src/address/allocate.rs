//! Taking one address from each set for an attachment.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::lease_dir::LeaseDir;
use super::lease_file::{Holder, Lease};
use super::range::{Range, RangeSet};
use crate::protocol::{CniError, Code};

/// An address with its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The address.
    pub address: IpAddr,
    /// The range it came from: prefix length and gateway.
    pub range: Range,
}

/// What is known of the addresses that have a file.
type Known = BTreeMap<IpAddr, Lease>;

/// Gives `holder` one address of each set, those of `requested` first. All or nothing. Texts for the log go to `warn`.
///
/// # Errors
/// Code 102 when the attachment holds an address already, 101 when no address is free or a requested one is not, 5 for the disk.
pub fn allocate(
    dir: &LeaseDir,
    sets: &[RangeSet],
    requested: &[IpAddr],
    holder: &Holder,
    warn: &mut dyn FnMut(String),
) -> Result<Vec<Given>, CniError> {
    let known: Known = dir.entries()?.into_iter().collect();
    refuse_second(&known, holder)?;
    let chosen = choose(dir, sets, requested, &known)?;
    let mut given = Vec::new();
    for (index, one) in chosen.iter().enumerate() {
        let result = take(dir, index, one, &known, holder, warn);
        if let Err(e) = result {
            undo(dir, &given, warn);
            return Err(e);
        }
        given.push(one.clone());
    }
    Ok(given)
}

fn refuse_second(known: &Known, holder: &Holder) -> Result<(), CniError> {
    let owned = |lease: &Lease| matches!(lease, Lease::Held(text) if holder.owns(text));
    match known.iter().find(|(_, lease)| owned(lease)) {
        None => Ok(()),
        Some((ip, _)) => {
            let msg = format!("{ip} is already allocated to this container and interface");
            Err(CniError::new(Code::Exists, msg)
                .with("an attachment is made once; call DEL before another ADD"))
        }
    }
}

/// One address a set, nothing written yet.
fn choose(
    dir: &LeaseDir,
    sets: &[RangeSet],
    requested: &[IpAddr],
    known: &Known,
) -> Result<Vec<Given>, CniError> {
    let mut left = requested.to_vec();
    let mut chosen = Vec::new();
    for (index, set) in sets.iter().enumerate() {
        let wanted = left
            .iter()
            .position(|ip| set.range_of(*ip).is_some())
            .map(|place| left.remove(place));
        chosen.push(match wanted {
            Some(ip) => exactly(set, ip, known)?,
            None => next(dir, set, dir.last(index), known)?,
        });
    }
    match left.is_empty() {
        true => Ok(chosen),
        false => Err(CniError::new(
            Code::NoAddress,
            format!("failed to allocate all requested addresses; left over: {left:?}"),
        )
        .with("each must lie in a range set of its own")),
    }
}

fn exactly(set: &RangeSet, ip: IpAddr, known: &Known) -> Result<Given, CniError> {
    let range = set
        .range_of(ip)
        .filter(|range| range.gateway() != ip && is_free(known, ip));
    let range = range.ok_or_else(|| {
        let reason = match known.get(&ip) {
            Some(Lease::Held(text)) => format!("held by {:?}", text.replace("\r\n", " ")),
            Some(Lease::Unreadable(reason)) => format!("its file {reason}"),
            Some(Lease::Absent | Lease::Empty) | None => "it is the gateway".to_owned(),
        };
        CniError::new(
            Code::NoAddress,
            format!("requested address {ip} is not available in range set {set}"),
        )
        .with(reason)
    })?;
    Ok(Given {
        address: ip,
        range: range.clone(),
    })
}

fn next(dir: &LeaseDir, set: &RangeSet, last: Option<IpAddr>, known: &Known) -> Result<Given, CniError> {
    let found = set.candidates(last).find(|ip| is_free(known, *ip));
    let given = found.and_then(|address| {
        Some(Given {
            address,
            range: set.range_of(address)?.clone(),
        })
    });
    given.ok_or_else(|| dir.exhausted(set))
}

fn is_free(known: &Known, ip: IpAddr) -> bool {
    match known.get(&ip) {
        None | Some(Lease::Absent | Lease::Empty) => true,
        Some(Lease::Held(_) | Lease::Unreadable(_)) => false,
    }
}

fn take(
    dir: &LeaseDir,
    index: usize,
    one: &Given,
    known: &Known,
    holder: &Holder,
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let empty = known.get(&one.address) == Some(&Lease::Empty);
    if empty {
        warn(format!(
            "the lease file of {} is empty; the address is given anew",
            one.address
        ));
    }
    dir.reserve(one.address, holder, empty)?;
    if let Err(e) = dir.set_last(index, one.address) {
        warn(format!("{e}; the order of addresses begins anew"));
    }
    Ok(())
}

fn undo(dir: &LeaseDir, given: &[Given], warn: &mut dyn FnMut(String)) {
    for one in given.iter().rev() {
        if let Err(e) = dir.free(one.address) {
            warn(format!("{} stays reserved: {e}", one.address));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::protocol::{Attachment, ContainerId, IfName, NetworkName};

    struct Bench {
        root: tempfile::TempDir,
        sets: Vec<RangeSet>,
        warnings: Vec<String>,
    }

    impl Bench {
        fn new(subnets: &[&str]) -> Self {
            let set = |text: &&str| {
                let (address, length) = text.split_once('/').unwrap();
                RangeSet::new(vec![
                    Range::of_subnet(address.parse().unwrap(), length.parse().unwrap()).unwrap(),
                ])
            };
            Self {
                root: tempfile::tempdir().unwrap(),
                sets: subnets.iter().map(set).collect(),
                warnings: Vec::new(),
            }
        }

        fn ask(&mut self, id: &str, requested: &[&str]) -> Result<Vec<String>, CniError> {
            let dir = LeaseDir::open(self.root.path(), &NetworkName::parse("n").unwrap()).unwrap();
            let requested: Vec<IpAddr> = requested.iter().map(|ip| ip.parse().unwrap()).collect();
            let warnings = &mut self.warnings;
            let given = allocate(&dir, &self.sets, &requested, &holder(id), &mut |text| {
                warnings.push(text)
            })?;
            Ok(given.iter().map(|one| one.address.to_string()).collect())
        }

        fn file(&self, name: &str) -> std::path::PathBuf {
            Path::new(self.root.path()).join("n").join(name)
        }

        fn leases(&self) -> usize {
            let parse = |item: std::fs::DirEntry| item.file_name().to_str()?.parse::<IpAddr>().ok();
            std::fs::read_dir(self.file(""))
                .unwrap()
                .filter_map(|item| parse(item.unwrap()))
                .count()
        }
    }

    fn holder(id: &str) -> Holder {
        Holder::from(&Attachment {
            container: ContainerId::parse(id).unwrap(),
            ifname: IfName::parse("eth0").unwrap(),
        })
    }

    #[test]
    fn a4_a_29_has_five_addresses() {
        let mut bench = Bench::new(&["10.0.0.0/29"]);
        for (index, last) in (2..=6).enumerate() {
            assert_eq!(
                bench.ask(&format!("c{index}"), &[]).unwrap(),
                [format!("10.0.0.{last}")]
            );
        }
        let error = bench.ask("c9", &[]).unwrap_err();
        assert_eq!(error.code, Code::NoAddress);
        assert!(error.msg.contains("10.0.0.1-10.0.0.6"), "{error}");
    }

    #[test]
    fn a5_a_released_address_is_not_given_at_once() {
        let mut bench = Bench::new(&["10.0.0.0/29"]);
        assert_eq!(bench.ask("c1", &[]).unwrap(), ["10.0.0.2"]);
        super::super::release(
            bench.root.path(),
            &NetworkName::parse("n").unwrap(),
            &holder("c1"),
            &mut |_| Ok(()),
        )
        .unwrap();
        assert_eq!(bench.ask("c1", &[]).unwrap(), ["10.0.0.3"]);
    }

    #[test]
    fn a6_requested_addresses() {
        let mut bench = Bench::new(&["10.0.0.0/29", "fc00::/64"]);
        assert_eq!(
            bench.ask("c1", &["fc00::7", "10.0.0.4"]).unwrap(),
            ["10.0.0.4", "fc00::7"]
        );
        for bad in ["10.0.0.4", "10.0.0.1", "10.0.0.7", "10.0.0.0", "10.9.9.9"] {
            assert_eq!(
                bench.ask("c2", &[bad]).unwrap_err().code,
                Code::NoAddress,
                "{bad}"
            );
        }
        assert_eq!(
            bench.ask("c2", &["10.0.0.2", "10.0.0.3"]).unwrap_err().code,
            Code::NoAddress
        );
        assert_eq!(bench.leases(), 2, "nothing was kept");
    }

    #[test]
    fn h3_a_second_add_is_refused() {
        let mut bench = Bench::new(&["10.0.0.0/29"]);
        bench.ask("c1", &[]).unwrap();
        let error = bench.ask("c1", &[]).unwrap_err();
        assert_eq!(error.code, Code::Exists);
        assert_eq!(bench.ask("c2", &[]).unwrap(), ["10.0.0.3"]);
    }

    #[test]
    fn one_family_exhausted_keeps_nothing_of_the_other() {
        let mut bench = Bench::new(&["fc00::/64", "10.0.0.0/30"]);
        bench.ask("c1", &[]).unwrap();
        assert_eq!(bench.ask("c2", &[]).unwrap_err().code, Code::NoAddress);
        assert_eq!(bench.leases(), 2);
    }

    #[test]
    fn an_empty_file_is_free_and_named() {
        let mut bench = Bench::new(&["10.0.0.0/30"]);
        std::fs::create_dir(bench.file("")).unwrap();
        std::fs::write(bench.file("10.0.0.2"), "").unwrap();
        assert_eq!(bench.ask("c1", &[]).unwrap(), ["10.0.0.2"]);
        assert_eq!(
            std::fs::read_to_string(bench.file("10.0.0.2")).unwrap(),
            "c1\r\neth0"
        );
        assert!(bench.warnings[0].contains("10.0.0.2"), "{:?}", bench.warnings);
    }

    #[test]
    fn corrupt_files_are_never_fatal() {
        let mut bench = Bench::new(&["10.0.0.0/29"]);
        std::fs::create_dir(bench.file("")).unwrap();
        std::fs::write(bench.file("10.0.0.2"), [0xff, 0]).unwrap();
        std::fs::create_dir(bench.file("10.0.0.3")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", bench.file("10.0.0.4")).unwrap();
        std::fs::write(bench.file("last_reserved_ip.0"), "not an address").unwrap();
        std::fs::write(bench.file("foreign"), "c1\r\neth0").unwrap();
        assert_eq!(bench.ask("c1", &[]).unwrap(), ["10.0.0.5"]);
        assert!(bench.file("foreign").exists());
    }
}
