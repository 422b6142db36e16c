//! A network config that changes while the node runs: what can be is applied, the rest waits for a restart and is told.

use flannel_model::{BackendSettings, ConfigErrors, VxlanOptions, WireguardOptions};
use flannel_store::{Event, Store, follow};
use tokio::sync::mpsc;

use crate::config_wait::{Usable, check};
use crate::said::Said;

/// What stands at the config's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// This text.
    Text(Vec<u8>),
    /// Nothing.
    Missing,
}

/// Follows the config's key.
#[derive(Debug)]
pub struct ConfigFeed {
    key: String,
    listed: Option<Vec<u8>>,
}

impl ConfigFeed {
    /// For this key.
    pub fn new(key: String) -> Self {
        Self { key, listed: None }
    }

    /// Takes one event of a range that begins with the key; answers what stands there if the event tells it.
    pub fn take(&mut self, event: Event) -> Option<Stored> {
        match event {
            Event::Init => {
                self.listed = None;
                None
            }
            Event::InitApply(kv) if kv.key == self.key => {
                self.listed = Some(kv.value);
                None
            }
            Event::InitDone { .. } => Some(self.listed.take().map_or(Stored::Missing, Stored::Text)),
            Event::Apply(kv) if kv.key == self.key => Some(Stored::Text(kv.value)),
            Event::Delete { key, .. } if key == self.key => Some(Stored::Missing),
            // Other keys may begin like ours. An outage is told by those who follow the leases.
            Event::InitApply(_)
            | Event::Apply(_)
            | Event::Delete { .. }
            | Event::Lost { .. }
            | Event::Resumed { .. } => None,
        }
    }
}

/// Watches the config of a running node, and says what becomes of its changes.
#[derive(Debug)]
pub struct ConfigWatch {
    /// What happens at the config's key, and maybe beside it.
    pub events: mpsc::Receiver<Event>,
    /// Picks out what concerns the config.
    pub feed: ConfigFeed,
    said: Said,
    note: &'static str,
}

/// What a stored config means: the end of the status line, the story to tell, and the backend to go on with if it changes.
type Outcome = (&'static str, String, Option<BackendSettings>);

impl ConfigWatch {
    /// Begins to watch.
    pub fn start<S: Store>(store: S, key: String) -> Self {
        let (_, events) = follow(store, key.clone());
        Self {
            events,
            feed: ConfigFeed::new(key),
            said: Said::default(),
            note: "",
        }
    }

    /// What waits for a restart, as the end of a status line; empty when nothing does.
    pub fn note(&self) -> &str {
        self.note
    }

    /// Says what became of the config, if that is news; answers the backend to go on with when it changes.
    pub fn compare(&mut self, running: &Usable, stored: Stored, ipv6_only: bool) -> Option<BackendSettings> {
        let (note, story, backend) = outcome(running, stored, ipv6_only);
        self.note = note;
        if story.is_empty() {
            if self.said.clear() {
                tracing::info!("the network config in etcd is the one that this node runs");
            }
        } else if self.said.is_news(&story) {
            tracing::warn!("{story}");
        }
        backend
    }
}

fn outcome(running: &Usable, stored: Stored, ipv6_only: bool) -> Outcome {
    let Stored::Text(text) = stored else {
        let story = "the network config was deleted; this node goes on with what it has, but cannot start again without one \
                     (flannelctl config set)";
        return ("; the network config is gone", story.to_owned(), None);
    };
    let difference = match compare(running, &text, ipv6_only) {
        Ok(difference) => difference,
        Err(errors) => {
            let story = format!(
                "the network config was changed to one that cannot be used: {errors}; this node goes on with the one before"
            );
            return ("; the network config cannot be used any more", story, None);
        }
    };
    let changed = (difference.backend != running.backend).then_some(difference.backend);
    if changed.is_some() {
        let changes = difference.applied.join(", ");
        tracing::info!(changes, "the network config changed and is applied");
    }
    if difference.refused.is_empty() {
        return ("", String::new(), changed);
    }
    let story = format!(
        "the network config changed, and this waits for a restart of flanneld: {}",
        difference.refused.join(", ")
    );
    (
        "; a change of the network config waits for a restart",
        story,
        changed,
    )
}

/// What a changed config means for the running node.
#[derive(Debug)]
pub struct Difference {
    /// The backend to go on with: that of now, with what can be changed taken over.
    pub backend: BackendSettings,
    /// What is changed, as `field: old → new`.
    pub applied: Vec<String>,
    /// What waits for a restart, with the reason.
    pub refused: Vec<String>,
}

/// Compares the config that the node runs with one that stands in the store now.
///
/// # Errors
/// When that one cannot be used; the node goes on with its own.
pub fn compare(running: &Usable, text: &[u8], ipv6_only: bool) -> Result<Difference, ConfigErrors> {
    let stored = check(text, ipv6_only)?;
    let mut difference = Difference::new(running.backend);
    match (running.backend, stored.backend) {
        (BackendSettings::Vxlan(now), BackendSettings::Vxlan(then)) => difference.vxlan(now, then),
        (BackendSettings::Wireguard(now), BackendSettings::Wireguard(then)) => {
            difference.wireguard(now, then);
        }
        (now, then) if now == then => {}
        (BackendSettings::Udp(now), BackendSettings::Udp(then)) => {
            let port = "every node has to change over at once";
            difference.later("Backend.Port", &now.port, &then.port, port);
        }
        (now, then) if kind(&now) == kind(&then) => {
            let options = "the routes to all peers would change at once";
            difference.later(
                "Backend.DirectRouting",
                &direct_routing(&now),
                &direct_routing(&then),
                options,
            );
        }
        (now, then) => {
            let other = "every node has to change over, and traffic is cut meanwhile";
            difference.later("Backend.Type", &kind(&now), &kind(&then), other);
        }
    }
    let pods = "pods have addresses of the network as it is";
    difference.later("Network", &running.networks(), &stored.networks(), pods);
    let (cut_now, cut_then) = (cut(running), cut(&stored));
    for ((field, now), (_, then)) in cut_now.iter().zip(&cut_then) {
        difference.later(field, now, then, "subnets are chosen when flanneld starts");
    }
    Ok(difference)
}

impl Difference {
    fn new(backend: BackendSettings) -> Self {
        Self {
            backend,
            applied: Vec::new(),
            refused: Vec::new(),
        }
    }

    fn vxlan(&mut self, now: VxlanOptions, then: VxlanOptions) {
        self.live("Backend.MTU", &mtu(now.mtu), &mtu(then.mtu));
        self.live("Backend.Learning", &now.learning, &then.learning);
        self.backend = BackendSettings::Vxlan(VxlanOptions {
            mtu: then.mtu,
            learning: then.learning,
            ..now
        });
        let device = "the VXLAN device would have to be made anew, which cuts traffic";
        self.later("Backend.VNI", &now.vni, &then.vni, device);
        self.later("Backend.Port", &now.port, &then.port, device);
        self.later("Backend.GBP", &now.gbp, &then.gbp, device);
        let routes = "the routes to all peers would change at once";
        self.later(
            "Backend.DirectRouting",
            &now.direct_routing,
            &then.direct_routing,
            routes,
        );
    }

    fn wireguard(&mut self, now: WireguardOptions, then: WireguardOptions) {
        self.live("Backend.MTU", &mtu(now.mtu), &mtu(then.mtu));
        let keepalive = "Backend.PersistentKeepaliveInterval";
        self.live(keepalive, &now.keepalive, &then.keepalive);
        if now.psk != then.psk {
            self.applied.push("Backend.PSK (not shown)".to_owned());
        }
        self.backend = BackendSettings::Wireguard(WireguardOptions {
            mtu: then.mtu,
            keepalive: then.keepalive,
            psk: then.psk,
            ..now
        });
        let lease = "peers know the port from this node's lease";
        self.later("Backend.ListenPort", &now.port, &then.port, lease);
        self.later("Backend.ListenPortV6", &now.port_v6, &then.port_v6, lease);
        let devices = "other devices and addresses would be used, which cuts traffic";
        self.later("Backend.Mode", &now.mode, &then.mode, devices);
    }

    fn live<T: PartialEq + std::fmt::Display>(&mut self, field: &str, now: &T, then: &T) {
        if now != then {
            self.applied.push(format!("{field}: {now} → {then}"));
        }
    }

    fn later<T: PartialEq + std::fmt::Display>(&mut self, field: &str, now: &T, then: &T, reason: &str) {
        if now != then {
            self.refused.push(format!("{field}: {now} → {then} ({reason})"));
        }
    }
}

fn kind(backend: &BackendSettings) -> &'static str {
    match backend {
        BackendSettings::Vxlan(_) => "vxlan",
        BackendSettings::HostGw => "host-gw",
        BackendSettings::Ipip(_) => "ipip",
        BackendSettings::Wireguard(_) => "wireguard",
        BackendSettings::Udp(_) => "udp",
        BackendSettings::Alloc => "alloc",
        BackendSettings::Unread => "unknown",
    }
}

fn direct_routing(backend: &BackendSettings) -> bool {
    match backend {
        BackendSettings::Vxlan(vxlan) => vxlan.direct_routing,
        BackendSettings::Ipip(ipip) => ipip.direct_routing,
        BackendSettings::HostGw
        | BackendSettings::Wireguard(_)
        | BackendSettings::Udp(_)
        | BackendSettings::Alloc
        | BackendSettings::Unread => false,
    }
}

fn mtu(mtu: Option<u32>) -> String {
    mtu.map_or_else(|| "that of the interface".to_owned(), |mtu| mtu.to_string())
}

/// How the networks are cut; `-` for a family that is off.
fn cut(usable: &Usable) -> [(&'static str, String); 6] {
    let (ipv4, ipv6) = (usable.pools.ipv4(), usable.pools.ipv6());
    let text = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        ("SubnetLen", text(ipv4.map(|pool| pool.subnet_len().to_string()))),
        (
            "SubnetMin",
            text(ipv4.map(|pool| pool.subnet_min.network().to_string())),
        ),
        (
            "SubnetMax",
            text(ipv4.map(|pool| pool.subnet_max.network().to_string())),
        ),
        (
            "IPv6SubnetLen",
            text(ipv6.map(|pool| pool.subnet_len().to_string())),
        ),
        (
            "IPv6SubnetMin",
            text(ipv6.map(|pool| pool.subnet_min.network().to_string())),
        ),
        (
            "IPv6SubnetMax",
            text(ipv6.map(|pool| pool.subnet_max.network().to_string())),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_store::{KeyValue, LeaseId, Position};

    const RUNNING: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

    fn difference(text: &str) -> Result<Difference, ConfigErrors> {
        compare(&check(RUNNING.as_bytes(), false).unwrap(), text.as_bytes(), false)
    }

    #[test]
    fn what_can_be_changed_is_and_the_rest_waits_with_its_reason() {
        let found = difference(
            r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","Backend":{"Type":"vxlan","MTU":1400,"Learning":true,"VNI":7}}"#,
        )
        .unwrap();
        assert_eq!(
            found.applied,
            [
                "Backend.MTU: that of the interface → 1400",
                "Backend.Learning: false → true"
            ]
        );
        let BackendSettings::Vxlan(vxlan) = found.backend else {
            panic!("{found:?}")
        };
        assert_eq!((vxlan.mtu, vxlan.learning, vxlan.vni), (Some(1400), true, 1));
        assert_eq!(found.refused.len(), 2, "{:?}", found.refused);
        assert!(
            found.refused[0].starts_with("Backend.VNI: 1 → 7 (the VXLAN device"),
            "{:?}",
            found.refused
        );
        assert!(
            found.refused[1].starts_with("SubnetMin: 10.5.1.0 → 10.5.9.0"),
            "{:?}",
            found.refused
        );
    }

    #[test]
    fn wireguard_takes_what_harms_no_session_and_shows_no_secret() {
        let text = |options: &str| {
            format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"wireguard"{options}}}}}"#)
        };
        let running = check(text("").as_bytes(), false).unwrap();
        let key = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU=";
        let then =
            format!(r#","PSK":"{key}","PersistentKeepaliveInterval":25,"ListenPort":7000,"Mode":"auto""#);
        let found = compare(&running, text(&then).as_bytes(), false).unwrap();
        assert_eq!(
            found.applied,
            [
                "Backend.PersistentKeepaliveInterval: 0 → 25",
                "Backend.PSK (not shown)"
            ]
        );
        let fields: Vec<&str> = found.refused.iter().filter_map(|r| r.split(':').next()).collect();
        assert_eq!(fields, ["Backend.ListenPort", "Backend.Mode"]);
        let BackendSettings::Wireguard(options) = found.backend else {
            panic!("{found:?}")
        };
        assert!(options.psk.is_some() && options.keepalive == 25 && options.port == 51820);
    }

    #[test]
    fn another_family_or_network_waits() {
        let found = difference(
            r#"{"EnableIPv6":true,"Network":"10.0.0.0/8","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#,
        )
        .unwrap();
        assert!(found.applied.is_empty());
        assert!(
            found.refused[0].starts_with("Network: 10.5.0.0/16 → 10.0.0.0/8,fd00:5::/48"),
            "{:?}",
            found.refused
        );
    }

    #[test]
    fn the_same_in_other_words_is_no_change() {
        let found = difference(
            r#"{"network":"10.5.7.7/16","SubnetLen":24,"Backend":{"type":"VXLAN","Port":8472,"VNI":1},"Note":"x"}"#,
        )
        .unwrap();
        assert!(found.applied.is_empty() && found.refused.is_empty(), "{found:?}");
    }

    #[test]
    fn a_config_that_cannot_be_used_changes_nothing() {
        let errors = difference(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipsec"}}"#).unwrap_err();
        assert_eq!(errors.0[0].field, "Backend.Type");
        let other = difference(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#).unwrap();
        assert!(
            other.refused[0].starts_with("Backend.Type: vxlan → host-gw"),
            "{other:?}"
        );
        assert!(difference("junk").is_err());
    }

    #[test]
    fn only_the_key_itself_counts() {
        let kv = |key: &str| KeyValue {
            key: key.to_owned(),
            value: b"x".to_vec(),
            create_revision: 1,
            mod_revision: 1,
            lease: LeaseId(0),
        };
        let done = |revision| Event::InitDone {
            position: Position {
                cluster: 1,
                term: 1,
                revision,
            },
        };
        let mut feed = ConfigFeed::new("/n/config".to_owned());
        assert_eq!(feed.take(Event::Init), None);
        assert_eq!(feed.take(Event::InitApply(kv("/n/config"))), None);
        assert_eq!(feed.take(Event::InitApply(kv("/n/config-old"))), None);
        let text = Some(Stored::Text(b"x".to_vec()));
        assert_eq!(feed.take(done(1)), text);
        assert_eq!(feed.take(Event::Apply(kv("/n/config-old"))), None);
        assert_eq!(feed.take(Event::Apply(kv("/n/config"))), text);
        let delete = |key: &str| Event::Delete {
            key: key.to_owned(),
            mod_revision: 2,
        };
        assert_eq!(feed.take(delete("/n/config-old")), None);
        assert_eq!(feed.take(delete("/n/config")), Some(Stored::Missing));
        feed.take(Event::Init);
        assert_eq!(feed.take(done(3)), Some(Stored::Missing));
    }
}
