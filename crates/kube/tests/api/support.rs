//! A follower beside an API server, and what it has said.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use flannel_kube::fixture::ApiServer;
use flannel_kube::{Client, Content, Event, KubeOptions, Object, Patience, Resource, follow};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Long, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn server() -> ApiServer {
    ApiServer::start("127.0.0.1:0".parse().unwrap()).unwrap()
}

pub fn options(url: &str) -> KubeOptions {
    KubeOptions {
        api_url: Some(url.to_owned()),
        kubeconfig: None,
        service_account: PathBuf::from("/nonexistent"),
        in_cluster: None,
    }
}

pub fn client(server: &ApiServer) -> Client {
    Client::new(options(&server.url())).unwrap()
}

pub fn impatient(server: &ApiServer, patience: Patience) -> Client {
    Client::with_patience(options(&server.url()), patience).unwrap()
}

pub fn service(name: &str, ip: &str) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}})
}

/// What a follower knows, by its events alone.
pub struct Mirror {
    events: mpsc::Receiver<Event>,
    pub objects: BTreeMap<String, Object>,
    listing: BTreeMap<String, Object>,
    pub inits: usize,
    pub lost: Vec<String>,
    pub resumed: usize,
}

impl Mirror {
    pub fn new(client: Client, resource: Resource) -> Self {
        Self {
            events: follow(client, resource).1,
            objects: BTreeMap::new(),
            listing: BTreeMap::new(),
            inits: 0,
            lost: Vec::new(),
            resumed: 0,
        }
    }

    async fn take(&mut self) {
        let event = timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event in time")
            .expect("the follower lives");
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => drop(self.listing.insert(object.name.to_string(), *object)),
            Event::InitDone { .. } => {
                self.objects = std::mem::take(&mut self.listing);
                self.inits += 1;
            }
            Event::Apply(object) => drop(self.objects.insert(object.name.to_string(), *object)),
            Event::Delete(name) => drop(self.objects.remove(&name.to_string())),
            Event::Lost { reason } => self.lost.push(reason.to_string()),
            Event::Resumed => self.resumed += 1,
        }
    }

    /// Takes events until `done` holds.
    pub async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                tokio::time::Instant::now() < end,
                "{what} did not come; known: {:?}, lost: {:?}",
                self.names(),
                self.lost
            );
            self.take().await;
        }
    }

    pub fn names(&self) -> Vec<&str> {
        self.objects.keys().map(String::as_str).collect()
    }

    /// The cluster address of a Service.
    pub fn address(&self, name: &str) -> Option<String> {
        match &self.objects.get(name)?.content {
            Ok(Content::Service(_, spec)) => spec.cluster_ips.first().map(ToString::to_string),
            _ => None,
        }
    }
}
