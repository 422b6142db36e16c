//! GC: remove what no attachment needs that the runtime still knows. Of this network only.

use std::collections::BTreeSet;

use flannel_netlink::RouteConn;
use flannel_netlink::link::{self, Link, released};
use serde_json::Value;

use crate::address::{Holder, Store};
use crate::config::{Network, bridge_name};
use crate::delegate::Delegate;
use crate::masq;
use crate::protocol::keys::Keys;
use crate::protocol::{Attachment, CniError, Code, ContainerId, IfName};
use crate::release;
use crate::scratch;
use crate::wiring::plan::HostEnd;
use crate::wiring::{handover, kernel, live, veth};

/// Most attachments in a call; a node has some hundreds.
const MOST: usize = 1 << 20;

/// Attachments that are to stay.
#[derive(Debug, Default)]
struct Valid {
    /// Contents of their leases.
    texts: BTreeSet<String>,
    containers: BTreeSet<String>,
    names: BTreeSet<String>,
}

/// Removes what `delegate` made, if there is one, and devices, addresses, masquerading and saved state of attachments that are not in `cni.dev/valid-attachments`.
///
/// # Errors
/// Code 7 for the list; else, after everything that could be removed was removed, all that could not, as one error.
pub fn gc(
    network: &Network,
    delegate: Option<&Delegate<'_>>,
    warn: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let valid = Valid::read(network)?;
    let mut failures = Failures::default();
    if let Some(delegate) = delegate {
        failures.note(delegate.gc());
    }
    failures.note(devices(network, &valid, warn));
    failures.note(leases(network, &valid, warn));
    failures.note(saved(network, &valid));
    failures.result()
}

impl Valid {
    fn read(network: &Network) -> Result<Self, CniError> {
        let keys = network.keys();
        // The second name is that of libraries before 1.1.0 was final.
        let given = |name: &str| keys.value(name).map(|value| value.map(|_| name.to_owned()));
        let name = match given("cni.dev/valid-attachments")? {
            Some(name) => Some(name),
            None => given("cni.dev/attachments")?,
        };
        let Some(name) = name else {
            let msg = "cni.dev/valid-attachments is missing";
            return Err(CniError::new(Code::BadConfig, msg).with(
                "GC removes what is not in that list; an empty list means everything of this network",
            ));
        };
        let list = keys.list(&name)?;
        if list.len() > MOST {
            let msg = format!("{name} has {} entries; expected {MOST} at the most", list.len());
            return Err(CniError::new(Code::BadConfig, msg));
        }
        let mut valid = Self::default();
        for item in list {
            valid.take(network, &keys, &name, item)?;
        }
        Ok(valid)
    }

    fn take(&mut self, network: &Network, keys: &Keys<'_>, name: &str, item: &Value) -> Result<(), CniError> {
        let expected = "a list of objects with containerID and ifname";
        let fault = || keys.fault(name, item, expected);
        let object = item.as_object().ok_or_else(fault)?;
        let fields = Keys::new(name, object);
        let container = ContainerId::parse(fields.text("containerID")?.ok_or_else(fault)?);
        let ifname = IfName::parse(fields.text("ifname")?.ok_or_else(fault)?);
        let attachment = Attachment {
            container: container.map_err(|_| fault())?,
            ifname: ifname.map_err(|_| fault())?,
        };
        self.names.insert(HostEnd::of(&network.name, &attachment).name);
        self.containers.insert(attachment.container.to_string());
        self.texts.insert(Holder::from(&attachment).content());
        self.texts.insert(attachment.container.to_string());
        Ok(())
    }
}

/// Devices go before their addresses become free, and all together.
fn devices(network: &Network, valid: &Valid, warn: &mut dyn FnMut(String)) -> Result<(), CniError> {
    let mut conn = RouteConn::open().map_err(|e| kernel(&e))?;
    let prefix = HostEnd::alias_prefix(&network.name);
    let ours = |link: &Link| {
        let alias = link.alias.as_deref().unwrap_or_default();
        link.kind == "veth" && alias.starts_with(&prefix) && !valid.names.contains(&link.name)
    };
    let links = link::dump(&mut conn).map_err(|e| kernel(&e))?;
    let mut failures = Failures::default();
    for stale in links.iter().filter(|link| ours(link)) {
        if !handover::cut_off(&mut conn, stale) {
            failures.note(veth::delete(&mut conn, stale.ifindex).map(drop));
        }
        warn(format!("GC removed the device {}", stale.name));
    }
    failures.note(released::reap(&mut conn).map(drop).map_err(|e| kernel(&e)));
    failures.result()
}

/// What is on record goes by the record, whatever is left of it; what is not, by its lease.
fn leases(network: &Network, valid: &Valid, warn: &mut dyn FnMut(String)) -> Result<(), CniError> {
    let Some(mut store) = Store::open_existing(&network.lease_root()?, &network.name)? else {
        return Ok(());
    };
    let mut conn = RouteConn::open().map_err(|e| kernel(&e))?;
    let bridge = bridge_name(&network.part("delegate")?)?;
    let gone = store.reclaim(&mut || live(&mut conn, &network.name, bridge.as_str()), warn)?;
    release::residue(&gone, warn);
    let mut failures = Failures::default();
    for stored in store.records(warn)? {
        if !valid.names.contains(&stored.record.host_end) {
            let end = HostEnd::of(&network.name, &stored.record.attachment);
            let removed = veth::remove(&mut conn, &end).map(drop);
            if removed.is_ok() {
                release::residue(std::slice::from_ref(&stored.record), warn);
                release::free(&store, &stored.record, warn);
                warn(format!(
                    "GC released {} of container {}",
                    end.name, stored.record.attachment.container
                ));
            }
            failures.note(removed);
        }
    }
    for ip in store.taken()? {
        let lease = store.lease(ip);
        let Some(text) = lease.holder_text().map(str::trim) else {
            continue;
        };
        // A file of an old plugin names the container alone.
        if !valid.texts.contains(text) {
            let freed = masq::remove(&[ip]).and_then(|()| store.free_from(ip, text));
            if freed.is_ok() {
                warn(format!("GC freed the address {ip}"));
            }
            failures.note(freed);
        }
    }
    failures.result()
}

fn saved(network: &Network, valid: &Valid) -> Result<(), CniError> {
    scratch::retain(&network.data_dir()?, &network.name, &|container| {
        valid.containers.contains(container)
    })
}

/// What failed, while the rest goes on.
#[derive(Debug, Default)]
struct Failures(Vec<CniError>);

impl Failures {
    fn note(&mut self, result: Result<(), CniError>) {
        self.0.extend(result.err());
    }

    fn result(mut self) -> Result<(), CniError> {
        if self.0.len() < 2 {
            return self.0.pop().map_or(Ok(()), Err);
        }
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        let code = self.0.first().map_or(Code::Io, |error| error.code);
        let msg = format!("{} things could not be removed", texts.len());
        Err(CniError::new(code, msg).with(texts.join("; ")))
    }
}
