//! Choosing one address from each set for an attachment.

use std::collections::HashSet;
use std::net::IpAddr;

use super::range::{Range, RangeSet};
use super::store::Store;
use crate::protocol::{CniError, Code};

/// Addresses looked at one by one before the whole directory is listed: in a sparse subnet the first is free, in a full one a
/// listing costs less than a look at each.
const PROBES: usize = 32;

/// An address with its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The address.
    pub address: IpAddr,
    /// The range it came from: prefix length and gateway.
    pub range: Range,
}

/// One address of each set, those of `requested` first; nothing is written.
///
/// # Errors
/// Code 101 when no address is free or a requested one is not, 5 for the disk.
pub fn choose(store: &Store, sets: &[RangeSet], requested: &[IpAddr]) -> Result<Vec<Given>, CniError> {
    let mut left = requested.to_vec();
    let mut chosen = Vec::new();
    for (index, set) in sets.iter().enumerate() {
        let wanted = left
            .iter()
            .position(|ip| set.range_of(*ip).is_some())
            .map(|place| left.remove(place));
        chosen.push(match wanted {
            Some(ip) => exactly(store, set, ip)?,
            None => next(store, set, index)?,
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

fn exactly(store: &Store, set: &RangeSet, ip: IpAddr) -> Result<Given, CniError> {
    let range = set.range_of(ip);
    let refused = |reason: String| {
        let msg = format!("requested address {ip} is not available in range set {set}");
        Err(CniError::new(Code::NoAddress, msg).with(reason))
    };
    match range {
        None => refused("it is outside".to_owned()),
        Some(range) if range.gateway() == ip => refused("it is the gateway".to_owned()),
        Some(_) if store.is_taken(ip) => {
            let lease = store.lease(ip);
            let text = lease.holder_text().unwrap_or("a damaged file").trim();
            refused(format!("held by {:?}", text.replace("\r\n", " ")))
        }
        Some(range) => Ok(Given {
            address: ip,
            range: range.clone(),
        }),
    }
}

fn next(store: &Store, set: &RangeSet, index: usize) -> Result<Given, CniError> {
    let mut candidates = set.candidates(store.last(index));
    let probed = candidates.by_ref().take(PROBES).find(|ip| !store.is_taken(*ip));
    let found = match probed {
        Some(ip) => Some(ip),
        None => {
            let taken: HashSet<IpAddr> = store.taken()?.into_iter().collect();
            candidates.find(|ip| !taken.contains(ip))
        }
    };
    let given = found.and_then(|address| {
        Some(Given {
            address,
            range: set.range_of(address)?.clone(),
        })
    });
    given.ok_or_else(|| store.exhausted(set))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::lease_file::Holder;
    use super::super::reconcile::Live;
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
            let mut store = self.store();
            let warnings = &mut self.warnings;
            store
                .refresh(&mut || Ok(Live::default()), &mut |text| warnings.push(text))
                .unwrap();
            let requested: Vec<IpAddr> = requested.iter().map(|ip| ip.parse().unwrap()).collect();
            let given = choose(&store, &self.sets, &requested)?;
            for (index, one) in given.iter().enumerate() {
                store.place(one.address, &holder(id)).unwrap();
                store.set_last(index, one.address).unwrap();
            }
            Ok(given.iter().map(|one| one.address.to_string()).collect())
        }

        fn store(&self) -> Store {
            Store::open(self.root.path(), &NetworkName::parse("n").unwrap()).unwrap()
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
        bench
            .store()
            .free("10.0.0.2".parse().unwrap(), &holder("c1"))
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
    fn corrupt_files_are_put_aside() {
        let mut bench = Bench::new(&["10.0.0.0/29"]);
        std::fs::create_dir(bench.file("")).unwrap();
        std::fs::write(bench.file("10.0.0.2"), [0xff, 0]).unwrap();
        std::fs::create_dir(bench.file("10.0.0.3")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", bench.file("10.0.0.4")).unwrap();
        std::fs::write(bench.file("10.0.0.5"), "c7\r\neth0").unwrap();
        std::fs::write(bench.file("last_reserved_ip.0"), "not an address").unwrap();
        std::fs::write(bench.file("foreign"), "c1\r\neth0").unwrap();
        assert_eq!(bench.ask("c1", &[]).unwrap(), ["10.0.0.2"]);
        assert_eq!(bench.warnings.len(), 3, "{:?}", bench.warnings);
        assert!(bench.file("foreign").exists());
        let aside = std::fs::read_dir(bench.root.path().join(".flannel-n/quarantine")).unwrap();
        assert_eq!(aside.count(), 3);
        assert_eq!(bench.ask("c2", &[]).unwrap(), ["10.0.0.3"]);
    }

    #[test]
    fn a_nearly_full_16_gives_its_last_addresses() {
        let mut bench = Bench::new(&["10.0.0.0/21"]);
        std::fs::create_dir(bench.file("")).unwrap();
        for number in 2..=2046_u32 {
            if number != 1500 {
                let ip = std::net::Ipv4Addr::from(0x0a00_0000 + number);
                std::fs::write(bench.file(&ip.to_string()), format!("c{number}\r\neth0")).unwrap();
            }
        }
        std::fs::write(bench.file("last_reserved_ip.0"), "10.0.6.1").unwrap();
        assert_eq!(bench.ask("late", &[]).unwrap(), ["10.0.5.220"]);
        let error = bench.ask("later", &[]).unwrap_err();
        assert_eq!(error.code, Code::NoAddress);
        assert!(error.details.contains("2045 addresses are held"), "{error}");
    }
}
