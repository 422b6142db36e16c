//! What was told of the API server's collections, as news about records.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_kube::{Content, Event, Object, ObjectName};
use flannel_model::{IpSubnet, ServiceKey, ServiceRecord, ServicesConfig};
use tokio::time::Instant;

use super::KubeSource;
use crate::service_feed::news::{News, Stamp};
use crate::services::{CONFIG, Record};

/// Faults of one object that are told.
const TOLD_FAULTS: usize = 5;

/// The collections, as messages call their objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Service,
    Slice,
    Cidr,
    Node,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Slice => "EndpointSlice",
            Self::Cidr => "ServiceCIDR",
            Self::Node => "Node",
        }
    }
}

/// Which objects of a collection there are.
#[derive(Debug, Default)]
struct Names {
    known: BTreeSet<ObjectName>,
    listing: BTreeSet<ObjectName>,
    complete: bool,
}

/// What was told so far, as far as it is needed to know what is gone.
pub(super) struct Mirror {
    names: BTreeMap<Kind, Names>,
    given: ServicesConfig,
    /// Ranges by the ServiceCIDR that they come from.
    cidrs: BTreeMap<ObjectName, Vec<IpSubnet>>,
    /// Address of the server, where it is none that must be looked up.
    server: Option<IpAddr>,
    complete: bool,
}

impl Mirror {
    pub(super) fn new(source: &KubeSource) -> Self {
        let mut kinds = vec![Kind::Service, Kind::Slice, Kind::Node];
        if source.config.cidrs.is_empty() {
            kinds.push(Kind::Cidr);
        }
        Self {
            names: kinds.into_iter().map(|kind| (kind, Names::default())).collect(),
            given: source.config.clone(),
            cidrs: BTreeMap::new(),
            server: source.client.server_address(),
            complete: false,
        }
    }

    /// What is known before anything comes.
    pub(super) fn begin(&self) -> Vec<News> {
        if self.given.cidrs.is_empty() {
            Vec::new()
        } else {
            vec![self.config()]
        }
    }

    /// What an event of a collection means.
    pub(super) fn take(&mut self, kind: Kind, event: Event) -> Vec<News> {
        match event {
            Event::Init => {
                self.of(kind).listing.clear();
                Vec::new()
            }
            Event::InitApply(object) => {
                self.of(kind).listing.insert(object.name.clone());
                self.put(kind, *object)
            }
            Event::InitDone { .. } => self.done(kind),
            Event::Apply(object) => self.put(kind, *object),
            Event::Delete(name) => self.gone(kind, &name),
            Event::Lost { reason } => vec![News::Lost(reason.to_string())],
            Event::Resumed => vec![News::Resumed],
        }
    }

    fn of(&mut self, kind: Kind) -> &mut Names {
        self.names.entry(kind).or_default()
    }

    fn done(&mut self, kind: Kind) -> Vec<News> {
        let names = self.of(kind);
        names.complete = true;
        let present = std::mem::take(&mut names.listing);
        let gone: Vec<ObjectName> = names.known.difference(&present).cloned().collect();
        let mut news: Vec<News> = gone.iter().flat_map(|name| self.gone(kind, name)).collect();
        if kind == Kind::Cidr && self.cidrs.is_empty() {
            tracing::warn!(
                "the API server has no ServiceCIDR (Kubernetes has them since 1.33), so no Service is programmed: name the \
                 cluster's ranges with --service-cluster-ip-range"
            );
            news.push(self.config());
        }
        if !self.complete && self.names.values().all(|names| names.complete) {
            self.complete = true;
            news.push(News::Complete);
        }
        news
    }

    fn put(&mut self, kind: Kind, object: Object) -> Vec<News> {
        self.of(kind).known.insert(object.name.clone());
        let name = format!("{} {}", kind.word(), object.name);
        let stamp = Stamp {
            revision: object.version.parse().unwrap_or(0),
            triggered: object.triggered,
            heard: Some(Instant::now()),
        };
        let record = |content| Record {
            name: name.clone(),
            content,
            created: object.created,
        };
        let put = |content| vec![News::Put(Box::new(record(content)), stamp)];
        match object.content {
            Ok(Content::Service(service, spec)) => {
                put(Ok((ServiceKey::Spec(service), ServiceRecord::Spec(*spec))))
            }
            Ok(Content::Slice(key, slice)) => put(Ok((key, ServiceRecord::Slice(slice)))),
            Ok(Content::Node(node)) => vec![News::Zone(node.zone)],
            Ok(Content::Cidrs(cidrs)) => {
                self.cidrs.insert(object.name, cidrs);
                // A fault that was told is mended with it.
                vec![News::Gone(name, stamp), self.config()]
            }
            Ok(Content::Nothing) => vec![News::Gone(name, stamp)],
            Err(faults) => {
                let texts: Vec<String> = faults.iter().take(TOLD_FAULTS).map(ToString::to_string).collect();
                put(Err(texts.join(" | ")))
            }
        }
    }

    fn gone(&mut self, kind: Kind, name: &ObjectName) -> Vec<News> {
        self.of(kind).known.remove(name);
        let stamp = Stamp {
            heard: Some(Instant::now()),
            ..Stamp::default()
        };
        let record = News::Gone(format!("{} {name}", kind.word()), stamp);
        match kind {
            Kind::Service | Kind::Slice => vec![record],
            Kind::Cidr => {
                self.cidrs.remove(name);
                vec![record, self.config()]
            }
            Kind::Node => vec![News::Zone(None)],
        }
    }

    /// The config with the ranges of the moment.
    fn config(&self) -> News {
        let mut config = self.given.clone();
        if config.cidrs.is_empty() {
            config.cidrs = self.cidrs.values().flatten().copied().collect();
            config.cidrs.sort();
            config.cidrs.dedup();
        }
        if let Some((server, cidr)) = self
            .server
            .and_then(|ip| Some((ip, config.cidrs.iter().find(|c| c.holds(ip))?)))
        {
            tracing::warn!(
                "the API server is reached at {server}, a Service address of {cidr} that this daemon programs itself: after a \
                 reboot nobody else does; name the server's own address with --kube-api-url or in the kubeconfig"
            );
        }
        let record = Record {
            name: CONFIG.to_owned(),
            content: Ok((ServiceKey::Config, ServiceRecord::Config(config))),
            created: 0,
        };
        News::Put(Box::new(record), Stamp::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_kube::{Client, KubeOptions, NodeObject};
    use flannel_model::{ServiceFieldError, ServiceSpec};

    fn mirror(cidrs: &[&str], server: &str) -> Mirror {
        let options = KubeOptions {
            api_url: Some(server.to_owned()),
            kubeconfig: None,
            service_account: "/nonexistent".into(),
            in_cluster: None,
        };
        Mirror::new(&KubeSource {
            client: Client::new(options).unwrap(),
            node_name: "n1".to_owned(),
            config: ServicesConfig {
                cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
                ..ServicesConfig::default()
            },
        })
    }

    fn object(name: &str, content: Result<Content, Vec<ServiceFieldError>>) -> Box<Object> {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        Box::new(Object {
            name: ObjectName {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            version: "77".to_owned(),
            created: 1,
            triggered: None,
            content,
        })
    }

    fn service(name: &str) -> Box<Object> {
        let spec = ServiceSpec::parse(br#"{"clusterIP":"10.96.0.10","ports":[{"port":80}]}"#).unwrap();
        let ServiceKey::Spec(key) = ServiceKey::parse(&format!("spec/{name}")).unwrap() else {
            panic!("{name}");
        };
        object(name, Ok(Content::Service(key, Box::new(spec))))
    }

    fn cidr(name: &str, range: &str) -> Box<Object> {
        object(name, Ok(Content::Cidrs(vec![range.parse().unwrap()])))
    }

    /// What is told, in short.
    fn told(mirror: &mut Mirror, kind: Kind, event: Event) -> String {
        let short = |news: &News| match news {
            News::Put(record, _) => match &record.content {
                Ok((_, ServiceRecord::Config(config))) => format!("config {:?}", texts(&config.cidrs)),
                Ok((key, _)) => format!("put {key}"),
                Err(fault) => format!("bad {}: {fault}", record.name),
            },
            News::Gone(name, _) => format!("gone {name}"),
            News::Complete => "complete".to_owned(),
            other => format!("{other:?}"),
        };
        mirror
            .take(kind, event)
            .iter()
            .map(short)
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn texts(cidrs: &[IpSubnet]) -> String {
        cidrs
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn done() -> Event {
        Event::InitDone {
            version: "9".to_owned(),
        }
    }

    #[test]
    fn complete_means_every_collection() {
        let mut mirror = mirror(&[], "http://127.0.0.1:1");
        assert_eq!(
            told(&mut mirror, Kind::Service, Event::InitApply(service("shop/web"))),
            "put spec/shop/web"
        );
        assert_eq!(told(&mut mirror, Kind::Service, done()), "");
        assert_eq!(told(&mut mirror, Kind::Slice, done()), "");
        assert_eq!(told(&mut mirror, Kind::Node, done()), "");
        let range = Event::InitApply(cidr("kubernetes", "10.96.0.0/16"));
        assert!(told(&mut mirror, Kind::Cidr, range).contains("config \"10.96.0.0/16\""));
        assert_eq!(told(&mut mirror, Kind::Cidr, done()), "complete");
        // A list that lacks what was there takes it away, and completeness is told once.
        assert_eq!(told(&mut mirror, Kind::Service, Event::Init), "");
        assert_eq!(told(&mut mirror, Kind::Service, done()), "gone Service shop/web");
    }

    #[test]
    fn ranges_add_up_and_given_ones_win() {
        let mut own = mirror(&[], "http://127.0.0.1:1");
        told(&mut own, Kind::Cidr, Event::Apply(cidr("a", "10.96.0.0/16")));
        let both = told(&mut own, Kind::Cidr, Event::Apply(cidr("b", "10.97.0.0/16")));
        assert!(both.ends_with("config \"10.96.0.0/16 10.97.0.0/16\""), "{both}");
        let name = ObjectName {
            namespace: String::new(),
            name: "a".to_owned(),
        };
        assert_eq!(
            told(&mut own, Kind::Cidr, Event::Delete(name)),
            "gone ServiceCIDR a, config \"10.97.0.0/16\""
        );
        let mut given = mirror(&["10.96.0.0/16"], "http://127.0.0.1:1");
        assert_eq!(given.begin().len(), 1);
        told(&mut given, Kind::Service, done());
        told(&mut given, Kind::Slice, done());
        assert_eq!(
            told(&mut given, Kind::Node, done()),
            "complete",
            "ServiceCIDRs are not waited for"
        );
    }

    #[test]
    fn objects_that_are_bad_or_nothing() {
        let mut mirror = mirror(&[], "http://127.0.0.1:1");
        let fault = ServiceFieldError {
            field: "spec.clusterIP".to_owned(),
            found: "\"x\" is refused".to_owned(),
            expected: "a unicast IP address".to_owned(),
        };
        let bad = told(
            &mut mirror,
            Kind::Service,
            Event::Apply(object("shop/web", Err(vec![fault]))),
        );
        assert_eq!(
            bad,
            "bad Service shop/web: spec.clusterIP: \"x\" is refused; expected a unicast IP address"
        );
        let headless = Event::Apply(object("shop/web", Ok(Content::Nothing)));
        assert_eq!(
            told(&mut mirror, Kind::Service, headless),
            "gone Service shop/web"
        );
        let node = NodeObject {
            zone: Some("a".to_owned()),
            doomed: false,
        };
        let zone = told(
            &mut mirror,
            Kind::Node,
            Event::Apply(object("n1", Ok(Content::Node(node)))),
        );
        assert_eq!(zone, "Zone(Some(\"a\"))");
    }
}
