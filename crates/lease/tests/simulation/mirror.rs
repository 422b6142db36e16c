//! A real etcd to which everything is done that a history does to the simulated store. What it answers must be what the store
//! answered, to the revision; so the store of the simulation is a true picture of etcd, and the nodes are run by etcd's answers.
//!
//! Leases last longer here than any history: their time is the simulated one, and they are revoked when it is over.

use std::path::PathBuf;
use std::time::Duration;

use etcd_client::PutOptions;
use flannel_lease::{ClaimOutcome, Event, Expected, LeaseTerms, Op, Record, Revisions};
use flannel_store::fixture::EtcdProcess;
use flannel_store::{
    Created, EtcdStore, KeptAlive, KeyValue, LeaseId, NewLease, Position, Renewal, Replaced, Store as _,
    StoreError, Watch as _, WatchEnd, WatchItem,
};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::store::{Change, Deed, Store};

/// Where the records are.
const RANGE: &str = "/net/subnets/";
/// Lifetime of a lease as the real etcd has it, in seconds: no test lasts that long.
const FOR_EVER: u32 = 86_400;
/// Longest wait for anything; a watch tells within milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

type Watch = <EtcdStore as flannel_store::Store>::Watch;

pub struct Mirror {
    etcd: EtcdProcess,
    runtime: Runtime,
    store: EtcdStore,
    folder: PathBuf,
    running: bool,
    watch: Option<Watch>,
    /// Up to here the watch and the history said the same.
    told: i64,
    /// Where it stood when it was looked at last.
    position: Option<Position>,
    calls: u64,
}

type Done = Result<(), String>;

fn text(error: impl std::fmt::Debug) -> String {
    format!("etcd: {error:?}")
}

impl Mirror {
    pub fn start() -> Self {
        let etcd = EtcdProcess::start().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let store = EtcdStore::connect(etcd.options()).unwrap();
        let folder = std::env::temp_dir().join(format!("flannel-traces-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self {
            etcd,
            runtime,
            store,
            folder,
            running: true,
            watch: None,
            told: 1,
            position: None,
            calls: 0,
        }
    }

    /// Empty again, for the next history.
    pub fn clear(&mut self) -> Done {
        self.kill();
        self.etcd.wipe().map_err(text)?;
        self.told = 1;
        self.position = None;
        self.calls = 0;
        self.run()
    }

    /// Calls of nodes that it carried out.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    fn kill(&mut self) {
        self.etcd.kill();
        self.running = false;
        self.watch = None;
    }

    /// Runs it unless it runs; what the history does to a store that is down needs a server as well.
    fn run(&mut self) -> Done {
        if !self.running {
            self.etcd.restart().map_err(text)?;
            self.running = true;
            // The connection of before has ended, which the first call over it finds out.
            let store = self.store.clone();
            let answers = async move {
                while store.position().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            self.runtime
                .block_on(async { timeout(PATIENCE, answers).await })
                .map_err(text)?;
        }
        Ok(())
    }

    /// Does what was done to the store besides the calls of nodes.
    pub fn repeat(&mut self, deed: &Deed) -> Done {
        match deed {
            Deed::Stopped => {
                self.kill();
                return Ok(());
            }
            Deed::Wiped | Deed::Restored => return self.go_back(matches!(deed, Deed::Restored)),
            _ => self.run()?,
        }
        match deed {
            Deed::BackedUp => {
                let file = self.backup();
                let _ = std::fs::remove_file(&file);
                self.etcd.back_up(&file).map_err(text)
            }
            Deed::Started | Deed::Stopped | Deed::Restored | Deed::Wiped => Ok(()),
            Deed::Expired(_)
            | Deed::Put { .. }
            | Deed::Changed { .. }
            | Deed::Deleted(_)
            | Deed::Compacted => self.by_hand(deed),
        }
    }

    fn backup(&self) -> PathBuf {
        self.folder.join("backup")
    }

    fn go_back(&mut self, restore: bool) -> Done {
        let before = self.position.take();
        self.kill();
        match restore {
            true => self.etcd.restore(&self.backup()).map_err(text)?,
            false => self.etcd.wipe().map_err(text)?,
        }
        self.run()?;
        let now = self.runtime.block_on(self.store.position()).map_err(text)?;
        self.told = now.revision;
        // A node sees by it that the store went back, unless nothing was written since the backup.
        match before.filter(|before| now.revision < before.revision) {
            Some(before) if !now.went_back_from(&before) => Err(format!(
                "etcd went back from {before:?} to {now:?}, which cannot be seen"
            )),
            _ => Ok(()),
        }
    }

    fn by_hand(&mut self, deed: &Deed) -> Done {
        let endpoint = self.etcd.endpoint();
        let told = self.told;
        let work = async {
            let mut client = etcd_client::Client::connect([endpoint], None).await?;
            match deed {
                // A lease that only the store has: its grant came to nothing, and etcd's was revoked.
                Deed::Expired(lease) => drop(client.lease_revoke(*lease).await),
                Deed::Put { key, value, lease } => {
                    let mut options = PutOptions::new();
                    if *lease != 0 {
                        let grant = etcd_client::LeaseGrantOptions::new().with_id(*lease);
                        client.lease_grant(i64::from(FOR_EVER), Some(grant)).await?;
                        options = options.with_lease(*lease);
                    }
                    client
                        .put(format!("{RANGE}{key}"), value.as_str(), Some(options))
                        .await?;
                }
                Deed::Changed { key, value } => {
                    let options = PutOptions::new().with_ignore_lease();
                    client
                        .put(format!("{RANGE}{key}"), value.as_str(), Some(options))
                        .await?;
                }
                Deed::Deleted(key) => drop(client.delete(format!("{RANGE}{key}"), None).await?),
                Deed::Compacted => {
                    let header = client
                        .get("x", None)
                        .await?
                        .header()
                        .map(|header| header.revision());
                    let revision = header.unwrap_or(told);
                    // etcd refuses to compact what is compacted.
                    let _ = client.compact(revision, None).await;
                }
                _ => {}
            }
            Ok::<_, etcd_client::Error>(())
        };
        self.runtime.block_on(work).map_err(text)
    }

    /// Carries out a call of a node. The answer must be that of the store.
    pub fn carry_out(&mut self, op: &Op, value: &str, expected: Event) -> Result<Event, String> {
        self.run()?;
        self.calls += 1;
        let store = self.store.clone();
        let answer = self.runtime.block_on(call(&store, op, value));
        let answer = answer.unwrap_or(Event::Failed);
        self.position = self.runtime.block_on(self.store.position()).ok();
        let same = match (&answer, &expected) {
            (Event::Listed(real), Event::Listed(simulated)) => same_records(real, simulated),
            // The time of leases is the simulated one.
            (Event::KeptAlive(_), Event::KeptAlive(_)) => return Ok(expected),
            (real, simulated) => format!("{real:?}") == format!("{simulated:?}"),
        };
        match same {
            true => Ok(answer),
            false => Err(format!("{op:?}: etcd says {answer:?}, the store {expected:?}")),
        }
    }

    /// The watch must have told what the history holds.
    pub fn told(&mut self, store: &Store) -> Done {
        if self.told >= store.revision {
            return Ok(());
        }
        let from = store
            .history
            .partition_point(|change| change.revision() <= self.told);
        let expected: Vec<String> = store.history[from..].iter().map(shown).collect();
        self.run()?;
        let (real, watch, watched) = (self.store.clone(), self.watch.take(), self.told + 1);
        let heard = async {
            let mut watch = match watch {
                Some(watch) => watch,
                None => real.watch(RANGE, watched).await.map_err(text)?,
            };
            let mut heard = Vec::new();
            while heard.len() < expected.len() {
                match watch.next().await.map_err(text)? {
                    WatchItem::Changes(changes) => heard.extend(changes.iter().map(shown_real)),
                    WatchItem::Started(_) | WatchItem::Alive(_) => {}
                }
            }
            Ok::<_, String>((watch, heard))
        };
        let heard = self.runtime.block_on(async { timeout(PATIENCE, heard).await });
        let (watch, heard) = heard.map_err(|_| format!("the watch did not tell of {expected:?}"))??;
        self.watch = Some(watch);
        self.told = store.revision;
        match heard == expected {
            true => Ok(()),
            false => Err(format!("the watch told {heard:?}, the history has {expected:?}")),
        }
    }

    /// A list must be that of the store.
    pub fn lists(&mut self, store: &Store) -> Done {
        self.run()?;
        let listing = self.runtime.block_on(self.store.list(RANGE)).map_err(text)?;
        let real: Vec<Record> = listing.kvs.iter().map(record).collect();
        let simulated = store.list();
        match same_records(&real, &simulated) && listing.revision == store.revision {
            true => Ok(()),
            false => Err(format!(
                "etcd lists {real:?} at {}, the store {simulated:?} at {}",
                listing.revision, store.revision
            )),
        }
    }

    /// Who asks for what was compacted is told so. What happened in the compacted revision itself etcd still tells.
    pub fn has_no_history_from(&mut self, revision: i64, store: &Store) -> Done {
        if revision >= store.compacted {
            return Ok(());
        }
        let real = self.store.clone();
        let asked = async {
            let mut watch = real.watch(RANGE, revision).await.map_err(text)?;
            loop {
                match watch.next().await {
                    Ok(WatchItem::Started(_) | WatchItem::Alive(_)) => {}
                    other => return Ok::<_, String>(other),
                }
            }
        };
        let asked = self.runtime.block_on(async { timeout(PATIENCE, asked).await });
        match asked {
            Ok(Ok(Err(WatchEnd::Compacted))) => Ok(()),
            other => Err(format!(
                "a watch from {revision}, before {}: {other:?}",
                store.compacted
            )),
        }
    }

    /// In the end both have the same records, and no etcd lease is left over.
    pub fn is_as(&mut self, store: &Store) -> Done {
        self.lists(store)?;
        let endpoint = self.etcd.endpoint();
        let leases = self.runtime.block_on(async {
            let mut client = etcd_client::Client::connect([endpoint], None).await?;
            Ok::<_, etcd_client::Error>(client.leases().await?.leases().len())
        });
        let used: std::collections::BTreeSet<i64> = store.records().map(|record| record.lease).collect();
        let used = used.iter().filter(|lease| **lease != 0).count();
        match leases.map_err(text)? {
            leases if leases == used => Ok(()),
            leases => Err(format!("etcd has {leases} leases for {used} in use")),
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// As flanneld's driver does it.
async fn call(store: &EtcdStore, op: &Op, value: &str) -> Result<Event, StoreError> {
    Ok(match op {
        Op::List => Event::Listed(store.list(RANGE).await?.kvs.iter().map(record).collect()),
        Op::ReadUsed => Event::UsedRead(Vec::new()),
        Op::KeepAlive(lease) => match store.keep_alive(LeaseId(*lease)).await? {
            KeptAlive::Alive { ttl_secs } => Event::KeptAlive(Duration::from_secs(ttl_secs.into())),
            KeptAlive::Expired => Event::Expired,
        },
        Op::Drop { key, modified, .. } => {
            store.delete_if(&format!("{RANGE}{key}"), *modified).await?;
            Event::Dropped
        }
        Op::Claim {
            key,
            expected,
            terms,
            published,
        } => {
            let key = format!("{RANGE}{key}");
            let stands = published
                .as_ref()
                .is_some_and(|p| !p.rewrite && p.value.to_json() == value);
            Event::Claimed(match (*expected, *terms) {
                (Expected::Modified(modified), LeaseTerms::Keep(lease)) if stands => {
                    ClaimOutcome::Won { lease, modified }
                }
                (Expected::Absent, LeaseTerms::Grant { lease, .. }) => {
                    match store.create(&key, value, new(lease), &[]).await? {
                        Created::Won { lease, revision } => won(lease, revision),
                        Created::Lost => ClaimOutcome::Lost,
                    }
                }
                (Expected::Absent, LeaseTerms::Keep(_)) => ClaimOutcome::Lost,
                (Expected::Modified(modified), terms) => {
                    let renewal = match terms {
                        LeaseTerms::Grant { lease, .. } => Renewal::Grant(new(lease)),
                        LeaseTerms::Keep(0) => Renewal::None,
                        LeaseTerms::Keep(lease) => Renewal::Keep(LeaseId(lease)),
                    };
                    match store.replace(&key, value, modified, renewal).await? {
                        Replaced::Won { lease, revision } => won(lease, revision),
                        Replaced::Lost => ClaimOutcome::Lost,
                    }
                }
            })
        }
    })
}

fn new(lease: i64) -> NewLease {
    NewLease {
        ttl_secs: FOR_EVER,
        id: LeaseId(lease),
    }
}

fn won(lease: LeaseId, modified: i64) -> ClaimOutcome {
    ClaimOutcome::Won {
        lease: lease.0,
        modified,
    }
}

fn record(kv: &KeyValue) -> Record {
    Record {
        key: kv.key.strip_prefix(RANGE).unwrap_or(&kv.key).to_owned(),
        value: kv.value.clone(),
        revisions: Revisions {
            created: kv.create_revision,
            modified: kv.mod_revision,
        },
        lease: kv.lease.0,
    }
}

fn same_records(real: &[Record], simulated: &[Record]) -> bool {
    format!("{real:?}") == format!("{simulated:?}")
}

fn shown(change: &Change) -> String {
    match change {
        Change::Put(record) => format!("{record:?}"),
        Change::Delete { key, revision } => format!("{key} deleted at {revision}"),
    }
}

fn shown_real(change: &flannel_store::Change) -> String {
    match change {
        flannel_store::Change::Put(kv) => format!("{:?}", record(kv)),
        flannel_store::Change::Delete { key, mod_revision } => {
            let key = key.strip_prefix(RANGE).unwrap_or(key);
            format!("{key} deleted at {mod_revision}")
        }
    }
}
