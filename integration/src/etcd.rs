//! The lab's etcd: a real one, on a host of its own, that can be stopped, started, killed and frozen; and a client for the tests.

use std::future::Future;

use anyhow::{Context, Result};
use etcd_client::{Client, ConnectOptions, DeleteOptions, EventType, GetOptions, PutOptions, WatchOptions};
use rustix::process::Signal;

use crate::clock::{eventually, limit};
use crate::command::Environment;
use crate::place::Place;
use crate::process::Process;

/// etcd's address on the underlay.
pub const ADDRESS: &str = "192.168.50.2";
/// What `--etcd-endpoints` must be.
pub const ENDPOINT: &str = "http://192.168.50.2:2379";

const DATA: &str = "/run/lab/etcd";
const PEER: &str = "http://127.0.0.1:2380";
const MEMBER: &str = "lab=http://127.0.0.1:2380";

/// A key as etcd has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value, with invalid UTF-8 replaced.
    pub value: String,
    /// The etcd lease that the key hangs on; 0 for none.
    pub lease: i64,
    /// How often the key was written since it was created.
    pub version: i64,
    /// The revision that wrote it last.
    pub mod_revision: i64,
}

/// The lab's etcd.
#[derive(Debug)]
pub struct Etcd {
    place: Place,
    process: Option<Process>,
    runtime: tokio::runtime::Runtime,
}

impl Etcd {
    /// An etcd that is not started yet, at `place`.
    pub(crate) fn new(place: Place) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            place,
            process: None,
            runtime,
        })
    }

    /// The host that etcd runs on.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Starts it on the data that it had, and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        self.start_without_waiting()?;
        self.wait_ready()
    }

    pub(crate) fn start_without_waiting(&mut self) -> Result<()> {
        let clients = format!("{ENDPOINT},http://127.0.0.1:2379");
        let argv = [
            "etcd",
            "--name",
            "lab",
            "--data-dir",
            DATA,
            "--log-level",
            "warn",
            "--logger",
            "zap",
            "--listen-client-urls",
            &clients,
            "--advertise-client-urls",
            ENDPOINT,
            "--listen-peer-urls",
            PEER,
            "--initial-advertise-peer-urls",
            PEER,
            "--initial-cluster",
            MEMBER,
        ];
        let env = Environment {
            clean: true,
            ..Environment::default()
        };
        self.process = Some(self.place.spawn("etcd", &argv, &env)?);
        Ok(())
    }

    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        eventually(limit(20), "etcd to answer", || {
            self.process
                .as_mut()
                .context("etcd was not started")?
                .check_running()?;
            self.get("lab/ready").map(drop)
        })
    }

    /// Stops it as an operator does.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("etcd is not running")?;
        process.signal(Signal::TERM)?;
        process.wait(limit(10)).map(drop)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("etcd is not running")?.kill()
    }

    /// SIGSTOP: connections stay open and nothing answers.
    pub fn freeze(&self) -> Result<()> {
        self.process
            .as_ref()
            .context("etcd is not running")?
            .signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        self.process
            .as_ref()
            .context("etcd is not running")?
            .signal(Signal::CONT)
    }

    /// Deletes its data; it must not run.
    pub fn wipe(&self) -> Result<()> {
        match std::fs::remove_dir_all(DATA) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot delete {DATA}"))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Saves its data as an operator does.
    pub fn back_up(&self, file: &str) -> Result<()> {
        let argv = ["etcdctl", "--endpoints", ENDPOINT, "snapshot", "save", file];
        self.place.run(&argv).map(drop)
    }

    /// Puts a backup in the place of its data; it must not run.
    pub fn restore(&self, file: &str) -> Result<()> {
        self.wipe()?;
        let script = format!(
            "etcdctl snapshot restore {file} --name lab --data-dir {DATA} --initial-cluster {MEMBER} \
             --initial-advertise-peer-urls {PEER}"
        );
        self.place.shell(&script).map(drop)
    }

    /// Throws away all history before now.
    pub fn compact(&self) -> Result<()> {
        self.call("compact", async |mut c| {
            let revision = c
                .get("lab/ready", None)
                .await?
                .header()
                .map_or(0, |h| h.revision());
            c.compact(revision, None).await
        })
        .map(drop)
    }

    /// Writes many keys without a lease, over one connection.
    pub fn put_all(&self, entries: &[(String, Vec<u8>)]) -> Result<()> {
        self.call("put many keys", async |mut c| {
            for (key, value) in entries {
                c.put(key.as_str(), value.as_slice(), None).await?;
            }
            Ok(())
        })
    }

    /// Writes a key without a lease.
    pub fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> Result<()> {
        let (key, value) = (key.to_owned(), value.into());
        self.call(&format!("put {key}"), async |mut c| c.put(key, value, None).await)
            .map(drop)
    }

    /// Writes (`Some`) and deletes (`None`) many keys over one connection, 64 at a time, in any order: no key twice.
    pub fn write_many(&self, changes: &[(String, Option<String>)]) -> Result<()> {
        self.write(changes, 64)
    }

    /// Writes keys (`Some`) and deletes them (`None`), one after the other as fast as it goes: the last change of a key holds.
    pub fn apply(&self, changes: &[(String, Option<String>)]) -> Result<()> {
        self.write(changes, 1)
    }

    fn write(&self, changes: &[(String, Option<String>)], at_once: usize) -> Result<()> {
        self.call("write many keys", async |c| {
            for chunk in changes.chunks(at_once) {
                let mut under_way = tokio::task::JoinSet::new();
                for (key, value) in chunk.iter().cloned() {
                    let mut kv = c.kv_client();
                    under_way.spawn(async move {
                        match value {
                            Some(value) => kv.put(key, value, None).await.map(drop),
                            None => kv.delete(key, None).await.map(drop),
                        }
                    });
                }
                while let Some(done) = under_way.join_next().await {
                    if let Ok(result) = done {
                        result?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Writes a key on a new lease of `ttl` seconds; the lease's id.
    pub fn put_leased(&self, key: &str, value: &str, ttl: i64) -> Result<i64> {
        self.call(&format!("put {key}"), async |mut c| {
            let lease = c.lease_grant(ttl, None).await?.id();
            c.put(key, value, Some(PutOptions::new().with_lease(lease)))
                .await?;
            Ok(lease)
        })
    }

    /// One key.
    pub fn get(&self, key: &str) -> Result<Option<Entry>> {
        Ok(self.range(key, None)?.pop())
    }

    /// Every key that begins with `prefix`, in order.
    pub fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.range(prefix, Some(GetOptions::new().with_prefix()))
    }

    /// Everything that was ever written to keys that begin with `prefix`, in order; nothing is compacted in a lab.
    pub fn history(&self, prefix: &str) -> Result<Vec<Entry>> {
        const END: &str = "lab/end-of-history";
        self.put(END, "")?;
        let last = self.get(END)?.context("etcd lost a key")?.mod_revision;
        let mut written = self.call("read the history", async |mut c| {
            let options = WatchOptions::new().with_all_keys().with_start_revision(1);
            let mut watch = c.watch("", Some(options)).await?;
            let mut written: Vec<Entry> = Vec::new();
            while written.last().is_none_or(|entry| entry.mod_revision < last) {
                let Some(answer) = watch.message().await? else {
                    break;
                };
                let puts = answer
                    .events()
                    .iter()
                    .filter(|event| event.event_type() == EventType::Put);
                written.extend(puts.filter_map(etcd_client::Event::kv).map(entry));
            }
            Ok(written)
        })?;
        written.retain(|entry| entry.key.starts_with(prefix));
        Ok(written)
    }

    /// Deletes one key.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.call(&format!("delete {key}"), async |mut c| c.delete(key, None).await)
            .map(drop)
    }

    /// Deletes every key that begins with `prefix`.
    pub fn delete_prefix(&self, prefix: &str) -> Result<()> {
        let options = Some(DeleteOptions::new().with_prefix());
        self.call(&format!("delete {prefix}"), async |mut c| {
            c.delete(prefix, options).await
        })
        .map(drop)
    }

    /// Seconds that a lease has left; −1 if there is no such lease (any more).
    pub fn lease_ttl(&self, lease: i64) -> Result<i64> {
        Ok(self
            .call("read a lease", async |mut c| {
                c.lease_time_to_live(lease, None).await
            })?
            .ttl())
    }

    /// Revokes a lease, and with it its keys.
    pub fn revoke(&self, lease: i64) -> Result<()> {
        self.call("revoke a lease", async |mut c| c.lease_revoke(lease).await)
            .map(drop)
    }

    fn range(&self, key: &str, options: Option<GetOptions>) -> Result<Vec<Entry>> {
        let answer = self.call(&format!("get {key}"), async |mut c| c.get(key, options).await)?;
        Ok(answer.kvs().iter().map(entry).collect())
    }

    /// A fresh connection each time: a frozen or restarted server then leaves no half-dead one behind.
    fn call<T, F>(&self, what: &str, request: impl FnOnce(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let options = ConnectOptions::new()
            .with_connect_timeout(limit(3))
            .with_timeout(limit(5));
        self.runtime
            .block_on(async {
                let client = Client::connect([ENDPOINT], Some(options)).await?;
                request(client).await
            })
            .with_context(|| format!("etcd: {what}"))
    }
}

fn entry(kv: &etcd_client::KeyValue) -> Entry {
    Entry {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        value: String::from_utf8_lossy(kv.value()).into_owned(),
        lease: kv.lease(),
        version: kv.version(),
        mod_revision: kv.mod_revision(),
    }
}
