use std::os::unix::fs::PermissionsExt;

use super::super::record::{Stage, sample};
use super::*;

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> Store {
        Store::open(self.0.path(), &NetworkName::parse("cbr0").unwrap()).unwrap()
    }

    /// A store in order, where the kernel has nothing.
    fn fresh(&self) -> Store {
        let mut store = self.store();
        store.refresh(&mut || Ok(Live::default()), &mut |_| {}).unwrap();
        store
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let items = fs::read_dir(self.path(dir)).unwrap();
        let mut names: Vec<String> = items
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn holder(id: &str) -> Holder {
    sample(id, &[]).holder()
}

/// A look that must not be needed.
fn no_look() -> Result<Live, CniError> {
    Err(CniError::new(Code::Kernel, "the kernel was asked"))
}

#[test]
fn the_layout_is_host_locals_and_nothing_else_is_in_it() {
    let bench = Bench::new();
    let store = bench.fresh();
    store.place(ip("10.1.17.2"), &holder("c1")).unwrap();
    store.place(ip("fc00::2"), &holder("c1")).unwrap();
    store.set_last(0, ip("10.1.17.2")).unwrap();
    let pending = store.begin(&sample("c1", &["10.1.17.2"])).unwrap();
    drop((store, pending));
    assert_eq!(
        bench.names("cbr0"),
        ["10.1.17.2", "fc00::2", "last_reserved_ip.0", "lock"]
    );
    let content = |name: &str| fs::read(bench.path("cbr0").join(name)).unwrap();
    assert_eq!(content("10.1.17.2"), b"c1\r\neth0");
    assert_eq!(content("last_reserved_ip.0"), b"10.1.17.2");
    assert_eq!(bench.names(".flannel-cbr0"), ["index", "records"]);
    assert_eq!(bench.mode("cbr0/10.1.17.2"), 0o600);
    assert_eq!(bench.mode(".flannel-cbr0/records/veth-c1"), 0o600);
    assert_eq!((bench.mode("cbr0"), bench.mode(".flannel-cbr0")), (0o700, 0o700));
}

#[test]
fn a_held_address_is_never_overwritten_and_freed_by_its_holder_only() {
    let bench = Bench::new();
    let store = bench.fresh();
    store.place(ip("10.1.17.2"), &holder("c1")).unwrap();
    let refused = store.place(ip("10.1.17.2"), &holder("c2")).unwrap_err();
    assert_eq!(refused.code, Code::Io);
    store.free(ip("10.1.17.2"), &holder("c2")).unwrap();
    assert!(store.lease(ip("10.1.17.2")).is_of(&holder("c1")));
    store.free(ip("10.1.17.2"), &holder("c1")).unwrap();
    store.free(ip("10.1.17.2"), &holder("c1")).unwrap();
    assert!(!store.is_taken(ip("10.1.17.2")));
}

#[test]
fn the_kernel_is_asked_only_after_a_stranger_was_there() {
    let bench = Bench::new();
    drop(bench.fresh());
    for step in 0..3 {
        let mut store = bench.store();
        store.refresh(&mut no_look, &mut |_| {}).unwrap();
        store
            .place(IpAddr::from([10, 1, 17, step]), &holder("c1"))
            .unwrap();
    }
    // Time stands still for some milliseconds as far as the file system is concerned.
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(bench.path("cbr0/10.1.17.9"), "stranger\r\neth0").unwrap();
    let mut store = bench.store();
    assert!(store.refresh(&mut no_look, &mut |_| {}).is_err());
    drop(store);
    let store = bench.fresh();
    assert_eq!(store.given_by_others(&holder("stranger")), [ip("10.1.17.9")]);
    drop(store);
    bench.store().refresh(&mut no_look, &mut |_| {}).unwrap();
}

#[test]
fn leases_of_other_plugins_are_found_by_both_their_forms() {
    let bench = Bench::new();
    drop(bench.store());
    fs::write(bench.path("cbr0/10.1.17.9"), " c1 \n").unwrap();
    fs::write(bench.path("cbr0/10.1.17.8"), "c1\r\nnet1\r\n").unwrap();
    let store = bench.fresh();
    assert_eq!(store.given_by_others(&holder("c1")), [ip("10.1.17.9")]);
    let mut other = sample("c1", &[]);
    other.attachment.ifname = crate::protocol::IfName::parse("net1").unwrap();
    assert_eq!(store.given_by_others(&other.holder()), [ip("10.1.17.8")]);
    store.free(ip("10.1.17.9"), &holder("c1")).unwrap();
    assert!(
        store.given_by_others(&holder("c1")).is_empty(),
        "the index is only a hint"
    );
}

#[test]
fn a_boot_frees_what_the_earlier_one_reserved() {
    let bench = Bench::new();
    let store = bench.fresh();
    store.place(ip("10.1.17.2"), &holder("c1")).unwrap();
    let mut record = sample("c1", &["10.1.17.2"]);
    record.boot = "earlier".to_owned();
    store.begin(&record).unwrap().finish().unwrap();
    drop(store);
    let index = Index::open(&bench.path(".flannel-cbr0/index")).unwrap();
    let earlier = Mark {
        boot: "earlier".to_owned(),
        ..index.1
    };
    index.0.set(&earlier).unwrap();
    let mut store = bench.store();
    let gone = store.refresh(&mut || Ok(Live::default()), &mut |_| {}).unwrap();
    assert_eq!(gone.len(), 1);
    assert!(!store.is_taken(ip("10.1.17.2")));
    assert_eq!(store.record("veth-c1", &mut |_| {}).unwrap(), None);
}

#[test]
fn everything_lost_comes_back_from_the_kernel() {
    let bench = Bench::new();
    let live = Live {
        ends: vec![LiveEnd {
            name: "veth-c1".to_owned(),
            attachment: Some(sample("c1", &[]).attachment),
            addresses: vec![ip("10.1.17.2")],
        }],
        strangers: false,
    };
    let mut warnings = Vec::new();
    let mut store = bench.store();
    store
        .refresh(&mut || Ok(live.clone()), &mut |text| warnings.push(text))
        .unwrap();
    assert!(store.lease(ip("10.1.17.2")).is_of(&holder("c1")));
    let stored = store.record("veth-c1", &mut |_| {}).unwrap().unwrap();
    assert_eq!(stored.stage, Stage::Done);
    assert!(warnings[0].contains("10.1.17.2"), "{warnings:?}");
}

#[test]
fn damaged_records_are_put_aside() {
    let bench = Bench::new();
    drop(bench.fresh());
    let dir = bench.path(".flannel-cbr0/records");
    fs::write(dir.join("veth-a"), "nonsense").unwrap();
    fs::create_dir(dir.join("veth-b")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", dir.join("veth-c")).unwrap();
    let store = bench.store();
    assert!(store.records(&mut |_| {}).unwrap().is_empty());
    assert_eq!(bench.names(".flannel-cbr0/records"), Vec::<String>::new());
    assert_eq!(bench.names(".flannel-cbr0/quarantine").len(), 3);
}

#[test]
fn nothing_there_makes_nothing() {
    let bench = Bench::new();
    let name = NetworkName::parse("cbr0").unwrap();
    assert!(Store::open_existing(bench.0.path(), &name).unwrap().is_none());
    assert!(
        Store::open_existing(Path::new("/nonexistent/x"), &name)
            .unwrap()
            .is_none()
    );
    assert_eq!(bench.names(""), Vec::<String>::new());
}

#[test]
fn a_second_locker_waits() {
    let bench = Bench::new();
    let first = bench.store();
    let other = File::open(bench.path("cbr0/lock")).unwrap();
    assert!(other.try_lock().is_err());
    drop(first);
    assert!(other.try_lock().is_ok());
}
